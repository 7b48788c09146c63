"""The dataset layer against a counter environment, whose observations say which episode and which step they
are.
"""

import dataclasses
import re
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

from mbo2o.data.actions import Actions
from mbo2o.data.dataset import TransitionDataset, returns_to_go
from mbo2o.data.fields import FIELDS
from mbo2o.store import datasets
from mbo2o.types import UserError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")

LIMIT = 5
EPISODES = [(5, False), (3, True), (5, False), (5, False), (1, True), (4, True), (5, True), (2, None)]
"""Steps and ending: terminated, or not (at the time limit); the last is cut by the end of the file."""


def counter() -> dict[str, np.ndarray]:
    rows = [(e, t, t == n - 1, end) for e, (n, end) in enumerate(EPISODES) for t in range(n)]
    episode, step = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    return {
        "observations": np.stack([episode, step, -episode], 1).astype(np.float32),
        "actions": np.stack([step / 10, -episode / 10], 1).astype(np.float32),
        "rewards": (10 * episode + step).astype(np.float32),
        "terminals": np.array([last and end is True for _, _, last, end in rows]),
        "timeouts": np.array([last and end is False for _, _, last, end in rows]),
        "next_observations": np.stack([episode, step + 1, -episode], 1).astype(np.float32),
    }


def without(*keys: str) -> dict[str, np.ndarray]:
    return {key: x for key, x in counter().items() if key not in keys}


def d4rl_file(path, fields, attrs=None):
    """As D4RL writes: gzip, extra keys, a metadata group; nothing of our own writer."""
    with h5py.File(path, "w") as file:
        for key, x in fields.items():
            file.create_dataset(key, data=x, compression="gzip")
        file["infos/qpos"] = np.zeros((3, 2))
        file["metadata/algorithm"] = np.bytes_(b"SAC")
        file["metadata/policy/fc0/weight"] = np.zeros((2, 2))
        file.attrs.update(attrs or {})
    return path


def minari_set(name="counter/test-v0", observation_space=None, action_space=None, env=None):
    import minari
    from gymnasium.spaces import Box
    from minari.data_collector import EpisodeBuffer

    x, start, buffers = counter(), 0, []
    for n, _ in EPISODES:
        s = slice(start, start + n)
        obs = np.concatenate([x["observations"][s], x["next_observations"][s][-1:]])
        if observation_space is not None:
            obs = dict.fromkeys(observation_space.spaces, obs)
        flags = {"terminations": x["terminals"][s], "truncations": x["timeouts"][s]}
        buffers.append(
            EpisodeBuffer(observations=obs, actions=x["actions"][s], rewards=x["rewards"][s], **flags)
        )
        start += n
    minari.create_dataset_from_buffers(
        name,
        buffers,
        env=env,
        observation_space=observation_space or Box(-np.inf, np.inf, (3,)),
        action_space=action_space or Box(-1, 1, (2,)),
    )
    return name


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))


def misaligned(ds: TransitionDataset) -> int:
    """Usable rows whose next observation is not the next step of the same episode, or whose act or rew is
    another's.
    """
    b = ds.rows(ds.index)
    episode, step = b.obs[:, 0], b.obs[:, 1]
    expected = torch.stack([episode, step + 1, -episode], 1)
    act = torch.stack([step / 10, -episode / 10], 1)
    wrong = (
        (b.next_obs != expected).any(1) | ~torch.isclose(b.act, act).all(1) | (b.rew != 10 * episode + step)
    )
    return int(wrong.sum())


def same(a, b) -> bool:
    """Equal bit for bit, NaN included."""
    return a.numpy().tobytes() == b.numpy().tobytes()


