"""Error and coverage by depth against closed forms, what is held out, and `mbo2o model`."""

import json
import math
from dataclasses import replace

import gymnasium
import models
import numpy as np
import pytest
import torch

import mbo2o
from mbo2o.cli.main import main
from mbo2o.dynamics.fit import FitConfig
from mbo2o.dynamics.model import DynamicsConfig, GaussianDynamics
from mbo2o.dynamics.termination import none
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.model.about import About
from mbo2o.model.checking import check_model
from mbo2o.model.dynamics import Dynamics, load_dynamics
from mbo2o.model.fitting import ModelConfig, fit_dynamics, hold_out, settings
from mbo2o.model.trust import FAR, Trust, measure, windows_of
from mbo2o.types import Spec, UserError

SMALL = ModelConfig(
    termination="none",
    dynamics=DynamicsConfig(3, 2, MLPConfig(hidden=[16], activation="tanh")),
    fit=FitConfig(lr=5e-3, batch=64, min_updates=400, max_updates=400, epoch_updates=100),
)


def spread(depth):
    """Standard deviations of a state of the linear system after so many steps from a known state, `(2,)`."""
    step, cov = torch.eye(2) + models.DRIFT, torch.zeros(2, 2)
    for _ in range(depth):
        cov = step @ cov @ step.T + torch.diag(models.NOISE[:2] ** 2)
    return cov.diagonal().sqrt()


@pytest.fixture(scope="module")
def data():
    return models.linear_data(episodes=200, steps=40)


@pytest.fixture(scope="module")
def measured(data):
    return measure(models.linear(scale=torch.tensor([0.5, 2.0])), data)


@pytest.mark.parametrize("depth", [1, 2, 5, 20, 39])
def test_the_error_by_depth_of_the_true_model_is_the_noise_s(measured, depth):
    """The mean of 19 branches deviates by √(1 + 1/19) times the spread."""
    off = spread(depth) / torch.tensor([0.5, 2.0]) * math.sqrt(1 + 1 / 19)
    wanted = off.square().mean().sqrt()
    found = measured.error[depth - 1]
    assert abs(float(found / wanted) - 1) < 0.25  # 64 windows
    assert float(measured.worst[depth - 1]) > float(found)


def test_intervals_of_the_true_model_hold_what_they_should(measured):
    assert abs(float(measured.inside90.mean()) - 0.9) < 0.05
    assert abs(float(measured.inside50.mean()) - 0.5) < 0.07
    table = measured.table
    np.testing.assert_allclose(table["inside90"], 0.9, atol=0.02)
    np.testing.assert_allclose(table["inside50"], 0.5, atol=0.03)
    np.testing.assert_allclose(table["rmse"], models.NOISE, rtol=0.05)


def test_too_narrow_intervals_are_seen(data):
    """With half the noise 90 % intervals hold P(|z| < 1.645 / 2) of what happens."""
    found = measure(models.linear(models.linear_net(noise=models.NOISE / 2)), data)
    inside = [float(torch.special.ndtr(torch.tensor(x))) * 2 - 1 for x in (1.645 / 2, 0.6745 / 2)]
    np.testing.assert_allclose(found.table["inside90"], inside[0], atol=0.03)
    np.testing.assert_allclose(found.table["inside50"], inside[1], atol=0.03)
    assert float(found.inside90.mean()) < 0.75


def test_the_mixture_s_intervals_hold_what_they_should():
    """Members at ±c: where both lie equally far the mixture is wider than each of them."""
    offsets = torch.tensor([[0.3, 0.0, 0.0], [-0.3, 0.0, 0.0]])
    rng = np.random.default_rng(0)
    data = models.linear_data(episodes=150, steps=40)
    data = replace(data, packed=data.packed.clone())
    data.next_obs[:, 0] += torch.from_numpy(rng.choice([-0.3, 0.3], size=len(data)).astype(np.float32))
    found = measure(models.linear(models.linear_net(offsets=offsets)), data)
    np.testing.assert_allclose(found.table["inside90"], 0.9, atol=0.03)


