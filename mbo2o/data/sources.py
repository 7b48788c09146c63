"""Sources made of sources. Most offline-to-online methods differ in little else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mbo2o.data.buffer import ReplayBuffer
from mbo2o.data.dataset import TransitionDataset
from mbo2o.types import Batch, Source, cat, combine


class Mix:
    """Exact shares of every batch: `Mix((offline, 0.5), (online, 0.5))` is half and half, whatever their sizes."""

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
        """How many of `n` rows come from each part: the exact shares, rounded so that they add up (largest remainder)."""
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
    """The latest `rows` of each seed's buffer, as if that were its capacity, which may so change from turn to turn."""

    def __init__(self, buffer: ReplayBuffer, rows: int):
        self.buffer, self.rows = buffer, rows

    def __len__(self) -> int:
        return min(self.rows, len(self.buffer))

    def sample(self, n: int) -> Batch:
        """`n` rows per seed, uniformly with replacement."""
        return self.buffer.sample(n, self.rows)


class Aged:
    """Offline and online data drawn by the priority of their age class (MOORe).

    Every online transition has priority 1 and every offline one the same, smaller, priority. With two levels a sum tree is not
    needed: a row is offline with probability `share` and then uniform among its kind, which is exact and O(1).
    """

    def __init__(self, offline: TransitionDataset, online: ReplayBuffer, share: float):
        self.offline, self.online = offline, online
        self.share = 1.0 if len(online) == 0 else share

    @property
    def parts(self) -> Sequence[tuple[TransitionDataset | ReplayBuffer, float]]:
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
        pick = lambda a, b: torch.where(is_old.unsqueeze(-1) if a.dim() > is_old.dim() else is_old, a, b)  # noqa: E731
        return combine(pick, [old, new])


def offline_share(priority: float, n_offline: int, n_online: int) -> float:
    """P(offline) when each of `n_offline` rows has `priority` and each of `n_online` has 1; while none is online, it is 1."""
    weight = n_offline * priority
    return weight / (weight + n_online) if n_online else 1.0
