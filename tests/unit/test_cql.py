"""CQL: its term action by action, its multiplier, its backups, whom they teach, and what is left of it
online.
"""

import math
from dataclasses import fields
from functools import partial

import nets
import pytest
import torch
from nets import constant, update

from mbo2o.agents.calql import CalQLConfig
from mbo2o.agents.cql import CQLConfig
from mbo2o.agents.sac import SACConfig
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.types import Batch, UserError

SMALL = MLPConfig(hidden=[16])
TINY = {"actor": SMALL, "critic": SMALL}
batch = partial(nets.batch, n=4)
make = partial(nets.make, "cql")


def log_density(agent, obs, act) -> float:
    """log π(act | obs) by the change of variables, in float64; obs `(1, D)`, act `(A,)`, one seed."""
    mean, log_std = (x.detach().double()[0] for x in agent.actor(obs))
    u = torch.atanh(act.double())
    normal = torch.distributions.Normal(mean, log_std.exp()).log_prob(u)
    return float((normal - torch.log(1 - act.double().square())).sum())


def spied(agent):
    """Every (obs, act) that the critics are asked about from now on."""
    asked, q = [], agent.q
    agent.q = lambda obs, act: (asked.append((obs, act)), q(obs, act))[1]
    return asked


@pytest.mark.parametrize("ensemble", ["mean", "sum"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_term_equals_a_loop_over_samples_actions_and_critics(ensemble, temperature):
    agent = make(critics=3, samples=2, ensemble=ensemble, temperature=temperature, weight=4.0)
    b = batch()
    q_data = agent.q(b.obs, b.act)
    asked = spied(agent)
    term, metrics = agent.regulariser(b, q_data)
    ((_, act),) = asked
    act = act.detach().unflatten(0, (6, 4))  # round, sample
    assert act[:2].abs().max() <= 1
    gaps = torch.zeros(3, 4)
    for i in range(4):
        s, s_next = b.obs[i : i + 1], b.next_obs[i : i + 1]
        log_p = [-2 * math.log(2)] * 2
        log_p += [log_density(agent, s, act[k, i]) for k in (2, 3)]
        log_p += [log_density(agent, s_next, act[k, i]) for k in (4, 5)]
        for n in range(3):
            # every action is valued at s, those of s' too
            q = [agent.critic(s, act[k, i][None])[n, 0, 0].item() for k in range(6)]
            lse = math.log(sum(math.exp((x - p) / temperature) for x, p in zip(q, log_p, strict=True)))
            gaps[n, i] = temperature * lse - q_data[n, i].item()
    per_critic = gaps.mean(-1)
    expected = 4.0 * (per_critic.mean() if ensemble == "mean" else per_critic.sum())
    torch.testing.assert_close(term.detach(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(metrics["gap"], per_critic.mean(), rtol=1e-4, atol=1e-4)


def test_the_term_of_a_seed_does_not_depend_on_other_seeds():
    """A seed whose networks and data are another's has its term, whatever the other seeds do (with draws
    fixed).
    """
    agent, b = make((2,), critics=3, samples=4), batch((2,))
    noise = torch.rand(16, 2) * 2 - 1
    agent.actor.sample = lambda obs, n: (noise.expand(2, -1, -1), torch.zeros(2, 16))
    torch.manual_seed(1)
    expected = agent.regulariser(b, agent.q(b.obs, b.act))[0]
    for p in agent.critic.parameters():
        p.data[0] += 1
    torch.manual_seed(1)
    again = agent.regulariser(b, agent.q(b.obs, b.act))[0]
    assert again[0] != expected[0]
    assert again[1] == expected[1]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("log_p", [-3 * math.log(2), 0.0, math.inf])
def test_log_sum_exp_of_a_constant(log_p, temperature):
    """Q = v and K uniform actions alone: v + |A| log 2 + log K. The policy's, of density p, add 2K/p; at p =
    ∞ nothing.
    """
    agent = make(act_dim=3, samples=5, temperature=temperature)
    constant(agent.critic, torch.full((2, 1), 7.0))
    agent.actor.sample = lambda obs, n: (
        torch.zeros(obs.shape[0] * n, 3),
        torch.full((obs.shape[0] * n,), log_p),
    )
    lse, _ = agent.log_sum_exp(batch(act_dim=3))
    t = temperature
    expected = 7 + t * math.log(5 * 8 ** (1 / t) + 10 * math.exp(-log_p / t))
    if t == 1 and log_p == math.inf:
        assert expected == pytest.approx(7 + 3 * math.log(2) + math.log(5))
    torch.testing.assert_close(lse, torch.full((2, 4), expected))


def test_the_term_has_gradients_for_critics_only():
    agent, b = make((2,)), batch((2,))
    term = agent.regulariser(b, agent.q(b.obs, b.act))[0].sum()
    assert all(g is None for g in grads(term, [*agent.actor.parameters(), agent.log_alpha]))
    assert all(
        g.abs().max() > 0 for g in grads(term, agent.critic.parameters())[:-1]
    )  # the last bias shifts all alike


def grads(loss, parameters):
    return torch.autograd.grad(loss, list(parameters), retain_graph=True, allow_unused=True)


def test_next_actions_are_valued_at_the_current_state():
    """Under a policy that sees nothing, the term does not depend on where the step led."""
    agent, b = make(), batch()
    constant(agent.actor.net, torch.zeros(4))
    terms = []
    for next_obs in (b.next_obs, b.next_obs + 10):
        torch.manual_seed(3)
        terms.append(
            agent.regulariser(Batch(b.obs, b.act, b.rew, next_obs, b.done), agent.q(b.obs, b.act))[0]
        )
    assert torch.equal(*terms)


def test_pushes_values_down_where_there_are_no_data():
    agent = make(act_dim=1, critic_lr=1e-2, weight=1.0, samples=4)
    for _ in range(60):
        b = batch(n=32, act_dim=1, done=1)
        update(agent, Batch(b.obs, torch.full_like(b.act, 0.7), 0 * b.rew, b.next_obs, b.done))
    q = agent.value(torch.zeros(2, 3), torch.tensor([[0.7], [-0.7]]))
    assert q[0] > q[1] + 0.5


def test_the_gap_floor_applies_to_each_state():
    agent = make(samples=2, critics=2, gap_floor=-10.0, weight=2.0, ensemble="sum")
    b = batch()
    q = (
        torch.zeros(2, 4).index_fill(-1, torch.tensor([0, 2]), 100.0).requires_grad_()
    )  # two states far below the floor
    term, metrics = agent.regulariser(b, q)
    (g,) = torch.autograd.grad(term, q)
    assert torch.equal(g, torch.tensor([[0.0, -0.5, 0.0, -0.5]] * 2))
    torch.manual_seed(4)
    lse, _ = agent.log_sum_exp(b)
    torch.manual_seed(4)
    expected = (lse[:, [1, 3]].sum() + 4 * -10) / 4 / 2
    assert agent.regulariser(b, q)[1]["gap"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert metrics["gap"] > -10


# ---------------------------------------------------------------------- the multiplier


def test_multiplier_rises_above_the_gap_and_falls_below():
    agent, b = make((2,), gap=0.8, lagrange_lr=1e-2), batch((2,))
    far = torch.tensor([-50.0, 50.0])[:, None, None].expand(
        2, 2, 4
    )  # a wide gap in seed 0, in seed 1 one below 0.8
    term, metrics = agent.regulariser(b, far)
    torch.testing.assert_close(agent.log_lagrange.detach(), torch.tensor([1.01, 0.99]))  # starts at e
    torch.testing.assert_close(metrics["lagrange"], agent.log_lagrange.detach().exp())
    torch.testing.assert_close(term.detach(), metrics["lagrange"] * 5.0 * metrics["gap"])
    assert set(make().regulariser(batch(), torch.zeros(2, 4))[1]) == {"gap"}


def test_multiplier_is_capped_and_comes_back():
    agent = make(gap=0.8, init_lagrange=5e6, lagrange_lr=0.1)
    b, high = batch(), torch.full((2, 4), 50.0)
    capped = agent.regulariser(b, -high)[1]["lagrange"]
    assert capped.item() == pytest.approx(1e6, rel=1e-5)
    for _ in range(30):
        after = agent.regulariser(b, high)[1]["lagrange"]
    assert after < 0.5 * capped


def test_multiplier_learns_nothing_without_a_gap():
    agent = make()
    assert not any("lagrange" in name for name in agent.state_dict())


# ---------------------------------------------------------------------- backups


@pytest.mark.parametrize("backup", ["deterministic", "sampled", "max"])
@pytest.mark.parametrize("entropy", [True, False])
def test_backups_equal_a_loop(backup, entropy):
    few = {"backup_samples": 4} if backup == "max" else {}
    agent = make(critics=3, gamma=0.9, backup=backup, backup_entropy=entropy, init_alpha=0.3, **few)
    for p in agent.target.parameters():
        p.add_(0.3 * torch.randn_like(p))
    b = batch(n=8)
    rounds = {"deterministic": 1, "sampled": 1, "max": 4}[backup]
    torch.manual_seed(5)
    y, q = agent.backup(b)
    torch.manual_seed(5)
    act, _ = agent.actor.sample(b.next_obs, rounds)
    if backup == "deterministic":
        act = agent.actor.mode(b.next_obs)
    act = act.detach().unflatten(0, (rounds, 8))
    assert q.shape == (3, 8)
    assert not y.requires_grad
    for i in range(8):
        s = b.next_obs[i : i + 1]
        best, q_best = -math.inf, None
        for k in range(rounds):
            values = agent.target(s, act[k, i][None])[:, 0, 0]
            v = min(values.tolist())
            if entropy and backup != "deterministic":
                v -= 0.3 * log_density(agent, s, act[k, i])
            if v > best:
                best, q_best = v, values
        torch.testing.assert_close(q[:, i], q_best)  # the critics behind the action that was chosen
        expected = b.rew[i].item() + (0.0 if b.done[i] else 0.9 * best)
        assert y[i].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_max_backup_of_one_sample_is_the_sampled_one():
    agent, b = make(backup="max", backup_samples=1), batch()
    torch.manual_seed(2)
    y = agent.backup(b)
    agent.cfg.backup = "sampled"
    torch.manual_seed(2)
    assert all(torch.equal(x, z) for x, z in zip(y, agent.backup(b), strict=True))


@pytest.mark.parametrize("name", ["sac", "cql"])
def test_two_equal_arms_are_worth_more_with_entropy(name):
    """Both arms pay 1, and the policy starts at one: entropy spreads it over both, and makes the soft value
    the higher.
    """
    agent = nets.make(
        name,
        (2,),
        act_dim=1,
        actor_lr=1e-2,
        critic_lr=1e-2,
        alpha_lr=0.0,
        init_alpha=0.5,
        backup="sampled",
        backup_entropy=True,
    )
    constant(agent.actor.net, torch.tensor([[1.5, -0.5]] * 2))
    obs = torch.zeros(2, 64, 3)
    arm = lambda: agent.actor.sample(obs, 10)[0].sign().mean()  # noqa: E731
    before = arm()
    for _ in range(80):
        b = batch((2,), n=64, act_dim=1, done=1)
        metrics = update(agent, Batch(obs, b.act, torch.ones_like(b.rew), obs, b.done))
    assert before > 0.9
    assert arm().abs() < 0.4
    assert (metrics["entropy"] > 0.4).all()  # log 2 = 0.69 is the most
    torch.manual_seed(1)
    soft, _ = agent.next_value(obs)
    agent.cfg.backup_entropy = False
    torch.manual_seed(1)
    hard, _ = agent.next_value(obs)
    assert ((soft - hard).mean(-1) > 0.2).all()


# ---------------------------------------------------------------------- cloning first


def test_actor_clones_first_and_improves_then():
    """The critics prefer a = 1 by far, the data hold -0.5: for `clone_steps` the actor goes to -0.5, then to
    1.
    """
    agent = make((2,), act_dim=1, actor_lr=1e-2, clone_steps=150, weight=0.0, init_alpha=0.01, alpha_lr=0.0)
    agent.q = lambda obs, act: (
        20 * act.squeeze(-1).unsqueeze(-2).expand(2, 2, -1) + 0 * agent.critic(obs, act).squeeze(-1)
    )
    data = [batch((2,), n=32, act_dim=1, done=1) for _ in range(8)]
    data = [Batch(b.obs, torch.full_like(b.act, -0.5), b.rew, b.next_obs, b.done) for b in data]
    for t in range(150):
        update(agent, data[t % 8])
    cloned = agent.act(data[0].obs)
    for t in range(150):
        update(agent, data[t % 8])
    torch.testing.assert_close(cloned, torch.full_like(cloned, -0.5), atol=0.1, rtol=0)
    assert (agent.act(data[0].obs) > 0.8).all()


def test_samples_that_have_no_effect_are_refused_and_do_not_cross_the_switch():
    with pytest.raises(UserError, match="backup_samples=4 has an effect under backup=max only"):
        make(backup="sampled", backup_samples=4)
    assert make(backup="max", backup_samples=4).cfg.after_switch() == make(backup="max").cfg.after_switch()


def test_cloning_is_over_at_the_switch():
    assert CalQLConfig(clone_steps=10).after_switch().clone_steps == 0


# ---------------------------------------------------------------------- its config


def test_online_is_sac_with_the_rest_kept():
    cfg = CQLConfig(critics=5, gamma=0.9, target="weighted_min_pair", init_alpha=0.2, policy_delay=3)
    online = cfg.after_switch()
    assert type(online) is SACConfig
    assert (online.backup, online.backup_entropy) == ("sampled", True)
    kept = {f.name for f in fields(SACConfig)} - {"backup", "backup_entropy"}
    assert all(getattr(online, name) == getattr(cfg, name) for name in kept)
    assert online.actor_lr == CQLConfig().actor_lr != SACConfig().actor_lr


@pytest.mark.parametrize(
    ("setting", "value"), [("ensemble", "median"), ("backup", "best"), ("target", "minq")]
)
def test_unknown_settings_are_refused(setting, value):
    with pytest.raises(UserError, match=value):
        make(**{setting: value})
