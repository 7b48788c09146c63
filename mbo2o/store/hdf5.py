"""The layout of transitions on disk: D4RL's, in HDF5, with one row per step and every field the same length.

Required: `observations (N, D)`, `actions (N, A)` in [-1, 1], `rewards (N,)`, `terminals (N,)`. Optional: `timeouts (N,)`,
`next_observations (N, D)`, in which a row of NaN says that what followed is unknown. What describes the whole set (the
environment's id, who collected it) are attributes of the file. Other keys are ignored.

Files are written under a temporary name and moved into place, so a reader sees the old set or the new one, never half
of one. Headers and chunks carry checksums: HDF5 itself reads a damaged payload without a word. Nothing is compressed: float
observations shrink by a tenth or two and then load twenty times slower. Files of others are read once by a process that
may die of them (`firstlook`) before this one opens them.
"""

from __future__ import annotations

import math
import os
import signal
import stat
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mbo2o.data import precision
from mbo2o.data.actions import Actions
from mbo2o.store import firstlook
from mbo2o.types import UserError

Fields = dict[str, np.ndarray]
Attr = str | int | float
Attrs = dict[str, Attr]
New = Callable[[str, tuple[int, ...], Any], np.ndarray]
"""(name, shape, dtype) → an array to be filled: in memory (`in_ram`), or in a file (`mapped`), where there is more room."""

FORMAT = "mbo2o"
VERSION = 1
CHECKSUM = "attributes_crc32"

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

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAGIC = {
    b"\x89PNG": "a PNG image",
    b"PK": "a zip archive",
    b"\x1f\x8b": "packed with gzip",
    b"\x93NUMPY": "a NumPy array",
}
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
}
_sound: set[tuple[int, ...]] = set()  # files that were looked at, or written, by this process

CHUNK_ROWS = 4096
AS_GIVEN = Actions()
"""Actions in [-1, 1], as most files have them."""
BLOCK = 1 << 20
"""Numbers that are worked on at a time, so that what is read may be larger than memory."""


