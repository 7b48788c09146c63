"""The figures of the papers by name, from data/results: what can be drawn is drawn, what lacks is told.

`mbo2o study figure NAME` writes `RESULTS/figures/NAME-DATA.png` and an SVG for each table with the figure's
arms; figures over several files are one picture. `mbo2o study figure` lists all names.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from mbo2o.report.compare import BANDS, Curve, colours_of, compare_panels, save
from mbo2o.report.style import GREY, add_title, dress, thousands
from mbo2o.types import UserError
from studies.aggregate import MEASURES, groups, score, stratified
from studies.arms import read_rows, stored_curves
from studies.measured import files_of
from studies.offline import LEARNERS
from studies.wsrl import RETAINED

Panels = dict[str, list[str]]


class Shown(NamedTuple):
    """A figure of a paper: what it shows, the study with its arms, and how it is drawn."""

    about: str
    study: str
    on: str
    """What the study runs on, for the command that makes the data."""
    panels: Panels
    draw: Callable[[str, Shown, str, Path], list[Path]]
    """Writes the pictures of the figure from the tables of a size, and returns their paths."""
    lacks: str = ""
    """What no study measures; "" if the figure is whole."""
    only: str = ""
    """A part of the names of the data that the figure is about."""

    @property
    def arms(self) -> list[str]:
        """All arms of its panels."""
        return list(dict.fromkeys(arm for names in self.panels.values() for arm in names))

    def command(self, size: str) -> str:
        """What makes its data at a size."""
        sized = "" if size == "small" else f" --size {size}"
        return f"mbo2o study {self.study} {self.on} --seeds 5{sized} --arms {' '.join(self.arms)}"


def draw(name: str, size: str, results: Path) -> tuple[list[Path], str]:
    """Draw a figure from what is measured at a size: the pictures, and a line on what it lacks.

    Raises `UserError` if nothing of it is measured.
    """
    shown = FIGURES[name]
    (results / "figures").mkdir(parents=True, exist_ok=True)
    paths = shown.draw(name, shown, size, results / "figures")
    if not paths:
        raise UserError(
            f"figure {name}: nothing of it is measured at the size {size}; run {shown.command(size)}"
        )
    return paths, missing(name, size)


def missing(name: str, size: str) -> str:
    """What a figure lacks at a size, in one line; "" if it lacks nothing."""
    shown = FIGURES[name]
    there = {arm for path in _tables(shown, size) for arm in read_rows(path)}
    absent = [arm for arm in shown.arms if arm not in there]
    parts = [f"not measured: {', '.join(absent)} ({shown.command(size)})"] if absent else []
    return "; ".join([*parts, *([shown.lacks] if shown.lacks else [])])


def _tables(shown: Shown, size: str) -> list[Path]:
    """The tables of a size that have the figure's first arm and another one."""
    other = () if shown.only else ("enoto-lapo-", "enoto-td3bc-")  # other learners than the figures' CQL
    found = [p for p in files_of(shown.study, size) if shown.only in p.stem and not p.stem.startswith(other)]
    arms = {p: read_rows(p) for p in found}
    return [p for p in found if shown.arms[0] in arms[p] and len(set(shown.arms) & set(arms[p])) > 1]


def _curves(name: str, shown: Shown, size: str, folder: Path) -> list[Path]:
    """A picture for each table: the returns of the arms, by panel."""
    paths = []
    for table in _tables(shown, size):
        arms, data = stored_curves(table), table.stem.removeprefix(f"{shown.study}-")
        env = next(iter(read_rows(table).values()))[0]["env"]
        panels = {t: {x: arms[x] for x in names if x in arms} for t, names in shown.panels.items()}
        panels = {t: found for t, found in panels.items() if len(found) > 1}
        if not panels:
            continue
        if len(panels) == 1:
            panels = {"": next(iter(panels.values()))}
        subject = f"{env} · {data} · {shown.about}" if data != env else f"{env} · {shown.about}"
        paths.append(folder / f"{name}-{data}.png")
        save(compare_panels(panels, subject), paths[-1])
    return paths


# ---------------------------------------------------------------------------------------- over several files


