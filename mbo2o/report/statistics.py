"""Statistics of few seeds: intervals over seeds, differences of arms, and numbers that describe a curve.

Seeds are the last axis. A missing value (NaN) makes every number that needs it NaN, so that a seed that
diverged does not vanish from a mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


FEWEST = 5
"""The fewest seeds that get an interval: with three, Student's is too wide and the bootstrap wrong."""
KIND = "Student's 95 % interval"
"""The name of what `interval` gives, in every table, figure and page."""


def interval(x: ArrayLike, level: float = 0.95) -> tuple[Array, Array]:
    """Student's interval for the mean over seeds: `(..., S)` → low `(...)`, high `(...)`.

    NaN below FEWEST seeds.

    All tables, figures, reports and claims take their intervals from here.
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

    Only the protocol's simulation of coverage uses it: below ten seeds it is too narrow.
    """
    v = np.asarray(x, float)
    seeds = v.shape[-1]
    if seeds < 2:
        return np.full(v.shape[:-1], np.nan), np.full(v.shape[:-1], np.nan)
    # a mean needs only how often each seed is drawn: one matrix product replaces n resampled copies
    weights = np.random.default_rng(seed).multinomial(seeds, np.full(seeds, 1 / seeds), size=n) / seeds
    low, high = np.quantile(v @ weights.T, [(1 - level) / 2, (1 + level) / 2], axis=-1)
    return low, high


class Estimate(NamedTuple):
    """A mean over seeds, Student's 95 % interval for it, and the two-sided p-value of the mean 0."""

    mean: float
    low: float
    high: float
    p: float
    seeds: int
    """The number of seeds, in the smaller of two samples. Below FEWEST the interval and p are NaN."""


def mean_over_seeds(x: ArrayLike) -> Estimate:
    """The estimate from one number for each seed, `(S,)`, such as the difference of two arms."""
    v = np.asarray(x, float)
    if v.ndim != 1:
        raise ValueError(f"needs one number for each seed: got the shape {v.shape}")
    error = float(v.std(ddof=1)) / len(v) ** 0.5 if len(v) > 1 else float("nan")
    return _estimate(float(v.mean()), error, len(v) - 1, len(v))


def paired_difference(a: ArrayLike, b: ArrayLike) -> Estimate:
    """The estimate of `a - b` within each seed; `a` and `b` `(S,)` have the same seeds in the same order."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"paired arms need the same seeds: shapes {a.shape} and {b.shape}")
    return mean_over_seeds(a - b)


def unpaired_difference(a: ArrayLike, b: ArrayLike) -> Estimate:
    """The estimate of the mean of `a` `(S,)` minus the mean of `b` `(R,)` over other seeds (Welch 1947)."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    seeds = min(len(a), len(b))
    if seeds < 2:
        return _estimate(float(a.mean() - b.mean()), float("nan"), 1, seeds)
    va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    with np.errstate(invalid="ignore"):  # 0 / 0 for two constant samples
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
    """The probability that Student's t with `df` degrees of freedom exceeds `t` ≥ 0."""
    # x = √df tan θ turns the tail into a finite range and the density into cosᵈᶠ⁻¹ θ
    start = np.arctan(t / df**0.5)
    mass = [np.trapezoid(np.cos(x) ** (df - 1), x) for x in (np.linspace(start, np.pi / 2, 4001), _QUARTER)]
    return float(mass[0] / mass[1] / 2)


def t_quantile(p: float, df: float) -> float:
    """The quantile p in (0.5, 1) of Student's t with `df` degrees of freedom: the inverse of 1 - `t_tail`."""
    mass = np.cos(_QUARTER) ** (df - 1)
    below = np.concatenate([[0], np.cumsum((mass[1:] + mass[:-1]) / 2)])
    return float(np.sqrt(df) * np.tan(np.interp(2 * p - 1, below / below[-1], _QUARTER)))


_QUARTER = np.linspace(0, np.pi / 2, 20_001)


