"""LAPO: each of its targets and losses sample by sample, who learns from what, and that it stays near the
data's actions.
"""

import copy
import itertools
import math
from functools import partial

import nets
import pytest
import torch
from nets import batch, changed, constant, rows, snapshot, update
from torch.distributions import Normal, kl_divergence

from mbo2o.agents.base import make_agent
from mbo2o.agents.lapo import LAPO, LOG_VAR, LAPOConfig
from mbo2o.ensemble.explore import EXPLORATIONS, ExploreConfig
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.ensemble.targets import REDUCTIONS, SunriseConfig, reduction
from mbo2o.types import Batch, Spec, UserError

SMALL = MLPConfig(hidden=[16])
PARTS = ("critic", "value_net", "cvae", "latent", "target", "latent_target", "decoder_target")
RATES = ("critic_lr", "cvae_lr", "latent_lr")
make = partial(nets.make, "lapo")


def prepared(seeds=(), **cfg) -> LAPO:
    """An agent whose scales are not 1 and whose copies are not copies any more."""
    agent, data = make(seeds, **cfg), batch(n=200)
    agent.prepare(Batch(2 * data.obs + 1, 0.3 * data.act + 0.2, data.rew, data.next_obs, data.done))
    for net in (agent.target, agent.latent_target, agent.decoder_target):
        for p in net.parameters():
            p.data.add_(0.1 * torch.randn_like(p))
    return agent


