"""Signals: a run saves and stops, and the same command goes on with the same bits."""

import os
import signal
import time

import pytest
from survival import assert_same, ended, eventually, fork, outcome, small

from mbo2o.agents.sac import SAC
from mbo2o.cli.command import guarded
from mbo2o.run import watch
from mbo2o.run.evaluate import Evaluator
from mbo2o.run.watch import Stopped
from mbo2o.store import checkpoint
from mbo2o.training import train


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_leaves_with_the_documented_code(number, finished, tmp_path, promise):
    directory = tmp_path / "run"
    pid = fork(lambda: guarded(lambda: train(slow(directory)) and 0))
    eventually(
        lambda: (
            (directory / "metrics.jsonl").exists()
            and b'"online"' in (directory / "metrics.jsonl").read_bytes()
        )
    )
    start = time.monotonic()
    os.kill(pid, number)
    assert ended(pid) == 143
    assert time.monotonic() - start < 10
    done = checkpoint.latest(directory / "checkpoints", "cpu")[1]["done"]
    assert 0 < done["online.0"] < 60
    assert done["online.0"] % 15 != 0  # without the signal it saves at multiples of 15
    train(small(directory))
    assert_same(outcome(directory), outcome(finished))
    promise("signals (TERM, INT, USR1): saved and left within 10 s, same bits at the end")


def slow(directory):
    """A run whose seventh update waits for the signal: it stops at a turn that is no multiple of 15."""
    update, updates = SAC.update, []

    def slowly(*args):
        result = update(*args)
        updates.append(0)
        for _ in range(2000 if len(updates) == 7 else 0):
            time.sleep(0.005)
            if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:  # the signal has come
                break
        return result

    SAC.update = slowly
    return small(directory)


def test_a_second_signal_leaves_at_once(tmp_path, monkeypatch):
    directory = tmp_path / "run"
    monkeypatch.setattr(SAC, "update", lambda *args: time.sleep(60))
    pid = fork(lambda: guarded(lambda: train(small(directory)) and 0))
    eventually(
        lambda: (
            (directory / "metrics.jsonl").exists()
            and b'"online"' in (directory / "metrics.jsonl").read_bytes()
        )
    )
    time.sleep(0.2)
    os.kill(pid, signal.SIGUSR1)
    time.sleep(0.2)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)  # it waits for the turn's end
    start = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    assert ended(pid) == -signal.SIGTERM
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("evaluation", [1, 3, 4])
def test_a_signal_does_not_wait_for_an_evaluation(evaluation, finished, tmp_path, monkeypatch):
    """Evaluations 1 to 3 begin or end a loop, number 4 lies within; a restart repeats the one it left."""
    played, play = [], Evaluator._play

    def watched(self, *args):
        played.append(0)
        if len(played) == evaluation:
            os.kill(os.getpid(), signal.SIGTERM)
        return play(self, *args)

    monkeypatch.setattr(Evaluator, "_play", watched)
    with pytest.raises(Stopped, match="goes on from here"):
        train(small(tmp_path / "run"))
    assert len(outcome(tmp_path / "run")[2]) < len(outcome(finished)[2])
    monkeypatch.undo()
    train(small(tmp_path / "run"))
    assert_same(outcome(tmp_path / "run"), outcome(finished))


def test_a_turn_that_goes_on_too_long_after_a_signal_is_left(finished, tmp_path, monkeypatch):
    update, updates = SAC.update, []

    def endless(*args):
        updates.append(0)
        if len(updates) == 51:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)
        return update(*args)

    monkeypatch.setattr(SAC, "update", endless)
    monkeypatch.setattr(watch, "PATIENCE", 0.2)
    start = time.monotonic()
    with pytest.raises(Stopped, match="in the middle of online turn 50"):
        train(small(tmp_path / "run"))
    assert time.monotonic() - start < 10
    assert signal.getsignal(signal.SIGALRM) == signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    monkeypatch.undo()
    train(small(tmp_path / "run"))
    assert_same(outcome(tmp_path / "run"), outcome(finished))


def test_ctrl_c_outside_a_run_is_one_line(capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert guarded(interrupted) == 130
    assert capsys.readouterr().err == "mbo2o: interrupted\n"
