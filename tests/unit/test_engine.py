"""The engine: how updates are counted, and what an agent is told."""

import copy
import os
import re
from dataclasses import replace
from pathlib import Path

import nets
import pytest
import survival
import torch
from nets import batch

from mbo2o.registry import AGENTS
from mbo2o.run.engine import Engine, EngineConfig
from mbo2o.run.turns import Run
from mbo2o.run.watch import Stopped
from mbo2o.training import restore, train
from mbo2o.types import UserError


class Told(list):
    """Every step that an agent is told, instead of learning."""

    def __init__(self, agent):
        agent.update = lambda b, step: self.append((step.index, int(step.count))) or {"rows": b.rew.sum(-1)}


def test_an_agent_is_told_which_update_it_makes_and_whether_it_ends_a_cycle():
    agent, engine = nets.make("sac", policy_delay=3), Engine()
    told = Told(agent)
    for _ in range(7):
        engine.update(agent, batch())
    assert told == [(0, 1), (0, 2), (2, 3), (0, 4), (0, 5), (2, 6), (0, 7)]
    assert agent.updates == 7


def test_delayed_parts_learn_in_the_last_update_of_a_cycle():
    agent, engine = nets.make("sac", policy_delay=3), Engine()
    assert ["actor_loss" in engine.update(agent, batch()) for _ in range(7)] == [False, False, True] * 2 + [
        False
    ]


def test_agents_are_counted_apart():
    first, second, engine = nets.make("sac"), nets.make("td3bc"), Engine()
    for _ in range(3):
        engine.update(first, batch())
    engine.update(second, batch())
    assert (first.updates, second.updates) == (3, 1)
    engine.update(copy.deepcopy(first), batch())
    assert first.updates == 3


def test_a_count_that_is_restored_or_reset_is_noticed():
    agent, engine = nets.make("td3bc"), Engine()
    told = Told(agent)
    engine.update(agent, batch())
    state = {k: x.clone() for k, x in agent.state_dict().items()}
    for _ in range(3):
        engine.update(agent, batch())
    agent.load_state_dict(state)
    engine.update(agent, batch())
    assert told[-1] == (1, 2)
    agent.adopt(nets.make("td3bc"))
    engine.update(agent, batch())
    assert told[-1] == (0, 1)


def test_the_count_is_read_from_the_device_once(monkeypatch):
    agent, engine, b = nets.make("td3bc"), Engine(), batch()
    engine.update(agent, b)
    for method in ("item", "tolist", "__int__", "__bool__", "__float__", "__index__"):
        monkeypatch.setattr(torch.Tensor, method, lambda *args: pytest.fail("read back"))
    for _ in range(3):
        engine.update(agent, b)
    monkeypatch.undo()
    assert agent.updates == 4


def test_checkpoints_of_earlier_versions_hold_the_count_elsewhere():
    agent = nets.make("sac", (2,))
    state = dict(agent.state_dict())
    del state["updates"]
    state["_extra_state"] = torch.tensor(7)
    agent.load_state_dict(state)
    assert agent.updates == 7
    assert agent.updates.dtype == torch.int64
    assert "_extra_state" not in agent.state_dict()


def test_agents_learn_from_the_same_batches_under_their_own_names():
    engine, agents = Engine(), {"": nets.make("sac"), "watcher": nets.make("iql")}
    for agent in agents.values():
        Told(agent)
    whole = batch(n=12)

    class Source:
        def sample(self, n):
            assert n == 12
            return whole

    metrics = [sums for sums, count in engine.learn(Source(), 4, 3, agents) if count == 1]
    assert [list(m) for m in metrics] == [["rows"], ["watcher_rows"]] * 3
    sums = [m[name] for m in metrics for name in m]
    torch.testing.assert_close(sums[0::2], [whole.rew[i::3].sum() for i in range(3)])
    torch.testing.assert_close(sums[1::2], sums[0::2])


# ---- how a step is run


needs_tracing = pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "trace_autograd_ops"), reason="this torch traces no autograd.grad"
)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mode": "fast"}, "engine=fast is not one of eager, compiled, graph, auto"),
        ({"precision": "fp8"}, "precision=fp8 is not one of fp32, tf32, bf16, auto"),
    ],
)
def test_an_engine_that_does_not_exist_is_refused(settings, said):
    with pytest.raises(UserError, match=said):
        EngineConfig(**settings)


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"a C\+\+ compiler is needed, .*or give engine=eager"):
        Engine(EngineConfig("compiled"))
    Engine(EngineConfig("eager"))


