"""What a run's model believed of itself, as a table, as numbers of its decay, and as two figures.

The table has a row for each look, seed and source of states: the offline data, states visited online, and
imagined ones. `state_map` and `depth_fan` show a model at one time; `RunHandle.beliefs` draws them for a run.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mbo2o.report.read import RunLog
from mbo2o.report.statistics import spearman
from mbo2o.report.style import BLUE, INK, NARROW, RED, add_title, dress
from mbo2o.types import UserError

SOURCES = ("offline", "online", "imagined")
NUMBERS = {"epistemic": "epistemic_std", "aleatoric": "aleatoric_std", "error": "error"}
"""The columns of the table, and what the log calls them; `penalty` is the recipe's own measure."""
BINS = 24
"""The map has so many cells in each direction."""
BANDS = ((5, 95), (25, 75))
"""Percentiles between which the fan is shaded."""

Table = dict[str, NDArray[Any]]


def table(log: RunLog) -> Table:
    """A column for each of phase, step, total, seed, source, epistemic, aleatoric, penalty and error.

    A row is a look at one source for one seed. Uncertainties and the true error of one step are root mean
    squares in the units of observations; `penalty` is the measure that the recipe subtracts from rewards,
    before its coefficient. NaN: the log has no such number, as the error of imagined states.
    """
    recipe = log.config.get("recipe")
    measure = recipe.get("penalty") if isinstance(recipe, dict) else None
    names = {**NUMBERS, "penalty": str(measure)}
    rows: list[dict[str, Any]] = []
    for line in log.lines:
        if line["kind"] != "uncertainty":
            continue
        for source in SOURCES:
            found = {key: line.get(f"{name}/{source}") for key, name in names.items()}
            seeds = max((len(x) for x in found.values() if x is not None), default=0)
            for seed in range(seeds):
                place = {key: line[key] for key in ("phase", "step", "total")}
                numbers = {k: np.nan if x is None or x[seed] is None else x[seed] for k, x in found.items()}
                rows.append({**place, "seed": seed, "source": source, **numbers})
    columns = ("phase", "step", "total", "seed", "source", "epistemic", "aleatoric", "penalty", "error")
    return {name: np.array([row[name] for row in rows]) for name in columns}


