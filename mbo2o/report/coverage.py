"""Where a policy goes: the distance of its states from the data, and the error of the model there."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from mbo2o.report.read import RunLog
from mbo2o.report.statistics import Array
from mbo2o.report.style import BLUE, GREY, INK, NARROW, ORANGE, RED, SKY, add_title, dress, thousands

COLUMNS = {"visited": "VISITED: steps of an evaluation episode", "imagined": "IMAGINED: steps of a branch"}
MARKS = ("50 %", "90 %", "99 %")
"""Labels of the held-out rows' quantiles that the log holds as `marks`."""


def coverage(log: RunLog, narrow: bool = False) -> Figure:
    """Distances of visited and imagined states from the data, at the first and the last looks.

    The upper row has the distances, with the quantiles of held-out rows as grey lines; the lower one has the
    model's true error of one step where it is known, and the members' disagreement, on one scale. `narrow`
    puts all four below each other.
    """
    figure, grid = _stacked() if narrow else _square()
    title = "Where the policy goes"
    title += "" if narrow else ": how far from the data, and how well the model knows it there"
    large, small = (10, 9) if narrow else (13, 12)
    seeds = log.config.get("seeds", 1)
    told = "one seed" if seeds == 1 else f"mean over {seeds} seeds"
    add_title(figure, title, f"{log.title} · {told} · dashed: so many held-out rows lie nearer")
    looks = _looks(log)
    for name, column in zip(COLUMNS, grid.T, strict=True):
        for line, colour, label in looks:
            x = _mean(line, f"{name}/step")
            column[0].plot(x, _mean(line, f"{name}/distance"), color=colour, lw=2.4, marker=".", label=label)
            spread = {"color": colour, "lw": 1.8, "ls": ":"}
            column[1].plot(x, _mean(line, f"{name}/spread"), **spread)
            if f"{name}/error" in line:
                column[1].plot(x, _mean(line, f"{name}/error"), color=colour, lw=2.4, marker=".")
        _axes(column, first=narrow or name == "visited", labels=small)
        column[0].set_title(COLUMNS[name], loc="left", fontsize=large - 1, weight="bold", color=GREY)
        step = "step of the episode" if name == "visited" else "step of the branch"
        column[1].set_xlabel(step, fontsize=large)
    _mark_quantiles(grid[0], looks[-1][0], small - 1)
    grid[0, 1].set_xscale("symlog", linthresh=1, linscale=0.4)
    grid[0, 1].set_xlim(-0.2, 120)
    grid[0, 1].set_xticks([0, 1, 2, 5, 10, 20, 50, 100], minor=False)
    grid[0, 1].xaxis.set_minor_locator(NullLocator())
    for axes in grid[1]:
        axes.xaxis.set_major_formatter(FuncFormatter(thousands))
    _mark_horizon(grid[:, 1], log, small - 1)
    for axes in grid[:, : 2 if narrow else 1].T:
        axes[0].set_ylabel("distance to the data\n[standard deviations]", fontsize=small)
        axes[1].set_ylabel("error of the model\n[state units, RMS]", fontsize=small)
    _legend(figure, grid, columns=1 if narrow else 3, size=small - 1)
    return figure


def _square() -> tuple[Figure, Any]:
    """A figure with two rows and two columns of axes."""
    figure = Figure(figsize=(12, 8.2))
    figure.subplots_adjust(left=0.1, right=0.93, top=0.83, bottom=0.15, wspace=0.06, hspace=0.12)
    return figure, figure.subplots(2, 2, sharex="col", sharey="row")


def _stacked() -> tuple[Figure, Any]:
    """The same axes `(2, 2)` one below the other: the first column, then the second."""
    figure = Figure(figsize=(NARROW, 12))
    edges = {"left": 0.2, "right": 0.89, "top": 0.89, "bottom": 0.15}
    rows = figure.add_gridspec(5, 1, height_ratios=[1, 1, 0.25, 1, 1], hspace=0.1, **edges)
    grid = np.array([figure.add_subplot(rows[i]) for i in (0, 1, 3, 4)]).reshape(2, 2).T
    for upper, lower in grid.T:
        lower.sharex(upper)
        upper.tick_params(labelbottom=False)
    for left, right in grid:
        right.sharey(left)
    return figure, grid


