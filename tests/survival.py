"""What tests of surviving runs share: small runs, results, child processes, an environment that fails."""

import errno
import itertools
import json
import os
import signal
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from mbo2o.agents.calql import CalQLConfig
from mbo2o.agents.sac import SACConfig
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.recipes.scratch import ScratchConfig
from mbo2o.run.config import RunConfig
from mbo2o.run.turns import Run
from mbo2o.run.watch import Stopped
from mbo2o.store import checkpoint
from mbo2o.training import Config, train

NET = MLPConfig(hidden=[8])


READS_RETURNS = CalQLConfig(actor=NET, critic=NET)
"""An agent with which the rows of a run hold returns."""


def small(directory, env="InvertedPendulum-v5", steps=60, agent=None, **run):
    agent = agent or SACConfig(actor=NET, critic=NET)
    settings = {
        "log_every": 20,
        "eval_every": 40,
        "eval_episodes": 1,
        "checkpoint_every": 15,
        "online_capacity": 100,
    } | run
    recipe = ScratchConfig(agent=agent, online_steps=steps, random_steps=20, batch=8)
    return Config(
        recipe=recipe, env=env, seeds=2, dir=str(directory), report=False, run=RunConfig(**settings)
    )


def outcome(directory):
    """What a run leaves: its last checkpoint, and its log without clock times."""
    tensors, state = checkpoint.latest(directory / "checkpoints", "cpu")
    lines = [json.loads(x) for x in (directory / "metrics.jsonl").read_text().splitlines()]
    return tensors, state["done"], [{k: v for k, v in x.items() if k != "time"} for x in lines]


def assert_same(a, b):
    assert a[1:] == b[1:]
    assert a[0].keys() == b[0].keys()
    assert [k for k in a[0] if not torch.equal(a[0][k].nan_to_num(), b[0][k].nan_to_num())] == []


def fork(work):
    """The pid of a child process that does `work` and exits with what it returns."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = work() or 0
        finally:
            os._exit(code)
    return pid


def ended(pid, within=15.0):
    """The exit code of a child, or minus the number of the signal that ended it."""
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
    """Wait until `condition` holds."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < within
        time.sleep(0.005)


def files(directory):
    """Content and time of change of every file."""
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(directory.rglob("*")) if p.is_file()}


def assert_intact(directory, saved):
    tensors, state = checkpoint.latest(directory / "checkpoints", "cpu")
    assert state == saved[1]
    assert all(torch.equal(tensors[k], saved[0][k]) for k in saved[0])
    assert not list((directory / "checkpoints").glob(".*"))


def stop_at(directory, turn, **run):
    """Run until an online turn and save there."""
    after_turn = Run._after_turn

    def stopping(self, last):
        self.signals.stop = self.phase == "online" and self.turn == turn
        after_turn(self, last)

    Run._after_turn = stopping
    try:
        train(small(directory, **run))
    except Stopped:
        pass
    finally:
        Run._after_turn = after_turn


FULL = OSError(errno.ENOSPC, "No space left on device")


class Counter(gymnasium.Env):
    """Observes a drawn number of the episode and the steps so far; the reward is the step; episodes have 15
    steps.

    `fault(env)` is called before each reset and step; what it returns, unless None, is returned instead.
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
    """A fault at the `at`-th call of any environment, and at no other."""
    calls = []

    def fault(env):
        calls.append(0)
        return wrong(env) if len(calls) == at else None

    return fault


def rows_of(directory):
    """Columns of the online buffer, oldest row first: observation, next one, truncated, return, reward."""
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
        assert torch.equal(
            cut[k, :-1] == 0, goes_on
        )  # the rows say that an episode goes on exactly where it does
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
    config = small(directory, COUNTER, steps=0, agent=READS_RETURNS, **settings)
    config.recipe.random_steps = 80
    train(config)


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
