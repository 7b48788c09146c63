"""Online data join the dataset, as IQL, AWAC and CORL's CQL go on."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property

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
        """The share after so many steps is written to the device, where batches are drawn."""
        self.share = self.chance(steps)
        self.blend.set(self.share)

    def chance(self, steps: int) -> float:
        """The probability that a row is offline: the share of the offline rows among all rows."""
        return len(self.offline) / len(self)

    @cached_property
    def blend(self) -> Blend:
        """Both kinds of rows, drawn with the share that `advance` has set last."""
        return Blend(self.offline, self.online, self.share)

    def form(self, n: int) -> Hashable:
        """Both kinds of rows; their share is a tensor."""
        return self.blend.form(n)

    def sample(self, n: int) -> Batch:
        """`n` rows per seed, each offline with the present share."""
        return self.blend.sample(n)