def _scores(shown: Shown, size: str) -> dict[str, dict[str, Curve]]:
    """By arm and table, the curve of its scores: 0 is random play, 100 a good policy."""
    out: dict[str, dict[str, Curve]] = {}
    for table in _tables(shown, size):
        env = next(iter(read_rows(table).values()))[0]["env"]
        if np.isnan(score(env, np.zeros(1))).any():
            continue
        for arm, c in stored_curves(table).items():
            if arm in shown.arms:
                out.setdefault(arm, {})[table.stem] = c._replace(values=score(env, c.values))
    return out


def _aggregate(name: str, shown: Shown, size: str, folder: Path) -> list[Path]:
    """One picture: scores over all tables that have every measured arm, by interquartile mean and by mean."""
    scores = _scores(shown, size)
    shared = set.intersection(*(set(x) for x in scores.values())) if scores else set()
    if not shared:
        return []
    colours = colours_of(list(scores))
    figure = Figure(figsize=(11, 5.4))
    figure.subplots_adjust(left=0.08, right=0.98, top=0.8, bottom=0.27, wspace=0.06)
    row = figure.subplots(1, 2, sharey=True)
    for axes, (title, measure) in zip(row, MEASURES.items(), strict=True):
        axes.set_title(title, loc="left", fontsize=12)
        for arm, tables in scores.items():
            curves = [tables[x] for x in sorted(shared)]
            step = curves[0].step
            aligned = [c.values for c in curves if np.array_equal(c.step, step)]
            axes.plot(step, measure(aligned), color=colours[arm], lw=2.4, label=arm)
            if len(axes.collections) < BANDS:
                axes.fill_between(
                    step, *stratified(aligned, measure, 500), color=colours[arm], alpha=0.14, lw=0
                )
        dress(axes, left=axes is row[0])
        axes.margins(x=0)
        axes.xaxis.set_major_formatter(FuncFormatter(thousands))
        axes.set_xlabel("environment steps since the switch", fontsize=12)
    row[0].set_ylabel("score (100: a good policy)", fontsize=13)
    row[0].legend(frameon=False, fontsize=11, loc="upper left", bbox_to_anchor=(0, -0.16), ncols=5)
    files = ", ".join(x.removeprefix(f"{shown.study}-") for x in sorted(shared))
    add_title(
        figure,
        f"{shown.about}: normalised scores",
        f"over {files}; shaded: stratified bootstrap, 95 %, seeds within files (first {BANDS})",
    )
    save(figure, folder / f"{name}-{size}.png")
    return [folder / f"{name}-{size}.png"]


def _intervals(name: str, shown: Shown, size: str, folder: Path) -> list[Path]:
    """A picture for each group of files: the final scores of all its arms, with their intervals."""
    paths = []
    for g in groups([shown.study]):
        if g.size != size:
            continue
        final = {arm: g.files(arm, "final") for arm in g.arms}
        colours = colours_of(list(final))
        figure = Figure(figsize=(11, 1.9 + 0.36 * len(final)))
        inches = figure.get_size_inches()[1]
        figure.subplots_adjust(
            left=0.14, right=0.98, top=1 - 1.25 / inches, bottom=0.65 / inches, wspace=0.08
        )
        row = figure.subplots(1, len(MEASURES), sharey=True)
        for axes, (title, measure) in zip(row, MEASURES.items(), strict=True):
            axes.set_title(title, loc="left", fontsize=12)
            for i, (arm, files) in enumerate(final.items()):
                low, high = stratified(files, measure)
                axes.plot([low, high], [i, i], color=colours[arm], lw=7, alpha=0.35, solid_capstyle="butt")
                axes.plot(measure(files), i, "o", color=colours[arm], ms=7)
            dress(axes, left=axes is row[0])
            axes.grid(axis="x", color="#DDDDDD", lw=0.8)
            axes.set_xlabel("final score (100: a good policy)", fontsize=12)
        row[0].set_yticks(range(len(final)), list(final))
        row[0].invert_yaxis()
        files_text = ", ".join(x.stem.removeprefix(f"{g.study}-") for x in g.tables)
        text = "bars: stratified bootstrap, 95 %, seeds within files; none below five seeds"
        add_title(figure, f"{shown.about}: {g.kind}, size {size}", f"over {files_text}; {text}")
        paths.append(folder / f"{name}-{g.kind.replace(', ', '-').lower()}-{size}.png")
        save(figure, paths[-1])
    return paths