def test_an_exploding_branch_counts_as_far(data):
    net = models.linear_net()
    with torch.no_grad():
        net.net.net.layers[0].weight[:, 0, 0] = 30.0
    found = measure(models.linear(net), data)
    assert bool(found.error.isfinite().all())
    assert FAR / 2 < float(found.error[-1]) <= FAR


def test_windows_follow_the_record_inside_episodes(data):
    held, _ = hold_out(data, 0.3, 0)
    windows = windows_of(data, held, torch.Generator().manual_seed(0))
    assert len(windows.obs) == 64
    after = windows.obs[:, :-1] + windows.obs[:, :-1] @ models.DRIFT.T + windows.act @ models.PUSH.T
    off = (windows.obs[:, 1:] - after).abs()
    inside = torch.arange(off.shape[1]) < windows.length[:, None]
    assert float(off[inside].max()) < 0.6  # noise; a step across a boundary would be far larger
    assert int(windows.length.max()) <= 40


# ---- reading the curves


def curves(error, inside):
    n = len(error)
    error, inside = torch.tensor(error), torch.tensor(inside)
    return Trust(error, error, inside / 2, inside, torch.zeros(n), torch.full((n,), 9.0), True)


@pytest.mark.parametrize(
    ("error", "inside", "depth"),
    [
        ([0.1, 0.2, 0.3], [0.9, 0.9, 0.9], 3),
        ([0.1, 0.6, 0.1], [0.9, 0.9, 0.9], 1),
        ([0.1, 0.2, 0.3], [0.9, 0.9, 0.5], 2),
        ([0.9, 0.1, 0.1], [0.9, 0.9, 0.9], 0),
    ],
)
def test_the_trusted_depth_is_the_last_before_the_first_that_is_not(error, inside, depth):
    model = models.linear()
    model.trust = curves(error, inside)
    assert model.trusted_depth() == depth
    assert model.trusted_depth(error=9.0, coverage=0.0) == 3
    assert [model.expected_error(d) for d in (0, 4)] == [0.0, math.inf]
    np.testing.assert_allclose(model.expected_error(), error)
    assert model.expected_error(1) == pytest.approx(error[0])


def test_a_model_that_was_not_measured_says_so():
    for call in (models.linear().expected_error, models.linear().trusted_depth):
        with pytest.raises(UserError, match="mbo2o model fit"):
            call()


def test_the_measurement_stays_with_the_folder(tmp_path, measured):
    model = models.linear()
    model.trust = measured
    model.save(tmp_path / "m")
    again = load_dynamics(tmp_path / "m")
    np.testing.assert_allclose(again.expected_error(), model.expected_error(), rtol=1e-5)
    assert again.trust.table.keys() == measured.table.keys()
    (tmp_path / "m" / "trust.json").write_text("{}")
    with pytest.raises(UserError, match=r"trust\.json"):
        load_dynamics(tmp_path / "m")


# ---- plans


def test_the_uncertainty_of_a_plan_is_that_of_its_returns():
    """Σ r over 3 steps of the linear system, whose variance follows from its noise."""
    model, horizon = models.linear(), 3
    plans = torch.rand(2, horizon, 2) * 2 - 1
    found = model.uncertainty_of_plan(torch.zeros(2), plans, particles=4000)
    step, pay = torch.eye(2) + models.DRIFT, models.PAY[:2]
    # the noise of step k enters the rewards of steps k+1 …: its weight is Σ_j payᵀ stepʲ
    weight, weights = torch.zeros(2), []
    for _ in range(horizon):
        weights.append(weight)
        weight = step.T @ weight + pay
    variance = (
        sum((w.square() * models.NOISE[:2] ** 2).sum() for w in weights) + horizon * models.NOISE[2] ** 2
    )
    exact = model.rollout(torch.zeros(2), plans, sample=False).reward.sum(-1)
    torch.testing.assert_close(found.returns, exact, atol=0.01, rtol=0)
    torch.testing.assert_close(found.returns_std, variance.sqrt().expand(2), rtol=0.05, atol=0)
    wanted = torch.stack([spread(d).square().mean().sqrt() for d in (1, 2, 3)])
    torch.testing.assert_close(found.spread, wanted.expand(2, 3), rtol=0.05, atol=0)
    assert bool(found.expected_error.isnan().all())
    assert found.ended.shape == found.uncertainty.shape == (2, 3)


