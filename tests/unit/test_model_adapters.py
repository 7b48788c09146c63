"""Contracts with other packages: pytorch-mppi, stable-worldmodel, mbrl; each with the real package.

stable-worldmodel needs CUDA packages of 3 GB. Where it is not installed, its solvers can be taken from an
unpacked wheel: `MBO2O_SWM=FOLDER pytest tests/unit/test_model_adapters.py`.
"""

import importlib
import importlib.machinery
import os
import sys
import types
from types import SimpleNamespace

import gymnasium
import mbrl.models
import models
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from mbo2o.dynamics.model import DynamicsConfig, GaussianDynamics
from mbo2o.dynamics.termination import none
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.model.about import About
from mbo2o.model.adapters import CostModel, MPPIModel
from mbo2o.model.dynamics import Dynamics
from mbo2o.model.mbrl_state import from_mbrl, mlp_arguments, to_mbrl
from mbo2o.planning.mbrl import MbrlModel
from mbo2o.types import RewardView, Spec, UserError

STILL = models.NOISE * 0


def toward(obs, act, next_obs):
    """A reward that is highest at (0.5, -0.5)."""
    return -((next_obs - torch.tensor([0.5, -0.5])) ** 2).sum(-1)


@pytest.fixture(scope="module")
def sure():
    return models.linear(models.linear_net(noise=STILL), reward=toward, low=-2.0, high=2.0)


def arrives(model, act):
    """Whether a controller brings the system near the goal; the best that is possible is known."""
    obs = np.zeros(2, np.float32)
    for _ in range(25):
        obs = model.step(obs, np.clip(act(obs), model.low, model.high)).obs
    return np.abs(obs - [0.5, -0.5]).max() < 0.15


# ---- pytorch-mppi


def test_pytorch_mppi_plans_with_it(sure):
    mppi = pytest.importorskip("pytorch_mppi")
    torch.manual_seed(0)
    model = MPPIModel(sure)
    how = {"num_samples": 200, "horizon": 6, "lambda_": 0.02, "u_min": model.low, "u_max": model.high}
    planner = mppi.MPPI(model.dynamics, model.running_cost, model.nx, torch.eye(2), **how)
    assert arrives(sure, lambda obs: planner.command(model.state(obs)).numpy())


def test_pytorch_mppi_samples_stochastic_rollouts(sure):
    mppi = pytest.importorskip("pytorch_mppi")
    model = MPPIModel(models.linear(reward=toward))
    planner = mppi.MPPI(
        *(model.dynamics, model.running_cost, model.nx, torch.eye(2)),
        num_samples=50,
        horizon=4,
        rollout_samples=3,
        terminal_state_cost=lambda states, actions: torch.zeros(states.shape[:2]),
    )
    assert planner.command(model.state(np.zeros(2))).shape == (2,)


def test_the_cost_of_a_state_is_what_the_step_to_it_cost():
    def over(obs, act, next_obs):
        return next_obs[..., 0] > 1

    dyn = models.linear(models.linear_net(noise=STILL), over, "mine")
    model = MPPIModel(dyn, penalty=2.0)
    state, act = model.state(torch.tensor([[0.9, 0.0], [-5.0, 0.0]])), torch.ones(2, 2)
    total = torch.zeros(2)
    for _ in range(3):
        state = model.dynamics(state, act)
        total += model.running_cost(state, act)
    r = dyn.rollout(torch.tensor([[0.9, 0.0], [-5.0, 0.0]]), torch.ones(2, 3, 2))
    torch.testing.assert_close(-total, (r.reward - 2 * r.uncertainty).sum(-1))
    assert state[:, -1].tolist() == [0, 1]
    # beyond the box an action is the box's
    assert torch.equal(model.dynamics(state, act * 9), model.dynamics(state, act))


# ---- stable-worldmodel


def test_costs_are_minus_the_rollouts_returns():
    dyn = models.linear(models.linear_net(noise=STILL), low=-2.0, high=2.0)
    plans = torch.rand(3, 5, 4, 2) * 4 - 2
    start = torch.randn(3, 2)
    many = start[:, None].expand(3, 5, 2)
    r = dyn.rollout(many, plans)
    wanted = -(r.reward - 0.5 * r.uncertainty).sum(-1)
    model = CostModel(dyn, penalty=0.5)
    for obs in (many, many.numpy(), start, many[:, :, None]):
        cost = model.get_cost({"observation": obs, "goal": None}, plans)
        torch.testing.assert_close(cost, wanted)
    torch.testing.assert_close(model.criterion({"observation": many}, plans), wanted)
    blocks = model.get_cost({"observation": many}, plans.reshape(3, 5, 2, 4))
    torch.testing.assert_close(blocks, wanted)
    unit = CostModel(dyn, penalty=0.5, unit=True).get_cost({"observation": many}, plans / 2)
    torch.testing.assert_close(unit, wanted)


