"""Need 18: data bigger than memory.

`storage=memmap` converts a file once into a map on the disk, which processes share, and which is never
completely in memory. Acceptance: a run learns from a file of 300 MB while its own memory may grow by 150 MB;
two processes use one map; batches are those of `storage=ram` for a seed. The usual test has a file of 80 MB
and 50 MB of memory; that of 300 MB is slow.
"""

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from mbo2o.store import datasets

CHILD = """
import json, resource, sys
import gymnasium, numpy as np
import mbo2o

class Wide(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (60,))
    action_space = gymnasium.spaces.Box(-1, 1, (6,))
    def reset(self, *, seed=None, options=None):
        return np.zeros(60, np.float32), {}
    def step(self, act):
        return np.zeros(60, np.float32), 0.0, False, False, {}

def of(key):
    return next(int(x.split()[1]) * 1024 for x in open("/proc/self/status") if x.startswith(key + ":"))

gymnasium.register("Wide-v0", entry_point=Wide, max_episode_steps=5)
little, big, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
settings = ["switch=td3bc", "recipe.offline_steps=20", "recipe.online_steps=0", "recipe.batch=16",
            "report=false", "run.eval_every=20", "run.eval_episodes=1", "run.online_capacity=50",
            "engine=eager", "run.checkpoint_every=20", "env=Wide-v0", "run.log_every=10",
            "recipe.offline.actor.hidden=[8]", "recipe.offline.critic.hidden=[8]"]

def learn(path, storage, name):
    mbo2o.train(mbo2o.config(*settings, f"dataset={path}", f"storage={storage}", f"dir={name}"))

learn(little, "memmap", "little")  # what every run needs is there now
before = of("RssAnon")
resource.setrlimit(resource.RLIMIT_DATA, (of("VmData") + limit, resource.RLIM_INFINITY))
learn(big, "memmap", "big")
grown = of("RssAnon") - before
try:
    learn(big, "ram", "ram")
    error = ""
except (MemoryError, RuntimeError, mbo2o.UserError) as e:
    error = str(e) or type(e).__name__
print(json.dumps({"grown": grown, "error": error}))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MBO2O_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "maps"


def wide(path, megabytes):
    """A file of 60 observations and 6 actions in each row, whose episodes have 4096 rows."""
    n = max(1, int(megabytes * 2**20 / (4096 * 4 * 67)))
    block = np.random.default_rng(0).uniform(-1, 1, (4096, 60)).astype(np.float32)
    with h5py.File(path, "w") as file:
        for key, x in {"observations": block, "actions": block[:, :6], "rewards": block[:, 0]}.items():
            data = file.create_dataset(key, (n * 4096, *x.shape[1:]), "f4")
            for i in range(n):
                data[i * 4096 : (i + 1) * 4096] = x
        file["terminals"] = np.zeros(n * 4096, bool)
        file["timeouts"] = np.arange(1, n * 4096 + 1) % 4096 == 0
    return path


@pytest.mark.parametrize(("megabytes", "limit"), [(80, 50), pytest.param(300, 150, marks=pytest.mark.slow)])
def test_a_run_learns_from_a_file_that_memory_has_no_room_for(tmp_path, megabytes, limit):
    paths = wide(tmp_path / "little.hdf5", 1), wide(tmp_path / "big.hdf5", megabytes)
    command = [sys.executable, "-c", CHILD, *map(str, paths), str(limit * 2**20)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["grown"] < limit * 2**20
    assert said["error"], "memory had room for the file: the limit limits nothing"


def test_batches_are_those_of_memory(tmp_path):
    path = wide(tmp_path / "x.hdf5", 1)

    def batches(storage):
        torch.manual_seed(0)
        dataset = datasets.read(path, storage)
        return [dataset.sample(32) for _ in range(3)]

    for ram, mapped in zip(batches("ram"), batches("memmap"), strict=True):
        for name in ("obs", "act", "rew", "next_obs", "done"):
            assert torch.equal(getattr(ram, name), getattr(mapped, name)), name


def test_two_processes_use_one_map(tmp_path, cache):
    path = wide(tmp_path / "x.hdf5", 1)
    program = (
        "import sys; from mbo2o.store import datasets; x = datasets.read(sys.argv[1], 'memmap'); "
        "print(*{y.split()[4] for y in open('/proc/self/maps') if y.rstrip().endswith('/packed.npy')})"
    )
    other = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    kept = datasets.read(path, "memmap")
    lines = Path("/proc/self/maps").read_text().splitlines()
    mine = {x.split()[4] for x in lines if x.endswith(f"{next(cache.glob('*/packed.npy'))}")}
    assert mine == set(other.stdout.split())
    assert len(list(cache.glob("*/packed.npy"))) == 1
    assert kept.n_rows == 4096
