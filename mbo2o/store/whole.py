"""What a run does to its directory: one process at a time, whole files, and one line when the disk refuses."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import socket
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from mbo2o.types import UserError

NAMES = (
    "ENOSPC",
    "EDQUOT",
    "EFBIG",
    "EROFS",
    "EACCES",
    "EPERM",
    "EIO",
    "ENOTDIR",
    "EISDIR",
    "EEXIST",
    "ENAMETOOLONG",
    "ESTALE",
    "ENOENT",
    "ELOOP",
    "EINVAL",
)
REFUSALS = {getattr(errno, x) for x in NAMES}
"""Errors of the disk's; others are the program's and keep their traceback."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Write `path` meanwhile: UserError if the disk is full, read-only, over its quota or broken."""
    try:
        yield
    except OSError as e:
        if e.errno not in REFUSALS:
            raise
        raise UserError(_refused(e.filename or path, str(e.strerror))) from e
    except SafetensorError as e:  # its I/O errors are text alone
        if not (m := re.search(r"I/O error: (.*?) \(os error (\d+)\)", str(e))) or int(m[2]) not in REFUSALS:
            raise
        raise UserError(_refused(path, m[1])) from e


def _refused(path: object, reason: str) -> str:
    return f"{path}: cannot be written ({reason}); make room there or name another place; what was saved before is intact"


def write_whole(path: Path, text: str) -> None:
    """Replace a file by one that is whole: a reader or a crash meets the old text or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def hold(directory: Path) -> Iterator[None]:
    """Keep other processes from running in `directory` meanwhile; UserError, which names the holder, if one is there.

    The lock is the kernel's, on `directory/.lock`: it goes with the process that holds it, however that dies. Who only looks
    at a run needs none.
    """
    path = directory / ".lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise UserError(
                f"{directory}: in use by {_holder(path)}; wait until it is done, or choose another dir="
            ) from e
        except OSError as e:  # some network file systems have no locks
            warnings.warn(
                f"{directory}: cannot be locked ({e.strerror}); see to it that nothing else runs in it",
                stacklevel=3,
            )
        me = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(me).encode(), 0)
        yield
    finally:
        os.close(handle)


OWN = (".lock", "config.yaml", "metrics.jsonl", "tensorboard")
"""What a run writes before its first line of log."""


@contextlib.contextmanager
def occupy(directory: Path) -> Iterator[None]:
    """Make `directory` if need be and `hold` it; after a `UserError` nothing is left of one that was made for nothing.

    Nothing means: made here, no line in its log, no checkpoint, and no file of another's.
    """
    made = [p for p in (directory, *directory.parents) if not os.path.lexists(p)]
    directory.mkdir(parents=True, exist_ok=True)
    with hold(directory):
        try:
            yield
        except UserError:
            if made and _empty(directory):
                shutil.rmtree(directory)
                for parent in made[1:]:
                    with contextlib.suppress(OSError):  # something else has come to lie there
                        parent.rmdir()
            raise


def _empty(directory: Path) -> bool:
    log = directory / "metrics.jsonl"
    return {x.name for x in directory.iterdir()} <= set(OWN) and not (log.exists() and log.stat().st_size)


def _holder(path: Path) -> str:
    for _ in range(20):
        time.sleep(0.1)  # it may be about to write who it is, on a busy machine for long
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            who = json.loads(path.read_text())
            return f"pid {who['pid']} on {who['host']} since {who['since']}"
    return "another process"
