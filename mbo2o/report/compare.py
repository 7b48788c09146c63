"""Curves of several runs or arms in one picture.

Each function returns a matplotlib `Figure`; none touches pyplot.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image

from mbo2o.report.read import RunLog
from mbo2o.report.statistics import FEWEST, KIND, Array, interval
from mbo2o.report.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    NARROW,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    add_title,
    dress,
    thousands,
)


class Curve(NamedTuple):
    """A metric of one run or arm during one phase, usually its evaluations."""

    step: Array
    """`(T,)`."""
    values: Array
    """`(T, S)`: one column for each seed."""
    frozen: int = 0
    """The steps of the phase before the first update; the curve is dotted there."""
    random: int = 0
    """The random steps before the phase; the curve is moved to the right by as many."""
    behaviour: float | None = None
    """The mean return of the dataset's episodes."""


def curve(log: RunLog, phase: str = "online") -> Curve:
    """The returns of a run's evaluations in one phase; online, with its frozen and random steps."""
    series = log.series("eval", "return", phase)
    waits = {"frozen": log.frozen_steps, "random": log.random_steps} if phase == "online" else {}
    return Curve(series.step.astype(float), series.values, behaviour=log.behaviour_return, **waits)


def compare_panels(
    panels: dict[str, dict[str, Curve]],
    subject: str,
    phase: str = "online",
    colours: dict[str, str] | None = None,
    narrow: bool = False,
) -> Figure:
    """Draw several sets of named curves side by side on one scale.

    A name has the same colour in all figures (COLOURS); names without one get a free colour. Each panel
    shades the interval of its first BANDS curves, or draws the seeds as thin lines if there are too few of
    them for an interval. Raises `ValueError` for more names than the palette has colours.

    panels: sets of curves by the panel's title. subject: the task and the data, for the figure's title.
    colours: others than COLOURS, by name. narrow: one panel for a page of a phone's width.
    """
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    colours = colours or colours_of(names)
    columns = 3 if len(panels) == 1 and not narrow else 2  # columns of the legends
    text = 9 if narrow else 12
    entries = (
        max(len(curves) for curves in panels.values()) + 3
    )  # the behaviour, the dotted and the shaded parts
    rows = -(-entries // columns)
    figure, row = _panels(len(panels), titled=any(panels), legend_rows=rows, narrow=narrow)
    add_title(figure, subject, _marks(panels.values()))
    for axes, (title, curves) in zip(row, panels.items(), strict=True):
        if title:
            axes.set_title(title, loc="left", fontsize=12)
        _draw_curves(axes, curves, colours, explain=axes is row[0])
        dress(axes, left=axes is row[0], labels=text)
        axes.margins(x=0)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(FuncFormatter(thousands))
        axes.set_xlabel(_step_label(curves, phase), fontsize=text)
        below: dict[str, Any] = {
            "loc": "upper center",
            "bbox_to_anchor": (0.5, -0.2 if narrow else -0.15),
            "ncols": columns,
        }
        axes.legend(frameon=False, fontsize=min(11, text), **below)
    success = "Maze" in subject
    row[0].set_ylabel("success rate" if success else "return per episode", fontsize=text + 1)
    if success:
        row[0].set_ylim(-0.03, 1.03)  # Student's interval can reach beyond what a rate can
    return figure


def _panels(n: int, titled: bool, legend_rows: int, narrow: bool) -> tuple[Figure, np.ndarray]:
    """A figure with `n` axes in a row `(n,)`, and room for a title and for legends; sizes in inches."""
    width, legend = NARROW if narrow else (8.5 if n == 1 else 5.2 * n), 0.22 * legend_rows
    head = 1.05 if titled or narrow else 0.85
    height = (2.6 if narrow else 3.6) + head + legend
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(
        left=(0.8 if narrow else 1.05) / width,
        right=1 - 0.3 / width,
        top=1 - head / height,
        bottom=(0.7 + legend) / height,
        wspace=0.06,
    )
    return figure, np.atleast_1d(figure.subplots(1, n, sharey=True))


BANDS = 4
"""The number of curves of a panel that get a shaded interval; more of them hide each other."""
PALETTE = (
    *(BLUE, RED, GREEN, ORANGE, PURPLE, SKY, INK),
    *("#A2142F", "#7F7F00", "#6A3D9A", "#8C510A", "#8DA0CB", "#7FBC41", "#01665E"),
    *("#C51B7D", "#4D4D4D", "#DFC27D"),
)
COLOURS: dict[str, str] = {
    name: PALETTE[i]
    for i, names in enumerate(
        (
            "wsrl warm priority td3bc wmp iql-keep-0",
            "cql-sac freed uniform obac edac cold iql-keep-5",
            "cql kept half iql-watching iql-keep-10",
            "enoto sunrise online obac-0.1 sacn seeded iql-keep-25",
            "calql freed-n alpha-0.5 fixed-0.1 critics calql-keep-0",
            "pex rem alpha-0.9 obac-1 mix-50 calql-keep-5",
            "balanced kept-data no-penalty fixed-1 bc kept-mix",
            "iql policy iql-keep-50",
            "awac oac none double-penalty calql-keep-10",
            "rlpd bootstrapped lapo redq utd-1 calql-keep-25",
            "adaptive-bc mean batch-gate mix-5 calql-keep-50",
            "no-data kept-n fixed",
            "ucb rmp weight sac-action sac-sparse scratch",
            "ucb-10 weight-scalar obac-action obac-sparse mopo",
            "sac",
            "mbpo",
            "moore",
        )
    )
    for name in names.split()
}
"""The colour of each method and arm. Names that occur in one figure have different colours."""


def colours_of(names: list[str]) -> dict[str, str]:
    """The colour of each name.

    A name that is not in COLOURS gets one that no other name of the figure has.
    """
    if len(names) > len(PALETTE):
        raise ValueError(f"{len(names)} runs in one picture; there are {len(PALETTE)} colours")
    known = {name: COLOURS[name] for name in names if name in COLOURS}
    free = [c for c in PALETTE if c not in known.values()]
    return {name: known.get(name) or free.pop(0) for name in names}


def _marks(panels: Iterable[dict[str, Curve]]) -> str:
    """The subtitle that explains lines and bands."""
    panels = list(panels)
    seeds = sorted({c.values.shape[1] for curves in panels for c in curves.values()})
    if seeds in ([], [1]):
        return "one seed"
    kind = f"shaded: {KIND}" if seeds[-1] >= FEWEST else "thin: each seed (too few for an interval)"
    most = f" (of the first {BANDS} of a panel)" if any(len(curves) > BANDS for curves in panels) else ""
    return f"mean over {' to '.join(dict.fromkeys((str(seeds[0]), str(seeds[-1]))))} seeds, {kind}{most}"


def _draw_curves(axes: Axes, curves: dict[str, Curve], colours: dict[str, str], explain: bool = True) -> None:
    """Draw the means with their intervals or seeds.

    `explain` adds the grey and the dotted lines to the legend.
    """
    frozen = False
    for i, (name, c) in enumerate(curves.items()):
        x, mean, colour = c.step + c.random, c.values.mean(-1), colours[name]
        learns = c.step >= c.frozen
        axes.plot(x[learns], mean[learns], color=colour, lw=2.4, label=name)
        if (~learns).any():
            waits = c.step <= c.frozen
            axes.plot(x[waits], mean[waits], color=colour, lw=2.4, ls=":")
            frozen = True
        if i >= BANDS:
            continue
        if c.values.shape[1] >= FEWEST:
            axes.fill_between(x, *interval(c.values), color=colour, alpha=0.16, lw=0)
        elif c.values.shape[1] > 1:
            axes.plot(x, c.values, color=colour, lw=0.7, alpha=0.45)
    behaviour = {c.behaviour for c in curves.values() if c.behaviour is not None}
    if len(behaviour) == 1:
        axes.axhline(
            behaviour.pop(), color=GREY, ls="--", lw=1.5, label="the data's behaviour" if explain else None
        )
    if frozen and explain:
        axes.plot([], [], color=GREY, ls=":", lw=2.4, label="frozen, no update yet")


def _step_label(curves: dict[str, Curve], phase: str) -> str:
    if phase == "offline":
        return "gradient steps"
    from_nothing = [
        name for name, c in curves.items() if c.random
    ]  # runs without an offline phase or a switch
    if not from_nothing:
        return "environment steps since the switch"
    if len(from_nothing) == len(curves):
        return "environment steps"
    return f"environment steps ({', '.join(from_nothing)}: from nothing)"


def compare_finals(
    arms: dict[str, Array], subject: str, colours: dict[str, str] | None = None, narrow: bool = False
) -> Figure:
    """Draw one number of each arm, by name `(S,)`: its seeds as dots, and their mean with its interval."""
    colours = colours or colours_of(list(arms))
    width, text = (NARROW, 9) if narrow else (8.5, 12)
    height = 1.5 + 0.42 * len(arms)
    figure = Figure(figsize=(width, height))
    longest = max(len(name) for name in arms)
    left = min(0.45 * width, 0.35 + 0.0085 * text * longest)
    top, bottom = 1 - 0.95 / height, 0.45 / height
    figure.subplots_adjust(left=left / width, right=0.96, top=top, bottom=bottom)
    most = max(len(values) for values in arms.values())
    bar = f"; bar: {KIND}" if most >= FEWEST else " (too few for an interval)"
    add_title(figure, subject, f"diamond: mean; dots: seeds{bar}")
    axes = figure.subplots()
    for y, (name, values) in enumerate(arms.items()):
        low, high = (float(x) for x in interval(values))
        if np.isfinite([low, high]).all():
            axes.plot([low, high], [y, y], color=colours[name], lw=7, alpha=0.3, solid_capstyle="butt")
        axes.plot(values, np.full(len(values), y), "o", color=colours[name], ms=4, alpha=0.6, mew=0)
        axes.plot(values.mean(), y, "D", color=colours[name], ms=8)
    dress(axes, labels=text)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 7))
    axes.grid(axis="x", color="#DDDDDD", lw=0.8)
    axes.set_yticks(range(len(arms)), list(arms))
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(FuncFormatter(thousands))
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a PNG of 150 dpi to `path`, and an SVG beside it.

    The PNG has a palette of 96 colours: it looks the same and has a third of the bytes.
    """
    figure.savefig(path, dpi=150)
    with Image.open(path) as image:
        image.convert("RGB").quantize(96, kmeans=2, dither=Image.Dither.NONE).save(path, optimize=True)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "mbo2o"}):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


CRITICS = {
    "q": "Q of online batches",
    "critic_loss": "TD error² of online batches",
    "td_error": "TD error² on the dataset",
}
"""The panels of `compare_critics`: the metric and the title of each."""


def compare_critics(runs: dict[str, dict[str, Curve]], subject: str) -> Figure:
    """Draw what the critics of several runs learn after the switch.

    `runs` has curves by metric of CRITICS and by name.
    """
    figure = Figure(figsize=(15, 5))
    figure.subplots_adjust(left=0.05, right=0.98, top=0.79, bottom=0.25, wspace=0.2)
    add_title(figure, subject, f"what the critics learn after the switch: {_marks(runs.values())}")
    row = figure.subplots(1, len(CRITICS))
    colours = colours_of(list(dict.fromkeys(name for found in runs.values() for name in found)))
    last = max((c.step[-1] for found in runs.values() for c in found.values()), default=1)
    for axes, (name, title) in zip(row, CRITICS.items(), strict=True):
        _draw_curves(axes, runs.get(name, {}), colours)
        dress(axes)
        axes.set_title(title, loc="left", fontsize=12)
        axes.set_xlim(0, last)
        if name != "q":
            axes.set_yscale("log", nonpositive="mask")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_major_formatter(FuncFormatter(thousands))
        axes.set_xlabel("environment steps since the switch", fontsize=12)
    row[1].legend(frameon=False, fontsize=11, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=7)
    return figure
