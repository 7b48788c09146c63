"""PEX: who acts, by how much, what the second actor learns from, and that the first stays what it was."""

from functools import partial

import nets
import pytest
import torch
from nets import nth, update
from torch import nn

from mbo2o.agents.iql import IQL, IQLConfig
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.types import Spec, UserError

SMALL = MLPConfig(hidden=[16])
TINY = {"actor": SMALL, "critic": SMALL, "value_net": SMALL}
batch = partial(nets.batch, done=0)
make = partial(nets.make, "pex")


def values(agent, of_first, of_second, second):
    """Critics that value `second` at one number and all else at another."""
    agent.q = lambda obs, act: (
        torch.where((act == second).all(-1), of_second, of_first).unsqueeze(-2).expand(*obs.shape[:-2], 2, -1)
    )


@pytest.mark.parametrize(
    ("gap", "h", "scale", "share"),
    [(0.0, 10.0, False, 0.5), (0.1, 10.0, False, 0.731), (0.1, 1e6, False, 1.0), (1.0, 0.5, True, 0.731)],
)
def test_chooses_by_the_softmax_of_values(gap, h, scale, share):
    """σ(1) = 0.731. Scaled by their mean size, values of -0.5 and 0.5 are 2 apart."""
    agent, obs = make(inverse_temperature=h, scale=scale), torch.randn(20_000, 3)
    second = torch.full((20_000, 2), 0.123)
    values(agent, torch.tensor(-gap / 2), torch.tensor(gap / 2), second)
    act = agent.choose(obs, second, torch.rand(20_000))
    taken = (act == second).all(-1)
    assert taken.double().mean().item() == pytest.approx(share, abs=0.015)
    assert torch.equal(act[~taken], agent.actor(obs)[0][~taken])


def test_evaluates_the_better_of_both_modes():
    agent, obs = make((2,)), torch.randn(2, 50, 3)
    first, second = agent.actor(obs)[0], agent.second(obs)[0]
    q = torch.stack([agent.q(obs, a).amin(-2) for a in (first, second)])
    act = agent.act(obs)
    expected = torch.where((q[1] > q[0]).unsqueeze(-1), second, first)
    assert torch.equal(act, expected)
    assert 0 < (act == second).all(-1).double().mean() < 1


def test_starts_from_iql_and_keeps_its_actor():
    before = IQL(Spec(3, 2, (2,)), IQLConfig(**TINY))
    for _ in range(3):
        update(before, batch((2,)))
    after = make((2,))
    table = {x.part: x.what for x in after.adopt(before)}
    assert {x for x, what in table.items() if what == "kept"} >= {
        "actor",
        "critic",
        "target",
        "value_net",
        "critic_optim",
    }
    assert table["second"] == table["second_optim"] == "new"
    assert table["actor_optim"] == "dropped"
    own = [p.clone() for p in after.second.parameters()]
    for _ in range(5):
        update(after, batch((2,)))
    assert all(
        torch.equal(p, q) for p, q in zip(before.actor.parameters(), after.actor.parameters(), strict=True)
    )
    assert any(not torch.equal(p, q) for p, q in zip(own, after.second.parameters(), strict=True))


def test_weighs_by_what_the_chosen_actions_beat():
    agent, b = make(beta=2.0, weight_clip=3.0), batch(n=16)
    torch.manual_seed(1)
    metrics = agent.improve(b, torch.full((16,), torch.nan), nth(1))  # the data's advantage has no say
    torch.manual_seed(0)
    again = make(beta=2.0, weight_clip=3.0)  # as it was before the step
    torch.manual_seed(1)
    mean, std = again.proposal(b.obs)
    own = (mean + std * torch.randn_like(mean)).clamp(-1, 1)
    act = again.choose(b.obs, own, torch.rand(16))
    gain = (again.target(b.obs, act)[..., 0].amin(0) - again.value_net(b.obs)[..., 0]).detach()
    weight = torch.tensor([min(3.0, float(torch.exp(2 * g))) for g in gain])
    expected = -(weight * again.second.log_prob(b.obs, act)).mean()
    torch.testing.assert_close(metrics["actor_loss"], expected.detach())
    torch.testing.assert_close(metrics["weight"], weight.mean())


def test_second_actor_goes_where_the_critics_point():
    agent = make((2,), actor_lr=1e-2, beta=3.0)
    nn.init.zeros_(agent.value_net.layers[-1].weight)
    nn.init.zeros_(agent.value_net.layers[-1].bias)
    towards = lambda obs, act: -5 * (act - 0.5).square().sum(-1).unsqueeze(-2).expand(2, 2, -1)  # noqa: E731
    agent.q = agent.q_target = towards
    for _ in range(200):
        agent.improve(batch((2,), 64), torch.zeros(2, 64), nth(1))
    mean = agent.second(torch.randn(2, 50, 3))[0]
    torch.testing.assert_close(mean, torch.full_like(mean, 0.5), atol=0.25, rtol=0)


@pytest.mark.parametrize("change", [{"deterministic": True}, {"actor_decay_steps": 100}])
def test_settings_that_would_do_nothing_are_refused(change):
    with pytest.raises(UserError, match="stays as it is"):
        make(**change)