def _looks(log: RunLog) -> list[tuple[dict[str, Any], str, str]]:
    """The lines that are drawn, each with its colour and label: the first and the last of each phase."""
    shades = {"offline": (SKY, BLUE), "online": (ORANGE, RED)}
    units = {"offline": "updates", "online": "steps"}
    found = []
    for phase, (light, dark) in shades.items():
        lines = [x for x in log.lines if x["kind"] == "coverage" and x["phase"] == phase]
        if lines and phase == "online":
            lines = lines[1:]  # the first one is of the policy that the offline phase ended with
        if len(lines) > 1:
            found.append((lines[0], light, f"{phase}, after {lines[0]['step']:,} {units[phase]}"))
        if lines:
            found.append((lines[-1], dark, f"{phase}, after {lines[-1]['step']:,} {units[phase]}"))
    if not found:  # a run that has just begun to act, from an offline phase without looks
        line = next(x for x in log.lines if x["kind"] == "coverage")
        found.append((line, BLUE, f"{line['phase']}, after {line['step']:,}"))
    return found


def _mean(line: dict[str, Any], name: str) -> Array:
    """The mean over seeds of a vector, `(K,)`; NaN where no seed has a value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a bin that no seed has reached
        return np.asarray(np.nanmean(np.array(line[name], float), axis=0))


def _axes(column: Any, first: bool, labels: int) -> None:
    for axes in column:
        dress(axes, left=first, labels=labels)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")


def _mark_quantiles(row: Any, line: dict[str, Any], size: int) -> None:
    """Grey lines at the distances that 50, 90 and 99 % of held-out rows stay below."""
    marks = _mean(line, "marks")
    for axes in row:
        for mark in marks:
            axes.axhline(mark, color=GREY, lw=1.2, ls="--", zorder=1)
        axes.axhspan(marks[-1], 1e9, color="#F6E9E6", lw=0, zorder=0)
    low, high = _limits(row, marks)
    row[0].set_ylim(low, high)
    style: dict[str, Any] = {"fontsize": size, "color": GREY, "va": "center"}
    for mark, label in zip(marks, MARKS, strict=True):
        row[1].text(1.01, mark, label, transform=row[1].get_yaxis_transform(), **style)
    row[0].text(
        0.985, 0.97, "farther than 99 % of held-out rows", transform=row[0].transAxes, fontsize=size,
        color=RED, ha="right", va="top",
    )  # fmt: skip


def _limits(row: Any, marks: Array) -> tuple[float, float]:
    drawn = np.concatenate(
        [marks, *(np.ravel(x.get_ydata()) for a in row for x in a.lines if len(x.get_ydata()) > 2)]
    )
    drawn = drawn[np.isfinite(drawn) & (drawn > 0)]
    return float(drawn.min()) / 1.3, float(max(drawn.max(), marks[-1] * 1.5)) * 1.3


def _mark_horizon(column: Any, log: RunLog, size: int) -> None:
    """A line where the branches that the agent learns from end, if they have one length."""
    recipe = log.config.get("recipe")
    horizon = recipe.get("horizon") if isinstance(recipe, dict) else None
    if isinstance(horizon, int):
        for axes in column:
            axes.axvline(horizon, color=INK, lw=1.2)
        style: dict[str, Any] = {"fontsize": size, "color": INK, "va": "bottom"}
        where = column[1].get_xaxis_transform()
        column[1].text(horizon, 0.02, f" recipe.horizon={horizon}", transform=where, **style)


def _legend(figure: Figure, grid: Any, columns: int, size: int) -> None:
    """The looks by colour, and the two kinds of lines of the lower row."""
    axes: Axes = grid[0, 0]
    handles, labels = axes.get_legend_handles_labels()
    handles += grid[1, 0].plot([], [], color=INK, lw=2.4, marker=".")
    handles += grid[1, 0].plot([], [], color=INK, lw=1.8, ls=":")
    labels += ["true error of one step (visited)", "disagreement of the members"]
    figure.legend(handles, labels, loc="lower center", ncols=columns, frameon=False, fontsize=size)
