"""The figures of one run.

Each function takes a `RunLog` and returns a matplotlib `Figure`; none touches pyplot.

Time has two panels that touch at the switch: the offline phase in gradient steps, the online phase in
environment steps. The mean over seeds is bold, with its interval, or with each seed as a thin line if they
are too few for one; the mean has a gap where a seed's value is missing. `narrow` gives the figure for a page
of a phone's width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from mbo2o.report.read import RunLog
from mbo2o.report.statistics import FEWEST, KIND, interval
from mbo2o.report.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    NARROW,
    ORANGE,
    PURPLE,
    RED,
    add_title,
    dress,
    thousands,
)

WHERE = {"offline": BLUE, "online": RED, "imagined": GREEN}
"""The states on which the model is judged, and their colours."""

Row = dict[str, Axes]
"""One row of a figure: the axes of its panels "offline" and "online", as far as the run has got."""


def return_curve(log: RunLog, narrow: bool = False) -> Figure:
    """The return of evaluation episodes in both phases."""
    figure, (row,) = _timeline(log, "Return", ["return per episode"], narrow)
    _draw(log, row, "eval", "return", BLUE, "evaluated policy")
    if log.behaviour_return is not None:
        for axes in row.values():
            axes.axhline(log.behaviour_return, color=INK, ls=":", lw=1.8, label="behaviour policy (dataset)")
    _legend(row, narrow)
    return figure


def uncertainty(log: RunLog, narrow: bool = False) -> Figure:
    """The model's epistemic and aleatoric uncertainty, and its true error of one step, on one scale."""
    unit = "[state units, RMS]"
    labels = [f"epistemic std\nmembers disagree\n{unit}", f"aleatoric std\npredicted noise\n{unit}",
              f"true error\nof one step\n{unit}"]  # fmt: skip
    figure, rows = _timeline(log, "The model's uncertainty and its true error", labels, narrow)
    for row, name in zip(rows, ["epistemic_std/{}", "aleatoric_std/{}", "error/{}"], strict=True):
        for where, colour in WHERE.items():
            _draw(log, row, "uncertainty", name.format(where), colour, f"{where} states")
    _log_scale(rows)
    _legend(rows[0], narrow)
    return figure


def uncertainty_value(log: RunLog, narrow: bool = False) -> Figure:
    """What imagined branches are worth with and without the penalty, and the difference."""
    labels = ["discounted reward\nof a branch", "uncertainty\nvalue error"]
    figure, rows = _timeline(log, "Values with and without the penalty", labels, narrow)
    _draw(log, rows[0], "coverage", "value", INK, "without the penalty", ls="--")
    _draw(log, rows[0], "coverage", "value_penalised", PURPLE, "with the penalty")
    _draw(log, rows[1], "coverage", "uncertainty_value_error", ORANGE, "difference")
    _legend(rows[0], narrow)
    for axes in rows[1].values():
        axes.set_ylim(bottom=0)
    return figure


def offline_share(log: RunLog, narrow: bool = False) -> Figure:
    """The share of offline rows in the batches that the model is fitted to."""
    figure, (row,) = _timeline(
        log, "Share of offline data in the model's batches", ["share of offline rows"], narrow
    )
    _draw(log, row, "model", "share_offline", BLUE, "share", hold=True)
    for axes in row.values():
        axes.set_ylim(-0.03, 1.06)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def q_values(log: RunLog, narrow: bool = False) -> Figure:
    """The critic's Q in the states of evaluation episodes, and the discounted return that followed them."""
    figure, (row,) = _timeline(log, "Q-values and the true discounted returns", ["discounted return"], narrow)
    _draw(log, row, "eval", "mc_return", INK, "true discounted return", ls="--")
    _draw(log, row, "eval", "q", PURPLE, "Q-value of the critic")
    _legend(row, narrow)
    return figure


def critics(log: RunLog, narrow: bool = False) -> Figure:
    """On fixed rows of the dataset: Q, its spread, the TD error, and the policy's distance from the data."""
    known = [
        ("q", "mean Q", PURPLE),
        ("q_std", "std of Q\nover critics", ORANGE),
        ("td_error", "TD error²\n(log scale)", RED),
        ("distance", "median\n‖π(s) - a‖", BLUE),
    ]
    shown = [x for x in known if log.has("probe", x[0])]
    figure, rows = _timeline(
        log, "Critics and policy on fixed rows of the dataset", [label for _, label, _ in shown], narrow
    )
    for row, (name, _, colour) in zip(rows, shown, strict=True):
        _draw(log, row, "probe", name, colour, name)
        if name == "td_error":
            for axes in row.values():
                axes.set_yscale("log")
    return figure


