"""The layout of transitions on disk: D4RL's, in HDF5, with one row per step and every field the same length.

Required: `observations (N, D)`, `actions (N, A)`, `rewards (N,)`, `terminals (N,)`. Optional: `timeouts (N,)`,
`next_observations (N, D)`, in which a row of NaN says that what followed is unknown. What describes the whole set (the
environment's id, who collected it) are attributes of the file. Other keys are ignored.

Files are written under a temporary name and moved into place, so a reader sees the old set or the new one, never half
of one. Each chunk carries a Fletcher checksum: HDF5 itself reads a damaged payload without a word. Nothing is
compressed: float observations shrink by a tenth or two and then load twenty times slower.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from mbo2o.types import UserError

Fields = dict[str, np.ndarray]
Attr = str | int | float
Attrs = dict[str, Attr]

FORMAT = "mbo2o"
VERSION = 1

LAYOUT: dict[str, tuple[type, int]] = {
    "observations": (np.float32, 2),
    "actions": (np.float32, 2),
    "rewards": (np.float32, 1),
    "terminals": (np.bool_, 1),
    "timeouts": (np.bool_, 1),
    "next_observations": (np.float32, 2),
}
"""Each field's dtype and number of axes."""

OPTIONAL = ("timeouts", "next_observations")

CHUNK_ROWS = 4096
ACTION_TOLERANCE = 1e-4
"""How far rounding may carry an action out of [-1, 1] before it counts as a mistake of units."""


def check(fields: Mapping[str, np.ndarray], where: object) -> Fields:
    """Return `fields` in the layout's order and dtypes, actions clipped to [-1, 1]; `where` names them in errors.

    Raises `UserError` for a missing or unknown field, unequal lengths, a wrong number of axes, values that are not
    finite (or, for flags, not 0 or 1), and actions further than `ACTION_TOLERANCE` outside [-1, 1].
    """
    if missing := [key for key in LAYOUT if key not in fields and key not in OPTIONAL]:
        found = ", ".join(fields) or "no field at all"
        raise UserError(f"{where}: {missing[0]!r} is missing (found {found}); add it, one row per step")
    if unknown := [key for key in fields if key not in LAYOUT]:
        raise UserError(f"{where}: {unknown[0]!r} is not a field; the fields are {', '.join(LAYOUT)}")
    out = {key: _cast(fields[key], key, where) for key in LAYOUT if key in fields}

    rows = len(out["observations"])
    if rows == 0:
        raise UserError(f"{where}: 'observations' has no rows; a dataset needs at least one transition")
    for key, x in out.items():
        if len(x) != rows:
            raise UserError(
                f"{where}: {key!r} has {len(x)} rows where 'observations' has {rows}; give every field one row per step"
            )
    _check_next(out, where)
    low, high = out["actions"].min(), out["actions"].max()
    if max(-low, high) > 1 + ACTION_TOLERANCE:
        raise UserError(f"{where}: 'actions' lie in [{low:.4g}, {high:.4g}], expected [-1, 1]; rescale them")
    out["actions"] = out["actions"].clip(-1, 1)
    return out


def _cast(x: np.ndarray, key: str, where: object) -> np.ndarray:
    dtype, ndim = LAYOUT[key]
    raw = np.asarray(x)
    if raw.dtype.kind not in "biuf":
        raise UserError(f"{where}: {key!r} has dtype {raw.dtype}, expected {np.dtype(dtype)}; store numbers")
    if raw.ndim != ndim or (ndim == 2 and raw.shape[1] == 0):
        expected = "(rows,)" if ndim == 1 else "(rows, features)"
        raise UserError(f"{where}: {key!r} has shape {raw.shape}, expected {expected}; reshape it")
    if dtype is np.bool_:
        if raw.dtype != np.bool_ and not np.isin(raw, (0, 1)).all():
            raise UserError(f"{where}: {key!r} holds values other than 0 and 1; store flags")
        return raw.astype(np.bool_)
    with np.errstate(over="ignore"):
        cast: np.ndarray = raw.astype(dtype)
    if key != "next_observations" and not (finite := np.isfinite(cast)).all():
        row = int(np.argmin(finite.reshape(len(cast), -1).all(1)))
        raise UserError(f"{where}: {key!r} is not a finite float32 in row {row}; drop or mend that episode")
    return cast


def _check_next(out: Fields, where: object) -> None:
    if "next_observations" not in out:
        return
    obs, next_obs = out["observations"], out["next_observations"]
    if obs.shape != next_obs.shape:
        raise UserError(
            f"{where}: 'next_observations' has shape {next_obs.shape}, expected that of 'observations', {obs.shape}"
        )
    bad = ~np.isfinite(next_obs).all(1) & ~np.isnan(next_obs).all(1)
    if bad.any():
        raise UserError(
            f"{where}: 'next_observations' is neither finite nor all NaN (unknown) in row {int(np.argmax(bad))}; "
            "drop or mend that episode"
        )


def write(path: str | os.PathLike[str], fields: Mapping[str, np.ndarray], attrs: Mapping[str, Attr]) -> None:
    """Store `fields` and `attrs` at `path`, whole or not at all; the same content gives the same bytes.

    Raises `UserError` for what `check` refuses and for what the file system refuses.
    """
    path = Path(path)
    checked = check(fields, path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with h5py.File(temporary, "w") as file:
            for key, x in checked.items():
                chunks = (min(CHUNK_ROWS, len(x)), *x.shape[1:])
                file.create_dataset(key, data=x, chunks=chunks, fletcher32=True, track_times=False)
            for name, value in sorted({**attrs, "format": FORMAT, "schema": VERSION}.items()):
                file.attrs[name] = value
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except (OSError, RuntimeError) as error:  # h5py meets a full disk with a RuntimeError
        raise UserError(f"{path}: cannot be written ({_one_line(error)}); is the folder there, with room?") from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[h5py.File]:
    """The HDF5 file at `path`, read-only; what HDF5 finds wrong with it becomes a `UserError`."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; check the path")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: not a readable HDF5 file ({_one_line(error)}); fetch or write it anew") from error


def read(path: str | os.PathLike[str]) -> tuple[Fields, Attrs]:
    """Load what `path` holds of the layout, checked, and its scalar attributes.

    Raises `UserError` for a file that is missing, is not HDF5, is cut short, fails a checksum, comes from a newer
    version of the layout, or whose content `check` refuses.
    """
    with opened(path) as file:
        attrs = scalars(file.attrs)
        keys = list(file)
        fields = {key: file[key][()] for key in LAYOUT if isinstance(file.get(key), h5py.Dataset)}

    version = attrs.pop("schema", VERSION) if attrs.pop("format", None) == FORMAT else VERSION
    if version != VERSION:
        raise UserError(f"{path}: layout version {version}, expected {VERSION}; update mbo2o")
    if "observations" not in fields and "episode_0" in keys:
        raise UserError(f"{path}: Minari's own storage, not a D4RL file; load it by its Minari id")
    return check(fields, path), attrs


def scalars(items: Mapping[str, object]) -> Attrs:
    """The entries of an HDF5 attribute set that are one string or number; text as `str`, numbers as Python's."""
    out: Attrs = {}
    for name, value in items.items():
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        elif isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, str | int | float):
            out[name] = value
    return out


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
