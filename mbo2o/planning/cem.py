"""The cross-entropy method, as PETS plans with it (Chua et al. 2018, arXiv 1805.12114)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mbo2o.planning.search import Rate, Search, SearchConfig, best
from mbo2o.registry import planner
from mbo2o.types import UserError


@dataclass
class CEMConfig(SearchConfig):
    """Defaults of alpha and of the first deviation: PETS's code (MBExperiment, optimizers/cem.py)."""

    alpha: float = 0.1  # how much of the old mean and variance stays in an iteration
    std: float = 0.5  # deviation of the first iteration; PETS: a quarter of the box's width
    bounds: str = "clip"  # what the box does to draws: clip, or truncate, as in PETS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bounds not in ("clip", "truncate"):
            raise UserError(f"plan: bounds={self.bounds} is neither clip nor truncate")


@planner("cem", CEMConfig)
class CEM(Search):
    """Repeat: draw plans from a normal, keep the elites, fit the normal to them.

        a_1..a_S ~ N(μ, σ²) clipped to the box,    E = the elites with the largest values
        μ ← α μ + (1 - α) mean(E),    σ² ← α σ² + (1 - α) var(E)

    The plan is the last μ. Draws beyond the box stand at its bounds, so that plans of the largest actions are
    tried. With draws of a truncated normal, as PETS has them, CEM takes one of five swings of Pendulum's true
    dynamics in the wrong direction, with every deviation and number of elites that was tried. PETS also
    narrows σ to half the distance between μ and the bound, so that a plan that has come near a bound stays
    there; here σ keeps its size.
    """

    cfg: CEMConfig

    def improve(self, start: Tensor, rate: Rate, proposals: Tensor) -> Tensor:
        """See `Search.improve`."""
        mean, var = start, torch.full_like(start, self.cfg.std**2)
        for _ in range(self.cfg.iterations):
            plans = torch.cat([self._drawn(mean[:, None], var.sqrt()[:, None]), proposals], 1)
            elites, _ = best(plans, rate(plans), self.cfg.elites)
            mean = torch.lerp(elites.mean(1), mean, self.cfg.alpha)
            var = torch.lerp(elites.var(1, correction=0), var, self.cfg.alpha)
        return mean

    def _drawn(self, mean: Tensor, std: Tensor) -> Tensor:
        if self.cfg.bounds == "clip":
            return (mean + std * self.normal(self.cfg.population)).clamp(-1, 1)
        return truncated_normal(mean, std, self.uniform(self.cfg.population))


def truncated_normal(mean: Tensor, std: Tensor, u: Tensor) -> Tensor:
    """Draws of a normal that lies in [-1, 1], from uniform draws `u` in [0, 1), by the inverse of its CDF."""
    std = std.clamp(min=1e-6)
    low, high = (torch.special.ndtr((x - mean) / std) for x in (-1.0, 1.0))
    z = torch.erfinv((2 * torch.lerp(low, high, u) - 1).clamp(-1 + 1e-6, 1 - 1e-6)) * math.sqrt(2)
    return (mean + std * z).clamp(-1, 1)
