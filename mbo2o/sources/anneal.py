"""The offline share of every batch falls to 0."""

from __future__ import annotations

from dataclasses import dataclass

from mbo2o.registry import source
from mbo2o.sources.base import check_steps
from mbo2o.sources.mix import MixConfig, Mixed


@dataclass
class AnnealConfig(MixConfig):
    """Defaults: ours. `offline_share` is the share at the first environment step."""

    steps: int = 100_000  # environment steps until no offline data are left

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps("recipe.source", self, "steps")


@source("anneal", AnnealConfig)
class Annealed(Mixed):
    """The offline share falls along a line from its first value to 0, and stays there."""

    cfg: AnnealConfig

    def advance(self, steps: int) -> None:
        """The share that is left after so many steps."""
        self.share = self.cfg.offline_share * max(0.0, 1 - steps / max(1, self.cfg.steps))
