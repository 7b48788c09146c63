"""Datasets in maps: the same bits as in memory, written once and whole, and never completely in memory."""

import errno
import faulthandler
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from mbo2o.agents.td3bc import TD3BCConfig
from mbo2o.data.dataset import COLUMNS
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.recipes.finetune import FinetuneConfig
from mbo2o.run.config import RunConfig
from mbo2o.store import checkpoint, datasets, hdf5, mapped, whole
from mbo2o.store.hdf5 import read_hdf5
from mbo2o.training import Config, train
from mbo2o.types import UserError

NET = MLPConfig(hidden=[8])
LIMIT = 150 * 2**20
"""Bytes of memory, private to the process, that converting, loading and drawing may take."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MBO2O_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "maps"


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("mbo2o.data.fields.BLOCK", 32)


def stored(path, fields, attrs=None, maze=False):
    """As others write: now and then packed, and nothing of our own writer."""
    with h5py.File(path, "w") as file:
        for i, (key, x) in enumerate(fields.items()):
            file.create_dataset(key, data=x, **({"compression": "gzip"} if i % 2 and len(x) else {}))
        if maze:
            file["infos/goal"] = np.zeros((3, 2))
        file.attrs.update(attrs or {})
    return path


def plain(n=50, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "observations": rng.normal(size=(n, 3)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (n, 2)).astype(np.float32),
        "rewards": rng.normal(size=n).astype(np.float32),
        "terminals": rng.random(n) < 0.1,
        "timeouts": rng.random(n) < 0.1,
    }


def odd(path, rng):
    """A file of one of the kinds that there are, or a faulty one."""
    n, d = int(rng.integers(1, 60)), int(rng.integers(2, 5))
    obs = rng.normal(size=(n, d)).astype(rng.choice(["f4", "f8"]))
    if rng.random() < 0.3:
        obs = np.repeat(obs, 2, 0)[:n]  # mazes have such rows
    following = np.append(obs[1:], rng.normal(size=(1, d)), 0)
    hidden = rng.random(n) < rng.choice([0, 0.1, 0.9])
    following[hidden] = rng.normal(size=(hidden.sum(), d))
    following[rng.random(n) < 0.1] = np.nan
    fields = plain(n, int(rng.integers(1 << 30))) | {"observations": obs}
    fields["rewards"] = fields["rewards"].round(int(rng.integers(3)))
    if rng.random() < 0.5:
        del fields["timeouts"]
    if rng.random() < 0.5:
        fields["next_observations"] = following
    if rng.random() < 0.2:
        fields |= {key: x[:, None] for key, x in fields.items() if x.ndim == 1}
    if (kind := rng.random()) < 0.05:
        fields["rewards"][rng.integers(n)] = np.inf
    elif kind < 0.1:
        fields["actions"] *= 1.5
    elif kind < 0.13:
        fields["rewards"] = fields["rewards"][:-1]
    attrs = {"max_episode_steps": int(rng.integers(1, 9))} if rng.random() < 0.4 else {}
    return stored(path, fields, attrs | {"env_id": "X-v0"}, maze=rng.random() < 0.3)


def loaded(path, storage):
    """The dataset, or the error, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            x = datasets.read(path, storage)
        except UserError as error:
            x = str(error)
    return x, [str(w.message) for w in caught]


def bits(x):
    return x.contiguous().numpy().tobytes()


def everything(ds):
    """All that can be asked of a dataset, to the bit."""
    out = [bits(getattr(ds, name)) for name in COLUMNS] + [ds.attrs, ds.obs_dim, ds.act_dim, ds.seeds]
    for shaped in (ds, ds.with_reward(1.0, 0.0), ds.with_reward(2.5, -0.3)):
        out += [x.tobytes() for x in shaped.episode_returns()] + [repr(datasets.summary(shaped))]
        for known in (
            shaped,
            shaped.with_returns(0.97),
            shaped.with_returns(0.97, -1.0).every_row().to("cpu"),
        ):
            torch.manual_seed(1)
            batches = [known.rows(known.index), known.with_seeds((2,)).sample(7), known.sample(5)]
            out += [
                None if x is None else bits(x)
                for b in batches
                for x in (b.obs, b.act, b.rew, b.next_obs, b.done, b.mc_return)
            ]
            out += [bits(x) for b in known.blocks() for x in (b.obs, b.act, b.rew)]
    return out


