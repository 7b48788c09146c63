"""Steps as graphs: recorded once, replayed from then on, with a stand-in for the GPU.

The stand-in records a step with `make_fx`, which puts every number of the host into the recording, as a CUDA
graph does, and refuses operations that wait for the device. A replay runs the recorded operations.
"""

import copy
import json
from dataclasses import replace

import nets
import numpy as np
import pytest
import survival
import torch
from nets import DEMANDING, batch
from nosync import no_host_reads
from torch.fx.experimental.proxy_tensor import make_fx

from mbo2o.agents.td3bc import TD3BCConfig
from mbo2o.data.buffer import ReplayBuffer
from mbo2o.dynamics.fit import FitConfig, Learner
from mbo2o.dynamics.model import DynamicsConfig, GaussianDynamics
from mbo2o.dynamics.rollout import Branches, Rollouts
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.ensemble.uncertainty import max_deviation
from mbo2o.recipes.finetune import FinetuneConfig
from mbo2o.registry import AGENTS, SOURCES
from mbo2o.run import graphs
from mbo2o.run.engine import Engine, EngineConfig
from mbo2o.sources import make_source
from mbo2o.sources.mixtures import Mix, Youngest
from mbo2o.store import datasets
from mbo2o.training import Config, train
from mbo2o.types import Spec, UserError


def record(run):
    """What `graphs.capture` does on a GPU. The first replay has happened already: recording runs the step."""
    kept = {}

    def flat():
        kept["out"] = run()
        return graphs.tensors(kept["out"])

    with no_host_reads():
        module = make_fx(flat, tracing_mode="real", _allow_non_fake_inputs=True)()
    results, replays = graphs.tensors(kept["out"]), []

    def replay():
        if replays:
            with torch.no_grad():  # what was recorded has its gradients as operations
                for old, new in zip(results, module(), strict=True):
                    old.copy_(new)
        replays.append(1)

    return kept["out"], replay


@pytest.fixture
def recorded(monkeypatch):
    """Engines of mode graph on the CPU, and how often they recorded a step."""
    count = []

    def capture(run):
        count.append(1)
        return record(run)

    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(EngineConfig, "missing", lambda self, device: "")
    return count


def rows(n, seeds=(2,), seed=0):
    buffer = ReplayBuffer(Spec(nets.OBS, nets.ACT, seeds), 200, gamma=0.9)
    torch.manual_seed(seed)
    for _ in range(n):
        buffer.add(batch(seeds, n=1))
    return buffer


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_learns_the_same_bits_by_replays(name, recorded):
    eager = nets.make(name, (2,), **DEMANDING.get(name, {}))
    replayed, source = copy.deepcopy(eager), rows(50)
    sums = []
    for agent, mode in ((eager, "eager"), (replayed, "graph")):
        torch.manual_seed(1)
        engine, means = Engine(EngineConfig(mode)), {}
        for _ in range(8):
            for found, count in engine.learn(source, 8, 2, {"": agent}, 3):
                for key, x in found.items():
                    total, n = means.get(key, (0.0, 0))
                    means[key] = total + x, n + count
        sums.append(means)
    assert nets.same(eager, replayed)
    assert recorded
    assert len(recorded) <= eager.cycle
    assert sums[0].keys() == sums[1].keys()
    for key, (total, n) in sums[0].items():
        assert n == sums[1][key][1]
        torch.testing.assert_close(sums[1][key][0], total)


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_explores_the_same_by_replays(name, recorded):
    agent, found = nets.make(name, (2,), **DEMANDING.get(name, {})), []
    for mode in ("eager", "graph"):
        engine = Engine(EngineConfig(mode))
        torch.manual_seed(0)
        found.append([engine.act(agent, torch.full((2, 1, nets.OBS), 0.1 * k)) for k in range(6)])
    assert len(recorded) == 1
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_two_agents_learn_in_one_graph_and_what_writes_the_count_is_noticed(recorded):
    agents = {"": nets.make("sac", policy_delay=2), "watcher": nets.make("iql")}
    others = copy.deepcopy(agents)
    source, engines = rows(20, ()), (Engine(), Engine(EngineConfig("graph")))
    for found, engine in zip((agents, others), engines, strict=True):
        torch.manual_seed(0)
        for k in range(8):
            list(engine.learn(source, 4, 2, found))
            if k == 5:
                found[""].updates.fill_(0)
    assert all(nets.same(agents[k], others[k]) for k in agents)
    assert agents[""].updates == 4


