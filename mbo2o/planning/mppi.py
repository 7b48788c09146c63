"""Model predictive path integrals: plans weighted by the exponential of their value.

Williams et al. 2017 (arXiv 1707.02342) derive the weights; TD-MPC (Hansen et al. 2022, arXiv 2203.04955)
repeats the step with elites and adapts the noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mbo2o.planning.objective import BROKEN
from mbo2o.planning.search import Rate, Search, SearchConfig, best
from mbo2o.registry import planner
from mbo2o.types import UserError


@dataclass
class MPPIConfig(SearchConfig):
    """Defaults: TD-MPC's, with an eighth of the population as elites, but for the temperature."""

    temperature: float = 0.5  # in units of the elites' standard deviation of values, see `MPPI`
    momentum: float = 0.1  # how much of the old mean stays in an iteration
    std: float = 1.0  # deviation of the first iteration
    min_std: float = 0.05  # the noise never gets smaller; as large as `std`, it stays as it is

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.min_std <= self.std:
            raise UserError(f"plan: min_std={self.min_std} must lie above 0 and not exceed std={self.std}")
        if not self.temperature:
            raise UserError("plan: temperature=0 weighs nothing; give a number above 0")


@planner("mppi", MPPIConfig)
class MPPI(Search):
    """Repeat: draw plans around μ, weigh the elites by their value, move μ and σ to their average.

        a_1..a_S ~ clip(μ + σ ε),    w_i ∝ exp((v_i - max v) / (τ sd(v))) for the elites
        μ ← m μ + (1 - m) Σ w_i a_i,    σ² ← Σ w_i (a_i - μ)², at least min_std²

    The papers' temperature has the unit of the values; here it is relative to the elites' standard deviation
    of them, so that one number suits tasks of any reward. With `elites=population`, one iteration and
    `min_std=std` this is the step of the first paper. The plan is the last μ.
    """

    cfg: MPPIConfig

    def improve(self, start: Tensor, rate: Rate, proposals: Tensor) -> Tensor:
        """See `Search.improve`."""
        cfg, mean, std = self.cfg, start, torch.full_like(start, self.cfg.std)
        for _ in range(cfg.iterations):
            drawn = (mean[:, None] + std[:, None] * self.normal(cfg.population)).clamp(-1, 1)
            plans = torch.cat([drawn, proposals], 1)
            elites, values = best(plans, rate(plans), cfg.elites)
            w = weights(values, cfg.temperature)[..., None, None]
            average = (w * elites).sum(1)
            spread = (w * (elites - average[:, None]).square()).sum(1).sqrt()
            mean, std = torch.lerp(average, mean, cfg.momentum), spread.clamp(cfg.min_std, cfg.std)
        return mean


def weights(values: Tensor, temperature: float) -> Tensor:
    """The weights `(B, k)` of values; broken plans weigh 0 beside one that is not."""
    fine = values > BROKEN / 2
    n = fine.sum(-1, keepdim=True).clamp(min=1)
    middle = torch.where(fine, values, 0.0).sum(-1, keepdim=True) / n
    spread = (torch.where(fine, values - middle, 0.0).square().sum(-1, keepdim=True) / n).sqrt()
    top = values.amax(-1, keepdim=True)
    return torch.softmax((values - top) / (temperature * spread).clamp(min=1e-8), -1)
