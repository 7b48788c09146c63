"""Online data alone, as WSRL and ENOTO learn."""

from __future__ import annotations

from dataclasses import dataclass

from mbo2o.registry import source
from mbo2o.sources.base import BaseSource, SourceConfig
from mbo2o.types import Batch


@dataclass
class OnlineConfig(SourceConfig):
    """There is nothing to set."""


@source("online", OnlineConfig)
class Online(BaseSource):
    """What was experienced online; the dataset is left behind."""

    def __len__(self) -> int:
        return len(self.online)

    def sample(self, n: int) -> Batch:
        """`n` rows per seed, uniformly with replacement."""
        return self.online.sample(n)
