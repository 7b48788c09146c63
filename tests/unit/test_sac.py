"""SAC: its target sample by sample, who is touched by which step, isolation of seeds, and that it learns."""

import copy
import math
from functools import partial

import nets
import pytest
import torch
from nets import batch, changed, constant, snapshot, update
from torch import nn

from mbo2o.agents.base import make_agent
from mbo2o.agents.sac import SAC, SACConfig
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.registry import AGENTS
from mbo2o.types import Batch, Spec

SMALL = MLPConfig(hidden=[16])
make = partial(nets.make, "sac")


@pytest.mark.parametrize("seeds", [(), (2,)])
@pytest.mark.parametrize("entropy", [True, False])
def test_target_equals_a_loop_over_samples(seeds, entropy):
    agent = make(seeds, critics=3, gamma=0.9, init_alpha=0.3, backup_entropy=entropy)
    for p in agent.target.parameters():
        p.add_(0.1 * torch.randn_like(p))  # the target is not the critic
    b = batch(seeds)
    torch.manual_seed(5)
    y = agent.backup(b)[0]
    torch.manual_seed(5)
    next_act, log_prob = agent.actor.sample(b.next_obs)
    values = agent.target(b.next_obs, next_act)[..., 0]
    for k in [(i,) for i in range(2)] if seeds else [()]:
        for i in range(8):
            v = min(values[(*k, n, i)].item() for n in range(3))
            if entropy:
                v -= 0.3 * log_prob[(*k, i)].item()
            expected = b.rew[(*k, i)].item() + (0.0 if b.done[(*k, i)] else 0.9 * v)
            assert y[(*k, i)].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert not y.requires_grad


def test_truncation_bootstraps_and_termination_does_not():
    """A value of 10 in every state: r + γ·10 at a time limit (done = 0), r at the task's end (done = 1)."""
    agent = make(gamma=0.9, backup_entropy=False)
    constant(agent.target, torch.full((2, 1), 10.0))
    for done, tail in ((0, 9.0), (1, 0.0)):
        b = batch(done=done)
        torch.testing.assert_close(agent.backup(b)[0], b.rew + tail)


def test_target_actor_and_value_take_the_smallest_critic():
    agent = make((2,), critics=3, alpha_lr=0.0, critic_lr=0.0, init_alpha=0.5)
    low = torch.tensor([[[3.0], [1.0], [2.0]], [[-1.0], [0.0], [-2.0]]])
    constant(agent.critic, low)
    constant(agent.target, low)
    b = batch((2,))
    smallest = torch.tensor([[1.0], [-2.0]])
    assert torch.equal(agent.value(b.obs, b.act), smallest.expand(2, 8))
    assert torch.equal(agent.q(b.obs, b.act), low.expand(2, 3, 8))
    b.rew.zero_()
    agent.cfg.backup_entropy = False
    torch.testing.assert_close(agent.backup(b)[0], 0.99 * (1 - b.done) * smallest)
    m = update(agent, b)
    torch.testing.assert_close(m["actor_loss"], -0.5 * m["entropy"] - smallest[:, 0])
    torch.testing.assert_close(m["q"], low.mean((-2, -1)))


def test_critic_loss_equals_a_loop():
    agent, b = make((2,), critics=3), batch((2,))
    q = agent.q(b.obs, b.act).detach()
    torch.manual_seed(5)
    y = agent.backup(b)[0]
    torch.manual_seed(5)
    loss = update(agent, b)["critic_loss"]
    for s in range(2):
        expected = sum(sum((q[s, n, i] - y[s, i]).item() ** 2 for i in range(8)) / 8 for n in range(3))
        assert loss[s].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("learns", ["actor", "critic", "alpha"])
def test_each_step_touches_its_own_parameters_only(learns):
    rates = {f"{name}_lr": 1e-2 if name == learns else 0.0 for name in ("actor", "critic", "alpha")}
    agent = make((2,), **rates)
    before = {name: snapshot(getattr(agent, name)) for name in ("actor", "critic", "target")}
    log_alpha = agent.log_alpha.clone()
    update(agent, batch((2,)))
    assert changed(agent.actor, before["actor"]) == (learns == "actor")
    assert changed(agent.critic, before["critic"]) == (learns == "critic")
    assert changed(agent.target, before["target"]) == (learns == "critic")  # it follows the critic
    assert bool((agent.log_alpha != log_alpha).all()) == (learns == "alpha")