@pytest.fixture
def counted(monkeypatch):
    """How often a map was made."""
    made, make = [], mapped._make
    monkeypatch.setattr(mapped, "_make", lambda *args: made.append(args[0]) or make(*args))
    return made


# ---- the same as in memory


def test_a_map_holds_what_memory_would(tmp_path, monkeypatch, promise):
    monkeypatch.setattr(hdf5, "_check_sound", lambda path: None)
    monkeypatch.setattr("mbo2o.store.whole.sync", lambda path: None)  # which is most of the time
    rng, errors, warned = np.random.default_rng(0), 0, 0
    for i in range(30):
        path = odd(tmp_path / f"{i}.hdf5", rng)
        monkeypatch.setattr("mbo2o.data.fields.BLOCK", 1 << 20)
        ram, said = loaded(path, "ram")
        monkeypatch.setattr("mbo2o.data.fields.BLOCK", int(rng.choice([8, 64])))
        ds, said_too = loaded(path, "memmap")
        again, said_again = loaded(path, "memmap")  # from the map that is there
        assert said == said_too == said_again
        if isinstance(ram, str):
            assert ds == again == ram
        else:
            assert everything(ds) == everything(ram)
            assert [bits(getattr(again, x)) for x in COLUMNS] == [bits(getattr(ram, x)) for x in COLUMNS]
        errors, warned = errors + isinstance(ram, str), warned + bool(said)
    assert 2 < errors < 20
    assert warned > 5
    promise("random files that a memory map holds bit for bit as memory does", 30 - errors)


@pytest.mark.parametrize("ints", [False, True])
def test_a_map_of_a_minari_set_holds_what_memory_would(tmp_path, monkeypatch, small_blocks, counted, ints):
    import minari
    from gymnasium.spaces import Box
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    rng, buffers = np.random.default_rng(0), []
    for n in (5, 9, 1, 20):
        rewards = np.arange(n) if ints and n == 5 else rng.normal(size=n)  # one episode's are whole numbers
        ends = {"terminations": np.arange(n) == n - 1, "truncations": np.zeros(n, bool)}
        rows = {
            "observations": rng.normal(size=(n + 1, 3)),
            "actions": rng.uniform(-1, 1, (n, 2)),
            "rewards": rewards,
        }
        buffers.append(EpisodeBuffer(**rows, **ends))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spaces = {"observation_space": Box(-np.inf, np.inf, (3,)), "action_space": Box(-1, 1, (2,))}
        minari.create_dataset_from_buffers("test/map-v0", buffers, **spaces)
    ram = datasets.read("test/map-v0")
    assert ram.n_rows == 35
    for name in ("test/map-v0", "minari:test/map-v0"):
        assert everything(datasets.read(name, "memmap")) == everything(ram)
    assert len(counted) == 1


def test_a_change_of_the_conversion_needs_a_new_version(tmp_path):
    """A change of these numbers needs another `mapped.VERSION`, or old maps go on being used."""
    rows = np.arange(12)
    fields = {
        "observations": np.stack([rows / 10, rows % 7 / 10], 1).astype(np.float32),
        "actions": (rows[:, None] / 12).astype(np.float32),
        "rewards": rows.astype(np.float32),
        "terminals": rows % 5 == 4,
        "timeouts": rows == 7,
    }
    parts = []
    for drop, maze in (((), False), (("timeouts",), False), ((), True)):
        path = stored(
            tmp_path / f"{len(parts)}.hdf5", {k: x for k, x in fields.items() if k not in drop}, {}, maze
        )
        ds, said = loaded(path, "memmap")
        parts += [b"".join(bits(getattr(ds, name).nan_to_num()) for name in COLUMNS), str(len(said)).encode()]
    found = hashlib.sha256(b"".join(parts)).hexdigest()[:16]
    assert (mapped.VERSION, found) == (2, "483e66ddd7e8d7d0")


