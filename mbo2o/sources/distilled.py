"""A random part of the dataset fills the online buffer (adaptive BC, Zhao et al. 2022, arXiv 2210.13846)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mbo2o.registry import source
from mbo2o.sources.base import SourceConfig, check_shares, check_steps
from mbo2o.sources.online import Online
from mbo2o.types import UserError


@dataclass
class DistilledConfig(SourceConfig):
    """Defaults: the authors' code."""

    share: float = 0.05  # part of the dataset that is kept, but at least
    rows: int = 50_000  # that many rows, or all that there are

    def __post_init__(self) -> None:
        check_shares("recipe.source", self, "share")
        check_steps("recipe.source", self, "rows")

    def kept(self, rows: int) -> int:
        """How many of a dataset's `rows` are kept."""
        return min(max(round(self.share * rows), self.rows), rows)


@source("distilled", DistilledConfig)
class Distilled(Online):
    """The online buffer starts with a random part of the dataset, which is the first to be overwritten."""

    cfg: DistilledConfig

    @classmethod
    def check(cls, cfg: DistilledConfig, rows: int, capacity: int) -> None:
        """What is kept of the dataset has to fit into the online buffer."""
        if (n := cfg.kept(rows)) > capacity:
            raise UserError(
                f"recipe.source=distilled keeps {n} rows, more than run.online_capacity={capacity}"
            )

    def begin(self) -> None:
        """Draw the part that is kept, for each seed its own, without replacement."""
        self.check(self.cfg, len(self.offline), self.online.capacity)
        n = self.cfg.kept(len(self.offline))
        order = torch.rand(*self.spec.seeds, len(self.offline), device=self.spec.device).argsort(-1)
        self.online.add(self.offline.rows(self.offline.index[order[..., :n]]))
