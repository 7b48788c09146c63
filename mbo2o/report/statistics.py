"""Few seeds, honestly: intervals over seeds, differences of arms, and the numbers that describe an online curve.

Seeds are the last axis. A missing value (NaN) makes every number that needs it NaN: a seed that diverged must not
vanish from a mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def iqm(x: ArrayLike) -> float:
    """Interquartile mean of all values: ⌊n/4⌋ are cut from each end, so below four values it is the mean."""
    v = np.sort(np.asarray(x, float), axis=None)
    cut = v.size // 4
    return float(v[cut : v.size - cut].mean()) if np.isfinite(v).all() else float("nan")


FEWEST = 5
"""Seeds below which no interval is given: with three, Student's is so wide and the bootstrap so wrong that neither helps."""
KIND = "Student's 95 % interval"
"""What `interval` gives. Every table, figure and page that shows an interval names it by this."""


def interval(x: ArrayLike, level: float = 0.95) -> tuple[Array, Array]:
    """Student's interval for the mean over seeds: `(..., S)` → low `(...)`, high `(...)`; NaN below FEWEST seeds.

    This is the one place that decides which interval is shown: in tables, figures, reports and claims alike.
    """
    v = np.asarray(x, float)
    seeds = v.shape[-1]
    if seeds < FEWEST:
        return np.full(v.shape[:-1], np.nan), np.full(v.shape[:-1], np.nan)
    half = t_quantile((1 + level) / 2, seeds - 1) * v.std(-1, ddof=1) / seeds**0.5
    return v.mean(-1) - half, v.mean(-1) + half


def bootstrap_interval(
    x: ArrayLike, level: float = 0.95, n: int = 2000, seed: int = 0
) -> tuple[Array, Array]:
    """Percentile bootstrap of the mean over seeds: `(..., S)` → low `(...)`, high `(...)`; NaN for one seed.

    No table uses it: below ten seeds it is too narrow (the protocol page has its simulated coverage), and no study has ten.
    """
    v = np.asarray(x, float)
    seeds = v.shape[-1]
    if seeds < 2:
        return np.full(v.shape[:-1], np.nan), np.full(v.shape[:-1], np.nan)
    # how often each seed is drawn is all a mean needs: one matrix product instead of n gathered copies
    weights = np.random.default_rng(seed).multinomial(seeds, np.full(seeds, 1 / seeds), size=n) / seeds
    low, high = np.quantile(v @ weights.T, [(1 - level) / 2, (1 + level) / 2], axis=-1)
    return low, high


class Estimate(NamedTuple):
    """A mean over seeds, Student's 95 % interval for it, and the two-sided p-value that it is 0."""

    mean: float
    low: float
    high: float
    p: float
    seeds: int
    """The number of seeds, in the smaller sample where there are two. Below FEWEST the interval and p are NaN."""


def mean_over_seeds(x: ArrayLike) -> Estimate:
    """One number for each seed, `(S,)`: for instance the difference of two arms within each seed."""
    v = np.asarray(x, float)
    if v.ndim != 1:
        raise ValueError(f"one number for each seed is wanted: got the shape {v.shape}")
    error = float(v.std(ddof=1)) / len(v) ** 0.5 if len(v) > 1 else float("nan")
    return _estimate(float(v.mean()), error, len(v) - 1, len(v))


def paired_difference(a: ArrayLike, b: ArrayLike) -> Estimate:
    """`a - b` within each seed; `a`, `b` `(S,)` of the same seeds in the same order."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"paired arms need the same seeds: shapes {a.shape} and {b.shape}")
    return mean_over_seeds(a - b)


def unpaired_difference(a: ArrayLike, b: ArrayLike) -> Estimate:
    """Mean of `a` `(S,)` minus mean of `b` `(R,)`, whose seeds share nothing: Welch's t (Welch 1947), unequal variances."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    seeds = min(len(a), len(b))
    if seeds < 2:
        return _estimate(float(a.mean() - b.mean()), float("nan"), 1, seeds)
    va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    with np.errstate(invalid="ignore"):  # two constant samples
        df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    return _estimate(
        float(a.mean() - b.mean()), float(va + vb) ** 0.5, float(df if np.isfinite(df) else seeds - 1), seeds
    )


def _estimate(mean: float, error: float, df: float, seeds: int) -> Estimate:
    if seeds < FEWEST or not np.isfinite([mean, error]).all():
        return Estimate(mean, float("nan"), float("nan"), float("nan"), seeds)
    half = t_quantile(0.975, df) * error
    p = 2 * t_tail(abs(mean) / error, df) if error > 0 else float(mean == 0)
    return Estimate(mean, mean - half, mean + half, p, seeds)


def t_tail(t: float, df: float) -> float:
    """How much of Student's distribution with `df` degrees of freedom lies above `t`, at least 0, by summing its density."""
    # x = √df tan θ turns the tail into a finite range and the density into cosᵈᶠ⁻¹ θ
    start = np.arctan(t / df**0.5)
    mass = [np.trapezoid(np.cos(x) ** (df - 1), x) for x in (np.linspace(start, np.pi / 2, 4001), _QUARTER)]
    return float(mass[0] / mass[1] / 2)


def t_quantile(p: float, df: float) -> float:
    """Where Student's distribution with `df` degrees of freedom reaches p in (0.5, 1): the inverse of `t_tail`'s integral."""
    mass = np.cos(_QUARTER) ** (df - 1)
    below = np.concatenate([[0], np.cumsum((mass[1:] + mass[:-1]) / 2)])
    return float(np.sqrt(df) * np.tan(np.interp(2 * p - 1, below / below[-1], _QUARTER)))


_QUARTER = np.linspace(0, np.pi / 2, 20_001)


