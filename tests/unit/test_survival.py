"""Runs that survive: locks, signals, full disks, broken environments, divergence, old checkpoints, steady memory."""

import contextlib
import errno
import fcntl
import itertools
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

import gymnasium
import numpy as np
import pytest
import torch

from mbo2o.agents.sac import SAC, SACConfig
from mbo2o.cli.main import _guarded
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.envs.faults import EnvironmentFault, Faults
from mbo2o.envs.lanes import Lane, Lanes
from mbo2o.recipes.scratch import ScratchConfig
from mbo2o.report.page import write_report
from mbo2o.report.read import read_run
from mbo2o.run import log
from mbo2o.run import run as run_module
from mbo2o.run.evaluate import Evaluator
from mbo2o.run.log import MetricsFile
from mbo2o.run.run import Run, RunConfig, Stopped
from mbo2o.store import checkpoint, whole
from mbo2o.train import Config, restore, train
from mbo2o.types import Diverged, UserError

NET = MLPConfig(hidden=[8])
GOLDEN = Path(__file__).parent.parent / "golden"


def small(directory, env="InvertedPendulum-v5", steps=60, **run):
    agent = SACConfig(actor=NET, critic=NET)
    settings = {
        "log_every": 20,
        "eval_every": 40,
        "eval_episodes": 1,
        "checkpoint_every": 15,
        "online_capacity": 100,
    } | run
    recipe = ScratchConfig(agent=agent, online_steps=steps, start=20, batch=8)
    return Config(
        recipe=recipe, env=env, seeds=2, dir=str(directory), report=False, run=RunConfig(**settings)
    )


def outcome(directory):
    """All that a run leaves: its last checkpoint, and its log without clock times."""
    tensors, state = checkpoint.latest(directory / "checkpoints", "cpu")
    lines = [json.loads(x) for x in (directory / "metrics.jsonl").read_text().splitlines()]
    return tensors, state["done"], [{k: v for k, v in x.items() if k != "time"} for x in lines]


def assert_same(a, b):
    assert a[1:] == b[1:]
    assert a[0].keys() == b[0].keys()
    assert [k for k in a[0] if not torch.equal(a[0][k].nan_to_num(), b[0][k].nan_to_num())] == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run without interruption."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    train(small(directory))
    return directory


def fork(work):
    """Do `work` in a child process, whose exit code it returns; its pid."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = work() or 0
        finally:
            os._exit(code)
    return pid


def ended(pid, within=15.0):
    """How a child ended: its exit code, or minus the signal's number."""
    start = time.monotonic()
    while time.monotonic() - start < within:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"child still ran after {within} s")


def eventually(condition, within=15.0):
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < within
        time.sleep(0.005)


def files(directory):
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(directory.rglob("*")) if p.is_file()}


# ---- two runs, one directory


def held_by_a_child(directory):
    """The pid of a process that has the directory's lock, and keeps it."""
    ready, told = os.pipe()

    def keep():
        with whole.hold(directory):
            os.write(told, b"x")
            time.sleep(60)

    pid = fork(keep)
    os.read(ready, 1)
    return pid


def test_a_second_run_names_the_first_and_touches_nothing(finished, tmp_path):
    directory = shutil.copytree(finished, tmp_path / "run")
    (directory / ".lock").write_text('{"pid": 1, "host": "of a run long dead", "since": "long"}')
    pid = held_by_a_child(directory)
    try:
        before, start = files(directory), time.monotonic()
        with pytest.raises(UserError, match=f"in use by pid {pid} on .* since 20") as e:
            train(small(directory))
        assert "\n" not in str(e.value)
        assert time.monotonic() - start < 5
        assert files(directory) == before
        restore(directory)  # who only looks may look
        write_report(directory)
    finally:
        os.kill(pid, signal.SIGKILL)
    assert ended(pid) == -signal.SIGKILL
    train(small(directory))  # a dead process holds nothing


def test_of_many_that_start_at_once_one_wins(tmp_path):
    for _ in range(5):
        gate, opened = os.pipe()
        told, tell = os.pipe()

        def attempt(gate=gate, opened=opened, tell=tell):
            os.close(opened)
            os.read(gate, 1)  # returns when the parent closes the other end
            try:
                with whole.hold(tmp_path):
                    os.write(tell, b"w")
                    time.sleep(0.4)
            except UserError as e:
                os.write(tell, b"l" if "in use by pid" in str(e) else b"?")

        pids = [fork(attempt) for _ in range(6)]
        os.close(gate)
        os.close(opened)
        assert [ended(pid) for pid in pids] == [0] * 6
        os.close(tell)
        assert sorted(os.read(told, 100)) == sorted(b"wlllll")
        os.close(told)


