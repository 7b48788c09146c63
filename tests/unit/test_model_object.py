"""`Dynamics`: predictions, steps and rollouts against closed forms, its units, and its folder."""

import json
import math
import subprocess
import sys

import models
import numpy as np
import pytest
import torch

import mbo2o
from mbo2o.dynamics.learned_termination import LearnedTermination
from mbo2o.dynamics.model import DynamicsConfig, GaussianDynamics
from mbo2o.dynamics.termination import hopper
from mbo2o.ensemble.uncertainty import PENALTIES
from mbo2o.model.dynamics import BROKEN, load_dynamics
from mbo2o.types import RewardView, Spec, UserError

OFFSETS = torch.tensor([[0.1, 0.0, 0.3], [-0.1, 0.2, 0.1], [5.0, 5.0, 5.0], [0.0, 0.1, 0.2]])
ELITES = [3, 0, 1]


@pytest.fixture(scope="module")
def apart():
    """A model whose members differ; the third one is no elite."""
    return models.linear(models.linear_net(offsets=OFFSETS, elites=ELITES))


def expected(obs, act):
    change = obs @ models.DRIFT.T + act @ models.PUSH.T
    return obs + change + OFFSETS[ELITES][:, None, :2], torch.cat([obs, act], -1) @ models.PAY


def test_a_prediction_is_the_elites(apart):
    obs, act = torch.randn(5, 2), torch.rand(5, 2) * 2 - 1
    p = apart.predict(obs, act)
    members, reward = expected(obs, act)
    torch.testing.assert_close(p.members, members)
    torch.testing.assert_close(p.mean, members.mean(0))
    torch.testing.assert_close(p.epistemic, members.std(0, correction=0))
    torch.testing.assert_close(p.aleatoric, models.NOISE[:2].expand(5, 2), rtol=1e-4, atol=0)
    torch.testing.assert_close(p.reward, reward + OFFSETS[ELITES, 2].mean())
    assert bool((p.end == 0).all())
    u = (models.NOISE.square().sum() + OFFSETS[ELITES].var(0, correction=0).sum()).sqrt()
    torch.testing.assert_close(p.uncertainty, u.expand(5), rtol=1e-4, atol=0)


@pytest.mark.parametrize("lead", [(), (1,), (7,), (2, 3), (0,)])
def test_a_batch_has_any_shape_and_its_kind_comes_back(apart, lead):
    obs, act = torch.randn(*lead, 2), torch.rand(*lead, 2)
    p, q = apart.predict(obs, act), apart.predict(obs.numpy().astype(float), act.numpy())
    assert p.mean.shape == p.aleatoric.shape == p.epistemic.shape == (*lead, 2)
    assert p.members.shape == (3, *lead, 2)
    assert p.reward.shape == p.end.shape == p.uncertainty.shape == lead
    for key, x in vars(q).items():
        assert isinstance(x, np.ndarray)
        np.testing.assert_allclose(x, getattr(p, key), rtol=1e-5)
    s = apart.step(obs.numpy(), act.numpy())
    assert (s.obs.shape, s.reward.shape, s.ended.dtype) == ((*lead, 2), lead, np.bool_)


def test_one_action_serves_many_observations(apart):
    p = apart.predict(np.zeros((4, 2)), np.ones(2))
    np.testing.assert_allclose(p.mean, apart.predict(np.zeros((4, 2)), np.ones((4, 2))).mean)


def test_the_probability_of_an_end_is_that_of_the_elites_mixture():
    def over(obs, act, next_obs):
        return next_obs[..., 0] > 0.3

    model = models.linear(models.linear_net(offsets=OFFSETS, elites=ELITES), over, "mine")
    obs, act = torch.randn(40, 2) * 0.3, torch.rand(40, 2)
    members, _ = expected(obs, act)
    exact = torch.special.ndtr((members[..., 0] - 0.3) / models.NOISE[0]).mean(0)
    p = model.predict(obs, act)
    assert 0.1 < float(exact.mean()) < 0.9
    torch.testing.assert_close(p.end, exact, atol=0.015, rtol=0)
    assert torch.equal(p.end, model.predict(obs, act).end)
    generator = torch.Generator().manual_seed(0)
    many = model.step(obs[:1].expand(20_000, 2), act[:1], generator).ended.float().mean()
    assert abs(float(many) - float(exact[0])) < 0.02


