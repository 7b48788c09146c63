"""BC: its likelihood, that it finds the data's mean and spread, isolation of seeds, and that others take its
actor over.
"""

import copy
import math
from functools import partial

import nets
import numpy as np
import pytest
import torch
from nets import update
from torch.distributions import Normal

from mbo2o.agents.awac import AWACConfig
from mbo2o.agents.base import make_agent
from mbo2o.agents.bc import BCConfig
from mbo2o.agents.iql import IQLConfig
from mbo2o.data.dataset import TransitionDataset
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.recipes.finetune import FinetuneConfig
from mbo2o.run.config import RunConfig
from mbo2o.store import datasets
from mbo2o.training import Config, train
from mbo2o.types import Batch, Spec

SMALL = MLPConfig(hidden=[16])
batch = partial(nets.batch, done=0)
make = partial(nets.make, "bc")


@pytest.mark.parametrize("seeds", [(), (2,)])
def test_loss_equals_a_loop_over_samples(seeds):
    agent, b = make(seeds), batch(seeds)
    agent.actor.spread.data.normal_(-1.0, 0.3)
    mean, std = (
        x.detach() for x in (torch.tanh(agent.actor.net(b.obs)), agent.actor(b.obs)[1].exp()[..., :1, :])
    )
    loss = update(agent, b)["actor_loss"]
    assert loss.shape == seeds
    assert not loss.requires_grad
    for k in [(0,), (1,)] if seeds else [()]:
        normals = [
            Normal(mean[(*k, i)], std[(*k, 0)]).log_prob(b.act[(*k, i)]).sum().item() for i in range(8)
        ]
        assert loss[k].item() == pytest.approx(-sum(normals) / 8, rel=1e-5)


def test_finds_the_mean_and_the_spread_of_the_data():
    """Actions ½ sin(s₁) ± 0.1 in one seed, the opposite ± 0.3 in the other; observations far from the unit
    scale.
    """
    agent = make((2,), act_dim=1, actor_lr=1e-2, normalize=True)
    sign, spread = torch.tensor([[1.0], [-1.0]]), torch.tensor([[0.1], [0.3]])
    every = torch.randn(1000, 3) * 30 + 100
    agent.prepare(Batch(every, every[:, :1], every[:, 0], every, every[:, 0]))
    policy = lambda obs: sign * 0.5 * torch.sin((obs[..., 0] - 100) / 30)  # noqa: E731
    for _ in range(600):
        b = batch((2,), n=128, act_dim=1)
        b.obs = b.obs * 30 + 100
        b.act = (policy(b.obs) + spread * torch.randn(2, 128)).unsqueeze(-1)
        update(agent, b)
    obs = torch.randn(2, 200, 3).clamp(-2, 2) * 30 + 100
    assert (agent.act(obs)[..., 0] - policy(obs)).abs().mean() < 0.06
    torch.testing.assert_close(agent.actor(obs)[1].exp()[:, :1, 0], spread, rtol=0.15, atol=0)
    off = (agent.act(obs, explore=True) - agent.act(obs))[..., 0]
    torch.testing.assert_close(off.std(-1, keepdim=True), spread, rtol=0.2, atol=0)


@pytest.mark.parametrize("seeds", [(), (2,)])
def test_actions_lie_in_the_box_and_values_are_nan(seeds):
    agent = make(seeds)
    obs = torch.randn(*seeds, 50, 3)
    for explore in (False, True):
        act = agent.act(obs, explore)
        assert act.shape == (*seeds, 50, 2)
        assert act.abs().max() <= 1
        assert not act.requires_grad
    assert torch.equal(agent.act(obs), agent.act(obs))
    assert (agent.act(obs, explore=True).abs() == 1).any()  # σ = 1 at first: clamped
    value = agent.value(obs, act)
    assert value.shape == (*seeds, 50)
    assert value.isnan().all()


@pytest.mark.parametrize("seeds", [(), (3,)])
def test_state_is_complete(seeds, tmp_path):
    agent, batches = make(seeds), [batch(seeds) for _ in range(6)]
    for b in batches[:3]:
        update(agent, b)
    torch.save(agent.state_dict(), tmp_path / "agent.pt")
    history = [update(agent, b)["actor_loss"] for b in batches[3:]]
    twin = make(seeds)
    update(twin, batches[0])
    twin.load_state_dict(torch.load(tmp_path / "agent.pt"))
    for expected, b in zip(history, batches[3:], strict=True):
        assert torch.equal(update(twin, b)["actor_loss"], expected)
    assert all(torch.equal(x, agent.state_dict()[name]) for name, x in twin.state_dict().items())


@pytest.mark.parametrize("poison", [math.nan, 1e6])
def test_seeds_do_not_touch(poison):
    clean, batches = make((3,)), [batch((3,)) for _ in range(5)]
    poisoned = copy.deepcopy(clean)
    for b in batches:
        update(clean, b)
        act = b.act.clone()
        act[0] = poison
        m = update(poisoned, Batch(b.obs, act, b.rew, b.next_obs, b.done))
    for (name, a), b in zip(clean.named_parameters(), poisoned.parameters(), strict=True):
        assert torch.equal(a[1:], b[1:]), name
        assert not torch.equal(a[0], b[0]), name
    assert m["actor_loss"][1:].isfinite().all()


@pytest.mark.parametrize(
    "cfg", [IQLConfig(actor=SMALL, critic=SMALL, value_net=SMALL), AWACConfig(actor=SMALL, critic=SMALL)]
)
def test_others_take_its_actor_over(cfg):
    bc = make((2,), normalize=True)
    for _ in range(3):
        update(bc, batch((2,)))
    agent = make_agent(cfg, bc.spec)
    table = {x.part: x.what for x in agent.adopt(bc)}
    assert (table["actor"], table["actor_optim"], table["critic"]) == ("kept", "kept", "new")
    obs = torch.randn(2, 5, 3)
    assert torch.equal(agent.act(obs), bc.act(obs))
    assert bc.cfg.after_switch() is bc.cfg


@pytest.mark.parametrize(
    ("config", "sees"), [(BCConfig(actor=SMALL), True), (AWACConfig(actor=SMALL, critic=SMALL), False)]
)
def test_cloning_uses_rows_whose_next_observation_is_unknown(config, sees, tmp_path, monkeypatch):
    """Episodes of three steps, of which the last one's next observation is not recorded."""
    obs = np.random.default_rng(0).normal(size=(90, 3)).astype(np.float32)
    ends = np.arange(90) % 3 == 2
    path = tmp_path / "short.hdf5"
    data = TransitionDataset.from_arrays(obs, np.zeros((90, 1)), np.zeros(90), np.zeros(90, bool), ends)
    datasets.write(data, path)
    seen, update = [], type(make_agent(config, Spec(3, 1))).update

    def spied(self, b, step):
        seen.append(torch.isnan(b.next_obs).any(-1).float().mean().item())
        return update(self, b, step)

    monkeypatch.setattr(type(make_agent(config, Spec(3, 1))), "update", spied)
    recipe = FinetuneConfig(offline=config, offline_steps=20, online_steps=0, batch=64)
    run = RunConfig(eval_episodes=1, checkpoint_every=1000)
    train(
        Config(
            recipe=recipe,
            dataset=str(path),
            env="Pendulum-v1",
            dir=str(tmp_path / "run"),
            run=run,
            report=False,
        )
    )
    assert np.mean(seen) == (pytest.approx(1 / 3, abs=0.08) if sees else 0)