def test_target_moves_by_polyak():
    agent = make(tau=0.2)
    old = snapshot(agent.target)
    update(agent, batch())
    for name, x in agent.target.state_dict().items():
        torch.testing.assert_close(x, 0.8 * old[name] + 0.2 * agent.critic.state_dict()[name])


def test_temperature_pulls_entropy_to_its_target():
    """A policy more random than the target lowers α, one less random raises it; each seed by itself."""
    agent = make((2,), act_dim=1, actor_lr=0.0, target_entropy=-0.5)
    log_std = torch.tensor([-0.2, -3.0])  # entropy near log 2 = 0.69, and near -1.6
    constant(agent.actor.net, torch.stack([torch.zeros(2), log_std], -1))
    m = update(agent, batch((2,), n=256, act_dim=1))
    assert m["entropy"][0] > 0.6
    assert m["entropy"][1] == pytest.approx(math.log(math.sqrt(2 * math.pi * math.e)) - 3.0, abs=0.1)
    assert agent.log_alpha[0] < 0 < agent.log_alpha[1]
    assert make(act_dim=3).target_entropy == -3


def test_entropy_sign_of_the_target():
    """Reward 0 everywhere and a nearly uniform policy: what the target adds is γαH, and H > 0 here."""
    agent = make(act_dim=1, gamma=0.9, init_alpha=0.5)
    constant(agent.actor.net, torch.tensor([0.0, -0.2]))
    constant(agent.target, torch.zeros(2, 1))
    b = batch(n=20_000, act_dim=1, done=0)
    b.rew.zero_()
    u = torch.linspace(-8, 8, 100_001, dtype=torch.float64) * math.exp(-0.2)
    log_normal = -0.5 * (u / math.exp(-0.2)).square() + 0.2 - 0.5 * math.log(2 * math.pi)
    log_density = log_normal - torch.log1p(-torch.tanh(u).square())
    entropy = -torch.trapezoid(log_normal.exp() * log_density, u).item()
    assert entropy > 0.5
    assert agent.backup(b)[0].mean().item() == pytest.approx(0.9 * 0.5 * entropy, abs=0.01)


def test_actor_is_paid_for_entropy():
    agent = make(act_dim=1, actor_lr=1e-2, critic_lr=0.0, alpha_lr=0.0)
    constant(agent.critic, torch.zeros(2, 1))
    nn.init.constant_(agent.actor.net.layers[-1].bias[0, 1:], -2.0)  # log σ
    b = batch(n=64, act_dim=1)
    entropies = [update(agent, b)["entropy"].item() for _ in range(100)]
    assert entropies[-1] > entropies[0] + 0.3


@pytest.mark.parametrize("backup_entropy", [True, False])
def test_soft_value_exceeds_the_hard_one(backup_entropy):
    """One state, reward 0 whatever is done, no end: the hard value is 0, the soft one the entropy still to
    come.
    """
    agent = make(
        act_dim=1,
        gamma=0.7,
        tau=0.1,
        init_alpha=0.5,
        actor_lr=3e-3,
        critic_lr=1e-2,
        alpha_lr=0.0,
        backup_entropy=backup_entropy,
    )
    for _ in range(300):
        b = batch(n=64, act_dim=1, done=0)
        q = update(agent, Batch(0 * b.obs, b.act, 0 * b.rew, 0 * b.obs, b.done))["q"].item()
    # uniform policy: H = log 2, so αH γ/(1-γ) = 0.81
    expected = 0.5 * math.log(2) * 0.7 / 0.3 if backup_entropy else 0.0
    assert q == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("seeds", [(), (3,)])
def test_state_is_complete(seeds, tmp_path):
    agent, batches = make(seeds), [batch(seeds) for _ in range(6)]
    for b in batches[:3]:
        update(agent, b)
    torch.save(agent.state_dict(), tmp_path / "agent.pt")
    rng = torch.get_rng_state()
    history = [update(agent, b) for b in batches[3:]]
    twin = make(seeds)
    update(twin, batches[0])
    twin.load_state_dict(torch.load(tmp_path / "agent.pt"))
    torch.set_rng_state(rng)
    for expected, b in zip(history, batches[3:], strict=True):
        again = update(twin, b)
        assert all(torch.equal(again[name], x) for name, x in expected.items())
    assert not changed(twin, snapshot(agent))