def test_a_step_is_a_draw_from_one_elite(apart):
    obs, act = torch.zeros(40_000, 2), torch.zeros(40_000, 2)
    for measure in (True, False):
        generator = torch.Generator().manual_seed(0)
        next_obs, reward, ended, u = apart.model_step(obs, act, generator, measure)
        offsets = OFFSETS[ELITES]
        std = (models.NOISE.square() + offsets.var(0, correction=0)).sqrt()
        both = torch.cat([next_obs, reward[:, None]], 1)
        torch.testing.assert_close(both.mean(0), offsets.mean(0), atol=4e-3, rtol=0)
        torch.testing.assert_close(both.std(0), std, rtol=0.02, atol=0)
        # reward and state are of the same elite
        assert float(torch.corrcoef(both.T)[0, 2]) > 0.5
        assert not ended.any()
        assert bool((u > 0).all()) == measure


@pytest.mark.parametrize("name", PENALTIES)
def test_the_penalty_is_the_ensemble_s(name):
    net = models.linear_net(offsets=OFFSETS)  # all members are elites
    model = models.linear(net)
    model.penalty = name
    obs, act = torch.randn(6, 2), torch.rand(6, 2)
    torch.testing.assert_close(
        model.predict(obs, act).uncertainty, PENALTIES[name](*net.predict(obs, act)).detach()
    )


def test_rewards_are_in_the_task_s_units():
    obs, act = torch.randn(4, 2), torch.rand(4, 2)
    plain = models.linear()
    scaled = models.linear(rewards=RewardView(10.0, -1.0))
    torch.testing.assert_close(scaled.predict(obs, act).reward, (plain.predict(obs, act).reward + 1) / 10)
    for measure in (True, False):
        paid = [m.model_step(obs, act, torch.Generator().manual_seed(0), measure)[1] for m in (plain, scaled)]
        torch.testing.assert_close(paid[1], (paid[0] + 1) / 10)


def test_a_reward_function_takes_the_network_s_place():
    model = models.linear(reward=lambda obs, act, next_obs: next_obs[..., 0])
    p = model.predict(torch.ones(2, 2), torch.zeros(2, 2))
    torch.testing.assert_close(p.reward, p.mean[..., 0])
    s = model.step(torch.ones(2, 2), torch.zeros(2, 2))
    torch.testing.assert_close(s.reward, s.obs[..., 0])


# ---- units


def test_actions_are_in_the_environment_s_units():
    model = models.linear(low=-2.0, high=6.0)
    unit, env = torch.tensor([[-1.0, 0.5]]), torch.tensor([[-2.0, 4.0]])
    torch.testing.assert_close(
        model.predict(torch.ones(1, 2), env).members, models.linear().predict(torch.ones(1, 2), unit).members
    )
    torch.testing.assert_close(model.from_unit(unit), env)
    torch.testing.assert_close(model.to_unit(env), unit)


@pytest.mark.parametrize("wrong", [2.001, -1.1, math.nan, math.inf])
def test_an_action_outside_the_box_is_refused_with_its_place(wrong):
    model = models.linear(low=-1.0, high=2.0, env_id="Mine-v0")
    act = np.zeros((2, 3, 2))
    act[1, 0, 1] = wrong
    text = rf"row 3: action\[1\] = {wrong:g} lies outside \[-1, 2\], the box of Mine-v0"
    for call in (model.predict, model.step):
        with pytest.raises(UserError, match=text):
            call(np.zeros((2, 3, 2)), act)
    with pytest.raises(UserError, match="lies outside"):
        model.rollout(np.zeros((2, 2)), act)


def test_rounding_is_no_mistake():
    model = models.linear(low=-0.4, high=0.4)
    edge = model.predict(np.zeros(2), np.full(2, 0.4)).mean
    np.testing.assert_array_equal(model.predict(np.zeros(2), np.full(2, 0.4 + 1e-6)).mean, edge)


@pytest.mark.parametrize(
    ("obs", "act", "text"),
    [
        (np.zeros(3), np.zeros(2), r"observations have the shape \(3,\), expected \(\.\.\., 2\)"),
        (np.zeros(2), np.zeros(1), r"actions have the shape \(1,\), expected \(\.\.\., 2\)"),
        (np.zeros((3, 2)), np.zeros((4, 2)), "do not fit together"),
        (np.array([[0, 0], [0, np.nan]]), np.zeros(2), r"row 1: observation\[1\] is nan"),
        (0.0, np.zeros(2), "expected observations"),
    ],
)
def test_wrong_inputs_are_one_line(obs, act, text):
    with pytest.raises(UserError, match=text) as e:
        models.linear().predict(obs, act)
    assert "\n" not in str(e.value)


def test_a_step_to_nowhere_ends_and_is_never_worth_it():
    model = models.linear(reward=lambda obs, act, next_obs: torch.where(obs[..., 0] > 0, torch.nan, 1.0))
    obs = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    next_obs, reward, ended, u = model.model_step(obs, torch.zeros(2, 2))
    assert (reward.tolist(), ended.tolist()) == ([BROKEN, 1.0], [True, False])
    assert torch.equal(next_obs[0], obs[0])
    assert bool(u.isfinite().all())


