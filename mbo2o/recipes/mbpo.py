"""MBPO: when to trust your model (Janner et al. 2019, arXiv 1906.08253): MOORe's limit without offline data and penalty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mbo2o.data.sources import Mix
from mbo2o.recipes.modelbased import ModelBased, ModelBasedConfig, OnlineConfig
from mbo2o.registry import recipe
from mbo2o.run.run import Run


@dataclass
class MBPOConfig(OnlineConfig, ModelBasedConfig):
    """Defaults: the authors' code on HalfCheetah and Walker2d, but for their updates per step: HalfCheetah 40."""

    start: int = 5000  # uniform random actions before anything is learned
    coef: float = 0.0  # no penalty
    horizon: Any = (
        1  # HalfCheetah, Walker2d; Hopper [1, 15, 20, 150], Ant [1, 25, 20, 100], Humanoid [1, 25, 20, 300]
    )
    utd: int = 20


@recipe("mbpo", MBPOConfig)
class MBPO(ModelBased):
    """Learn a model of what was experienced, imagine short branches from it, and learn from those."""

    paper = "Janner et al. 2019, arXiv 1906.08253"
    needs_dataset = False
    cfg: MBPOConfig

    def switch(self, run: Run) -> None:
        """Start from nothing: act at random."""
        self.make(run)
        self.make_online_buffer(run, self.cfg.horizon)
        for _ in run.interact(None, self.cfg.start):
            pass

    def online(self, run: Run) -> None:
        """Act, refit, imagine, learn."""
        self.learn_online(run, self.cfg.coef, self.cfg.horizon)

    def real(self, run: Run, t: int) -> Mix:
        """All that was experienced."""
        return Mix((run.online, 1.0))
