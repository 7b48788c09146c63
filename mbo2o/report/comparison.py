"""The page that compares runs: curves, numbers, what the switch cost, and which settings differ."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import partial
from html import escape
from pathlib import Path

from mbo2o.report import html
from mbo2o.report.arms import Arm, by_task, differences, measured, shared_steps
from mbo2o.report.compare import PALETTE, compare_finals, compare_panels, curve
from mbo2o.report.numbers import COLUMNS, aggregates, comparison
from mbo2o.report.runs import Listed, data_of, find_runs, look_at, span
from mbo2o.report.statistics import FEWEST, KIND
from mbo2o.report.switch import DEFINITIONS
from mbo2o.types import duration

TOGETHER = 8
"""The most arms in one picture; more arms get more pictures."""
CURVES = {
    "online": (
        "Return online",
        "Arms with and without an offline phase are aligned by environment steps. Look at the left edge: a "
        "curve that falls there loses what the offline phase taught.",
    ),
    "offline": ("Return offline", "Evaluations of the offline phase, in gradient steps."),
}
"""The heading and the caption of the curves of each phase."""


def write_comparison(paths: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Compare runs on one page, `out/index.html`, with the figures beside it; returns the path of the page.

    paths: runs, or folders of runs. Runs whose settings differ in nothing but their seeds are pooled; runs of
    different tasks have a section each and share no picture. By default `out` is the folder `comparison`
    where the runs lie. Raises `UserError` for a path without a run.
    """
    runs = [look_at(path) for path in find_runs(paths)]
    out = common_folder([run.path for run in runs]) / "comparison" if out is None else Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for old in [*out.glob("*.png"), *out.glob("*.svg")]:
        old.unlink()
    tasks = by_task(runs)
    title = " and ".join(tasks) if len(tasks) <= 2 else f"{len(tasks)} tasks"
    arms = sum(map(len, tasks.values()))
    many = f"{len(runs)} run{'s' * (len(runs) > 1)} in {arms} arm{'s' * (arms > 1)}"
    body = [f"<h1>{escape(title)}</h1>", f'<p class="sub">{many} · {escape(_seeds(tasks))}</p>']
    if len(tasks) > 1:
        text = "These runs are of different tasks, whose returns cannot be compared. Each has a section."
        body.append(f'<p class="warn">{text}</p>')
    for n, (task, found) in enumerate(tasks.items()):
        if len(tasks) > 1:
            body.append(f'<h2 class="task">{escape(task)}</h2>')
        body += _section(task, found, out, f"{n}-" if len(tasks) > 1 else "")
    body += _listing(runs)
    (out / "index.html").write_text(html.document(f"Comparison: {title}", body), encoding="utf-8")
    return out / "index.html"


def groups(names: Iterable[str]) -> list[list[str]]:
    """Names for one picture at a time."""
    every = list(names)
    return [every[i : i + TOGETHER] for i in range(0, len(every), TOGETHER)]


def colours_of(arms: Sequence[Arm]) -> dict[str, str]:
    """A colour for each arm of a task, the same in all of its pictures."""
    return {arm.name: PALETTE[i % len(PALETTE)] for i, arm in enumerate(arms)}


def common_folder(paths: Sequence[Path]) -> Path:
    """The folder that holds all of these runs."""
    return Path(os.path.commonpath([path.resolve().parent for path in paths]))


def _seeds(tasks: dict[str, list[Arm]]) -> str:
    counts = sorted({len(arm.seeds) for arms in tasks.values() for arm in arms})
    span = " to ".join(dict.fromkeys(map(str, (counts[0], counts[-1]))))
    few = f" (fewer than {FEWEST}: no interval)" if counts[0] < FEWEST else ""
    return f"{span} seed{'s' * (counts[-1] > 1)} in an arm{few}"


