"""What float32, in which observations are kept, loses of those that a file holds in more.

Near 1.76e9 (a time in seconds) neighbouring float32 numbers are 128 apart, near 4.5e6 (a coordinate in
metres) half a metre: steps shorter than that become 0 or jumps. No network gets them back; the cure is to
subtract an offset before they are stored.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

Block = tuple[np.ndarray, np.ndarray]

NOISE = 2.0**-46
"""A change of a number by less than this share of it is what float64 itself rounds."""
SHOWN = 5
"""How many dimensions a message names."""


class LostPrecision(UserWarning):
    """Steps of observations are lost in float32; `text` says where, without the name of the file."""

    def __init__(self, where: object, text: str):
        super().__init__(f"{where}: {text}")
        self.text = text


def warn(fields: Mapping[str, Any], parts: list[slice], where: object) -> None:
    """Warn with `LostPrecision` of dimensions whose steps float32 loses; `fields` are arrays or HDF5 datasets
    as stored.

    A step leads to the row's own next observation, or without any to the row below. Each dimension's steps
    are counted, as stored and in float32, one block after the other. A dimension is named if float32 turns
    some of its steps into 0 and either its rounding error is above a tenth of what the steps are (root mean
    square), or hardly a step, below one in fifty, keeps its size to one half: the few steps that do are then
    resets. A body at rest that trembles by 1e-9 in a record in which it also moves is none.
    """
    obs = fields["observations"]
    if obs.dtype.kind not in "iuf" or np.can_cast(obs.dtype, np.float32):
        return
    steps, kept, good, error, size = np.zeros((5, obs.shape[1]))
    for before, after in _steps(obs, fields.get("next_observations"), parts):
        with np.errstate(invalid="ignore", over="ignore"):
            exact, rounded = after - before, _rounded(after) - _rounded(before)
            moved = np.abs(exact) > NOISE * np.abs(before)  # false where the next observation is NaN
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
    """Collect what `warn` says meanwhile instead of showing it; other warnings are shown at the end."""
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
    """Observations and those that followed, float64, block by block."""
    for part in parts:
        if next_obs is None:
            block = np.asarray(obs[part.start : part.stop + 1], np.float64)
            yield block[:-1], block[1:]
        else:
            yield np.asarray(obs[part], np.float64), np.asarray(next_obs[part], np.float64)


def _rounded(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32).astype(np.float64)
