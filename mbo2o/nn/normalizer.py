"""Statistics of inputs, as buffers of the module that uses them: they are saved and copied with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


class Normalizer(nn.Module):
    """Maps x to (x - mean) / std with statistics `(*S, 1, D)`, broadcast over members and batch."""

    mean: Tensor
    std: Tensor

    def __init__(self, seeds: tuple[int, ...], dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(*seeds, 1, dim))
        self.register_buffer("std", torch.ones(*seeds, 1, dim))

    def _like(self, stat: Tensor, x: Tensor) -> Tensor:
        return stat if x.dim() <= stat.dim() else stat.unsqueeze(-3)  # x has a member axis

    def forward(self, x: Tensor) -> Tensor:
        """`(*S, B, D)` or `(*S, M, B, D)`, raw → normalised."""
        return (x - self._like(self.mean, x)) / self._like(self.std, x)

    def inverse(self, x: Tensor) -> Tensor:
        """Normalised → raw."""
        return x * self._like(self.std, x) + self._like(self.mean, x)


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation over the batch, `(*S, B, D)` → `(*S, 1, D)`; constant dimensions get 1 (MOPO)."""
    return mixture_statistics([x], [1.0])


def block_statistics(blocks: Callable[[], Iterable[Tensor]]) -> tuple[Tensor, Tensor]:
    """`statistics` of all rows of `blocks()`, each block `(B, D)`; the blocks are read twice."""
    n = 0
    total = squares = torch.zeros((), dtype=torch.float64)
    # added up one by one: small results between large blocks would keep malloc from reusing their memory
    for x in blocks():
        n += x.shape[0]
        total = total + x.sum(0, keepdim=True, dtype=torch.float64)
    mean = total / n
    for x in blocks():
        squares = squares + (x.double() - mean).square().sum(0, keepdim=True)  # E[x²] - E[x]² would cancel
    return _not_constant(mean.float(), (squares / n).sqrt().float())


def mixture_statistics(parts: list[Tensor], weights: list[float]) -> tuple[Tensor, Tensor]:
    """`statistics` of a mixture in which part i has weight i, whatever its size."""

    def average(xs: list[Tensor]) -> Tensor:
        means = [x.mean(-2, keepdim=True) * (w / sum(weights)) for x, w in zip(xs, weights, strict=True)]
        return torch.stack(means).sum(0)

    mean = average(parts)
    std = average([(x - mean).square() for x in parts]).sqrt()  # E[x²] - E[x]² would cancel
    return _not_constant(mean, std)


def _not_constant(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    rounding = 1e-6 * (1 + mean.abs())  # float32 cannot tell less from a constant
    return mean, torch.where(std < rounding, torch.ones_like(std), std)