# ---------------------------------------------------------------------------- what tables keep beside returns


def _beside(table: Path, what: str) -> list[dict[str, str]]:
    path = table.with_name(f"{table.stem}-{what}.csv")
    if not path.is_file():
        return []
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def _values(name: str, shown: Shown, size: str, folder: Path) -> list[Path]:
    """Q on rows of the dataset over the online phase, for each table that kept it."""
    paths = []
    for table in _tables(shown, size):
        rows = [r for r in _beside(table, "q") if r["arm"] in shown.arms]
        if not rows:
            continue
        colours = colours_of(list(dict.fromkeys(r["arm"] for r in rows)))
        figure = Figure(figsize=(8.5, 5))
        figure.subplots_adjust(left=0.11, right=0.97, top=0.83, bottom=0.23)
        axes = figure.subplots()
        for arm, colour in colours.items():
            mine = [r for r in rows if r["arm"] == arm]
            step = np.array(sorted({int(r["step"]) for r in mine}))
            seeds = sorted({r["seed"] for r in mine})
            values = np.array([[float(r["q"]) for r in mine if r["seed"] == k] for k in seeds]).T
            axes.plot(step, values.mean(-1), color=colour, lw=2.4, label=arm)
            axes.plot(step, values, color=colour, lw=0.6, alpha=0.4)
        dress(axes)
        axes.margins(x=0)
        axes.xaxis.set_major_formatter(FuncFormatter(thousands))
        axes.set_xlabel("environment steps since the switch", fontsize=12)
        axes.set_ylabel("mean Q on rows of the dataset", fontsize=12)
        axes.legend(frameon=False, fontsize=11, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=4)
        add_title(figure, f"{table.stem}: {shown.about}", "mean over seeds; thin: each seed")
        paths.append(folder / f"{name}-{table.stem.removeprefix('enoto-')}.png")
        save(figure, paths[-1])
    return paths


def _histograms(name: str, shown: Shown, size: str, folder: Path) -> list[Path]:
    """How far policies act from the data: histograms, for each table that kept them."""
    paths = []
    for table in _tables(shown, size):
        rows = _beside(table, "distances")
        if not rows:
            continue
        names = list(dict.fromkeys(r["arm"] for r in rows))
        colours = colours_of([x for x in names if x != "random"]) | {"random": GREY}
        figure = Figure(figsize=(8.5, 5))
        figure.subplots_adjust(left=0.11, right=0.97, top=0.83, bottom=0.23)
        axes = figure.subplots()
        for arm in names:
            mine = [r for r in rows if r["arm"] == arm]
            edges = [float(r["from"]) for r in mine] + [float(mine[-1]["to"])]
            axes.stairs([float(r["share"]) for r in mine], edges, color=colours[arm], lw=2, label=arm)
        dress(axes)
        axes.set_xlabel("distance of the policy's action from the data's", fontsize=12)
        axes.set_ylabel("share of rows", fontsize=12)
        axes.legend(frameon=False, fontsize=11, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=4)
        add_title(
            figure, f"{table.stem}: {shown.about}", "over rows of the dataset and all seeds, in the end"
        )
        paths.append(folder / f"{name}-{table.stem.removeprefix('enoto-')}.png")
        save(figure, paths[-1])
    return paths


