"""The snippets of docs/policies.md run as they stand, one after the other, in a folder with a run."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from nets import make
from tiny import tiny

import mbo2o
from mbo2o.policy.facts import rule_of
from mbo2o.registry import AGENTS
from mbo2o.training import train

PAGE = (Path(__file__).parents[2] / "docs" / "policies.md").read_text()


def test_the_snippets_run(pendulum, tmp_path, monkeypatch):
    for extra in ("onnxruntime", "onnxscript", "stable_baselines3"):
        pytest.importorskip(extra)
    train(tiny("finetune", pendulum, tmp_path / "runs" / "mine", {"online_steps": 10}))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "policy", raising=False)
    names = {}
    for snippet in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        exec(snippet, names)
    sys.modules.pop("policy", None)
    assert names["actions"].shape == (256, 1)
    assert names["mean"] < 0
    np.testing.assert_array_equal(
        mbo2o.load("robot").predict(np.zeros(3))[0], names["policy"].predict([0, 0, 0])[0]
    )
    assert names["action"].shape == (7, 1)


def test_the_table_has_every_agent_with_its_rule():
    rows = re.findall(r"^\| (`.*?`) \| (.*?) \|$", PAGE, re.M)
    said = {name: text for names, text in rows for name in re.findall(r"`(\w+)`", names)}
    assert set(said) == set(AGENTS)
    for name, text in said.items():
        words = {"the", "of", "s", "or"}
        rule = set(re.findall(r"\w+", rule_of(make(name)).lower())) - words
        assert rule & set(re.findall(r"\w+", text.lower())) - words, (name, text)


def test_the_commands_of_the_page_are_settings_that_there_are(pendulum, tmp_path):
    for command in re.findall(r"^mbo2o train (.*)$", PAGE, re.M):
        cfg = mbo2o.config(*command.split())
        assert type(cfg) is mbo2o.Config
