"""The report of one run: a page with returns, figures and configuration, and the figures as SVG and PNG."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from mbo2o.report import beliefs, html, plots
from mbo2o.report.coverage import coverage as draw_coverage
from mbo2o.report.estimates import estimates as draw_estimates
from mbo2o.report.estimates import table as estimates_table
from mbo2o.report.numbers import number
from mbo2o.report.read import RunLog, read_run
from mbo2o.report.statistics import FEWEST, KIND, Array, interval, late_evaluations, summarise
from mbo2o.report.switch import parts_of, policy_changed, switch_numbers, write_switch
from mbo2o.types import duration


@dataclass(frozen=True)
class Section:
    """A figure of the page."""

    name: str
    """The name of its files."""
    heading: str
    draw: Callable[[RunLog, bool], Figure]
    """Draws it, for a wide page or a narrow one."""
    needs: tuple[str, str]
    """The kind of log line and the metric that it shows; without them the page leaves it out."""
    caption: str
    """What to look for."""


SECTIONS = [
    Section(
        "return",
        "Return",
        plots.return_curve,
        ("eval", "return"),
        "Look at the switch: where the curve falls, the policy unlearns what the offline phase taught it. "
        "The last offline point and the first online point belong to the same policy; the gap between them "
        "is the noise of evaluations.",
    ),
    Section(
        "estimates",
        "Estimates from the log alone",
        draw_estimates,
        ("eval", "behaviour_value"),
        "Values that rise above the dotted line promise more than the recorded policy earned. Believe them "
        "only where both estimates agree, the bands are narrow and the TD error on held-out rows does not "
        "rise: a policy far from the data's actions is judged by extrapolation.",
    ),
    Section(
        "uncertainty",
        "Model uncertainty",
        plots.uncertainty,
        ("uncertainty", "epistemic_std/offline"),
        "The epistemic uncertainty on online states should fall towards that on offline states, and the true "
        "error with it. Where the error stays high while the uncertainty falls, the model is overconfident.",
    ),
    Section(
        "coverage",
        "Where the policy goes",
        draw_coverage,
        ("coverage", "visited/distance"),
        "Follow a curve from left to right. Below the dashed 90 % line the policy meets states like those of "
        "the data; in the shaded part hardly anything like them was recorded. If states leave the data and "
        "the true error rises there, while imagined states stay near the data, then the policy is trained "
        "where it does not go: longer branches, other starts or other data are needed, not more updates.",
    ),
    Section(
        "uncertainty_value",
        "Uncertainty value error",
        plots.uncertainty_value,
        ("coverage", "uncertainty_value_error"),
        "Both values belong to the same imagined branches of the policy, 100 steps long; λ is that of the "
        "offline phase throughout. Where the difference falls online, conservatism fades by itself, though "
        "λ stays. A jump at the switch would mean that the penalty, and not the task, moves the values.",
    ),
    Section(
        "offline_share",
        "Offline share",
        plots.offline_share,
        ("model", "share_offline"),
        "How fast offline data leave the model's batches. Compare it with the return after the switch.",
    ),
    Section(
        "q_values",
        "Q-values",
        plots.q_values,
        ("eval", "q"),
        "A Q-value below the dashed line is pessimistic, above it optimistic. A sudden fall of Q at the "
        "switch is typical of runs that lose the offline policy.",
    ),
    Section(
        "critics",
        "Critics on the dataset",
        plots.critics,
        ("probe", "distance"),
        "The rows are the same each time. A change of Q right after the switch shows the change of "
        "pessimism. Where the critics agree everywhere, their spread can no longer warn of errors. Without "
        "offline data in the batches the TD error rises here (WSRL). The distance shows how far the policy "
        "is from the data's actions.",
    ),
    Section(
        "calibration",
        "Calibration",
        plots.calibration,
        ("model", "coverage90"),
        "Dots on their dashed line: the model's intervals are as wide as they should be. Below it, the model "
        "is overconfident in this output; above it, too cautious. Large dots are means over seeds, small "
        "dots are seeds.",
    ),
]


CHANGED = (
    "The switch itself changed the policy: its first online evaluation differs from the last offline one, on "
    "the same starts and before any online step. Look below at what was not kept."
)


def write_report(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Write figures and `index.html` to `out` (by default `run_dir/report`) and return the path of the page.

    The page contains its pictures, so the one file can be passed on. An unfinished run is shown as far as it
    got. Without `out`, the run's `switch.json` is brought up to date as well. Raises `UserError` for a
    directory that is not a run.
    """
    log = read_run(run_dir)
    if out is None:
        write_switch(run_dir)
    out = Path(run_dir) / "report" if out is None else Path(out)
    out.mkdir(parents=True, exist_ok=True)
    body = [f"<h1>{escape(log.title)}</h1>", f'<p class="sub">{escape(_progress(log))}</p>', _table(log)]
    if policy_changed(log):
        body.append(f'<p class="warn">{CHANGED}</p>')
    body.append(_switch_table(Path(run_dir) / "switch.json"))
    for section in SECTIONS:
        png = out / f"{section.name}.png"
        if not log.has(*section.needs):
            for old in (png, png.with_suffix(".svg")):
                old.unlink(missing_ok=True)  # an earlier report may have left one here
            continue
        body.append(f'<h2 id="{section.name}">{section.heading}</h2>')
        body.append(html.picture(partial(section.draw, log), png, section.heading, section.caption))
        if section.name == "uncertainty":
            body.append(_beliefs(log, out))
    config = escape(OmegaConf.to_yaml(OmegaConf.create(log.config)))
    body.append(
        f'<h2 id="config">Configuration</h2><details><summary>resolved</summary><pre>{config}</pre></details>'
    )
    (out / "index.html").write_text(html.document(log.title, body), encoding="utf-8")
    return out / "index.html"