def test_training_is_the_same_from_a_map_and_from_memory(tmp_path, pendulum, small_blocks):
    offline = TD3BCConfig(actor=NET, critic=NET)  # which scales observations by statistics of all rows

    def run(storage, directory, steps):
        recipe = FinetuneConfig(
            offline=offline, offline_steps=steps, online_steps=0, batch=16, probe_every=10
        )
        settings = RunConfig(
            log_every=10,
            eval_every=20,
            eval_episodes=1,
            checkpoint_every=10,
            online_capacity=50,
            reward_scale=0.5,
        )
        cfg = Config(
            recipe=recipe,
            dataset=str(pendulum),
            seeds=2,
            storage=storage,
            dir=str(directory),
            report=False,
            run=settings,
        )
        train(cfg)
        tensors, _ = checkpoint.latest(directory / "checkpoints", "cpu")
        lines = [json.loads(x) for x in (directory / "metrics.jsonl").read_text().splitlines()]
        return tensors, [{k: v for k, v in x.items() if k != "time"} for x in lines]

    ram, mapped_ = run("ram", tmp_path / "a", 30), run("memmap", tmp_path / "b", 30)
    assert ram[0].keys() == mapped_[0].keys()
    assert [k for k in ram[0] if bits(ram[0][k]) != bits(mapped_[0][k])] == []
    assert ram[1] == mapped_[1]
    run("memmap", tmp_path / "a", 30)  # it is the same run, wherever its data are


def test_an_unknown_storage_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^storage=disk is not one of ram, memmap$"):
        datasets.read(stored(tmp_path / "x.hdf5", plain()), "disk")


@pytest.mark.parametrize(
    "make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_bytes(b"PK"), os.mkfifo]
)
def test_a_path_that_is_not_a_file_is_refused_as_with_memory(tmp_path, cache, make):
    path = tmp_path / "x.hdf5"
    make(path)
    ram, mapped_ = loaded(path, "ram"), loaded(path, "memmap")
    assert isinstance(ram[0], str)
    assert ram == mapped_
    assert not cache.exists()


def test_a_file_without_rows_is_refused_as_with_memory(tmp_path):
    path = tmp_path / "x.hdf5"
    with h5py.File(path, "w") as file:
        for key, shape in {
            "observations": (0, 3),
            "actions": (0, 1),
            "rewards": (0,),
            "terminals": (0,),
        }.items():
            file.create_dataset(key, shape, "?" if key == "terminals" else "f4")
    ram, mapped_ = loaded(path, "ram"), loaded(path, "memmap")
    assert "has no rows" in ram[0]
    assert ram == mapped_


# ---- memory

CHILD = """
import json, os, resource, sys, time
import torch
from mbo2o.store import datasets
from mbo2o.nn.normalizer import block_statistics

def of(key):
    return next(int(x.split()[1]) * 1024 for x in open("/proc/self/status") if x.startswith(key + ":"))

def resident(name):
    total, here = 0, False
    for line in open("/proc/self/smaps"):
        if "-" in line.split()[0]:
            here = line.rstrip().endswith(name)
        elif here and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total

torch.set_num_threads(1)
path, storage, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
before = of("RssAnon")
resource.setrlimit(resource.RLIMIT_DATA, (of("VmData") + limit, resource.RLIM_INFINITY))
start = time.perf_counter()
ds = datasets.read(path, storage)
took = time.perf_counter() - start
ds.sample(16)
touched = resident("/packed.npy")
ds = ds.with_reward(2.0, 1.0).with_returns(0.99, -1.0).every_row().with_seeds((1,))
datasets.summary(ds), block_statistics(lambda: (b.obs for b in ds.blocks()))
start = time.perf_counter()
sums = sum(ds.sample(256).obs.nansum() for _ in range(1000))
draw = (time.perf_counter() - start) / 1000
out = {"anonymous": of("RssAnon") - before, "touched": touched, "load": took, "draw": draw, "sum": float(sums)}
print(json.dumps(out | {"rows": ds.n_rows}))
"""  # noqa: E501


def big(path, megabytes, width=60):
    rows = megabytes * 2**20 // (4 * (width + 6 + 1) + 2)
    rng = np.random.default_rng(0)
    block = rng.uniform(-1, 1, (4096, width)).astype(np.float32)
    with h5py.File(path, "w") as file:
        sizes = {"observations": (width,), "actions": (6,), "rewards": ()}
        data = {key: file.create_dataset(key, (rows, *shape), "f4") for key, shape in sizes.items()}
        data |= {key: file.create_dataset(key, (rows,), "?") for key in ("terminals", "timeouts")}
        for start in range(0, rows, 4096):
            n = min(4096, rows - start)
            data["observations"][start : start + n] = block[:n]
            data["actions"][start : start + n] = block[:n, :6]
            data["rewards"][start : start + n] = block[:n, 0]
            data["timeouts"][start + n - 1] = True
    return path


