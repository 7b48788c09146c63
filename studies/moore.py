"""How should offline data fade? MOORe's priority and its paper's baselines, all from one offline phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from mbo2o.recipes.mbpo import MBPOConfig
from mbo2o.recipes.moore import MOOReConfig
from mbo2o.recipes.mopo import MOPOConfig
from mbo2o.report.read import RunLog
from mbo2o.report.statistics import spearman
from mbo2o.training import Config
from studies.arms import QUICK_OFFLINE, Job, Row, draw, online_rows, publish, read_arms
from studies.claims import Claim, Measured, apart, difference
from studies.presets import changed, preset, task_of, warmup

SUBJECT = "dataset"
EXPERIMENT, CONFIG = "hopper-small", MOOReConfig
LARGER = {"mid": "experiment=hopper-mid", "paper": "experiment=moore-full"}
SMALLEST = [
    *QUICK_OFFLINE,
    *(
        f"recipe.{x}"
        for x in ("fit.max_updates=20", "refit.max_updates=20", "rollouts=64", "online_rollouts=64")
    ),
    *(
        "recipe.model_every=60",
        "recipe.epoch=60",
        "recipe.online_steps=120",
        "run.eval_every=60",
    ),  # enough rows for a refit
]
DEFAULT = ("priority", "uniform", "half", "online")
"""MOORe and its paper's baselines. Each starts from the same offline checkpoint and fine-tunes its model."""
PACES = ("alpha-0.5", "priority", "alpha-0.9")
EXTREMES = ("online", "priority", "uniform")
"""Offline data that are gone at once, that fade, and that stay: an alpha of 0, of the base, and of 1."""


def arms(base: Config) -> dict[str, Config]:
    """Arms by name: other samplings, paces and penalties of the base's MOORe, and MBPO from nothing."""
    changes: dict[str, dict[str, Any]] = {
        "priority": {},
        "uniform": {"recipe.sampling": "uniform"},
        "half": {"recipe.sampling": "half"},
        "online": {"recipe.sampling": "online"},
        "alpha-0.5": {"recipe.alpha": 0.5},
        "alpha-0.9": {"recipe.alpha": 0.9},
        "no-penalty": {"recipe.online_coef": 0.0},
        "double-penalty": {"recipe.online_coef": 2 * base.recipe.coef},
    }
    found = {name: changed(base, x) for name, x in changes.items()}
    return found | {"mbpo": replace(base, recipe=mbpo(base.recipe), dataset=None)}


def jobs(known: dict[str, Config], name: str) -> list[Job]:
    """The arm, after the offline phase that all but MBPO need."""
    base = known["priority"]
    if name == "mbpo":
        return [Job(name, replace(known[name], env=task_of(base)))]
    # a run of MOPO, so that it serves arms whose online settings differ
    return [Job("offline", replace(base, recipe=as_mopo(base.recipe))), Job(name, known[name], "offline")]


def as_mopo(moore: MOOReConfig) -> MOPOConfig:
    """MOORe's offline phase alone."""
    return MOPOConfig(**_shared(MOPOConfig, moore))


def mbpo(moore: MOOReConfig) -> MBPOConfig:
    """MBPO with the settings that it shares with MOORe, whose limit it is: no data, no penalty.

    Steps before the first fit are random, and count as environment steps.
    """
    paper: MBPOConfig = preset("experiment=mbpo-paper").recipe
    random = moore.model_every
    sizes = _shared(MBPOConfig, moore) | {"coef": 0.0, "online_steps": moore.online_steps - random}
    return replace(paper, **sizes | {warmup(paper): random})


def _shared(kind: type, moore: MOOReConfig) -> dict[str, Any]:
    """The settings that a method's config shares with MOORe's."""
    return {f.name: getattr(moore, f.name) for f in fields(kind) if hasattr(moore, f.name)}


