"""The run's promises that the contract suite does not reach: what a log line holds, TensorBoard, divergence."""

import json
from pathlib import Path

import pytest
import torch

from mbo2o.agents.sac import SAC, SACConfig
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.run.log import Means
from mbo2o.run.run import Run, RunConfig
from mbo2o.types import Diverged, UserError

NET = MLPConfig(hidden=[8])


def make(path, **cfg):
    path.mkdir(exist_ok=True)
    settings = RunConfig(**{"log_every": 5, "eval_every": 100, "eval_episodes": 1, "online_capacity": 500, **cfg})
    run = Run(path, settings, env_id="Pendulum-v1", seed=0, seeds=2, gamma=0.9)
    run.enter("online")
    agent = SAC(run.spec, SACConfig(actor=NET, critic=NET))
    run.track(agent=agent)
    return run, agent


def lines(path, kind):
    return [x for x in map(json.loads, (path / "metrics.jsonl").read_text().splitlines()) if x["kind"] == kind]


def test_means_are_of_what_was_logged_since_the_last_line(tmp_path):
    run, _ = make(tmp_path)
    for t in run.steps(12):
        run.log({"x": torch.tensor([float(t), 0.0])}, {"y": torch.tensor([1.0, torch.inf if t > 99 else 2.0])})
    found = [(x["step"], x["x"][0]) for x in lines(tmp_path, "train")]
    assert found == [(5, 2.0), (10, 7.0), (12, 10.5)]


def test_episodes_are_logged_for_the_lanes_that_ended(tmp_path):
    run, agent = make(tmp_path)
    for _ in run.interact(agent, 201):
        pass
    (episode,) = lines(tmp_path, "episode")
    assert episode["step"] == 199
    assert episode["length"] == [200.0, 200.0]
    total = run.online.rows(torch.arange(200).expand(2, -1)).rew.sum(-1)
    assert episode["return"] == pytest.approx(total.tolist(), rel=1e-4)


def test_interact_stores_one_transition_per_seed_and_turn_before_the_body(tmp_path):
    run, agent = make(tmp_path)
    for t in run.interact(agent, 5):
        assert len(run.online) == t + 1
    b = run.online.latest(5)
    assert torch.equal(b.obs[:, 1:], b.next_obs[:, :-1])


@pytest.mark.parametrize(("value", "text"), [(float("nan"), "q is not finite"), (2e6, "reached 2e")])
def test_divergence_names_what_and_where(tmp_path, value, text):
    run, _ = make(tmp_path)

    def turns():
        for t in run.steps(20):
            run.log({"q": torch.tensor([0.0, value if t >= 5 else 0.0])})

    with pytest.raises(Diverged, match=f"{text}.*online turn 10"):
        turns()
    assert list((tmp_path / "checkpoints").iterdir())


def test_tensorboard_is_written_when_asked_for(tmp_path, monkeypatch):
    run, _ = make(tmp_path, tensorboard=True)
    for _ in run.steps(5):
        run.log({"x": torch.zeros(2)})
    run.close()
    assert list(Path(tmp_path, "tensorboard").glob("events.*"))
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"mbo2o\[tensorboard\]"):
        make(tmp_path / "other", tensorboard=True)


def test_means_survive_a_checkpoint():
    a, b = Means(), Means()
    a.add({"x": torch.tensor([1.0])})
    b.load(*a.state())
    for m in (a, b):
        m.add({"x": torch.tensor([4.0])})
    assert a.pop()["x"].tolist() == b.pop()["x"].tolist() == [2.5]
