"""Need 7: resume that is exact (weights, optimisers, targets, buffers, random states, environment, counters).

Acceptance: a run that is killed with SIGKILL, also in the midst of a save, and then asked for again ends with
the same weights, buffers, random states and log to the bit as one that was never disturbed: MOORe, whose
offline phase is MOPO, CQL, WSRL and ENOTO, in both phases. Other settings in the same directory are refused.
"""

import os
import signal

import pytest
import torch
from tiny import log_of, longer, tensors_of, tiny

import mbo2o
from mbo2o.store import checkpoint
from mbo2o.training import train

METHODS = {"moore": "MOPO, then MOORe", "finetune": "CQL", "wsrl": "WSRL", "enoto": "ENOTO"}


def killed_in_save(config, turn):
    """Train in a child process that is killed while it writes the first checkpoint from this turn on."""
    if (pid := os.fork()) == 0:
        save, sha256 = checkpoint.save, checkpoint.file_sha256

        def watched(folder, now, tensors, state):
            def die(path):  # the tensors and the state are written, the manifest is not
                os.kill(os.getpid(), signal.SIGKILL)

            checkpoint.file_sha256 = die if now >= turn else sha256
            save(folder, now, tensors, state)

        checkpoint.save = watched
        try:
            train(config)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL


@pytest.mark.parametrize("name", METHODS)
def test_killed_in_a_save_of_each_phase_ends_as_if_undisturbed(name, pendulum, tmp_path):
    train(tiny(name, pendulum, tmp_path / "whole"))
    whole = checkpoint.latest(tmp_path / "whole" / "checkpoints", "cpu")
    config = tiny(name, pendulum, tmp_path / "killed")
    for turn in (1, 35):  # 20 turns are offline, 40 online
        killed_in_save(config, turn)
    train(config)
    tensors, state = checkpoint.latest(tmp_path / "killed" / "checkpoints", "cpu")
    assert any("buffer" in key or "/memory" in key or "online" in key for key in tensors), sorted(tensors)
    assert tensors.keys() == whole[0].keys()
    assert [key for key in tensors if not torch.equal(tensors[key], whole[0][key])] == []
    assert state["done"] == whole[1]["done"]
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")


def test_other_settings_in_the_same_directory_are_refused(pendulum, tmp_path):
    config = tiny("finetune", pendulum, tmp_path / "run", {"offline_steps": 4, "online_steps": 0})
    train(config)
    before = tensors_of(tmp_path / "run")
    with pytest.raises(mbo2o.UserError, match=r"batch"):
        train(longer(config, batch=8))
    after = tensors_of(tmp_path / "run")
    assert all(torch.equal(before[key], after[key]) for key in before)
