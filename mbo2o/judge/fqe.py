"""Fitted Q evaluation (Le, Voloshin and Yue 2019, arXiv 1903.08738) on random features, at its fixed point.

FQE regresses r + γ Q(s', π(s')) on (s, a) until Q no longer changes. With features that are linear in their
weights, a sweep is one ridge regression, and the fixed point is the solution of a linear system, so that an
estimate costs a fraction of a second and depends on nothing but the policy and the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mbo2o.data.dataset import TransitionDataset

FEATURES = 128
"""Random cosines, beside a constant and the numbers themselves."""
ROWS = 5000
"""Most rows that are used, evenly over the log."""
RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Weights of the ridge, per row; the smallest one with which the sweeps converge is taken."""
RESAMPLES = 20
"""Sets of episodes that an interval is taken from."""


class FittedQ:
    """What does not depend on the policy: rows, features, and how often each set of episodes counts a row."""

    def __init__(self, data: TransitionDataset, gamma: float, seed: int):
        """`data`: rows with the task's own rewards, without a seed axis."""
        self._gamma = gamma
        index = data.index[torch.linspace(0, len(data) - 1, min(ROWS, len(data))).round().long()]
        b = data.rows(index)
        self._rew, self._going, self._next = b.rew.double(), 1 - b.done.double(), b.next_obs
        rng = torch.Generator().manual_seed(seed)
        x = torch.cat([b.obs, b.act], -1).double()
        self._mean, std = x.mean(0), x.std(0, correction=0)
        self._scale = torch.where(std > 1e-6, std, 1.0)
        z = (x - self._mean) / self._scale
        width = float(torch.pdist(z[torch.linspace(0, len(z) - 1, min(300, len(z))).long()]).median())
        spread = 1 / max(width, 1e-3)
        self._w = torch.randn(x.shape[1], FEATURES, generator=rng, dtype=torch.float64) * spread
        self._b = torch.rand(FEATURES, generator=rng, dtype=torch.float64) * 2 * math.pi
        self._phi = self._features(b.obs, b.act)
        self._counts = _resampled(data.episode[index], rng)

    def _features(self, obs: Tensor, act: Tensor) -> Tensor:
        """`(n, K)`: a constant, the scaled numbers, and cosines of random mixtures of them."""
        z = (torch.cat([obs, act], -1).double() - self._mean) / self._scale
        cosines = math.sqrt(2 / FEATURES) * torch.cos(z @ self._w + self._b)
        return torch.cat([torch.ones_like(z[:, :1]), 0.1 * z, cosines], -1)

    def __call__(self, policy: Callable[[Tensor], Tensor], starts: Tensor) -> tuple[float, float, float]:
        """The policy's discounted return from `starts` `(n, D)`, and an interval of 90 % for it.

        policy: observations `(n, D)` → actions `(n, A)` in [-1, 1]. The interval is over episodes drawn with
        replacement: it knows how much the record varies, and not what it lacks. NaN where the sweeps diverge.
        """
        after = self._features(self._next, policy(self._next)) * (self._gamma * self._going).unsqueeze(-1)
        first = self._features(starts, policy(starts)).mean(0)
        values = [self._value(after, first, counts) for counts in self._counts]
        known = torch.tensor([v for v in values[1:] if math.isfinite(v)], dtype=torch.float64)
        if len(known) < RESAMPLES // 2 or not math.isfinite(values[0]):
            return values[0], math.nan, math.nan
        low, high = known.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
        return values[0], low, high

    def _value(self, after: Tensor, first: Tensor, counts: Tensor) -> float:
        weighted = self._phi * counts.unsqueeze(-1)
        gram, across, rewards = weighted.T @ self._phi, weighted.T @ after, weighted.T @ self._rew
        eye = torch.eye(len(gram), dtype=gram.dtype) * counts.sum()
        for ridge in RIDGES:
            factor = torch.linalg.cholesky(gram + ridge * eye)
            sweep = torch.cholesky_solve(across, factor)
            if float(torch.linalg.eigvals(sweep).abs().max()) < 1:
                target = torch.cholesky_solve(rewards.unsqueeze(-1), factor)
                weights = torch.linalg.solve(torch.eye(len(gram), dtype=gram.dtype) - sweep, target)
                return float(first @ weights.squeeze(-1))
        return math.nan


def _resampled(episode: Tensor, rng: torch.Generator) -> list[Tensor]:
    """How often each row counts: once in the first set, and in the others as often as its episode is drawn.

    Where there are fewer than five episodes, stretches of rows are drawn in place of episodes.
    """
    _, group = torch.unique_consecutive(episode, return_inverse=True)
    if int(group[-1]) + 1 < 5:
        group = torch.arange(len(episode)) * 10 // len(episode)
    n = int(group[-1]) + 1
    sets = [torch.ones(len(episode), dtype=torch.float64)]
    for _ in range(RESAMPLES):
        drawn = torch.bincount(torch.randint(n, (n,), generator=rng), minlength=n)
        sets.append(drawn[group].double())
    return sets
