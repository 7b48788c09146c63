"""How actions in [-1, 1] fit the box of an environment's actions; it needs neither gymnasium nor torch."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np


class Box(Protocol):
    """What a box says of itself, such as `gymnasium.spaces.Box`: the lowest and the highest action."""

    low: np.ndarray
    high: np.ndarray


LOWEST, HIGHEST = np.float32(-1), np.float32(1)


class ActionBox:
    """The box of an environment's actions. Agents act in `[-1, 1]`, one number for each entry, in C order.

    -1 becomes exactly `low` and 1 exactly `high`. Numbers between become `mid + half * act`, rounded to the
    box's dtype, and never leave the box. Where `low` equals `high`, every action becomes that number.
    """

    def __init__(self, space: Box):
        self.low, self.high, self.shape = space.low, space.high, tuple(space.low.shape)
        self.size = int(np.prod(self.shape))
        # halved before the sum: the sum of two bounds may overflow where their width does not
        self.mid, self.half = space.low / 2 + space.high / 2, (space.high - space.low) / 2
        ends = [self._between(np.full(self.shape, x, np.float32)) for x in (-1, 1)]
        self._exact = np.array_equal(ends[0], self.low) and np.array_equal(ends[1], self.high)

    def __call__(self, act: np.ndarray) -> np.ndarray:
        """`(A,)` → the box's shape and dtype, `(n, A)` → n of them; numbers beyond ±1 count as ±1."""
        act = np.minimum(np.maximum(act, LOWEST), HIGHEST)
        if len(self.shape) != 1:
            act = act.reshape(*act.shape[:-1], *self.shape)
        found = self._between(act)
        if self._exact:  # rounding keeps the order, so that numbers between the ends stay there
            return found
        found = np.minimum(np.maximum(found, self.low), self.high)
        return np.where(act == 1, self.high, np.where(act == -1, self.low, found))

    def _between(self, act: np.ndarray) -> np.ndarray:
        found: Any = self.mid + self.half * act
        return found if found.dtype == self.low.dtype else found.astype(self.low.dtype)
