"""Settings of methods that refit their model online, in the words of MBPO."""

from __future__ import annotations

from dataclasses import dataclass, field

from mbo2o.dynamics.fit import FitConfig
from mbo2o.recipes.imagining import ImaginingConfig
from mbo2o.sources.base import check_counts, check_steps
from mbo2o.types import UserError


def short_fit() -> FitConfig:
    """A refit starts from the present weights, hence it is shorter than the first fit (ours)."""
    return FitConfig(min_updates=200, max_updates=2000, epoch_updates=100, patience=3)


@dataclass
class RefittingConfig(ImaginingConfig):
    """Settings of an online phase whose model is refitted. Defaults: mbpo/algorithms/mbpo.py unless said."""

    online_steps: int = 100_000  # environment steps per seed
    epoch: int = 1000  # environment steps
    model_every: int = 250  # environment steps between refits, each followed by rollouts
    refit: FitConfig = field(default_factory=short_fit)
    online_rollouts: int = 50_000  # branches after each refit (MBPO 100 000)
    online_retain: int = 1  # epochs whose imagined data stay
    utd: int = 1  # whole updates of the agent per environment step (MBPO 20 to 40; not known of MOORe)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts("recipe", self, "epoch", "model_every", "online_rollouts", "utd")
        check_steps("recipe", self, "online_steps")
        self.check_fits("online_rollouts")
        if self.fit.holdout != self.refit.holdout:
            both = f"recipe.fit.holdout={self.fit.holdout} and recipe.refit.holdout={self.refit.holdout}"
            raise UserError(f"{both} must be the same: what was held out once is never trained on")

    def retained(self, length: int) -> int:
        """Imagined rows that the latest `online_retain` epochs of branches of `length` steps amount to."""
        refits = max(1, self.epoch // self.model_every)
        return int(self.online_retain * refits * length * self.online_rollouts)
