"""A run in pictures. Each function takes a `RunLog` and returns a matplotlib `Figure`; none touches pyplot.

Time runs through two panels that touch at the switch: offline in gradient steps, online in environment steps, because
the two cannot share a unit. The mean over seeds is bold and each seed thin; the mean stops where a seed is missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter
from PIL import Image

from mbo2o.report.read import RunLog
from mbo2o.report.statistics import FEWEST, KIND, Array, interval

# Okabe and Ito's palette, told apart by colour-blind readers; colours keep their meaning over all figures
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
INK, GREY = "#222222", "#767676"
WHERE = {"offline": BLUE, "online": RED, "imagined": GREEN}

Row = dict[str, Axes]
"""One row of a timeline: its axes by panel, "offline" and "online", those that the run has reached."""


def return_curve(log: RunLog) -> Figure:
    """Return per episode through offline and online, each seed and the mean."""
    figure, (row,) = _timeline(log, "Return", ["return per episode"])
    _draw(log, row, "eval", "return", BLUE, "policy, evaluated")
    if log.behaviour_return is not None:
        for axes in row.values():
            axes.axhline(log.behaviour_return, color=INK, ls=":", lw=1.8, label="behaviour policy (dataset)")
    _legend(row)
    return figure


def uncertainty(log: RunLog) -> Figure:
    """What the model believes about its error (epistemic, aleatoric), above its true one-step error, one scale."""
    unit = "[state units, RMS]"
    labels = [f"epistemic std\nmembers disagree\n{unit}", f"aleatoric std\npredicted noise\n{unit}",
              f"true error\nof one step\n{unit}"]  # fmt: skip
    figure, rows = _timeline(log, "Does the model know what it does not know?", labels)
    for row, name in zip(rows, ["epistemic_std/{}", "aleatoric_std/{}", "error/{}"], strict=True):
        for where, colour in WHERE.items():
            _draw(log, row, "uncertainty", name.format(where), colour, f"{where} states")
    _log_scale(rows)
    _legend(rows[0])
    return figure


def offline_share(log: RunLog) -> Figure:
    """The probability that a row of the model's batches comes from the offline data, at each fit."""
    figure, (row,) = _timeline(log, "Offline data in the model's batches", ["share of offline rows"])
    _draw(log, row, "model", "share_offline", BLUE, "share", hold=True)
    for axes in row.values():
        axes.set_ylim(-0.03, 1.06)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def q_values(log: RunLog) -> Figure:
    """The critic's Q where evaluation episodes went, against the discounted return that followed."""
    figure, (row,) = _timeline(log, "Q-values against what really followed", ["discounted return"])
    _draw(log, row, "eval", "mc_return", INK, "true discounted return", ls="--")
    _draw(log, row, "eval", "q", PURPLE, "Q of the critic")
    _legend(row)
    return figure


def critics(log: RunLog) -> Figure:
    """On fixed rows of the dataset: what the critics think of them, how far off and at odds they are, how far the policy is."""
    known = [
        ("q", "mean Q", PURPLE),
        ("q_std", "std of Q\nover critics", ORANGE),
        ("td_error", "TD error²\n(log scale)", RED),
        ("distance", "median\n‖π(s) - a‖", BLUE),
    ]
    shown = [x for x in known if log.has("probe", x[0])]
    figure, rows = _timeline(
        log, "Critics and policy on the dataset's rows", [label for _, label, _ in shown]
    )
    for row, (name, _, colour) in zip(rows, shown, strict=True):
        _draw(log, row, "probe", name, colour, name)
        if name == "td_error":
            for axes in row.values():
                axes.set_yscale("log")
    return figure


