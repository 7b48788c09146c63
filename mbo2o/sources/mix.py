"""A fixed share of every batch is offline, as in Cal-QL, RLPD and PEX."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from mbo2o.registry import source
from mbo2o.sources.base import BaseSource, SourceConfig, check_shares
from mbo2o.sources.mixtures import Mix
from mbo2o.types import Batch


@dataclass
class MixConfig(SourceConfig):
    """Default: Cal-QL and RLPD."""

    offline_share: float = 0.5  # part of every batch

    def __post_init__(self) -> None:
        check_shares("recipe.source", self, "offline_share")


@source("mix", MixConfig)
class Mixed(BaseSource):
    """An exact share of every batch is offline, the rest is online."""

    cfg: MixConfig

    def advance(self, steps: int) -> None:
        """The share is that of the config at all times."""
        self.share = self.cfg.offline_share

    def mix(self) -> Mix:
        """Both kinds of rows in their present shares."""
        return Mix((self.offline, self.share), (self.online, 1 - self.share))

    def form(self, n: int) -> Hashable:
        """How many rows are of which kind."""
        return self.mix().form(n)

    def sample(self, n: int) -> Batch:
        """`n` rows per seed, the offline ones first."""
        return self.mix().sample(n)
