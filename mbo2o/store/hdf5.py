"""HDF5 files in D4RL's layout or in the compact one: the fields of `data.fields`, and attributes of the file.

Other keys are ignored. Files are written whole or not at all. Headers and chunks carry checksums, because
HDF5 itself reads a damaged payload without a complaint. Nothing is compressed: float observations shrink by a
tenth or two and then load twenty times slower. A process that may crash reads each file once (`firstlook`)
before this process opens it.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from mbo2o.data.actions import Actions
from mbo2o.data.fields import AS_GIVEN, FIELDS, Attr, Attrs, Fields, New, check_fields, in_ram
from mbo2o.store import compact, firstlook
from mbo2o.store.whole import one_line, shown, stat_key, whole_file
from mbo2o.types import UserError

FORMAT = "mbo2o"
VERSION = 1
CHECKSUM = "attributes_crc32"
CHUNK_ROWS = 4096

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
_sound: set[tuple[int, ...]] = set()
"""The `stat_key` of each file that this process checked or wrote."""


def read_hdf5(
    path: str | os.PathLike[str], new: New = in_ram, units: Actions = AS_GIVEN
) -> tuple[Fields, Attrs]:
    """Read the fields in the file, checked, into `new` arrays, and its attributes. units: see `check_fields`.

    Raises `UserError` for a file that is missing, is not HDF5, is cut short, fails a checksum, comes from a
    newer version of the layout, or whose content `check_fields` refuses.
    """
    with open_hdf5(path) as file:
        return read_open_file(file, shown(path), new, units)


def read_open_file(
    file: h5py.File, where: str, new: New = in_ram, units: Actions = AS_GIVEN, flatten: bool = False
) -> tuple[Fields, Attrs]:
    """The same for a file that `open_hdf5` opened. flatten: see `check_fields`."""
    attrs = scalar_attrs(file.attrs)
    version = attrs.pop("schema", VERSION) if attrs.pop("format", None) == FORMAT else VERSION
    if version != VERSION:
        raise UserError(f"{where}: layout version {version!r}, expected {VERSION}; update mbo2o")
    if CHECKSUM in attrs and attrs.pop(CHECKSUM) != _attrs_crc32(attrs):
        raise UserError(f"{where}: its attributes are not those that were written; fetch or write it again")
    if "observations" not in file and "episode_0" in file:
        raise UserError(f"{where}: Minari's own storage, not a D4RL file; load it by its Minari id")
    fields = {key: file[key] for key in FIELDS if key in file}
    if compact.FINAL in file and "observations" in fields and "terminals" in fields:
        fields["next_observations"] = compact.expand(fields, file[compact.FINAL], where, new)
    return check_fields(fields, where, new, flatten, units), attrs


def write_hdf5(
    path: str | os.PathLike[str],
    fields: Mapping[str, np.ndarray],
    attrs: Mapping[str, Attr],
    layout: str = "full",
) -> None:
    """Write `fields` and `attrs` to `path`, whole or not at all; the same content gives the same bytes.

    layout: `full`, or `compact`, which is smaller and which only this package reads; see `store.compact`.
    Raises `UserError` for what `check_fields` refuses and for what the file system refuses.
    """
    path = Path(path)
    checked = check_fields(fields, path)
    if layout == "compact":
        checked = compact.shrink(checked, path)
    own: dict[str, Attr] = {"format": FORMAT, "schema": VERSION}
    if attrs:
        own[CHECKSUM] = _attrs_crc32(attrs)
    try:
        with whole_file(path) as temporary, _new_file(temporary) as file:
            for key, x in checked.items():
                chunks = (min(CHUNK_ROWS, len(x)), *x.shape[1:])
                file.create_dataset(key, data=x, chunks=chunks, fletcher32=True, track_times=False)
            for name, value in sorted({**attrs, **own}.items()):
                file.attrs[name] = value
        _sound.add(stat_key(path))
    except (OSError, RuntimeError) as error:  # h5py reports a full disk as a RuntimeError
        raise UserError(
            f"{path}: cannot be written ({one_line(error)}); is the folder there, with room?"
        ) from error


def _new_file(path: Path) -> h5py.File:
    """A new file, open for writing, in a version of HDF5 whose headers carry checksums.

    In the oldest version, which is h5py's default, a flipped bit can go unnoticed.
    """
    return h5py.File(path, "w", libver=("v110", "v110"))


@contextmanager
def open_hdf5(path: str | os.PathLike[str]) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading, after another process has read it without a crash (see `firstlook`).

    Raises `UserError` for a file that is not HDF5, is damaged, is open for writing elsewhere, or claims more
    data than its bytes can hold.
    """
    path = Path(path)
    _check_sound(path)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{shown(path)}: not a readable HDF5 file ({one_line(error)}); fetch or write it again"
        ) from error