def child(path, storage, limit=LIMIT):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, path, storage, str(limit)], capture_output=True, text=True
    )
    return done.returncode, json.loads(done.stdout) if done.returncode == 0 else done.stderr


@pytest.mark.parametrize("megabytes", [120, pytest.param(300, marks=pytest.mark.slow)])
def test_memory_stays_small(tmp_path, megabytes):
    path = big(tmp_path / "big.hdf5", megabytes)
    code, out = child(path, "memmap")
    print(out)
    assert code == 0, out
    assert out["anonymous"] < LIMIT
    assert (
        out["touched"] < 70 * 2**20
    )  # of at least 230 MB: 16 rows, and up to two pages of 2 MB that the kernel maps for each
    code, error = child(path, "ram")
    assert code != 0
    assert "allocate" in error or code == -signal.SIGKILL


# ---- made once, whole, and mended


def test_processes_share_one_map(tmp_path):
    path = stored(tmp_path / "x.hdf5", plain(2000))
    read_hdf5(path)
    begin, ready = os.pipe()
    answers, say = os.pipe()
    pids = [fork(lambda: share(path, begin, ready, say)) for _ in range(2)]
    os.close(ready)  # both begin now
    assert [ended(pid) for pid in pids] == [0, 0]
    found = [json.loads(x) for x in os.read(answers, 1 << 16).decode().splitlines()]
    assert len(found) == 2
    assert sorted(x["made"] for x in found) == [0, 1]
    assert found[0]["ino"] == found[1]["ino"]
    assert found[0]["sum"] == found[1]["sum"]


def share(path, begin, ready, say):
    os.close(ready)
    os.read(begin, 1)
    made, make = [], mapped._make

    def slowly(*args):
        made.append(1)
        time.sleep(0.3)  # so that the other one comes
        make(*args)

    mapped._make = slowly
    ds = datasets.read(path, "memmap")
    lines = [x.split() for x in Path("/proc/self/maps").read_text().splitlines() if x.endswith("/packed.npy")]
    torch.manual_seed(0)
    answer = {"made": len(made), "ino": lines[0][4], "sum": float(ds.sample(64).obs.sum())}
    os.write(say, f"{json.dumps(answer)}\n".encode())


def fork(work):
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_without_locks_the_first_one_stays(tmp_path, monkeypatch, cache):
    """Some network file systems have none: both convert, and both end well."""

    def no_lock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    path, make = stored(tmp_path / "x.hdf5", plain()), mapped._make

    def overtaken(*args):
        monkeypatch.setattr(mapped, "_make", make)
        datasets.read(path, "memmap")
        os.utime(args[0] / "packed.npy", (1, 1))
        monkeypatch.setattr(whole.socket, "gethostname", lambda: "other")
        make(*args)

    monkeypatch.setattr(whole.fcntl, "flock", no_lock)
    monkeypatch.setattr(mapped, "_make", overtaken)
    ds = datasets.read(path, "memmap")
    assert everything(ds) == everything(datasets.read(path))
    assert [x.stat().st_mtime for x in cache.glob("*/packed.npy")] == [1]
    assert not list(cache.glob(".*.tmp"))


DAMAGE = [(f"{x}.npy", "flip") for x in COLUMNS] + [("packed.npy", x) for x in ("cut", "gone")]
DAMAGE += [("manifest.json", x) for x in ("flip", "cut", "gone")]


@pytest.mark.parametrize(("name", "how"), DAMAGE)
def test_a_damaged_map_is_noticed_and_mended(tmp_path, cache, counted, promise, name, how):
    path = stored(tmp_path / "x.hdf5", plain())
    expected = everything(datasets.read(path, "memmap"))
    (file,) = cache.glob(f"*/{name}")
    data = bytearray(file.read_bytes())
    data[-7] ^= 1
    file.unlink()
    if how != "gone":
        file.write_bytes(data if how == "flip" else data[:-1])
    with pytest.warns(UserWarning, match="it is made again from") as caught:
        ds = datasets.read(path, "memmap")
    assert str(file.parent) in str(caught[0].message)
    assert everything(ds) == expected
    assert loaded(path, "memmap")[1] == []
    assert len(counted) == 2
    promise("kinds of damage to a memory map that are noticed and mended")


