"""What a run lost at the switch and won back: the numbers of `switch.json`, and that file.

The reference is the policy that the offline phase ended with, so a run without an offline phase has none of
these numbers. Nothing here draws, so that a run can write its file without matplotlib.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbo2o.report.read import RunLog, read_run
from mbo2o.report.statistics import Array, Pace, common_window, interval, summarise

DEFINITIONS = {
    "before": "the last evaluation of the offline phase",
    "at": "the first evaluation of the online phase, before any step in the environment",
    "dip": "max(0, before - the lowest evaluation at the switch and in the early window)",
    "recovery": "online steps until the first evaluation, after the lowest one of the window, that reaches "
    "`before` again; 0 without a dip, null if the run has not got there",
    "regret": "the mean over the online steps of max(0, before - return): what is lost against keeping the "
    "offline policy, in returns of an episode; gains do not make up for it",
    "area": "the mean return over the online steps, by the trapezoidal rule",
    "final": "the mean of the last evaluations, as docs/protocol.md counts them",
    "best": "the highest online evaluation; it is chosen with hindsight, so it is not a fair result",
    "shortfall": "the mean over the online steps of 1 - min(1, score / 100): the cumulative regret against a "
    "good policy (Cal-QL, arXiv 2303.05479); only for tasks with a score",
}
"""The numbers of a switch, by their names in `switch.json`. Those of returns are in the task's own units."""


@dataclass(frozen=True)
class SwitchNumbers:
    """One value for each seed, `(S,)`; DEFINITIONS says what they mean. NaN stands for a missing value."""

    before: Array
    at: Array
    dip: Array
    recovery: Array
    regret: Array
    area: Array
    final: Array
    best: Array
    shortfall: Array | None = None


def measure(
    step: Array, ret: Array, before: Array, early: NDArray[np.int64], score: Array | None = None
) -> SwitchNumbers:
    """The numbers of a switch.

    step: `(T,)` online steps of the evaluations, from 0. ret: `(T, S)` their returns. before: `(S,)` the
    return of the offline policy. early: the evaluations in the early window, without the one at the switch.
    score: `(T, S)`, from 0 to 100, of the same evaluations.
    """
    t, j = np.asarray(step, float), np.asarray(ret, float)
    window = np.array([0, *early])
    lowest = j[window].min(0)
    s = summarise(t, j, early)
    return SwitchNumbers(
        before=before,
        at=j[0],
        dip=np.maximum(0, before - lowest),
        recovery=_recovery(t, j, before, window),
        regret=_mean_over_steps(t, np.maximum(0, before - j)),
        area=s.auc,
        final=s.final,
        best=s.best,
        shortfall=None if score is None else _mean_over_steps(t, 1 - np.minimum(1, score / 100)),
    )


def _mean_over_steps(t: Array, y: Array) -> Array:
    """The mean of `y` `(T, S)` over the steps `t` `(T,)`, by the trapezoidal rule."""
    length = t[-1] - t[0]
    return np.asarray(np.trapezoid(y, t, axis=0) / length if length > 0 else y[-1])


def _recovery(t: Array, j: Array, before: Array, window: NDArray[np.int64]) -> Array:
    """Steps until `before` is reached again; NaN where it is not, or where a value is missing."""
    found = np.full(j.shape[1], np.nan)
    for k, target in enumerate(before):
        returns = j[:, k]
        if np.isnan(target) or np.isnan(returns[window]).any():
            continue
        low = window[np.argmin(returns[window])]
        if returns[low] >= target:
            found[k] = 0
        elif (again := np.flatnonzero(returns[low:] >= target)).size:
            found[k] = t[low + again[0]]
    return found


def switch_numbers(log: RunLog, early: NDArray[np.int64] | None = None) -> SwitchNumbers | None:
    """The numbers of a run's switch as far as it has got; None for a run that has no switch, or not yet.

    early: the evaluations in the early window, if several runs share one (`statistics.common_window`).
    """
    offline, online = (log.series("eval", "return", phase) for phase in ("offline", "online"))
    if not len(offline.step) or not len(online.step):
        return None
    if early is None:
        early = common_window({"run": pace(log)})[1]["run"]
    score = None
    for name in log.names("eval", ("score",)):
        found = log.series("eval", name, "online")
        if len(found.step) == len(online.step):  # a reference that all evaluations were scored with
            score = found.values
    step = online.step.astype(float)
    return measure(step, online.values, offline.values[-1], early, score)


def policy_changed(log: RunLog) -> bool:
    """Whether the policy at the switch plays otherwise than the one that the offline phase ended with.

    All evaluations play the same starts without exploration, so that the same policy has the same returns.
    """
    name = "returns" if log.has("eval", "returns") else "return"  # older versions stored no episodes
    before, at = (log.series("eval", name, phase).values for phase in ("offline", "online"))
    return len(before) > 0 and len(at) > 0 and not np.array_equal(before[-1], at[0], equal_nan=True)


def pace(log: RunLog) -> Pace:
    """When a run is evaluated online, and when it learns."""
    recipe = log.config.get("recipe")
    utd = recipe.get("utd") if isinstance(recipe, dict) else None
    step = log.series("eval", "return", "online").step
    return Pace(step.astype(float), log.frozen_steps, int(utd) if isinstance(utd, int) and utd > 0 else 1)


def entry(values: Array) -> dict[str, Any]:
    """Mean, interval and seeds of a measure as JSON has them; null for what is not known."""
    low, high = (float(x) for x in interval(values))
    numbers = {"mean": float(values.mean()), "low": low, "high": high}
    plain = {key: x if np.isfinite(x) else None for key, x in numbers.items()}
    return {**plain, "seeds": [float(x) if np.isfinite(x) else None for x in values]}


def parts_of(path: Path) -> list[dict[str, str]]:
    """What the switch did with each part of the offline agent; files of older versions hold nothing else."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    parts = found.get("parts", []) if isinstance(found, Mapping) else found
    return [x for x in parts if isinstance(x, dict)]


def write_switch(run_dir: str | Path) -> Path | None:
    """Write `switch.json` of a run that has come to its online phase; returns its path.

    None for a run without a switch. What the file says of the agent's parts stays. Raises `UserError` for a
    directory that is not a run.
    """
    log, path = read_run(run_dir), Path(run_dir) / "switch.json"
    numbers = switch_numbers(log)
    if numbers is None:
        return None
    early = common_window({"run": pace(log)})
    step = log.series("eval", "return", "online").step
    first, seeds = int(log.config.get("seed", 0)), len(numbers.at)
    report = {
        "parts": parts_of(path),
        "unit": "return of an episode, mean over evaluation episodes; recovery: environment steps",
        "seeds": list(range(first, first + seeds)),
        "policy_changed": policy_changed(log),
        "online_steps": int(step[-1]),
        "window": {
            "steps": [int(step[i]) for i in early[1]["run"]],
            "meaning": "the evaluations of the early window, which docs/protocol.md defines",
        },
        "measures": {
            name: {"meaning": DEFINITIONS[name], **entry(values)}
            for name, values in vars(numbers).items()
            if values is not None
        },
    }
    temporary = path.with_name(".switch.json.tmp")
    temporary.write_text(json.dumps(report, indent=1) + "\n")
    temporary.replace(path)
    return path
