"""Sources made of sources: exact shares, shares by chance, the youngest rows."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from mbo2o.data import dataset
from mbo2o.data.buffer import ReplayBuffer
from mbo2o.data.dataset import TransitionDataset
from mbo2o.data.layout import Packed
from mbo2o.data.priorities import Prioritised
from mbo2o.types import Batch, Source, cat, combine, form


class Mix:
    """Exact shares of every batch: `Mix((offline, 0.5), (online, 0.5))` is half and half at any sizes."""

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
        """How many of `n` rows come from each part: rounded by largest remainder, so that they add up."""
        exact = [n * share for _, share in self.parts]
        counts = [int(x) for x in exact]
        by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
        for i in by_remainder[: n - sum(counts)]:
            counts[i] += 1
        return counts

    def form(self, n: int) -> Hashable:
        """The parts, and how many rows each gives."""
        return tuple((form(s, k), k) for (s, _), k in zip(self.parts, self.counts(n), strict=True))

    def sample(self, n: int) -> Batch:
        """`n` rows per seed, part after part."""
        return fields(self.draw(n))

    def draw(self, n: int) -> Packed | Batch:
        """The same, packed if all parts are."""
        counts = zip(self.parts, self.counts(n), strict=True)
        drawn = [_draw(source, k) for (source, _), k in counts if k]
        if packed := _alike(drawn):
            return Packed(torch.cat([x.rows for x in packed], -2), packed[0].layout)
        return cat([fields(x) for x in drawn])


class Youngest:
    """The latest `rows` rows of each seed, as if the buffer's capacity were `rows`."""

    def __init__(self, buffer: ReplayBuffer, rows: int):
        self.buffer = buffer
        self.rows = rows

    def __len__(self) -> int:
        return min(self.rows, len(self.buffer))

    def form(self, n: int) -> Hashable:
        """The buffer, and how far back it is asked."""
        return (id(self.buffer), self.rows)

    def sample(self, n: int) -> Batch:
        """`n` rows per seed, uniformly with replacement."""
        return self.buffer.sample(n, self.rows)

    def draw(self, n: int) -> Packed:
        """The same, packed."""
        return self.buffer.gather(self.buffer.draw(n, self.rows))


class Blend:
    """Offline and online rows, each offline with probability `share` and then uniform among its kind.

    With two levels of priority this is exactly prioritised sampling, at a cost that does not depend on the
    number of rows. Offline rows that are `Prioritised` are drawn by their priorities among each other. The
    share is 1 while nothing is online.
    """

    def __init__(self, offline: TransitionDataset | Prioritised, online: ReplayBuffer, share: float):
        self.offline = offline
        self._data = offline.data if isinstance(offline, Prioritised) else offline
        self.online = online
        # on the device, and written in place: what has captured `sample` follows the share
        self._chance = torch.zeros((), device=offline.index.device)
        self.set(share)

    def set(self, share: float) -> None:
        """Draw with this share from now on."""
        self.share = 1.0 if len(self.online) == 0 else share
        self._chance.fill_(self.share)

    @property
    def weighted_rows(self) -> Sequence[tuple[TransitionDataset | Prioritised | ReplayBuffer, float]]:
        """Both kinds with their probabilities, as `fit` takes them."""
        return [(self.offline, self.share), (self.online, 1 - self.share)]

    def __len__(self) -> int:
        return len(self._data) + len(self.online)

    def form(self, n: int) -> Hashable:
        """The rows, and whether they are of one kind; a share of both is a tensor."""
        return (id(self), self.share if self.share in (0, 1) else None)

    def sample(self, n: int) -> Batch:
        """`n` rows per seed, each offline with probability `share`."""
        return fields(self.draw(n))

    def draw(self, n: int) -> Packed | Batch:
        """The same, packed if both kinds keep the same columns."""
        if self.share == 1:
            return dataset.gather(self._data, self._old(n))
        if self.share == 0:
            return _draw(self.online, n)
        old, new = self._old(n), self.online.draw(n)
        is_old = torch.rand(old.shape, device=old.device) < self._chance
        # a row that is not taken is read at the first place, which stays in the cache
        kinds: list[Packed | Batch] = [
            dataset.gather(self._data, torch.where(is_old, old, self._data.index[0])),
            self.online.gather(torch.where(is_old, 0, new)),
        ]
        if packed := _alike(kinds):
            a, b = (x.rows for x in packed)
            return Packed(torch.where(is_old.unsqueeze(-1), a, b), packed[0].layout)

        def pick(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(is_old.unsqueeze(-1) if a.dim() > is_old.dim() else is_old, a, b)

        return combine(pick, [fields(x) for x in kinds])

    def _old(self, n: int) -> Tensor:
        """Numbers of `n` offline rows, `(*S, n)`."""
        rows = self.offline
        return rows.draw(n) if isinstance(rows, Prioritised) else dataset.draw(rows, n)


def fields(drawn: Packed | Batch) -> Batch:
    """The fields of rows that were drawn."""
    return drawn.batch if isinstance(drawn, Packed) else drawn


def _draw(source: Any, n: int) -> Packed | Batch:
    """`n` rows per seed of a source, packed if it can."""
    if isinstance(source, TransitionDataset):
        return dataset.gather(source, dataset.draw(source, n))
    if isinstance(source, ReplayBuffer):
        return source.gather(source.draw(n))
    if isinstance(source, Mix | Youngest | Blend):
        return source.draw(n)
    batch: Batch = source.sample(n)
    return batch


def _alike(drawn: Sequence[Packed | Batch]) -> list[Packed]:
    """All of them if they are packed in the same columns, else none."""
    packed = [x for x in drawn if isinstance(x, Packed)]
    same = len(packed) == len(drawn) and all(x.layout.widths == packed[0].layout.widths for x in packed)
    return packed if same else []