def target_q(agent: LAPO, obs: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Target critics `(*S, N, B)` of decoded latent actions, written out in standardised units."""
    scale = agent.action_scale
    act = (agent.decoder_target(obs, z.clamp(-2, 2)) * scale.std + scale.mean).clamp(-1, 1)
    return agent.target(obs, (act - scale.mean) / scale.std)[..., 0]


# ---------------------------------------------------------------------- targets and losses


@pytest.mark.parametrize("seeds", [(), (2,)])
@pytest.mark.parametrize("rho", [1.0, 0.7])
def test_value_target_equals_a_loop_over_samples(seeds, rho):
    agent = prepared(seeds, critics=3, rho=rho, latent_noise=0.15)
    b = agent.scaled(batch(seeds))
    torch.manual_seed(5)
    noise = 0.15 * torch.randn(*seeds, 8, 4)
    assert noise.abs().max() > 0.2  # so that its clip is seen
    q = target_q(agent, b.obs, 2 * torch.tanh(agent.latent_target(b.obs)) + noise.clamp(-0.2, 0.2))
    low, high = (rho * q.amin(-2) + (1 - rho) * q.amax(-2)).quantile(torch.tensor([0.2, 0.8])).tolist()
    agent.v_range.low.fill_(low)
    agent.v_range.high.fill_(high)
    torch.manual_seed(5)
    v = agent.value_target(b)
    clamped = 0
    for *s, i in rows(seeds):
        members = [q[(*s, n, i)].item() for n in range(3)]
        raw = rho * min(members) + (1 - rho) * max(members)
        expected = min(max(raw, low), high)
        clamped += expected != raw
        assert v[(*s, i)].item() == pytest.approx(expected, abs=1e-5)
    assert 0 < clamped < v.numel()
    assert not v.requires_grad


@pytest.mark.parametrize("seeds", [(), (2,)])
def test_critics_learn_from_the_online_v(seeds):
    """And from V as it is: the bounds are for what V learns."""
    agent = prepared(seeds, gamma=0.9, v_min=-1e-3, v_max=1e-3)
    b = agent.scaled(batch(seeds))
    y, next_q = agent.backup(b)
    v = agent.value_net(b.next_obs)[..., 0]
    for index in rows(seeds):
        expected = b.rew[index].item() + (0.0 if b.done[index] else 0.9 * v[index].item())
        assert y[index].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert not y.requires_grad
    torch.testing.assert_close(
        next_q, target_q(agent, b.next_obs, 2 * torch.tanh(agent.latent_target(b.next_obs)))
    )


def test_truncation_bootstraps_and_termination_does_not():
    """A value of 10 in every state: r + γ·10 at a time limit (done = 0), r at the task's end (done = 1)."""
    agent = make(gamma=0.9)
    constant(agent.value_net, torch.tensor([10.0]))
    constant(agent.target, torch.full((2, 1), 10.0))
    for done, tail in ((0, 9.0), (1, 0.0)):
        b = batch(done=done)
        y, next_q = agent.backup(b)
        torch.testing.assert_close(y, b.rew + tail)
        constant(agent.value_net, torch.tensor([tail]))  # then the advantage is the reward
        torch.testing.assert_close(agent.weight(b, next_q), torch.where(b.rew > 0, 0.9, 0.1))
        constant(agent.value_net, torch.tensor([10.0]))


@pytest.mark.parametrize("seeds", [(), (2,)])
@pytest.mark.parametrize("rho", [1.0, 0.7])
def test_weight_is_the_expectile_of_the_advantages_sign(seeds, rho):
    agent = prepared(seeds, critics=3, rho=rho, expectile=0.8, gamma=0.9)
    agent.target.layers[-1].bias.data.add_(torch.arange(3.0)[:, None, None] - 1)  # critics that disagree
    b = agent.scaled(batch(seeds, n=32))
    next_q = agent.backup(b)[1]
    w = agent.weight(b, next_q)
    v = agent.value_net(b.obs)[..., 0]
    for *s, i in rows(seeds, 32):
        members = [next_q[(*s, n, i)].item() for n in range(3)]
        tail = rho * min(members) + (1 - rho) * max(members)
        advantage = b.rew[(*s, i)].item() + (0.0 if b.done[(*s, i)] else 0.9 * tail) - v[(*s, i)].item()
        assert w[(*s, i)].item() == pytest.approx(0.8 if advantage > 0 else 0.2)
    assert 0.2 < w.mean() < 0.8
    assert not w.requires_grad


def test_an_advantage_of_zero_counts_as_none():
    agent, b = make(expectile=0.9), batch(done=1)
    constant(agent.value_net, torch.zeros(1))
    b.rew.zero_()
    torch.testing.assert_close(agent.weight(b, agent.backup(b)[1]), torch.full((8,), 0.1))


@pytest.mark.parametrize("seeds", [(), (2,)])
def test_cvae_loss_equals_a_loop(seeds):
    """||a - â||² + β KL, KL by torch.distributions."""
    agent = prepared(seeds)
    b = agent.scaled(batch(seeds))
    act = agent.action_scale(b.act)
    agent.cvae.encoder.layers[-1].bias.data.add_(0.5)  # a fresh encoder's log σ² is near 0
    torch.manual_seed(5)
    loss = agent.cvae.loss(b.obs, act, 0.3)
    torch.manual_seed(5)
    noise = torch.randn(*seeds, 8, 4)
    out = agent.cvae.encoder(b.obs, act)
    mean, std = out[..., :4], (out[..., 4:] / 2).exp()
    decoded = agent.cvae.decoder(b.obs, mean + std * noise)
    for index in rows(seeds):
        error = sum((decoded[index][j] - act[index][j]).item() ** 2 for j in range(2))
        kl = sum(
            kl_divergence(Normal(mean[index][j], std[index][j]), Normal(0.0, 1.0)).item() for j in range(4)
        )
        assert loss[index].item() == pytest.approx(error + 0.3 * kl, rel=1e-4)


def test_the_encoders_log_variance_is_clamped():
    agent, b = make(), batch()
    for value, limit in ((1e4, LOG_VAR[1]), (-1e4, LOG_VAR[0])):
        constant(agent.cvae.encoder, torch.tensor([0.0] * 4 + [value] * 4))
        assert torch.equal(agent.cvae.encode(b.obs, b.act)[1], torch.full((8, 4), limit))
        assert agent.cvae.loss(b.obs, b.act, 1.0).isfinite().all()


@pytest.mark.parametrize("seeds", [(), (2,)])
def test_losses_of_an_update_equal_loops(seeds):
    """With still networks: Σ_i mean (Q_i - y)², mean (V - v)², mean w · CVAE loss, and -mean Q₁ where the
    policy goes.
    """
    agent = prepared(seeds, critics=3, kl_weight=0.5, **dict.fromkeys(RATES, 0.0))
    raw = batch(seeds)
    agent.v_range.widen(raw.rew, 0.99)
    b = agent.scaled(raw)
    act = (b.act - agent.action_scale.mean) / agent.action_scale.std
    q, v = agent.critic(b.obs, act)[..., 0], agent.value_net(b.obs)[..., 0]
    y, next_q = agent.backup(b)
    torch.manual_seed(5)
    goal, cvae = agent.value_target(b), agent.cvae.loss(b.obs, act, 0.5)
    w = agent.weight(b, next_q)
    z = 2 * torch.tanh(agent.latent(b.obs))
    scale = agent.action_scale
    decoded = (agent.decoder_target(b.obs, z) * scale.std + scale.mean).clamp(-1, 1)
    q_pi = agent.critic(b.obs, (decoded - scale.mean) / scale.std)[..., 0]
    torch.manual_seed(5)
    m = update(agent, raw)
    for s in itertools.product(*(range(k) for k in seeds)):
        rows = range(8)
        td = sum(sum((q[(*s, n, i)] - y[(*s, i)]).item() ** 2 for i in rows) / 8 for n in range(3))
        assert m["critic_loss"][s].item() == pytest.approx(td, rel=1e-4)
        assert m["value_loss"][s].item() == pytest.approx(
            sum((v - goal)[(*s, i)].item() ** 2 for i in rows) / 8, rel=1e-4
        )
        assert m["cvae_loss"][s].item() == pytest.approx(
            sum((w * cvae)[(*s, i)].item() for i in rows) / 8, rel=1e-4
        )
        assert m["actor_loss"][s].item() == pytest.approx(
            -sum(q_pi[(*s, 0, i)].item() for i in rows) / 8, rel=1e-4
        )


@pytest.mark.parametrize("name", REDUCTIONS)
def test_targets_are_reduced_as_the_config_says(name):
    agent, b = make((2,), critics=4, target=name), batch((2,))
    values = torch.tensor([[3.0, 1.0, 2.0, 7.0], [-1.0, 0.0, -2.0, 5.0]])
    constant(agent.target, values.unsqueeze(-1))
    torch.manual_seed(5)
    v = agent.value_target(b)
    torch.manual_seed(5)
    torch.randn(2, 8, 4)
    torch.testing.assert_close(v, reduction(name)(values.unsqueeze(-1).expand(2, 4, 8)).expand(2, 8))


def test_rho_mixes_the_largest_critic_into_the_minimum_only():
    q = torch.tensor([[1.0], [5.0], [3.0]])
    for rho, expected in ((1.0, 1.0), (0.7, 2.2), (0.0, 5.0)):
        assert make(critics=3, rho=rho).reduce(q).item() == pytest.approx(expected)
    with pytest.raises(UserError, match="'weighted_min_pair' needs rho=1"):
        make(rho=0.7, target="weighted_min_pair")
    assert make(critics=3, target="weighted_min_pair").reduce(q).item() == pytest.approx((1 + 1 + 3) / 3)


# ---------------------------------------------------------------------- who learns from what


@pytest.mark.parametrize("learns", [*RATES, None])
def test_each_step_touches_its_own_parameters_only(learns):
    agent = prepared((2,), **{rate: 1e-2 if rate == learns else 0.0 for rate in RATES}, tau=0.0)
    before = {name: snapshot(getattr(agent, name)) for name in PARTS}
    update(agent, batch((2,)))
    moves = {"critic_lr": {"critic", "value_net"}, "cvae_lr": {"cvae"}, "latent_lr": {"latent"}, None: set()}[
        learns
    ]
    assert {name for name in PARTS if changed(getattr(agent, name), before[name])} == moves


def test_targets_move_by_polyak():
    agent = prepared(tau=0.2)
    old = {name: snapshot(getattr(agent, name)) for name in PARTS}
    update(agent, batch())
    pairs = (
        (agent.target, agent.critic),
        (agent.latent_target, agent.latent),
        (agent.decoder_target, agent.cvae.decoder),
    )
    for name, (target, source) in zip(("target", "latent_target", "decoder_target"), pairs, strict=True):
        now = source.state_dict()
        for key, x in target.state_dict().items():
            torch.testing.assert_close(x, 0.8 * old[name][key] + 0.2 * now[key])


def test_the_policy_learns_through_the_decoders_copy_from_the_first_critic():
    """Its gradient is that of -mean Q₁; where the decoder overshoots the box it is not lost."""
    agent, b = prepared(critics=3, **dict.fromkeys(RATES, 0.0)), batch()
    obs = agent.observe(b.obs)
    loss = -agent.critic(obs, agent.action_scale(agent.mode(obs)))[0].mean()
    expected = torch.autograd.grad(loss, list(agent.latent.parameters()))
    update(agent, b)
    for mean, g in zip((agent.latent_optim.get_buffer(f"mean_{i}") for i in range(4)), expected, strict=True):
        torch.testing.assert_close(mean, 0.1 * g)
    constant(agent.decoder_target, torch.tensor([50.0, -50.0]))
    agent.decoder_target.layers[-1].weight.data.normal_()
    act = agent.mode(obs)
    assert act.abs().min() == 1  # everything is clipped
    grads = torch.autograd.grad(act.sum(), list(agent.latent.parameters()))
    assert all(g.abs().max() > 0 for g in grads)


# ---------------------------------------------------------------------- scales and bounds


def test_prepare_standardises_observations_and_actions():
    agent, data = make((2,)), batch(n=500)
    data.obs.mul_(torch.tensor([1.0, 100.0, 0.0]))
    data.act.copy_(
        data.act * torch.tensor([0.1, 0.0]) + torch.tensor([0.5, -0.3])
    )  # the second never changes
    agent.prepare(data)
    for scale, x in ((agent.observe, data.obs), (agent.action_scale, data.act)):
        y = scale(x.expand(2, *x.shape))
        torch.testing.assert_close(y.mean(-2), torch.zeros(2, x.shape[-1]), atol=1e-4, rtol=0)
        assert y.isfinite().all()
    assert agent.action_scale(data.act).std(-2).max() == pytest.approx(1.0, abs=0.01)
    raw = make(normalize=False)
    raw.prepare(data)
    assert torch.equal(raw.action_scale(data.act), data.act)
    assert raw.v_range.high.isfinite()


def test_values_are_of_environment_actions():
    agent, b = prepared((2,)), batch((2,))
    expected = agent.critic(agent.observe(b.obs), agent.action_scale(b.act))[..., 0]
    torch.testing.assert_close(agent.q(agent.observe(b.obs), b.act), expected)
    torch.testing.assert_close(agent.value(b.obs, b.act), expected[:, 0])


def test_v_is_bounded_by_what_rewards_can_sum_up_to():
    """Zero is possible too: all-positive rewards stop when the episode does, and survival penalties do."""
    for low, high, bounds in (
        (-1.0, 2.0, (-100, 200)),
        (0.5, 2.0, (0, 200)),
        (-1.0, -0.5, (-100, 0)),
        (0.0, 0.0, (0, 0)),
    ):
        agent, data = make((2,)), batch(n=50)
        assert agent.v_range.low.tolist() == [-math.inf] * 2  # before: no bounds
        data.rew.uniform_(low, high)
        data.rew[0], data.rew[1] = low, high
        agent.prepare(data)
        assert (agent.v_range.low[1].item(), agent.v_range.high[0].item()) == pytest.approx(bounds)
        constant(agent.target, torch.full((2, 2, 1), 1e4))
        torch.testing.assert_close(agent.value_target(batch((2,))), torch.full((2, 8), float(bounds[1])))


def test_a_value_below_the_worst_reward_for_ever_can_be_learned():
    """Every reward is 1 and every episode ends at once: the worth is 1, not the 100 that r_min / (1 - γ)
    would insist on.
    """
    agent = make(critic_lr=1e-2, tau=0.1)
    data = batch(n=64, done=1)
    data.rew.fill_(1.0)
    agent.prepare(data)
    for _ in range(200):
        m = update(agent, data)
    assert m["v"].item() == pytest.approx(1.0, abs=0.3)


def test_bounds_of_the_config_count():
    agent = make((2,), v_min=-100.0, v_max=0.0)
    agent.prepare(batch(n=50))
    v = torch.tensor([[-500.0, -50.0, 50.0]]).expand(2, 3)
    assert agent.v_range(v).tolist() == [[-100.0, -50.0, 0.0]] * 2
    one = make(v_max=0.0)
    assert one.v_range(v[0]).tolist() == [-500.0, -50.0, 0.0]


def test_bounds_widen_for_rewards_that_the_data_did_not_have():
    agent, data = make((2,)), batch(n=50)
    data.rew.uniform_(0, 1)
    data.rew[0] = 1.0
    agent.prepare(data)
    b = batch((2,))
    b.rew.fill_(0.5)
    b.rew[1, 3] = 2.0
    update(agent, b)
    assert agent.v_range.high.tolist() == pytest.approx([100.0, 200.0])
    scratch = make()
    update(scratch, batch())
    assert scratch.v_range.high == math.inf


# ---------------------------------------------------------------------- acting


@pytest.mark.parametrize("seeds", [(), (2,)])
def test_acts_by_the_decoders_copy(seeds):
    agent = prepared(seeds)
    obs = torch.randn(*seeds, 5, 3)
    z = 2 * torch.tanh(agent.latent(agent.observe(obs)))
    raw = agent.decoder_target(agent.observe(obs), z)
    torch.testing.assert_close(
        agent.act(obs), (raw * agent.action_scale.std + agent.action_scale.mean).clamp(-1, 1)
    )


def test_no_action_leaves_the_box():
    """Not by a rounding either."""
    agent = make((200,))
    for scale in (1.0, 3.7, 1e3, 1e8):
        constant(agent.decoder_target, scale * torch.randn(200, 2))
        assert agent.act(torch.randn(200, 1, 3)).abs().max() <= 1


@pytest.mark.parametrize("name", EXPLORATIONS)
@pytest.mark.parametrize("seeds", [(), (2,)])
def test_explores(name, seeds):
    agent = prepared(seeds, critics=3, explore=ExploreConfig(name=name))
    obs = torch.randn(*seeds, 5, 3)
    act = agent.act(obs, explore=True)
    assert act.shape == (*seeds, 5, 2)
    assert act.abs().max() <= 1
    assert not act.requires_grad
    assert torch.equal(agent.act(obs), agent.act(obs))
    assert not torch.equal(agent.act(obs, explore=True), act)


@pytest.mark.parametrize("name", EXPLORATIONS)
def test_saturated_policies_explore_too(name):
    """A policy pressed against the box of latent actions is the rule; noise before the tanh would be nothing
    there.
    """
    agent, seen = make(latent_dim=2, explore=ExploreConfig(name=name)), []
    constant(agent.latent, torch.tensor([10.0, -10.0]))
    obs = torch.randn(1000, 3)
    mean, std = agent.proposal(agent.observe(obs))
    assert torch.equal(mean, torch.tensor([2.0, -2.0]).expand(1000, 2))
    assert torch.equal(std, torch.full((1000, 2), 0.1))
    agent.decoder_target.register_forward_hook(lambda net, args, out: seen.append(args[1]))
    assert (agent.act(obs, explore=True) - agent.act(obs)).abs().mean() > 1e-3
    assert all(z.abs().max() <= 2 for z in seen)  # and stay in that box


# ---------------------------------------------------------------------- learning


def test_decoding_what_was_encoded_gives_the_action_back():
    agent = make(kl_weight=0.01, cvae_lr=1e-2, latent_dim=2)
    data = batch(n=128)
    data.act.mul_(0.3).add_(0.4)
    agent.prepare(data)
    obs, act = agent.observe(data.obs), agent.action_scale(data.act)
    for _ in range(300):
        agent.cvae_optim.step(agent.cvae.loss(obs, act, 0.01).mean(-1))
    decoded = agent.cvae.decoder(obs, agent.cvae.encode(obs, act)[0])
    assert (decoded - act).square().mean() < 0.1  # of a variance of 1


def test_actions_stay_within_the_data():
    """Actions in [0.2, 0.4]; more is better, so that critics tempt to 1 and beyond."""
    agent = make((2,), act_dim=1, obs_dim=1, critic_lr=3e-3, cvae_lr=3e-3, latent_lr=3e-3, tau=0.02)
    data = batch(n=512, act_dim=1, obs_dim=1, done=1)
    data.act.uniform_(0.2, 0.4)
    data = Batch(data.obs, data.act, data.act[..., 0].clone(), data.obs, data.done)
    agent.prepare(data)
    for _ in range(600):
        i = torch.randint(512, (2, 64))
        update(agent, data.map(lambda x, i=i: x[i]))
    obs = data.obs[:100].expand(2, 100, 1)
    found = agent.act(obs)
    assert found.min() > 0.3  # better than the data's mean
    assert found.max() < 0.5
    assert agent.act(obs, explore=True).max() < 0.5
    beyond = agent.value(obs, torch.full((2, 100, 1), 1.0))
    assert (beyond > agent.value(obs, found)).all()


def test_good_actions_are_imitated_more():
    """Two kinds of actions, -½ for reward 0 and ½ for 1: what the decoder makes of the prior's z leans to
    the good ones.
    """

    def share(expectile: float) -> float:
        torch.manual_seed(0)
        agent = make(
            act_dim=1, obs_dim=1, expectile=expectile, critic_lr=1e-2, cvae_lr=1e-2, tau=0.02, latent_lr=0.0
        )
        for _ in range(300):
            good = (torch.rand(64) < 0.5).float()
            act = (good - 0.5).unsqueeze(-1) + 0.02 * torch.randn(64, 1)
            zero = torch.zeros(64, 1)
            update(agent, Batch(zero, act, good, zero, torch.ones(64)))
        made = agent.cvae.decoder(torch.zeros(500, 1), torch.randn(500, 2))
        return (made > 0).float().mean().item()

    assert share(0.9) > share(0.1) + 0.2


def test_learns_a_bandit():
    """One step, reward -(a - ½)² in one seed and -(a + ½)² in the other; the data are anything."""
    smooth = MLPConfig(hidden=[32], activation="tanh")
    agent = make((2,), act_dim=1, critic_lr=1e-2, cvae_lr=1e-2, latent_lr=3e-3, tau=0.02, critic=smooth)
    best = torch.tensor([[0.5], [-0.5]])
    for _ in range(600):
        b = batch((2,), n=64, act_dim=1, done=1)
        update(agent, Batch(0 * b.obs, b.act, -(b.act[..., 0] - best).square(), 0 * b.obs, b.done))
    assert (agent.act(torch.zeros(2, 1, 3))[:, 0] - best).abs().max() < 0.3


# ---------------------------------------------------------------------- contracts


@pytest.mark.parametrize(
    "cfg",
    [
        {"mask": 0.5},
        {"sunrise": SunriseConfig(weight="per_sample", std_norm="batch_mean")},
        {"target": "weighted_min_pair", "granularity": "sample", "critics": 4},
        {"actor_reduction": "min_q", "latent_dim": 3, "rho": 0.7},
    ],
)
def test_shapes_of_metrics(cfg):
    for seeds in ((), (2,)):
        agent = make(seeds, **cfg)
        metrics = update(agent, batch(seeds))
        assert {"critic_loss", "q"} <= set(metrics)
        assert all(x.shape == seeds and x.isfinite().all() and not x.requires_grad for x in metrics.values())


def test_targets_that_critics_disagree_on_weigh_less():
    """SUNRISE looks at the target critics where the latent policy goes next."""
    plain = prepared(critics=3)
    weighted = prepared(critics=3, sunrise=SunriseConfig(weight="per_sample"))
    weighted.load_state_dict(plain.state_dict())
    b = plain.scaled(batch())
    y, next_q = plain.backup(b)
    q = plain.q(b.obs, b.act)
    w = torch.sigmoid(-10 * next_q.std(-2, correction=0)) + 0.5
    torch.testing.assert_close(weighted.td_loss(b, q, y, next_q), (w * (q - y).square()).mean(-1).sum(-1))


def test_the_online_agent_is_the_same():
    offline = prepared((2,), critics=3)
    for _ in range(3):
        update(offline, batch((2,)))
    assert offline.cfg.after_switch() == offline.cfg
    online = make_agent(offline.cfg.after_switch(), Spec(3, 2, (2,)))
    table = online.adopt(offline)
    assert {c.what for c in table} == {"kept"}  # the scales of actions and the bounds of V too
    assert not changed(online, snapshot(offline) | own(online))
    obs = torch.randn(2, 4, 3)
    assert torch.equal(online.act(obs), offline.act(obs))


def own(agent: LAPO) -> dict[str, torch.Tensor]:
    """What an agent does not take over: whose turn it is to explore, who learns from what, how long."""
    return {k: v.clone() for k, v in agent.state_dict().items() if k in ("head", "salt", "updates")}


@pytest.mark.parametrize("seeds", [(), (3,)])
def test_state_is_complete(seeds, tmp_path):
    agent, batches = prepared(seeds), [batch(seeds) for _ in range(6)]
    for b in batches[:3]:
        update(agent, b)
    torch.save(agent.state_dict(), tmp_path / "agent.pt")
    rng = torch.get_rng_state()
    history = [update(agent, b) for b in batches[3:]]
    twin = make(seeds)
    twin.load_state_dict(torch.load(tmp_path / "agent.pt"))
    torch.set_rng_state(rng)
    for expected, b in zip(history, batches[3:], strict=True):
        again = update(twin, b)
        assert all(torch.equal(again[name], x) for name, x in expected.items())
    assert twin.updates == agent.updates == 6
    assert not changed(twin, snapshot(agent))


@pytest.mark.parametrize("poison", [math.nan, 1e6])
def test_seeds_do_not_touch(poison):
    clean, batches = prepared((3,)), [batch((3,)) for _ in range(5)]
    poisoned = copy.deepcopy(clean)
    for agent, bad in ((clean, None), (poisoned, poison)):
        torch.manual_seed(7)
        for b in batches:
            rew = b.rew.clone()
            if bad is not None:
                rew[0] = bad
            m = update(agent, Batch(b.obs, b.act, rew, b.next_obs, b.done))
    mine, theirs = clean.state_dict(), poisoned.state_dict()
    for name, x in mine.items():
        if x.dim() and x.shape[0] == 3:  # parameters, moments, scales, bounds
            assert torch.equal(x[1:], theirs[name][1:]), name
    assert changed(clean.critic, snapshot(poisoned.critic))
    assert all(x[1:].isfinite().all() for x in m.values())


def test_made_from_its_config():
    cfg = LAPOConfig(critic=SMALL, cvae=SMALL, latent=SMALL, critics=5)
    agent = make_agent(cfg, Spec(3, 2, (2,)))
    assert isinstance(agent, LAPO)
    assert agent.q(torch.randn(2, 4, 3), torch.randn(2, 4, 2)).shape == (2, 5, 4)
    assert agent.proposal(torch.randn(2, 4, 3))[0].shape == (2, 4, 4)  # twice the action's
