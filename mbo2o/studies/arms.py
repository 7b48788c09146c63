"""What studies share: offline phases, online arms that start from them, and one row per arm and seed."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mbo2o.recipes.finetune import FinetuneConfig
from mbo2o.report.read import RunLog, read_run
from mbo2o.report.statistics import summarise
from mbo2o.train import Config, train
from mbo2o.types import Diverged

Row = dict[str, Any]
QUICK = [
    "run.eval_every=20",
    "run.eval_episodes=1",
    "run.log_every=20",
    "recipe.online_steps=60",
]
"""Sizes that show nothing but that a study runs; and for those that learn offline, or without a model:"""
QUICK_OFFLINE = [*QUICK, "recipe.offline_steps=40"]
QUICK_Q = [*QUICK_OFFLINE, "recipe.batch=16", "recipe.start=20", "recipe.probe_every=20"]
DIVERGED = "diverged.txt"
"""In an arm's directory: why it ended early."""


def run_offline(base: Config, directory: Path) -> None:
    """The offline phase of `base` alone, to be started from; nothing if it is finished."""
    train(replace(base, dir=str(directory), recipe=replace(base.recipe, online_steps=0), report=False))


def offline_alone(recipe: FinetuneConfig) -> FinetuneConfig:
    """What decides the offline phase of `recipe` and nothing else, so that many arms find it in one run."""
    return FinetuneConfig(**{x: getattr(recipe, x) for x in ("offline", "offline_steps", "batch", "probe_every")})


def run_arm(base: Config, directory: Path, start_from: Path | None = None) -> None:
    """`base`, from the end of the offline run at `start_from` if one is given; nothing if it is finished, or diverged before.

    An arm that diverges says so and does not keep the others from running.
    """
    if (directory / DIVERGED).exists():
        return
    try:
        train(replace(base, dir=str(directory), start_from=str(start_from) if start_from else None, report=False))
    except Diverged as e:
        (directory / DIVERGED).write_text(f"{e}\n")
        print(f"{directory.name}: diverged: {e}", file=sys.stderr)


def read_arms(out: Path, arms: Sequence[str], phase: str = "online") -> dict[str, RunLog]:
    """The logs of those arms under `out` that ran to the end of `phase`, or diverged; others are named and left out."""
    logs = {}
    for arm in arms:
        if not (out / arm / "metrics.jsonl").exists():
            continue
        log = read_run(out / arm)
        steps = log.series("eval", "return", phase).step
        if len(steps) and (int(steps[-1]) == log.config["recipe"][f"{phase}_steps"] or (out / arm / DIVERGED).exists()):
            logs[arm] = log
        else:
            print(f"{out / arm}: has not finished and is left out", file=sys.stderr)
    return logs


def online_rows(arm: str, log: RunLog) -> list[Row]:
    """One row per seed: the numbers that describe the online curve; NaN where the arm diverged before its end."""
    curve = log.series("eval", "return", "online")
    summary, steps = summarise(curve.step, curve.values), int(curve.step[-1])
    finished = steps == log.config["recipe"]["online_steps"]
    rows = []
    for k in range(curve.values.shape[1]):
        row: Row = {"arm": arm, "seed": k, "steps": steps, "behaviour": log.behaviour_return, "j0": float(summary.j0[k])}
        rest = ("drop", "auc", "final", "best")
        rows.append(row | {x: float(getattr(summary, x)[k]) if finished else float("nan") for x in rest})
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
