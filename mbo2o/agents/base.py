"""What every learner offers: `update(batch)`, `act(obs)`, and a state that is complete."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from mbo2o.registry import AGENTS
from mbo2o.types import Batch, Metrics, Spec


class Agent(nn.Module, ABC):
    """A learner from batches. It knows no environment, dataset, phase or logger.

    Networks, targets, temperatures and optimisers are its submodules, so `state_dict` is everything that a restart needs.
    """

    def __init__(self, spec: Spec, cfg: Any):
        super().__init__()
        self.spec, self.cfg = spec, cfg

    @abstractmethod
    def update(self, batch: Batch) -> Metrics:
        """One step of learning from `(*S, B, ...)`; metrics are `(*S,)` and stay on the device."""

    @abstractmethod
    def act(self, obs: Tensor, explore: bool = False) -> Tensor:
        """Observations `(*S, B, D)` → actions `(*S, B, A)` in [-1, 1]: exploring, or the deterministic best."""

    @abstractmethod
    def value(self, obs: Tensor, act: Tensor) -> Tensor:
        """The agent's own estimate of the discounted return from `(obs, act)`: `(*S, B)`."""


def make_agent(cfg: Any, spec: Spec) -> Any:
    """The agent that is registered with `cfg`'s dataclass, built on `spec.device`."""
    for entry in AGENTS.values():
        if entry.config is type(cfg):
            with torch.device(spec.device):
                return entry.cls(spec, cfg)
    raise TypeError(f"no agent is registered with the config {type(cfg).__name__}")
