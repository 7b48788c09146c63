"""Rows of a dataset by priority, as prioritised replay draws them (Schaul et al. 2016, arXiv 1511.05952)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mbo2o.data.dataset import TransitionDataset
from mbo2o.types import Batch


class Prioritised(nn.Module):
    """A dataset whose rows are drawn in proportion to priorities, which are all renewed at once.

    Sums of the priorities up to each row take the place of `SumTree`, which renews a few rows at a time on
    the host. A renewal is one pass over the rows, a draw is a search in O(log n), and both stay on the device
    of the data, so that a GPU never waits and a graph that has captured a draw follows later priorities.
    """

    def __init__(self, data: TransitionDataset, seeds: tuple[int, ...]):
        """All rows begin with the same priority."""
        super().__init__()
        self.data = data
        n = len(data.index)
        sums = torch.arange(1, n + 1, dtype=torch.float64, device=data.index.device)
        self.sums = nn.Buffer(sums.expand(*seeds, n).clone())
        """`(*S, n)` float64: the sum of the priorities of the rows up to this one."""

    def set(self, priority: Tensor) -> None:
        """Renew the priorities `(*S, n)` ≥ 0, in the order of `index`; a row with 0 is never drawn."""
        self.sums.copy_(priority.double().cumsum(-1))

    @property
    def weights(self) -> Tensor:
        """The priorities, `(*S, n)` float64."""
        return self.sums.diff(prepend=torch.zeros_like(self.sums[..., :1]))

    @property
    def index(self) -> Tensor:
        """Numbers of the rows that can be drawn, `(n,)`."""
        return self.data.index

    def rows(self, index: Tensor) -> Batch:
        """The rows at `index (*S, B)`."""
        return self.data.rows(index)

    def draw(self, n: int) -> Tensor:
        """Numbers of `n` rows for each seed, with replacement: `(*S, n)`."""
        chance = torch.rand(*self.sums.shape[:-1], n, dtype=torch.float64, device=self.sums.device)
        return self.index[search(self.sums, chance)]


def search(sums: Tensor, chance: Tensor) -> Tensor:
    """`(*S, B)` uniform in [0, 1) → places `(*S, B)`, each as likely as its part of the `sums (*S, n)`."""
    found = torch.searchsorted(sums, chance * sums[..., -1:], right=True)
    # a product that is rounded up to the total itself belongs to the first place that reaches the total
    return torch.minimum(found, torch.searchsorted(sums, sums[..., -1:].contiguous()))
