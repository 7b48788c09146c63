"""TD3+BC: target and actor loss sample by sample, what a delayed step moves, the imitation's schedule, and
what it learns.
"""

import copy
import math
from functools import partial

import nets
import pytest
import torch
from nets import batch, changed, constant, nth, shake, snapshot, update
from torch import nn

from mbo2o.agents.base import make_agent
from mbo2o.agents.td3bc import TD3BC, TD3BCConfig
from mbo2o.ensemble.explore import EXPLORATIONS, ExploreConfig
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.ensemble.targets import REDUCTIONS, SunriseConfig, reduction
from mbo2o.types import Batch, Spec, UserError

SMALL = MLPConfig(hidden=[16])
PARTS = ("actor", "actor_target", "critic", "target")
make = partial(nets.make, "td3bc")


@pytest.mark.parametrize("seeds", [(), (2,)])
def test_target_equals_a_loop_over_samples(seeds):
    agent, b = make(seeds, critics=3, gamma=0.9, target_noise=0.4), batch(seeds)
    shake(agent.target, agent.actor_target)
    torch.manual_seed(5)
    y = agent.backup(b)[0]
    torch.manual_seed(5)
    noise = torch.randn(*seeds, 8, 2) * 0.4
    assert noise.abs().max() > 0.5  # so that its clip is seen
    mean = torch.tanh(agent.actor_target(b.next_obs))
    for k in [(i,) for i in range(2)] if seeds else [()]:
        for i in range(8):
            act = []
            for j in range(2):
                e = min(max(noise[(*k, i, j)].item(), -0.5), 0.5)
                act.append(min(max(mean[(*k, i, j)].item() + e, -1.0), 1.0))
            act = torch.tensor(act).expand(*seeds, 1, 2)
            at = b.next_obs[(*k, i)].expand(*seeds, 1, 3)
            v = min(agent.target(at, act)[(*k, n, 0, 0)].item() for n in range(3))
            expected = b.rew[(*k, i)].item() + (0.0 if b.done[(*k, i)] else 0.9 * v)
            assert y[(*k, i)].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert not y.requires_grad


def test_smoothed_actions_stay_in_the_box():
    agent, seen = make(), []
    constant(agent.actor_target, torch.tensor([10.0, -10.0]))  # tanh at the corners
    agent.target.register_forward_hook(lambda net, args, out: seen.append(args[1]))
    agent.backup(batch(n=64))
    assert seen[0].abs().max() == 1
    assert seen[0].abs().min() >= 0.5


def test_truncation_bootstraps_and_termination_does_not():
    """A value of 10 in every state: r + γ·10 at a time limit (done = 0), r at the task's end (done = 1)."""
    agent = make(gamma=0.9)
    constant(agent.target, torch.full((2, 1), 10.0))
    for done, tail in ((0, 9.0), (1, 0.0)):
        b = batch(done=done)
        torch.testing.assert_close(agent.backup(b)[0], b.rew + tail)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_target_is_reduced_as_the_config_says(name):
    agent, b = make((2,), critics=4, target=name), batch((2,), done=0)
    values = torch.tensor([[3.0, 1.0, 2.0, 7.0], [-1.0, 0.0, -2.0, 5.0]])
    constant(agent.target, values.unsqueeze(-1))
    torch.manual_seed(5)
    y = agent.backup(b)[0]
    torch.manual_seed(5)
    torch.randn_like(b.act)
    v = reduction(name)(values.unsqueeze(-1).expand(2, 4, 8))
    torch.testing.assert_close(y, b.rew + 0.99 * v)


def test_critic_loss_equals_a_loop():
    agent, raw = make((2,), critics=3), batch((2,))
    agent.prepare(Batch(3 * raw.obs[0] + 1, raw.act[0], raw.rew[0], raw.next_obs[0], raw.done[0]))
    b = Batch(agent.observe(raw.obs), raw.act, raw.rew, agent.observe(raw.next_obs), raw.done)
    q = agent.q(b.obs, b.act).detach()
    torch.manual_seed(5)
    y = agent.backup(b)[0]
    torch.manual_seed(5)
    loss = update(agent, raw)["critic_loss"]
    for s in range(2):
        expected = sum(sum((q[s, n, i] - y[s, i]).item() ** 2 for i in range(8)) / 8 for n in range(3))
        assert loss[s].item() == pytest.approx(expected, rel=1e-5)