H, HR, MAZE = "hopper-medium-v5", "hopper-medium-replay-v5", "pointmaze-umaze.hdf5"
PAIRS = ["kept", "freed", "freed-n"]
RIVALS = ["enoto", "awac", "balanced", "pex", "calql", "iql", "sac", "scratch"]
FIGURES: dict[str, Shown] = {
    "enoto-1a": Shown("CQL kept, CQL to SAC, CQL-N to SAC-N", "enoto", H, {"": PAIRS}, _curves),
    "enoto-1b": Shown("Q over the dataset", "enoto", H, {"": ["freed", "freed-n"]}, _values),
    "enoto-1c": Shown("distance to the data", "enoto", H, {"": ["kept", "freed-n"]}, _histograms),
    "enoto-2": Shown("pairs of learners", "enoto", H, {"": PAIRS}, _aggregate),
    "enoto-3": Shown("targets", "enoto", H, {"": ["freed-n", "wmp", "rmp", "rem", "mean"]}, _aggregate),
    "enoto-4": Shown(
        "explorations", "enoto", H, {"": ["wmp", "oac", "bootstrapped", "sunrise"]}, _aggregate
    ),
    "enoto-5": Shown("all methods", "methods", H, {"": RIVALS}, _curves),
    "enoto-6": Shown(
        "LAPO in mazes",
        "enoto",
        f"{MAZE} --experiment lapo-small --name lapo-pointmaze-umaze",
        {"": ["kept", "kept-n", "sunrise"]},
        _curves,
        only="lapo",
        lacks="IQL, PEX and Cal-QL are in the study methods on the same file; ant mazes are not run",
    ),
    "moore-main": Shown(
        "MOORe beside methods without a model",
        "methods",
        HR,
        {"": ["moore", "mopo", "mbpo", "wsrl", "iql", "awac", "calql", "rlpd"]},
        _curves,
    ),
    "moore-sampling": Shown(
        "sampling of offline data", "moore", HR, {"": ["priority", "uniform", "half", "online"]}, _curves
    ),
    "moore-alpha": Shown("alpha", "moore", HR, {"": ["alpha-0.5", "priority", "alpha-0.9"]}, _curves),
    "moore-penalty": Shown(
        "penalty",
        "moore",
        HR,
        {"": ["no-penalty", "priority", "double-penalty"]},
        _curves,
        lacks="the value error (Q with the penalty minus Q without) is not measured",
    ),
    "obac-agents": Shown(
        "three agents", "obac", "Hopper-v5", {"": ["sac", "iql-watching", "iql"]}, _curves
    ),
    "obac-constraint": Shown(
        "adaptive and fixed constraint",
        "obac",
        "Hopper-v5",
        {
            "weight 0.001": ["sac", "obac", "fixed"],
            **{f"weight {w}": ["sac", f"obac-{w}", f"fixed-{w}"] for w in ("0.1", "1")},
        },
        _curves,
        lacks="the paper has four weights, and the study three",
    ),
    "obac-disturbed": Shown(
        "noise and sparse rewards",
        "obac",
        "Hopper-v5",
        {x: [f"sac-{x}", f"obac-{x}"] for x in ("action", "transition", "reward", "sparse")},
        _curves,
        lacks="rewards that come above a speed alone are no arm",
    ),
    "wsrl-3.1": Shown(
        "share of offline data kept",
        "wsrl",
        H,
        {x: [f"{x}-keep-{share}" for share in RETAINED] for x in ("iql", "calql")},
        _curves,
        lacks="the TD error and Q on both distributions are in the picture NAME-critics of the study",
    ),
    "wsrl-5.2": Shown("nothing kept", "wsrl", H, {"": ["warm", "cold", "kept"]}, _curves),
    "wsrl-5.3": Shown(
        "beside methods that keep data", "methods", H, {"": ["wsrl", "calql", "rlpd", "iql"]}, _curves
    ),
    "wsrl-5.4": Shown("warm-up", "wsrl", H, {"": ["warm", "cold", "seeded"]}, _curves),
    "wsrl-5.5": Shown(
        "the online learner", "wsrl", H, {"": ["warm", "kept", "iql-keep-0", "calql-keep-0"]}, _curves
    ),
    "wsrl-5.6": Shown(
        "what crosses the switch", "wsrl", H, {"": ["warm", "policy", "critics", "none"]}, _curves
    ),
    "wsrl-5.7": Shown(
        "demonstrations in a maze, for a robot's",
        "methods",
        "pointmaze-umaze-demos.hdf5",
        {"": ["rlpd", "no-data"]},
        _curves,
        only="demos",
        lacks="a stand-in for the paper's robot",
    ),
    "offline-scores": Shown("offline learners over files", "offline", H, {"": [*LEARNERS]}, _intervals),
    "methods-scores": Shown("all methods over files", "methods", H, {"": ["wsrl", *RIVALS]}, _intervals),
    "moore-scores": Shown(
        "sampling over files", "moore", HR, {"": ["priority", "uniform", "half", "online"]}, _intervals
    ),
    "obac-scores": Shown("OBAC over tasks", "obac", "Hopper-v5", {"": ["sac", "obac", "fixed"]}, _intervals),
}  # fmt: skip
"""The figures of the papers' notes, by name."""
