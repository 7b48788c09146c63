"""How far does each offline learner get on a dataset? Same nets, same updates, same evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from mbo2o.recipes.finetune import FinetuneConfig
from mbo2o.registry import AGENTS, find
from mbo2o.report.plots import compare
from mbo2o.train import Config

from .arms import Row, curves, read_arms, run_offline, write

SHARED = ("gamma", "tau", "samples")
"""Settings of the base agent that the others take over, where they have them."""
LEARNERS = ("bc", "td3bc", "iql", "awac", "cql", "calql", "sacn", "edac", "lapo")


def sized(name: str, like: Any, changes: dict[str, Any]) -> Any:
    """The agent's own defaults, with the nets and sizes of `like` and what `changes` says of fields that it has."""
    config = find(AGENTS, name, "agent").config
    own = config()
    nets = {f.name: like.critic for f in fields(config) if type(getattr(own, f.name)) is type(like.critic)}
    known = {f.name for f in fields(config)}
    return replace(own, **nets | {k: v for k, v in changes.items() if k in known})


def run(base: Config, out: Path, chosen: Sequence[str], changes: dict[str, Any]) -> None:
    """Train each chosen agent offline under `out`; what is finished is not run again."""
    shared = {x: getattr(base.recipe, x) for x in ("offline_steps", "batch", "probe_every")}
    for name in chosen:
        agent = sized(name, base.recipe.offline, changes)
        run_offline(replace(base, recipe=FinetuneConfig(offline=agent, **shared)), out / name)


def collect(out: Path, results: Path, name: str) -> None:
    """Write `results/NAME.csv` (one row per agent and seed), its curves, and the figure."""
    logs = read_arms(out, LEARNERS)
    rows: list[Row] = []
    for arm, log in logs.items():
        ret, score = (log.series("eval", x, "offline").values for x in ("return", "score"))
        end = max(1, round(0.1 * len(ret)))
        steps = int(log.series("eval", "return", "offline").step[-1])
        rows += [
            {"arm": arm, "seed": k, "steps": steps, "behaviour": log.behaviour_return}
            | {"final": ret[-end:, k].mean(), "score": score[-end:, k].mean(), "best": ret[:, k].max()}
            for k in range(ret.shape[1])
        ]
    write(results / f"{name}.csv", rows)
    write(results / f"{name}-curves.csv", curves(logs, "offline"))
    shown = {arm: logs[arm] for arm in list(logs)[:8]}
    compare(shown, "offline").savefig(results / f"{name}.png", dpi=100)
