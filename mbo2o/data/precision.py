"""Detection of observations whose steps are lost when they are stored as float32.

Near 1.76e9 (a time in seconds) neighbouring float32 numbers are 128 apart, near 4.5e6 (a coordinate in
metres) half a metre. Steps shorter than that become 0 or jumps, and no network can recover them. The remedy
is to subtract an offset before the observations are stored.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

Block = tuple[np.ndarray, np.ndarray]

NOISE = 2.0**-46
"""A change smaller than this share of a number is rounding in float64."""
SHOWN = 5
"""How many dimensions a message lists."""


class LostPrecision(UserWarning):
    """Steps of observations are lost in float32; `text` says in which dimensions, without the file's name."""

    def __init__(self, where: object, text: str):
        super().__init__(f"{where}: {text}")
        self.text = text


def warn(fields: Mapping[str, Any], parts: list[slice], where: object) -> None:
    """Warn with `LostPrecision` of dimensions whose steps float32 loses.

    `fields` are arrays or HDF5 datasets as stored; `parts` are the blocks in which they are read. A step
    leads to the row's own next observation, or to the row below if there are no next observations. The
    message lists a dimension if float32 turns some of its steps into 0 and one of two things holds: the
    rounding error is more than a tenth of the steps (root mean square), or fewer than one step in fifty keeps
    its size to within one half (these few are then resets). A body that trembles by 1e-9 in some rows and
    moves in others does not count.
    """
    obs = fields["observations"]
    if obs.dtype.kind not in "iuf" or np.can_cast(obs.dtype, np.float32):
        return
    steps, kept, good, error, size = np.zeros((5, obs.shape[1]))
    for before, after in _steps(obs, fields.get("next_observations"), parts):
        with np.errstate(invalid="ignore", over="ignore"):
            exact, rounded = after - before, _rounded(after) - _rounded(before)
            moved = np.abs(exact) > NOISE * np.abs(before)  # false where NaN
            off = np.abs(rounded - exact)
        steps += moved.sum(0)
        kept += (moved & (rounded != 0)).sum(0)
        good += (moved & (off <= np.abs(exact) / 2)).sum(0)
        error += (np.where(moved, off, 0) ** 2).sum(0)
        size += (np.where(moved, exact, 0) ** 2).sum(0)
    lost = np.flatnonzero((kept < steps) & ((error > 0.01 * size) | (good < 0.02 * steps)))
    if len(lost):
        counts = [
            f"dimension {d} changes in {steps[d]:.0f} rows, in float32 in {kept[d]:.0f}" for d in lost[:SHOWN]
        ]
        more = f" (and {len(lost) - SHOWN} dimensions more)" if len(lost) > SHOWN else ""
        text = (
            f"float32 cannot tell observations apart: {'; '.join(counts)}{more}: subtract an offset from them"
        )
        warnings.warn(LostPrecision(where, text), stacklevel=5)


@contextmanager
def heard() -> Iterator[list[str]]:
    """Collect the texts of `LostPrecision` warnings; other warnings are shown at the end."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    for w in caught:
        if isinstance(w.message, LostPrecision):
            texts.append(w.message.text)
        else:
            warnings.warn(w.message, stacklevel=3)


def _steps(obs: Any, next_obs: Any, parts: list[slice]) -> Iterator[Block]:
    """Observations and the next observations, float64, block by block."""
    for part in parts:
        if next_obs is None:
            block = np.asarray(obs[part.start : part.stop + 1], np.float64)
            yield block[:-1], block[1:]
        else:
            yield np.asarray(obs[part], np.float64), np.asarray(next_obs[part], np.float64)


def _rounded(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32).astype(np.float64)
