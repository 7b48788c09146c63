"""Sources made of sources: exact shares, shares by chance, the youngest rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mbo2o.data.buffer import ReplayBuffer
from mbo2o.data.dataset import TransitionDataset
from mbo2o.types import Batch, Source, cat, combine


class Mix:
    """Exact shares of every batch: `Mix((offline, 0.5), (online, 0.5))` is half and half for data of any size."""

    def __init__(self, *parts: tuple[Source, float]):
        total = sum(share for _, share in parts)
        if total <= 0 or min(share for _, share in parts) < 0:
            raise ValueError(
                f"shares must not be negative and not all zero, found {[share for _, share in parts]}"
            )
        self.parts: Sequence[tuple[Any, float]] = [(source, share / total) for source, share in parts]

    def __len__(self) -> int:
        return sum(len(source) for source, _ in self.parts)

    def counts(self, n: int) -> list[int]:
        """How many of `n` rows come from each part: exact shares, rounded by largest remainder so that they add up."""
        exact = [n * share for _, share in self.parts]
        counts = [int(x) for x in exact]
        by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
        for i in by_remainder[: n - sum(counts)]:
            counts[i] += 1
        return counts

    def sample(self, n: int) -> Batch:
        """`n` rows per seed, part after part."""
        return cat([source.sample(k) for (source, _), k in zip(self.parts, self.counts(n), strict=True) if k])


class Youngest:
    """The latest `rows` rows of each seed, as if the buffer's capacity were `rows`."""

    def __init__(self, buffer: ReplayBuffer, rows: int):
        self.buffer = buffer
        self.rows = rows

    def __len__(self) -> int:
        return min(self.rows, len(self.buffer))

    def sample(self, n: int) -> Batch:
        """`n` rows per seed, uniformly with replacement."""
        return self.buffer.sample(n, self.rows)


class Blend:
    """Offline and online rows, each offline with probability `share` and then uniform among its kind.

    With two levels of priority this is exactly prioritised sampling, at a cost that does not depend on the number
    of rows. The share is 1 while nothing is online.
    """

    def __init__(self, offline: TransitionDataset, online: ReplayBuffer, share: float):
        self.offline = offline
        self.online = online
        self.share = 1.0 if len(online) == 0 else share

    @property
    def weighted_rows(self) -> Sequence[tuple[TransitionDataset | ReplayBuffer, float]]:
        """Both kinds with their probabilities, as `fit` takes them."""
        return [(self.offline, self.share), (self.online, 1 - self.share)]

    def __len__(self) -> int:
        return len(self.offline) + len(self.online)

    def sample(self, n: int) -> Batch:
        """`n` rows per seed, each offline with probability `share`."""
        if self.share == 1:
            return self.offline.sample(n)
        if self.share == 0:
            return self.online.sample(n)
        old, new = self.offline.sample(n), self.online.sample(n)
        is_old = torch.rand(old.rew.shape, device=old.rew.device) < self.share

        def pick(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(is_old.unsqueeze(-1) if a.dim() > is_old.dim() else is_old, a, b)

        return combine(pick, [old, new])
