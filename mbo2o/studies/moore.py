"""How should offline data fade? MOORe's priority against its paper's baselines, all from one offline phase."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mbo2o.report.plots import compare
from mbo2o.report.read import RunLog, read_run
from mbo2o.report.statistics import spearman, summarise
from mbo2o.train import Config, train

ARMS: dict[str, dict[str, Any]] = {
    "priority": {},
    "uniform": {"sampling": "uniform"},
    "half": {"sampling": "half"},
    "online": {"sampling": "online"},
}
"""Each arm starts from the same offline checkpoint; the model is fine-tuned, not reset, in all of them."""


def extra(base: Config) -> dict[str, dict[str, Any]]:
    """Robustness: the pace of fading, and the penalty's coefficient online."""
    return {
        "alpha-0.5": {"alpha": 0.5},
        "alpha-0.8": {"alpha": 0.8},
        "no-penalty": {"online_coef": 0.0},
        "double-penalty": {"online_coef": 2 * base.recipe.coef},
    }


def run(base: Config, out: Path, arms: dict[str, dict[str, Any]]) -> None:
    """One offline phase, then every arm, under `out`; what is finished is not run again."""
    offline = replace(base, dir=str(out / "offline"), recipe=replace(base.recipe, online_steps=0), report=False)
    train(offline)
    for name, change in arms.items():
        recipe = replace(base.recipe, **change)
        train(replace(base, dir=str(out / name), recipe=recipe, start_from=str(out / "offline"), report=False))


def collect(out: Path, results: Path, name: str) -> None:
    """Write `results/moore-NAME.csv` (one row per arm and seed), its curves, and the figure of the arms."""
    arms = [*ARMS, *sorted(p.name for p in out.iterdir() if p.name not in {*ARMS, "offline"})]
    logs = {arm: read_run(out / arm) for arm in arms if (out / arm / "metrics.jsonl").exists()}
    results.mkdir(parents=True, exist_ok=True)
    rows = [row for arm, log in logs.items() for row in _rows(arm, log)]
    _write(results / f"moore-{name}.csv", rows)
    curves = [
        {"arm": arm, "seed": k, "step": int(step), "return": round(float(value), 2)}
        for arm, log in logs.items()
        for curve in [log.series("eval", "return", "online")]
        for step, values in zip(curve.step, curve.values, strict=True)
        for k, value in enumerate(values)
    ]
    _write(results / f"moore-{name}-curves.csv", curves)
    figure = compare({arm: logs[arm] for arm in ARMS if arm in logs})
    figure.savefig(results / f"moore-{name}.png", dpi=110)


def _rows(arm: str, log: RunLog) -> list[dict[str, Any]]:
    curve = log.series("eval", "return", "online")
    summary = summarise(curve.step, curve.values)
    u = {short: log.series("uncertainty", f"{long}/imagined", "online") for short, long in NAMES.items()}
    share = log.series("model", "share_offline", "online").values
    rows = []
    for k in range(curve.values.shape[1]):
        row: dict[str, Any] = {"arm": arm, "seed": k, "steps": int(curve.step[-1]), "behaviour": log.behaviour_return}
        row |= {x: getattr(summary, x)[k] for x in ("j0", "drop", "auc", "final", "best")}
        row["share_last"] = share[-1, k]
        for short, series in u.items():
            values = series.values[:, k]
            known = values[np.isfinite(values)]
            row |= {f"{short}_first": known[0], f"{short}_last": known[-1], f"{short}_spearman": spearman(series.step, values)}
        rows.append({key: round(float(v), 4) if isinstance(v, float | np.floating) else v for key, v in row.items()})
    return rows


NAMES = {"u1": "max_aleatoric", "u3": "max_pairwise", "u5": "mixture_std"}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    with open(path, "w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