def collect(known: dict[str, Config], out: Path, results: Path, name: str) -> None:
    """Write `results/NAME.csv` (one row per arm and seed), its curves, and the figure of the arms."""
    logs = read_arms(out, list(known))
    measured = online_rows(logs)
    publish(
        results / f"{name}.csv",
        [row for arm, log in logs.items() for row in _moore_rows(measured[arm], log)],
        logs,
    )
    figure(results / f"{name}.csv")


def figure(path: Path) -> None:
    """The figure of a results file."""
    draw(path, PANELS)


def _moore_rows(rows: list[Row], log: RunLog) -> list[Row]:
    u = {short: log.series("uncertainty", long, "online") for short, long in NAMES.items()}
    share = log.series("model", "share_offline", "online").values
    for k, row in enumerate(rows):
        row["share_last"] = float(share[-1, k])
        for short, series in u.items():
            values = series.values[:, k]
            known = values[np.isfinite(values)]
            row |= {
                f"{short}_first": known[0],
                f"{short}_last": known[-1],
                f"{short}_spearman": spearman(series.step, values),
            }
    return rows


NAMES = {
    "u1": "max_aleatoric/imagined",
    "u3": "max_pairwise/imagined",
    "u5": "mixture_std/imagined",
    "penalty": "penalty_share",
    "error": "error/online",
}
"""The model's uncertainty, the penalty's size beside the rewards, and the model's error on online states."""

OTHERS = ("alpha-0.5", "alpha-0.9", "no-penalty", "double-penalty", "mbpo")
PANELS = {
    "How offline data fade": list(DEFAULT),
    "Pace, penalty, and MBPO from nothing": ["priority", *OTHERS],
}


def _auc_range(measured: Measured, names: Sequence[str]) -> np.ndarray:
    values = np.stack([measured[name]["auc"] for name in names])
    return values.max(0) - values.min(0)


CLAIMS = [
    Claim("M1", "drop: half > priority", difference("drop", "half", "priority")),
    Claim("M1", "drop: online > priority", difference("drop", "online", "priority")),
    Claim("M2", "AUC: priority > uniform", difference("auc", "priority", "uniform")),
    Claim("M2", "final: priority > uniform", difference("final", "priority", "uniform")),
    Claim("M3", "final: priority > MBPO after as many steps", apart("final", "priority", "mbpo")),
    Claim(
        "M4", "U3 falls: rank correlation with time below -0.7", lambda m: -0.7 - m["priority"]["u3_spearman"]
    ),
    Claim(
        "M4", "U5 falls: rank correlation with time below -0.7", lambda m: -0.7 - m["priority"]["u5_spearman"]
    ),
    Claim(
        "M4",
        "penalty / reward falls: rank correlation below -0.7",
        lambda m: -0.7 - m["priority"]["penalty_spearman"],
    ),
    Claim("M4", "U5 at the end: uniform > priority", difference("u5_last", "uniform", "priority")),
    Claim("M5", "drop: without penalty online > with", difference("drop", "no-penalty", "priority")),
    Claim("M5", "AUC: with penalty online > without", difference("auc", "priority", "no-penalty")),
    Claim("M5", "AUC: penalty online as it is > doubled", difference("auc", "priority", "double-penalty")),
    Claim("M5", "final: without penalty online > with", difference("final", "no-penalty", "priority")),
    Claim(
        "M6",
        "range of AUC: over alpha of 0, the base's and 1 > over 0.5, the base's and 0.9",
        lambda m: _auc_range(m, EXTREMES) - _auc_range(m, PACES),
    ),
    Claim(
        "M8",
        "gain on random data: AUC - J0",
        lambda m: m["priority"]["auc"] - m["priority"]["j0"],
        only="random",
    ),
    Claim("", "final: priority > half", difference("final", "priority", "half")),
    Claim("", "final: priority > online", difference("final", "priority", "online")),
    Claim("", "AUC: priority > online", difference("auc", "priority", "online")),
]