def write(found: Table, path: Path) -> Path:
    """Write the table as CSV, or as Parquet to a name in .parquet (extra `parquet`); returns the path."""
    if path.suffix == ".parquet":
        try:
            pyarrow, parquet = map(importlib.import_module, ("pyarrow", "pyarrow.parquet"))
        except ImportError as error:
            text = "Parquet needs pyarrow, which is not installed: pip install 'mbo2o[parquet]', or write CSV"
            raise UserError(f"{path}: {text}") from error
        parquet.write_table(pyarrow.table(found), path)
        return path
    rows = zip(*found.values(), strict=True)
    lines = [",".join(found), *(",".join("" if x != x else str(x) for x in row) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


@dataclass(frozen=True)
class Decay:
    """How the model's error on states that are visited online falls, over the looks of the online phase."""

    slope: float
    """Change of the natural logarithm of the true error for 1000 steps; below 0 the error falls."""
    half_life: float
    """Environment steps in which the error halves; infinite where it does not fall."""
    rank: float
    """Spearman's correlation of the penalty with the true error."""
    looks: int

    def __str__(self) -> str:
        falls = f"halves in {self.half_life:,.0f} steps" if self.slope < 0 else "does not fall"
        return (
            f"On states visited online the true error {falls} (its logarithm changes by {self.slope:.3g} in "
            f"1000 steps). The rank correlation of penalty and error is {self.rank:.2f} over {self.looks} "
            "looks."
        )


def decay(found: Table) -> Decay | None:
    """The decay of a table, means over seeds; None with fewer than three looks online."""
    at = (found["phase"] == "online") & (found["source"] == "online") & (found["error"] > 0)
    steps = np.unique(found["step"][at])
    if len(steps) < 3:
        return None
    error, penalty = (
        np.array([found[x][at & (found["step"] == s)].mean() for s in steps]) for x in ("error", "penalty")
    )
    slope = 1000 * float(np.polyfit(steps, np.log(error), 1)[0])
    half = float(-1000 * np.log(2) / slope) if slope < 0 else float("inf")
    return Decay(slope, half, float(spearman(penalty, error)), len(steps))


def state_map(obs: NDArray[Any], values: NDArray[Any], told: str, narrow: bool = False) -> Figure:
    """A heat map over states: the median of `values` `(N,)` in cells of the plane in which states vary most.

    obs: `(N, D)` raw observations; each is divided by its deviation, and the two directions of largest
    variance (principal components) span the plane. With one or two dimensions they are the axes themselves.
    told: what the values are, with their unit. Empty cells hold no state. Raises `UserError` for no states.
    """
    if not len(obs):
        raise UserError("a map of states needs states; there are none")
    std = obs.std(0)
    z = (obs - obs.mean(0)) / np.where(std > 0, std, 1.0)
    if z.shape[1] > 2:
        _, _, directions = np.linalg.svd(z[:20_000], full_matrices=False)
        x, y = (z @ directions[:2].T).T
        labels = ["first principal component of states", "second one"]
    else:
        x, y = obs[:, 0], obs[:, -1] if obs.shape[1] == 2 else np.zeros(len(obs))
        labels = ["observation 1", "observation 2"[: 13 * (obs.shape[1] == 2)]]
    ends = [np.percentile(a, (0.5, 99.5)) for a in (x, y)]
    edges = [np.linspace(float(low), float(high) + 1e-9, BINS + 1) for low, high in ends]
    at = [np.clip(np.digitize(a, e) - 1, 0, BINS - 1) for a, e in zip((x, y), edges, strict=True)]
    cell = at[1] * BINS + at[0]
    grid = np.full(BINS * BINS, np.nan)
    for k in np.unique(cell):
        grid[k] = np.median(values[cell == k])
    known = grid[np.isfinite(grid) & (grid > 0)]
    norm = LogNorm(known.min(), known.max() * 1.001) if len(known) else None
    width, size = (NARROW, 10) if narrow else (8, 12)
    figure = Figure(figsize=(width, 0.85 * width + 0.9))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.16, right=0.92, top=1 - 1.1 / figure.get_figheight(), bottom=0.13)
    add_title(figure, "Where the model is unsure", f"median in each cell of {len(obs):,} states")
    mesh = axes.pcolormesh(*edges, grid.reshape(BINS, BINS), cmap="viridis", norm=norm)
    figure.colorbar(mesh, ax=axes).set_label(told, fontsize=size)
    dress(axes, labels=size - 1)
    axes.grid(visible=False)
    axes.set_xlabel(labels[0], fontsize=size)
    axes.set_ylabel(labels[1], fontsize=size)
    return figure


def depth_fan(
    unsure: NDArray[Any], told: str, error: NDArray[Any] | None = None, narrow: bool = False
) -> Figure:
    """A fan of the uncertainty by depth: percentiles over branches `(N, H)`; NaN: a branch has ended.

    error: the true error at each depth `(H,)`, on a scale of its own to the right, where it is known.
    """
    depth = np.arange(1, unsure.shape[1] + 1)
    there = np.isfinite(unsure).sum(0) > 0
    width, size = (NARROW, 10) if narrow else (8, 12)
    figure = Figure(figsize=(width, 0.6 * width + 1.2))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.15, right=0.86, top=1 - 1.1 / figure.get_figheight(), bottom=0.16)
    shades = " and ".join(f"{high - low} %" for low, high in BANDS)
    add_title(
        figure, "Uncertainty by depth", f"{len(unsure):,} branches; line: median, shaded: {shades} of them"
    )
    for low, high in BANDS:
        band = np.nanpercentile(unsure[:, there], (low, high), axis=0)
        axes.fill_between(depth[there], *band, color=BLUE, alpha=0.2, lw=0)
    axes.plot(depth[there], np.nanmedian(unsure[:, there], 0), color=BLUE, lw=2.4)
    dress(axes, labels=size - 1)
    axes.set_xlabel("depth: steps of a branch", fontsize=size)
    axes.set_ylabel(told, fontsize=size, color=BLUE)
    axes.set_ylim(bottom=0)
    if error is not None:
        right = axes.twinx()
        right.plot(np.arange(1, len(error) + 1), error, color=RED, lw=2, ls="--")
        right.set_ylabel("true error [deviations of the data]", fontsize=size, color=RED)
        right.tick_params(labelsize=size - 1, colors=INK)
        right.spines["top"].set_visible(False)
        right.set_ylim(bottom=0)
    return figure
