"""Linear regressions on samples of rows, and how much they leave unexplained."""

from __future__ import annotations

import numpy as np

SAMPLE = 20_000
"""The number of rows that linear models are fitted to."""
BLOCK = 100_000
"""The number of rows that are worked on at a time."""
FOLDS = 4
"""The number of parts of the rows in which an explanation is tested."""


def same(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`(N,)`: whether rows of `x (N, D)` and `y (N, D)` are equal up to rounding."""
    return np.asarray(np.isclose(x, y, rtol=1e-5, atol=1e-6).all(1))


def standard(x: np.ndarray) -> np.ndarray:
    """The columns of `x (N, D)` with mean 0 and deviation 1, float64."""
    x = x.astype(np.float64)
    return (x - x.mean(0)) / np.maximum(x.std(0), 1e-9)


def spread(rows: np.ndarray) -> np.ndarray:
    """At most SAMPLE of the row numbers, evenly spaced."""
    return rows if len(rows) <= SAMPLE else rows[np.linspace(0, len(rows) - 1, SAMPLE).astype(int)]


def unexplained(x: np.ndarray, y: np.ndarray) -> float:
    """The share of the variance of `y (n, d)` that a ridge regression on `x (n, k)` leaves.

    The share is the mean over those columns of `y` that vary.
    """
    y = y[:, y.std(0) > 1e-9]
    if not y.size:
        return 0.0
    x, y = standard(x), standard(y)
    return float(((y - x @ _ridge(x, y)) ** 2).mean())


def unexplained_by_part(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`(FOLDS,)`: the share of `unexplained` in each part of the rows, by a regression on the other parts."""
    y = y[:, y.std(0) > 1e-9]
    if not y.size:
        return np.zeros(FOLDS)
    x, y = standard(x), standard(y)
    parts = np.array_split(np.arange(len(x)), FOLDS)
    xx, xy = ([x[rows].T @ z[rows] for rows in parts] for z in (x, y))
    shares = []
    for rows, own_xx, own_xy in zip(parts, xx, xy, strict=True):
        ridge = 1e-4 * (len(x) - len(rows)) * np.eye(x.shape[1])
        weights = np.linalg.solve(sum(xx) - own_xx + ridge, sum(xy) - own_xy)
        shares.append(((y[rows] - x[rows] @ weights) ** 2).mean())
    return np.array(shares)


def step_errors(obs: np.ndarray, act: np.ndarray, sample: np.ndarray, std: np.ndarray) -> np.ndarray:
    """`(N-1,)`: how wrong a linear model is about the step from each row to the row below.

    The error is in units of the model's usual error and is the mean over dimensions. The model is fitted to
    the steps of the rows `sample`. std: `(D,)`, the deviations of `obs`.
    """
    centre = obs.astype(np.float64).mean(0)

    def inputs(rows: np.ndarray) -> np.ndarray:
        return np.concatenate([np.ones((len(rows), 1)), (obs[rows] - centre) / std, act[rows]], 1)

    def steps(rows: np.ndarray) -> np.ndarray:
        return obs[rows + 1].astype(np.float64) - obs[rows]

    weights, scale = _robust_fit(inputs(sample), steps(sample), std)
    pairs = np.arange(len(obs) - 1)
    blocks = np.array_split(pairs, len(pairs) // BLOCK + 1)
    return np.concatenate([(np.abs(steps(x) - inputs(x) @ weights) / scale).mean(1) for x in blocks])


def _robust_fit(x: np.ndarray, y: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of a ridge regression on the rows that it fits best, three quarters, and its usual errors."""
    keep = np.ones(len(x), np.bool_)
    for _ in range(4):
        weights = _ridge(x[keep], y[keep])
        off = np.abs(y - x @ weights)
        scale = np.maximum(1.4826 * np.median(off, 0), 1e-3 * std)
        score = (off / scale).mean(1)
        keep = score <= np.quantile(score, 0.75)
    return weights, scale


def _ridge(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.linalg.solve(x.T @ x + 1e-4 * len(x) * np.eye(x.shape[1]), x.T @ y)