def _check_sound(path: Path) -> None:
    """Raise `UserError` if a first look finds a fault; a file is looked at once until it changes."""
    check_signature(path)
    key = stat_key(path)
    if key in _sound:
        return
    fault = _first_look(path)
    if fault is not None:
        raise UserError(f"{shown(path)}: {fault}")
    _sound.add(key)


def check_signature(path: Path) -> None:
    """Raise `UserError` unless `path` is a file with HDF5's signature. A pipe or a device is not opened."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = KINDS.get(stat.S_IFMT(mode), "something else")
            raise UserError(f"{shown(path)}: no such file ({kind} has that name); check the path")
        with open(path, "rb") as file:
            begin = found = file.read(8)
            size, at = os.fstat(file.fileno()).st_size, 512
            # HDF5 allows a block of the user's before the signature, whose size is a power of 2.
            while found != SIGNATURE and at < size:
                file.seek(at)
                found = file.read(8)
                at *= 2
    except FileNotFoundError as error:
        raise UserError(f"{shown(path)}: no such file; check the path") from error
    except OSError as error:
        raise UserError(
            f"{shown(path)}: cannot be opened ({error.strerror}); check the path and its permissions"
        ) from error
    if found != SIGNATURE:
        known = (kind for magic, kind in MAGIC.items() if begin.startswith(magic))
        what = next(known, f"begins with {begin!r}") if size else "it is empty"
        raise UserError(f"{shown(path)}: not a readable HDF5 file ({what}); fetch or write it again")


def _first_look(path: Path) -> str | None:
    """What `firstlook` finds wrong with the file, or how `firstlook` itself failed; None for a sound file."""
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "PYTHONIOENCODING": "utf-8:replace",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-P",
        "-W",
        "ignore",
        firstlook.__file__,
        os.fspath(path),
        *FIELDS,
        compact.FINAL,
    ]
    # The process limits its own CPU time. This limit is for storage that does not answer.
    seconds = 60 + path.stat().st_size / 1e6
    try:
        look = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return (
            f"reading it did not end within {seconds:.0f} s; if its storage does not answer, copy it to this "
            "machine; if this machine is busy, try again"
        )
    if look.returncode < 0:
        return f"not a readable HDF5 file (reading it {_death(-look.returncode)}); fetch or write it again"
    said = " ".join((look.stdout or look.stderr).decode(errors="replace").splitlines()[-1:])
    return None if said == firstlook.SOUND else said or "cannot be read (the process that tried said nothing)"


def _death(number: int) -> str:
    name = signal.Signals(number).name
    return "came to no end" if number == signal.SIGPROF else f"killed the process that tried, with {name}"


def imports_module(env_id: object) -> bool:
    """Whether making this environment imports a module that the id names (`module:Name-v0`).

    A file must not cause such an import; only the user may.
    """
    return ":" in str(env_id) and not str(env_id).startswith("gymnasium_robotics:")


def _attrs_crc32(attrs: Mapping[str, Attr]) -> int:
    """The CRC32 of the attributes, for which HDF5 itself keeps no checksum."""
    return zlib.crc32(repr(sorted(scalar_attrs(attrs).items())).encode())


def scalar_attrs(items: Mapping[str, object]) -> Attrs:
    """The entries of an HDF5 attribute set that are one text or number, as `str`, `int` or `float`."""
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
