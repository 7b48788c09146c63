"""Datasets at addresses that fsspec reads, as `s3://bucket/my.hdf5`: copied once into the cache, then local.

The copy is kept under the address and under what the backend says of the file: its checksum, its size, the
time of its last change. A file that has changed there is copied again, and the old copy is removed. What a
run compares is the sha256 of the content, as for any file. With `MBO2O_OFFLINE=1` nothing is asked of the
backend, and the copy that is there is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mbo2o.errors import UserError
from mbo2o.store.content import cache_folder
from mbo2o.store.whole import lock_file, one_line, shown, take_lock, whole_file, writing

ADVICE = "make room, or set MBO2O_CACHE to a folder that has it"
CHUNK = 2**23
FACTS = ("size", "ETag", "etag", "md5Hash", "checksum", "mtime", "LastModified", "last_modified")
"""What backends call the facts that change with a file. Some, as HTTP's, leave them out of `ukey`."""


def is_address(name: str) -> bool:
    """Whether a name is PROTOCOL://PATH, maybe with other protocols chained in front, as fsspec has it."""
    return re.match(r"[a-z][\w+.-]*(::|://)", name) is not None


def local_copy(address: str) -> Path:
    """The path of a file with the content at `address`; a file of this machine is its own.

    Raises:
        UserError: A package is missing, there is no such file, it cannot be fetched, or the disk is full.
    """
    folder = cache_folder() / "addresses" / hashlib.sha256(address.encode()).hexdigest()[:16]
    if os.environ.get("MBO2O_OFFLINE", "0") not in ("", "0"):
        return _newest(folder, address)
    with _asked(address):
        fs, path = _opened(address)
        if "file" in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol):
            return Path(path)
        key, size = _state(fs, path)
    if size is None:
        raise UserError(f"{shown(address)}: is no file; give the address of one HDF5 file")
    copy = folder / key / (path.rstrip("/").rpartition("/")[2] or "data")
    if not copy.is_file():
        with writing(copy, ADVICE):
            copy.parent.mkdir(parents=True, exist_ok=True)
        with lock_file(folder / ".lock") as handle:
            alone = take_lock(handle, wait=True)
            if not copy.is_file():  # no other process has copied it meanwhile
                _copy(fs, path, copy, address)
            if alone:
                _remove_others(folder, copy)
        if _state(fs, path)[0] != key:
            shutil.rmtree(copy.parent, ignore_errors=True)
            raise UserError(f"{shown(address)}: was changed while it was read; try again when that is done")
    return copy


def _opened(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path of its file there."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as e:
        raise UserError(f"{shown(address)}: needs fsspec; pip install 'mbo2o[remote]'") from e
    found: tuple[Any, str] = url_to_fs(address)
    return found


@contextlib.contextmanager
def _asked(address: str) -> Iterator[None]:
    """Make one line of whatever a backend raises; each has errors of its own."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as e:
        raise UserError(f"{shown(address)}: no such file; check the address") from e
    except ImportError as e:
        protocol = address.partition("://")[0]
        text = f"fsspec needs another package for {protocol}:// ({one_line(e)}); install it with pip"
        raise UserError(f"{shown(address)}: {text}") from e
    except Exception as e:
        text = f"cannot be read ({one_line(e)}); check the address and your rights"
        raise UserError(f"{shown(address)}: {text}") from e


def _state(fs: Any, path: str) -> tuple[str, int | None]:
    """A key that changes with the file, and its size; the size is None for what is no file."""
    fs.invalidate_cache()
    info = fs.info(path)
    facts = [str(fs.ukey(path)), *(f"{x}={info[x]}" for x in FACTS if info.get(x) is not None)]
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]
    return key, info.get("size") if info.get("type") == "file" else None


def _copy(fs: Any, path: str, copy: Path, address: str) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(writing(copy, ADVICE))
        file = stack.enter_context(open(stack.enter_context(whole_file(copy)), "wb"))
        bar = stack.enter_context(tqdm(desc=copy.name, unit="B", unit_scale=True, disable=None))
        with _asked(address):
            source = stack.enter_context(fs.open(path, "rb"))
        while chunk := _chunk(source, address):
            file.write(chunk)
            bar.update(len(chunk))


def _chunk(source: Any, address: str) -> bytes:
    with _asked(address):
        found: bytes = source.read(CHUNK)
        return found


def _remove_others(folder: Path, copy: Path) -> None:
    """Remove copies of older states of the file, and what processes that died have left."""
    for other in folder.iterdir():
        if other.is_dir() and other != copy.parent:
            shutil.rmtree(other, ignore_errors=True)
    for left in copy.parent.iterdir():
        if left != copy:
            left.unlink(missing_ok=True)


def _newest(folder: Path, address: str) -> Path:
    copies = sorted(folder.glob("[!.]*/[!.]*"), key=lambda x: x.stat().st_mtime_ns)
    if not copies:
        text = "MBO2O_OFFLINE is set, and no copy of it is in the cache; read it once without"
        raise UserError(f"{shown(address)}: {text}")
    return copies[-1]
