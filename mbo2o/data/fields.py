"""The fields of a dataset: their names, dtypes and shapes, and the check that arrays are such fields.

There is one row per step, in time order, and every field has the same number of rows. Required are
`observations (N, D)`, `actions (N, A)` in [-1, 1], `rewards (N,)` and `terminals (N,)`. Optional are
`timeouts (N,)` and `next_observations (N, D)`, where a row of NaN means that the next observation is unknown.
The names are D4RL's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from mbo2o.data import precision
from mbo2o.data.actions import Actions
from mbo2o.types import UserError

Fields = dict[str, np.ndarray]
Attr = str | int | float
Attrs = dict[str, Attr]
"""What describes a dataset as a whole, such as `env_id`."""
New = Callable[[str, tuple[int, ...], Any], np.ndarray]
"""(name, shape, dtype) → an array to be filled, in memory (`in_ram`) or in a file (`store.mapped`)."""

FIELDS: dict[str, tuple[type, int]] = {
    "observations": (np.float32, 2),
    "actions": (np.float32, 2),
    "rewards": (np.float32, 1),
    "terminals": (np.bool_, 1),
    "timeouts": (np.bool_, 1),
    "next_observations": (np.float32, 2),
}
"""The dtype and the number of axes of each field."""
OPTIONAL = ("timeouts", "next_observations")
VECTORS = tuple(key for key, (_, ndim) in FIELDS.items() if ndim == 1)
"""The fields with one number per step."""

AS_GIVEN = Actions()
"""Actions in [-1, 1], as most files have them."""
BLOCK = 1 << 20
"""How many numbers are processed at a time, so that a dataset may be larger than memory."""


def in_ram(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A `New` array in memory."""
    return np.empty(shape, dtype)