def test_a_holder_that_is_slow_to_say_its_name_is_named(tmp_path):
    """As on a busy machine, where it may be stopped between taking the lock and writing who it is."""
    told, tell = os.pipe()

    def holder():
        handle = os.open(tmp_path / ".lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(handle, fcntl.LOCK_EX)
        os.write(tell, b"x")
        time.sleep(0.4)
        os.pwrite(handle, json.dumps({"pid": 7, "host": "h", "since": "then"}).encode(), 0)
        time.sleep(2)

    pid = fork(holder)
    os.read(told, 1)
    with pytest.raises(UserError, match="in use by pid 7 on h since then"), whole.hold(tmp_path):
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(told)
    os.close(tell)


def test_looking_at_a_run_that_prunes_its_checkpoints_meanwhile(finished, tmp_path, monkeypatch, recwarn):
    directory = shutil.copytree(finished, tmp_path / "run")
    read = checkpoint._read

    def overtaken(path, device):
        monkeypatch.setattr(checkpoint, "_read", read)
        for old in (directory / "checkpoints").iterdir():
            old.rename(old.with_name(f"{int(old.name) + 1000:09d}"))
            manifest = old.with_name(f"{int(old.name) + 1000:09d}") / "manifest.json"
            manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"turn": int(old.name) + 1000}))
        return read(path, device)

    monkeypatch.setattr(checkpoint, "_read", overtaken)
    assert checkpoint.latest(directory / "checkpoints", "cpu") is not None
    assert not recwarn.list


# ---- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_leaves_with_the_documented_code(number, finished, tmp_path, promise):
    directory = tmp_path / "run"
    pid = fork(lambda: _guarded(lambda: train(slow(directory)) and 0))
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
    assert done["online.0"] % 15 != 0  # of its own accord it would have saved elsewhere
    train(small(directory))
    assert_same(outcome(directory), outcome(finished))
    promise("signals (TERM, INT, USR1): saved and left within 10 s, same bits at the end")


def slow(directory):
    """A run whose turns take some time, in a process of its own; it is told to stop at a turn that is no multiple of 15."""
    update = SAC.update

    def slowly(self, batch, step):
        result = update(self, batch, step)
        for _ in range(2000 if step.count == 7 else 0):
            time.sleep(0.005)
            if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:  # the signal has come
                break
        return result

    SAC.update = slowly
    return small(directory)


def test_a_second_signal_leaves_at_once(tmp_path, monkeypatch):
    directory = tmp_path / "run"
    monkeypatch.setattr(SAC, "update", lambda self, batch, step: time.sleep(60))
    pid = fork(lambda: _guarded(lambda: train(small(directory)) and 0))
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
    """Evaluations 1 to 3 open loops or end one, number 4 lies between: what was left undone is done after the restart."""
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


def test_a_turn_that_takes_too_long_is_left(finished, tmp_path, monkeypatch):
    update = SAC.update

    def endless(self, batch, step):
        if step.count == 51:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)
        return update(self, batch, step)

    monkeypatch.setattr(SAC, "update", endless)
    monkeypatch.setattr(run_module, "PATIENCE", 0.2)
    start = time.monotonic()
    with pytest.raises(Stopped, match="in the middle of online turn 50"):
        train(small(tmp_path / "run"))
    assert time.monotonic() - start < 10
    assert signal.getsignal(signal.SIGALRM) == signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    monkeypatch.undo()
    train(small(tmp_path / "run"))
    assert_same(outcome(tmp_path / "run"), outcome(finished))


def test_ctrl_c_elsewhere_is_one_line(capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert _guarded(interrupted) == 130
    assert capsys.readouterr().err == "mbo2o: interrupted\n"


# ---- disks that refuse


def test_a_file_in_place_of_the_directory_is_one_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"file.*: cannot be written") as e:
            train(small(path))
        assert "\n" not in str(e.value)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_read_only_directory_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        train(small(tmp_path / "run"))
    tmp_path.chmod(0o700)


def test_a_size_limit_ends_a_real_process_in_one_line(tmp_path):
    """All of it: limit, message, exit code, and an interpreter that shuts down without another word."""
    stop_at(tmp_path / "run", 20)
    saved = checkpoint.latest(tmp_path / "run" / "checkpoints", "cpu")
    size = max(p.stat().st_size for p in (tmp_path / "run").rglob("*.safetensors"))
    code = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_survival import small, train, _guarded
resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 100}, {size + 100}))
sys.exit(_guarded(lambda: train(small({str(tmp_path / "run")!r})) and 0))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    said = [x for x in done.stderr.splitlines() if "turn" not in x and "return" not in x and "→" not in x]
    assert done.returncode == 2, done.stderr
    assert len(said) == 1, done.stderr
    assert "checkpoints/0000" in said[0]
    assert "cannot be written (File too large)" in said[0]
    assert_intact(tmp_path / "run", saved)


def assert_intact(directory, saved):
    tensors, state = checkpoint.latest(directory / "checkpoints", "cpu")
    assert state == saved[1]
    assert all(torch.equal(tensors[k], saved[0][k]) for k in saved[0])
    assert not list((directory / "checkpoints").glob(".*"))


def stop_at(directory, turn, **run):
    """Run until an online turn and save there."""
    after_turn = Run._after_turn

    def stopping(self, last):
        self._stop = self.phase == "online" and self.turn == turn
        after_turn(self, last)

    Run._after_turn = stopping
    try:
        train(small(directory, **run))
    except Stopped:
        pass
    finally:
        Run._after_turn = after_turn


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["save_file", "write_text", "fsync", "rename", "mkdir"])
def test_a_disk_that_fills_up_while_saving_leaves_the_last_checkpoint(
    where, finished, tmp_path, monkeypatch, capsys, promise
):
    directory = tmp_path / "run"
    stop_at(directory, 20)
    saved = checkpoint.latest(directory / "checkpoints", "cpu")
    with monkeypatch.context() as m:

        def full(*args, **kwargs):
            raise FULL

        with_disk = {"save_file": checkpoint, "fsync": os, "write_text": Path, "rename": Path, "mkdir": Path}
        save = checkpoint.save

        def saving(*args):
            m.setattr(with_disk[where], where, full)
            save(*args)

        m.setattr(checkpoint, "save", saving)
        if where == "fsync":
            m.setattr(MetricsFile, "size", lambda self: self._file.seek(0, 2))
        assert _guarded(lambda: train(small(directory)) and 0) == 2
    said = [x for x in capsys.readouterr().err.splitlines() if x.startswith("mbo2o: ")]
    assert len(said) == 1
    assert "cannot be written (No space left on device)" in said[0]
    assert_intact(directory, saved)
    train(small(directory))
    assert_same(outcome(directory), outcome(finished))
    promise("places where the disk fills up in a save: one line, last checkpoint intact")


def limited(size, work):
    """Do `work` in a child whose files cannot grow beyond `size`."""

    def child():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        return work()

    return ended(fork(child))


def test_a_log_line_is_written_whole_or_not(tmp_path):
    path = tmp_path / "metrics.jsonl"

    def fill():
        file = MetricsFile(path, False)
        for _ in range(10):
            try:
                file.write({"kind": "x" * 300}, {})
            except UserError as e:
                file.close()
                return 7 if "metrics.jsonl: cannot be written (File too large)" in str(e) else 8
        return 9

    assert limited(1000, fill) == 7
    assert [json.loads(x)["kind"] for x in path.read_text().splitlines()] == ["x" * 300] * 3


@pytest.mark.parametrize("left", [0.0, 0.5])
def test_a_log_that_lost_its_end_has_a_gap_and_no_zeros(left, finished, tmp_path):
    directory = tmp_path / "run"
    stop_at(directory, 20)
    path = directory / "metrics.jsonl"
    before = path.read_bytes()
    path.write_bytes(before[: int(left * len(before))])
    whole = len(path.read_bytes().splitlines(keepends=True)) - (left > 0)
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: \d+ bytes less than its checkpoint counts"):
        train(small(directory))
    lines = path.read_bytes().splitlines(keepends=True)
    assert lines[:whole] == before.splitlines(keepends=True)[:whole]
    assert all(json.loads(x)["step"] >= 20 for x in lines[whole:])
    assert_same(outcome(directory)[:2], outcome(finished)[:2])


def test_a_config_that_cannot_be_written_leaves_the_old_one(finished, tmp_path):
    directory = shutil.copytree(finished, tmp_path / "run")
    before = (directory / "config.yaml").read_bytes()
    assert limited(500, lambda: _guarded(lambda: train(small(directory)) and 0)) == 2
    assert (directory / "config.yaml").read_bytes() == before
    assert not list(directory.glob(".config*"))


