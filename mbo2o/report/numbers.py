"""Tables of numbers with intervals: what their columns are, and how they are written."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mbo2o.report.arms import Arm, measured, shared_steps, until
from mbo2o.report.read import RunLog
from mbo2o.report.runs import data_of
from mbo2o.report.statistics import (
    Array,
    interquartile_mean,
    interval,
    optimality_gap,
    probability_of_improvement,
    stratified_bootstrap,
    summarise,
)
from mbo2o.report.switch import entry

COLUMNS = {
    "before": "before the switch",
    "at": "at the switch",
    "dip": "dip",
    "recovery": "steps to recover",
    "regret": "regret",
    "area": "mean online",
    "final": "final",
    "best": "best (hindsight)",
    "shortfall": "shortfall of score",
}
"""The headings of the numbers that `switch.DEFINITIONS` explains."""


def number(x: float) -> str:
    """Three digits, or a whole number from 100 on; a dash for a value that is missing."""
    if not np.isfinite(x):
        return "–"
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"


def cell(values: Array) -> str:
    """The mean over seeds, and its interval where there are seeds enough for one."""
    low, high = (float(x) for x in interval(values))
    mean = number(float(values.mean()))
    return f"{mean} [{number(low)}, {number(high)}]" if np.isfinite([low, high]).all() else mean


def comparison(arms: Sequence[Arm]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of a task: an arm in each row; columns that no arm has are left out."""
    found = measured(arms)
    columns = [name for name in COLUMNS if any(name in values for values in found.values())]
    head = ["arm", "data", "seeds", *(COLUMNS[name] for name in columns)]
    rows = [
        [arm.name, data_of(arm.log), str(len(arm.seeds)), *(_known(found[arm.name], x) for x in columns)]
        for arm in arms
    ]
    return head, rows


def _known(values: dict[str, Array], name: str) -> str:
    if name not in values:
        return "–"
    there = int(np.isfinite(values[name]).sum())
    if name == "recovery" and 0 < there < len(values[name]):
        return f"{there} of {len(values[name])} seeds do"
    return cell(values[name])


def records(tasks: dict[str, list[Arm]]) -> list[dict[str, Any]]:
    """The same for programs: an object for each arm, with mean, interval and seeds of every number."""
    found = []
    for task, arms in tasks.items():
        steps = shared_steps(arms)
        for arm, values in zip(arms, measured(arms).values(), strict=True):
            place = {"task": task, "arm": arm.name, "data": data_of(arm.log), "seeds": arm.seeds}
            runs = [str(run.path) for run in arm.runs]
            numbers = {name: entry(x) for name, x in values.items()}
            found.append({**place, "runs": runs, "online_steps": steps, "measures": numbers})
    return found


def aggregates(arms: Sequence[Arm]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of rliable's measures of the final results; empty rows below two arms with two seeds.

    Scores are taken where all arms have them, else returns, which have no optimality gap. Improvement is over
    the first arm.
    """
    steps = shared_steps(arms)
    scores = [_final_scores(until(arm.log, steps)) for arm in arms]
    scored = all(x is not None for x in scores)
    found = measured(arms)
    finals = scores if scored else [found[arm.name].get("final") for arm in arms]
    what = "final score" if scored else "final return"
    head = ["arm", "seeds", f"IQM of the {what}"]
    head += ["optimality gap"] * scored + [f"P(better than {arms[0].name})"]
    rows: list[list[str]] = []
    for arm, values in zip(arms, finals, strict=True):
        if values is None or len(values) < 2:
            continue
        row = [arm.name, str(len(values)), _bootstrapped(interquartile_mean, values)]
        if scored:
            row.append(_bootstrapped(lambda x: optimality_gap(np.asarray(x) / 100), values))
        base = finals[0]
        if arm is arms[0] or base is None or len(base) < 2:
            row.append("–")
        else:
            row.append(_bootstrapped(probability_of_improvement, values, base))
        rows.append(row)
    return head, rows


def _final_scores(log: RunLog) -> Array | None:
    """The score of the final evaluations, `(S,)`; None where not all online evaluations have one."""
    online = log.series("eval", "return", "online")
    for name in log.names("eval", ("score",)):
        score = log.series("eval", name, "online")
        if len(score.step) == len(online.step) and len(score.step):
            return summarise(score.step, score.values).final
    return None


def _bootstrapped(statistic: Callable[..., float], *arms: Array) -> str:
    low, high = stratified_bootstrap(statistic, *arms)
    mean = number(statistic(*arms))
    return f"{mean} [{number(low)}, {number(high)}]" if np.isfinite([low, high]).all() else mean


# ------------------------------------------------------------------------------------------ writing tables

FORMATS = ("text", "md", "csv", "json", "latex")
"""How `render` writes a table."""
LATEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "–": "--", "{": r"\{", "}": r"\}"}


def render(head: Sequence[str], rows: Sequence[Sequence[str]], form: str) -> str:
    """A table as text in columns, Markdown, CSV, a JSON list of objects, or LaTeX's tabular (booktabs)."""
    if form == "csv":
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows([head, *rows])
        return file.getvalue().rstrip("\n")
    if form == "json":
        return json.dumps([dict(zip(head, row, strict=True)) for row in rows], indent=1, ensure_ascii=False)
    if form == "latex":
        lines = [" & ".join(_latex(x) for x in row) + r" \\" for row in [head, *rows]]
        columns = "l" + "r" * (len(head) - 1)
        begin, end = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"], [r"\bottomrule", r"\end{tabular}"]
        return "\n".join([*begin, lines[0], r"\midrule", *lines[1:], *end])
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    padded = [[x.ljust(w) for x, w in zip(row, widths, strict=True)] for row in [head, *rows]]
    if form == "text":
        return "\n".join("  ".join(row).rstrip() for row in padded)
    lines = [f"| {' | '.join(row)} |" for row in padded]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def _latex(text: str) -> str:
    return "".join(LATEX.get(c, c) for c in text)
