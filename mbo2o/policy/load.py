"""Load a policy from a run, or from a folder that `Policy.save` wrote."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mbo2o.agents import Agent
from mbo2o.policy.facts import FILE, Facts, check_facts, facts_of, make_described, make_with
from mbo2o.policy.policy import WEIGHTS, Policy
from mbo2o.store import checkpoint
from mbo2o.store.whole import one_line
from mbo2o.types import UserError

ACTS = re.compile(r"(\w+\.agent)/.")
"""Matches the names of the acting agent's tensors in a checkpoint; the group is its key."""


def load(
    run_or_folder: str | Path, seed: int = 0, env: Any = None, trust: bool | Collection[str] = ()
) -> Policy:
    """The policy of a run as its newest checkpoint has it, or of a folder that `Policy.save` wrote.

    Neither the dataset nor the simulator is needed.

    Args:
        run_or_folder: A directory that `mbo2o train` wrote, or a saved policy.
        seed: Which of the run's seeds, counted from 0.
        env: An environment, or its id: its bounds of actions are taken, and the policy has to fit it. None:
            what the run stored. A run of an older version stored nothing; it makes its environment once.
        trust: The modules that may be imported because they registered the agent; True: any.

    Raises:
        UserError: There is neither, the run has no checkpoint or no such seed, or the policy does not fit
            `env`.
    """
    folder = Path(run_or_folder)
    if (folder / WEIGHTS).is_file():
        if seed:
            raise UserError(f"{folder}: a saved policy is of one seed; leave out seed={seed}")
        return _saved(folder, _of_env(env), trust)
    if not (folder / "checkpoints").is_dir() and not (folder / "config.yaml").is_file():
        text = "neither a run nor a saved policy; give a directory of `mbo2o train`, or one of `policy.save`"
        raise UserError(f"{folder}: {text}")
    saved = checkpoint.latest(folder / "checkpoints", "cpu", lambda key: bool(ACTS.match(key)))
    if saved is None:
        raise UserError(f"{folder}: has no checkpoint yet")
    tensors, state = saved
    keys = list(dict.fromkeys(m[1] for name in tensors if (m := ACTS.match(name))))
    if not keys:
        raise UserError(f"{folder}: its recipe keeps no agent; `mbo2o.restore` gives the recipe itself")
    mine = {name[len(keys[-1]) + 1 :]: x for name, x in tensors.items() if name.startswith(f"{keys[-1]}/")}
    facts = _of_env(env)
    if facts is None:
        path = folder / FILE
        facts = check_facts(path, path.read_text()) if path.is_file() else _facts_of_older(folder)
    about = state.get("agents", {}).get(keys[-1])
    agent = make_described(about, facts, trust) if about else make_with(_older(folder, keys[-1]), facts)
    _fill(agent, mine, seed, folder)
    return Policy(agent, facts)


def _saved(folder: Path, of_env: Facts | None, trust: bool | Collection[str]) -> Policy:
    path = folder / WEIGHTS
    try:
        with safe_open(path, "pt") as file:
            facts = check_facts(path, (file.metadata() or {}).get("io", ""))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
    except (OSError, SafetensorError) as e:
        raise UserError(f"{path}: cannot be read ({one_line(e)}); save the policy again") from e
    about = facts.pop("agent", None)
    if about is None:
        raise UserError(f"{path}: does not say whose policy it is; save the policy again")
    agent = make_described(about, of_env or facts, trust)
    _fill(agent, tensors, 0, folder)
    return Policy(agent, of_env or facts)


@torch.no_grad()
def _fill(agent: Agent, tensors: dict[str, Tensor], seed: int, folder: Path) -> None:
    """Write seed number `seed` of stored tensors `(S, ...)` into the agent, which has one seed."""
    own = agent.state_dict()
    known = {name: x for name, x in tensors.items() if name in own}
    seeds = max((len(x) for name, x in known.items() if x.dim() and x.shape != own[name].shape), default=1)
    if not 0 <= seed < seeds:
        raise UserError(f"{folder}: has {seeds} seed(s), counted from 0, so there is no seed={seed}")
    for name, x in known.items():
        one = x if x.shape == own[name].shape or not x.dim() else x[seed : seed + 1]
        if one.shape != own[name].shape:
            shapes = f"{name} is {tuple(one.shape)} there and {tuple(own[name].shape)} here"
            raise UserError(f"{folder}: the stored policy does not fit its task ({shapes})")
        own[name].copy_(one)


def _of_env(env: Any) -> Facts | None:
    """What an environment, or its id, says of its observations and actions; None for no environment."""
    if env is None:
        return None
    if isinstance(env, str):
        from mbo2o.envs.make import make_env

        return _of_env(make_env(env))
    obs, box = env.observation_space, env.action_space
    for space, what in ((obs, "observations"), (box, "actions")):
        if not hasattr(space, "low"):
            raise UserError(f"env: needs a Box of {what}, found {space}")
    spec = getattr(env, "spec", None)
    return facts_of(str(getattr(spec, "id", "") or type(env).__name__), int(obs.shape[-1]), box)


# ------------------------------------------------------------------------- runs that older versions wrote


def _facts_of_older(folder: Path) -> Facts:
    """The facts of a run that stored none: its environment is made once, to ask it."""
    from mbo2o.envs.make import EnvChoice, make_env
    from mbo2o.settings import read_config

    cfg, env_id = read_config(folder)
    warnings.warn(f"{folder}: an older version stored no bounds of actions; asking {env_id}", stacklevel=4)
    try:
        env = make_env(EnvChoice(env_id, cfg.env_kwargs or {}, cfg.env_layout))
    except (UserError, ImportError) as e:
        text = "stores no bounds of actions, because an older version wrote it; give env= (an environment)"
        raise UserError(f"{folder}: {text} ({e})") from e
    return {**_of_env(env), "env_id": env_id}  # type: ignore[dict-item]


def _older(folder: Path, key: str) -> Any:
    """The settings of the agent `key` of a checkpoint that does not hold them: out of the run's config."""
    from mbo2o.recipes import make_recipe
    from mbo2o.settings import read_config

    cfg, _ = read_config(folder)
    recipe = make_recipe(cfg.recipe)
    configs = getattr(recipe, "configs", None)
    if configs is not None:
        return configs()[0 if key.startswith("offline.") else 1]
    found = getattr(cfg.recipe, "agent", None)
    if not dataclasses.is_dataclass(found):
        raise UserError(
            f"{folder}: an older version did not store its agent; `mbo2o.restore` gives the recipe"
        )
    return found
