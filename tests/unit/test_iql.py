"""IQL: each loss sample by sample, which critics V hears, the schedule's end, isolation of seeds, and what
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

from mbo2o.agents.base import make_agent
from mbo2o.agents.iql import expectile_loss
from mbo2o.ensemble.explore import EXPLORATIONS, ExploreConfig
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.ensemble.targets import REDUCTIONS, SunriseConfig
from mbo2o.nn.optim import cosine
from mbo2o.types import Batch

NETWORKS = ("actor", "critic", "value_net")


def make(*args, **change):
    """An agent whose target differs from its critic."""
    agent = nets.make("iql", *args, **change)
    shake(agent.target)
    return agent


@pytest.mark.parametrize("kappa", [0.1, 0.5, 0.9])
def test_expectile_loss_equals_a_loop(kappa):
    x = torch.cat([torch.randn(20), torch.zeros(1)])
    loss = expectile_loss(x, kappa)
    for xi, li in zip(x.tolist(), loss.tolist(), strict=True):
        assert li == pytest.approx((kappa if xi > 0 else 1 - kappa) * xi * xi, rel=1e-5)
    if kappa == 0.5:
        assert torch.equal(loss.mean(), 0.5 * x.square().mean())


@pytest.mark.parametrize("seeds", [(), (2,)])
@pytest.mark.parametrize("deterministic", [False, True])
def test_losses_equal_loops_over_samples(seeds, deterministic):
    agent = make(
        seeds, critics=3, gamma=0.9, expectile=0.8, beta=5.0, weight_clip=2.0, deterministic=deterministic
    )
    nn.init.normal_(agent.actor.spread, -1.0, 0.1)
    b = batch(seeds)
    with torch.no_grad():
        v, next_v = agent.value_net(b.obs)[..., 0], agent.value_net(b.next_obs)[..., 0]
        q, target = agent.critic(b.obs, b.act)[..., 0], agent.target(b.obs, b.act)[..., 0]
        mean = torch.tanh(agent.actor.net(b.obs))
        log_prob = Normal(mean, agent.actor(b.obs)[1].exp()).log_prob(b.act).sum(-1)
    sums = {
        (*k, name): 0.0 for k in ([(0,), (1,)] if seeds else [()]) for name in ("v", "q", "actor", "weight")
    }
    clipped = 0
    for row in rows(seeds):
        *k, i = row
        best = min(target[(*k, n, i)].item() for n in range(3))
        advantage = best - v[row].item()
        sums[(*k, "v")] += (0.8 if advantage > 0 else 0.2) * advantage**2 / 8
        y = b.rew[row].item() + (0.0 if b.done[row] else 0.9 * next_v[row].item())
        sums[(*k, "q")] += sum((q[(*k, n, i)].item() - y) ** 2 / 8 for n in range(3))
        weight = min(math.exp(5 * advantage), 2.0)
        clipped += weight == 2.0
        cost = (
            sum((mean[row] - b.act[row]).tolist()[j] ** 2 for j in range(2))
            if deterministic
            else -log_prob[row].item()
        )
        sums[(*k, "actor")] += weight * cost / 8
        sums[(*k, "weight")] += weight / 8
    assert 0 < clipped < len(list(rows(seeds)))
    m = update(agent, b)
    names = {"v": "value_loss", "q": "critic_loss", "actor": "actor_loss", "weight": "weight"}
    for (*k, name), expected in sums.items():
        assert m[names[name]][tuple(k)].item() == pytest.approx(expected, rel=1e-4), name


def test_truncation_bootstraps_and_termination_does_not():
    """A value of 10 in every state: r + γ·10 at a time limit (done = 0), r at the task's end (done = 1)."""
    agent = make(gamma=0.9)
    constant(agent.value_net, torch.tensor([10.0]))
    for done, tail in ((0, 9.0), (1, 0.0)):
        b = batch(done=done)
        torch.testing.assert_close(agent.backup(b)[0], b.rew + tail)
    assert not agent.backup(b)[0].requires_grad