@pytest.mark.parametrize("poison", [math.nan, 1e6])
def test_seeds_do_not_touch(poison):
    clean, batches = make((3,)), [batch((3,)) for _ in range(5)]
    poisoned = copy.deepcopy(clean)
    for agent, bad in ((clean, None), (poisoned, poison)):
        torch.manual_seed(7)
        for b in batches:
            rew = b.rew.clone()
            if bad is not None:
                rew[0] = bad
            m = update(agent, Batch(b.obs, b.act, rew, b.next_obs, b.done))
    for (name, a), b in zip(clean.named_parameters(), poisoned.parameters(), strict=True):
        assert torch.equal(a[1:], b[1:]), name
    assert changed(clean.critic, snapshot(poisoned.critic))
    assert all(x[1:].isfinite().all() for x in m.values())


@pytest.mark.parametrize("seeds", [(), (2,)])
def test_shapes_of_metrics_and_actions(seeds):
    agent = make(seeds)
    metrics = update(agent, batch(seeds))
    assert all(x.shape == seeds and x.isfinite().all() and not x.requires_grad for x in metrics.values())
    obs = torch.randn(*seeds, 5, 3)
    for explore in (False, True):
        act = agent.act(obs, explore)
        assert act.shape == (*seeds, 5, 2)
        assert act.abs().max() <= 1
        assert not act.requires_grad
    assert torch.equal(agent.act(obs), agent.act(obs))
    assert not torch.equal(agent.act(obs, explore=True), agent.act(obs, explore=True))


def test_made_from_its_config():
    agent = make_agent(SACConfig(actor=SMALL, critic=SMALL, critics=5), Spec(3, 2, (2,)))
    assert isinstance(agent, SAC)
    assert agent.q(torch.randn(2, 4, 3), torch.randn(2, 4, 2)).shape == (2, 5, 4)
    with pytest.raises(TypeError, match="MLPConfig"):
        make_agent(MLPConfig(), Spec(3, 2))


def test_learns_a_bandit():
    """One step, reward -(a - ½)² in one seed and -(a + ½)² in the other."""
    agent = make(
        (2,), act_dim=1, actor_lr=3e-3, critic_lr=1e-2, alpha_lr=1e-2, init_alpha=0.1, target_entropy=-2.0
    )
    best = torch.tensor([[0.5], [-0.5]])
    for _ in range(500):
        b = batch((2,), n=64, act_dim=1, done=1)
        update(agent, Batch(0 * b.obs, b.act, -(b.act[..., 0] - best).square(), 0 * b.obs, b.done))
    found = agent.act(torch.zeros(2, 1, 3))[:, 0]
    assert (found - best).abs().max() < 0.1
    q = agent.value(torch.zeros(2, 3, 3), torch.tensor([[[-0.5], [0.0], [0.5]]]).expand(2, 3, 1))
    torch.testing.assert_close(q[0], torch.tensor([-1.0, -0.25, 0.0]), atol=0.1, rtol=0)


def test_a_cosine_takes_the_actor_to_rest_and_it_moves_again_online():
    agent = make(actor_decay_steps=4, actor_lr=1e-2)
    moved, learned = [], []
    for _ in range(6):
        before, critic = snapshot(agent.actor), snapshot(agent.critic)
        update(agent, batch())
        moved.append(changed(agent.actor, before))
        learned.append(changed(agent.critic, critic))
    assert moved == [True] * 4 + [False] * 2
    assert all(learned)  # of the others nothing decays
    agent.cfg = agent.cfg.unchanged()
    before = snapshot(agent.actor)
    update(agent, batch())
    assert changed(agent.actor, before)


@pytest.mark.parametrize("name", [n for n, e in AGENTS.items() if issubclass(e.config, SACConfig)])
def test_no_variant_takes_the_cosine_online(name):
    cfg = AGENTS[name].config(actor_decay_steps=9)
    assert cfg.unchanged().actor_decay_steps is None
    assert type(cfg.unchanged()) is type(cfg)
    assert cfg.after_switch().actor_decay_steps is None