def test_nobody_has_to_listen(finished, tmp_path, monkeypatch):
    class Gone:
        def write(self, text):
            raise BrokenPipeError

        def isatty(self):
            return False

        def flush(self):
            raise FULL

    monkeypatch.setattr(log.sys, "stderr", Gone())
    train(small(tmp_path / "run"))
    monkeypatch.undo()
    assert_same(outcome(tmp_path / "run"), outcome(finished))


# ---- environments that fail


class Counter(gymnasium.Env):
    """Observations (number of the episode, drawn; steps so far); the reward is the step; episodes of 15 steps.

    `fault(env)` is asked before each reset and step; what it returns, if anything, is returned instead.
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (1,))
    fault = staticmethod(lambda env: None)
    made = 0

    def __init__(self):
        type(self).made += 1
        self.t = None

    def reset(self, *, seed=None, options=None):
        self.t = None
        if (wrong := type(self).fault(self)) is not None:
            return wrong
        self.number, self.t = float(self.np_random.integers(1, 1000)), 0.0
        return np.array([self.number, self.t]), {}

    def step(self, act):
        if (wrong := type(self).fault(self)) is not None:
            return wrong
        self.t += 1
        return np.array([self.number, self.t]), self.t, False, self.t == 15, {}


COUNTER = "Counter-v0"


@pytest.fixture
def counter(monkeypatch):
    gymnasium.register(COUNTER, entry_point=Counter)
    monkeypatch.setattr(Counter, "made", 0)
    yield Counter
    gymnasium.registry.pop(COUNTER)


def raises(env):
    raise ConnectionError("the simulator\nis gone")


GOOD = np.zeros(2)
STEP_FAULTS = {
    "raises": raises,
    "hangs": lambda env: time.sleep(20),
    "nan observation": lambda env: (np.array([1.0, np.nan]), 0.0, False, False, {}),
    "infinite observation": lambda env: (np.array([1.0, 1e300]), 0.0, False, False, {}),
    "longer observation": lambda env: (np.zeros(3), 0.0, False, False, {}),
    "observation of another rank": lambda env: (np.zeros((1, 2)), 0.0, False, False, {}),
    "no observation": lambda env: (None, 0.0, False, False, {}),
    "text observation": lambda env: (np.array(["a", "b"]), 0.0, False, False, {}),
    "complex observation": lambda env: (GOOD + 1j, 0.0, False, False, {}),
    "no reward": lambda env: (GOOD, None, False, False, {}),
    "nan reward": lambda env: (GOOD, np.nan, False, False, {}),
    "infinite reward": lambda env: (GOOD, np.float64(1e300), False, False, {}),
    "text reward": lambda env: (GOOD, "1.0", False, False, {}),
    "vector reward": lambda env: (GOOD, np.zeros(2), False, False, {}),
    "terminated is none": lambda env: (GOOD, 0.0, None, False, {}),
    "truncated is nan": lambda env: (GOOD, 0.0, False, np.nan, {}),
    "four values": lambda env: (GOOD, 0.0, False, {}),
    "nothing at all": lambda env: (),
    "no info": lambda env: (GOOD, 0.0, False, False, None),
}
RESET_FAULTS = {
    "reset raises": raises,
    "reset without info": lambda env: GOOD,
    "reset to nan": lambda env: (GOOD * np.nan, {}),
    "reset hangs": lambda env: time.sleep(20),
}


def once(wrong, at):
    """A fault at the `at`-th call of any environment, and never again."""
    calls = []

    def fault(env):
        calls.append(0)
        return wrong(env) if len(calls) == at else None

    return fault


def rows_of(directory):
    """The online buffer's columns, seed by seed, oldest first: observation, next one, truncated, return that followed."""
    tensors, _ = checkpoint.latest(directory / "checkpoints", "cpu")
    rows = tensors["online/rows"]
    return rows[..., :2], rows[..., 4:6], rows[..., -2], rows[..., -1], rows[..., 3]


def assert_true_transitions(directory, n):
    obs, after, cut, followed, rew = rows_of(directory)
    assert obs.shape[1] == n
    assert torch.equal(obs[..., 0], after[..., 0])
    assert torch.equal(obs[..., 1] + 1, after[..., 1])
    assert torch.equal(rew, after[..., 1])
    for k in range(2):
        goes_on = (obs[k, 1:] == after[k, :-1]).all(-1)
        assert torch.equal(cut[k, :-1] == 0, goes_on)  # an episode is told to go on where it does
        starts = [0, *((~goes_on).nonzero().flatten() + 1).tolist(), n]
        for a, b in itertools.pairwise(starts):
            assert obs[k, a, 1] == 0
            expected = 0.0
            for t in reversed(range(a, b)):
                expected = float(rew[k, t]) + 0.99 * expected
                known = float(after[k, b - 1, 1]) == 15
                assert float(followed[k, t]) == pytest.approx(expected if known else -np.inf)


