"""What every registered agent promises, with nets of eight units."""

import copy
import math
from dataclasses import fields, is_dataclass, replace

import pytest
import torch

from mbo2o import agents  # noqa: F401  registers
from mbo2o.agents import make_agent
from mbo2o.agents.qensemble import QConfig
from mbo2o.cli.main import conf_folder
from mbo2o.ensemble.explore import EXPLORATIONS, ExploreConfig
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.ensemble.targets import REDUCTIONS, SunriseConfig
from mbo2o.registry import AGENTS
from mbo2o.types import Batch, Spec

OBS, ACT = 3, 2
WITH_Q = [name for name, entry in AGENTS.items() if issubclass(entry.config, QConfig)]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def small(name, **change):
    """The agent's defaults with nets of one layer of eight, three critics and few samples."""
    cfg = AGENTS[name].config()
    nets = {f.name: MLPConfig(hidden=[8]) for f in fields(cfg) if isinstance(getattr(cfg, f.name), MLPConfig)}
    known = {f.name for f in fields(cfg)}
    few = {k: v for k, v in {"critics": 3, "samples": 2, "backup_samples": 2}.items() if k in known}
    return replace(cfg, **nets | few | change)


def make(name, seeds=(3,), **change):
    agent = make_agent(small(name, **change), Spec(OBS, ACT, seeds))
    agent.prepare(batch((), 50))
    return agent


def batch(seeds=(3,), n=8):
    obs, next_obs = torch.randn(2, *seeds, n, OBS)
    act = torch.rand(*seeds, n, ACT) * 2 - 1
    return Batch(
        obs,
        act,
        torch.rand(*seeds, n),
        next_obs,
        (torch.rand(*seeds, n) < 0.3).float(),
        torch.randn(*seeds, n),
    )


def same(a, b):
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_there_are_agents():
    assert {
        "sac",
        "sacn",
        "edac",
        "redq",
        "cql",
        "calql",
        "iql",
        "awac",
        "td3bc",
        "lapo",
        "bc",
        "obac",
        "pex",
        "adaptive_bc",
    } <= set(AGENTS)


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("seeds", [(), (1,), (3,)])
def test_shapes_and_bounds(name, seeds):
    agent = make(name, seeds)
    for _ in range(2):  # delays
        metrics = agent.update(batch(seeds))
        assert metrics
        assert all(
            x.shape == seeds and x.isfinite().all() and not x.requires_grad for x in metrics.values()
        ), metrics
    obs = 5 * torch.randn(*seeds, 7, OBS)
    for exploring in (False, True):
        act = agent.act(obs, exploring)
        assert act.shape == (*seeds, 7, ACT)
        assert act.abs().max() <= 1
        assert not act.requires_grad
    assert torch.equal(agent.act(obs), agent.act(obs))
    assert agent.value(obs, agent.act(obs)).shape == (*seeds, 7)
    agent.on_episode(torch.ones(seeds, dtype=torch.bool), torch.zeros(seeds), torch.ones(seeds))


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("poison", [math.nan, 1e6])
def test_seeds_do_not_touch(name, poison):
    clean, batches = make(name), [batch() for _ in range(4)]
    poisoned = copy.deepcopy(clean)
    for agent, bad in ((clean, None), (poisoned, poison)):
        torch.manual_seed(7)
        for b in batches:
            rew, obs = b.rew.clone(), b.obs.clone()
            if bad is not None:
                rew[0], obs[0] = bad, bad
            metrics = agent.update(Batch(obs, b.act, rew, b.next_obs, b.done, b.mc_return))
    for (key, a), b in zip(clean.state_dict().items(), poisoned.state_dict().values(), strict=True):
        if a.dim() and a.shape[0] == 3:
            assert torch.equal(a[1:], b[1:]), key
    assert not same(clean, poisoned)
    assert all(x[1:].isfinite().all() for x in metrics.values())
    obs = torch.randn(3, 5, OBS)
    assert torch.equal(clean.act(obs)[1:], poisoned.act(obs)[1:])


@pytest.mark.parametrize("name", AGENTS)
def test_state_is_complete(name):
    agent, batches = make(name), [batch() for _ in range(7)]
    for b in batches[:3]:
        agent.update(b)
    state = {k: v.clone() for k, v in agent.state_dict().items()}
    rng = torch.get_rng_state()
    history = [agent.update(b) for b in batches[3:]]
    twin = make(name)
    twin.update(batches[0])
    twin.load_state_dict(state)
    torch.set_rng_state(rng)
    for expected, b in zip(history, batches[3:], strict=True):
        again = twin.update(b)
        assert expected.keys() == again.keys()
        assert all(torch.equal(again[key], x) for key, x in expected.items())
    assert same(agent, twin)