def test_a_graph_draws_from_a_buffer_as_it_grows(recorded):
    buffer = rows(10)
    source = Mix((Youngest(buffer, 150), 0.5), (buffer, 0.5))
    agent = nets.make("sac", (2,))
    seen, update = [], agent.update
    agent.update = lambda b, step: update(b, step) | {"largest": b.rew.amax(-1)}
    engine = Engine(EngineConfig("graph"))
    for k in range(60):
        if k >= 4:
            buffer.add(replace(batch((2,), n=1), rew=torch.full((2, 1), float(k))))
        seen += [m["largest"] for m, _ in engine.learn(source, 8, 1, {"": agent})]
    assert len(recorded) == 1
    assert all(x.max() <= k for k, x in enumerate(seen) if k >= 4)
    assert max(float(x.max()) for x in seen[40:]) > 30


@pytest.mark.parametrize(
    ("name", "most"), [("aged", 1), ("append", 1), ("mix", 1), ("anneal", 9), ("online", 1)]
)
def test_sources_whose_shares_change_are_drawn_from_as_eagerly(name, most, recorded, data):
    cfg = SOURCES[name].config()
    if name == "aged":
        cfg = replace(cfg, epoch=3, alpha=0.8)
    if name == "anneal":
        cfg = replace(cfg, steps=20)
    offline = datasets.read(data).with_seeds((2,))
    found = []
    for mode in ("eager", "graph"):
        buffer = ReplayBuffer(Spec(4, 1, (2,)), 100)
        source = make_source(cfg, buffer.spec, offline, buffer)
        source.begin()
        torch.manual_seed(0)
        agent, engine = nets.make("td3bc", (2,), obs_dim=4, act_dim=1), Engine(EngineConfig(mode))
        for t in range(40):
            buffer.add(batch((2,), n=1, obs_dim=4, act_dim=1))
            source.advance(t)
            list(engine.learn(source, 8, 1, {"": agent}))
        found.append(agent)
    assert nets.same(*found)
    assert 1 <= len(recorded) <= most * agent.cycle


def test_a_model_learns_the_same_bits_by_replays(recorded):
    cfg = DynamicsConfig(members=3, elites=1, net=MLPConfig(hidden=[8]))
    torch.manual_seed(0)
    eager = GaussianDynamics(Spec(nets.OBS, nets.ACT, (2,)), cfg)
    replayed = copy.deepcopy(eager)
    for model, mode in ((eager, "eager"), (replayed, "graph")):
        learner = Learner(model, FitConfig(), Engine(EngineConfig(mode)).prepare)
        torch.manual_seed(1)
        for _ in range(6):
            x, y = torch.randn(2, 3, 4, nets.OBS + nets.ACT), torch.randn(2, 3, 4, nets.OBS + 1)
            learner.step(x, y)
    assert nets.same(eager, replayed)
    assert len(recorded) == 1


def test_another_shape_is_another_graph_and_results_are_copies(recorded):
    step = graphs.Captured(lambda x, flag: x.cumsum(-1) if flag else -x)
    out = [step(torch.full((n,), float(k)), flag) for k in range(4) for n in (2, 3) for flag in (True, False)]
    assert len(recorded) == 4
    torch.testing.assert_close(out[12], torch.tensor([3.0, 6.0]))
    torch.testing.assert_close(out[8], torch.tensor([2.0, 4.0]))
    torch.testing.assert_close(out[15], torch.full((3,), -3.0))


def test_a_step_that_waits_for_the_device_cannot_be_recorded(recorded):
    step = graphs.Captured(lambda x: x * float(x.sum()))
    for _ in range(graphs.WARM):
        step(torch.ones(2))
    with pytest.raises(AssertionError, match="reads from the device"):
        step(torch.ones(2))


def test_too_little_memory_is_one_line(recorded, monkeypatch):
    def full(run):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(graphs, "capture", full)
    step = graphs.Captured(lambda x: x + 1)
    for _ in range(graphs.WARM):
        step(torch.ones(2))
    with pytest.raises(UserError, match="too little memory to capture a step; give engine=eager"):
        step(torch.ones(2))


@pytest.fixture
def data(tmp_path):
    import h5py

    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "x.hdf5", "w") as f:
        f["observations"] = rng.normal(size=(100, 4)).astype("f4")
        f["actions"] = rng.uniform(-1, 1, (100, 1)).astype("f4")
        f["rewards"] = rng.normal(size=100).astype("f4")
        f["terminals"] = np.zeros(100, bool)
        f["timeouts"] = np.arange(100) % 20 == 19
    return tmp_path / "x.hdf5"


