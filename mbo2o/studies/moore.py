"""How should offline data fade? MOORe's priority against its paper's baselines, all from one offline phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mbo2o.recipes.moore import MOOReConfig
from mbo2o.report.plots import compare, save
from mbo2o.report.read import RunLog
from mbo2o.report.statistics import spearman
from mbo2o.train import Config

from .arms import QUICK_OFFLINE, Row, curves, online_rows, read_arms, run_arm, run_offline, write

EXPERIMENT, CONFIG = "hopper-small", MOOReConfig
SMALLEST = [
    *QUICK_OFFLINE,
    *(f"recipe.{x}" for x in ("fit.max_updates=20", "model_every=30", "rollouts=64", "online_rollouts=64")),
]
ARMS: dict[str, dict[str, Any]] = {
    "priority": {},
    "uniform": {"sampling": "uniform"},
    "half": {"sampling": "half"},
    "online": {"sampling": "online"},
}
"""Each arm starts from the same offline checkpoint; the model is fine-tuned, not reset, in all of them."""
DEFAULT = tuple(ARMS)
"""Arms that are run unless others are named."""


def arms(base: Config) -> dict[str, dict[str, Any]]:
    """Changes of the recipe by name: ARMS, and for robustness the pace of fading and the penalty's coefficient online."""
    return {
        **ARMS,
        "alpha-0.5": {"alpha": 0.5},
        "alpha-0.8": {"alpha": 0.8},
        "no-penalty": {"online_coef": 0.0},
        "double-penalty": {"online_coef": 2 * base.recipe.coef},
    }


def run(base: Config, out: Path, chosen: Sequence[str]) -> None:
    """One offline phase, then the chosen arms, under `out`; what is finished is not run again."""
    run_offline(base, out / "offline")
    for name in chosen:
        run_arm(replace(base, recipe=replace(base.recipe, **arms(base)[name])), out / name, out / "offline")


def collect(base: Config, out: Path, results: Path, name: str) -> None:
    """Write `results/NAME.csv` (one row per arm and seed), its curves, and the figure of the arms."""
    logs = read_arms(out, list(arms(base)))
    write(results / f"{name}.csv", [row for arm, log in logs.items() for row in _rows(arm, log)])
    write(results / f"{name}-curves.csv", curves(logs))
    figure = compare({arm: logs[arm] for arm in ARMS if arm in logs})
    save(figure, results / f"{name}.png")


def _rows(arm: str, log: RunLog) -> list[Row]:
    u = {short: log.series("uncertainty", f"{long}/imagined", "online") for short, long in NAMES.items()}
    share = log.series("model", "share_offline", "online").values
    rows = online_rows(arm, log)
    for k, row in enumerate(rows):
        row["share_last"] = float(share[-1, k])
        for short, series in u.items():
            values = series.values[:, k]
            known = values[np.isfinite(values)]
            row |= {f"{short}_first": known[0], f"{short}_last": known[-1], f"{short}_spearman": spearman(series.step, values)}
    return rows


NAMES = {"u1": "max_aleatoric", "u3": "max_pairwise", "u5": "mixture_std"}