def test_actor_loss_equals_a_loop():
    """-λ mean Q₁ + b mean (π - a)², λ = α / mean|Q₁| of the same seed; means over all there is (d3rlpy sums
    actions).
    """
    agent, b = (
        make((2,), act_dim=3, critic_lr=0.0, policy_delay=1, alpha=2.0, bc_weight=0.7),
        batch((2,), act_dim=3),
    )
    b.obs[0] *= 10  # values of two magnitudes
    act = agent.mode(b.obs).detach()
    q = agent.q(b.obs, act)[:, 0].detach()
    m = update(agent, b)
    for s in range(2):
        scale = 2.0 / (sum(abs(q[s, i].item()) for i in range(8)) / 8)
        bc = sum((act[s, i, j] - b.act[s, i, j]).item() ** 2 for i in range(8) for j in range(3)) / 24
        assert m["lambda"][s].item() == pytest.approx(scale, rel=1e-5)
        assert m["imitation"][s].item() == pytest.approx(bc, rel=1e-5)
        expected = -scale * sum(q[s, i].item() for i in range(8)) / 8 + 0.7 * bc
        assert m["actor_loss"][s].item() == pytest.approx(expected, rel=1e-4)
    assert m["lambda"][0] != pytest.approx(m["lambda"][1].item(), rel=0.1)


def test_scale_is_a_constant_to_the_gradient():
    """Were λ differentiated, a positive Q over its own mean would be 1 and have no slope."""
    agent = make(bc_weight=0.0, critic_lr=0.0, policy_delay=1, actor_lr=1e-2)
    nn.init.constant_(agent.critic.layers[-1].bias, 50.0)
    b = batch()
    before = agent.value(b.obs, agent.mode(b.obs)).mean()
    for _ in range(20):
        update(agent, b)
    assert agent.value(b.obs, agent.mode(b.obs)).mean() > before + 0.05


def test_a_critic_that_is_zero_everywhere_gives_finite_losses():
    agent = make(policy_delay=1, critic_lr=0.0)
    constant(agent.critic, torch.zeros(2, 1))
    m = update(agent, batch())
    assert all(x.isfinite().all() for x in m.values())
    assert all(p.isfinite().all() for p in agent.actor.parameters())


@pytest.mark.parametrize("reduction", ["first_q", "min_q", "mean_q"])
def test_the_actor_climbs_the_reduction_of_the_config(reduction):
    agent, b = make(critics=3, actor_reduction=reduction), batch()
    constant(agent.critic, torch.tensor([[2.0], [1.0], [6.0]]))
    expected = {"first_q": 2.0, "min_q": 1.0, "mean_q": 3.0}[reduction]
    torch.testing.assert_close(agent.value(b.obs, b.act), torch.full((8,), expected))


def test_actor_and_targets_move_every_second_update_only():
    agent = make((2,))
    for i in range(1, 5):
        before = {name: snapshot(getattr(agent, name)) for name in PARTS}
        metrics = update(agent, batch((2,)))
        assert changed(agent.critic, before["critic"])
        for name in ("actor", "actor_target", "target"):
            assert changed(getattr(agent, name), before[name]) == (i % 2 == 0), (i, name)
        assert ("actor_loss" in metrics) == (i % 2 == 0)


def test_targets_move_by_polyak():
    agent = make(tau=0.2, policy_delay=1)
    shake(agent.actor_target, agent.target)
    old = {name: snapshot(getattr(agent, name)) for name in PARTS}
    update(agent, batch())
    for target, source in (("target", "critic"), ("actor_target", "actor")):
        now = getattr(agent, source).state_dict()
        for name, x in getattr(agent, target).state_dict().items():
            torch.testing.assert_close(x, 0.8 * old[target][name] + 0.2 * now[name])


