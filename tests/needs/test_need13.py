"""Need 13: dynamics models as reusable objects for planning research.

A model is fitted without an agent, kept in a folder, loaded without a config, and predicts with both kinds of
uncertainty for any batch. Acceptance: on a point mass CEM reaches the goal from 5 of 5 starts; as an
environment it passes Gymnasium's check; as a vector it trains SAC of Stable-Baselines3; a new process
loads it.
"""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import mbo2o
from mbo2o.data.dataset import TransitionDataset
from mbo2o.dynamics.fit import FitConfig
from mbo2o.dynamics.model import DynamicsConfig
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.model.fitting import ModelConfig, fit_dynamics
from mbo2o.planning.planner import Planner

GOAL = np.array([0.3, -0.6], np.float32)


def push(obs, act):
    """A point mass that an action moves by up to 0.2."""
    return obs + 0.2 * act


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of the point mass, fitted to 240 random episodes of 5 steps."""
    rng, episodes, length = np.random.default_rng(0), 240, 5
    obs = rng.uniform(-1, 1, (episodes, 2)).astype(np.float32)
    rows = {x: [] for x in ("observations", "actions", "rewards", "next_observations", "timeouts")}
    for t in range(length):
        act = rng.uniform(-1, 1, (episodes, 2)).astype(np.float32)
        after = push(obs, act)
        paid, over = -np.square(after - GOAL).sum(1), np.full(episodes, t == length - 1)
        for kept, x in zip(rows.values(), (obs, act, paid, after, over), strict=True):
            kept.append(x)
        obs = after
    arrays = {x: np.stack(kept, 1).reshape(episodes * length, *kept[0].shape[1:]) for x, kept in rows.items()}
    dataset = TransitionDataset.from_arrays(terminals=np.zeros(episodes * length), **arrays)
    net = MLPConfig(hidden=[32, 32], activation="silu")
    sizes = ModelConfig(
        termination="none",
        dynamics=DynamicsConfig(members=3, elites=2, net=net),
        fit=FitConfig(min_updates=1000, max_updates=1000),
    )
    out = tmp_path_factory.mktemp("need13") / "model"
    fit_dynamics(dataset, sizes, out=out)
    return out


@pytest.fixture(scope="module")
def model(folder):
    return mbo2o.load_dynamics(folder)


def test_cem_reaches_the_goal_from_five_of_five_starts(model):
    planner = Planner(model, "cem", horizon=5, population=100, elites=10, members="mean")
    obs = np.random.default_rng(1).uniform(-1, 1, (5, 2)).astype(np.float32)
    for _ in range(15):
        obs = push(obs, planner.act(obs))
    assert (np.linalg.norm(obs - GOAL, axis=1) < 0.15).all(), obs


@pytest.mark.parametrize("batch", [1, 7, 16])
def test_any_batch_has_a_mean_and_both_kinds_of_uncertainty(model, batch):
    rng = np.random.default_rng(batch)
    obs, act = rng.uniform(-1, 1, (2, batch, 2)).astype(np.float32)
    p = model.predict(obs, act)
    assert np.abs(p.mean - push(obs, act)).max() < 0.15
    for x in (p.aleatoric, p.epistemic, p.reward, p.end):
        assert len(x) == batch
        assert np.isfinite(x).all()
    assert (p.aleatoric > 0).all()
    assert (p.epistemic >= 0).all()
    assert model.rollout(obs, rng.uniform(-1, 1, (batch, 4, 2)).astype(np.float32)).obs.shape[0] == batch


def test_it_passes_gymnasium_s_check_and_its_vector_stays_in_its_spaces(model):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*infinity. This is probably too")
        check_env(model.as_env(horizon=10), skip_render_check=True)
    envs = model.as_vector_env(3, horizon=4)
    obs, _ = envs.reset(seed=0)
    envs.action_space.seed(0)
    for _ in range(6):
        assert obs in envs.observation_space
        obs, reward, ended, cut, _ = envs.step(envs.action_space.sample())
        assert reward.shape == ended.shape == cut.shape == (3,)


def test_sac_of_stable_baselines3_trains_in_it(model):
    sb3 = pytest.importorskip("stable_baselines3")
    from mbo2o.model.sb3 import SB3VecEnv

    env = SB3VecEnv(model.as_vector_env(10, horizon=20, autoreset="SameStep"))
    small = {
        "policy_kwargs": {"net_arch": [16]},
        "learning_starts": 300,
        "batch_size": 16,
        "buffer_size": 500,
    }
    sac = sb3.SAC("MlpPolicy", env, seed=0, device="cpu", **small).learn(500)
    assert sac.num_timesteps == 500
    assert sac._n_updates > 0
    assert np.isfinite(sac.predict(np.zeros((4, 2), np.float32))[0]).all()


def test_a_new_process_loads_it_without_a_config(model, folder):
    program = (
        "import sys, numpy as np, mbo2o; m = mbo2o.load_dynamics(sys.argv[1]); "
        "print(*m.predict(np.array([0.5, -0.5], 'f4'), np.array([1.0, 0.0], 'f4')).mean)"
    )
    command = [sys.executable, "-c", program, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    here = model.predict(torch.tensor([0.5, -0.5]), torch.tensor([1.0, 0.0])).mean
    np.testing.assert_allclose([float(x) for x in done.stdout.split()], here, rtol=1e-5, atol=1e-6)
