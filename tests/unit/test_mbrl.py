"""The contract with mbrl-lib 0.2.0: its ModelEnv and its CEM drive our dynamics; the planning notebook."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import mbrl.models
import mbrl.planning
import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from omegaconf import OmegaConf
from torch import Tensor

from mbo2o.data.dataset import TransitionDataset
from mbo2o.dynamics.fit import FitConfig, fit
from mbo2o.dynamics.model import DynamicsConfig, GaussianDynamics
from mbo2o.dynamics.termination import none
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.ensemble.uncertainty import PENALTIES
from mbo2o.planning.mbrl import BROKEN, MbrlModel
from mbo2o.types import Spec, TerminationFn, UserError

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "02_plan_with_the_model.ipynb"
GOAL = torch.tensor([0.5, -0.5])


def ensemble(obs_dim: int, act_dim: int, seeds: tuple[int, ...] = (), hidden: int = 32) -> GaussianDynamics:
    torch.manual_seed(0)
    net = MLPConfig(hidden=[hidden, hidden], activation="silu")
    return GaussianDynamics(Spec(obs_dim, act_dim, seeds), DynamicsConfig(members=4, elites=3, net=net))


def learn(
    model: GaussianDynamics, obs: np.ndarray, act: np.ndarray, rew: np.ndarray, next_obs: np.ndarray
) -> None:
    no = np.zeros(len(obs), bool)
    dataset = TransitionDataset.from_arrays(obs, act, rew, no, no, next_obs)
    cfg = FitConfig(lr=3e-3, batch=128, min_updates=800, max_updates=800, epoch_updates=100)
    fit(model, [(dataset.with_seeds(model.spec.seeds), 1.0)], cfg)


@pytest.fixture(scope="module")
def point_mass() -> GaussianDynamics:
    """A fit of s' = s + 0.1 a, reward -|s' - goal|²."""
    rng, model = np.random.default_rng(0), ensemble(2, 2)
    obs, act = (rng.uniform(-1, 1, (3000, 2)).astype(np.float32) for _ in range(2))
    next_obs = obs + 0.1 * act
    learn(model, obs, act, -((next_obs - GOAL.numpy()) ** 2).sum(1), next_obs)
    return model


def model_env(model: MbrlModel, seed: int = 0, rule: TerminationFn = none) -> mbrl.models.ModelEnv:
    box = gym.spaces.Box(-1, 1, (2,))
    env = SimpleNamespace(observation_space=box, action_space=box)
    return mbrl.models.ModelEnv(env, model, model.ends(rule), generator=torch.Generator().manual_seed(seed))


def draws(b: int, steps: int = 4) -> tuple[Tensor, Tensor]:
    return torch.rand(b, 2) * 2 - 1, torch.rand(steps, b, 2) * 2 - 1


# ---- ModelEnv


@pytest.mark.parametrize("b", [1, 10, 12])  # three elites: neither 1 nor 10 divides
def test_model_env_equals_our_own_steps(point_mass, b):
    env, (start, acts) = model_env(MbrlModel(point_mass), seed=3), draws(b)
    state, rng, obs = env.reset(start.numpy()), torch.Generator().manual_seed(3), start
    for act in acts:
        with torch.no_grad():
            obs, rew = point_mass.step(obs, act, rng)
        theirs, theirs_rew, done, state = env.step(act.numpy(), state, sample=True)
        assert theirs_rew.shape == done.shape == (b, 1)
        assert np.array_equal(theirs, obs.numpy())
        assert np.array_equal(theirs_rew[:, 0], rew.numpy())
        assert not done.any()


def test_the_generator_alone_decides(point_mass):
    start, acts = draws(10)
    plans = acts.transpose(0, 1)
    one, two, other = (
        model_env(MbrlModel(point_mass), seed).evaluate_action_sequences(plans, start[0].numpy(), 3)
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_without_sampling_the_elites_mean(point_mass):
    env, (start, acts) = model_env(MbrlModel(point_mass)), draws(5)
    next_obs, rew, _, _ = env.step(acts[0], env.reset(start.numpy()))
    mean = point_mass.predict(start, acts[0])[0][point_mass.elites].mean(0).detach()
    np.testing.assert_allclose(next_obs, start + mean[:, :2], atol=1e-5)
    np.testing.assert_allclose(rew[:, 0], mean[:, 2], atol=1e-5)


@pytest.mark.parametrize("name", PENALTIES)
def test_the_penalty_is_subtracted_once(point_mass, name):
    start, acts = draws(7)
    plain, shy = MbrlModel(point_mass), MbrlModel(point_mass, penalty=name, coef=2.5)
    for sample in (False, True):
        outs = []
        for env in (model_env(plain), model_env(shy)):
            outs.append(env.step(acts[0], env.reset(start.numpy(), return_as_np=False), sample=sample))
        (obs, rew, _, _), (shy_obs, shy_rew, _, _) = outs
        assert torch.equal(obs, shy_obs)  # a penalty moves no state
        u = PENALTIES[name](*point_mass.predict(start, acts[0])).detach()
        torch.testing.assert_close(rew - shy_rew, 2.5 * u.unsqueeze(-1))


def test_action_sequences_are_worth_their_rewards(point_mass):
    env, start = model_env(MbrlModel(point_mass)), np.zeros(2)
    plans = torch.stack(
        [torch.full((5, 2), x) * GOAL.sign() for x in (1.0, 0.0, -1.0)]
    )  # towards the goal, idle, away
    values = env.evaluate_action_sequences(plans, start, num_particles=5)
    expected = [-sum(((0.1 * x * (k + 1) - 0.5) ** 2) * 2 for k in range(5)) for x in (1, 0, -1)]
    assert values.shape == (3,)
    torch.testing.assert_close(values, torch.tensor(expected), atol=0.35, rtol=0)
    assert values.argsort(descending=True).tolist() == [0, 1, 2]


def test_rewards_stop_after_an_end_and_the_rule_sees_where_the_step_began(point_mass):
    seen = []

    def second(obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        seen.append(obs)
        return torch.full((len(next_obs),), len(seen) == 2)

    env, start = model_env(MbrlModel(point_mass), rule=second), np.array([0.3, 0.4], np.float32)
    long = env.evaluate_action_sequences(torch.ones(2, 6, 2), start, num_particles=1)
    seen_long, seen[:] = list(seen), []
    short = model_env(MbrlModel(point_mass), rule=second).evaluate_action_sequences(
        torch.ones(2, 2, 2), start, 1
    )
    assert torch.equal(long, short)
    assert torch.equal(seen_long[0], torch.tensor(start).expand(2, 2))
    assert (seen_long[1] - seen_long[0] - 0.1).abs().max() < 0.1


def test_a_broken_row_is_worth_less_than_any_other(point_mass):
    start, acts = draws(4)
    start[2] = math.inf
    state = MbrlModel(point_mass).reset(start)
    next_obs, rew, none_, state = MbrlModel(point_mass).sample(acts[0], state)
    assert none_ is None
    assert rew[2] == BROKEN
    assert rew[[0, 1, 3]].isfinite().all()
    assert (rew[[0, 1, 3]] > -100).all()
    assert torch.equal(state["obs"], next_obs)


def test_what_cannot_be_planned_with():
    with pytest.raises(UserError, match="seed"):
        MbrlModel(ensemble(2, 2, seeds=(3,)))
    with pytest.raises(UserError, match="max_aleatoric"):
        MbrlModel(ensemble(2, 2), penalty="max_aleatorik")


# ---- the planner


def cem(env: mbrl.models.ModelEnv, horizon: int, population: int) -> mbrl.planning.TrajectoryOptimizerAgent:
    cfg = {
        "_target_": "mbrl.planning.CEMOptimizer",
        "num_iterations": 3,
        "elite_ratio": 0.1,
        "population_size": population,
        "alpha": 0.1,
        "device": "cpu",
        "lower_bound": "???",
        "upper_bound": "???",
    }
    agent = mbrl.planning.TrajectoryOptimizerAgent(
        OmegaConf.create(cfg), [-1, -1], [1, 1], planning_horizon=horizon
    )
    agent.set_trajectory_eval_fn(
        lambda obs, plans: env.evaluate_action_sequences(plans, obs, num_particles=2)
    )
    return agent


def test_cem_moves_to_the_goal(point_mass):
    torch.manual_seed(0)
    agent, s = (
        cem(model_env(MbrlModel(point_mass, coef=0.1)), horizon=4, population=50),
        np.array([-0.5, 0.5]),
    )
    goal, distance = GOAL.numpy(), []
    for _ in range(15):
        action = agent.act(s)
        assert action.shape == (2,)
        assert (abs(action) <= 1).all()
        s = s + 0.1 * action
        distance.append(np.linalg.norm(s - goal))
    assert distance[0] < math.sqrt(2) - 0.05  # the first step is along the way
    assert distance[-1] < 0.2


# ---- the notebook


@pytest.mark.parametrize("seeds", [(), (2,)])
def test_the_planning_notebook_runs(tmp_path, monkeypatch, seeds):
    env, model, rows = gym.make("Pendulum-v1"), ensemble(3, 1, seeds), []
    env.action_space.seed(0)
    obs, _ = env.reset(seed=0)
    for _ in range(1000):
        act = env.action_space.sample()
        next_obs, rew, _, over, _ = env.step(act)
        rows.append((obs, act / 2, rew, next_obs))
        obs = env.reset()[0] if over else next_obs
    learn(model, *(np.stack(x).astype(np.float32) for x in zip(*rows, strict=True)))
    model.save(tmp_path / "dynamics", {"env_id": "Pendulum-v1", "termination": "auto"})
    monkeypatch.setenv("MBO2O_MODEL", str(tmp_path / "dynamics"))
    monkeypatch.setenv("MBO2O_STEPS", "3")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") for cell in notebook.cells), "outputs are not stored"
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = [x for cell in notebook.cells for x in cell.get("outputs", [])]
    text = "".join(x.get("text", "") for x in outputs)
    assert all(f"{name:<7} return of 3 steps" in text for name in ("random", "cem", "icem", "mppi"))
    assert "horizon" in text
    assert sum("image/png" in x.get("data", {}) for x in outputs) == 3