def play(directory, **settings):
    """80 random turns of the counter, without evaluations in between."""
    settings = {"eval_every": 1000, "checkpoint_every": 1000, "env_seconds": 0.15} | settings
    config = small(directory, COUNTER, steps=0, **settings)
    config.recipe.start = 80
    train(config)


@pytest.mark.parametrize("name", [*STEP_FAULTS, *RESET_FAULTS])
def test_an_environment_that_fails_once_costs_the_rest_of_its_episode(
    name, counter, tmp_path, monkeypatch, capsys, promise
):
    wrong = {**STEP_FAULTS, **RESET_FAULTS}[name]
    stepping = name in STEP_FAULTS
    seen = []

    def fault(env):  # seed 1's 8th step of its second episode, or its third reset
        if env is not training[-1][1].env.unwrapped:
            return None
        seen.append(env.t)
        resets, step = seen.count(None), env.t
        if not done and (
            (stepping and resets == 1 and step == 7) or (not stepping and resets == 2 and step is None)
        ):
            done.append(0)
            return wrong(env)
        return None

    done, training, make = [], [], Lanes.__init__

    def made(self, *args):
        make(self, *args)
        training.append(self._lanes)

    monkeypatch.setattr(Lanes, "__init__", made)
    monkeypatch.setattr(counter, "fault", staticmethod(lambda env: fault(env) if training else None))
    play(tmp_path / "run")
    assert done
    assert_true_transitions(tmp_path / "run", 80)
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("warning")]
    assert COUNTER in line
    assert "fault 1 of 3" in line
    assert read_run(tmp_path / "run").has("fault", "what")
    _, after, cut, _, _ = rows_of(tmp_path / "run")
    short = [
        (k, float(after[k, i, 1]))
        for k in range(2)
        for i in (cut[k] == 1).nonzero().flatten()
        if after[k, i, 1] < 15
    ]
    assert short == ([(1, 7.0)] if stepping else [])
    promise("ways for an environment to fail: cost the rest of an episode")


@pytest.mark.parametrize("name", ["raises", "hangs", "nan observation", "no reward", "reset raises"])
def test_an_environment_that_keeps_failing_ends_the_run_which_can_go_on(name, counter, tmp_path, monkeypatch):
    wrong = {**STEP_FAULTS, **RESET_FAULTS}[name]
    calls = []

    def fault(env):
        calls.append(0)
        broken = len(calls) > 120 and (env.t is None) == (name in RESET_FAULTS)
        return wrong(env) if broken else None

    monkeypatch.setattr(counter, "fault", fault)
    with pytest.raises(EnvironmentFault, match=rf"{COUNTER}.*failed: .* at switch turn (\d+); saved") as e:
        play(tmp_path / "run")
    assert "\n" not in str(e.value)
    assert _guarded(lambda: (_ for _ in ()).throw(e.value)) == 4
    state = checkpoint.latest(tmp_path / "run" / "checkpoints", "cpu")[1]
    turn = state["done"]["switch.0"]
    assert f"turn {turn};" in str(e.value)
    monkeypatch.setattr(counter, "fault", staticmethod(lambda env: None))
    with pytest.warns(UserWarning, match="starts anew") if name in RESET_FAULTS else contextlib.nullcontext():
        play(tmp_path / "run")
    assert_true_transitions(tmp_path / "run", 80)


def test_a_turn_that_one_lane_cannot_take_is_none_lanes_turn(counter, monkeypatch):
    lanes = Lanes(COUNTER, (2,), 0)
    for _ in range(3):
        lanes.step(torch.zeros(2, 1, 1))
    tensors, rngs = lanes.state()
    second = lanes._lanes[1].env.unwrapped
    monkeypatch.setattr(counter, "fault", staticmethod(lambda env: raises(env) if env is second else None))
    with pytest.raises(EnvironmentFault):
        lanes.step(torch.ones(2, 1, 1))
    again, rngs_again = lanes.state()
    assert rngs == rngs_again
    assert all(torch.equal(tensors[k], again[k]) for k in tensors)


