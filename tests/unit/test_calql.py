"""Cal-QL: CQL whose policy actions are pushed no lower than the recorded return."""

import math
from dataclasses import asdict
from functools import partial

import nets
import pytest
import torch
from nets import update
from torch import nn

from mbo2o.agents.calql import CalQL, CalQLConfig
from mbo2o.agents.cql import CQL, CQLConfig
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.types import UserError

TINY = {"actor": MLPConfig(hidden=[8]), "critic": MLPConfig(hidden=[8]), "samples": 3, "backup_samples": 2}
batch = partial(nets.batch, n=4, done=0)
make = partial(nets.make, "calql", hidden=8, samples=3, backup_samples=2)


def twin_of(agent: CalQL) -> CQL:
    """CQL with the same settings and weights."""
    settings = {k: v for k, v in vars(agent.cfg).items() if not k.startswith("calibrate")}
    twin = CQL(agent.spec, CQLConfig(**settings))
    twin.load_state_dict(agent.state_dict())
    return twin


@pytest.mark.parametrize(("mc", "calibrate"), [(-math.inf, True), (None, False), (1e9, False)])
def test_without_a_bound_it_is_cql_bit_for_bit(mc, calibrate):
    agent = make((2,), calibrate=calibrate)
    twin, batches = twin_of(agent), [batch((2,), mc_return=mc) for _ in range(3)]
    results = []
    for a in (agent, twin):
        torch.manual_seed(1)
        results.append([update(a, b) for b in batches])
    for mine, cqls in zip(*results, strict=True):
        assert mine.keys() - cqls.keys() == ({"bound_rate"} if calibrate else set())
        assert all(torch.equal(mine[name], x) for name, x in cqls.items())
        assert not calibrate or torch.equal(mine["bound_rate"], torch.zeros(2))
    assert all(
        torch.equal(x, y)
        for x, y in zip(agent.state_dict().values(), twin.state_dict().values(), strict=True)
    )


def test_a_bound_makes_a_difference():
    agent = make()
    twin, b = twin_of(agent), batch(mc_return=2.0)
    for a in (agent, twin):
        torch.manual_seed(1)
        update(a, b)
    assert not torch.equal(agent.critic.layers[0].weight, twin.critic.layers[0].weight)


def test_values_below_the_return_are_not_pushed_down():
    """Samples 1 and 3 are bounded from above all their values: only the uniform actions' values are pushed
    down there.
    """
    agent, b = make(critics=3), batch(mc_return=[-math.inf, 1.0, -math.inf, 1.0])
    q, asked = agent.q, []

    def remember(obs, act):
        asked.append(q(obs, act))
        asked[-1].retain_grad()
        return asked[-1]

    agent.q = remember
    lse, metrics = agent.log_sum_exp(b)
    lse.sum().backward()
    values, push = (x.unflatten(-1, (9, 4)) for x in (asked[0].detach(), asked[0].grad))
    assert values.max() < 1
    assert (push[:, :3] > 0).all()
    assert (push[:, 3:, [0, 2]] > 0).all()
    assert (push[:, 3:, [1, 3]] == 0).all()
    assert metrics["bound_rate"] == 0.5


def test_uniform_actions_are_not_bounded_and_the_bound_comes_before_the_density():
    agent, b = make(critics=2), batch(mc_return=[1.0, 2.0, -math.inf, 3.0])
    constant, log_p = torch.tensor([0.5, 1.5]), -0.7
    nn.init.zeros_(agent.critic.layers[-1].weight)
    agent.critic.layers[-1].bias.data.copy_(constant[:, None, None])
    agent.actor.sample = lambda obs, n: (
        torch.zeros(obs.shape[0] * n, 2),
        torch.full((obs.shape[0] * n,), log_p),
    )
    lse, metrics = agent.log_sum_exp(b)
    for n, v in enumerate(constant.tolist()):
        for i, g in enumerate(b.mc_return.tolist()):
            expected = math.log(3 * math.exp(v + 2 * math.log(2)) + 6 * math.exp(max(v, g) - log_p))
            assert lse[n, i].item() == pytest.approx(expected, rel=1e-5)
    assert metrics["bound_rate"].item() == 5 / 8  # 1, 2, 3 exceed 0.5; 2, 3 exceed 1.5


@pytest.mark.parametrize(("mc", "rate"), [(5.0, 0.25), (11.0, 1.0), (-1.0, 0.0)])
def test_bound_rate_counts_the_policys_actions(mc, rate):
    """Values 0 of the first quarter of the policy's actions and of all uniform ones, 10 of the others."""
    agent = make(samples=2)
    agent.q = lambda obs, act: torch.tensor([0.0, 0, 0, 10, 10, 10]).repeat_interleave(4).expand(2, 24)
    assert agent.log_sum_exp(batch(mc_return=mc))[1]["bound_rate"] == rate


def test_a_seed_is_bounded_by_its_own_returns():
    agent = make((2,))
    b = batch((2,), mc_return=torch.tensor([[-math.inf], [1e3]]))
    assert update(agent, b)["bound_rate"].tolist() == [0, 1]


def test_a_batch_without_returns_is_refused():
    with pytest.raises(UserError, match=r"with_returns.*gamma.*calibrate=false"):
        update(make(), batch())
    update(make(calibrate=False), batch())


def test_the_online_config_is_the_same():
    cfg = CalQLConfig(critics=5, **TINY)
    assert type(cfg.after_switch()) is CalQLConfig
    assert asdict(cfg.after_switch()) == asdict(cfg)