@pytest.mark.parametrize("learns", ["actor", "critic"])
def test_each_step_touches_its_own_parameters_only(learns):
    agent = make(
        (2,),
        policy_delay=1,
        **{f"{name}_lr": 1e-2 if name == learns else 0.0 for name in ("actor", "critic")},
    )
    before = {name: snapshot(getattr(agent, name)) for name in PARTS}
    update(agent, batch((2,)))
    for name, follows in (
        ("actor", "actor"),
        ("actor_target", "actor"),
        ("critic", "critic"),
        ("target", "critic"),
    ):
        assert changed(getattr(agent, name), before[name]) == (follows == learns)


def test_imitation_fades_and_stays_at_its_end():
    """Linear in this agent's updates; ENOTO's code goes on below zero, which would push the actor away from
    the data.
    """
    agent, b = (
        make(bc_weight=0.3, bc_final=0.0, bc_decay_steps=4, actor_lr=0.0, critic_lr=0.0, policy_delay=1),
        batch(),
    )
    weights = []
    for _ in range(6):
        m = update(agent, b)
        weights.append(
            (
                (m["actor_loss"] + m["lambda"] * agent.value(b.obs, agent.mode(b.obs)).mean())
                / m["imitation"]
            ).item()
        )
    assert weights == pytest.approx([0.225, 0.15, 0.075, 0, 0, 0], abs=1e-5)
    for count, expected in ((2, 0.15), (4, 0.0), (10**9, 0.0)):
        assert agent.bc_weight(nth(count)).item() == pytest.approx(expected)
    assert make(bc_weight=0.3).bc_weight(nth(1)) == 0.3
    at_once = make(bc_final=0.1, bc_decay_steps=0)
    assert at_once.bc_weight(nth(1)).item() == pytest.approx(0.1)
    for half in ({"bc_final": 0.0}, {"bc_decay_steps": 9}):
        with pytest.raises(UserError, match="set both or none"):
            make(**half)


def test_goes_online_with_fading_imitation():
    offline = make((2,), critics=3, online_bc_decay_steps=8)
    for _ in range(5):
        update(offline, batch((2,)))
    cfg = offline.cfg.after_switch()
    assert (cfg.bc_weight, cfg.bc_final, cfg.bc_decay_steps) == (0.3, 0.0, 8)
    assert TD3BCConfig().after_switch().bc_decay_steps == 500_000
    online = make_agent(cfg, Spec(3, 2, (2,)))
    table = {c.part: c.what for c in online.adopt(offline)}
    parts = ("observe", *PARTS, "actor_optim", "critic_optim")
    assert [table[name] for name in parts] == ["kept"] * len(parts)
    assert table["bc_weight"] == "changed"
    obs = torch.randn(2, 4, 3)
    assert torch.equal(online.act(obs), offline.act(obs))
    update(online, batch((2,)))
    assert online.updates == 1  # the schedule starts here
    assert online.bc_weight(nth(1)).item() == pytest.approx(0.3 * 7 / 8)


def test_much_imitation_clones():
    agent = make((2,), bc_weight=1000.0, actor_lr=1e-2)
    shift = torch.tensor([0.3, -0.3])[:, None, None]
    for _ in range(500):
        b = batch((2,), n=64)
        update(agent, Batch(b.obs, torch.tanh(b.obs[..., :2] + shift), b.rew, b.next_obs, b.done))
    obs = torch.randn(2, 100, 3)
    assert (agent.act(obs) - torch.tanh(obs[..., :2] + shift)).square().mean() < 0.01


def test_learns_a_bandit():
    """One step, reward 1 - (a - ½)² in one seed and 1 - (a + ½)² in the other; without imitation the data
    are no pull.
    """
    smooth = MLPConfig(hidden=[32], activation="tanh")
    agent = make((2,), act_dim=1, actor_lr=3e-3, critic_lr=1e-2, bc_weight=0.0, critic=smooth)
    best = torch.tensor([[0.5], [-0.5]])
    for _ in range(500):
        b = batch((2,), n=64, act_dim=1, done=1)
        update(agent, Batch(0 * b.obs, b.act, 1 - (b.act[..., 0] - best).square(), 0 * b.obs, b.done))
    assert (agent.act(torch.zeros(2, 1, 3))[:, 0] - best).abs().max() < 0.3