def in_ram(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A `New` array in memory."""
    return np.empty(shape, dtype)


def blocks(rows: int, width: int = 8, chunk: int = 1) -> Iterator[slice]:
    """Slices that follow each other from row 0 to `rows`, each of about `BLOCK` numbers, `width` a row, in whole chunks."""
    step = max(1, BLOCK // (width * chunk)) * chunk
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def check(
    fields: Mapping[str, Any],
    where: object,
    new: New = in_ram,
    flatten: bool = False,
    how: Actions = AS_GIVEN,
) -> Fields:
    """Return `fields` in the layout's order and dtypes, actions in [-1, 1]; `where` names them in errors.

    Arrays or HDF5 datasets come in, of which a block at a time is read; `new` ones go out. flatten: columns `(N, 1)` of rewards
    and flags count as `(N,)`. Actions `(N, *shape)` become `(N, A)` in C order, and `how` says in which units they come.

    Raises `UserError` for a missing or unknown field, unequal lengths, a wrong number of axes, values that are not
    finite (or, for flags, not 0 or 1), and actions outside [-1, 1]. Warns with `LostPrecision` of observations that float32
    cannot tell apart.
    """
    if missing := [key for key in LAYOUT if key not in fields and key not in OPTIONAL]:
        found = ", ".join(fields) or "no field at all"
        raise UserError(f"{where}: {missing[0]!r} is missing (found {found}); add it, one row per step")
    if unknown := [key for key in fields if key not in LAYOUT]:
        raise UserError(f"{where}: {unknown[0]!r} is not a field; the fields are {', '.join(LAYOUT)}")
    fields = {
        key: x if isinstance(x := fields[key], h5py.Dataset) else np.asarray(x)
        for key in LAYOUT
        if key in fields
    }
    out = {key: _cast(x, key, where, new, flatten, how) for key, x in fields.items()}

    rows = len(out["observations"])
    if rows == 0:
        raise UserError(f"{where}: 'observations' has no rows; a dataset needs at least one transition")
    for key, x in out.items():
        if len(x) != rows:
            raise UserError(
                f"{where}: {key!r} has {len(x)} rows where 'observations' has {rows}; give every field one row per step"
            )
    _check_next(out, where)
    how.settle(out["actions"], list(blocks(rows, out["actions"].shape[1])), where)
    chunks = getattr(fields["observations"], "chunks", None) or (1,)
    precision.warn(fields, list(blocks(rows, out["observations"].shape[1], chunks[0])), where)
    return out


def _shape(x: Any, key: str, flatten: bool) -> tuple[int, ...]:
    """The shape that the array is going to have."""
    if flatten and LAYOUT[key][1] == 1 and x.shape[1:] == (1,):
        return x.shape[:1]
    return (x.shape[0], math.prod(x.shape[1:])) if key == "actions" and len(x.shape) > 2 else x.shape


def _cast(x: Any, key: str, where: object, new: New, flatten: bool, how: Actions) -> np.ndarray:
    dtype, ndim = LAYOUT[key]
    shape = _shape(x, key, flatten)
    if x.dtype.kind not in "biuf":
        raise UserError(f"{where}: {key!r} has dtype {x.dtype}, expected {np.dtype(dtype)}; store numbers")
    if len(shape) != ndim or (ndim == 2 and shape[1] == 0):
        expected = "(rows,)" if ndim == 1 else "(rows, features)"
        raise UserError(f"{where}: {key!r} has shape {shape}, expected {expected}; reshape it")
    if key == "actions" and x.dtype.kind != "f":
        raise UserError(
            f"{where}: 'actions' has dtype {x.dtype}, expected float32; discrete actions are not supported"
        )
    if key == "actions":
        how.ready(shape[1], where)
    out = new(key, shape, dtype) if len(x) else in_ram(key, shape, dtype)  # files cannot be of no size
    chunks = getattr(x, "chunks", None) or (1,)
    for rows in blocks(len(x), math.prod(shape[1:]), chunks[0]):
        raw = x[rows].reshape(-1, *shape[1:])
        raw = how.to_unit(raw) if key == "actions" else raw
        out[rows] = (
            _flags(raw, key, where, rows.start)
            if dtype is np.bool_
            else _numbers(raw, key, where, rows.start)
        )
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
            f"{where}: {key!r} is not a finite float32 in row {start + row} ({found}); drop or mend that episode"
        )
    return cast


def _check_next(out: Fields, where: object) -> None:
    if "next_observations" not in out:
        return
    obs, next_obs = out["observations"], out["next_observations"]
    if obs.shape != next_obs.shape:
        raise UserError(
            f"{where}: 'next_observations' has shape {next_obs.shape}, expected that of 'observations', {obs.shape}"
        )
    for rows in blocks(*next_obs.shape):
        bad = ~np.isfinite(next_obs[rows]).all(1) & ~np.isnan(next_obs[rows]).all(1)
        if bad.any():
            raise UserError(
                f"{where}: 'next_observations' is neither finite nor all NaN (unknown) in row "
                f"{rows.start + int(np.argmax(bad))}; drop or mend that episode"
            )


def write(path: str | os.PathLike[str], fields: Mapping[str, np.ndarray], attrs: Mapping[str, Attr]) -> None:
    """Store `fields` and `attrs` at `path`, whole or not at all; the same content gives the same bytes.

    Raises `UserError` for what `check` refuses and for what the file system refuses.
    """
    path = Path(path)
    checked = check(fields, path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # since version 1.10 of HDF5 headers carry checksums, too; in h5py's default, the oldest, a flipped bit can go unseen
        with h5py.File(temporary, "w", libver=("v110", "v110")) as file:
            for key, x in checked.items():
                chunks = (min(CHUNK_ROWS, len(x)), *x.shape[1:])
                file.create_dataset(key, data=x, chunks=chunks, fletcher32=True, track_times=False)
            checked_attrs = {**attrs, CHECKSUM: _checksum(attrs)} if attrs else {}
            for name, value in sorted({**checked_attrs, "format": FORMAT, "schema": VERSION}.items()):
                file.attrs[name] = value
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
        _sound.add(identity(path))
    except (OSError, RuntimeError) as error:  # h5py meets a full disk with a RuntimeError
        raise UserError(
            f"{path}: cannot be written ({_one_line(error)}); is the folder there, with room?"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have the disk hold what a file, or a folder's list of files, is now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[h5py.File]:
    """The HDF5 file at `path`, read-only, once another process has read it and lived (see `firstlook`).

    Raises `UserError` for what is no HDF5 file, is damaged, in use by a writer, or larger than its bytes can account for.
    """
    path = Path(path)
    _check_sound(path)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{shown(path)}: not a readable HDF5 file ({_one_line(error)}); fetch or write it anew"
        ) from error


def _check_sound(path: Path) -> None:
    """Raise `UserError` unless a first look found nothing wrong, now or earlier in this process with the same content."""
    check_signature(path)
    content = identity(path)
    if content in _sound:
        return
    fault = _first_look(path)
    if fault is not None:
        raise UserError(f"{shown(path)}: {fault}")
    _sound.add(content)


def check_signature(path: Path) -> None:
    """Refuse what is no file or begins like no HDF5 file, without waiting on a pipe or a device."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = KINDS.get(stat.S_IFMT(mode), "something else")
            raise UserError(f"{shown(path)}: no such file ({kind} has that name); check the path")
        with open(path, "rb") as file:
            begin, at, size = file.read(8), 512, os.fstat(file.fileno()).st_size
            found = begin
            while found != SIGNATURE and at < size:  # HDF5 allows for a block of the user's before it
                file.seek(at)
                found, at = file.read(8), 2 * at
    except FileNotFoundError as error:
        raise UserError(f"{shown(path)}: no such file; check the path") from error
    except OSError as error:
        raise UserError(
            f"{shown(path)}: cannot be opened ({error.strerror}); check the path and its permissions"
        ) from error
    if found != SIGNATURE:
        what = next(
            (kind for magic, kind in MAGIC.items() if begin.startswith(magic)), f"begins with {begin!r}"
        )
        raise UserError(
            f"{shown(path)}: not a readable HDF5 file ({what if size else 'it is empty'}); fetch or write it anew"
        )


def _first_look(path: Path) -> str | None:
    """What `firstlook` says is wrong with the file, or what became of `firstlook`; None for a sound file."""
    paths = os.pathsep.join(p for p in sys.path if p)
    env = {
        **os.environ,
        "PYTHONPATH": paths,
        "PYTHONIOENCODING": "utf-8:replace",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, "-P", "-W", "ignore", firstlook.__file__, os.fspath(path), *LAYOUT]
    seconds = (
        60 + path.stat().st_size / 1e6
    )  # it limits its own CPU time; this is for a storage that does not answer
    try:
        look = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return f"cannot be read within {seconds:.0f} s; copy it to this machine"
    if look.returncode < 0:
        return f"not a readable HDF5 file (reading it {_death(-look.returncode)}); fetch or write it anew"
    said = " ".join((look.stdout or look.stderr).decode(errors="replace").splitlines()[-1:])
    return None if said == firstlook.SOUND else said or "cannot be read (the process that tried said nothing)"


def _death(number: int) -> str:
    name = signal.Signals(number).name
    return "came to no end" if number == signal.SIGPROF else f"killed the process that tried, with {name}"


def identity(path: Path) -> tuple[int, ...]:
    """Another one when the content is."""
    s = path.stat()
    return s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns


def shown(path: object) -> str:
    """A path in a message: what is not printable, line breaks for one, is escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(path))


def read(path: str | os.PathLike[str], new: New = in_ram, how: Actions = AS_GIVEN) -> tuple[Fields, Attrs]:
    """Load what `path` holds of the layout into `new` arrays, checked, and its scalar attributes.

    how: in which units its actions are, see `check`.

    Raises `UserError` for a file that is missing, is not HDF5, is cut short, fails a checksum, comes from a newer
    version of the layout, or whose content `check` refuses.
    """
    with opened(path) as file:
        attrs = scalars(file.attrs)
        version = attrs.pop("schema", VERSION) if attrs.pop("format", None) == FORMAT else VERSION
        if version != VERSION:
            raise UserError(f"{shown(path)}: layout version {version!r}, expected {VERSION}; update mbo2o")
        if CHECKSUM in attrs and attrs.pop(CHECKSUM) != _checksum(attrs):
            raise UserError(
                f"{shown(path)}: its attributes are not those that were written; fetch or write it anew"
            )
        if "observations" not in file and "episode_0" in file:
            raise UserError(f"{shown(path)}: Minari's own storage, not a D4RL file; load it by its Minari id")
        return check({key: file[key] for key in LAYOUT if key in file}, shown(path), new, how=how), attrs


def imports(env_id: object) -> bool:
    """Whether to make this environment imports a module that the id names (`module:Name-v0`); no file may bring that about."""
    return ":" in str(env_id) and not str(env_id).startswith("gymnasium_robotics:")


def _checksum(attrs: Mapping[str, Attr]) -> int:
    """Of the attributes, whose texts are the one part of a file that HDF5 keeps no checksum of."""
    return zlib.crc32(repr(sorted(scalars(attrs).items())).encode())


def scalars(items: Mapping[str, object]) -> Attrs:
    """The entries of an HDF5 attribute set that are one string or number; printable text as `str`, numbers as Python's."""
    out: Attrs = {}
    for name, value in items.items():
        if isinstance(value, str):
            value = value.encode(errors="surrogateescape")
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        elif isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, str | int | float):
            out[name] = value
    return out


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
