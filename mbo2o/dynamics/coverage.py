"""How far states lie from a dataset: the distance to its nearest row, against what held-out rows have."""

from __future__ import annotations

import torch
from torch import Tensor

from mbo2o.data.dataset import TransitionDataset
from mbo2o.dynamics.fit import FitConfig, held_and_seen

ROWS, HELD_OUT = 4096, 1000
"""At most so many rows are measured against, and so many held-out rows are the yardstick."""
MARKS = (0.5, 0.9, 0.99)
"""The quantiles of the held-out rows' distances that are logged."""


class Yardstick:
    """Distances of states from the nearest of some rows of the data, in standard deviations of the data.

    A distance says little by itself, because it depends on the number of dimensions and of rows. So it is
    compared with the distances that held-out rows have: 0.9 means farther than nine tenths of them.
    """

    def __init__(self, rows: Tensor, held_out: Tensor):
        """Measure against states `rows (n, D)`; `held_out (m, D)` are states of the same kind."""
        std = rows.std(0, correction=0)
        self._scale = torch.where(std > 1e-6, std, 1.0)  # a constant dimension keeps its unit
        self._rows = rows / self._scale
        self._sorted = self.distances(held_out).sort().values

    def distances(self, obs: Tensor) -> Tensor:
        """`(..., D)` → `(...)`: the Euclidean distance to the nearest row."""
        flat = (obs / self._scale).reshape(-1, obs.shape[-1])
        # differences themselves: products of matrices would lose the digits of a small distance
        mode = "donot_use_mm_for_euclid_dist"
        near = [torch.cdist(part, self._rows, compute_mode=mode).amin(-1) for part in flat.split(2048)]
        return torch.cat(near).reshape(obs.shape[:-1])

    def levels(self, distance: Tensor) -> Tensor:
        """The share of held-out rows that lie nearer, in [0, 1], of the same shape."""
        below = torch.searchsorted(self._sorted, distance.contiguous())
        return below / len(self._sorted)

    def marks(self) -> Tensor:
        """The held-out rows' distances at `MARKS`."""
        at = torch.tensor(MARKS, dtype=self._sorted.dtype, device=self._sorted.device)
        return torch.quantile(self._sorted, at)


def yardstick(data: TransitionDataset, cfg: FitConfig) -> Yardstick:
    """The rows that fits with these settings hold out, against rows that they train on."""
    held, seen = held_and_seen(data.index, cfg, HELD_OUT, ROWS)
    return Yardstick(data.obs[seen], data.obs[held])


def binned(x: Tensor, keep: Tensor, bins: Tensor, n: int) -> Tensor:
    """Means of `x (*S, B)` over the rows in `keep (*S, B)` of each bin: `(*S, n)`, NaN where there is none.

    bins: the bin of each row, `(B,)` in 0 … n-1.
    """
    sums, counts = (torch.zeros(*x.shape[:-1], n, device=x.device) for _ in range(2))
    place = bins.expand(x.shape)
    sums.scatter_add_(-1, place, torch.where(keep, x, 0.0))
    counts.scatter_add_(-1, place, keep.to(x.dtype))
    return sums / counts  # 0 / 0 is NaN
