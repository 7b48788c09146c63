"""How far does each offline learner get on a dataset? Same nets, same updates, same evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.recipes.enoto import ENOTOConfig
from mbo2o.registry import AGENTS, find
from mbo2o.report.plots import compare_panels, save
from mbo2o.train import Config

from .arms import QUICK_Q, Row, curves, offline_alone, read_arms, run_offline, write

SHARED = ("gamma", "tau", "samples", "clone_steps")
"""Settings of the base agent that the others take over, where they have them."""
PANELS = {
    "Held to the data's actions": ["bc", "td3bc", "iql", "awac", "lapo"],
    "Pessimistic about others": ["cql", "calql", "sacn", "edac"],
}
LEARNERS = tuple(x for names in PANELS.values() for x in names)


def sized(name: str, like: Any) -> Any:
    """`like` if it is this agent's; else the agent's own defaults with the nets of `like` and what they SHARE.

    Observations are standardised where `like` does it, and also where the agent's own source does it.
    """
    config = find(AGENTS, name, "agent").config
    if config is type(like):
        return like
    own = config()
    known = {f.name for f in fields(config)}
    nets = {x: like.critic if x in ("critic", "value_net") else like.actor for x in known if _is_net(getattr(own, x))}
    shared = {x: getattr(like, x) for x in SHARED if x in known and hasattr(like, x)}
    return replace(own, **nets | shared, normalize=own.normalize or like.normalize)


def _is_net(value: Any) -> bool:
    return isinstance(value, MLPConfig)


EXPERIMENT, CONFIG = "qensemble-small", ENOTOConfig  # whose offline agent lends its sizes
SMALLEST = QUICK_Q


def arms(base: Config) -> dict[str, Any]:
    """Each learner's config."""
    return {name: sized(name, base.recipe.offline) for name in LEARNERS}


def run(base: Config, out: Path, chosen: Sequence[str]) -> None:
    """Train each chosen agent offline under `out`; what is finished is not run again."""
    for name in chosen:
        recipe = replace(offline_alone(base.recipe), offline=arms(base)[name])
        run_offline(replace(base, recipe=recipe), out / name)


def collect(base: Config, out: Path, results: Path, name: str) -> None:
    """Write `results/NAME.csv` (one row per agent and seed), its curves, and the figure."""
    logs = read_arms(out, list(arms(base)), "offline")
    rows: list[Row] = []
    for arm, log in logs.items():
        ret = log.series("eval", "return", "offline").values
        end = max(1, round(0.1 * len(ret)))
        steps = int(log.series("eval", "return", "offline").step[-1])
        rows += [
            {"arm": arm, "seed": k, "steps": steps, "behaviour": log.behaviour_return}
            | {"final": ret[-end:, k].mean(), "best": ret[:, k].max()}
            for k in range(ret.shape[1])
        ]
    write(results / f"{name}.csv", rows)
    write(results / f"{name}-curves.csv", curves(logs, "offline"))
    shown = {title: {arm: logs[arm] for arm in names if arm in logs} for title, names in PANELS.items()}
    save(compare_panels({title: runs for title, runs in shown.items() if runs}, "offline"), results / f"{name}.png")
