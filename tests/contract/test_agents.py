"""What every registered agent promises, with nets of eight units."""

import copy
import math
from dataclasses import fields, is_dataclass
from functools import partial

import nets
import pytest
import torch
from nets import nth, same, update
from nosync import refusing

from mbo2o.agents import AgentConfig, make_agent
from mbo2o.agents.qensemble import QConfig
from mbo2o.ensemble.explore import EXPLORATIONS, ExploreConfig
from mbo2o.ensemble.targets import REDUCTIONS, SunriseConfig
from mbo2o.registry import AGENTS, conf_folder
from mbo2o.run.engine import Engine
from mbo2o.types import Batch

OBS, ACT = nets.OBS, nets.ACT
WITH_Q = [name for name, entry in AGENTS.items() if issubclass(entry.config, QConfig)]
FEW = {"critics": 3, "samples": 2}
batch = partial(nets.batch, (3,), mc_return=0.5)


def make(name, seeds=(3,), **change):
    """An agent with few critics and samples that has seen the scale of some data."""
    known = {f.name for f in fields(AGENTS[name].config)}
    few = {key: n for key, n in FEW.items() if key in known}
    agent = nets.make(name, seeds, hidden=8, **few | change)
    agent.prepare(nets.batch(n=50))
    return agent


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
        metrics = update(agent, nets.batch(seeds, mc_return=0.5))
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
            metrics = update(agent, Batch(obs, b.act, rew, b.next_obs, b.done, b.mc_return))
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
        update(agent, b)
    state = {k: v.clone() for k, v in agent.state_dict().items()}
    rng = torch.get_rng_state()
    history = [update(agent, b) for b in batches[3:]]
    twin = make(name)
    update(twin, batches[0])
    twin.load_state_dict(state)
    torch.set_rng_state(rng)
    for expected, b in zip(history, batches[3:], strict=True):
        again = update(twin, b)
        assert expected.keys() == again.keys()
        assert all(torch.equal(again[key], x) for key, x in expected.items())
    assert same(agent, twin)


@pytest.mark.parametrize("name", AGENTS)
def test_update_never_reads_back(name, monkeypatch):
    """No value leaves the device in `update`, so a GPU never waits and a graph can be captured."""
    agent, batches, steps = make(name), [batch() for _ in range(2)], [nth(1), nth(2)]

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
    for step, b in zip(steps, batches, strict=True):
        assert all(isinstance(x, torch.Tensor) for x in agent.update(b, step).values())


@pytest.mark.parametrize("name", AGENTS)
def test_the_online_agent_acts_as_the_offline_one_until_it_learns(name):
    """The switch with zero updates changes nothing: the same action everywhere, every part accounted for."""
    before = make(name, normalize=True)
    for _ in range(3):
        update(before, batch())
    after = make_agent(before.cfg.after_switch(), before.spec)
    table = after.adopt(before)
    obs = 3 * torch.randn(3, 9, OBS)
    assert torch.equal(after.act(obs), before.act(obs))
    assert torch.equal(after.value(obs, after.act(obs)), before.value(obs, before.act(obs))) or name == "bc"
    parts = {x.part: x.what for x in table if "." not in x.part}
    for part, _ in [*after.named_children(), *after.named_parameters(recurse=False)]:
        assert parts[part] == "kept", part
    update(after, batch())
    assert after.updates == 1


@pytest.mark.parametrize("old", AGENTS)
@pytest.mark.parametrize("new", AGENTS)
def test_adopts_from_every_other(old, new):
    """Whatever two agents share crosses bit for bit; the rest is named; learning goes on."""
    before, after = make(old), make(new)
    for _ in range(2):
        update(before, batch())
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
    assert update(after, batch()).keys()


@pytest.mark.parametrize("name", WITH_Q)
@pytest.mark.parametrize("exploration", EXPLORATIONS)
def test_explores(name, exploration):
    agent = make(name, explore=ExploreConfig(name=exploration, candidates=4, oac_delta=0.5))
    for _ in range(2):
        update(agent, batch())
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
    assert update(agent, batch())["critic_loss"].isfinite().all()
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
        losses.append(update(agent, b)["critic_loss"])
    assert (losses[0] != losses[1]).all()


@pytest.mark.parametrize("name", AGENTS)
def test_has_a_yaml_that_restates_nothing(name):
    assert (
        conf_folder() / "agent" / f"{name}.yaml"
    ).read_text() == f"defaults:\n  - {name}_base\n  - _self_\n"
    assert is_dataclass(AGENTS[name].config)
    assert issubclass(AGENTS[name].config, AgentConfig)


# ---------------------------------------------------------------------- compiled


@pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "trace_autograd_ops"), reason="this torch traces no autograd.grad"
)
@pytest.mark.parametrize("name", AGENTS)
def test_update_is_one_graph_per_form(name):
    """It traces without a break, and again only for the steps at which a delayed part is due.

    Nothing in what was traced reads a tensor back to the host.

    Adam in plain arithmetic, which tracing takes, rounds otherwise than the fused kernel.
    """
    torch._dynamo.reset()
    eager = make(name, **nets.DEMANDING.get(name, {}))
    compiled = copy.deepcopy(eager)
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled.update = torch.compile(compiled.update, fullgraph=True, backend=refusing, dynamic=False)
        engine = Engine()
        for t in range(eager.cycle + 4):
            # the second update may differ from the first, whose tensors have no history yet
            stance = "default" if t <= eager.cycle else "fail_on_recompile"
            b, drawn = batch(), []
            for agent in (eager, compiled):
                torch.manual_seed(t)
                with torch.compiler.set_stance(stance):
                    drawn.append(engine.update(agent, b))
            assert drawn[0].keys() == drawn[1].keys()
            for key, x in drawn[0].items():
                torch.testing.assert_close(drawn[1][key], x, rtol=1e-3, atol=1e-5)
    for x, y in zip(eager.state_dict().values(), compiled.state_dict().values(), strict=True):
        torch.testing.assert_close(y, x, rtol=1e-3, atol=1e-5)
    assert compiled.updates == eager.cycle + 4
