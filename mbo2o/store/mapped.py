"""Datasets larger than memory: converted once into arrays in files, which are mapped read-only and shared by processes.

A map is a folder `maps/KEY` in `$MBO2O_CACHE`, or in `mbo2o` of the user's cache: one .npy file for each array, and
`manifest.json` with their sizes and sha256 and what else there is to know. KEY is the sha256 of the source's content, so
a source that changed has another map. It is written under another name and moved into place; both source and map are hashed
each time a map is opened (1 to 2 GB/s), and a damaged one is made anew.

The maps are read-only, not copy-on-write: private writable memory counts against a process's limits (RLIMIT_DATA, overcommit)
whether or not it is ever written.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbo2o.store import content, hdf5
from mbo2o.types import UserError

VERSION = 2
"""Of what a source is converted into; another one for any change of it, so that old maps are not used."""

Info = dict[str, Any]
"""What there is to know beside the arrays, as JSON can hold it."""


def folder() -> Path:
    """Where maps are: `maps` in the cache folder."""
    return content.cache() / "maps"


def opened(
    source: Path, salt: str, where: str, names: Sequence[str], convert: Callable[[hdf5.New], Info]
) -> tuple[dict[str, np.ndarray], Info]:
    """The arrays called `names` that `convert` makes of `source`, a file or a folder, mapped; and what it returned.

    `convert` fills arrays that it gets from the `New` it is given; it is called where there is no sound map of this content
    yet. What it warned of is warned of each time. salt: what the result depends on beside the content.
    Raises `UserError` if the disk has no room, and as `convert` does.
    """
    before = content.identities(source)
    path = folder() / _key(source, salt)
    if _fault(path, names) is not None:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path) as alone:
            if (fault := _fault(path, names)) is not None:  # nobody has made it meanwhile
                _remove(path, fault, where)
                if alone:
                    _sweep(path)
                _make(path, where, names, lambda new: _unchanged(convert(new), source, before, where))
    manifest = json.loads((path / "manifest.json").read_text())
    for text in manifest["warnings"]:
        warnings.warn(f"{where}: {text}", stacklevel=3)
    return {
        name: np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names
    }, manifest["info"]


def tensor(array: np.ndarray) -> Tensor:
    """A tensor over a mapped array, which nobody may write to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def unnamed(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A `New` array in a file without a name, which is gone with the process. Raises `UserError` if the disk has no room."""
    with _writing(folder()), tempfile.TemporaryFile(dir=folder()) as file:
        os.posix_fallocate(file.fileno(), 0, _bytes(shape, dtype))
        return np.memmap(file, dtype, "r+", shape=shape)


def _unchanged(info: Info, source: Path, before: list[tuple[int, ...]], where: str) -> Info:
    if content.identities(source) != before:
        raise UserError(f"{where}: was changed while it was read; try again when its writer is done")
    return info


def _remove(path: Path, fault: str, where: str) -> None:
    if path.exists():
        warnings.warn(f"{path}: {fault}; it is made anew from {where}", stacklevel=4)
        with _writing(path):
            shutil.rmtree(path)


def _make(path: Path, where: str, names: Sequence[str], convert: Callable[[hdf5.New], Info]) -> None:
    """Convert into a folder beside `path`, and move it there, unless somebody else's stands there by then."""
    made = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")

    def new(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        with _writing(path):
            with open(made / f"{name}.npy", "wb") as file:
                np.lib.format.write_array_header_1_0(file, _header(shape, dtype))
                # now, because a disk that is full when a mapped page is written kills the process
                os.posix_fallocate(file.fileno(), file.tell(), _bytes(shape, dtype))
            return np.load(made / f"{name}.npy", mmap_mode="r+", allow_pickle=False)

    try:
        with _writing(path):
            made.mkdir()
        with _heard(where) as texts:
            info = convert(new)
        for other in (x for x in made.iterdir() if x.stem not in names):
            other.unlink()
        manifest = {"info": info, "warnings": texts}
        with _writing(path):
            _seal(made, manifest)
            with contextlib.suppress(FileExistsError):
                _move(made, path)
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextlib.contextmanager
def _heard(where: str) -> Iterator[list[str]]:
    """Keep what is said of `where` meanwhile to say it each time the map is opened, or now if there will be none."""
    texts: list[str] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield texts
    except UserError:
        for w in caught:
            warnings.warn(str(w.message), w.category, stacklevel=6)
        raise
    start = f"{where}: "
    texts += [text.removeprefix(start) for w in caught if (text := str(w.message)).startswith(start)]


def _header(shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
    return {"shape": shape, "fortran_order": False, "descr": np.lib.format.dtype_to_descr(np.dtype(dtype))}


def _bytes(shape: tuple[int, ...], dtype: Any) -> int:
    return int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize


def _seal(made: Path, manifest: dict[str, Any]) -> None:
    """Have the disk hold all files, and a manifest of them."""
    manifest["files"] = {}
    for file in sorted(made.iterdir()):
        hdf5.sync(file)
        manifest["files"][file.name] = _entry(file)
    manifest["sha256"] = _digest_of(manifest)
    (made / "manifest.json").write_text(json.dumps(manifest, indent=1))
    hdf5.sync(made / "manifest.json")
    hdf5.sync(made)


def _move(made: Path, path: Path) -> None:
    try:
        os.rename(made, path)
    except OSError:
        if not path.exists():
            raise
        raise FileExistsError from None  # a folder that is not empty has several error numbers
    hdf5.sync(path.parent)


def _entry(file: Path) -> dict[str, Any]:
    header = np.load(file, mmap_mode="r", allow_pickle=False)
    size, found = file.stat().st_size, content.digest(file)
    return {"shape": list(header.shape), "dtype": str(header.dtype), "bytes": size, "sha256": found}


def _digest_of(manifest: dict[str, Any]) -> str:
    rest = {key: x for key, x in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _fault(path: Path, names: Sequence[str]) -> str | None:
    """What is wrong with the map at `path`; None if it is whole."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        if manifest["sha256"] != _digest_of(manifest):
            return "manifest.json is damaged"
        for name in (f"{x}.npy" for x in names):
            entry = manifest["files"][name]
            if (path / name).stat().st_size != entry["bytes"]:
                return f"{name} has not the size that was written"
            if content.digest(path / name) != entry["sha256"]:
                return f"{name} has not the sha256 that was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"cannot be read ({' '.join(str(error).split())})"
    return None


def _key(source: Path, salt: str) -> str:
    sums = [f"{x.relative_to(source)}:{content.digest(x)}" for x in content.files(source)]
    parts = [f"{VERSION}", f"{hdf5.VERSION}", salt, *sums]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Write meanwhile: UserError for what the disk refuses."""
    try:
        yield
    except OSError as error:
        text = f"{path}: cannot be written ({error.strerror}); make room, or set MBO2O_CACHE to a folder that has it"
        raise UserError(f"{text}; or use storage=ram") from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Wait until nobody else makes `path`; false where there are no locks: then each makes its own, and the first one stays.

    The lock is the kernel's: it goes with the process that holds it, however that dies.
    """
    try:
        handle = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:  # a folder that may only be read
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            alone = True
        except OSError:  # some network file systems have none
            alone = False
        yield alone
    finally:
        os.close(handle)


def _sweep(path: Path) -> None:
    """Remove what dead processes left behind: folders for `path`, whose lock is ours, and for maps that nobody has locked."""
    for left in path.parent.glob(".*.tmp"):
        key = left.name.split(".")[1]
        with (
            contextlib.nullcontext(True)
            if key == path.name
            else _free(path.with_name(f".{key}.lock")) as free
        ):
            if free:
                shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _free(lock: Path) -> Iterator[bool]:
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except OSError:
        yield False
    finally:
        os.close(handle)