def test_v_learns_from_the_smallest_target_critic():
    agent = make(expectile=0.7, beta=1.0)
    constant(agent.critic, torch.tensor([[-50.0], [50.0]]))
    constant(agent.target, torch.tensor([[3.0], [2.0]]))
    constant(agent.value_net, torch.tensor([0.0]))
    m = update(agent, batch())
    assert m["value_loss"].item() == pytest.approx(0.7 * 2.0**2)
    assert m["weight"].item() == pytest.approx(math.exp(2.0))


def test_critics_bootstrap_from_v_before_its_step():
    agent, b = make(value_lr=1.0), batch(done=0)
    y, q = agent.backup(b)[0], agent.q(b.obs, b.act).detach()
    loss = update(agent, b)["critic_loss"]
    torch.testing.assert_close(loss, (q - y.unsqueeze(-2)).square().mean(-1).sum(-1))
    assert not torch.allclose(agent.backup(b)[0], y)


@pytest.mark.parametrize("learns", NETWORKS)
def test_each_step_touches_its_own_parameters_only(learns):
    rates = {f"{name}_lr": 1e-2 if name == learns else 0.0 for name in ("actor", "critic")}
    agent = make((2,), **rates, value_lr=1e-2 if learns == "value_net" else 0.0, tau=0.0)
    before = {name: snapshot(getattr(agent, name)) for name in (*NETWORKS, "target")}
    update(agent, batch((2,)))
    for name, old in before.items():
        assert changed(getattr(agent, name), old) == (name == learns)


def test_target_moves_by_polyak():
    agent = make(tau=0.2)
    old = snapshot(agent.target)
    update(agent, batch())
    for name, x in agent.target.state_dict().items():
        torch.testing.assert_close(x, 0.8 * old[name] + 0.2 * agent.critic.state_dict()[name])


def test_sunrise_weighs_by_the_target_critics_of_the_data():
    agent = make(critics=2, critic_lr=0.0, sunrise=SunriseConfig(weight="per_sample", temperature=1.0))
    constant(agent.target, torch.tensor([[1.0], [5.0]]))  # population std 2
    b = batch()
    q, y = agent.q(b.obs, b.act).detach(), agent.backup(b)[0]
    expected = (1 / (1 + math.exp(2.0)) + 0.5) * (q - y.unsqueeze(-2)).square().mean(-1).sum(-1)
    torch.testing.assert_close(update(agent, b)["critic_loss"], expected)


def test_log_prob_is_the_normal_distribution_s():
    agent, b = make((2,)), batch((2,))
    nn.init.normal_(agent.actor.spread, -1.0, 0.3)
    mean, std = agent.proposal(b.obs)
    torch.testing.assert_close(agent.actor.log_prob(b.obs, b.act), Normal(mean, std).log_prob(b.act).sum(-1))
    assert mean.abs().max() < 1