def calibration(log: RunLog, narrow: bool = False) -> Figure:
    """The share of holdout rows within the model's 50 % and 90 % intervals, at the first and the last fit."""
    width, large, small = (NARROW, 11, 9) if narrow else (10, 13, 12)
    figure = Figure(figsize=(width, 5.2))
    panels = figure.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.15 if narrow else 0.06})
    figure.subplots_adjust(left=0.85 / width, right=1 - 1.25 / width, top=0.76, bottom=0.15)
    seeds = int(log.config.get("seeds", 1))
    marks = "one seed" if seeds == 1 else f"large: mean, small: each of {seeds} seeds"
    add_title(figure, "How often the model's intervals contain the true value", f"{log.title} · {marks}")
    for name, nominal, colour, marker in (("coverage50", 0.5, ORANGE, "s"), ("coverage90", 0.9, BLUE, "o")):
        series = log.series("model", name)
        for axes, at, when in zip(panels, (0, -1), ("first fit", "last fit"), strict=True):
            covered = series.values[at]  # (S, D + 1), the reward last
            outputs = np.arange(covered.shape[-1])
            axes.axhline(nominal, color=colour, lw=1.5, ls="--")
            axes.plot(outputs, covered.T, marker, color=colour, ms=4, alpha=0.3, mew=0)
            axes.plot(outputs, covered.mean(0), marker, color=colour, ms=8)
            axes.set_xticks(*_output_ticks(len(outputs), 6 if narrow else 20))
            axes.set_title(f"{when} ({series.phase[at]})", fontsize=small + 1, color=INK, loc="left")
            axes.set_xlabel("model output" if narrow else "model output (Δ state, reward r)", fontsize=large)
        panels[1].text(1.02, nominal, f"{nominal:.0%} interval", transform=panels[1].get_yaxis_transform(),
                       color=colour, va="center", fontsize=small)  # fmt: skip
    for axes in panels:
        dress(axes, left=axes is panels[0], labels=small)
        axes.set_ylim(0, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    panels[0].set_ylabel("holdout rows within", fontsize=large)
    return figure


def _timeline(log: RunLog, title: str, labels: list[str], narrow: bool) -> tuple[Figure, list[Row]]:
    """A figure with a row of axes for each label; `narrow`: for a page of a phone's width.

    It has the phases that the run has reached, and marks the switch.
    """
    panels = _panels(log)
    height = (4.6 if narrow else 5.8) if len(labels) == 1 else 1.7 + (1.8 if narrow else 2.4) * len(labels)
    width, large, small = (NARROW, 11, 9) if narrow else (10, 14, 12)
    figure = Figure(figsize=(width, height))
    widths = {"width_ratios": [2, 3][: len(panels)], "wspace": 0, "hspace": 0.1}
    grid = figure.subplots(
        len(labels), len(panels), sharex="col", sharey="row", squeeze=False, gridspec_kw=widths
    )
    left, top = (1.05 if narrow else 1.3) / width, 1 - 1.2 / height
    figure.subplots_adjust(left=left, right=1 - 0.3 / width, top=top, bottom=0.72 / height)
    add_title(figure, title, _subtitle(log))
    rows = [dict(zip(panels, axes, strict=True)) for axes in grid]
    for row, label in zip(rows, labels, strict=True):
        next(iter(row.values())).set_ylabel(label, fontsize=large if len(labels) == 1 else small)
        for panel, axes in row.items():
            dress(axes, left=panel == panels[0], labels=small)
            axes.set_xlim(*_limits(log, panel))
            if panel == "offline":
                axes.set_facecolor("#F3F5F7")
        if "online" in row and log.frozen_steps:
            style = {"color": "#EFE7D6", "lw": 0, "zorder": 0}
            row["online"].axvspan(0, log.frozen_steps, label="frozen policy, no updates yet", **style)
        if len(panels) == 2:
            row["online"].axvline(0, color=INK, lw=2.5, label="switch", clip_on=False, zorder=5)
    _name_panels(rows[0], small)
    units = {"offline": "gradient steps (offline)", "online": "environment steps (online)"}
    for panel, axes in rows[-1].items():
        axes.set_xlabel(units[panel].partition(" (")[0] if narrow else units[panel], fontsize=large)
        # the last offline tick would overlap the first online one
        prune = "upper" if panel == "offline" and len(panels) == 2 else None
        axes.xaxis.set_major_locator(MaxNLocator(3 if narrow else 5, prune=prune))
        axes.xaxis.set_major_formatter(FuncFormatter(thousands))
    return figure, rows


def _panels(log: RunLog) -> list[str]:
    """The panels of the phases that the run has reached; turns of the switch belong to "online"."""
    phases = {x["phase"] for x in log.lines}
    reached = {"offline": "offline" in phases, "online": bool(phases & {"switch", "online"})}
    return [panel for panel, here in reached.items() if here] or ["offline"]


def _name_panels(row: Row, size: float) -> None:
    """Write the names of the phases above the first row, and "switch" between them."""
    style: dict[str, Any] = {"ha": "center", "fontsize": size, "weight": "bold"}
    for panel, axes in row.items():
        axes.text(0.5, 1.025, panel.upper(), transform=axes.transAxes, color=GREY, **style)
    if len(row) == 2:
        online = row["online"]
        online.text(0, 1.025, "switch", transform=online.get_xaxis_transform(), color=INK, **style)


def _draw(
    log: RunLog, row: Row, kind: str, name: str, colour: str, label: str, hold: bool = False, ls: str = "-"
) -> None:
    """Draw the mean and the seeds of a metric; with `hold`, each value lasts until the next one."""
    series = log.series(kind, name)
    for panel, axes in row.items():
        here = (series.phase == "offline") == (panel == "offline")
        if not here.any():
            continue
        x = series.step[here] if panel == "offline" else series.total[here] - _switch(log)
        y = series.values[here]
        if hold:
            x, y = np.append(x, _limits(log, panel)[1]), np.concatenate([y, y[-1:]])
        style: dict[str, Any] = {"color": colour, "ls": ls, "drawstyle": "steps-post" if hold else "default"}
        if y.shape[1] >= FEWEST:
            step: dict[str, Any] = {"step": "post"} if hold else {}
            axes.fill_between(x, *interval(y), color=colour, alpha=0.2, lw=0, **step)
        elif y.shape[1] > 1:
            axes.plot(x, y, lw=1, alpha=0.35, **style)
        marker = "o" if len(x) < 12 and not hold else ""  # a single point would be invisible
        axes.plot(x, y.mean(-1), lw=2.8, label=label, marker=marker, ms=5, clip_on=False, **style)


def _switch(log: RunLog) -> int:
    """The number of turns before the first online turn; turns of the switch itself are drawn left of it."""
    online = [x["total"] - x["step"] for x in log.lines if x["phase"] == "online"]
    return online[0] if online else max((x["total"] for x in log.lines), default=0)


def _limits(log: RunLog, panel: str) -> tuple[float, float]:
    offline = panel == "offline"
    x = [
        x["step"] if offline else x["total"] - _switch(log)
        for x in log.lines
        if (x["phase"] == "offline") == offline
    ]
    return min([0, *x]), max([1, *x])


def _log_scale(rows: list[Row]) -> None:
    """Give all rows one logarithmic scale, so that uncertainty and error can be compared by eye."""
    every = [axes for row in rows for axes in row.values()]
    curves = [np.ravel(line.get_ydata()) for a in every for line in a.lines if line.get_label() != "switch"]
    values = np.concatenate([np.zeros(0), *curves])
    values = values[np.isfinite(values) & (values > 0)]
    if len(values) == 0:
        return
    low, high = values.min() / 1.3, values.max() * 1.3
    # enough labels for a narrow range, not too many for a wide one
    subs = (1, 1.5, 2, 3, 5, 7) if high < 10 * low else (1, 2, 5) if high < 500 * low else (1,)
    for axes in every:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(low, high)
        axes.yaxis.set_major_formatter("{x:g}")


def _legend(row: Row, narrow: bool) -> None:
    """Add one legend for a row, each label once, to the last panel, which is wider and has all curves."""
    entries = {
        label: line for a in row.values() for line, label in zip(*a.get_legend_handles_labels(), strict=True)
    }
    entries.pop("switch", None)
    axes = list(row.values())[-1]
    axes.legend(
        *(entries.values(), entries.keys()),
        edgecolor="none",
        framealpha=0.5,  # a curve that fills the panel stays visible behind it
        loc="best",
        fontsize=9 if narrow else 12,
    )


def _subtitle(log: RunLog) -> str:
    """The run's title, and which marks are the mean over seeds and their spread."""
    seeds = int(log.config.get("seeds", 1))
    if seeds == 1:
        return f"{log.title} · one seed"
    spread = f"shaded: {KIND}" if seeds >= FEWEST else "thin: each seed (too few for an interval)"
    return f"{log.title} · bold: mean over {seeds} seeds, {spread}"


def _output_ticks(n: int, most: int) -> tuple[list[int], list[str]]:
    """Tick positions and labels: each output, or every fifth if there are more than `most`.

    The last one, the reward, always has a label.
    """
    ticks = list(range(0, n - 1, 1 if n <= most else 5))
    return [*ticks, n - 1], [*(str(i + 1) for i in ticks), "r"]
