"""Does a policy learn as well when products of matrices are rounded to bfloat16? The same seeds in both."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mbo2o.agents.sac import SACConfig
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.envs.scores import find_reference
from mbo2o.recipes.enoto import ENOTOConfig
from mbo2o.recipes.scratch import ScratchConfig
from mbo2o.report.statistics import Estimate, paired_difference, summarise
from mbo2o.training import Config
from studies import offline
from studies.arms import QUICK_Q, Job, curves, read_arms, write
from studies.presets import changed, preset, task_of

SUBJECT = "dataset"
EXPERIMENT, CONFIG = "qensemble-small", ENOTOConfig  # whose offline agents' rates and budgets count
SMALLEST = QUICK_Q
MISSING = "mid and paper: its nets have the papers' width already, and rounding is compared at one budget"

PRECISIONS = ("fp32", "bf16")
OFFLINE = ("td3bc", "edac", "cql")
METHODS = (*OFFLINE, "sac", "moore")
"""SAC learns from nothing in the dataset's task, and MOORe goes on online; the others learn offline."""
NET = MLPConfig(hidden=[256, 256])
"""The papers' width: at the smaller one of other studies, products are too small a part of an update."""
MARGIN = 0.05
"""Precisions are level if the interval of their difference lies within this share of the reference range."""


def arms(base: Config) -> dict[str, Config]:
    """`METHOD-PRECISION`: every method in each precision, compiled, on the same seeds."""
    found: dict[str, Config] = {}
    learners = offline.arms(base)
    for method in METHODS:
        if method == "sac":
            config = _scratch(base)
        elif method == "moore":
            config = _moore(base)
        else:
            config = changed(learners[method], {"recipe.online_steps": 0})
            config = changed(
                config, {f"recipe.offline.{net}": _wide(config, net) for net in ("actor", "critic")}
            )
        for precision in PRECISIONS:
            found[f"{method}-{precision}"] = replace(config, engine="compiled", precision=precision)
    return found


def _wide(config: Config, net: str) -> MLPConfig:
    return replace(getattr(config.recipe.offline, net), hidden=NET.hidden)


def _scratch(base: Config) -> Config:
    recipe = ScratchConfig(
        agent=SACConfig(actor=NET, critic=NET),
        online_steps=2 * base.recipe.online_steps,
        batch=base.recipe.batch,
        random_steps=base.recipe.online_steps // 10,
    )
    return replace(base, recipe=recipe, dataset=None, env=task_of(base))


def _moore(base: Config) -> Config:
    """MOORe as the main job has it, with as many updates offline and online as the others."""
    recipe = preset("experiment=hopper-small").recipe
    sizes = {x: getattr(base.recipe, x) for x in ("offline_steps", "online_steps", "batch")}
    return replace(base, recipe=replace(recipe, **sizes))


def jobs(known: dict[str, Config], name: str) -> list[Job]:
    """The arm; each learns offline for itself."""
    return [Job(name, known[name])]


def collect(known: dict[str, Config], out: Path, results: Path, name: str) -> None:
    """Write `results/NAME.csv`, a row for each finished arm and seed, and all evaluations beside it."""
    rows, evaluations = [], []
    for arm, config in known.items():
        phase = "online" if config.recipe.online_steps else "offline"
        for log in read_arms(out, [arm], phase).values():
            curve, fits = log.series("eval", "return", phase), log.series("model", "holdout_mse")
            found = summarise(curve.step, curve.values)
            reference = find_reference(config.run.reference, task_of(config), False)
            method, precision = arm.rsplit("-", 1)
            for k in range(curve.values.shape[1]):
                row = {"arm": method, "precision": precision, "seed": k, "env": task_of(config)}
                row |= {"steps": int(curve.step[-1]), "range": reference.high - reference.low}
                row |= {"final": float(found.final[k]), "auc": float(found.auc[k])}
                rows.append(row | {"holdout_mse": float(fits.values[-1, k]) if len(fits.values) else None})
            evaluations += curves({arm: log}, phase)
    write(results / f"{name}.csv", rows)
    write(results / f"{name}-evaluations.csv", evaluations)


class Parity(NamedTuple):
    """What rounding changed in one method on one dataset, bf16 minus fp32 within each seed."""

    data: str
    method: str
    steps: int
    returns: tuple[float, float]
    """Mean final return in fp32 and in bf16."""
    final: Estimate
    auc: Estimate
    """Differences as shares of the range from random play to an expert."""
    holdout: Estimate | None
    """The relative difference of the model's holdout error."""

    @property
    def level(self) -> bool:
        """Whether both intervals lie within the margin."""
        return all(x.low > -MARGIN and x.high < MARGIN for x in (self.final, self.auc))


def parities(results: Path) -> list[Parity]:
    """Every method and dataset of which both precisions have been measured."""
    found = []
    for path in sorted(results.glob("parity-*.csv")):
        if path.stem.endswith("-evaluations"):
            continue
        with open(path, newline="") as f:
            rows = list(csv.DictReader(f))
        for method in METHODS:
            mine = {p: [r for r in rows if (r["arm"], r["precision"]) == (method, p)] for p in PRECISIONS}
            if not all(mine.values()):
                continue
            value = {
                p: {x: np.array([float(r[x]) for r in mine[p]]) for x in ("final", "auc")} for p in PRECISIONS
            }
            scale = float(mine["fp32"][0]["range"])
            exact, rounded = (value[p] for p in PRECISIONS)
            final, auc = (paired_difference(rounded[x] / scale, exact[x] / scale) for x in ("final", "auc"))
            holdout = None
            if mine["fp32"][0]["holdout_mse"]:
                error = [np.array([float(r["holdout_mse"]) for r in mine[p]]) for p in PRECISIONS]
                holdout = paired_difference(error[1] / error[0], np.ones(len(error[0])))
            returns = (float(exact["final"].mean()), float(rounded["final"].mean()))
            found.append(
                Parity(
                    path.stem.removeprefix("parity-"), method, int(mine["fp32"][0]["steps"]), returns,
                    final, auc, holdout,
                )
            )  # fmt: skip
    return found


def table(results: Path) -> str:
    """The differences that rounding made, with intervals, and whether they are shown to be small."""
    heads = [
        "data",
        "method",
        "updates or steps",
        "seeds",
        "final, fp32",
        "final, bf16",
        "final: bf16 - fp32",
    ]
    heads += ["mean: bf16 - fp32", "holdout error: bf16 / fp32 - 1", f"within ± {MARGIN:.0%}"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for p in parities(results):
        cells = [p.data, p.method, f"{p.steps:,}".replace(",", " "), str(p.final.seeds)]
        cells += [f"{x:.0f}" for x in p.returns]
        cells += [_share(x) for x in (p.final, p.auc)] + [_share(p.holdout) if p.holdout else ""]
        lines.append("| " + " | ".join([*cells, "yes" if p.level else "not shown"]) + " |")
    return "\n".join(lines)


def _share(x: Estimate) -> str:
    return f"{x.mean:+.1%} [{x.low:+.1%}, {x.high:+.1%}]"