def test_costs_have_gradients_and_are_the_same_in_each_call():
    model = CostModel(models.linear(reward=toward))
    plans = torch.zeros(1, 2, 3, 2, requires_grad=True)
    info = {"observation": torch.zeros(1, 2, 2)}
    cost = model.get_cost(info, plans)
    cost.sum().backward()
    assert bool((plans.grad[:, :, 0].abs() > 0).all())
    assert torch.equal(cost, model.get_cost(info, plans))


@pytest.mark.parametrize(
    ("info", "plans", "text"),
    [
        ({"pixels": 0}, torch.zeros(1, 2, 3, 2), "info has no 'observation', only pixels"),
        ({"observation": torch.zeros(1, 2, 2)}, torch.zeros(1, 2, 3, 3), "expected"),
        ({"observation": torch.zeros(1, 5, 2)}, torch.zeros(1, 2, 3, 2), "expected"),
    ],
)
def test_wrong_shapes_are_one_line(info, plans, text):
    with pytest.raises(UserError, match=text):
        CostModel(models.linear()).get_cost(info, plans)


@pytest.fixture
def solvers(monkeypatch):
    """stable-worldmodel's solvers: installed, or out of the folder MBO2O_SWM without its other imports."""
    folder = os.environ.get("MBO2O_SWM")
    if not folder:
        return pytest.importorskip("stable_worldmodel.solver")
    package = types.ModuleType("stable_worldmodel")
    package.__path__ = [os.path.join(folder, "stable_worldmodel")]
    loguru = types.ModuleType("loguru")
    loguru.logger = SimpleNamespace(
        **{x: lambda *text: None for x in ("info", "warning", "success", "debug")}
    )
    for name, module in (("stable_worldmodel", package), ("loguru", loguru)):
        monkeypatch.setitem(sys.modules, name, module)
    return importlib.import_module("stable_worldmodel.solver")


@pytest.mark.parametrize("name", ["CEMSolver", "ICEMSolver", "MPPISolver", "GradientSolver"])
def test_solvers_of_stable_worldmodel_plan_with_it(solvers, sure, name):
    gradient = name == "GradientSolver"
    solver = getattr(solvers, name)(CostModel(sure), num_samples=4 if gradient else 128, n_steps=20, seed=0)
    box = gymnasium.spaces.Box(-2, 2, (3, 2))
    solver.configure(action_space=box, n_envs=3, config=SimpleNamespace(horizon=5, action_block=1))
    starts = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.5, -0.5]])
    plans = solver.solve({"observation": starts})["actions"].detach().clamp(-2, 2)
    assert plans.shape == (3, 5, 2)
    planned = sure.rollout(starts, plans).reward.sum(-1)
    idle = sure.rollout(starts, torch.zeros(3, 5, 2)).reward.sum(-1)
    assert bool((planned > idle).all())


# ---- mbrl


def test_mbrl_s_environment_is_in_the_task_s_units():
    dyn = models.linear(models.linear_net(noise=STILL), low=-2.0, high=2.0, rewards=RewardView(2.0, 1.0))
    box = gymnasium.spaces.Box(-2, 2, (2,))
    model = MbrlModel(dyn)
    real = SimpleNamespace(observation_space=box, action_space=box)
    env = mbrl.models.ModelEnv(real, model, model.ends(), generator=torch.Generator().manual_seed(0))
    start, act = (
        np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32),
        np.full((6, 2), 1.5, np.float32),
    )
    next_obs, reward, done, _ = env.step(act, env.reset(start), sample=True)
    wanted = dyn.step(start, act)
    np.testing.assert_allclose(next_obs, wanted.obs, rtol=1e-5)
    np.testing.assert_allclose(reward[:, 0], wanted.reward, rtol=1e-5)
    assert not done.any()
    with pytest.raises(UserError, match="give one"):
        MbrlModel(dyn.net).ends()