def test_at_low_precision_products_are_rounded_and_everything_kept_is_float32():
    exact = nets.make("sac", (2,))
    rounded, b = copy.deepcopy(exact), batch((2,))
    found = []
    for agent, precision in ((exact, "fp32"), (rounded, "bf16")):
        torch.manual_seed(0)
        found.append(Engine(EngineConfig(precision=precision)).update(agent, b))
    assert not nets.same(exact, rounded)
    for key, x in found[0].items():
        torch.testing.assert_close(found[1][key], x, rtol=0.05, atol=0.05)
    assert {x.dtype for x in rounded.state_dict().values()} == {torch.float32, torch.int64}
    assert {x.dtype for x in found[1].values()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        assert rounded.critic(b.obs, b.act).dtype == torch.float32


def compare(name, precision, updates, **change):
    """The largest relative difference that compiling makes to an agent's metrics in some updates."""
    eager = nets.make(name, (2,), **change)
    compiled, worst = copy.deepcopy(eager), 0.0
    engines = Engine(EngineConfig(precision=precision)), Engine(EngineConfig("compiled", precision))
    for t in range(updates):
        b, found = batch((2,), n=16, mc_return=0.5), []
        for agent, engine in zip((eager, compiled), engines, strict=True):
            torch.manual_seed(t)
            found.append(engine.update(agent, b))
        assert found[0].keys() == found[1].keys()
        for key, x in found[0].items():
            worst = max(worst, float(((found[1][key] - x).abs() / (1 + x.abs())).max()))
    return worst


@needs_tracing
def test_a_compiled_update_computes_what_the_eager_one_does():
    assert compare("td3bc", "fp32", 6) < 1e-5


@needs_tracing
@pytest.mark.slow
@pytest.mark.parametrize("name", AGENTS)
def test_each_agent_compiles_and_stays_with_the_eager_one_for_100_updates(name):
    assert compare(name, "fp32", 100) < 1e-2


@needs_tracing
@pytest.mark.slow
def test_a_compiled_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    """Two seeds of SAC, learning in the environment: stopped after 40 steps, and without a break."""
    train(replace(survival.small(tmp_path / "whole"), engine="compiled"))
    parts = replace(survival.small(tmp_path / "parts"), engine="compiled")
    after_turn = Run._after_turn

    def stopping(self, last):
        self.signals.stop = self.phase == "online" and self.turn == 40
        after_turn(self, last)

    monkeypatch.setattr(Run, "_after_turn", stopping)
    with pytest.raises(Stopped):
        train(parts)
    monkeypatch.undo()
    train(parts)
    survival.assert_same(survival.outcome(tmp_path / "whole"), survival.outcome(tmp_path / "parts"))


def test_a_compiled_run_is_read_and_goes_on_eagerly_without_a_compiler(tmp_path, monkeypatch):
    train(survival.small(tmp_path, steps=20))
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("engine: eager", "engine: compiled"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    run, _ = restore(tmp_path)
    assert run.evaluate()["return"].isfinite().all()
    train(survival.small(tmp_path, steps=20))


def test_another_engine_goes_on_with_a_run_and_says_so(tmp_path, capsys):
    train(survival.small(tmp_path, steps=20))
    cfg = replace(survival.small(tmp_path, steps=20), engine="eager")
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("engine: eager", "engine: compiled"))
    train(cfg)
    assert "engine=eager goes on where engine=compiled stopped" in capsys.readouterr().err


def test_a_kept_program_that_was_cut_short_is_removed(tmp_path):
    from mbo2o.run.engine import _remove_halves, _removed

    whole = next(Path(torch.__path__[0], "lib").glob("libshm*.so*"), None) or Path(torch._C.__file__)
    kept, cut, fresh = (tmp_path / "a" / name for name in ("kept.so", "cut.so", "fresh.so"))
    kept.parent.mkdir()
    kept.write_bytes(whole.read_bytes())
    for path in (cut, fresh):
        path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    for path in (kept, cut):
        os.utime(path, (1e9, 1e9))
    _remove_halves(tmp_path)
    assert sorted(x.name for x in kept.parent.iterdir()) == ["fresh.so", "kept.so"]
    assert _removed(f"backend='inductor' raised:\nImportError: {fresh}: file too short\n\nmore")
    assert not fresh.exists()
    assert not _removed("CppCompileError: C++ compile error")


def test_auto_goes_on_as_the_run_began(tmp_path):
    train(replace(survival.small(tmp_path, steps=20), engine="eager"))
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("engine: eager", "engine: compiled"))
    train(survival.small(tmp_path, steps=20))
    assert "engine: compiled" in (tmp_path / "config.yaml").read_text()
    assert "precision: fp32" in (tmp_path / "config.yaml").read_text()


def test_auto_is_decided_by_device_compiler_and_length(monkeypatch):
    auto = EngineConfig("auto", "auto")
    assert auto.chosen("cpu", 19_999) == (EngineConfig(), "")
    found, why = auto.chosen("cpu", 20_000)
    assert found == EngineConfig("compiled", "fp32")
    assert re.fullmatch(r"engine: compiled \(.* in 10 to 60 s, which 20000 updates repay\)", why)
    assert auto.chosen("cuda:1", 5) == (EngineConfig("graph", "fp32"), "")
    assert EngineConfig("eager", "bf16").chosen("cpu", 10**6) == (EngineConfig("eager", "bf16"), "")
    monkeypatch.setattr("mbo2o.run.engine._compiler", lambda: None)
    found, why = auto.chosen("cpu", 20_000)
    assert found == EngineConfig()
    assert "C++ compiler is needed" in why
    with pytest.raises(ValueError, match="decide `auto` first"):
        Engine(auto)


@needs_tracing
def test_a_step_that_cannot_be_translated_is_one_line(monkeypatch):
    import torch._inductor.config as settings

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "new")
    torch._dynamo.reset()
    engine, agent = Engine(EngineConfig("compiled")), nets.make("bc", hidden=5)
    before = nets.snapshot(agent)
    message = r"engine=compiled: torch could not translate .*; give engine=eager"
    # monkeypatch would leave the process without the setting: it deletes what it does not find in __dict__
    with settings.patch({"cpp.cxx": ("/bin/false",)}), pytest.raises(UserError, match=message):
        engine.update(agent, batch())
    assert {k for k, x in agent.state_dict().items() if not torch.equal(x, before[k])} <= {"updates"}
