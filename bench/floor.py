"""The matrix products of a work and nothing else: nothing that multiplies in this precision is faster."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SECONDS = 0.04
"""About how long a product is repeated for one of the five measurements of its time."""


@dataclass(frozen=True)
class Net:
    """Passes through networks that work side by side.

    passes: `f` forward, `w` gradient of the weights, `x` gradient of the inputs of all layers but the first,
    `X` of all layers.
    """

    members: int
    rows: int
    sizes: tuple[int, ...]
    passes: str
    share: float = 1.0  # how often it is done in a unit of the work: an actor that learns in every 4th, 0.25


def floor(nets: Sequence[Net], precision: str) -> float:
    """CPU seconds of the products of one unit of work."""
    total = 0.0
    for net in nets:
        for i, (n_in, n_out) in enumerate(pairwise(net.sizes)):
            passes = net.passes.lower() if i or "X" in net.passes else net.passes.replace("x", "")
            for kind in passes:
                total += net.share * product(net.members, net.rows, n_in, n_out, kind, precision)
    return total


@cache
def product(members: int, rows: int, n_in: int, n_out: int, kind: str, precision: str) -> float:
    """CPU seconds of one batched product, the median of five measurements."""
    dtype = DTYPES[precision]
    x, w, g = (
        torch.randn(members, *shape).to(dtype) for shape in ((rows, n_in), (n_in, n_out), (rows, n_out))
    )
    a, b = {"f": (x, w), "w": (x.mT, g), "x": (g, w.mT)}[kind]
    out = torch.empty(members, a.shape[-2], b.shape[-1], dtype=dtype)

    def once() -> object:
        return torch.bmm(a, b, out=out)

    n = max(3, round(SECONDS / max(1e-6, min(_seconds(once, 1) for _ in range(3)))))
    return sorted(_seconds(once, n) for _ in range(5))[2]


def _seconds(step: Callable[[], object], n: int) -> float:
    start = time.process_time()
    for _ in range(n):
        step()
    return (time.process_time() - start) / n
