"""Few seeds, honestly: intervals over seeds, paired differences, and the four numbers that describe an online curve.

Seeds are the last axis. A missing value (NaN) makes every number that needs it NaN: a seed that diverged must not
vanish from a mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def iqm(x: ArrayLike) -> float:
    """Interquartile mean of all values: ⌊n/4⌋ are cut from each end, so below four values it is the mean."""
    v = np.sort(np.asarray(x, float), axis=None)
    cut = v.size // 4
    return float(v[cut : v.size - cut].mean()) if np.isfinite(v).all() else float("nan")


def bootstrap_interval(x: ArrayLike, level: float = 0.95, n: int = 2000, seed: int = 0) -> tuple[Array, Array]:
    """Percentile bootstrap of the mean over seeds: `(..., S)` → low `(...)`, high `(...)`.

    NaN for one seed, which knows nothing of the others. Below about five seeds the interval is too narrow.
    """
    v = np.asarray(x, float)
    seeds = v.shape[-1]
    if seeds < 2:
        return np.full(v.shape[:-1], np.nan), np.full(v.shape[:-1], np.nan)
    # how often each seed is drawn is all a mean needs: one matrix product instead of n gathered copies
    weights = np.random.default_rng(seed).multinomial(seeds, np.full(seeds, 1 / seeds), size=n) / seeds
    low, high = np.quantile(v @ weights.T, [(1 - level) / 2, (1 + level) / 2], axis=-1)
    return low, high


def paired_difference(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of `a - b` and Student's interval for it; `a`, `b` `(S,)` of the same seeds in the same order.

    Not the bootstrap: without any effect its intervals leave out 0 in a quarter of all comparisons of three seeds.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"paired arms need the same seeds: shapes {a.shape} and {b.shape}")
    d, n = a - b, len(a)
    half = t_quantile((1 + level) / 2, n - 1) * d.std(ddof=1) / n**0.5 if n > 1 else float("nan")
    return float(d.mean()), float(d.mean() - half), float(d.mean() + half)


def t_quantile(p: float, df: int) -> float:
    """Where Student's distribution with `df` degrees of freedom reaches p in (0.5, 1), by summing up its density."""
    # x = √df tan θ turns the tail into a finite range and the density into cosᵈᶠ⁻¹ θ
    theta = np.linspace(0, np.pi / 2, 20_001)
    mass = np.cos(theta) ** (df - 1)
    below = np.concatenate([[0], np.cumsum((mass[1:] + mass[:-1]) / 2)])
    return float(np.sqrt(df) * np.tan(np.interp(2 * p - 1, below / below[-1], theta)))


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


@dataclass(frozen=True)
class Summary:
    """What a curve did, per seed: each `(S,)`, in units of the return."""

    j0: Array
    """The first evaluation: the return before any update of this phase."""
    drop: Array
    """max(0, J0 - the lowest return in the first 20 % of the budget)."""
    auc: Array
    """Mean return over the budget (trapezoids, divided by its length)."""
    final: Array
    """Mean of the last 10 % of the evaluations, at least one."""
    best: Array
    """Highest evaluation: chosen with hindsight, so no fair result."""


def summarise(step: ArrayLike, ret: ArrayLike) -> Summary:
    """Summarise one phase: `step` `(T,)` ascending, `ret` `(T, S)`; the budget is what has been run so far."""
    t, j = np.asarray(step, float), np.asarray(ret, float)
    if len(t) == 0 or j.shape[:1] != t.shape or j.ndim != 2:
        raise ValueError(f"a curve needs steps (T,) and returns (T, S), T > 0: got {t.shape} and {j.shape}")
    length = t[-1] - t[0]
    early = t <= t[0] + 0.2 * length
    return Summary(
        j0=j[0],
        drop=np.maximum(0, j[0] - j[early].min(0)),
        auc=np.trapezoid(j, t, axis=0) / length if length > 0 else j[-1],
        final=j[-max(1, round(0.1 * len(t))) :].mean(0),
        best=j.max(0),
    )
