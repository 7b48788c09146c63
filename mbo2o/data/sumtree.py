"""Draws of rows in proportion to priorities that change, in O(log n) per row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


class SumTree:
    """One tree per seed over `capacity` leaves. Their priority starts at 0, with which a leaf is never drawn.

    `nodes` `(S, 2 · size)` float64 holds the sum of node i at i, its children at 2i and 2i + 1, and leaf j at
    `size` + j.
    """

    def __init__(self, seeds: int, capacity: int):
        self.size = 1 << max(0, capacity - 1).bit_length()
        self.nodes: Floats = np.zeros((seeds, 2 * self.size))
        self._seed = np.arange(seeds)[:, None]

    def set(self, leaf: Indices, priority: Floats) -> None:
        """Set the priorities `(S, B)` of leaves `(S, B)`; for a leaf that occurs twice, the last counts."""
        node = leaf + self.size
        self.nodes[self._seed, node] = priority
        while node[0, 0] > 1:
            node = node // 2
            self.nodes[self._seed, node] = (
                self.nodes[self._seed, 2 * node] + self.nodes[self._seed, 2 * node + 1]
            )

    def draw(self, chance: Floats) -> Indices:
        """`(S, B)` uniform in [0, 1) → leaves `(S, B)`, each with its share of the total as probability."""
        node = np.ones(chance.shape, np.int64)
        mass = chance * self.nodes[:, 1:2]
        while node[0, 0] < self.size:
            left = self.nodes[self._seed, 2 * node]
            # rounding must not lead into a side whose sum is 0
            right = (mass >= left) & (self.nodes[self._seed, 2 * node + 1] > 0)
            mass = np.where(right, mass - left, mass)
            node = 2 * node + right
        return node - self.size
