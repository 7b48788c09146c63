"""Checkpoints: old, newer and damaged ones, and memory that stays flat over many of them."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import survival
import torch
from survival import files, small

from mbo2o.store import checkpoint
from mbo2o.training import restore, train
from mbo2o.types import UserError

GOLDEN = Path(__file__).parent.parent / "golden"


# the physics of another machine may differ in the last bit
@pytest.mark.filterwarnings("ignore:an episode in flight")
@pytest.mark.parametrize("version", sorted(p.name for p in GOLDEN.iterdir() if p.is_dir()))
def test_runs_of_every_older_version_load_and_go_on(version, tmp_path):
    """Each was written once, by the version after which it is named."""
    directory = shutil.copytree(GOLDEN / version, tmp_path / "run")
    assert sum(p.stat().st_size for p in directory.rglob("*") if p.is_file()) < 200_000
    tensors, state = checkpoint.latest(directory / "checkpoints", "cpu")
    _, recipe = restore(directory)
    for key, x in recipe.agent.state_dict().items():
        name = {"updates": "_extra_state"}.get(key, key)  # the count of updates had that name
        assert torch.equal(x, tensors[f"switch.agent/{name}"])
    train(small(directory, "Pendulum-v1"))
    assert state["done"] == {"switch.0": 20, "online.0": 50}
    assert checkpoint.latest(directory / "checkpoints", "cpu")[1]["done"] == {"switch.0": 20, "online.0": 60}


def test_a_newer_checkpoint_is_refused(finished, tmp_path):
    directory = shutil.copytree(finished, tmp_path / "run")
    newest = max((directory / "checkpoints").iterdir()) / "manifest.json"
    newest.write_text(newest.read_text().replace('"schema": 1', '"schema": 2'))
    before = files(directory / "checkpoints")
    with pytest.raises(UserError, match=r"written by a newer mbo2o \(schema 2, this one reads 1\)"):
        train(small(directory))
    assert files(directory / "checkpoints") == before


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json"])
def test_flipped_bits_and_cut_files_are_noticed(name, finished, tmp_path, promise):
    """100 single bits and 5 lengths: a damaged checkpoint is named and skipped, or it counts as newer."""
    directory = shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
    newest, older = max(directory.iterdir()), checkpoint.latest(finished / "checkpoints", "cpu")[1]
    whole, rng = (newest / name).read_bytes(), np.random.default_rng(0)
    damaged = [whole[:n] for n in np.linspace(0, len(whole) - 1, 5, dtype=int)]
    for place, bit in zip(rng.integers(len(whole), size=100), rng.integers(8, size=100), strict=True):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << bit
        damaged.append(bytes(flipped))
    for data in damaged:
        (newest / name).write_bytes(data)
        with warnings.catch_warnings(record=True) as caught, contextlib.suppress(UserError):
            warnings.simplefilter("always")
            _, state = checkpoint.latest(directory, "cpu")
            assert state["done"] != older["done"]
            assert [x for x in caught if f"{newest.name} is damaged" in str(x.message)]
    promise("flipped bits and cuts in a checkpoint: reported, an older one taken", len(damaged))


@pytest.mark.parametrize("change", [{"turn": 9}, {"sha256": {}}, {"schema": "1"}])
def test_a_manifest_with_wrong_entries_counts_as_damage(change, finished, tmp_path):
    directory = shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
    path = max(directory.iterdir()) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.warns(UserWarning, match=rf"{path.parent.name} is damaged"):
        checkpoint.latest(directory, "cpu")


def test_leftovers_of_killed_processes_are_removed(finished, tmp_path):
    directory = shutil.copytree(finished, tmp_path / "run")
    (directory / "checkpoints" / ".000000001.999.tmp").mkdir()
    shutil.rmtree(max((directory / "checkpoints").iterdir()))
    train(small(directory))
    assert not list((directory / "checkpoints").glob(".*"))


@pytest.mark.survival
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_memory_is_flat_over_many_steps_and_checkpoints(tmp_path, promise):
    """The full length is MBO2O_SURVIVAL_STEPS=200000. The first fifth is warm-up."""
    steps = int(os.environ.get("MBO2O_SURVIVAL_STEPS", "10000"))
    code = f"""
import json, pathlib, sys
sys.path.insert(0, {str(Path(survival.__file__).parent)!r})
from survival import watch_memory
print(json.dumps(watch_memory(pathlib.Path({str(tmp_path / "run")!r}), {steps})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rss, handles = np.array(json.loads(done.stdout)).T
    assert len(rss) >= 100
    warm = len(rss) // 5
    early, late = rss[warm : warm + 10].mean(), rss[-10:].mean()
    print(f"{steps} steps, {len(rss)} checkpoints: {early / 2**20:.1f} → {late / 2**20:.1f} MiB")
    assert late / early < 1.02
    assert handles[warm:].max() == handles[warm:].min()
    promise("environment steps, with 100 checkpoints, over which memory stayed within 2 %", steps)
