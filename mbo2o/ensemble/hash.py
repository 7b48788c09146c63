"""Numbers that look random and follow from integers alone: int64 arithmetic, which wraps, on any device.

The multipliers are those of SplitMix64 (Steele, Lea and Flood 2014) and of Knuth's MMIX generator.
"""

from __future__ import annotations

import torch
from torch import Tensor

GOLDEN = -7046029254386353131
"""2⁶⁴ divided by the golden ratio, as a signed odd number."""
_FIRST, _SECOND = -4658895280553007687, -7723592293110705685
_MMIX, _MMIX_SHIFT = 6364136223846793005, 1442695040888963407


def mix(x: Tensor) -> Tensor:
    """Scatter int64 numbers over their whole range (the finaliser of SplitMix64)."""
    x = (x ^ (x >> 30)) * _FIRST
    x = (x ^ (x >> 27)) * _SECOND
    return x ^ (x >> 31)


def unit(x: Tensor) -> Tensor:
    """The lowest 24 bits of int64 numbers as a float32 in [0, 1)."""
    return (x & 0xFFFFFF).to(torch.float32) / (1 << 24)


def row_hash(number: Tensor, salt: Tensor | int) -> Tensor:
    """A number in [0, 1) that follows from the number of a row and a salt; it decides how rows are split."""
    x = (number + 1) * GOLDEN + salt * _MMIX + _MMIX_SHIFT
    x = (x ^ (x >> 29)) * _FIRST
    return unit(x ^ (x >> 32))