def _section(task: str, arms: list[Arm], out: Path, prefix: str) -> list[str]:
    """The pictures and tables of one task."""
    body = []
    for phase, (heading, caption) in CURVES.items():
        drawn = {a.name: curve(a.log, phase) for a in arms if len(a.log.series("eval", "return", phase).step)}
        if not drawn:
            continue
        body.append(f"<h2>{heading}</h2>")
        for i, names in enumerate(groups(drawn)):
            curves = {"": {name: drawn[name] for name in names}}
            draw = partial(compare_panels, curves, task, phase, colours_of(arms))
            path = out / f"{prefix}{phase}{f'-{i + 1}' if i else ''}.png"
            body.append(html.picture(draw, path, f"{heading}: {task}", caption))
    body += _numbers(task, arms, out, prefix)
    if rows := differences(arms):
        head = ["setting", *(arm.name for arm in arms)]
        shared = [row for row in rows if len({*row[1:]} - {"–"}) > 1]
        own = [row for row in rows if row not in shared]
        body.append("<h2>What differs in the settings</h2>")
        if shared:
            body.append(html.table(head, shared, words=True))
        if own:
            rest = f"{len(own)} more that not every arm has"
            table = html.table(head, own, words=True)
            body.append(f"<details><summary>{rest}</summary>{table}</details>")
    return body


def _numbers(task: str, arms: list[Arm], out: Path, prefix: str) -> list[str]:
    """The tables of a task, and the picture of its finals."""
    found = measured(arms)
    if not any(found.values()):
        return ['<p class="note">Nothing was evaluated yet.</p>']
    head, rows = comparison(arms)
    body = ["<h2>Numbers</h2>", *_budget(arms), html.table(head, rows)]
    shown = [x for x in COLUMNS if any(x in values for values in found.values())]
    told = [f"<b>{COLUMNS[x]}</b>: {escape(DEFINITIONS[x].replace(chr(96), chr(34)))}" for x in shown]
    given = any("[" in x for row in rows for x in row[3:])
    brackets = f"In brackets: {KIND} over seeds. " if given else ""
    body.append(f'<p class="note">{brackets}{"; ".join(told)}.</p>')
    finals = {name: values["final"] for name, values in found.items() if "final" in values}
    if len(finals) > 1:
        body.append("<h2>Final return</h2>")
        caption = "Where seeds of two arms overlap much, the order of their means may be chance."
        for i, names in enumerate(groups(finals)):
            some = {name: finals[name] for name in names}
            draw = partial(compare_finals, some, f"Final return: {task}", colours_of(arms))
            path = out / f"{prefix}final{f'-{i + 1}' if i else ''}.png"
            body.append(html.picture(draw, path, f"Final return: {task}", caption))
    head, rows = aggregates(arms)
    if len(rows) > 1:
        note = (
            "As rliable defines them (Agarwal et al. 2021): IQM is the mean without the lowest and the "
            f"highest quarter. In brackets: 95 % of a stratified bootstrap, from {FEWEST} seeds on."
        )
        body += ["<h2>Aggregates</h2>", html.table(head, rows), f'<p class="note">{note}</p>']
    return body


def _budget(arms: list[Arm]) -> list[str]:
    """What is counted if the arms have made different numbers of environment steps."""
    reached = {arm.name: arm.reached for arm in arms if arm.reached}
    steps = shared_steps(arms)
    if len(set(reached.values())) < 2:
        return []
    behind = ", ".join(name for name, n in reached.items() if n == steps)
    text = (
        f"Numbers count the first {steps:,} environment steps, which all arms have made ({behind}: no more)."
    )
    return [f'<p class="warn">{escape(text)}</p>']


def _listing(runs: Sequence[Listed]) -> list[str]:
    """The runs of the page, with their states."""
    rows = [
        [run.path.name, data_of(run.log), span(run.seeds), run.state, run.place, duration(3600 * run.hours)]
        for run in runs
    ]
    head = ["run", "data", "seeds", "state", "place", "time"]
    return ["<h2>Runs</h2>", html.table(head, rows, words=True)]
