"""A transition as one row of float32 numbers, so that drawing a batch is a single gather.

The columns are obs | act | rew | next_obs | done, then `truncated` and `mc_return` where a table keeps them.
Checkpoints of buffers hold such rows, so the order is part of the format.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mbo2o.types import Batch

TRUNCATED, RETURN = "truncated", "mc_return"


class Packed(NamedTuple):
    """Rows as they were drawn, before they are taken apart: `(*S, B, width)`, and which column holds what."""

    rows: Tensor
    layout: RowLayout

    @property
    def batch(self) -> Batch:
        """The fields, as views."""
        return self.layout.unpack(self.rows)


class RowLayout:
    """Which columns of a row `(..., width)` hold which field of a transition."""

    def __init__(self, obs_dim: int, act_dim: int, *more: str):
        """more: `TRUNCATED`, `RETURN` or both, in this order, for tables that keep these, too."""
        widths = {"obs": obs_dim, "act": act_dim, "rew": 1, "next_obs": obs_dim, "done": 1}
        self.widths = widths | dict.fromkeys(more, 1)
        self.width = sum(self.widths.values())
        self._sizes = list(self.widths.values())
        self._ends = list(itertools.accumulate(self._sizes))
        ends = zip(self.widths, self._sizes, self._ends, strict=True)
        self.columns = {key: slice(end - size, end) for key, size, end in ends}

    def column(self, name: str) -> int:
        """The column of a field that is one number: `rew`, `done`, `truncated`, `mc_return`."""
        return self.columns[name].start

    def pack(self, batch: Batch, truncated: Tensor | None = None) -> Tensor:
        """Fields `(*S, B, ...)` → rows `(*S, B, width)`; a return that is missing becomes -inf (unknown)."""
        rew = batch.rew.unsqueeze(-1)
        parts = [batch.obs, batch.act, rew, batch.next_obs, batch.done.unsqueeze(-1)]
        if TRUNCATED in self.widths:
            parts.append(torch.zeros_like(rew) if truncated is None else truncated.unsqueeze(-1))
        if RETURN in self.widths:
            known = batch.mc_return
            parts.append(torch.full_like(rew, -torch.inf) if known is None else known.unsqueeze(-1))
        return torch.cat([x.to(rew.dtype) for x in parts], -1)

    def fill(self, out: np.ndarray, **fields: np.ndarray) -> None:
        """Write fields `(n, d)` or `(n,)`, one for each column group, into rows `(n, width)` of an array."""
        for key, columns in self.columns.items():
            out[:, columns] = fields[key].reshape(len(out), -1)

    def write(self, out: np.ndarray, obs: Any, act: Any, rew: float, after: Any, *ends: bool) -> None:
        """Write one step, with arrays of one axis, into a row `(width,)`; ends: `done` and `truncated`."""
        a, r, n, d, *_ = self._ends
        out[:a], out[a:r], out[r], out[n:d] = obs, act, rew, after
        out[d], out[d + 1] = ends

    def unpack(self, rows: Tensor) -> Batch:
        """Rows `(*S, B, width)` → the fields, as views; `truncated` is no part of a batch."""
        parts = dict(zip(self.widths, rows.split(self._sizes, -1), strict=True))
        known = parts.get(RETURN)
        return Batch(
            parts["obs"],
            parts["act"],
            parts["rew"].squeeze(-1),
            parts["next_obs"],
            parts["done"].squeeze(-1),
            None if known is None else known.squeeze(-1),
        )
