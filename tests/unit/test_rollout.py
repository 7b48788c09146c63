"""Imagined rollouts with models whose every step is known."""

import math

import pytest
import torch
from torch import Tensor

from mbo2o.data.buffer import ReplayBuffer
from mbo2o.dynamics.model import DynamicsConfig, GaussianDynamics
from mbo2o.dynamics.rollout import Branches, Rollouts, one_step_error, uncertainty
from mbo2o.dynamics.termination import non_finite, none
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.ensemble.uncertainty import PENALTIES, aleatoric_std
from mbo2o.types import Batch, Spec

B, D, A = 6, 2, 1


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Counter:
    """obs = (branch, step): each step adds one to the second entry; reward 10 · step + branch; both members
    agree.
    """

    def __init__(self, noise: float = 0.0):
        self.noise, self.calls = noise, []

    def predict(self, obs: Tensor, act: Tensor) -> tuple[Tensor, Tensor]:
        self.calls.append("predict")
        y = torch.stack(
            [torch.zeros_like(obs[..., 0]), torch.ones_like(obs[..., 0]), 10 * obs[..., 1] + obs[..., 0]], -1
        )
        mean = torch.stack([y, y], -3)
        return mean, torch.full_like(mean, 0.5)

    def draw(self, obs: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        y = mean[..., 0, :, :]
        return obs + y[..., :-1] + self.noise * torch.randn_like(obs), y[..., -1]

    def elite_weights(self) -> dict[str, Tensor]:
        return {}

    def step(self, obs: Tensor, act: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        self.calls.append("step")
        return self.draw(obs, *Counter.predict(Counter(), obs, act))


class Log:
    """A sink that keeps what was handed to it."""

    def __init__(self):
        self.batches, self.keeps = [], []

    def add(self, batch, truncated=None, keep=None):
        self.batches.append(batch.map(torch.clone))
        self.keeps.append(keep.clone())

    def kept(self, name: str, seed: tuple[int, ...] = ()) -> Tensor:
        """All kept rows of a field, step after step."""
        rows = [getattr(b, name)[seed][keep[seed]] for b, keep in zip(self.batches, self.keeps, strict=True)]
        return torch.cat(rows)


def starts(seeds=()) -> Tensor:
    obs = torch.stack([torch.arange(B, dtype=torch.float32), torch.zeros(B)], -1)
    return obs.expand(*seeds, B, D).clone()


def policy(obs: Tensor) -> Tensor:
    return torch.tanh(torch.randn_like(obs[..., :A]))


def ends_at(k: float):
    return lambda obs, act, next_obs: next_obs[..., 1] >= k


def constant_penalty(mean: Tensor, std: Tensor) -> Tensor:
    return torch.full_like(mean[..., 0, :, 0], 0.25)


def roll(model, into, horizon=4, seeds=(), **changes):
    rules = {"termination": none, "penalty": constant_penalty, "coef": 2.0, **changes}
    how = {"coef": rules.pop("coef"), "limit": rules.pop("limit", None), "ends": rules.pop("ends", None)}
    return Rollouts(model, policy, **rules).roll(starts(seeds), into, horizon=horizon, **how)


@pytest.mark.parametrize("seeds", [(), (2,)])
@pytest.mark.parametrize("coef", [0.0, 1.0])
def test_a_model_that_always_terminates_leaves_one_row_per_branch(seeds, coef):
    into = ReplayBuffer(Spec(D, A, seeds), 100)
    m = roll(
        Counter(),
        into,
        seeds=seeds,
        coef=coef,
        termination=lambda o, a, n: torch.ones_like(n[..., 0], dtype=torch.bool),
    )
    assert len(into) == B
    assert into.latest(B).done.eq(1).all()
    assert m["ended"].eq(1).all()


def test_rows_up_to_the_termination_and_the_flag_on_the_last():
    log = Log()
    m = roll(Counter(), log, horizon=7, termination=ends_at(3))
    step = log.kept("obs")[:, 1]
    assert torch.equal(step, torch.arange(3.0).repeat_interleave(B))
    assert torch.equal(log.kept("next_obs")[:, 1], step + 1)
    assert torch.equal(log.kept("obs")[:, 0], torch.arange(float(B)).repeat(3))
    assert torch.equal(log.kept("done"), (step == 2).float())
    assert m["ended"] == 1


def test_branches_end_independently():
    """Branch i terminates at step i + 1."""
    log = Log()
    m = roll(Counter(), log, horizon=3, termination=lambda o, a, n: n[..., 1] > n[..., 0])
    rows = sorted(map(tuple, log.kept("obs").tolist()))
    assert rows == [(float(i), float(t)) for i in range(B) for t in range(min(i + 1, 3))]
    assert m["ended"].item() == pytest.approx(3 / B)
    assert log.kept("done").sum() == 3


@pytest.mark.parametrize("horizon", [1, 5])
def test_horizon(horizon):
    log = Log()
    m = roll(Counter(), log, horizon=horizon)
    assert len(log.kept("rew")) == horizon * B
    assert log.kept("done").eq(0).all()  # the horizon is no termination
    assert m["ended"] == 0


def test_penalised_reward_and_metrics():
    log = Log()
    m = roll(Counter(), log, horizon=3, termination=ends_at(2), coef=2.0)
    obs = log.kept("obs")
    raw = 10 * obs[:, 1] + obs[:, 0]
    torch.testing.assert_close(log.kept("rew"), raw - 2 * 0.25)
    assert m["penalty"].item() == pytest.approx(0.25)
    assert m["reward"].item() == pytest.approx(raw.mean().item())
    assert m["penalty_share"].item() == pytest.approx(2 * 0.25 / raw.abs().mean().item())


def test_the_penalty_is_of_the_state_left_and_the_action_taken():
    log = Log()
    roll(
        Counter(), log, penalty=lambda mean, std: mean[..., 0, :, -1], coef=0.5
    )  # the predicted reward of (s, a)
    obs = log.kept("obs")
    torch.testing.assert_close(log.kept("rew"), 0.5 * (10 * obs[:, 1] + obs[:, 0]))


def test_metrics_are_means_over_what_was_kept():
    """Penalty 1 at step 0, 3 at step 1; odd branches end after step 0."""
    log = Log()
    m = roll(
        Counter(),
        log,
        horizon=2,
        termination=lambda o, a, n: (n[..., 0] % 2 == 1) & (n[..., 1] < 1.5),
        penalty=lambda mean, std: 1 + 2 * (mean[..., 0, :, -1] >= 10).float(),
    )
    assert m["penalty"].item() == pytest.approx((6 * 1 + 3 * 3) / 9)
    assert m["ended"].item() == pytest.approx(0.5)


def test_without_a_penalty_one_member_computes_each_row():
    model, log = Counter(), Log()
    m = roll(model, log, coef=0.0, penalty=None)
    assert set(model.calls) == {"step"}
    obs = log.kept("obs")
    torch.testing.assert_close(log.kept("rew"), 10 * obs[:, 1] + obs[:, 0])
    assert m["penalty"] == m["penalty_share"] == 0
    roll(model, Log(), coef=0.1)
    assert "predict" in model.calls


def test_a_given_reward_replaces_the_predicted_one():
    log = Log()
    m = roll(Counter(), log, reward=lambda obs, act, next_obs: next_obs[..., 1] + 100 * act[..., 0])
    expected = log.kept("next_obs")[:, 1] + 100 * log.kept("act")[:, 0]
    torch.testing.assert_close(log.kept("rew"), expected - 0.5)
    assert m["reward"].item() == pytest.approx(expected.mean().item(), rel=1e-5)


@pytest.mark.parametrize("broken", ["next_obs", "reward", "penalty"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_transitions_that_are_not_finite_are_left_out(broken, value):
    """Branch 2 breaks at step 1: its rows of steps 0 stay, nothing after does, and the metrics stay numbers."""  # noqa: E501

    class Breaking(Counter):
        def draw(self, obs, mean, std):
            next_obs, rew = super().draw(obs, mean, std)
            hit = (obs[..., 0] == 2) & (obs[..., 1] == 1)
            if broken == "next_obs":
                next_obs = next_obs.masked_fill(hit.unsqueeze(-1), value)
            if broken == "reward":
                rew = rew.masked_fill(hit, value)
            return next_obs, rew

    def penalty(mean, std):
        hit = mean[..., 0, :, -1] == 12  # 10 · step + branch
        return torch.where(hit & (broken == "penalty"), value, constant_penalty(mean, std))

    into, log = ReplayBuffer(Spec(D, A), 100), Log()
    for sink in (into, log):
        m = roll(
            Breaking(), sink, penalty=penalty, termination=non_finite
        )  # a rule that also ends where the model broke
    assert len(into) == 4 * B - 3
    rows = into.latest(100)
    assert all(getattr(rows, name).isfinite().all() for name in ("obs", "act", "rew", "next_obs", "done"))
    assert sorted(map(tuple, log.kept("obs").tolist())) == [
        (float(i), float(t)) for i in range(B) for t in range(1 if i == 2 else 4)
    ]
    assert log.kept("done").eq(0).all()
    assert all(x.isfinite().all() for x in m.values())
    assert m["ended"] == 0


def real_model(seeds=()) -> GaussianDynamics:
    cfg = DynamicsConfig(members=3, elites=2, net=MLPConfig(hidden=[8]))
    model = GaussianDynamics(Spec(D, A, seeds), cfg)
    model.elites.copy_(torch.tensor([2, 0]))
    return model


@pytest.mark.parametrize("coef", [0.0, 1.0])
def test_draws_do_not_depend_on_another_seeds_terminations(coef):
    model, logs = real_model((2,)), []
    for ends in (False, True):

        def termination(obs, act, next_obs, ends=ends):
            done = torch.zeros_like(next_obs[..., 0], dtype=torch.bool)
            done[0] = ends & (next_obs[0, :, 0] > next_obs[0, :, 0].median())
            return done

        torch.manual_seed(3)
        logs.append(Log())
        m = roll(
            model, logs[-1], seeds=(2,), coef=coef, termination=termination, penalty=PENALTIES["max_pairwise"]
        )
        after = torch.rand(3)
    assert (m["ended"] > 0).tolist() == [True, False]
    assert len(logs[1].kept("rew", (0,))) < len(logs[0].kept("rew", (0,))) == 4 * B
    for name in ("obs", "act", "rew", "next_obs", "done"):
        assert torch.equal(logs[0].kept(name, (1,)), logs[1].kept(name, (1,)))
    torch.manual_seed(3)
    roll(model, Log(), seeds=(2,), coef=coef, penalty=PENALTIES["max_pairwise"])
    assert torch.equal(torch.rand(3), after)


@pytest.mark.parametrize("seeds", [(), (2,)])
def test_branches_continue_where_they_were(seeds):
    log = Log()
    m = roll(real_model(seeds), log, seeds=seeds)
    assert all(x.shape == seeds for x in m.values())
    assert torch.equal(log.batches[0].obs, starts(seeds))
    for a, b in zip(log.batches, log.batches[1:], strict=False):
        assert torch.equal(b.obs, a.next_obs)
        assert not torch.equal(a.obs, b.obs)
    assert not log.batches[0].next_obs.requires_grad


@pytest.mark.parametrize("seeds", [(), (2,)])
def test_diagnostics_equal_loops(seeds):
    model = real_model(seeds)
    obs, next_obs = torch.randn(2, *seeds, 20, D)
    b = Batch(obs, torch.rand(*seeds, 20, A), torch.randn(*seeds, 20), next_obs, torch.zeros(*seeds, 20))
    mean, std = model.predict(b.obs, b.act)
    u = uncertainty(model, b)
    assert set(u) == {*PENALTIES, "aleatoric_std"}
    for name, f in {**PENALTIES, "aleatoric_std": aleatoric_std}.items():
        torch.testing.assert_close(u[name], f(mean, std).mean(-1))
    error = one_step_error(model, b)
    for k in [(s,) for s in range(2)] if seeds else [()]:
        total = 0.0
        for i in range(20):
            guess = (mean[(*k, 2, i)] + mean[(*k, 0, i)])[:D] / 2 + obs[(*k, i)]
            total += math.sqrt(sum((guess[j] - next_obs[(*k, i, j)]).item() ** 2 for j in range(D)) / D)
        assert error[k].item() == pytest.approx(total / 20, rel=1e-5)


def test_uncertainty_counts_the_rows_of_each_seed_that_were_imagined():
    """Branches of seed 0 end early, those of seed 1 never: neither decides which rows of the other count."""
    model = real_model((2,))

    def ends(obs, act, next_obs):
        over = next_obs[..., 0] > next_obs[..., 0].median()
        over[1] = False
        return over

    torch.manual_seed(1)
    roll(model, branches := Branches(), seeds=(2,), horizon=4, termination=ends, coef=0.0)
    torch.manual_seed(1)
    roll(model, log := Log(), seeds=(2,), horizon=4, termination=ends, coef=0.0)
    assert branches.keep.sum(-1).tolist() == [sum(k[s].sum() for k in log.keeps) for s in range(2)]
    assert branches.keep[1].all()
    assert B < branches.keep[0].sum() < 4 * B
    u = uncertainty(model, branches.rows, branches.keep)
    for s in range(2):
        obs, act = (torch.stack([log.kept(x, (s,))] * 2) for x in ("obs", "act"))
        mean, std = model.predict(obs, act)
        for name, f in {**PENALTIES, "aleatoric_std": aleatoric_std}.items():
            torch.testing.assert_close(u[name][s], f(mean, std).mean(-1)[s])
    none_left = uncertainty(model, branches.rows, branches.keep & torch.tensor([[False], [True]]))
    assert all(x[0].isnan() and x[1].isfinite() for x in none_left.values())


# ---------------------------------------------------------------------- branches that uncertainty ends


def growing(mean: Tensor, std: Tensor) -> Tensor:
    """u = 10 · step + branch: the first branch to pass a limit is the last one."""
    return mean[..., 0, :, -1]


@pytest.mark.parametrize("coef", [0.0, 2.0])
def test_a_branch_ends_with_the_first_row_above_the_limit_and_bootstraps_there(coef):
    log = Log()
    m = roll(Counter(), log, horizon=1000, penalty=growing, coef=coef, limit=torch.tensor(14.0))
    rows = sorted(map(tuple, log.kept("obs").tolist()))
    assert rows == [(float(i), float(t)) for i in range(B) for t in range(2 if i == 5 else 3)]
    assert log.kept("done").eq(0).all()  # the end is a truncation
    u = 10 * log.kept("obs")[:, 1] + log.kept("obs")[:, 0]
    torch.testing.assert_close(log.kept("rew"), u - coef * u)  # the reward is the same number
    assert len(log.batches) == 3  # no step is made after the last branch's end
    assert m["truncated"] == 1
    assert m["ended"] == 0
    assert m["length"].item() == pytest.approx((5 * 3 + 2) / B)
    torch.testing.assert_close(m["penalty"], u.mean())


def test_a_termination_above_the_limit_is_a_termination():
    log = Log()
    m = roll(Counter(), log, penalty=growing, termination=ends_at(1), limit=torch.tensor(-1.0))
    assert log.kept("done").eq(1).all()
    assert (m["ended"], m["truncated"], m["length"]) == (1, 0, 1)


def test_each_seed_has_its_limit():
    log = Log()
    m = roll(Counter(), log, seeds=(2,), horizon=5, penalty=growing, limit=torch.tensor([9.0, 99.0]))
    assert [len(log.kept("rew", (s,))) for s in range(2)] == [2 * B, 5 * B]
    assert m["truncated"].tolist() == [1, 0]
    assert m["length"].tolist() == [2, 5]


def test_how_long_branches_are_does_not_move_the_global_stream():
    after = []
    for limit in (9.0, 99.0):
        torch.manual_seed(3)
        roll(Counter(), Log(), penalty=growing, limit=torch.tensor(limit))
        after.append(torch.rand(3))
    assert torch.equal(*after)


def test_a_coefficient_may_belong_to_a_seed():
    log = Log()
    m = roll(Counter(), log, seeds=(2,), horizon=2, coef=torch.tensor([0.0, 2.0]))
    raw = 10 * log.kept("obs", (0,))[:, 1] + log.kept("obs", (0,))[:, 0]
    torch.testing.assert_close(log.kept("rew", (0,)), raw)
    torch.testing.assert_close(log.kept("rew", (1,)), raw - 2 * 0.25)
    assert m["penalty_share"][0] == 0 < m["penalty_share"][1]


def test_the_ends_of_a_rollout_are_the_branches_that_the_horizon_alone_has_ended():
    ends = Log()
    roll(Counter(), Log(), horizon=2, ends=ends, termination=lambda o, a, n: n[..., 0] == 1)
    assert len(ends.batches) == 1
    assert sorted(ends.kept("next_obs")[:, 0].tolist()) == [0, 2, 3, 4, 5]
    assert ends.kept("next_obs")[:, 1].eq(2).all()
    cut = Log()
    roll(Counter(), Log(), horizon=2, ends=cut, penalty=growing, limit=torch.tensor(12.5))
    assert sorted(cut.kept("next_obs")[:, 0].tolist()) == [0, 1, 2]