def blocks(rows: int, width: int = 8, chunk: int = 1) -> Iterator[slice]:
    """Consecutive slices of rows from 0 on: about `BLOCK` numbers each, `width` per row, in whole chunks."""
    step = max(1, BLOCK // (width * chunk)) * chunk
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def check_fields(
    fields: Mapping[str, Any],
    where: object,
    new: New = in_ram,
    flatten: bool = False,
    units: Actions = AS_GIVEN,
) -> Fields:
    """Return `fields` in the order and the dtypes of `FIELDS`, with actions in [-1, 1].

    The input is anything that NumPy reads as an array, or HDF5 datasets, which are read one block at a time;
    the output is `new` arrays. Actions `(N, *shape)` become `(N, A)` in C order.

    where: names the dataset in errors. flatten: columns `(N, 1)` of rewards and flags count as `(N,)`.
    units: the units of the actions.

    Raises `UserError` for a missing or unknown field, unequal lengths, a wrong number of axes, values that
    are not finite (for flags: not 0 or 1), and actions outside [-1, 1]. Warns with `LostPrecision` where
    float32 cannot tell observations apart.
    """
    if missing := [key for key in FIELDS if key not in fields and key not in OPTIONAL]:
        found = ", ".join(fields) or "no field at all"
        raise UserError(f"{where}: {missing[0]!r} is missing (found {found}); add it, one row per step")
    if unknown := [key for key in fields if key not in FIELDS]:
        raise UserError(f"{where}: {unknown[0]!r} is not a field; the fields are {', '.join(FIELDS)}")
    fields = {key: _array(fields[key]) for key in FIELDS if key in fields}
    out = {key: _cast(x, key, where, new, flatten, units) for key, x in fields.items()}

    rows = len(out["observations"])
    if rows == 0:
        raise UserError(f"{where}: 'observations' has no rows; a dataset needs at least one transition")
    for key, x in out.items():
        if len(x) != rows:
            raise UserError(
                f"{where}: {key!r} has {len(x)} rows where 'observations' has {rows}; "
                "give every field one row per step"
            )
    _check_next_observations(out, where)
    units.settle(out["actions"], list(blocks(rows, out["actions"].shape[1])), where)
    parts = list(blocks(rows, out["observations"].shape[1], _chunk(fields["observations"])))
    precision.warn(fields, parts, where)
    return out


def _array(x: Any) -> Any:
    """An array, or the HDF5 dataset itself (`read_direct` is its own), which is then read in blocks."""
    return x if hasattr(x, "read_direct") else np.asarray(x)


def _chunk(x: Any) -> int:
    """How many rows an HDF5 dataset stores together; 1 for an array."""
    chunks: tuple[int, ...] = getattr(x, "chunks", None) or (1,)
    return chunks[0]


def _shape(x: Any, key: str, flatten: bool) -> tuple[int, ...]:
    """The shape that the checked array has."""
    if flatten and key in VECTORS and x.shape[1:] == (1,):
        return x.shape[:1]
    return (x.shape[0], math.prod(x.shape[1:])) if key == "actions" and len(x.shape) > 2 else x.shape


def _cast(x: Any, key: str, where: object, new: New, flatten: bool, units: Actions) -> np.ndarray:
    """Copy one field into a `new` array of its dtype, one block at a time."""
    dtype, ndim = FIELDS[key]
    shape = _shape(x, key, flatten)
    if x.dtype.kind not in "biuf":
        raise UserError(f"{where}: {key!r} has dtype {x.dtype}, expected {np.dtype(dtype)}; store numbers")
    if len(shape) != ndim or (ndim == 2 and shape[1] == 0):
        expected = "(rows,)" if ndim == 1 else "(rows, features)"
        raise UserError(f"{where}: {key!r} has shape {shape}, expected {expected}; reshape it")
    if key == "actions":
        if x.dtype.kind != "f":
            problem = f"'actions' has dtype {x.dtype}, expected float32; discrete actions are not supported"
            raise UserError(f"{where}: {problem}")
        units.ready(shape[1], where)
    out = new(key, shape, dtype) if len(x) else in_ram(key, shape, dtype)  # a file cannot be empty
    for rows in blocks(len(x), math.prod(shape[1:]), _chunk(x)):
        raw = x[rows].reshape(-1, *shape[1:])
        raw = units.to_unit(raw) if key == "actions" else raw
        convert = _flags if dtype is np.bool_ else _numbers
        out[rows] = convert(raw, key, where, rows.start)
    return out


def _flags(raw: np.ndarray, key: str, where: object, start: int) -> np.ndarray:
    if raw.dtype != np.bool_ and not (flags := np.isin(raw, (0, 1))).all():
        row = int(np.argmin(flags))
        raise UserError(
            f"{where}: {key!r} holds values other than 0 and 1 ({raw[row]} in row {start + row}); store flags"
        )
    return raw.astype(np.bool_, copy=False)


def _numbers(raw: np.ndarray, key: str, where: object, start: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast: np.ndarray = raw.astype(np.float32, copy=False)
    if key != "next_observations" and not (finite := np.isfinite(cast)).all():
        row = int(np.argmin(finite.reshape(len(cast), -1).all(1)))
        found = raw[row][~finite[row]].flat[0]
        raise UserError(
            f"{where}: {key!r} is not a finite float32 in row {start + row} ({found}); "
            "drop or mend that episode"
        )
    return cast


def _check_next_observations(out: Fields, where: object) -> None:
    if "next_observations" not in out:
        return
    obs, next_obs = out["observations"], out["next_observations"]
    if obs.shape != next_obs.shape:
        raise UserError(
            f"{where}: 'next_observations' has shape {next_obs.shape}, "
            f"expected that of 'observations', {obs.shape}"
        )
    for rows in blocks(*next_obs.shape):
        bad = ~np.isfinite(next_obs[rows]).all(1) & ~np.isnan(next_obs[rows]).all(1)
        if bad.any():
            raise UserError(
                f"{where}: 'next_observations' is neither finite nor all NaN (unknown) in row "
                f"{rows.start + int(np.argmax(bad))}; drop or mend that episode"
            )
