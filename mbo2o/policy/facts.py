"""`io.json`: what goes into a policy and what comes out of it, and the agent whose acting rule it is."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from mbo2o.agents import Agent, make_agent
from mbo2o.envs.box import ActionBox, Box
from mbo2o.registry import AGENTS, load_entry_points, load_plugins, trusting
from mbo2o.types import Spec, UserError

FILE = "io.json"
FORMAT = 1
"""The version of io.json. It grows when an older version would read a file wrongly."""
Facts = dict[str, Any]


def facts_of(
    env_id: str,
    obs_dim: int,
    box: Box,
    attrs: Mapping[str, Any] | None = None,
    layout: str | None = None,
) -> Facts:
    """The content of io.json: names, shapes, units and bounds of observations and actions.

    box: the lowest and the highest action, of the action's shape. attrs: a dataset's; they may name the
    numbers of observations and actions. layout: how observations are laid out, where that is not the
    environment's own way.
    """
    size = int(np.prod(box.low.shape))
    return {
        "format": FORMAT,
        "env_id": env_id,
        "observation": {
            "size": obs_dim,
            "dtype": "float32",
            "names": _names(attrs, "observation", obs_dim),
            "units": "the environment's own; the policy normalises them itself",
            "layout": layout,
        },
        "action": {
            "shape": list(box.low.shape),
            "dtype": str(box.low.dtype),
            "names": _names(attrs, "action", size),
            "units": "the environment's own, between low and high",
            "low": box.low.tolist(),
            "high": box.high.tolist(),
        },
    }


def _names(attrs: Mapping[str, Any] | None, kind: str, n: int) -> list[str]:
    """The names that a dataset has for its `n` numbers, a JSON list in an attribute; else numbered ones."""
    with contextlib.suppress(ValueError):
        given = json.loads(str((attrs or {}).get(f"{kind}_names", "null")))
        if isinstance(given, list) and len(given) == n:
            return [str(x) for x in given]
    return [f"{kind}_{i}" for i in range(n)]


def check_facts(path: Path, text: str) -> Facts:
    """The content of an io.json, stored at `path`; `UserError` if it is damaged or of a newer version."""
    try:
        found = json.loads(text)
        version, _, _ = found["format"], found["observation"]["size"], found["action"]["low"]
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(
            f"{path}: does not describe a policy ({' '.join(str(e).split())}); save it again"
        ) from e
    if version > FORMAT:
        raise UserError(f"{path}: written by a newer mbo2o (format {version}, this one reads {FORMAT})")
    facts: Facts = found
    return facts


def box_of(facts: Facts) -> ActionBox:
    """The box of actions that io.json describes."""
    about = facts["action"]
    low, high = (np.array(about[x], about["dtype"]).reshape(about["shape"]) for x in ("low", "high"))
    return ActionBox(SimpleNamespace(low=low, high=high))


# ------------------------------------------------------------------------------------------------- the agent


def make_described(about: dict[str, Any], facts: Facts, trust: Any) -> Agent:
    """A new agent of one seed, `(1,)`, of the kind that `Agent.described` told of.

    Raises `UserError` if its name is not registered, or its settings do not fit this version.
    """
    name, module = str(about["name"]), str(about.get("module", ""))
    if name not in AGENTS:
        with trusting(trust):
            load_entry_points()
            if name not in AGENTS:
                load_plugins([module])
    if name not in AGENTS:
        raise UserError(
            f"the policy is of agent {name!r}, which {module} does not register; import its module"
        )
    try:
        cfg = _typed(AGENTS[name].config, about["config"])
    except TypeError as e:
        raise UserError(
            f"the policy is of agent {name!r}, with settings that do not fit this version ({e})"
        ) from e
    return make_with(cfg, facts)


def make_with(cfg: Any, facts: Facts, seeds: tuple[int, ...] = (1,)) -> Agent:
    """A new agent with the settings `cfg`; the random stream stays where it is.

    With a seed axis of 1 it computes the same bits as in a run; without one, `()`, its graph is simpler.
    """
    act_dim = int(np.prod(facts["action"]["shape"]))
    with torch.random.fork_rng(devices=[]):
        return make_agent(cfg, Spec(facts["observation"]["size"], act_dim, seeds)).eval()


def _typed(kind: type, values: dict[str, Any]) -> Any:
    """A dataclass from nested dicts; the classes inside are those of its defaults."""
    usual = kind()
    found = {}
    for key, value in values.items():
        own = getattr(usual, key, None)
        inside = isinstance(value, dict) and dataclasses.is_dataclass(own)
        found[key] = _typed(type(own), value) if inside else value
    return kind(**found)


def rule_of(agent: Agent) -> str:
    """What the deterministic action is, in one line: the first one of the docstring of the agent's rule."""
    doc = (getattr(agent, "mode", None) or agent.act).__doc__ or type(agent).__name__
    return doc.strip().splitlines()[0].split(", `(*S")[0].rstrip(".")
