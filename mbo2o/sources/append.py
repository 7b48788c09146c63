"""Online data join the dataset, as IQL, AWAC and CORL's CQL go on."""

from __future__ import annotations

from dataclasses import dataclass

from mbo2o.registry import source
from mbo2o.sources.base import BaseSource, SourceConfig
from mbo2o.sources.mixtures import Blend
from mbo2o.types import Batch


@dataclass
class AppendConfig(SourceConfig):
    """There is nothing to set."""


@source("append", AppendConfig)
class Append(BaseSource):
    """Offline and online rows, each as likely as any other."""

    def advance(self, steps: int) -> None:
        """The offline share is that of the offline rows among all rows."""
        self.share = len(self.offline) / len(self)

    def sample(self, n: int) -> Batch:
        """`n` rows per seed, uniformly with replacement."""
        return Blend(self.offline, self.online, self.share).sample(n)