def benjamini_hochberg(p: ArrayLike) -> Array:
    """The q-values of p-values `(n,)` that form one family; NaN stays NaN and does not count.

    Claims with q < 0.05 hold false ones for at most a twentieth of them, in expectation (Benjamini and Hochberg 1995).
    """
    p = np.asarray(p, float)
    q, known = np.full(p.shape, np.nan), np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known])]
    raised = p[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum(np.minimum.accumulate(raised[::-1])[::-1], 1)
    return q


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Rank correlation of `x` and `y` `(T,)`, ties sharing their mean rank; pairs with a NaN are left out.

    NaN where either is constant.
    """
    pairs = np.stack([np.asarray(x, float), np.asarray(y, float)])
    pairs = pairs[:, np.isfinite(pairs).all(0)]
    rx, ry = ((v[:, None] > v).sum(1) + ((v[:, None] == v).sum(1) - 1) / 2 for v in pairs)
    if len(rx) < 2 or np.ptp(rx) == 0 or np.ptp(ry) == 0:
        return float("nan")
    return float(np.corrcoef(rx, ry)[0, 1])


def ks_two_sample(a: ArrayLike, b: ArrayLike) -> tuple[float, float]:
    """Kolmogorov and Smirnov's largest gap between the distributions of two samples `(n,)`, `(m,)`, and its p-value.

    The p-value is the limit of large samples (Smirnov 1939), fit for n m / (n + m) above about 10.
    """
    a, b = np.sort(np.asarray(a, float)), np.sort(np.asarray(b, float))
    every = np.concatenate([a, b])
    below = [np.searchsorted(x, every, side="right") / len(x) for x in (a, b)]
    gap = float(np.abs(below[0] - below[1]).max())
    reach = gap * np.sqrt(len(a) * len(b) / (len(a) + len(b)))
    if reach < 0.3:
        return gap, 1.0  # to nine places, and the series below needs ever more terms
    k = np.arange(1, 101)
    return gap, float(np.clip(2 * ((-1.0) ** (k - 1) * np.exp(-2 * (k * reach) ** 2)).sum(), 0, 1))


class Pace(NamedTuple):
    """How an arm's online phase is laid out."""

    step: Array
    """`(T,)`: the steps of its evaluations, ascending."""
    start: int = 0
    """Steps that are acted with the frozen policy before the first update."""
    utd: int = 1
    """Updates per step from then on."""


def common_window(arms: Mapping[str, Pace]) -> tuple[int, dict[str, NDArray[np.int64]]]:
    """The early part of learning, alike for all arms of a study: how many updates it has, and each arm's evaluations in it.

    The window is 20 % of the shortest learning phase, in updates that follow the first learning turn, rounded to whole
    spacings of the arm that is evaluated most seldom, at least two. Each arm is looked at once per such spacing, so that
    every arm has as many updates in the window and as many distinct evaluations: a minimum over more evaluations is lower
    by their noise alone.
    """
    updates = {name: (np.asarray(a.step, float) - a.start) * a.utd for name, a in arms.items()}
    if not updates or any(u[-1] <= 0 for u in updates.values()):
        return 0, {
            name: np.zeros(0, np.int64) for name in arms
        }  # an arm has not been evaluated since it began to learn
    spacing = max(float(np.diff(u, prepend=0).max()) for u in updates.values())
    shortest = min(float(u[-1]) for u in updates.values())
    looks = max(1, min(int(shortest // spacing), max(2, round(0.2 * shortest / spacing))))
    wanted = spacing * np.arange(1, looks + 1)
    found = {name: np.minimum(np.searchsorted(u, wanted), len(u) - 1) for name, u in updates.items()}
    return int(looks * spacing), found


def late_evaluations(step: ArrayLike) -> int:
    """How many of the last evaluations `final` is the mean of: a tenth, at least three, none of the phase's first half."""
    t = np.asarray(step, float)
    second_half = int((t > t[0] + 0.5 * (t[-1] - t[0])).sum())
    return max(1, min(second_half, max(3, round(0.1 * len(t)))))


@dataclass(frozen=True)
class Summary:
    """What a curve did, per seed: each `(S,)`, in units of the return."""

    j0: Array
    """The first evaluation: the return before any update of this phase."""
    drop: Array
    """max(0, J0 - the lowest return in the window that follows the first learning turn), see `common_window`."""
    auc: Array
    """Mean return over the budget (trapezoids, divided by its length), frozen steps included."""
    final: Array
    """Mean of the last evaluations, see `late_evaluations`."""
    best: Array
    """Highest evaluation: chosen with hindsight, so no fair result."""


def summarise(
    step: ArrayLike, ret: ArrayLike, early: NDArray[np.int64] | None = None, start: int = 0
) -> Summary:
    """Summarise one phase: `step` `(T,)` ascending, `ret` `(T, S)`; the budget is what has been run so far.

    `early` are the evaluations in the window that the arms of a study share; a run alone, whose policy is frozen for
    `start` steps, has its own.
    """
    t, j = np.asarray(step, float), np.asarray(ret, float)
    if len(t) == 0 or j.shape[:1] != t.shape or j.ndim != 2:
        raise ValueError(f"a curve needs steps (T,) and returns (T, S), T > 0: got {t.shape} and {j.shape}")
    length = t[-1] - t[0]
    if early is None:
        early = common_window({"run": Pace(t, start)})[1]["run"]
    return Summary(
        j0=j[0],
        drop=np.maximum(0, j[0] - j[[0, *early]].min(0)),
        auc=np.trapezoid(j, t, axis=0) / length if length > 0 else j[-1],
        final=j[-late_evaluations(t) :].mean(0),
        best=j.max(0),
    )
