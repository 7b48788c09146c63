"""AWAC: target, advantage and weights sample by sample, who learns from whom, isolation of seeds, and that
it learns.
"""

import copy
import math

import nets
import pytest
import torch
from nets import batch, changed, constant, rows, shake, snapshot, update
from torch import nn
from torch.distributions import Normal

from mbo2o.ensemble.explore import EXPLORATIONS, ExploreConfig
from mbo2o.ensemble.targets import REDUCTIONS
from mbo2o.types import Batch, UserError


def make(*args, **change):
    """An agent whose target differs from its critic."""
    agent = nets.make("awac", *args, **change)
    shake(agent.target)
    return agent


@pytest.mark.parametrize("seeds", [(), (2,)])
def test_target_equals_a_loop_over_samples(seeds):
    agent, b = make(seeds, critics=3, gamma=0.9), batch(seeds)
    torch.manual_seed(5)
    y, next_q = agent.backup(b)
    torch.manual_seed(5)
    mean, std = agent.proposal(b.next_obs)
    values = agent.target(b.next_obs, (mean + std * torch.randn_like(mean)).clamp(-1, 1))[..., 0]
    for *k, i in rows(seeds):
        v = min(values[(*k, n, i)].item() for n in range(3))
        expected = b.rew[(*k, i)].item() + (0.0 if b.done[(*k, i)] else 0.9 * v)
        assert y[(*k, i)].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    torch.testing.assert_close(next_q, values)
    assert not y.requires_grad


def test_truncation_bootstraps_and_termination_does_not():
    """A value of 10 in every state: r + γ·10 at a time limit (done = 0), r at the task's end (done = 1)."""
    agent = make(gamma=0.9)
    constant(agent.target, torch.full((2, 1), 10.0))
    for done, tail in ((0, 9.0), (1, 0.0)):
        b = batch(done=done)
        torch.testing.assert_close(agent.backup(b)[0], b.rew + tail)


@pytest.mark.parametrize("seeds", [(), (2,)])
def test_advantage_equals_a_loop_over_samples(seeds):
    agent, b = make(seeds, critics=3), batch(seeds)
    torch.manual_seed(5)
    advantage = agent.advantage(b)
    torch.manual_seed(5)
    own = agent.sample(b.obs)
    q, q_own = agent.q(b.obs, b.act), agent.q(b.obs, own)
    for *k, i in rows(seeds):
        expected = min(q[(*k, n, i)].item() for n in range(3)) - min(
            q_own[(*k, n, i)].item() for n in range(3)
        )
        assert advantage[(*k, i)].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert not advantage.requires_grad
    assert own.abs().max() <= 1


@pytest.mark.parametrize("seeds", [(), (2,)])
@pytest.mark.parametrize("weights", ["exp", "softmax"])
def test_weights_equal_a_loop_over_samples(seeds, weights):
    agent, advantage = make(seeds, lam=0.5, weights=weights, weight_clip=3.0), torch.randn(*seeds, 8)
    w = agent.weigh(advantage)
    for *k, i in rows(seeds):
        e = [math.exp(advantage[(*k, j)].item() / 0.5) for j in range(8)]
        expected = min(e[i], 3.0) if weights == "exp" else 8 * e[i] / sum(e)
        assert w[(*k, i)].item() == pytest.approx(expected, rel=1e-4)
    assert (w.max() == 3.0) == (weights == "exp")


def test_weights_of_large_advantages_stay_finite():
    advantage = torch.tensor([-1e6, 0.0, 1e6])
    assert make().weigh(advantage).tolist() == [0.0, 1.0, 100.0]
    assert make(weights="softmax").weigh(advantage).tolist() == [0.0, 0.0, 3.0]


@pytest.mark.parametrize("target", REDUCTIONS)
def test_both_actions_are_valued_by_the_same_critics(target):
    """Critics that differ by constants: whichever a draw asks, the advantage is 0."""
    agent = make((2,), critics=5, actor_reduction=target, granularity="batch")
    constant(agent.critic, torch.randn(2, 5, 1) * 10)
    torch.testing.assert_close(agent.advantage(batch((2,))), torch.zeros(2, 8))


