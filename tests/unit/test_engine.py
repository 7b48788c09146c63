"""The engine: how updates are counted, and what an agent is told."""

import copy

import nets
import pytest
import torch
from nets import batch

from mbo2o.run.engine import Engine


class Told(list):
    """Every step that an agent is told, instead of learning."""

    def __init__(self, agent):
        agent.update = lambda b, step: self.append((step.index, int(step.count))) or {"rows": b.rew.sum(-1)}


def test_an_agent_is_told_which_update_it_makes_modulo_its_cycle():
    agent, engine = nets.make("sac", policy_delay=3), Engine()
    told = Told(agent)
    for _ in range(7):
        engine.update(agent, batch())
    assert told == [(0, 1), (1, 2), (2, 3), (0, 4), (1, 5), (2, 6), (0, 7)]
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

    metrics = list(engine.learn(Source(), 4, 3, agents))
    assert [list(m) for m in metrics] == [["rows"], ["watcher_rows"]] * 3
    sums = [m[name] for m in metrics for name in m]
    torch.testing.assert_close(sums[0::2], [whole.rew[i::3].sum() for i in range(3)])
    torch.testing.assert_close(sums[1::2], sums[0::2])
