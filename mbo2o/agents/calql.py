"""Cal-QL: conservative values, calibrated by the data's returns (Nakamoto et al. 2023, arXiv 2303.05479)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from mbo2o.agents.cql import CQL, CQLConfig
from mbo2o.registry import agent
from mbo2o.types import Batch, Metrics, UserError


@dataclass
class CalQLConfig(CQLConfig):
    """Defaults: the authors' code and its script for antmaze, whose rewards are 10 r - 5.

    Their critics have four layers. On adroit they use weight 1.
    """

    calibrate: bool = True  # bound values by returns
    calibrate_online: bool = True  # online, too (the authors; CORL stops at the switch)
    ensemble: str = "sum"
    gap: float | None = 0.8
    backup: str = "max"
    actor_lr: float = 1e-4

    @property
    def needs_returns(self) -> bool:
        """Values are bounded by the returns of the data."""
        return self.calibrate

    def after_switch(self) -> CalQLConfig:
        """Cal-QL goes on as it is: the conservative term and, by `calibrate_online`, its bound both stay."""
        return self.unchanged()

    def unchanged(self) -> Self:
        """The same without cloning, and with the bound if `calibrate_online` says so."""
        return replace(super().unchanged(), calibrate=self.calibrate_online)


@agent("calql", CalQLConfig)
class CalQL(CQL):
    """CQL that pushes values of the policy's actions no lower than the return that followed in the data.

    So values have the right scale when learning goes on online, and the policy is not forgotten at first.
    """

    cfg: CalQLConfig
    not_imagined = "it bounds values by recorded returns, and no return follows an imagined row"

    def bound(self, q: Tensor, b: Batch) -> tuple[Tensor, Metrics]:
        """max(Q, G), with G the return that followed s; where G is greater, nothing pushes Q down."""
        if not self.cfg.calibrate:
            return super().bound(q, b)
        if b.mc_return is None:
            raise UserError(
                "calql: the batch has no returns to bound values by; draw it from a dataset `with_returns` "
                "or a buffer with a `gamma`, or set calibrate=false"
            )
        g = b.mc_return.unsqueeze(-2).unsqueeze(-2)
        return torch.maximum(q, g), {"bound_rate": (q.detach() < g).float().mean((-3, -2, -1))}