POINTS = ["_entry", "rename", "new episode"]


@pytest.mark.parametrize("point", POINTS)
def test_a_cut_conversion_leaves_nothing(tmp_path, cache, counted, point):
    path, other = stored(tmp_path / "x.hdf5", plain()), stored(tmp_path / "y.hdf5", plain(seed=1))
    read_hdf5(path)

    def die(*args):
        os.kill(os.getpid(), signal.SIGKILL)

    def work():
        if point == "new episode":
            blank = mapped._header
            mapped._header = lambda shape, dtype: die() if dtype == np.int64 else blank(shape, dtype)
        elif point == "rename":
            Path.rename = die
        else:
            setattr(mapped, point, die)
        datasets.read(path, "memmap")

    assert ended(fork(work)) == -signal.SIGKILL
    assert len(list(cache.glob(".*.tmp"))) == 1
    assert not list(cache.glob("[!.]*"))
    datasets.read(other if point == "rename" else path, "memmap")  # the next conversion removes it
    assert not list(cache.glob(".*.tmp"))
    assert everything(datasets.read(path, "memmap")) == everything(datasets.read(path))


def test_a_folder_that_another_process_is_making_stays(tmp_path, cache):
    datasets.read(stored(tmp_path / "x.hdf5", plain()), "memmap")
    (cache / ".k.host.1.tmp").mkdir()
    with mapped._locked(cache / "k"):
        datasets.read(stored(tmp_path / "y.hdf5", plain(seed=1)), "memmap")
        assert (cache / ".k.host.1.tmp").exists()
    datasets.read(stored(tmp_path / "z.hdf5", plain(seed=2)), "memmap")
    assert not (cache / ".k.host.1.tmp").exists()


def test_a_changed_source_has_another_map(tmp_path, cache, counted):
    path = stored(tmp_path / "x.hdf5", plain())
    first = datasets.read(path, "memmap")
    stamp, rewards = path.stat(), first.rew.clone()
    with h5py.File(path, "r+") as file:
        file["rewards"][3] = 7
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    second = datasets.read(path, "memmap")
    assert second.rew[3] == 7
    assert torch.equal(first.rew, rewards)
    shutil.copy(path, tmp_path / "copy.hdf5")  # what counts is the content
    datasets.read(tmp_path / "copy.hdf5", "memmap")
    assert len(counted) == len(list(cache.glob("[!.]*"))) == 2


def test_a_source_that_changes_meanwhile_is_refused(tmp_path, cache, monkeypatch):
    path, header = stored(tmp_path / "x.hdf5", plain()), mapped._header
    monkeypatch.setattr(mapped, "_header", lambda *a: os.utime(path, (1, 1)) or header(*a))
    with pytest.raises(UserError, match="was changed while it was read"):
        datasets.read(path, "memmap")
    assert not list(cache.glob("[!.]*")) + list(cache.glob(".*.tmp"))


def test_a_full_disk_is_one_line(tmp_path, cache):
    path = stored(tmp_path / "x.hdf5", plain(5000))
    read_hdf5(path)
    read, write = os.pipe()

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        try:
            datasets.read(path, "memmap")
        except UserError as error:
            os.write(write, str(error).encode())

    assert ended(fork(work)) == 0
    text = os.read(read, 10_000).decode()
    assert "cannot be written (File too large); make room, or set MBO2O_CACHE" in text
    assert "\n" not in text
    assert not list(cache.glob("[!.]*")) + list(cache.glob(".*.tmp"))


def test_columns_without_room_on_the_disk_are_refused_in_one_line(tmp_path, monkeypatch):
    ds = datasets.read(stored(tmp_path / "x.hdf5", plain()), "memmap")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        ds.with_returns(0.9)
    assert ds.with_reward(1.0, 0.0).rew.data_ptr() == ds.rew.data_ptr()  # which needs none


def test_writing_to_a_map_ends_the_process(tmp_path, cache):
    ds = datasets.read(stored(tmp_path / "x.hdf5", plain()), "memmap")
    before = {x: x.read_bytes() for x in cache.rglob("*.npy")}
    assert ended(fork(lambda: (faulthandler.disable(), ds.packed.add_(1)))) == -signal.SIGSEGV
    assert {x: x.read_bytes() for x in cache.rglob("*.npy")} == before