def calibration(log: RunLog) -> Figure:
    """Share of holdout rows inside the model's 50 % and 90 % intervals, per output, at the first and the last fit."""
    figure = Figure(figsize=(10, 5.2))
    panels = figure.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.06})
    figure.subplots_adjust(left=0.1, right=0.86, top=0.76, bottom=0.15)
    _title(
        figure, "Are the model's intervals as wide as they should be?", _subtitle(log, "large: mean, small")
    )
    for name, nominal, colour, marker in (("coverage50", 0.5, ORANGE, "s"), ("coverage90", 0.9, BLUE, "o")):
        series = log.series("model", name)
        for axes, at, when in zip(panels, (0, -1), ("first fit", "last fit"), strict=True):
            seeds = series.values[at]  # (S, D + 1), the reward last
            outputs = np.arange(seeds.shape[-1])
            axes.axhline(nominal, color=colour, lw=1.5, ls="--")
            axes.plot(outputs, seeds.T, marker, color=colour, ms=4, alpha=0.3, mew=0)
            axes.plot(outputs, seeds.mean(0), marker, color=colour, ms=8)
            axes.set_xticks(*_output_ticks(len(outputs)))
            axes.set_title(f"{when} ({series.phase[at]})", fontsize=13, color=INK, loc="left")
            axes.set_xlabel("model output (Δ state, reward r)", fontsize=13)
        panels[1].text(1.02, nominal, f"{nominal:.0%} interval", transform=panels[1].get_yaxis_transform(),
                       color=colour, va="center", fontsize=12)  # fmt: skip
    for axes in panels:
        _dress(axes, left=axes is panels[0])
        axes.set_ylim(0, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    panels[0].set_ylabel("holdout rows inside", fontsize=13)
    return figure


class Curve(NamedTuple):
    """An arm's evaluations in one phase."""

    step: Array
    """`(T,)`."""
    values: Array
    """`(T, S)`: a seed's returns in a column."""
    frozen: int = 0
    """Steps of the phase before the first update: they are drawn dotted."""
    random: int = 0
    """Random steps that came before the phase: the curve is drawn that far to the right."""
    behaviour: float | None = None
    """Mean return of the dataset's episodes."""


def curve(log: RunLog, phase: str = "online") -> Curve:
    """A run's evaluations in one phase, with how long its policy was frozen, or random, before it learned."""
    series = log.series("eval", "return", phase)
    waits = {"frozen": log.frozen_steps, "random": log.random_steps} if phase == "online" else {}
    return Curve(series.step.astype(float), series.values, behaviour=log.behaviour_return, **waits)


def compare(runs: dict[str, RunLog], phase: str = "online") -> Figure:
    """Returns of several runs in one phase, by name: the mean over seeds, and its interval for the first of them.

    A run without an evaluation there is left out; more runs than the palette has colours are a `ValueError`.
    """
    curves = {name: c for name, log in runs.items() if len((c := curve(log, phase)).step)}
    subject = " · ".join(
        dict.fromkeys(f"{x.config.get('env')} · {x.config.get('dataset')}" for x in runs.values())
    )
    return compare_panels({"": curves}, subject, phase)


def compare_panels(panels: dict[str, dict[str, Curve]], subject: str, phase: str = "online") -> Figure:
    """Several sets of curves side by side on one scale, by title; `subject` is the task and the data.

    A name has one colour in all panels of all figures (COLOURS; others get what is left). Each panel shades the interval
    of its first BANDS curves; where there are fewer than five seeds there is no interval, and thin lines are the seeds.
    """
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    colours = _colours(names)
    rows = (
        max(len(curves) for curves in panels.values()) + 3
    )  # of a legend: behaviour, dotted and shaded parts
    columns = 3 if len(panels) == 1 else 2
    width, legend = (8.5 if len(panels) == 1 else 5.2 * len(panels)), 0.22 * -(-rows // columns)
    head = 1.05 if any(panels) else 0.85  # inches; panels have titles, or there is only one
    height = 3.6 + head + legend
    figure = Figure(figsize=(width, height))
    edges = {
        "left": 0.85 / width,
        "right": 1 - 0.3 / width,
        "top": 1 - head / height,
        "bottom": (0.7 + legend) / height,
    }
    figure.subplots_adjust(**edges, wspace=0.06)
    row = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
    _title(figure, subject, _marks(panels.values()))
    for axes, (title, curves) in zip(row, panels.items(), strict=True):
        if title:
            axes.set_title(title, loc="left", fontsize=12)
        _draw_curves(axes, curves, colours, explain=axes is row[0])
        _dress(axes, left=axes is row[0])
        axes.margins(x=0)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.set_xlabel(_step_label(curves, phase), fontsize=12)
        axes.legend(
            frameon=False, fontsize=11, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=columns
        )
    success = "Maze" in subject
    row[0].set_ylabel("success rate" if success else "return per episode", fontsize=13)
    if success:
        row[0].set_ylim(-0.03, 1.03)  # Student's interval can reach beyond what a rate can
    return figure


BANDS = 4
"""Curves of a panel that get a shaded interval: more of them hide each other."""
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
"""The colour of each method and arm, in every figure. Names that stand in one figure never share one."""


def _colours(names: list[str]) -> dict[str, str]:
    """Each name's own colour, and for a name without one what no other in the figure has."""
    if len(names) > len(PALETTE):
        raise ValueError(f"{len(names)} runs in one picture; it can tell {len(PALETTE)} apart")
    known = {name: COLOURS[name] for name in names if name in COLOURS}
    free = [c for c in PALETTE if c not in known.values()]
    return {name: known.get(name) or free.pop(0) for name in names}


def _marks(panels: Iterable[dict[str, Curve]]) -> str:
    """What the lines and the bands of comparisons are, in one line."""
    panels = list(panels)
    seeds = sorted({c.values.shape[1] for curves in panels for c in curves.values()})
    if seeds in ([], [1]):
        return "one seed"
    kind = f"shaded: {KIND}" if seeds[-1] >= FEWEST else "thin: each seed (too few for an interval)"
    most = f" (of the first {BANDS} of a panel)" if any(len(curves) > BANDS for curves in panels) else ""
    return f"mean over {' to '.join(dict.fromkeys((str(seeds[0]), str(seeds[-1]))))} seeds, {kind}{most}"


def _draw_curves(axes: Axes, curves: dict[str, Curve], colours: dict[str, str], explain: bool = True) -> None:
    """The means, and what belongs to them; with `explain` the legend says what the grey and the dotted lines are."""
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
    if not any(c.random for c in curves.values()):
        return "environment steps since the switch"
    # without a switch steps count from the first one taken
    return (
        "environment steps"
        if all(c.random for c in curves.values())
        else "environment steps (mbpo: from nothing)"
    )


def save(figure: Figure, path: Path) -> None:
    """`path`, a PNG of 150 dpi that is small enough to be kept with the results, and an SVG beside it.

    A palette of 96 colours has a third of the bytes, and looks the same.
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
"""What `compare_critics` shows, by the metric that has it."""


def compare_critics(runs: dict[str, dict[str, Curve]], subject: str) -> Figure:
    """What critics learn after the switch, by metric of CRITICS and run: means, and intervals for the first BANDS runs."""
    figure = Figure(figsize=(15, 5))
    figure.subplots_adjust(left=0.05, right=0.98, top=0.79, bottom=0.25, wspace=0.2)
    _title(figure, subject, f"what the critics learn after the switch: {_marks(runs.values())}")
    row = figure.subplots(1, len(CRITICS))
    colours = _colours(list(dict.fromkeys(name for found in runs.values() for name in found)))
    last = max((c.step[-1] for found in runs.values() for c in found.values()), default=1)
    for axes, (name, title) in zip(row, CRITICS.items(), strict=True):
        _draw_curves(axes, runs.get(name, {}), colours)
        _dress(axes)
        axes.set_title(title, loc="left", fontsize=12)
        axes.set_xlim(0, last)
        if name != "q":
            axes.set_yscale("log", nonpositive="mask")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.set_xlabel("environment steps since the switch", fontsize=12)
    row[1].legend(frameon=False, fontsize=11, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=7)
    return figure


def _timeline(log: RunLog, title: str, labels: list[str]) -> tuple[Figure, list[Row]]:
    """Axes for `len(labels)` rows over the phases that the run has reached, the switch marked where it has been."""
    phases = {x["phase"] for x in log.lines}
    panels = [p for p, of in (("offline", {"offline"}), ("online", {"switch", "online"})) if of & phases] or [
        "offline"
    ]
    height = 5.8 if len(labels) == 1 else 1.7 + 2.4 * len(labels)
    figure = Figure(figsize=(10, height))
    grid = figure.subplots(len(labels), len(panels), sharex="col", sharey="row", squeeze=False,
                           gridspec_kw={"width_ratios": [2, 3][: len(panels)], "wspace": 0, "hspace": 0.1})  # fmt: skip
    figure.subplots_adjust(left=0.13, right=0.96, top=1 - 1.2 / height, bottom=0.72 / height)
    _title(figure, title, _subtitle(log, "bold: mean, thin"))
    rows = [dict(zip(panels, axes, strict=True)) for axes in grid]
    for row, label in zip(rows, labels, strict=True):
        next(iter(row.values())).set_ylabel(label, fontsize=14 if len(labels) == 1 else 12)
        for panel, axes in row.items():
            _dress(axes, left=panel == panels[0])
            axes.set_xlim(*_limits(log, panel))
            if panel == "offline":
                axes.set_facecolor("#F3F5F7")
        if "online" in row and log.frozen_steps:
            row["online"].axvspan(
                0, log.frozen_steps, color="#EFE7D6", lw=0, zorder=0, label="frozen, no update yet"
            )
        if len(panels) == 2:
            row["online"].axvline(0, color=INK, lw=2.5, label="switch", clip_on=False, zorder=5)
    for panel, axes in rows[0].items():
        axes.text(0.5, 1.025, panel.upper(), transform=axes.transAxes, ha="center", fontsize=12, weight="bold",
                  color=GREY)  # fmt: skip
    if len(panels) == 2:
        rows[0]["online"].text(0, 1.025, "switch", transform=rows[0]["online"].get_xaxis_transform(), ha="center",
                               fontsize=12, weight="bold", color=INK)  # fmt: skip
    units = {"offline": "gradient steps (offline)", "online": "environment steps (online)"}
    for panel, axes in rows[-1].items():
        axes.set_xlabel(units[panel], fontsize=14)
        # the last offline tick would run into the first online one
        axes.xaxis.set_major_locator(
            MaxNLocator(5, prune="upper" if panel == "offline" and len(panels) == 2 else None)
        )
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    return figure, rows


def _draw(
    log: RunLog, row: Row, kind: str, name: str, colour: str, label: str, hold: bool = False, ls: str = "-"
) -> None:
    """Draw the mean and the seeds of a metric; with `hold` each value lasts until the next, and the last to the end."""
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
        if y.shape[1] > 1:
            axes.plot(x, y, lw=1, alpha=0.35, **style)
        marker = "o" if len(x) < 12 and not hold else ""  # a lone point would show no line
        axes.plot(x, y.mean(-1), lw=2.8, label=label, marker=marker, ms=5, clip_on=False, **style)


def _switch(log: RunLog) -> int:
    """Turns before the first online one; a switch that takes turns of its own lies left of it."""
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
    """One logarithmic scale for all rows, so that belief and error compare by eye."""
    every = [axes for row in rows for axes in row.values()]
    curves = [np.ravel(line.get_ydata()) for a in every for line in a.lines if line.get_label() != "switch"]
    values = np.concatenate([np.zeros(0), *curves])
    values = values[np.isfinite(values) & (values > 0)]
    if len(values) == 0:
        return
    low, high = values.min() / 1.3, values.max() * 1.3
    # labels that leave no span without one, and none crowded
    subs = (1, 1.5, 2, 3, 5, 7) if high < 10 * low else (1, 2, 5) if high < 500 * low else (1,)
    for axes in every:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(low, high)
        axes.yaxis.set_major_formatter("{x:g}")


def _legend(row: Row) -> None:
    """One legend for a row, each label once, in the last panel: that one is wider and has every curve."""
    entries = {
        label: line for a in row.values() for line, label in zip(*a.get_legend_handles_labels(), strict=True)
    }
    entries.pop("switch", None)
    list(row.values())[-1].legend(
        entries.values(), entries.keys(), edgecolor="none", framealpha=0.9, fontsize=12, loc="best"
    )


def _title(figure: Figure, title: str, subtitle: str) -> None:
    width, height = figure.get_size_inches()
    size = min(18, 110 * width / max(1, len(title)))  # so that a long name fits
    figure.text(0.03, 1 - 0.4 / height, title, fontsize=size, weight="bold", color=INK)
    figure.text(0.03, 1 - 0.68 / height, subtitle, fontsize=12, color=GREY)


def _subtitle(log: RunLog, marks: str) -> str:
    """What ran, and which mark is the mean and which a seed."""
    seeds = log.config.get("seeds", 1)
    return f"{log.title} · " + ("one seed" if seeds == 1 else f"{marks}: each of {seeds} seeds")


def _dress(axes: Axes, left: bool = True) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines["left"].set_visible(left)
    axes.tick_params(labelsize=12, left=left, which="both", labelleft=left)
    axes.grid(axis="y", color="#DDDDDD", lw=0.8)
    axes.set_axisbelow(True)


def _thousands(x: float, _: int) -> str:
    return f"{x / 1000:g}k" if abs(x) >= 1000 else f"{x:g}"


def _output_ticks(n: int) -> tuple[list[int], list[str]]:
    """Every output its tick, or every fifth where there are many; the reward, which is the last, always."""
    ticks = list(range(0, n - 1, 1 if n <= 20 else 5))
    return [*ticks, n - 1], [*(str(i + 1) for i in ticks), "r"]
