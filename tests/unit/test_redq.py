"""REDQ: when the actor moves, which critics the target asks, and what the actor climbs."""

from functools import partial
from itertools import combinations

import nets
import pytest
import torch
from nets import update

from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.ensemble.targets import SunriseConfig

SMALL = MLPConfig(hidden=[8])
batch = partial(nets.batch, n=6, done=0)
make = partial(nets.make, "redq", hidden=8)


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("delay", [1, 3])
def test_actor_moves_with_every_kth_update_and_critics_with_all(delay):
    agent = make(policy_delay=delay)
    for t in range(1, 8):
        before = [weights(x) for x in (agent.critic, agent.target, agent.actor)]
        log_alpha = agent.log_alpha.item()
        metrics = update(agent, batch())
        critic, target, actor = (
            not torch.equal(weights(x), w)
            for x, w in zip((agent.critic, agent.target, agent.actor), before, strict=True)
        )
        due = t % delay == 0
        assert critic
        assert target
        assert actor == due == (agent.log_alpha.item() != log_alpha)
        assert ("actor_loss" in metrics) == due


def test_delay_goes_on_where_it_was_saved():
    agent, twin = make(policy_delay=3), make(policy_delay=3)
    update(agent, batch())
    update(agent, batch())
    twin.load_state_dict(agent.state_dict())
    assert "actor_loss" in update(twin, batch())


def test_the_target_is_the_smaller_of_a_random_pair():
    """One pair per update and seed, whatever the batch; any of the 45."""
    agent, values = make((2,), backup_entropy=False, gamma=0.5), torch.randperm(20).float().reshape(2, 10)
    agent.target.layers[-1].weight.zero_()
    agent.target.layers[-1].bias.copy_(values[..., None, None])
    b = batch((2,), n=3)
    draws = torch.stack([(agent.backup(b)[0] - b.rew) / 0.5 for _ in range(600)])
    assert torch.allclose(draws, draws[..., :1].expand_as(draws), atol=1e-4)
    draws = draws[..., 0].round()
    for s in range(2):
        minima = [min(pair) for pair in combinations(values[s].tolist(), 2)]
        assert set(draws[:, s].tolist()) == set(minima)
        assert draws[:, s].mean().item() == pytest.approx(sum(minima) / 45, abs=0.7)  # 3.5 standard errors
    assert not torch.equal(draws[:, 0].argsort(), draws[:, 1].argsort())


def test_actor_climbs_the_mean():
    agent = make(policy_delay=1, critic_lr=0.0)
    values = torch.randn(10)
    agent.critic.layers[-1].weight.data.zero_()
    agent.critic.layers[-1].bias.data.copy_(values[:, None, None])
    b = batch()
    torch.testing.assert_close(agent.value(b.obs, b.act), values.mean().expand(6))
    m = update(agent, b)
    torch.testing.assert_close(m["actor_loss"], -m["entropy"] - values.mean())


@pytest.mark.parametrize("backup", ["sampled", "deterministic", "max"])
@pytest.mark.parametrize("seeds", [(), (2,)])
def test_only_two_target_critics_are_evaluated(backup, seeds):
    """The values are those of two different members of ten, and the target is the smaller one."""
    agent, b = make(seeds, backup=backup, backup_entropy=False, gamma=0.5), batch(seeds)
    for p in agent.target.parameters():
        p.add_(0.3 * torch.randn_like(p))
    torch.manual_seed(3)
    y, two = agent.backup(b)
    assert two.shape == (*seeds, 2, 6)
    torch.testing.assert_close(y, b.rew + 0.5 * two.amin(-2))
    if backup == "deterministic":
        every = agent.q_target(b.next_obs, agent.actor.mode(b.next_obs))
        found = (two.unsqueeze(-2) - every.unsqueeze(-3)).abs().amax(-1) < 1e-5  # (*S, 2, 10)
        assert (found.sum(-1) == 1).all()
        assert (found.sum(-2) <= 1).all()


@pytest.mark.parametrize(
    "change", [{"granularity": "sample"}, {"sunrise": SunriseConfig("per_sample")}, {"target": "min_q"}]
)
def test_all_target_critics_are_evaluated_where_all_are_needed(change):
    assert make(**change).backup(batch())[1].shape == (10, 6)