LAYOUTS = {
    "all": ((), {}),
    "no timeouts": (("timeouts",), {}),
    "no next": (("next_observations",), {}),
    "neither, limit known": (("timeouts", "next_observations"), {"max_episode_steps": LIMIT}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_aligned_rows(tmp_path, layout):
    drop, attrs = LAYOUTS[layout]
    ds = datasets.read(d4rl_file(tmp_path / "x.hdf5", without(*drop), attrs))
    x = counter()
    end = x["terminals"] | x["timeouts"]
    known = np.ones(len(end), bool)
    if "next_observations" in drop:
        known = ~end
        known[-1] = False
    assert misaligned(ds) == 0
    np.testing.assert_array_equal(ds.valid_next, known)
    np.testing.assert_array_equal(ds.index, np.flatnonzero(known))
    np.testing.assert_array_equal(ds.terminated, x["terminals"])
    np.testing.assert_array_equal(ds.truncated, x["timeouts"])
    np.testing.assert_array_equal(ds.episode, x["observations"][:, 0])
    np.testing.assert_array_equal(ds.rows(ds.index).done, x["terminals"][known])
    assert (len(ds), ds.n_rows) == (known.sum(), len(end))
    assert ds.attrs == {"metadata/algorithm": "SAC", **attrs}


def test_minari_gives_the_same_rows_as_d4rl(store):
    minari_set()
    ds, again = datasets.read("counter/test-v0"), datasets.read("minari:counter/test-v0")
    d4rl = TransitionDataset.from_arrays(**counter())
    assert same(ds.packed, again.packed)
    assert misaligned(ds) == 0
    assert same(ds.packed, d4rl.packed)
    assert same(ds.episode, d4rl.episode)
    assert ds.valid_next.all()
    # Minari keeps episodes apart, so the one that the file's end cuts has an end: its record's
    assert (ds.truncated != d4rl.truncated).nonzero().tolist() == [[ds.n_rows - 1]]
    assert ds.attrs == {"minari_id": "counter/test-v0"}


def test_a_minari_set_names_its_environment_if_minari_knows_it(store):
    from gymnasium.envs.registration import EnvSpec

    import mbo2o.store.minari as io

    minari_set(
        env=EnvSpec("MountainCarContinuous-v0", "gymnasium.envs.classic_control:Continuous_MountainCarEnv")
    )
    assert io.read_minari("counter/test-v0")[1]["env_id"] == "MountainCarContinuous-v0"


def test_terminal_wins_over_timeout():
    x = counter()
    both = x["terminals"] | x["timeouts"]
    ds = TransitionDataset.from_arrays(**x | {"timeouts": both})
    np.testing.assert_array_equal(ds.terminated, x["terminals"])
    np.testing.assert_array_equal(ds.truncated, x["timeouts"])


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_returns_to_go_equal_a_loop(gamma):
    x = counter()
    got = returns_to_go(TransitionDataset.from_arrays(**x), gamma)
    episode, rew = x["observations"][:, 0], x["rewards"]
    for i in range(len(rew)):
        rest = rew[i:][episode[i:] == episode[i]]
        expected = sum(gamma**k * float(r) for k, r in enumerate(rest))
        if episode[i] == len(EPISODES) - 1:
            expected = np.nan
        np.testing.assert_allclose(got[i], expected, rtol=1e-6)
    assert got.dtype == torch.float32


def test_episode_returns_and_the_summary_equal_sums_by_hand():
    ds = TransitionDataset.from_arrays(**without("next_observations"), attrs={"env_id": "Counter-v0"})
    returns, lengths = ds.episode_returns()
    expected = [sum(10 * e + t for t in range(n)) for e, (n, _) in enumerate(EPISODES[:-1])]
    np.testing.assert_array_equal(returns, expected)
    np.testing.assert_array_equal(lengths, [n for n, _ in EPISODES[:-1]])
    s = datasets.summary(ds)
    assert (s["transitions"], s["usable"], s["episodes"], s["complete_episodes"]) == (30, 22, 8, 7)
    assert (s["return_mean"], s["return_max"]) == (np.mean(expected), max(expected))
    assert (s["obs_dim"], s["act_dim"], s["terminals_unused"]) == (3, 2, 4)
    assert s["terminal_fraction"] == pytest.approx(4 / 30)
    assert s["attrs"] == {"env_id": "Counter-v0"}


def test_summary_without_a_complete_episode():
    no = np.zeros(3)
    s = datasets.summary(
        TransitionDataset.from_arrays(np.zeros((3, 1)), np.full((3, 1), -1.0), np.ones(3), no, no)
    )
    assert s["complete_episodes"] == 0
    assert np.isnan([s["return_mean"], s["return_max"], s["length_mean"]]).all()
    assert s["action_saturation"] == 1


def test_sample_is_uniform_over_usable_rows_and_independent_per_seed():
    ds = TransitionDataset.from_arrays(**without("next_observations"))
    torch.manual_seed(0)
    n = 4000
    b = ds.with_seeds((2,)).sample(n)
    assert (b.obs.shape, b.act.shape, b.rew.shape, b.done.shape) == ((2, n, 3), (2, n, 2), (2, n), (2, n))
    assert b.next_obs.isfinite().all()
    usable = ds.rew[ds.index]  # the counter's rewards name their rows
    assert torch.isin(b.rew, usable).all()
    for rew in b.rew:
        count = (rew[:, None] == usable).sum(0).double()
        chi2 = ((count - n / len(ds)) ** 2 / (n / len(ds))).sum()
        dof = len(ds) - 1
        assert abs(chi2 - dof) < 5 * (2 * dof) ** 0.5
    assert abs((b.rew[0] == b.rew[1]).double().mean() - 1 / len(ds)) < 0.02


def test_sample_follows_the_global_generator_and_shares_memory():
    ds = TransitionDataset.from_arrays(**counter())
    seeded = ds.with_seeds((3,))
    assert seeded.packed.data_ptr() == ds.packed.data_ptr() == ds.obs.data_ptr()
    assert ds.sample(4).obs.shape == (4, 3)
    torch.manual_seed(3)
    first = seeded.sample(9)
    torch.manual_seed(3)
    assert same(seeded.sample(9).obs.contiguous(), first.obs.contiguous())


def test_rows_keep_the_leading_axes_of_the_index():
    ds = TransitionDataset.from_arrays(**counter())
    index = torch.tensor([[[0, 7], [3, 3]], [[29, 1], [2, 5]]])
    b = ds.rows(index)
    for name, column in [("obs", ds.obs), ("act", ds.act), ("rew", ds.rew), ("next_obs", ds.next_obs)]:
        torch.testing.assert_close(getattr(b, name), column[index], rtol=0, atol=0)
    torch.testing.assert_close(b.done, ds.terminated[index].float())


def test_to_moves_every_tensor():
    ds = TransitionDataset.from_arrays(**counter()).with_seeds((4,)).to("meta")
    tensors = [x for x in vars(ds).values() if isinstance(x, torch.Tensor)]
    assert {x.device.type for x in tensors} == {"meta"}
    assert ds.seeds == (4,)


@pytest.mark.parametrize("drop", [(), ("next_observations",)])
def test_save_and_load_bit_for_bit(tmp_path, drop):
    x = without(*drop)
    x["rewards"][3] = -0.0
    ds = TransitionDataset.from_arrays(**x, attrs={"env_id": "Counter-v0", "seed": 3, "score": 0.5})
    datasets.write(ds, tmp_path / "a.hdf5")
    back = datasets.read(tmp_path / "a.hdf5")
    for name in ("packed", "terminated", "truncated", "valid_next", "episode", "index"):
        assert same(getattr(ds, name), getattr(back, name)), name
    assert back.attrs == ds.attrs
    datasets.write(back, tmp_path / "b.hdf5")
    assert (tmp_path / "a.hdf5").read_bytes() == (tmp_path / "b.hdf5").read_bytes()


def test_our_files_are_plain_d4rl_with_checksums(tmp_path):
    datasets.write(TransitionDataset.from_arrays(**counter()), tmp_path / "x.hdf5")
    with h5py.File(tmp_path / "x.hdf5") as file:
        assert dict(file.attrs) == {"format": "mbo2o", "schema": 1}
        assert set(file) == set(counter())
        for key, x in counter().items():
            np.testing.assert_array_equal(file[key][()], x)
            assert h5py.h5g.get_objinfo(file[key].id).mtime == 0
            assert (file[key].dtype, file[key].fletcher32, file[key].compression) == (x.dtype, True, None)


@pytest.mark.parametrize("key", list(FIELDS))
def test_a_flipped_bit_is_found(tmp_path, key):
    path = tmp_path / "x.hdf5"
    datasets.write(TransitionDataset.from_arrays(**counter()), path)
    with h5py.File(path) as file:
        at = file[key].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[at + 4] ^= 1
    path.write_bytes(content)
    assert "not a readable HDF5 file" in refusal(datasets.read, path)


@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError])
def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch, fault):
    path = tmp_path / "x.hdf5"
    ds = TransitionDataset.from_arrays(**counter())
    datasets.write(ds, path)
    old, create, calls = path.read_bytes(), h5py.File.create_dataset, []

    def failing(self, *args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise fault("disk\nfull")
        return create(self, *args, **kwargs)

    monkeypatch.setattr(h5py.File, "create_dataset", failing)
    with pytest.raises(UserError if fault is OSError else fault) as caught:
        datasets.write(ds, path)
    assert fault is KeyboardInterrupt or str(caught.value).startswith(
        f"{path}: cannot be written (disk full)"
    )
    assert len(calls) == 3
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def refusal(f, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        f(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def altered(key, change):
    x = counter()
    x[key] = change(x[key].copy())
    return x


def put(value, row=4):
    def change(x):
        x = x.astype(np.float64)
        x[row] = value
        return x

    return change


def first_of_row(x):
    x[4, 0] = np.nan
    return x


BAD = {
    "missing key": (without("rewards"), "'rewards' is missing"),
    "short": (altered("rewards", lambda x: x[:-1]), "'rewards' has 29 rows where 'observations' has 30"),
    "long": (altered("timeouts", lambda x: np.append(x, x)), "'timeouts' has 60 rows"),
    "nan obs": (altered("observations", put(np.nan)), "'observations' is not a finite float32 in row 4"),
    "nan act": (altered("actions", put(np.nan)), "'actions' is not a finite float32 in row 4"),
    "inf rew": (altered("rewards", put(np.inf)), "'rewards' is not a finite float32 in row 4"),
    "beyond float32": (altered("rewards", put(1e300)), "'rewards' is not a finite float32 in row 4"),
    "half nan": (altered("next_observations", first_of_row), "neither finite nor all NaN (unknown) in row 4"),
    "action range": (altered("actions", put(-2.5)), "'actions' lie in [-2.5, 0.4], expected [-1, 1]"),
    "axes": (
        altered("rewards", lambda x: np.stack([x, x], 1)),
        "'rewards' has shape (30, 2), expected (rows,)",
    ),
    "flat obs": (
        altered("observations", lambda x: x[:, 0]),
        "'observations' has shape (30,), expected (rows, feat",
    ),
    "no columns": (altered("actions", lambda x: x[:, :0]), "'actions' has shape (30, 0)"),
    "next shape": (
        altered("next_observations", lambda x: x[:, :2]),
        "expected that of 'observations', (30, 3)",
    ),
    "flags": (altered("terminals", lambda x: x + 0.5), "'terminals' holds values other than 0 and 1"),
    "text": (altered("rewards", lambda x: np.full(30, b"a")), "'rewards' has dtype |S1, expected float32"),
    "empty": ({key: x[:0] for key, x in counter().items()}, "has no rows"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_content_is_refused_in_one_line_that_says_where(tmp_path, case):
    fields, expected = BAD[case]
    path = tmp_path / "bad.hdf5"
    with h5py.File(path, "w") as file:
        for key, x in fields.items():
            file[key] = x
    message = refusal(datasets.read, path)
    assert message.startswith(f"{path}: ")
    assert expected in message


def test_a_bad_file_is_refused_in_one_line(tmp_path):
    text, half, newer = tmp_path / "text.hdf5", tmp_path / "half.hdf5", tmp_path / "newer.hdf5"
    text.write_text("observations,actions\n0,0\n")
    datasets.write(TransitionDataset.from_arrays(**counter()), half)
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    d4rl_file(newer, counter(), {"format": "mbo2o", "schema": 2})
    for path, expected in [
        (text, "not a readable HDF5 file"),
        (half, "not a readable HDF5 file"),
        (newer, "layout version 2, expected 1"),
        (tmp_path / "none.hdf5", "no such file"),
        (tmp_path, "no such file"),
        (tmp_path / "folder" / "x.csv", "not a Minari id"),
    ]:
        message = refusal(datasets.read, path)
        assert message.startswith(f"{path}: ")
        assert expected in message
    refusal(datasets.write, TransitionDataset.from_arrays(**counter()), tmp_path / "no" / "folder.hdf5")


def test_bad_arguments_of_from_arrays_are_refused_in_one_line():
    one = {key: x[:1] for key, x in without("next_observations").items()}
    assert "not one next observation is known" in refusal(TransitionDataset.from_arrays, **one)
    bare = without("timeouts", "next_observations")
    for limit in (0, "many"):
        message = refusal(TransitionDataset.from_arrays, **bare, attrs={"max_episode_steps": limit})
        assert f"max_episode_steps is {limit!r}" in message


def test_rounding_beyond_the_action_range_is_clipped():
    x = altered("actions", put(1 + 5e-5))
    ds = TransitionDataset.from_arrays(**x)
    assert ds.act.max() == 1


def test_bad_minari_sets_are_refused_in_one_line(store, tmp_path, monkeypatch):
    import minari
    from gymnasium.spaces import Box, Dict

    monkeypatch.delattr(minari, "download_dataset")  # nothing is fetched from here
    minari_set("counter/wide-v0", action_space=Box(-np.inf, np.inf, (2,)))
    minari_set("counter/dict-v0", observation_space=Dict({"observation": Box(-np.inf, np.inf, (3,))}))
    load = datasets.read
    assert "its action space has no bounds" in refusal(load, "counter/wide-v0")
    assert "observations are Dict, expected a flat Box" in refusal(load, "counter/dict-v0")
    assert re.search(
        r"minari download counter/none-v3.*MINARI_DATASETS_PATH", refusal(load, "counter/none-v3")
    )
    storage = tmp_path / "store/counter/wide-v0/data/main_data.hdf5"
    assert "Minari's own storage" in refusal(load, storage)
    (tmp_path / "store/counter/wide-v0/data/metadata.json").write_text("{")
    assert "cannot be read" in refusal(load, "counter/wide-v0")


# ---- one resolver, one opening


@pytest.mark.parametrize("way", ["read", "check"])
def test_a_file_is_opened_once_for_its_rows(tmp_path, monkeypatch, way):
    """`firstlook` reads it in a process of its own before that."""
    path = d4rl_file(tmp_path / "x.hdf5", counter(), {"env_id": "Counter-v0"})
    opened, new = [], h5py.File
    monkeypatch.setattr(h5py, "File", lambda name, *args, **kw: opened.append(name) or new(name, *args, **kw))
    found = datasets.find(path)
    rows = found.read() if way == "read" else found.read_stored()
    assert opened == [path]
    assert rows is not None


@pytest.mark.parametrize("name", ["x.hdf5", "minari:counter/test-v0", "counter/test-v0"])
def test_rows_and_attributes_and_sums_agree_on_what_a_name_means(tmp_path, store, monkeypatch, name):
    minari_set("counter/test-v0")
    monkeypatch.chdir(tmp_path)
    d4rl_file(tmp_path / "x.hdf5", counter(), {"env_id": "Counter-v0"})
    found = datasets.find(name)
    made = datasets.read(name)
    assert found.attrs().get("env_id") == made.attrs.get("env_id")
    stored, attrs = found.read_stored()
    np.testing.assert_array_equal(stored["observations"], made.obs)
    assert attrs.get("minari_id") == made.attrs.get("minari_id")
    again, sum_of_content = found.read_with_sha256("ram", Actions())
    assert torch.equal(again.packed.nan_to_num(), made.packed.nan_to_num())
    assert sum_of_content == found.sha256()


def test_what_is_sampled_knows_no_files():
    """Importing datasets and buffers loads neither HDF5 nor a reader of files."""
    code = (
        "import sys, mbo2o.data.dataset, mbo2o.data.buffer, mbo2o.data.sumtree;"
        "print([x for x in sys.modules if x.startswith(('h5py', 'mbo2o.store', 'gymnasium', 'minari'))])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_dataset_has_at_most_fifteen_public_methods():
    assert (
        len([x for x in vars(TransitionDataset) if not x.startswith("_") and x not in fields_of_class()])
        <= 15
    )


def fields_of_class():
    return {x.name for x in dataclasses.fields(TransitionDataset)}