def silu_model(normalize=True):
    torch.manual_seed(3)
    net = GaussianDynamics(
        Spec(3, 2), DynamicsConfig(4, 3, MLPConfig(hidden=[16, 16], activation="silu"), normalize)
    )
    net.inputs.mean.normal_()
    net.inputs.std.uniform_(0.5, 2)
    if normalize:
        net.targets.mean.normal_()
        net.targets.std.uniform_(0.5, 2)
    with torch.no_grad():
        net.net.min_log_var.uniform_(-8, -4)
        net.net.max_log_var.uniform_(0, 2)
    net.elites.copy_(torch.tensor([2, 0, 3]))
    about = About(None, -torch.ones(2), torch.ones(2), "none", none, torch.zeros(1, 3), torch.ones(3))
    return Dynamics(net.requires_grad_(False), about)


def wrapped(dyn, **more):
    mlp = mbrl.models.GaussianMLP(**(mlp_arguments(dyn) | more))
    return mbrl.models.OneDTransitionRewardModel(
        mlp, target_is_delta=True, normalize=True, learned_rewards=True
    )


@pytest.mark.parametrize("normalize", [True, False])
def test_a_model_goes_to_mbrl_and_comes_back(normalize):
    dyn, obs, act = silu_model(normalize), torch.randn(12, 3), torch.rand(12, 2) * 2 - 1
    wrapper = wrapped(dyn)
    to_mbrl(dyn, wrapper)
    with torch.no_grad():
        mean, log_var = wrapper.model(wrapper._get_model_input(obs, act))
    ours = dyn.net.predict(obs, act)
    torch.testing.assert_close(mean, ours[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((0.5 * log_var).exp(), ours[1], rtol=1e-4, atol=1e-5)
    assert list(wrapper.model.elite_models) == [2, 0, 3]
    again = from_mbrl(wrapper, dyn.about)
    for x, y in zip(
        vars(again.predict(obs, act)).values(), vars(dyn.predict(obs, act)).values(), strict=True
    ):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_a_model_that_mbrl_trained_is_taken_over():
    """Fresh weights with mbrl's own initialisation, its default activation and no elites."""
    mlp = mbrl.models.GaussianMLP(5, 4, "cpu", num_layers=3, ensemble_size=5, hid_size=8)
    wrapper = mbrl.models.OneDTransitionRewardModel(mlp)
    dyn = from_mbrl(wrapper, silu_model().about, activation="relu")
    obs, act = torch.randn(6, 3), torch.rand(6, 2)
    with torch.no_grad():
        mean, log_var = wrapper.model(torch.cat([obs, act], 1))
    p = dyn.predict(obs, act)
    torch.testing.assert_close(p.members, obs + mean[..., :-1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(p.reward, mean[..., -1].mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(p.aleatoric, log_var[..., :-1].exp().mean(0).sqrt(), rtol=1e-4, atol=1e-5)


def test_what_mbrl_has_no_counterpart_for_is_refused():
    dyn = silu_model()
    plain = mbrl.models.OneDTransitionRewardModel(mbrl.models.GaussianMLP(**mlp_arguments(dyn)))
    with pytest.raises(UserError, match="normalize=True"):
        to_mbrl(dyn, plain)
    with pytest.raises(UserError, match="another network"):
        to_mbrl(dyn, wrapped(dyn, hid_size=8))
    with pytest.raises(UserError, match="hidden layers of one width"):
        mlp_arguments(models.linear())
    odd = mbrl.models.OneDTransitionRewardModel(
        mbrl.models.GaussianMLP(**mlp_arguments(dyn)), target_is_delta=False
    )
    with pytest.raises(UserError, match="target_is_delta=False"):
        from_mbrl(odd, dyn.about)


def test_mbrl_plans_with_it(sure):
    from mbrl import planning

    box = gymnasium.spaces.Box(-2, 2, (2,))
    model = MbrlModel(sure)
    real = SimpleNamespace(observation_space=box, action_space=box)
    env = mbrl.models.ModelEnv(real, model, model.ends(), generator=torch.Generator().manual_seed(0))
    cem = {"_target_": "mbrl.planning.CEMOptimizer", "num_iterations": 4, "elite_ratio": 0.1, "alpha": 0.1}
    cem |= {"population_size": 100, "device": "cpu", "lower_bound": "???", "upper_bound": "???"}
    agent = planning.TrajectoryOptimizerAgent(OmegaConf.create(cem), [-2, -2], [2, 2], planning_horizon=5)
    agent.set_trajectory_eval_fn(lambda obs, plans: env.evaluate_action_sequences(plans, obs, 1))
    assert arrives(sure, agent.act)
