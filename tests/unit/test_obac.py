"""OBAC: its gate on constructed values, its constraint by hand, its offline learner, and SAC where it has no
say.
"""

import math
from functools import partial

import nets
import pytest
import torch
from nets import batch, nth, update
from torch import nn

from mbo2o.agents.obac import OBAC
from mbo2o.agents.sac import SAC, SACConfig
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.types import Batch, Spec, UserError

SMALL = MLPConfig(hidden=[16])
TINY = {"actor": SMALL, "critic": SMALL}
make = partial(nets.make, "obac")


def constant(net: nn.Module, value: float) -> None:
    """Make every member of `net` output `value` everywhere."""
    nets.constant(net, torch.full((*net.members, 1), value))


def constraint(agent, b) -> torch.Tensor:
    """What OBAC adds to SAC's loss of the actor, per state."""
    act, log_prob = agent.actor.sample(b.obs)
    (whole, _), (sacs, _) = (f(agent, b, act, log_prob, nth(1)) for f in (OBAC.actor_loss, SAC.actor_loss))
    return whole - sacs


@pytest.mark.parametrize("gate", ["state", "batch"])
@pytest.mark.parametrize(("offline", "is_ahead"), [(2.0, 1.0), (0.0, 0.0)])
def test_gate_on_constants(gate, offline, is_ahead):
    agent, b = make((2,), gate=gate), batch((2,))
    constant(agent.critic, 1.0)
    constant(agent.offline_value, offline)
    constant(agent.offline_critic, offline)
    assert torch.equal(agent.ahead(b, torch.ones(2, 8)), torch.full((2, 8), is_ahead))
    assert (constraint(agent, b) != 0).all() == bool(is_ahead)


def test_gate_of_states_and_of_batches():
    """Values 0 and 4 against a policy worth 1: ahead in half of the states, and in the mean."""
    agent, b = make(), batch(n=2)
    agent.v_offline = lambda obs: torch.tensor([0.0, 4.0])
    assert agent.ahead(b, torch.ones(2)).tolist() == [0, 1]
    agent.cfg.gate = "batch"
    two = torch.tensor([[0.0, 4.0], [9.0, 9.0]]).unsqueeze(-1)  # critics; the smaller one counts
    agent.offline_critic.forward = lambda obs, act: two
    assert agent.ahead(b, torch.ones(2)).tolist() == [1, 1]
    assert agent.ahead(b, torch.full((2,), 3.0)).tolist() == [0, 0]


def test_each_seed_has_its_own_gate():
    agent, b = make((2,), gate="batch"), batch((2,))
    for p in agent.offline_critic.layers[-1].parameters():
        nn.init.zeros_(p)
    agent.offline_critic.layers[-1].bias.data[0] = 5.0
    assert agent.ahead(b, torch.ones(2, 8)).tolist() == [[1] * 8, [0] * 8]


@pytest.mark.parametrize("beta", [None, 2.0])
def test_constraint_by_hand(beta):
    agent, b = make(constraint="fixed", constraint_weight=0.3, beta=beta), batch()
    mean, log_std = (x.detach().double() for x in agent.actor(b.obs))
    u = torch.atanh(b.act.double())
    log_p = torch.distributions.Normal(mean, log_std.exp()).log_prob(u) - torch.log(
        1 - b.act.double().square()
    )
    advantage = agent.offline_target(b.obs, b.act)[..., 0].amin(0) - agent.offline_value(b.obs)[..., 0]
    weight = 1 if beta is None else (beta * advantage.detach()).exp().clamp(max=100)
    torch.testing.assert_close(
        constraint(agent, b).detach().double(), -0.3 * weight * log_p.sum(-1), atol=1e-4, rtol=1e-4
    )