@pytest.mark.parametrize("name", AGENTS)
def test_update_never_reads_back(name, monkeypatch):
    """No value leaves the device in `update`, so a GPU never waits and a graph can be captured."""
    agent, batches = make(name), [batch() for _ in range(2)]

    def refuse(*args, **kwargs):
        raise AssertionError("a tensor was read back to the host")

    for method in (
        "item",
        "tolist",
        "numpy",
        "cpu",
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
        "nonzero",
    ):
        monkeypatch.setattr(torch.Tensor, method, refuse)
    with pytest.raises(AssertionError, match="read back"):
        float(batches[0].rew.mean())  # so it would be noticed
    for b in batches:
        assert all(isinstance(x, torch.Tensor) for x in agent.update(b).values())


@pytest.mark.parametrize("name", AGENTS)
def test_its_successor_acts_as_it_did(name):
    """The switch with zero updates changes nothing: the same action everywhere, every part accounted for."""
    before = (
        make(name, normalize=True)
        if "normalize" in {f.name for f in fields(AGENTS[name].config)}
        else make(name)
    )
    for _ in range(3):
        before.update(batch())
    cfg = before.cfg.after_switch() if hasattr(before.cfg, "after_switch") else before.cfg
    after = make_agent(cfg, before.spec)
    table = after.adopt(before)
    obs = 3 * torch.randn(3, 9, OBS)
    assert torch.equal(after.act(obs), before.act(obs))
    assert torch.equal(after.value(obs, after.act(obs)), before.value(obs, before.act(obs))) or name == "bc"
    parts = {x.part: x.what for x in table if "." not in x.part}
    for part, _ in [*after.named_children(), *after.named_parameters(recurse=False)]:
        assert parts[part] == "kept", part
    after.update(batch())
    assert after.updates == 1


@pytest.mark.parametrize("old", AGENTS)
@pytest.mark.parametrize("new", AGENTS)
def test_adopts_from_every_other(old, new):
    """Whatever two agents share crosses bit for bit; the rest is named; learning goes on."""
    before, after = make(old), make(new)
    for _ in range(2):
        before.update(batch())
    fresh = copy.deepcopy(after)
    table = {x.part: x.what for x in after.adopt(before) if x.what in ("kept", "reset", "new", "dropped")}
    parts = dict(after.named_children())
    for part, module in parts.items():
        if table[part] == "kept":
            assert same(module, getattr(before, part)), part
        else:
            assert table[part] in ("new", "reset")
            assert same(module, getattr(fresh, part)), part
    assert table["observe"] == "kept"
    assert after.update(batch()).keys()


@pytest.mark.parametrize("name", WITH_Q)
@pytest.mark.parametrize("exploration", EXPLORATIONS)
def test_explores(name, exploration):
    agent = make(name, explore=ExploreConfig(name=exploration, candidates=4, oac_delta=0.5))
    for _ in range(2):
        agent.update(batch())
    obs = torch.randn(3, 5, OBS)
    act = agent.act(obs, explore=True)
    assert act.abs().max() <= 1
    assert not torch.equal(act, agent.act(obs, explore=True))  # it draws
    heads = agent.head.clone()
    torch.manual_seed(1)
    for _ in range(20):
        agent.on_episode(torch.tensor([True, False, True]), torch.zeros(3), torch.ones(3))
    assert agent.head[1] == heads[1]
    assert all(p.grad is None for p in agent.parameters())


@pytest.mark.parametrize("name", WITH_Q)
@pytest.mark.parametrize("target", REDUCTIONS)
def test_learns_under_every_target(name, target):
    agent = make(name, target=target)
    before = copy.deepcopy(agent)
    assert agent.update(batch())["critic_loss"].isfinite().all()
    assert not same(agent.critic, before.critic)


@pytest.mark.parametrize("name", WITH_Q)
@pytest.mark.parametrize(
    "change",
    [
        {"sunrise": SunriseConfig("per_sample", std_norm="batch_mean")},
        {"sunrise": SunriseConfig("scalar_batch")},
        {"mask": 0.5},
    ],
)
def test_weights_and_masks_change_what_critics_learn(name, change):
    plain, weighted = make(name), make(name, **change)
    weighted.load_state_dict(plain.state_dict())
    b = batch()
    losses = []
    for agent in (plain, weighted):
        torch.manual_seed(3)
        losses.append(agent.update(b)["critic_loss"])
    assert (losses[0] != losses[1]).all()


@pytest.mark.parametrize("name", AGENTS)
def test_has_a_yaml_that_restates_nothing(name):
    assert (
        conf_folder() / "agent" / f"{name}.yaml"
    ).read_text() == f"defaults:\n  - {name}_base\n  - _self_\n"
    assert is_dataclass(AGENTS[name].config)