def test_the_share_of_rollouts_that_end_is_counted():
    def over(obs, act, next_obs):
        return next_obs[..., 0] > 0

    model = models.linear(None, over, "mine")
    found = model.uncertainty_of_plan(np.zeros(2), np.zeros((4, 2)), particles=2000)
    assert isinstance(found.ended, np.ndarray)
    assert abs(found.ended[0] - 0.5) < 0.05
    assert (np.diff(found.ended) >= 0).all()
    with pytest.raises(UserError, match="particles=1"):
        model.uncertainty_of_plan(np.zeros(2), np.zeros((4, 2)), particles=1)


# ---- fitting


def test_whole_episodes_are_held_out(data):
    held, seen = hold_out(data, 0.25, 3)
    assert not set(data.episode[held].tolist()) & set(data.episode[seen].tolist())
    assert len(held) + len(seen) == len(data)
    assert len(set(data.episode[held].tolist())) == 50
    again, _ = hold_out(data, 0.25, 3)
    assert torch.equal(held, again)


def test_a_single_long_episode_is_cut():
    one = models.linear_data(episodes=1, steps=100)
    held, seen = hold_out(one, 0.1, 0)
    assert (len(held), len(seen)) == (10, 90)
    assert int(held.diff().max()) == 1


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "linear"
    return fit_dynamics(models.linear_data(), SMALL, folder), folder


def test_a_fit_finds_the_system_and_leaves_the_random_state_alone(fitted):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = fit_dynamics(models.linear_data(), SMALL)
    assert torch.equal(before, torch.get_rng_state())
    model, folder = fitted
    obs, act = (
        np.random.default_rng(0).normal(size=(50, 2)) * 0.5,
        np.random.default_rng(1).uniform(-1, 1, (50, 2)),
    )
    exact = models.linear().predict(obs, act).mean
    assert np.abs(model.predict(obs, act).mean - exact).mean() < 0.05
    for m in (again, load_dynamics(folder)):
        np.testing.assert_array_equal(m.predict(obs, act).mean, model.predict(obs, act).mean)
    assert model.trust.held_out
    assert model.trusted_depth() > 3
    assert len(model.about.starts) == 20


def test_the_folder_has_a_page(fitted):
    _, folder = fitted
    page = (folder / "README.md").read_text()
    for text in ("## One step", "## By depth", "trusted depth:", "| reward |", "Termination: "):
        assert text in page
    with pytest.raises(UserError, match="holds a model already"):
        fit_dynamics(models.linear_data(), SMALL, folder)


def test_bounds_and_limit_are_the_environment_s(pendulum, tmp_path):
    cfg = replace(SMALL, termination="auto")
    model = mbo2o.fit_dynamics(pendulum, cfg, tmp_path / "m")
    assert (model.low.tolist(), model.high.tolist(), model.about.time_limit) == ([-2], [2], 200)
    assert (model.about.env_id, model.about.rule) == ("Pendulum-v1", "exploded")
    found = check_model(load_dynamics(tmp_path / "m"), episodes=6, steps=30)
    assert found.env_id == "Pendulum-v1"
    assert len(found.trust.error) == 30
    assert "trusted depth" in found.text(0.5, 0.8)


def test_a_check_finds_the_true_model_faultless():
    """Pendulum itself as the model: no error at any depth."""
    real = gymnasium.make("Pendulum-v1").unwrapped

    class Truth(Dynamics):
        def model_step(self, obs, act, generator=None, measure=True):
            th = torch.atan2(obs[:, 1], obs[:, 0])
            u = 2 * act[:, 0]
            v = (obs[:, 2] + (15 * torch.sin(th) + 3 * u) * real.dt).clamp(-8, 8)
            th = th + v * real.dt
            zero = torch.zeros(len(obs))
            return torch.stack([th.cos(), th.sin(), v], 1), zero, zero > 0, zero

    cfg = DynamicsConfig(2, 1, MLPConfig(hidden=[]))
    box = (torch.full((1,), -2.0), torch.full((1,), 2.0))
    about = About("Pendulum-v1", *box, "none", none, torch.zeros(1, 3), torch.ones(3))
    found = check_model(Truth(GaussianDynamics(Spec(3, 1), cfg), about), episodes=5, steps=20)
    assert float(found.trust.error.max()) < 1e-3