@pytest.mark.parametrize("stopped", [30, 47])
def test_a_mended_environment_resumes_exactly(stopped, counter, tmp_path, monkeypatch):
    """Some episodes, by their number, always fail at their sixth step: a restart meets the same ones."""
    monkeypatch.setattr(
        counter,
        "fault",
        staticmethod(lambda env: raises(env) if env.t == 5 and env.number % 3 == 0 else None),
    )
    monkeypatch.setattr(Run, "evaluate", lambda self, who: {"return": torch.zeros(2)})
    settings = {"env_faults": 100, "eval_every": 1000, "checkpoint_every": 1000}
    train(small(tmp_path / "whole", COUNTER, **settings))
    stop_at(tmp_path / "run", stopped, env=COUNTER, **settings)
    train(small(tmp_path / "run", COUNTER, **settings))
    whole, parts = outcome(tmp_path / "whole"), outcome(tmp_path / "run")
    for lines in (whole[2], parts[2]):
        assert [x for x in lines if x["kind"] == "fault"]
        for line in lines:
            line.pop("what", None)  # it counts the faults since the command was given
    assert_same(whole, parts)


def test_a_fault_in_an_evaluation_changes_no_number(counter, tmp_path, monkeypatch):
    evaluator = Evaluator(COUNTER, (2,), 2, 0, 0.9, faults=Faults(1))
    act = lambda obs: obs[..., :1] * 0  # noqa: E731
    value = lambda obs, act: act[..., 0]  # noqa: E731
    clean = evaluator(act, value)
    monkeypatch.setattr(counter, "fault", staticmethod(once(raises, 30)))
    made = counter.made
    again = evaluator(act, value)
    assert counter.made == made + 1
    assert all(torch.equal(clean[name], again[name]) for name in clean)
    monkeypatch.setattr(counter, "fault", raises)
    with pytest.raises(EnvironmentFault, match="the simulator is gone"):
        evaluator(act, value)