@pytest.mark.parametrize("weights", ["exp", "softmax"])
def test_losses_equal_loops(weights):
    agent, b = make((2,), critics=3, critic_lr=0.0, weights=weights), batch((2,))
    nn.init.normal_(agent.actor.spread, -1.0, 0.1)
    q = agent.q(b.obs, b.act).detach()
    mean, std = (x.detach() for x in agent.proposal(b.obs))
    log_prob = Normal(mean, std).log_prob(b.act).sum(-1)
    torch.manual_seed(5)
    y = agent.backup(b)[0]
    w = agent.weigh(agent.advantage(b))
    torch.manual_seed(5)
    m = update(agent, b)
    for s in range(2):
        critic = sum(sum((q[s, n, i] - y[s, i]).item() ** 2 for i in range(8)) / 8 for n in range(3))
        assert m["critic_loss"][s].item() == pytest.approx(critic, rel=1e-5)
        actor = sum(-(w[s, i] * log_prob[s, i]).item() for i in range(8)) / 8
        assert m["actor_loss"][s].item() == pytest.approx(actor, rel=1e-4)


@pytest.mark.parametrize("learns", ["actor", "critic"])
def test_each_step_touches_its_own_parameters_only(learns):
    agent = make((2,), **{f"{name}_lr": 1e-2 if name == learns else 0.0 for name in ("actor", "critic")})
    before = {name: snapshot(getattr(agent, name)) for name in ("actor", "critic", "target")}
    update(agent, batch((2,)))
    for name in ("actor", "critic"):
        assert changed(getattr(agent, name), before[name]) == (name == learns)
    assert changed(agent.target, before["target"])  # it follows the critic, which differs from it


def test_target_moves_by_polyak():
    agent = make(tau=0.2)
    old = snapshot(agent.target)
    update(agent, batch())
    for name, x in agent.target.state_dict().items():
        torch.testing.assert_close(x, 0.8 * old[name] + 0.2 * agent.critic.state_dict()[name])


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
@pytest.mark.parametrize("weights", ["exp", "softmax"])
def test_seeds_do_not_touch(poison, weights):
    clean, batches = make((3,), weights=weights), [batch((3,)) for _ in range(5)]
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
@pytest.mark.parametrize("name", EXPLORATIONS)
def test_every_exploration_acts_in_the_box(seeds, name):
    agent = make(seeds, critics=3, explore=ExploreConfig(name=name))
    agent.on_episode(torch.ones(seeds, dtype=torch.bool), torch.zeros(seeds), torch.ones(seeds))
    obs = torch.randn(*seeds, 5, 3)
    act = agent.act(obs, explore=True)
    assert act.shape == (*seeds, 5, 2)
    assert act.abs().max() <= 1
    assert not act.requires_grad
    assert not torch.equal(act, agent.act(obs, explore=True))
    assert torch.equal(agent.act(obs), torch.tanh(agent.actor.net(obs)))


@pytest.mark.parametrize("target", REDUCTIONS)
@pytest.mark.parametrize("seeds", [(), (2,)])
def test_every_reduction_gives_metrics_per_seed(target, seeds):
    metrics = update(make(seeds, critics=3, target=target, actor_reduction=target, mask=0.5), batch(seeds))
    assert all(x.shape == seeds and x.isfinite().all() and not x.requires_grad for x in metrics.values())
    assert {"critic_loss", "q", "actor_loss"} <= metrics.keys()


def test_refuses_unknown_weights():
    with pytest.raises(UserError, match="exp, softmax"):
        make(weights="rank")


@pytest.mark.parametrize("weights", ["exp", "softmax"])
def test_picks_the_better_of_two_actions(weights):
    """Actions ±½ in equal parts, of which each seed pays 1 for another; the data's mean is 0."""
    agent = make((2,), act_dim=1, actor_lr=1e-2, critic_lr=1e-2, tau=0.1, lam=0.1, weights=weights)
    better = torch.tensor([[0.5], [-0.5]])
    for _ in range(300):
        b = batch((2,), n=32, act_dim=1, done=1)
        act = torch.where(torch.arange(32) % 2 == 0, 0.5, -0.5).expand(2, 32)
        update(agent, Batch(0 * b.obs, act.unsqueeze(-1), (act == better).float(), 0 * b.obs, b.done))
    torch.testing.assert_close(agent.act(torch.zeros(2, 1, 3))[:, 0], better, atol=0.1, rtol=0)
    q = agent.value(torch.zeros(2, 2, 3), torch.tensor([[[0.5], [-0.5]]]).expand(2, 2, 1))
    torch.testing.assert_close(q, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), atol=0.1, rtol=0)