def test_the_commands_fit_and_check(pendulum, tmp_path, capsys):
    small = ["dynamics.members=2", "dynamics.elites=2", "dynamics.net.hidden=[8]", "fit.max_updates=50"]
    with pytest.raises(SystemExit) as done:
        main(["model", "fit", str(pendulum), "--out", str(tmp_path / "m"), *small, "fit.min_updates=1"])
    assert done.value.code == 0
    out = capsys.readouterr().out
    assert "# Model of Pendulum-v1" in out
    assert "certified: the rule exploded" in out
    with pytest.raises(SystemExit) as done:
        main(
            ["model", "check", str(tmp_path / "m"), "--env", "Pendulum-v1", "--episodes", "5", "--steps", "8"]
        )
    assert done.value.code == 0
    assert "trusted depth:" in capsys.readouterr().out
    assert json.loads((tmp_path / "m" / "task.json").read_text())["high"] == [2.0]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["fit.max_update=3"], "did you mean 'fit.max_updates'"),
        (["seed"], "no such setting"),
        (["fit.lr=fast"], "fit.lr"),
        (["holdout=2"], "must lie between 0 and 1"),
    ],
)
def test_settings_that_there_are_not_are_one_line(words, text):
    with pytest.raises(UserError, match=text) as e:
        settings(words)
    assert "\n" not in str(e.value)


def test_data_of_another_environment_are_refused(pendulum):
    with pytest.raises(UserError, match="Hopper-v5 has 11 and 3"):
        fit_dynamics(pendulum, replace(SMALL, env="Hopper-v5"))


def test_data_without_an_environment_have_a_box_of_their_own(tmp_path):
    model = fit_dynamics(models.linear_data(), SMALL)
    assert (model.low.tolist(), model.about.bounded, model.about.env_id) == ([-1, -1], False, None)
    with pytest.raises(UserError, match="names no environment"):
        check_model(model)
    with pytest.raises(UserError, match="termination=auto"):
        fit_dynamics(models.linear_data(), replace(SMALL, termination="auto"))


# ---- runs


def test_a_run_leaves_models_that_know_their_task(pendulum, tmp_path):
    """Box, starts, rule, rewards and errors by depth are there for each seed, without run, data or task."""
    given = ["recipe=mopo", f"dataset={pendulum}", "seeds=2", "run.reward_scale=0.5", "run.reward_shift=1"]
    given += ["recipe.offline_steps=2", "recipe.rollouts=8", "recipe.batch=8", "recipe.fit.max_updates=50"]
    given += ["recipe.dynamics.members=2", "recipe.dynamics.elites=2", "recipe.dynamics.net.hidden=[8]"]
    given += ["recipe.agent.actor.hidden=[4]", "recipe.agent.critic.hidden=[4]", "run.eval_episodes=1"]
    run = mbo2o.train(mbo2o.config(*given, "report=false", f"dir={tmp_path / 'run'}"))
    moved = tmp_path / "elsewhere"
    (run / "dynamics" / "offline").rename(moved)
    for seed in range(2):
        model = load_dynamics(moved, seed)
        assert (model.low.tolist(), model.about.rule, model.about.time_limit) == ([-2], "exploded", 200)
        assert (model.about.rewards.scale, model.about.rewards.shift) == (0.5, 1)
        assert len(model.about.starts) == 3
        assert not model.trust.held_out
        assert len(model.expected_error()) > 100
        # Pendulum pays at most 0, and random actions earn some -6 a step
        assert -12 < float(model.predict(model.about.starts.numpy(), np.zeros((3, 1))).reward.mean()) < 0
