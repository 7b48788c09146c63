"""How far to plan: as far as the model still ranks plans as the task does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mbo2o.planning.icem import coloured
from mbo2o.planning.objective import BROKEN, Objective

DEPTHS = (1, 2, 3, 4, 5, 7, 9, 12, 15, 20, 25, 30)
"""Horizons that are compared."""
LEAST = 0.5
"""The rank correlation that a horizon has to reach."""


@dataclass(frozen=True)
class Trust:
    """How well a model ranks plans, by their length."""

    depths: tuple[int, ...]
    correlation: tuple[float, ...]
    """Spearman's rank correlation of the model's return and the true one, mean over starts."""

    @property
    def horizon(self) -> int:
        """The largest depth whose correlation is at least `LEAST`; if none is, the depth with the largest.

        A longer plan sees more, but the model's errors add up, and beyond this depth they decide which plan
        looks best. The correlation at depth 1 says little where the first reward hardly depends on actions,
        so that shorter depths need not reach it.
        """
        good = [d for d, c in zip(self.depths, self.correlation, strict=True) if c >= LEAST]
        return max(good) if good else self.depths[self.correlation.index(max(self.correlation))]

    def text(self) -> str:
        """The correlations in one line."""
        return ", ".join(f"{d}: {c:.2f}" for d, c in zip(self.depths, self.correlation, strict=True))


def smooth_plans(n: int, horizon: int, act_dim: int, generator: torch.Generator) -> Tensor:
    """Random plans `(n, H, A)` in [-1, 1] whose actions change slowly, as those of sensible plans do."""
    white = torch.randn(n, horizon, act_dim, generator=generator, device=generator.device)
    return coloured(white, 2.0).clamp(-1, 1)


def compare(
    objective: Objective,
    obs: Tensor,
    plans: Tensor,
    rewards: Tensor,
    generator: torch.Generator,
    depths: Sequence[int] = DEPTHS,
) -> Trust:
    """Compare the model's returns of plans with the true ones, from each start by itself.

    obs: the starts `(B, D)`. plans: `(B, n, H, A)`. rewards: what the task paid at each step of each plan,
    `(B, n, H)`, 0 after the end; in the units of the network's rewards.
    """
    true, found = rewards.cumsum(-1), []
    some = tuple(d for d in depths if d <= plans.shape[2])
    for d in some:
        rated = objective.rate(obs, plans[:, :, :d], generator)
        own = torch.where(rated.value <= BROKEN / 2, BROKEN, rated.reward)
        found.append(float(rank_correlation(own.cpu(), true[..., d - 1].cpu()).mean()))
    return Trust(some, tuple(found))


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's, `(..., n)` and `(..., n)` → `(...)`; equal numbers share a rank; 0 if all are equal."""
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
    norm = (x.square().sum(-1) * y.square().sum(-1)).sqrt()
    return torch.where(norm > 0, (x * y).sum(-1) / norm.clamp(min=1e-12), 0.0)


def _ranks(x: Tensor) -> Tensor:
    one, other = x.unsqueeze(-1), x.unsqueeze(-2)
    return (one > other).double().sum(-1) + 0.5 * (one == other).double().sum(-1)
