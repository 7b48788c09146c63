"""MOBILE's penalty against loops, in closed forms, and inside the step that an engine compiles."""

import nets
import pytest
import torch

from mbo2o.agents.sac import SACConfig
from mbo2o.agents.td3bc import TD3BCConfig
from mbo2o.dynamics.bellman import Bellman, measure
from mbo2o.dynamics.model import DynamicsConfig, GaussianDynamics
from mbo2o.dynamics.rollout import Branches, Rollouts, uncertainty
from mbo2o.dynamics.termination import none
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.ensemble.uncertainty import PENALTIES, max_aleatoric, penalty
from mbo2o.recipes.mopo import MOPOConfig
from mbo2o.recipes.penalties import lowest, penalty_of
from mbo2o.run.engine import Engine, EngineConfig
from mbo2o.types import Batch, Spec, UserError

B = 5


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def make(seeds=(), members=4, elites=3):
    cfg = DynamicsConfig(members=members, elites=elites, net=MLPConfig(hidden=[8]))
    model = GaussianDynamics(Spec(nets.OBS, nets.ACT, seeds), cfg)
    model.elites.copy_(torch.tensor([3, 0, 2][:elites]))
    return model


def prediction(seeds=(), members=4):
    mean = torch.randn(*seeds, members, B, nets.OBS + 1)
    return torch.randn(*seeds, B, nets.OBS), mean, torch.rand(*seeds, members, B, nets.OBS + 1)


@pytest.mark.parametrize("seeds", [(), (2,)])
def test_without_noise_it_is_the_spread_of_the_values_of_the_elites_means(seeds):
    model = make(seeds)
    obs, mean, std = prediction(seeds)
    weight = torch.randn(nets.OBS)
    u = Bellman(model, lambda x: x @ weight, draws=2)(obs, mean, 0 * std)
    assert u.shape == (*seeds, B)
    for k in [(s,) for s in range(2)] if seeds else [()]:
        for i in range(B):
            values = [float((obs[(*k, i)] + mean[(*k, m, i)][:-1]) @ weight) for m in (3, 0, 2)]
            centre = sum(values) / 3
            expected = (sum((v - centre) ** 2 for v in values) / 2) ** 0.5
            assert u[(*k, i)].item() == pytest.approx(expected, rel=1e-4)


def test_the_mean_over_draws_is_taken_before_the_spread():
    """For v = w·s' and K draws, Var of an elite's value is w²σ²/K: many draws leave the means' spread."""
    model = make()
    obs, mean, _ = prediction()
    obs, mean = obs.repeat(400, 1), mean.repeat(1, 400, 1)
    alike = mean[:1].expand(4, -1, -1)  # members agree: what is left is noise, of variance 1 / K
    for draws in (1, 16):
        u = Bellman(model, lambda x: x[..., 0], draws)(obs, alike, torch.ones_like(alike))
        assert u.square().mean().item() == pytest.approx(1 / draws, rel=0.1)


def test_a_reward_that_members_disagree_on_is_no_part_of_it():
    model = make()
    obs, mean, std = prediction()
    mean[..., :-1] = mean[:1, :, :-1]
    assert torch.equal(Bellman(model, lambda x: x.sum(-1))(obs, mean, 0 * std), torch.zeros(B))


@pytest.mark.parametrize("name", ["sac", "td3bc", "iql", "redq"])
def test_a_value_is_the_lowest_target_critic_s_at_an_action_of_the_policy(name):
    agent = nets.make(name, (2,), critics=3)
    agent.observe.mean.fill_(0.5)
    agent.observe.std.fill_(2.0)
    obs = torch.randn(2, B, nets.OBS)
    torch.manual_seed(1)
    found = lowest(agent, obs)
    torch.manual_seed(1)
    act = agent.act(obs, explore=True)
    q = torch.stack([agent.q_target((obs - 0.5) / 2, act)[:, i] for i in range(3)])
    torch.testing.assert_close(found, q.min(0).values)


def rollouts(engine=None, seeds=(2,)):
    model, agent = make(seeds), nets.make("sac", seeds)
    u = penalty_of("bellman", agent, model, 3)
    rules = {"termination": none, "penalty": u, "prepare": Engine(engine or EngineConfig()).prepare}
    return Rollouts(model, lambda obs: agent.act(obs, explore=True), **rules), model, u


def test_imagined_rewards_carry_it():
    first, second = Branches(), Branches()
    roll, _, _ = rollouts()
    obs = torch.randn(2, B, nets.OBS)
    for into, coef in ((first, 1.0), (second, 3.0)):
        torch.manual_seed(1)
        metrics = roll.roll(obs, into, horizon=1, coef=coef)
    u = (first.rows.rew - second.rows.rew) / 2
    assert (u > 0).all()
    torch.testing.assert_close(metrics["penalty"], u.mean(-1))


def test_a_probe_measures_it_beside_the_others():
    _, model, u = rollouts()
    b = nets.batch((2,), n=B)
    assert set(uncertainty(model, b, penalty=u)) == {*PENALTIES, "aleatoric_std", "bellman"}
    torch.manual_seed(1)
    found = uncertainty(model, b, penalty=u)["bellman"]
    torch.manual_seed(1)
    torch.testing.assert_close(found, u(b.obs, *model.predict(b.obs, b.act)).mean(-1))


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "trace_autograd_ops"), reason="this torch traces no autograd.grad"
)
def test_it_is_compiled_with_the_rollout():
    found = []
    for engine in (EngineConfig(), EngineConfig("compiled")):
        torch.manual_seed(0)
        roll, _, _ = rollouts(engine)
        torch.manual_seed(1)
        roll.roll(torch.randn(2, B, nets.OBS), into := Branches(), horizon=3, coef=0.5)
        found.append(into.rows)
    assert isinstance(found[0], Batch)
    torch.testing.assert_close(found[0].rew, found[1].rew, rtol=1e-4, atol=1e-5)


def test_either_kind_of_penalty_is_measured():
    obs, mean, std = prediction()
    assert torch.equal(measure(max_aleatoric, obs, mean, std), max_aleatoric(mean, std))


def test_it_is_refused_where_it_cannot_be():
    with pytest.raises(UserError, match=r"spread over elites, and recipe\.dynamics\.elites=1 gives none"):
        MOPOConfig(penalty="bellman", dynamics=DynamicsConfig(members=2, elites=1))
    with pytest.raises(UserError, match="did you mean 'bellman'"):
        MOPOConfig(penalty="belman")
    with pytest.raises(UserError, match=r"penalty_draws=0 must be at least 1"):
        MOPOConfig(penalty="bellman", penalty_draws=0)
    with pytest.raises(UserError, match="a penalty is called 'bellman' already"):
        penalty("bellman")(lambda mean, std: mean[..., 0, :, 0])
    for agent in (SACConfig(), TD3BCConfig()):
        assert MOPOConfig(penalty="bellman", agent=agent).penalty == "bellman"
