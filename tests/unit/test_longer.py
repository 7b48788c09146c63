"""A run that ended goes on to more steps, bit for bit as if it had been asked for them at first."""

import re
from dataclasses import replace

import pytest
import torch
from tiny import CQL, NET, log_of, longer, tensors_of, tiny

from mbo2o import naming
from mbo2o.agents.iql import IQLConfig
from mbo2o.run.engine import EngineConfig
from mbo2o.settings import stored
from mbo2o.sources.anneal import AnnealConfig
from mbo2o.training import train
from mbo2o.types import UserError

CASES = [
    ("finetune", {"online_steps": 20}, {"online_steps": 40}),
    ("finetune", {"online_steps": 0}, {"online_steps": 40}),
    ("finetune", {"online_steps": 0, "offline_steps": 10}, {"offline_steps": 20, "online_steps": 0}),
    ("moore", {"online_steps": 20}, {"online_steps": 40}),
    ("wsrl", {"online_steps": 5}, {"online_steps": 40}),
]


@pytest.mark.parametrize(("name", "short", "long"), CASES)
def test_both_parts_are_the_long_run(name, short, long, pendulum, tmp_path):
    for folder in ("parts", "whole"):
        if folder == "parts":
            train(longer(tiny(name, pendulum, tmp_path / folder), **long | short))
        train(longer(tiny(name, pendulum, tmp_path / folder), **long))
    parts, whole = tensors_of(tmp_path / "parts"), tensors_of(tmp_path / "whole")
    assert parts.keys() == whole.keys()
    assert [k for k in parts if not torch.equal(parts[k], whole[k])] == []
    if max(short.values()) % 20 == 0:  # otherwise the shorter run's last evaluation is one more line
        assert log_of(tmp_path / "parts") == log_of(tmp_path / "whole")
    kept = [p.read_bytes() for p in sorted(tmp_path.glob("*/dynamics/online/model.safetensors"))]
    assert len(kept) == (2 if name == "moore" else 0)
    assert kept[:1] == kept[1:]


def test_the_same_command_then_goes_on_with_the_longer_run(pendulum, tmp_path):
    cfg = tiny("finetune", pendulum, tmp_path / "run", {"online_steps": 10})
    train(cfg)
    train(longer(cfg, online_steps=30))
    assert stored(tmp_path / "run")["recipe"]["online_steps"] == 30
    train(longer(cfg, online_steps=30))
    with pytest.raises(UserError, match="online_steps=30, not 10"):
        train(cfg)


FADES = "recipe.source.steps=10"
REFUSED = {
    "another batch": ({}, {"batch": 8}, "recipe.batch=16 there, not 8"),
    "a schedule that ended": (
        {"source": AnnealConfig(steps=10)},
        {},
        f"{FADES} is a schedule that ends with its 10 steps",
    ),
    "a schedule that follows": (
        {"source": AnnealConfig(steps=10)},
        {"source": AnnealConfig(steps=30)},
        f"{FADES} there, not 30, which follows from recipe.online_steps",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_run_is_refused_with_the_setting(pendulum, tmp_path, case):
    recipe, change, said = REFUSED[case]
    cfg = tiny("finetune", pendulum, tmp_path / "run", {"online_steps": 10, **recipe})
    train(cfg)
    said = (
        f"could go on to recipe.online_steps=30 only as the run that it is, but {said}; choose another dir="
    )
    with pytest.raises(UserError, match=re.escape(said)):
        train(longer(cfg, online_steps=30, **change))


def test_a_cosine_over_the_offline_steps_is_refused(pendulum, tmp_path):
    offline = IQLConfig(actor=NET, critic=NET, value_net=NET, actor_decay_steps=10)
    cfg = tiny(
        "finetune", pendulum, tmp_path / "run", {"offline": offline, "offline_steps": 10, "online_steps": 0}
    )
    train(cfg)
    with pytest.raises(UserError, match=r"recipe\.offline\.actor_decay_steps=10 is a schedule that ends"):
        train(longer(cfg, offline_steps=20))


def test_branches_that_grow_until_the_end_are_refused():
    then = {"recipe.online_steps": 40, "recipe.epoch": 20, "recipe.online_horizon": [1, 3, 0, 2]}
    now = then | {"recipe.online_steps": 80}
    assert "online_horizon=[1, 3, 0, 2] is a schedule" in naming._bars("recipe.online_steps", [], then, now)
    then["recipe.online_horizon"] = [1, 3, 0, 1]
    assert not naming._bars("recipe.online_steps", ["recipe.online_steps"], then, now)


def test_a_longer_run_keeps_the_engine_that_it_began_with(pendulum, tmp_path, monkeypatch):
    """`auto` chooses by the number of updates, and another engine would not go on bit for bit."""
    cfg = tiny("finetune", pendulum, tmp_path / "run", {"online_steps": 10})
    train(cfg)
    assert stored(tmp_path / "run")["engine"] == "eager"
    monkeypatch.setattr("mbo2o.run.engine.REPAID", 40)
    monkeypatch.setattr("mbo2o.run.engine._no_compiler", lambda: "")
    assert EngineConfig("auto").chosen("cpu", 50)[0].mode == "compiled"
    train(longer(cfg, online_steps=30))
    assert stored(tmp_path / "run")["engine"] == "eager"


def test_a_longer_run_without_dir_is_told_of_the_shorter_one(pendulum, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    cfg = replace(tiny("finetune", pendulum, "x", {"offline": CQL, "online_steps": 10}), dir=None)
    first = train(cfg)
    second = train(replace(longer(cfg, online_steps=30), dir=None))
    assert second != first
    said = f"{first} differs in recipe.online_steps alone; with dir={first} a longer run goes on from there"
    assert said in capfd.readouterr().err
