"""How far does each offline learner get on a dataset? Same nets, same updates, same evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.recipes.enoto import ENOTOConfig
from mbo2o.registry import AGENTS, find
from mbo2o.report.statistics import late_evaluations
from mbo2o.training import Config
from studies.arms import QUICK_Q, Row, draw, offline_alone, publish, read_arms, run_offline

SHARED = ("gamma", "tau", "critic_lr", "alpha_lr", "samples", "clone_steps")
"""Settings of the base agent that the others take over, where they have them; a value network learns at the critics' rate."""
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
    nets = {
        x: like.critic if x in ("critic", "value_net") else like.actor
        for x in known
        if _is_net(getattr(own, x))
    }
    shared = {x: getattr(like, x) for x in SHARED if x in known and hasattr(like, x)}
    if "value_lr" in known:
        shared["value_lr"] = like.critic_lr
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
        curve = log.series("eval", "return", "offline")
        ret, end = curve.values, late_evaluations(curve.step)
        layout = {
            "env": log.config.get("env"),
            "steps": int(curve.step[-1]),
            "behaviour": log.behaviour_return,
        }
        layout |= {"eval_episodes": log.config["run"]["eval_episodes"]}
        rows += [
            {"arm": arm, "seed": k}
            | layout
            | {"final": ret[-end:, k].mean(), "best": ret[:, k].max(), "final_evals": end}
            for k in range(ret.shape[1])
        ]
    publish(results / f"{name}.csv", rows, logs, "offline")
    figure(results / f"{name}.csv")


def figure(path: Path) -> None:
    """The figure of a results file."""
    draw(path, PANELS, "offline")
