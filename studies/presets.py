"""Published methods at the size of a study: presets of `conf/` with the base's nets, batches and budgets.

A method is defined once, by its preset. A study resizes the preset, and names each other setting in which an
arm differs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import cache
from typing import Any

from mbo2o.cli.main import compose_config
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.registry import SOURCES, find
from mbo2o.store import datasets
from mbo2o.training import Config
from mbo2o.types import UserError

BUDGETS = ("offline_steps", "online_steps", "batch", "probe_every")
"""Sizes of a recipe. A phase that the preset leaves out (0 steps) stays out."""
WARMUPS = ("warmup", "random_steps")
"""What recipes call the steps before the first update. A preset without a warm-up (0 steps) gets none."""
SLOTS = ("offline", "online", "agent", "watcher")
"""Where a recipe holds an agent."""
RATES = ("gamma", "tau", "critic_lr", "alpha_lr", "samples", "clone_steps")
"""Settings of an agent that go with its size: smaller nets and fewer updates need other values."""


@cache
def _composed(command: str) -> Config:
    return compose_config([command])


def preset(command: str) -> Config:
    """What `mbo2o train COMMAND` would run, such as `switch=wsrl`."""
    return copy.deepcopy(_composed(command))


def changed(config: Any, changes: Mapping[str, Any]) -> Any:
    """A config with new values for settings by dotted name; TypeError for a setting that does not exist."""
    for path, value in changes.items():
        name, _, rest = path.partition(".")
        config = replace(config, **{name: changed(getattr(config, name), {rest: value}) if rest else value})
    return config


def drawing(source: str, **settings: Any) -> dict[str, Any]:
    """The setting that has online batches drawn from `source`, with settings of that source."""
    return {"recipe.source": find(SOURCES, source, "source").config(**settings)}


def warmup(recipe: Any) -> str:
    """The name of the setting that holds a recipe's steps before the first update."""
    return next(name for name in WARMUPS if hasattr(recipe, name))


def at_size(
    command: str, base: Config, like: Any, critics: int | None = None, rates: Sequence[str] = RATES
) -> Config:
    """The preset `command` at the size of `base`, whose dataset, task, seeds and `run` settings it takes.

    like: the agent that gives nets and rates (see `resized`). critics: N for agents with more than two
    critics in the preset. Methods that make several updates for each environment step make as many as the
    base.
    """
    recipe = preset(command).recipe
    sizes = {x: getattr(base.recipe, x) for x in BUDGETS if getattr(recipe, x, 0) and hasattr(base.recipe, x)}
    if getattr(recipe, warmup(recipe)):
        sizes[warmup(recipe)] = getattr(base.recipe, warmup(base.recipe))
    if recipe.utd > 1:
        sizes["utd"] = base.recipe.utd
    for slot in SLOTS:
        if agent := getattr(recipe, slot, None):
            agent = resized(agent, like, critics, rates)
            if getattr(agent, "policy_delay", 1) == recipe.utd > 1:  # the actor moves once for each step
                agent = replace(agent, policy_delay=base.recipe.utd)
            sizes[slot] = agent
    return replace(
        base, recipe=replace(recipe, **sizes), provenance=f"small: {command} at the size of a study"
    )


SHARED = ("dataset", "dataset_actions", "env", "seed", "seeds", "device", "engine", "precision")
"""What arms of a study share at the size of their papers."""


def published(command: str, base: Config) -> Config:
    """The preset `command` with all of its own numbers, on the data, the task and the seeds of `base`."""
    return replace(preset(command), **{x: getattr(base, x) for x in (*SHARED, "storage", "threads")})


def resized(agent: Any, like: Any, critics: int | None = None, rates: Sequence[str] = RATES) -> Any:
    """An agent's config with the nets of `like` and those of its `rates` that both have.

    A value network has the critics' net and rate. Critics have LayerNorm, and observations are standardised,
    where either agent has it.
    """
    names = {f.name for f in fields(agent)}
    sizes = {x: getattr(like, x) for x in rates if x in names and hasattr(like, x)}
    for name in names:
        if isinstance(own := getattr(agent, name), MLPConfig):
            sizes[name] = like.actor
            if name in ("critic", "value_net"):
                sizes[name] = replace(like.critic, layer_norm=like.critic.layer_norm or own.layer_norm)
    if "value_lr" in names:
        sizes["value_lr"] = like.critic_lr
    if critics and getattr(agent, "critics", 0) > 2:
        sizes["critics"] = critics
    return replace(agent, **sizes, normalize=agent.normalize or like.normalize)


def task_of(base: Config) -> str:
    """The environment that a method without data learns in: the dataset's, if no other is named."""
    env_id = base.env or datasets.read(base.dataset).attrs.get("env_id")
    if not env_id:
        raise UserError(
            "no environment is named: give --set env=ID (the dataset does not say where it was collected)"
        )
    return str(env_id)
