"""What studies share: offline phases, online arms that start from them, and one row per arm and seed."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mbo2o.report.read import RunLog, read_run
from mbo2o.report.statistics import summarise
from mbo2o.train import Config, train

Row = dict[str, Any]


def run_offline(base: Config, directory: Path) -> None:
    """The offline phase of `base` alone, to be started from; nothing if it is finished."""
    train(replace(base, dir=str(directory), recipe=replace(base.recipe, online_steps=0), report=False))


def run_arm(base: Config, directory: Path, start_from: Path) -> None:
    """`base`, from the end of the offline run at `start_from`; nothing if it is finished."""
    train(replace(base, dir=str(directory), start_from=str(start_from), report=False))


def read_arms(out: Path, arms: Sequence[str]) -> dict[str, RunLog]:
    """The logs of those arms under `out` that have been run."""
    return {arm: read_run(out / arm) for arm in arms if (out / arm / "metrics.jsonl").exists()}


def online_rows(arm: str, log: RunLog) -> list[Row]:
    """One row per seed: the numbers that describe the online curve."""
    curve = log.series("eval", "return", "online")
    summary = summarise(curve.step, curve.values)
    rows = []
    for k in range(curve.values.shape[1]):
        row: Row = {"arm": arm, "seed": k, "steps": int(curve.step[-1]), "behaviour": log.behaviour_return}
        rows.append(row | {x: float(getattr(summary, x)[k]) for x in ("j0", "drop", "auc", "final", "best")})
    return rows


def curves(logs: dict[str, RunLog], phase: str = "online") -> list[Row]:
    """Every evaluation of every arm and seed."""
    return [
        {"arm": arm, "seed": k, "step": int(step), "return": round(float(value), 2)}
        for arm, log in logs.items()
        for curve in [log.series("eval", "return", phase)]
        for step, values in zip(curve.step, curve.values, strict=True)
        for k, value in enumerate(values)
    ]


def write(path: Path, rows: list[Row]) -> None:
    """A CSV file of rows that share their keys; numbers to four places."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: round(float(v), 4) if isinstance(v, float | np.floating) else v for k, v in r.items()} for r in rows
        )


def read(path: Path) -> dict[str, list[dict[str, str]]]:
    """A file of `write`, by arm."""
    with open(path, newline="") as f:
        rows = list(csv.DictReader(f))
    return {arm: [r for r in rows if r["arm"] == arm] for arm in dict.fromkeys(r["arm"] for r in rows)}