def test_observations_are_standardised_by_the_data():
    agent, data = make((2,)), batch(n=500)
    data.obs.mul_(torch.tensor([1.0, 100.0, 0.0])).add_(
        torch.tensor([5.0, 0.0, 3.0])
    )  # one of them is constant
    agent.prepare(data)
    x = agent.observe(data.obs.expand(2, 500, 3))
    torch.testing.assert_close(x.mean(-2), torch.zeros(2, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        x.std(-2, correction=0), torch.tensor([1.0, 1.0, 0.0]).expand(2, 3), atol=1e-4, rtol=0
    )
    obs = data.obs[:4].expand(2, 4, 3)
    assert torch.equal(agent.act(obs), agent.mode(agent.observe(obs)))
    raw = make(normalize=False)
    raw.prepare(data)
    assert torch.equal(raw.observe(data.obs), data.obs)


@pytest.mark.parametrize("name", EXPLORATIONS)
@pytest.mark.parametrize("seeds", [(), (2,)])
def test_explores(name, seeds):
    agent = make(seeds, critics=3, explore=ExploreConfig(name=name, oac_delta=0.5))
    obs = torch.randn(*seeds, 50, 3)
    act, mode = agent.act(obs, explore=True), agent.act(obs)
    for a in (act, mode):
        assert a.shape == (*seeds, 50, 2)
        assert a.abs().max() <= 1
        assert not a.requires_grad
    assert torch.equal(agent.act(obs), mode)
    assert not torch.equal(agent.act(obs, explore=True), act)
    spread = (act - mode).square().mean().sqrt().item()
    assert 0.05 < spread < 0.3  # near 0.1: a deterministic actor's candidates differ by the noise alone


@pytest.mark.parametrize(
    "cfg",
    [
        {"mask": 0.5},
        {"sunrise": SunriseConfig(weight="per_sample", std_norm="batch_mean")},
        {"target": "weighted_min_pair", "granularity": "sample"},
    ],
)
def test_shapes_of_metrics(cfg):
    for seeds in ((), (2,)):
        agent = make(seeds, critics=3, policy_delay=1, **cfg)
        metrics = update(agent, batch(seeds))
        assert {"critic_loss", "q"} <= set(metrics)
        assert all(x.shape == seeds and x.isfinite().all() and not x.requires_grad for x in metrics.values())


@pytest.mark.parametrize("seeds", [(), (3,)])
def test_state_is_complete(seeds, tmp_path):
    cfg = {"bc_final": 0.0, "bc_decay_steps": 6}
    agent, batches = make(seeds, **cfg), [batch(seeds) for _ in range(6)]
    agent.prepare(batch(n=50))
    for b in batches[:3]:
        update(agent, b)
    torch.save(agent.state_dict(), tmp_path / "agent.pt")
    rng = torch.get_rng_state()
    history = [update(agent, b) for b in batches[3:]]
    twin = make(seeds, **cfg)
    twin.load_state_dict(torch.load(tmp_path / "agent.pt"))
    torch.set_rng_state(rng)
    for expected, b in zip(history, batches[3:], strict=True):
        again = update(twin, b)
        assert again.keys() == expected.keys()  # the delay goes on where it was
        assert all(torch.equal(again[name], x) for name, x in expected.items())
    assert not changed(twin, snapshot(agent))


@pytest.mark.parametrize("poison", [math.nan, 1e6])
def test_seeds_do_not_touch(poison):
    clean, batches = make((3,)), [batch((3,)) for _ in range(6)]
    poisoned = copy.deepcopy(clean)
    for agent, bad in ((clean, None), (poisoned, poison)):
        torch.manual_seed(7)
        for b in batches:
            rew = b.rew.clone()
            if bad is not None:
                rew[0] = bad
            m = update(agent, Batch(b.obs, b.act, rew, b.next_obs, b.done))
    for (name, a), b in zip(clean.named_parameters(), poisoned.named_parameters(), strict=True):
        assert torch.equal(a[1:], b[1][1:]), name
    assert changed(clean.critic, snapshot(poisoned.critic))
    assert all(x[1:].isfinite().all() for x in m.values())


def test_made_from_its_config():
    agent = make_agent(TD3BCConfig(actor=SMALL, critic=SMALL, critics=5), Spec(3, 2, (2,)))
    assert isinstance(agent, TD3BC)
    assert agent.q(torch.randn(2, 4, 3), torch.randn(2, 4, 2)).shape == (2, 5, 4)