def test_schedule_of_the_actor_s_rate():
    values = [cosine(torch.tensor(k), 100).item() for k in (0, 50, 100, 101, 150, 200, 10**6)]
    assert values == pytest.approx([1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert values[2:] == [0.0] * 5
    every = [cosine(torch.tensor(k), 100).item() for k in range(300)]
    assert every == sorted(every, reverse=True)  # never up again


def schedules(optim):
    """A list that each of its steps adds its share of the rate to."""
    step, seen = optim.step, []

    def spy(loss, share=None):
        seen.append(1.0 if share is None else share.item())
        step(loss, share)

    optim.step = spy
    return seen


def test_actor_stops_at_the_schedule_s_end_and_moves_again_online():
    agent = make(actor_decay_steps=4, actor_lr=1e-2)
    rates, moved = schedules(agent.actor_optim), []
    for _ in range(10):
        before = snapshot(agent.actor)
        update(agent, batch())
        moved.append(changed(agent.actor, before))
    assert rates == pytest.approx([1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), *[0] * 6])
    assert moved == [True] * 4 + [False] * 6
    cfg = agent.cfg.after_switch()
    assert agent.cfg.actor_decay_steps == 4
    assert cfg.actor_decay_steps is None
    online = make_agent(cfg, agent.spec)
    table = {x.part: x.what for x in online.adopt(agent)}
    assert table.pop("actor_decay_steps") == "changed"
    assert set(table.values()) == {"kept"}
    assert all(torch.equal(x, agent.state_dict()[k]) for k, x in online.state_dict().items() if "." in k)
    rates = schedules(online.actor_optim)
    for _ in range(3):
        before = snapshot(online.actor)
        update(online, batch())
        assert changed(online.actor, before)
    assert rates == [1.0] * 3
    assert online.actor_optim.lr == 1e-2


@pytest.mark.parametrize("seeds", [(), (3,)])
def test_state_is_complete(seeds, tmp_path):
    agent, batches = make(seeds, actor_decay_steps=6), [batch(seeds) for _ in range(6)]
    for b in batches[:3]:
        update(agent, b)
    torch.save(agent.state_dict(), tmp_path / "agent.pt")
    history = [update(agent, b) for b in batches[3:]]
    twin = make(seeds, actor_decay_steps=6)
    update(twin, batches[0])
    twin.load_state_dict(torch.load(tmp_path / "agent.pt"))
    for expected, b in zip(history, batches[3:], strict=True):
        again = update(twin, b)
        assert all(torch.equal(again[name], x) for name, x in expected.items())
    assert not changed(twin, snapshot(agent))


@pytest.mark.parametrize("poison", [math.nan, 1e6])
def test_seeds_do_not_touch(poison):
    clean, batches = make((3,)), [batch((3,)) for _ in range(5)]
    poisoned = copy.deepcopy(clean)
    for agent, bad in ((clean, None), (poisoned, poison)):
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
@pytest.mark.parametrize("deterministic", [False, True])
def test_every_exploration_acts_in_the_box(seeds, name, deterministic):
    agent = make(seeds, critics=3, explore=ExploreConfig(name=name), deterministic=deterministic)
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
    assert {"critic_loss", "q", "value_loss", "v", "actor_loss"} <= metrics.keys()


def test_a_deterministic_actor_explores_by_its_noise():
    agent = make(deterministic=True, noise=0.03, act_dim=1)
    nn.init.zeros_(agent.actor.net.layers[-1].weight)
    obs = torch.zeros(20_000, 3)
    off = agent.act(obs, explore=True) - agent.act(obs)
    assert off.std().item() == pytest.approx(0.03, rel=0.05)
    spread = agent.actor.spread.clone()
    update(agent, batch(act_dim=1))
    assert torch.equal(agent.actor.spread, spread)


def test_the_actors_dropout_acts_in_training_only():
    agent = make(actor=MLPConfig(hidden=[16], dropout=0.5))
    update(agent, batch())
    obs = torch.randn(5, 3)
    assert not torch.equal(agent.act(obs), agent.act(obs))
    agent.eval()
    assert torch.equal(agent.act(obs), agent.act(obs))


@pytest.mark.parametrize("deterministic", [False, True])
def test_picks_the_better_of_two_actions(deterministic):
    """Actions ±½ in equal parts, of which each seed pays 1 for another: V is the κ-expectile κ, the actor
    leaves the mean 0.
    """
    rates = {"actor_lr": 1e-2, "critic_lr": 1e-2, "value_lr": 1e-2, "tau": 0.1}
    agent = make((2,), act_dim=1, expectile=0.7, beta=10.0, deterministic=deterministic, **rates)
    better = torch.tensor([[0.5], [-0.5]])
    for _ in range(400):
        b = batch((2,), n=32, act_dim=1, done=1)
        act = torch.where(torch.arange(32) % 2 == 0, 0.5, -0.5).expand(2, 32)
        m = update(agent, Batch(0 * b.obs, act.unsqueeze(-1), (act == better).float(), 0 * b.obs, b.done))
    torch.testing.assert_close(agent.act(torch.zeros(2, 1, 3))[:, 0], better, atol=0.1, rtol=0)
    torch.testing.assert_close(m["v"], torch.full((2,), 0.7), atol=0.05, rtol=0)
    q = agent.value(torch.zeros(2, 2, 3), torch.tensor([[[0.5], [-0.5]]]).expand(2, 2, 1))
    torch.testing.assert_close(q, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), atol=0.1, rtol=0)
