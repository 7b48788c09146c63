"""Environments that fail: what counts as a fault, what it costs, and when the run gives up."""

import contextlib

import numpy as np
import pytest
import torch
from survival import (
    COUNTER,
    READS_RETURNS,
    RESET_FAULTS,
    STEP_FAULTS,
    assert_same,
    assert_true_transitions,
    once,
    outcome,
    play,
    raises,
    rows_of,
    small,
    stop_at,
)

from mbo2o.cli.command import guarded
from mbo2o.envs.faults import EnvironmentFault, Faults
from mbo2o.envs.lanes import Lane, Lanes
from mbo2o.report.read import read_run
from mbo2o.run.config import RunConfig
from mbo2o.run.evaluate import Evaluator
from mbo2o.run.turns import Run
from mbo2o.store import checkpoint
from mbo2o.training import train
from mbo2o.types import UserError


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
    assert guarded(lambda: (_ for _ in ()).throw(e.value)) == 4
    state = checkpoint.latest(tmp_path / "run" / "checkpoints", "cpu")[1]
    turn = state["done"]["switch.0"]
    assert f"turn {turn};" in str(e.value)
    monkeypatch.setattr(counter, "fault", staticmethod(lambda env: None))
    lost = pytest.warns(UserWarning, match="a new one is started")
    with lost if name in RESET_FAULTS else contextlib.nullcontext():
        play(tmp_path / "run")
    assert_true_transitions(tmp_path / "run", 80)


def test_a_turn_that_one_lane_cannot_take_is_undone_in_all_lanes(counter, monkeypatch):
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
def test_a_run_with_repaired_environments_resumes_exactly(stopped, counter, tmp_path, monkeypatch):
    """Episodes with certain numbers always fail at their sixth step: a restart meets the same ones."""
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
            line.pop("what", None)  # it counts faults since this process began
    assert_same(whole, parts)


def test_a_fault_in_an_evaluation_changes_no_number(counter, tmp_path, monkeypatch):
    evaluator = Evaluator(COUNTER, (2,), 2, 0, 0.9, faults=Faults(1))

    def act(obs):
        return obs[..., :1] * 0

    def value(obs, act):
        return act[..., 0]

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
    config = {"eval_every": 1000, "checkpoint_every": 1000, "agent": READS_RETURNS}
    stop_at(tmp_path / "run", 37, env=COUNTER, **config)  # 57 steps: 12 of the fourth episode
    step = counter.step

    def drifted(self, act):
        obs, *rest = step(self, act)
        return obs * 2, *rest

    monkeypatch.setattr(counter, "step", drifted)
    with pytest.warns(UserWarning, match="a new one is started"):
        train(small(tmp_path / "run", COUNTER, **config))
    obs, after, cut, followed, _ = rows_of(tmp_path / "run")
    assert (after[:, 56, 1] == 12).all()
    assert (cut[:, 56] == 1).all()
    assert (followed[:, 45:57] == -torch.inf).all()
    assert (obs[:, 57, 1] == 0).all()


def test_environments_may_return_other_types_of_the_right_kind(counter, monkeypatch):
    """Integers, single precision and NumPy scalars are accepted where a number is expected."""
    buffer = np.zeros(2, np.float32)

    def step(env):
        buffer[:] += 1
        return buffer, np.float32(1), np.bool_(False), 0, {}

    monkeypatch.setattr(counter, "fault", staticmethod(lambda env: None if env.t is None else step(env)))
    lane = Lane(COUNTER, 0)
    first = lane.step(np.zeros(1))
    assert first[0] == 1.0
    assert lane.step(np.zeros(1))[1].tolist() == [2, 2]
    assert first[1].tolist() == [1, 1]  # although the environment wrote over the array that it had returned
    monkeypatch.setattr(
        counter, "fault", staticmethod(lambda env: (np.arange(2), 1, False, np.array([True]), {}))
    )
    assert lane.step(np.zeros(1))[3] is True


@pytest.mark.parametrize(
    ("told", "success"), [(True, True), (np.float64(0), False), (np.array([True, False]), None), (None, None)]
)
def test_success_is_read_from_info_if_it_is_one_value(told, success, counter, monkeypatch):
    step = counter.step
    monkeypatch.setattr(counter, "step", lambda self, act: (*step(self, act)[:4], {"success": told}))
    lane = Lane(COUNTER, 0)
    lane.step(np.zeros(lane.act_dim))
    assert lane.success is success


def test_an_environment_that_cannot_begin_is_one_line(counter, monkeypatch, tmp_path):
    monkeypatch.setattr(counter, "fault", raises)
    with pytest.raises(
        EnvironmentFault, match=r"reset failed: ConnectionError: the simulator is gone \(survival\.py:\d+\)"
    ):
        train(small(tmp_path, COUNTER))
    monkeypatch.setattr(counter, "__init__", raises)
    with pytest.raises(UserError, match="cannot be made: ConnectionError"):
        train(small(tmp_path, COUNTER))


def test_settings_of_faults_are_checked():
    for wrong in ({"env_faults": -1}, {"env_seconds": 0}):
        with pytest.raises(UserError, match=r"run\.env_"):
            RunConfig(**wrong)


def test_a_reward_that_is_always_nan_ends_a_run(counter, tmp_path, monkeypatch):
    wrong = STEP_FAULTS["nan reward"]
    monkeypatch.setattr(counter, "fault", staticmethod(lambda env: None if env.t is None else wrong(env)))
    with pytest.raises(
        EnvironmentFault, match=r"the reward is nan in the evaluation at switch turn 0; .* from here"
    ):
        play(tmp_path / "run")
