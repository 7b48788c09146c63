"""Datasets larger than memory: converted once into arrays in files, which processes map read-only and share.

A map is a folder `maps/KEY` in the cache folder. It holds one .npy file for each array, and `manifest.json`
with their sizes and sha256 and with everything else that is known of the dataset. KEY is a sha256 of the
source's content, so that a source that changed has another map. A map is written whole or not at all. Source
and map are hashed each time a map is opened (1 to 2 GB/s), and a damaged map is made again.

The maps are read-only, not copy-on-write: private writable memory counts against a process's limits
(RLIMIT_DATA, overcommit), whether or not it is ever written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbo2o.data.fields import New
from mbo2o.store import content, hdf5
from mbo2o.store.whole import file_sha256, lock_file, one_line, take_lock, whole_folder, writing
from mbo2o.types import UserError

VERSION = 2
"""The version of the conversion. Every change of its result needs a new number, so that old maps are not
used."""
ADVICE = "make room, or set MBO2O_CACHE to a folder that has it; or use storage=ram"

Info = dict[str, Any]
"""What is known of a dataset besides its arrays, as JSON can hold it."""


def maps_folder() -> Path:
    """Where maps are stored: `maps` in the cache folder."""
    return content.cache_folder() / "maps"


def open_map(
    source: Path, salt: str, where: str, names: Sequence[str], convert: Callable[[New], Info]
) -> tuple[dict[str, np.ndarray], Info]:
    """Map the arrays called `names` that `convert` makes of `source`, a file or a folder; with its result.

    `convert` fills arrays that it gets from the `New` it is given. It is called if there is no sound map of
    this content yet. The warnings of the conversion are repeated each time a map is opened. salt: what the
    result depends on besides the content. Raises `UserError` if the disk has no room, and as `convert` does.
    """
    before = content.stat_keys(source)
    path = maps_folder() / _key(source, salt)

    def convert_unchanged(new: New) -> Info:
        info = convert(new)
        content.check_unchanged(source, before, where)
        return info

    if _fault(path, names) is not None:
        with writing(path, ADVICE):
            path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path) as alone:
            if (fault := _fault(path, names)) is not None:  # no other process has made it meanwhile
                _remove(path, fault, where)
                if alone:
                    _sweep(path)
                _make(path, where, names, convert_unchanged)
    manifest = json.loads((path / "manifest.json").read_text())
    for text in manifest["warnings"]:
        warnings.warn(f"{where}: {text}", stacklevel=3)
    arrays = {name: np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}
    return arrays, manifest["info"]


def map_tensor(array: np.ndarray) -> Tensor:
    """A tensor over a mapped array. It is read-only: writing to it ends the process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def unnamed_array(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A `New` array in a file without a name, which ends with the process. Raises `UserError`: disk full."""
    with writing(maps_folder(), ADVICE), tempfile.TemporaryFile(dir=maps_folder()) as file:
        os.posix_fallocate(file.fileno(), 0, _bytes(shape, dtype))
        return np.memmap(file, dtype, "r+", shape=shape)


def _remove(path: Path, fault: str, where: str) -> None:
    if path.exists():
        warnings.warn(f"{path}: {fault}; it is made again from {where}", stacklevel=4)
        with writing(path, ADVICE):
            shutil.rmtree(path)


def _make(path: Path, where: str, names: Sequence[str], convert: Callable[[New], Info]) -> None:
    """Convert into a folder that becomes `path`, unless another process's map is there by then."""
    with writing(path, ADVICE), whole_folder(path, replace=False) as made:

        def new(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
            with writing(path, ADVICE), open(made / f"{name}.npy", "wb") as file:
                np.lib.format.write_array_header_1_0(file, _header(shape, dtype))
                # The room is taken now: a disk that is full when a mapped page is written kills the process.
                os.posix_fallocate(file.fileno(), file.tell(), _bytes(shape, dtype))
            return np.load(made / f"{name}.npy", mmap_mode="r+", allow_pickle=False)

        with _collected_warnings(where) as texts:
            info = convert(new)
        for other in (x for x in made.iterdir() if x.stem not in names):
            other.unlink()
        _write_manifest(made, {"info": info, "warnings": texts})


@contextlib.contextmanager
def _collected_warnings(where: str) -> Iterator[list[str]]:
    """Collect the block's warnings about `where`, which are repeated each time the map is opened.

    After a `UserError` there is no map, and the warnings are shown at once.
    """
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


def _write_manifest(made: Path, manifest: dict[str, Any]) -> None:
    """Write the sizes and sums of all files, and the sum of the manifest itself."""
    manifest["files"] = {file.name: _entry(file) for file in sorted(made.iterdir())}
    manifest["sha256"] = _manifest_sha256(manifest)
    (made / "manifest.json").write_text(json.dumps(manifest, indent=1))


def _entry(file: Path) -> dict[str, Any]:
    header = np.load(file, mmap_mode="r", allow_pickle=False)
    return {
        "shape": list(header.shape),
        "dtype": str(header.dtype),
        "bytes": file.stat().st_size,
        "sha256": file_sha256(file),
    }


def _manifest_sha256(manifest: dict[str, Any]) -> str:
    rest = {key: x for key, x in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _fault(path: Path, names: Sequence[str]) -> str | None:
    """What is wrong with the map at `path`; None if it is whole."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        if manifest["sha256"] != _manifest_sha256(manifest):
            return "manifest.json is damaged"
        for name in (f"{x}.npy" for x in names):
            entry = manifest["files"][name]
            if (path / name).stat().st_size != entry["bytes"]:
                return f"{name} has not the size that was written"
            if file_sha256(path / name) != entry["sha256"]:
                return f"{name} has not the sha256 that was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"cannot be read ({one_line(error)})"
    return None


def _key(source: Path, salt: str) -> str:
    parts = [f"{VERSION}", f"{hdf5.VERSION}", salt, *content.sums_of(source)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Wait until no other process makes `path`.

    Yields false where there are no locks: then each process makes its own map, and the first one stays.
    """
    with contextlib.ExitStack() as stack:
        try:
            handle = stack.enter_context(lock_file(_lock_of(path)))
        except OSError:  # a folder that may only be read
            yield False
        else:
            yield take_lock(handle, wait=True) is True


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _sweep(path: Path) -> None:
    """Remove folders that dead processes left: for `path`, whose lock is ours, and for unlocked maps."""
    for left in path.parent.glob(".*.tmp"):
        key = left.name.split(".")[1]
        if key == path.name:
            shutil.rmtree(left, ignore_errors=True)
            continue
        with lock_file(_lock_of(path.with_name(key))) as handle:
            if take_lock(handle):
                shutil.rmtree(left, ignore_errors=True)