def _beliefs(log: RunLog, out: Path) -> str:
    """What the numbers of the uncertainty say, which then lie beside the page."""
    found = beliefs.table(log)
    beliefs.write(found, out / "uncertainty.csv")
    said = beliefs.decay(found)
    told = f"{said} " if said else ""
    return f'<p class="note">{escape(told)}The numbers are in <code>uncertainty.csv</code>.</p>'


def _progress(log: RunLog) -> str:
    """The steps of each phase, the seeds and the time."""
    steps: dict[str, int] = {}
    for line in log.lines:
        steps[line["phase"]] = max(line["step"], steps.get(line["phase"], 0))
    time = duration(max((line.get("time") or 0 for line in log.lines), default=0))
    done = ", ".join(f"{phase} {n:,} steps" for phase, n in steps.items()) or "nothing logged yet"
    seeds = log.config.get("seeds", "?")
    return f"{done} · {seeds} seed{'' if seeds == 1 else 's'} from {log.config.get('seed', '?')} · {time}"


def _table(log: RunLog) -> str:
    """The table of returns: mean, interval and each seed."""
    rows: list[tuple[str, Array]] = []
    offline, online = log.series("eval", "return", "offline"), log.series("eval", "return", "online")
    if len(offline.step):
        rows.append(("offline final", summarise(offline.step, offline.values).final))
    if len(online.step):
        s = summarise(online.step, online.values, start=log.frozen_steps)
        last = late_evaluations(online.step)
        rows += [
            ("J0: at the switch, before any online update", s.j0),
            ("drop: J0 − lowest return in the first 20 % of online learning", s.drop),
            *_switch_rows(log),
            (f"final: mean of the last {last} online evaluation{'s' * (last > 1)}", s.final),
            ("AUC: mean return over the online steps", s.auc),
            ("best online evaluation (chosen with hindsight)", s.best),
        ]
    latest = log.series("eval", "return").total[-1:]
    for metric in log.names("eval", ("score", "success")):
        given = log.series("eval", metric)
        if given.total[-1] != latest:  # an older score: the run was resumed with another reference
            continue
        what = "share of episodes with success" if metric == "success" else f"normalised {metric}"
        rows.append((f"last evaluation, {what} ({given.phase[-1]})", given.values[-1]))
    if not rows and (estimated := estimates_table(log)):
        return estimated
    if not rows:
        return '<p class="note">Nothing was evaluated yet.</p>'
    seeds = max(len(values) for _, values in rows)
    head = ["return", "mean", "95 % interval", *(f"seed {i}" for i in range(seeds))]
    cells = [_row(*row) for row in rows]
    if log.behaviour_return is not None:
        empty = [""] * (seeds + 1)
        cells = [["behaviour policy (dataset)", number(log.behaviour_return), *empty], *cells]
    return (
        f'<h2 id="numbers">Numbers</h2>{html.table(head, cells)}'
        f'<p class="note">{_caution(seeds)} “–”: the log has no such value, or a seed has not got there.</p>'
    )


def _switch_rows(log: RunLog) -> list[tuple[str, Array]]:
    """What the switch cost; nothing for a run without an offline phase."""
    found = switch_numbers(log)
    if found is None:
        return []
    return [
        ("dip: the last offline return − lowest return in the same evaluations", found.dip),
        ("recovery: online steps until the last offline return is reached again", found.recovery),
        ("regret: mean online shortfall from the last offline return", found.regret),
    ]


def _switch_table(path: Path) -> str:
    """The table that says what the switch did with each part of the offline agent."""
    rows = [(x["what"], x["part"], x["note"]) for x in parts_of(path)]
    if not rows:
        return ""
    table = html.table(("what", "part", "note"), rows, words=True)
    return (
        f'<h2 id="switch">At the switch</h2><details><summary>parts and settings</summary>{table}</details>'
    )


def _row(name: str, values: Array) -> list[str]:
    low, high = (float(x) for x in interval(values))
    between = f"{number(low)} … {number(high)}" if np.isfinite([low, high]).all() else "–"
    return [name, number(float(values.mean())), between, *(number(float(v)) for v in values)]


def _caution(seeds: int) -> str:
    if seeds == 1:
        return "One seed says nothing about the spread over seeds, so there is no interval."
    if seeds < FEWEST:
        return f"{seeds} seeds are too few for an interval, which needs {FEWEST}."
    return f"Interval: {KIND} for the mean over {seeds} seeds."
