"""What studies share: offline phases, online arms that start from them, and one row per arm and seed."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mbo2o.recipes.finetune import FinetuneConfig
from mbo2o.report.compare import PALETTE, Curve, compare_panels, curve, save
from mbo2o.report.read import RunLog, read_run
from mbo2o.report.statistics import Pace, common_window, late_evaluations, summarise
from mbo2o.training import Config, train
from mbo2o.types import Diverged

Row = dict[str, Any]
QUICK = [
    "run.eval_every=20",
    "run.eval_episodes=1",
    "run.log_every=20",
    "recipe.online_steps=60",
]
"""Sizes that only show that a study runs: from scratch, with an offline phase, and without a model."""
QUICK_OFFLINE = [*QUICK, "recipe.offline_steps=40"]
QUICK_Q = [*QUICK_OFFLINE, "recipe.batch=16", "recipe.warmup=20", "recipe.probe_every=20"]
BESIDE = ("-curves", "-drops", "-q", "-distances")
"""How the files that stand beside a table of results end."""
DIVERGED = "diverged.txt"
"""In an arm's directory: why it ended early."""


class Job(NamedTuple):
    """A run of a study: an arm, or an offline phase that arms start from."""

    name: str
    """Its directory in the folder of the study."""
    config: Config
    start: str | None = None
    """The job whose end it starts from."""


def offline_job(name: str, base: Config) -> Job:
    """The offline phase of `base` alone, for arms to start from."""
    return Job(name, replace(base, recipe=replace(base.recipe, online_steps=0)))


def offline_alone(recipe: FinetuneConfig) -> FinetuneConfig:
    """A recipe with only the settings that decide the offline phase, so that arms share one run of it."""
    return FinetuneConfig(
        **{x: getattr(recipe, x) for x in ("offline", "offline_steps", "batch", "probe_every")}
    )


def run_job(job: Job, out: Path) -> None:
    """Run a job in its directory under `out`; one that is finished, or has diverged before, is not run again.

    A job that diverges says so, and the others run. An arm whose offline phase diverged is not run.
    """
    directory, start = out / job.name, out / job.start if job.start else None
    if (directory / DIVERGED).exists():
        return
    if start and (start / DIVERGED).exists():
        print(f"{directory.name}: is not run, because {start.name} diverged", file=sys.stderr)
        return
    try:
        train(replace(job.config, dir=str(directory), start_from=str(start) if start else None, report=False))
    except Diverged as e:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / DIVERGED).write_text(f"{e}\n")
        print(f"{directory.name}: diverged: {e}", file=sys.stderr)


def read_arms(out: Path, arms: Sequence[str], phase: str = "online") -> dict[str, RunLog]:
    """The logs of the arms under `out` that ran to the end of `phase`, or diverged.

    An arm that has not finished is named on stderr and left out.
    """
    logs = {}
    for arm in arms:
        if not (out / arm / "metrics.jsonl").exists():
            continue
        log = read_run(out / arm)
        steps = log.series("eval", "return", phase).step
        if len(steps) and (
            int(steps[-1]) == log.config["recipe"][f"{phase}_steps"] or (out / arm / DIVERGED).exists()
        ):
            logs[arm] = log
        else:
            print(f"{out / arm}: has not finished and is left out", file=sys.stderr)
    return logs


def online_rows(logs: dict[str, RunLog]) -> dict[str, list[Row]]:
    """By arm, a row for each seed with the numbers that describe its online curve.

    They are NaN where the arm diverged before its end. `drop` looks at the same number of updates and of
    evaluations in every arm of `logs` (see `common_window`).
    """
    arms, rows = {}, {}
    for arm, log in logs.items():
        online, recipe = log.series("eval", "return", "online"), log.config["recipe"]
        arms[arm] = curve(log), int(recipe.get("utd") or 1), int(online.step[-1]) == recipe["online_steps"]
        layout = {
            "env": log.config.get("env"),
            "steps": int(online.step[-1]),
            "behaviour": log.behaviour_return,
        }
        layout |= {"frozen": log.frozen_steps, "random": log.random_steps, "utd": arms[arm][1]}
        layout |= {"eval_episodes": log.config["run"]["eval_episodes"]}
        rows[arm] = [{"arm": arm, "seed": k} | layout for k in range(online.values.shape[1])]
    found = measures(arms)
    return {arm: [row | mine for row, mine in zip(rows[arm], found[arm], strict=True)] for arm in logs}


def wobble(log: RunLog) -> np.ndarray:
    """The noise around a straight line, however steep, of the online returns of each seed."""
    deviation: np.ndarray = np.diff(log.series("eval", "return", "online").values, axis=0).std(0) / 2**0.5
    return deviation