def test_an_evaluation_whose_environment_keeps_failing_is_owed(counter, tmp_path, monkeypatch):
    settings = {"eval_every": 30, "checkpoint_every": 1000}
    train(small(tmp_path / "whole", COUNTER, **settings))
    played, evaluate = [], Evaluator.__call__

    def failing(self, *args):
        played.append(0)
        if len(played) == 4:  # at turn 30 of the online phase
            raise EnvironmentFault("environment 'X' is gone")
        return evaluate(self, *args)

    monkeypatch.setattr(Evaluator, "__call__", failing)
    with pytest.raises(EnvironmentFault, match=r"in the evaluation at online turn 30; .* from here"):
        train(small(tmp_path / "run", COUNTER, **settings))
    monkeypatch.undo()
    train(small(tmp_path / "run", COUNTER, **settings))
    assert_same(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


def test_an_episode_that_cannot_be_replayed_is_cut(counter, tmp_path, monkeypatch):
    config = {"eval_every": 1000, "checkpoint_every": 1000}
    stop_at(tmp_path / "run", 37, env=COUNTER, **config)  # 57 steps: 12 of the fourth episode
    step = counter.step

    def drifted(self, act):
        obs, *rest = step(self, act)
        return obs * 2, *rest

    monkeypatch.setattr(counter, "step", drifted)
    with pytest.warns(UserWarning, match="starts anew"):
        train(small(tmp_path / "run", COUNTER, **config))
    obs, after, cut, followed, _ = rows_of(tmp_path / "run")
    assert (after[:, 56, 1] == 12).all()
    assert (cut[:, 56] == 1).all()
    assert (followed[:, 45:57] == -torch.inf).all()
    assert (obs[:, 57, 1] == 0).all()


def test_what_environments_may_return(counter, monkeypatch):
    """Whole numbers, single precision, NumPy's scalars: fields of the right kind in another type are no fault."""
    buffer = np.zeros(2, np.float32)

    def step(env):
        buffer[:] += 1
        return buffer, np.float32(1), np.bool_(False), 0, {}

    monkeypatch.setattr(counter, "fault", staticmethod(lambda env: None if env.t is None else step(env)))
    lane = Lane(COUNTER, 0)
    first = lane.step(np.zeros(1))
    assert first[0] == 1.0
    assert lane.step(np.zeros(1))[1].tolist() == [2, 2]
    assert first[1].tolist() == [1, 1]  # though the environment wrote over what it had returned
    monkeypatch.setattr(
        counter, "fault", staticmethod(lambda env: (np.arange(2), 1, False, np.array([True]), {}))
    )
    assert lane.step(np.zeros(1))[3] is True


@pytest.mark.parametrize(
    ("told", "success"), [(True, True), (np.float64(0), False), (np.array([True, False]), None), (None, None)]
)
def test_success_is_what_a_task_says_of_it_in_one_word(told, success, counter, monkeypatch):
    step = counter.step
    monkeypatch.setattr(counter, "step", lambda self, act: (*step(self, act)[:4], {"success": told}))
    lane = Lane(COUNTER, 0)
    lane.step(np.zeros(lane.act_dim))
    assert lane.success is success


def test_an_environment_that_cannot_begin_is_one_line(counter, monkeypatch, tmp_path):
    monkeypatch.setattr(counter, "fault", raises)
    with pytest.raises(
        EnvironmentFault, match=r"reset failed: ConnectionError: the simulator is gone \(test_surv.*py:\d+\)"
    ):
        train(small(tmp_path, COUNTER))
    monkeypatch.setattr(counter, "__init__", raises)
    with pytest.raises(UserError, match="cannot be made: ConnectionError"):
        train(small(tmp_path, COUNTER))


def test_faults_are_a_setting():
    for wrong in ({"env_faults": -1}, {"env_seconds": 0}):
        with pytest.raises(UserError, match=r"run\.env_"):
            RunConfig(**wrong)


# ---- divergence


def poison(part, turn):
    """Have one number of an agent's part become NaN in an online turn."""

    def sabotage(monkeypatch):
        update = SAC.update

        def poisoned(self, batch, step):
            metrics = update(self, batch, step)
            if step.count == turn:
                with torch.no_grad():
                    next(getattr(self, part).parameters()).view(-1)[0] = torch.nan
            return metrics

        monkeypatch.setattr(SAC, "update", poisoned)

    return sabotage


def bad_loss(monkeypatch):
    update = SAC.update

    def poisoned(self, b, step):
        worse = {"critic_loss": torch.tensor([1.0, torch.inf])} if step.count == 34 else {}
        return update(self, b, step) | worse

    monkeypatch.setattr(SAC, "update", poisoned)


def error_that_comes_of_nan(monkeypatch):
    poison("critic", 33)(monkeypatch)
    update = SAC.update

    def fails(self, batch, step):
        if step.count == 34:
            raise ValueError("probabilities must be finite")
        return update(self, batch, step)

    monkeypatch.setattr(SAC, "update", fails)


SABOTAGED = {
    "critic_lr": ({"critic_lr": 1e3}, "Q|critic_loss"),
    "no target, no discount": ({"tau": 1.0, "gamma": 1.0, "critic_lr": 10.0}, "Q"),
    "no target, no discount, faster": ({"tau": 1.0, "gamma": 1.0, "critic_lr": 1e3}, "Q"),
    "actor_lr": ({"actor_lr": 1e30}, "critic_loss|an action|agent"),
    "temperature": ({"init_alpha": 1e30}, "critic_loss"),
    "temperature's rate": ({"alpha_lr": 1e4, "target_entropy": 100.0}, "critic_loss"),
    "rewards": ({"reward_scale": 1e30}, "critic_loss"),
    "actor": (poison("actor", 33), r"agent\.actor"),
    "critic": (poison("critic", 33), r"critic_loss|agent\.critic"),
    "target": (poison("target", 33), r"critic_loss|agent\.target"),
    "a loss": (bad_loss, "critic_loss"),
    "an error that comes of it": (error_that_comes_of_nan, r"agent\.critic"),
}


@pytest.mark.parametrize("name", SABOTAGED)
def test_divergence_is_caught_and_the_last_checkpoint_is_good(name, tmp_path, monkeypatch, recwarn, promise):
    sabotage, named = SABOTAGED[name]
    config = small(tmp_path / "run", "Pendulum-v1", steps=300, eval_every=1000)
    if callable(sabotage):
        config.run.log_every = 1000  # not by the next line
        sabotage(monkeypatch)
    for key, value in {} if callable(sabotage) else sabotage.items():
        setattr(config.run if key in vars(config.run) else config.recipe.agent, key, value)
    with pytest.raises(Diverged, match=rf"({named}).* at online turn \d+.* the last checkpoint is kept") as e:
        train(config)
    assert "\n" not in str(e.value)
    tensors, state = checkpoint.latest(tmp_path / "run" / "checkpoints", "cpu")
    learned = [k for k in tensors if "agent/" in k or k.startswith("means/")]
    assert learned
    assert all(torch.isfinite(tensors[k]).all() for k in learned)
    turn = int(str(e.value).split("online turn ")[1].split()[0].strip(",;"))
    assert state["done"].get("online.0", 0) <= turn <= 300
    if callable(sabotage):
        assert turn <= 33 + 15
    assert not read_run(tmp_path / "run").has("fault", "what")  # and nobody blames the environment
    assert not recwarn.list
    promise("sabotaged runs: stopped as divergence, last checkpoint finite")


def test_rewards_that_are_none_end_a_run_too(counter, tmp_path, monkeypatch):
    wrong = STEP_FAULTS["nan reward"]
    monkeypatch.setattr(counter, "fault", staticmethod(lambda env: None if env.t is None else wrong(env)))
    with pytest.raises(
        EnvironmentFault, match=r"the reward is nan in the evaluation at switch turn 0; .* from here"
    ):
        play(tmp_path / "run")


HEALTHY = [
    {"critic_lr": lr, "tau": tau, "gamma": g}
    for lr, tau, g in zip(
        [1e-4, 3e-4, 1e-3, 3e-3, 1e-2] * 2, [0.005, 0.05] * 5, [0.9, 0.99, 0.999, 0.99, 1.0] * 2, strict=True
    )
]


@pytest.mark.parametrize("seed", range(10))
def test_healthy_runs_are_left_alone(seed, counter, tmp_path, promise):
    config = small(
        tmp_path / "run", COUNTER if seed % 2 else "InvertedPendulum-v5", steps=100, eval_every=1000
    )
    config.seed = seed
    for key, value in HEALTHY[seed].items():
        setattr(config.recipe.agent, key, value)
    train(config)
    tensors, state = checkpoint.latest(tmp_path / "run" / "checkpoints", "cpu")
    assert state["done"]["online.0"] == 100
    assert all(x.isfinite().all() for key, x in tensors.items() if ".agent/" in key and x.is_floating_point())
    promise("healthy runs with wild settings: not stopped")


# ---- old, new and damaged checkpoints


@pytest.mark.filterwarnings(
    "ignore:an episode in flight"
)  # another machine's physics may differ in the last bit
@pytest.mark.parametrize("version", sorted(p.name for p in GOLDEN.iterdir() if p.is_dir()))
def test_checkpoints_of_every_version_load_and_go_on(version, tmp_path):
    """Written once by the version that they are called after, and never again."""
    directory = shutil.copytree(GOLDEN / version, tmp_path / "run")
    assert sum(p.stat().st_size for p in directory.rglob("*") if p.is_file()) < 200_000
    tensors, state = checkpoint.latest(directory / "checkpoints", "cpu")
    _, recipe = restore(directory)
    names = {"updates": "_extra_state"} if version == "v1" else {}  # where the count of updates was
    for key, x in recipe.agent.state_dict().items():
        assert torch.equal(x, tensors[f"switch.agent/{names.get(key, key)}"])
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
def test_no_flipped_bit_and_no_cut_goes_unnoticed(name, finished, tmp_path, promise):
    """100 single bits and 5 lengths: another checkpoint is taken, and the damaged one named, or it is said to be newer."""
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
def test_a_manifest_of_something_else_is_damage(change, finished, tmp_path):
    directory = shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
    path = max(directory.iterdir()) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.warns(UserWarning, match=rf"{path.parent.name} is damaged"):
        checkpoint.latest(directory, "cpu")


def test_leftovers_of_killed_processes_are_swept(finished, tmp_path):
    directory = shutil.copytree(finished, tmp_path / "run")
    (directory / "checkpoints" / ".000000001.999.tmp").mkdir()
    shutil.rmtree(max((directory / "checkpoints").iterdir()))
    train(small(directory))
    assert not list((directory / "checkpoints").glob(".*"))


# ---- memory


def memory():
    """Resident bytes and open files of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))


def watch_memory(directory, steps):
    """Train for `steps` online turns with 100 checkpoints; memory and open files after each."""
    seen, save = [], checkpoint.save

    def watched(*args):
        save(*args)
        seen.append(memory())

    checkpoint.save = watched
    config = small(
        directory,
        "Pendulum-v1",
        steps=steps,
        log_every=100,
        eval_every=steps // 20,
        checkpoint_every=steps // 100,
    )
    config.run.online_capacity = steps // 20
    train(config)
    return seen


@pytest.mark.survival
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_memory_is_flat_over_many_steps_and_checkpoints(tmp_path, promise):
    """In full: MBO2O_SURVIVAL_STEPS=200000. The first fifth is warm-up."""
    steps = int(os.environ.get("MBO2O_SURVIVAL_STEPS", "10000"))
    code = f"""
import json, pathlib, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_survival import watch_memory
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
