"""What stands where environments would be, in a run that learns from a log alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
from torch import Tensor

from mbo2o.envs.box import ActionBox
from mbo2o.types import UserError

ABSENT = "this run has no environment (env=null): a method that acts needs one, env=ID"


@dataclass(frozen=True)
class Absent:
    """What is known of the task instead."""

    obs_dim: int
    low: np.ndarray
    """`(A,)`: the lowest action in the task's own units."""
    high: np.ndarray
    judge: Callable[..., Any]
    """Measures an agent, as an evaluation would: (agent, rewards) → metrics. It is made at the first call."""


class NoLanes:
    """Has the sizes of environments, and none to act in."""

    capped = False

    def __init__(self, known: Absent):
        self.obs_dim, self.act_dim = known.obs_dim, len(known.low)
        low, high = (x.astype(np.float32) for x in (known.low, known.high))
        space: Any = SimpleNamespace(low=low, high=high, shape=low.shape)
        self.box = ActionBox(space)

    def check(self) -> NoReturn:
        """Raise `UserError`: a turn that begins with a step cannot be taken."""
        raise UserError(ABSENT)

    def obs(self) -> NoReturn:
        """See `check`."""
        raise UserError(ABSENT)

    def take(self, acts: np.ndarray) -> NoReturn:
        """See `check`."""
        raise UserError(ABSENT)

    def state(self) -> tuple[dict[str, Tensor], list[str]]:
        """Nothing: there are no episodes."""
        return {}, []

    def load(self, tensors: dict[str, Tensor], rngs: list[str]) -> None:
        """Do nothing: there are no episodes."""