def benjamini_hochberg(p: ArrayLike) -> Array:
    """The q-values of a family of p-values `(n,)`; NaN stays NaN and does not count.

    In expectation, at most 5 % of the claims with q < 0.05 are false (Benjamini and Hochberg 1995).
    """
    p = np.asarray(p, float)
    q, known = np.full(p.shape, np.nan), np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known])]
    raised = p[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum(np.minimum.accumulate(raised[::-1])[::-1], 1)
    return q


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """The rank correlation of `x` and `y` `(T,)`; ties share their mean rank, pairs with a NaN are left out.

    NaN where either is constant.
    """
    pairs = np.stack([np.asarray(x, float), np.asarray(y, float)])
    pairs = pairs[:, np.isfinite(pairs).all(0)]
    rx, ry = ((v[:, None] > v).sum(1) + ((v[:, None] == v).sum(1) - 1) / 2 for v in pairs)
    if len(rx) < 2 or np.ptp(rx) == 0 or np.ptp(ry) == 0:
        return float("nan")
    return float(np.corrcoef(rx, ry)[0, 1])


def ks_two_sample(a: ArrayLike, b: ArrayLike) -> tuple[float, float]:
    """The largest gap between the distributions of samples `(n,)` and `(m,)`, and its p-value.

    This is the statistic of Kolmogorov and Smirnov. The p-value is that of large samples (Smirnov 1939); it
    holds for n m / (n + m) above about 10.
    """
    a, b = np.sort(np.asarray(a, float)), np.sort(np.asarray(b, float))
    every = np.concatenate([a, b])
    below = [np.searchsorted(x, every, side="right") / len(x) for x in (a, b)]
    gap = float(np.abs(below[0] - below[1]).max())
    reach = gap * np.sqrt(len(a) * len(b) / (len(a) + len(b)))
    if reach < 0.3:
        return gap, 1.0  # correct to nine places; the series below would need many terms
    k = np.arange(1, 101)
    return gap, float(np.clip(2 * ((-1.0) ** (k - 1) * np.exp(-2 * (k * reach) ** 2)).sum(), 0, 1))


class Pace(NamedTuple):
    """When an arm is evaluated, and when it learns, online."""

    step: Array
    """`(T,)`: the steps of its evaluations, ascending."""
    start: int = 0
    """The steps that the frozen policy acts before the first update."""
    utd: int = 1
    """The updates per step after that."""


def common_window(arms: Mapping[str, Pace]) -> tuple[int, dict[str, NDArray[np.int64]]]:
    """The early window of learning: its number of updates, and each arm's evaluations in it.

    The window is 20 % of the shortest learning phase, counted in updates. It is rounded to whole intervals
    between the evaluations of the arm that is evaluated least often, and has at least two of them. One
    evaluation of each arm per interval counts, so that all arms have the same number of updates and of
    evaluations in the window: a minimum over more evaluations would be lower by their noise alone.
    """
    updates = {name: (np.asarray(a.step, float) - a.start) * a.utd for name, a in arms.items()}
    if not updates or any(u[-1] <= 0 for u in updates.values()):
        # an arm has not been evaluated since it began to learn
        return 0, {name: np.zeros(0, np.int64) for name in arms}
    spacing = max(float(np.diff(u, prepend=0).max()) for u in updates.values())
    shortest = min(float(u[-1]) for u in updates.values())
    looks = max(1, min(int(shortest // spacing), max(2, round(0.2 * shortest / spacing))))
    wanted = spacing * np.arange(1, looks + 1)
    found = {name: np.minimum(np.searchsorted(u, wanted), len(u) - 1) for name, u in updates.items()}
    return int(looks * spacing), found


def interquartile_mean(x: ArrayLike) -> float:
    """The mean of what is left of `x` (any shape) without its lowest and its highest quarter.

    As in rliable (Agarwal et al. 2021), ⌊n / 4⌋ values are cut at each end. NaN if one is missing.
    """
    v = np.sort(np.asarray(x, float).ravel())
    cut = len(v) // 4
    return float("nan") if np.isnan(v).any() else float(v[cut : len(v) - cut].mean())


def optimality_gap(x: ArrayLike, target: float = 1.0) -> float:
    """By how much `x` (any shape) falls short of `target` on average; what lies above it gains nothing.

    This is rliable's definition, which counts scores with the target 1 for a good policy.
    """
    return float(target - np.minimum(np.asarray(x, float), target).mean())


def probability_of_improvement(a: ArrayLike, b: ArrayLike) -> float:
    """The probability that a seed of `a` does better than a seed of `b`; a tie counts half.

    `a` `(S, T)` and `b` `(R, T)` have a column for each task, `(S,)` and `(R,)` one task. As in rliable, this
    is the mean over tasks of the Mann-Whitney statistic divided by S R. NaN if a value is missing.
    """
    a, b = (np.asarray(x, float).reshape(len(np.asarray(x)), -1) for x in (a, b))
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"both need the same tasks: got {a.shape[1]} and {b.shape[1]} columns")
    if np.isnan(a).any() or np.isnan(b).any():
        return float("nan")
    more = a[:, None] > b[None]
    return float((more + (a[:, None] == b[None]) / 2).mean())


def stratified_bootstrap(
    statistic: Callable[..., float], *arms: ArrayLike, level: float = 0.95, n: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The percentile interval of a statistic over seeds; each task's seeds are drawn again by themselves.

    `arms` are `(S, T)`, or `(S,)` for one task, and may differ in S. This is rliable's stratified bootstrap.
    NaN for an arm of fewer than FEWEST seeds.
    """
    rng, found = np.random.default_rng(seed), []
    tables = [np.asarray(x, float).reshape(len(np.asarray(x)), -1) for x in arms]
    if min(len(x) for x in tables) < FEWEST:
        return float("nan"), float("nan")
    for _ in range(n):
        rows = [rng.integers(len(x), size=x.shape) for x in tables]
        drawn = [np.take_along_axis(x, i, 0) for x, i in zip(tables, rows, strict=True)]
        found.append(statistic(*drawn))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def late_evaluations(step: ArrayLike) -> int:
    """The number of evaluations that `final` averages: the last tenth, at least three, in the second half."""
    t = np.asarray(step, float)
    second_half = int((t > t[0] + 0.5 * (t[-1] - t[0])).sum())
    return max(1, min(second_half, max(3, round(0.1 * len(t)))))


@dataclass(frozen=True)
class Summary:
    """Numbers that describe a curve of returns: one for each seed, `(S,)`, in units of the return."""

    j0: Array
    """The first evaluation: the return before any update of this phase."""
    drop: Array
    """max(0, J0 - the lowest return in the early window of learning), see `common_window`."""
    auc: Array
    """The mean return over the phase (trapezoidal rule), frozen steps included."""
    final: Array
    """The mean of the last evaluations, see `late_evaluations`."""
    best: Array
    """The highest evaluation. It is chosen with hindsight, so it is not a fair result."""


def summarise(
    step: ArrayLike, ret: ArrayLike, early: NDArray[np.int64] | None = None, start: int = 0
) -> Summary:
    """Summarise one phase as far as it has run: `step` `(T,)` ascending, `ret` `(T, S)`.

    early: the evaluations in the early window, if arms of a study share one; by default the window of this
    run alone, whose policy is frozen for `start` steps.
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