def measures(arms: dict[str, tuple[Curve, int, bool]]) -> dict[str, list[Row]]:
    """By arm, a row for each seed with the measures of its curve.

    arms: for each arm its curve, its updates for each environment step, and whether it reached its end.
    """
    paces = {arm: Pace(c.step, c.frozen, utd) for arm, (c, utd, whole) in arms.items() if whole}
    updates, early = common_window(paces)
    found: dict[str, list[Row]] = {}
    for arm, (c, _, whole) in arms.items():
        summary = summarise(c.step, c.values, early.get(arm))
        late = {
            x: getattr(summary, x) if whole else np.full(len(summary.j0), np.nan)
            for x in ("drop", "auc", "final", "best")
        }
        looks = {
            "drop_updates": updates,
            "drop_evals": len(early.get(arm, [])),
            "final_evals": late_evaluations(c.step),
        }
        found[arm] = [
            {"j0": float(j0)} | {x: float(values[k]) for x, values in late.items()} | looks
            for k, j0 in enumerate(summary.j0)
        ]
    return found


def recompute(path: Path) -> None:
    """Compute the measures in `NAME.csv` again from `NAME-curves.csv`, after a definition has changed."""
    write(path, recomputed(path))


def recomputed(path: Path) -> list[Row]:
    """The rows of `NAME.csv` with its measures as they follow from `NAME-curves.csv`."""
    rows, arms = read_rows(path), stored_curves(path)
    online = "j0" in next(iter(rows.values()))[0]
    utd = {arm: int(found[0]["utd"]) if online else 1 for arm, found in rows.items()}
    new = measures({arm: (arms[arm], utd[arm], found[0]["final"] != "nan") for arm, found in rows.items()})
    return [
        row | {k: v for k, v in mine.items() if online or k in ("final", "best", "final_evals")}
        for arm, found in rows.items()
        for row, mine in zip(found, new[arm], strict=True)
    ]


def stored_curves(path: Path) -> dict[str, Curve]:
    """The curves in `NAME-curves.csv`, by arm of `NAME.csv`."""
    rows, found = read_rows(path), read_rows(path.with_name(f"{path.stem}-curves.csv"))
    out = {}
    for arm, points in found.items():
        seeds = sorted({int(p["seed"]) for p in points})
        values = np.array([[float(p["return"]) for p in points if int(p["seed"]) == k] for k in seeds]).T
        step = np.array([float(p["step"]) for p in points if int(p["seed"]) == seeds[0]])
        first = rows[arm][0]
        out[arm] = Curve(
            step, values, int(first.get("frozen", 0)), int(first.get("random", 0)),
            float(first["behaviour"]) if first["behaviour"] else None,
        )  # fmt: skip
    return out


def draw(path: Path, panels: dict[str, list[str]], phase: str = "online", suffix: str = "") -> None:
    """Draw `NAMESUFFIX.png`, and an SVG, from the files of `NAME.csv`, with a panel for each set of arms.

    A panel with fewer than two measured arms is left out, unless all of them are such panels.
    """
    arms, first = stored_curves(path), next(iter(read_rows(path).values()))[0]
    shown = {title: {arm: arms[arm] for arm in names if arm in arms} for title, names in panels.items()}
    drawn = {title: found for title, found in shown.items() if len(found) > 1}
    if len(drawn) == 1:  # a title tells panels apart
        drawn = {"": next(iter(drawn.values()))}
    study, _, data = path.stem.partition("-")
    subject = first["env"] + (f" · {data}" if data != first["env"] else "") + f" · study {study}"
    save(
        compare_panels(drawn or {"": dict(list(arms.items())[: len(PALETTE)])}, subject, phase),
        path.with_name(f"{path.stem}{suffix}.png"),
    )


def curves(logs: dict[str, RunLog], phase: str = "online") -> list[Row]:
    """Every evaluation of every arm and seed."""
    return [
        {"arm": arm, "seed": k, "step": int(step), "return": round(float(value), 2)}
        for arm, log in logs.items()
        for curve in [log.series("eval", "return", phase)]
        for step, values in zip(curve.step, curve.values, strict=True)
        for k, value in enumerate(values)
    ]


def publish(path: Path, rows: list[Row], logs: dict[str, RunLog], phase: str = "online") -> None:
    """Write `NAME.csv` and `NAME-curves.csv`.

    The measures are computed from the stored curve, whose returns are rounded, so that the two files always
    agree.
    """
    write(path, rows)
    write(path.with_name(f"{path.stem}-curves.csv"), curves(logs, phase))
    recompute(path)


def write(path: Path, rows: list[Row]) -> None:
    """A CSV file of rows that share their keys; numbers to four places."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: rounded(v) for k, v in r.items()} for r in rows)


def rounded(x: Any) -> Any:
    """A value as tables hold it: numbers that are not whole to four places."""
    return round(float(x), 4) if isinstance(x, float | np.floating) else x


def read_rows(path: Path) -> dict[str, list[dict[str, str]]]:
    """A file of `write`, by arm."""
    with open(path, newline="") as f:
        rows = list(csv.DictReader(f))
    return {arm: [r for r in rows if r["arm"] == arm] for arm in dict.fromkeys(r["arm"] for r in rows)}