# ---- rollouts


def over_one(obs, act, next_obs):
    return next_obs[..., 0] > 1.0


def test_a_rollout_without_draws_is_the_recursion():
    model = models.linear(low=-2.0, high=2.0)
    obs, act = torch.randn(3, 2), torch.rand(3, 6, 2) * 4 - 2
    r = model.rollout(obs, act, sample=False)
    state = obs
    for t in range(6):
        paid = torch.cat([state, act[:, t] / 2], 1) @ models.PAY
        state = state + state @ models.DRIFT.T + act[:, t] / 2 @ models.PUSH.T
        torch.testing.assert_close(r.obs[:, t + 1], state)
        torch.testing.assert_close(r.reward[:, t], paid)
    assert torch.equal(r.act, act)
    assert bool(r.alive.all())


def test_a_branch_stays_where_it_ended():
    model = models.linear(models.linear_net(noise=models.NOISE * 0), over_one, "mine")
    r = model.rollout(np.array([[0.9, 0.0], [-9.0, 0.0]]), np.ones((2, 5, 2)), sample=False)
    assert r.ended[0].tolist() == [True, False, False, False, False]
    assert r.alive[0].tolist() == [True, False, False, False, False]
    assert r.alive[1].all()
    assert (r.obs[0, 2:] == r.obs[0, 1]).all()
    assert (r.reward[0, 1:] == 0).all()
    assert (r.uncertainty[0, 1:] == 0).all()


def test_policies_act_on_what_they_see():
    class Theirs:
        def predict(self, obs):
            assert isinstance(obs, np.ndarray)
            return np.clip(-obs, -1, 1), None

    model, start = models.linear(), np.random.default_rng(0).normal(size=(2, 3, 2))
    ours = model.rollout(start, lambda obs: np.clip(-obs, -1, 1), 4, seed=5)
    theirs = model.rollout(start, Theirs(), 4, seed=5)
    np.testing.assert_array_equal(ours.obs, theirs.obs)
    np.testing.assert_allclose(ours.act, np.clip(-ours.obs[..., :-1, :], -1, 1))
    again = model.rollout(start, ours.act, seed=5)
    np.testing.assert_array_equal(again.obs, ours.obs)
    assert not np.array_equal(model.rollout(start, ours.act, seed=6).obs, ours.obs)
    assert model.rollout(start[0, 0], lambda obs: obs * 0, 4).obs.shape == (5, 2)


@pytest.mark.parametrize(
    ("act", "horizon"), [(np.zeros((4, 2)), 5), (np.zeros((4, 2)), 0), (lambda obs: obs, None)]
)
def test_a_horizon_is_needed_and_fits_the_actions(act, horizon):
    with pytest.raises(UserError, match="horizon"):
        models.linear().rollout(np.zeros(2), act, horizon)


def test_a_rollout_ends_where_trust_ends():
    model = models.linear()
    with pytest.raises(UserError, match="model fit"):
        model.rollout(np.zeros(2), np.zeros((4, 2)), "trusted")
    for depth, steps in ((3, 3), (0, 1), (9, 4)):
        model.trusted_depth = lambda depth=depth: depth
        assert model.rollout(np.zeros(2), np.zeros((4, 2)), "trusted").reward.shape == (steps,)
    assert model.rollout(np.zeros(2), lambda obs: obs * 0, "trusted").reward.shape == (9,)
    with pytest.raises(UserError, match="'far' is neither a number of steps nor 'trusted'"):
        model.rollout(np.zeros(2), np.zeros((4, 2)), "far")


# ---- folders


def test_a_folder_holds_everything(tmp_path):
    model = models.linear(
        models.linear_net(offsets=OFFSETS, elites=ELITES),
        hopper,
        "hopper",
        low=-2.0,
        high=0.5,
        env_id="Some-v0",
        rewards=RewardView(2.0, 1.0),
        time_limit=77,
        scale=torch.tensor([3.0, 4.0]),
    )
    model.save(tmp_path / "m")
    again = load_dynamics(tmp_path / "m")
    obs, act = np.random.default_rng(0).normal(size=(5, 2)), np.zeros((5, 2))
    for x, y in zip(
        vars(model.predict(obs, act)).values(), vars(again.predict(obs, act)).values(), strict=True
    ):
        np.testing.assert_array_equal(x, y)
    for name in ("low", "high", "starts", "scale"):
        assert torch.equal(getattr(again.about, name), getattr(model.about, name))
    assert (again.about.time_limit, again.about.env_id, again.about.ends) == (77, "Some-v0", hopper)
    assert len(again.net.bootstrap) == 4  # members that do not predict are kept