def test_density_of_the_released_code():
    """Per dimension, before the tanh at the action behind it, clamped, averaged."""
    agent, b = make(density="released"), batch()
    b.act[0] = 0.99
    agent.actor.net.layers[-1].bias.data[..., 2:] = -4.0  # a deviation of e^-4: 0.99 is far off
    agent.actor.net.layers[-1].weight.data.zero_()
    mean, log_std = (x.detach() for x in agent.actor(b.obs))
    expected = [
        sum(
            max(-20, min(2, -0.5 * ((a - m) / math.exp(s)) ** 2 - s - 0.5 * math.log(2 * math.pi)))
            for a, m, s in zip(*(x[i].tolist() for x in (b.act, mean, log_std)), strict=True)
        )
        / 2
        for i in range(8)
    ]
    found = agent.log_density(b)
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=1e-4)
    assert found[0] == -20


def test_offline_learner_is_iql_without_an_actor():
    """One step moves V^μ and Q^μ along the gradients of these losses, and nothing of SAC's."""
    agent, b = make(expectile=0.8, critic_lr=1e-3), batch()
    v = agent.offline_value(b.obs)[..., 0]
    q_bar = agent.offline_target(b.obs, b.act)[..., 0].amin(0).detach()
    value_loss = sum((0.8 if d > 0 else 0.2) * d * d for d in q_bar - v) / 8
    y = b.rew + 0.99 * (1 - b.done) * agent.offline_value(b.next_obs)[..., 0].detach()
    critic_loss = (agent.offline_critic(b.obs, b.act)[..., 0] - y).square().mean(-1).sum()
    expected = [
        torch.autograd.grad(value_loss, list(agent.offline_value.parameters())),
        torch.autograd.grad(critic_loss, list(agent.offline_critic.parameters())),
    ]
    before = {
        k: x.clone()
        for k, x in agent.state_dict().items()
        if k.split(".")[0] in ("actor", "critic", "target")
    }
    old = [[p.clone() for p in net.parameters()] for net in (agent.offline_value, agent.offline_critic)]
    agent.learn_offline(b)
    for net, gradients, start in zip((agent.offline_value, agent.offline_critic), expected, old, strict=True):
        for p, g, p0 in zip(net.parameters(), gradients, start, strict=True):
            moved = g.abs() > 1e-6  # Adam's first step is the rate, against the gradient's sign
            torch.testing.assert_close((p - p0)[moved], -1e-3 * g.sign()[moved], rtol=1e-2, atol=1e-6)
    assert all(torch.equal(x, agent.state_dict()[k]) for k, x in before.items())


@pytest.mark.parametrize("off", [{"constraint": "none"}, {"constraint": "fixed", "constraint_weight": 0.0}])
def test_without_its_constraint_it_is_sac_bit_for_bit(off):
    torch.manual_seed(1)
    sac = SAC(Spec(3, 2, (2,)), SACConfig(**TINY))
    torch.manual_seed(1)
    obac = make((2,), **off)
    batches = [batch((2,)) for _ in range(5)]
    for agent in (sac, obac):
        torch.manual_seed(2)
        for b in batches:
            metrics = update(agent, b)
    assert all(
        torch.equal(x, obac.state_dict()[k]) for k, x in sac.state_dict().items() if torch.is_tensor(x)
    )
    assert (
        (metrics["ahead"] >= 0) & (metrics["ahead"] <= 1)
    ).all()  # the gate is told of, even where it has no say


def test_imitates_where_the_offline_learner_is_ahead():
    agent = make((2,), constraint_weight=10.0, actor_lr=1e-2)
    constant(agent.offline_value, 50.0)
    agent.learn_offline = lambda b: {}
    b = batch((2,), 32)
    b = Batch(b.obs, torch.full_like(b.act, 0.6), b.rew, b.next_obs, b.done)
    for _ in range(150):
        update(agent, b)
    torch.testing.assert_close(agent.act(b.obs), torch.full_like(b.act, 0.6), atol=0.1, rtol=0)


@pytest.mark.parametrize("setting", ["constraint", "gate", "density"])
def test_unknown_settings_are_refused(setting):
    with pytest.raises(UserError, match=f"obac: {setting} 'sometimes'"):
        make(**{setting: "sometimes"})