def test_a_run_by_replays_has_the_bits_of_an_eager_one(recorded, data, tmp_path, monkeypatch):
    """Offline and online, with probes, evaluations and checkpoints between updates that are made together."""
    net = MLPConfig(hidden=[8])
    run = survival.small(tmp_path, steps=30, log_every=6, eval_every=12, checkpoint_every=18).run
    recipe = FinetuneConfig(
        offline=TD3BCConfig(actor=net, critic=net), offline_steps=60, online_steps=30, batch=8,
        probe_every=24, warmup=5,
    )  # fmt: skip
    found = {}
    for mode in ("eager", "graph"):
        cfg = Config(
            recipe=recipe, dataset=str(data), env="InvertedPendulum-v5", seeds=2, dir=str(tmp_path / mode),
            report=False, run=run, engine=mode,
        )  # fmt: skip
        train(cfg)
        found[mode] = survival.outcome(tmp_path / mode)
    assert recorded
    tensors = [found[mode][0] for mode in ("eager", "graph")]
    agent = [k for k in tensors[0] if "agent" in k]
    assert agent
    assert all(torch.equal(tensors[0][k], tensors[1][k]) for k in agent)
    for a, b in zip(found["eager"][2], found["graph"][2], strict=True):
        assert a.keys() == b.keys()
        for key in a:
            if isinstance(a[key], str):
                assert b[key] == a[key]
                continue
            x, y = (np.array(line[key], float) for line in (a, b))
            np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-6, err_msg=f"{a['kind']} {key}")


def test_turns_that_are_made_together_divide_every_event():
    engine = Engine()
    assert engine.turns_at_once(500, 1000) == 1
    engine.cfg = EngineConfig("graph")
    assert engine.turns_at_once(500, 1000, 5000) == 25
    assert engine.turns_at_once(7, 14) == 7
    assert engine.turns_at_once(64) == 32
    assert engine.turns_at_once(500, 333) == 1


def test_a_gpu_is_asked_for_in_one_line():
    with pytest.raises(UserError, match="engine=graph needs a GPU, and device=cpu; give device=cuda"):
        Engine(EngineConfig("graph"))
    with pytest.raises(UserError, match="precision=tf32 needs a GPU"):
        Engine(EngineConfig("eager", "tf32"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", AGENTS)
def test_on_a_gpu_replays_are_exact_and_wait_for_nothing(name):
    spec = Spec(nets.OBS, nets.ACT, (2,), "cuda")
    torch.manual_seed(0)
    eager = nets.make_agent(nets.small(name, **DEMANDING.get(name, {})), spec)
    replayed = copy.deepcopy(eager)
    source = ReplayBuffer(spec, 100, gamma=0.9)
    source.add(batch((2,), n=50, mc_return=0.5).map(lambda x: x.cuda()))
    for agent, mode in ((eager, "eager"), (replayed, "graph")):
        torch.manual_seed(1)
        engine = Engine(EngineConfig(mode), "cuda")
        for k in range(8):
            if k == 4:
                torch.cuda.set_sync_debug_mode("error")
            try:
                list(engine.learn(source, 8, 2, {"": agent}, 3))
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert nets.same(eager, replayed)


def test_log_lines_say_how_many_updates_a_sum_holds():
    x = torch.ones(2)
    found = graphs.totals([{"a": x}, {"a": x, "b": x}, {"a": x}])
    assert json.dumps([({k: v.tolist() for k, v in m.items()}, n) for m, n in found]) == json.dumps(
        [[{"a": [3.0, 3.0]}, 3], [{"b": [1.0, 1.0]}, 1]]
    )


@pytest.mark.parametrize("coef", [0.0, 0.5])
def test_a_rollout_of_graphs_is_the_eager_one(coef, recorded):
    """Recorded in the third step; coefficient and elites of the second rollout are not those recorded."""
    model = GaussianDynamics(
        Spec(nets.OBS, nets.ACT, (2,)), DynamicsConfig(members=3, elites=2, net=MLPConfig(hidden=[8]))
    )
    agent, found = nets.make("sac", (2,)), []
    elites = model.elites.clone()
    for mode in ("eager", "graph"):
        rollouts = Rollouts(
            model,
            lambda obs: agent.act(obs, explore=True),
            termination=lambda obs, act, next_obs: next_obs[..., 0] > 1,
            penalty=max_deviation,
            prepare=Engine(EngineConfig(mode)).prepare,
        )
        for scale, first in ((1, 0), (2, 1)):
            model.elites.copy_((elites + first) % 3)
            torch.manual_seed(1)
            branches = Branches()
            metrics = rollouts.roll(torch.randn(2, 10, nets.OBS), branches, horizon=5, coef=coef * scale)
            found.append([*graphs.tensors(branches.rows), branches.keep, *metrics.values()])
    assert len(recorded) == 1
    assert not torch.equal(found[0][3], found[1][3])
    for eager, replayed in zip(found[:2], found[2:], strict=True):
        for x, y in zip(eager, replayed, strict=True):
            assert torch.equal(x, y)