def test_a_learned_rule_travels_with_the_folder(tmp_path):
    torch.manual_seed(1)
    obs, act = torch.randn(600, 2), torch.rand(600, 2)
    next_obs = obs + 0.1
    head = LearnedTermination.fit(obs, act, next_obs, (next_obs[:, 0] > 0.5).float(), steps=100)
    models.linear(None, head, "learned").save(tmp_path / "m")
    again = load_dynamics(tmp_path / "m")
    assert torch.equal(again.about.ends(obs, act, next_obs), head(obs, act, next_obs))


def test_code_that_a_folder_names_is_not_imported(tmp_path, monkeypatch):
    models.linear(None, over_one, "notthere:ends").save(tmp_path / "m")
    (tmp_path / "notthere.py").write_text("def ends(obs, act, next_obs):\n    return next_obs[..., 0] > 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="termination='notthere:ends'"):
        load_dynamics(tmp_path / "m")
    assert "notthere" not in sys.modules
    model = load_dynamics(tmp_path / "m", termination="notthere:ends")
    assert bool(model.step(np.full(2, 9.0), np.zeros(2)).ended)
    sys.modules.pop("notthere")
    assert load_dynamics(tmp_path / "m", termination=over_one).about.ends is over_one


def test_folders_of_earlier_versions_have_the_box_of_the_data(tmp_path):
    net = models.linear_net(seeds=(2,))
    net.save(tmp_path / "m", {"env_id": "Pendulum-v1", "termination": "none"})
    model = load_dynamics(tmp_path / "m", seed=1)
    assert (model.low.tolist(), model.about.bounded) == ([-1, -1], False)
    with pytest.raises(UserError, match=r"its folder names no box, so actions are in \[-1, 1\]"):
        model.predict(np.zeros(2), np.full(2, 2.0))
    model.save(tmp_path / "again")
    assert not load_dynamics(tmp_path / "again").about.bounded
    with pytest.raises(UserError, match="it holds seeds 0 to 1"):
        load_dynamics(tmp_path / "m", seed=2)
    with pytest.raises(UserError, match="it holds one model"):
        load_dynamics(tmp_path / "again", seed=1)
    net.save(tmp_path / "learned", {"termination": "learned"})
    with pytest.raises(UserError, match="termination=RULE"):
        load_dynamics(tmp_path / "learned")


def test_each_seed_of_a_run_is_its_own(tmp_path):
    net = models.linear_net(offsets=OFFSETS, seeds=(2,))
    with torch.no_grad():
        net.net.net.layers[0].bias[1] += 1
    net.save(tmp_path / "run" / "dynamics" / "offline", {"termination": "none"})
    means = [load_dynamics(tmp_path / "run", k).predict(np.zeros(2), np.zeros(2)).mean for k in range(2)]
    np.testing.assert_allclose(means[1] - means[0], 1, rtol=1e-5)


@pytest.mark.parametrize("damage", ["{", "[]", '{"low": [0, 0, 0], "high": [1, 1, 1]}'])
def test_a_damaged_folder_is_one_line(tmp_path, damage):
    models.linear().save(tmp_path / "m")
    (tmp_path / "m" / "task.json").write_text(damage)
    with pytest.raises(UserError, match=r"task\.json"):
        load_dynamics(tmp_path / "m")


STRANGER = """
import sys, time
begun = time.process_time()
import numpy as np
import mbo2o
dyn = mbo2o.load_dynamics(sys.argv[1])
mean = dyn.predict(np.zeros(11), np.zeros(3)).mean
plans = np.random.default_rng(0).uniform(-1, 1, (64, 10, 3))
best = plans[dyn.rollout(np.zeros(11), plans).reward.sum(-1).argmax()][0]
took = time.process_time() - begun
heavy = {"gymnasium", "mujoco", "hydra", "omegaconf", "matplotlib", "h5py", "minari"} & set(sys.modules)
print(took, *heavy)
"""


def test_a_stranger_loads_and_plans_within_two_seconds_and_without_a_simulator(tmp_path):
    """A network of the default size; its time is that of the processor."""

    GaussianDynamics(Spec(11, 3), DynamicsConfig()).save(
        tmp_path / "m", {"env_id": "Hopper-v5", "termination": "auto"}
    )
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(tmp_path / "m")], capture_output=True, text=True, check=True
    )
    took, *heavy = done.stdout.split()
    assert heavy == []
    assert float(took) < 2 * 2  # this machine's processor may be half as fast as a user's
    assert sum(x.stat().st_size for x in (tmp_path / "m").iterdir()) < 4_500_000


def test_the_door_is_the_same_function():
    assert mbo2o.load_dynamics is load_dynamics
    assert json.dumps(mbo2o.Dynamics.__name__) == '"Dynamics"'
