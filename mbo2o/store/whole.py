"""Files and folders that are complete or absent, locks, checksums, and one line when the disk refuses.

Everything is written under a temporary name in the same folder, synced to the disk, and renamed. A reader or
a crash then meets the old content or the new content, never a part of either.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
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

from mbo2o.errors import UserError

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
"""Errors that come from the disk. All others come from the program and keep their traceback."""
ADVICE = "make room there or name another place; what was saved before is intact"


# ------------------------------------------------------------------------------------------ texts of errors


def shown(path: object) -> str:
    """A path for a message: characters that are not printable, such as line breaks, are escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(path))


def one_line(error: object) -> str:
    """The text of an error on one line; its type's name if it has no text."""
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def writing(path: Path, advice: str = ADVICE) -> Iterator[None]:
    """Raise `UserError`, which ends in `advice`, if the disk refuses what the block writes to `path`.

    The disk may be full, read-only, over its quota or broken.
    """
    try:
        yield
    except OSError as e:
        if e.errno not in REFUSALS:
            raise
        raise UserError(f"{e.filename or path}: cannot be written ({e.strerror}); {advice}") from e
    except SafetensorError as e:  # its I/O errors are only text
        if not (m := re.search(r"I/O error: (.*?) \(os error (\d+)\)", str(e))) or int(m[2]) not in REFUSALS:
            raise
        raise UserError(f"{path}: cannot be written ({m[1]}); {advice}") from e


# --------------------------------------------------------------------------------------- whole or not there


def temporary_name(path: Path) -> Path:
    """A hidden name beside `path` that no other process uses, on this host or on another one."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


def sync(path: Path) -> None:
    """Wait until the disk holds a file's content, or a folder's list of files."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name for the block to write to. The file then replaces `path`, unless it raises."""
    temporary = temporary_name(path)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path, replace: bool) -> Iterator[Path]:
    """Yield a new folder for the block to fill; it is then renamed to `path`. After an error nothing is left.

    replace: if a folder is at `path` by then, the new one replaces it; otherwise the one that is there stays.
    """
    temporary = temporary_name(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for made in [*temporary.iterdir(), temporary]:
            sync(made)
        if replace:
            shutil.rmtree(path, ignore_errors=True)
        try:
            temporary.rename(path)
        except OSError:  # the error number for a folder that is not empty differs between systems
            if replace or not path.exists():
                raise
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """Replace a file by `text`, completely or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text)


# -------------------------------------------------------------------------------------------------- content


def file_sha256(path: Path) -> str:
    """The sha256 of a file, as `sha256sum` gives it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stat_key(path: Path) -> tuple[int, ...]:
    """A key that changes when the file's content does: device, inode, size and times."""
    s = path.stat()
    return s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns


# ---------------------------------------------------------------------------------------------------- locks


def take_lock(handle: int, wait: bool = False) -> bool | None:
    """Lock an open file for this process: True, or False if another process holds the lock.

    None means that there are no locks, as on some network file systems. The lock is the kernel's: it ends
    when the handle is closed and when the process ends, in whatever way.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def lock_file(path: Path) -> Iterator[int]:
    """Open a file to be locked, and make it if necessary; yields its handle."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield handle
    finally:
        os.close(handle)


@contextlib.contextmanager
def hold(directory: Path) -> Iterator[None]:
    """Keep other processes from running in `directory` during the block, by a lock on `directory/.lock`.

    Raises `UserError`, which names the holder, if another process runs there. Reading a run needs no lock.
    """
    path = directory / ".lock"
    with lock_file(path) as handle:
        locked = take_lock(handle)
        if locked is False:
            raise UserError(
                f"{directory}: in use by {_holder(path)}; wait until it is done, or choose another dir="
            )
        if locked is None:
            text = "cannot be locked on this file system; make sure that nothing else runs in it"
            warnings.warn(f"{directory}: {text}", stacklevel=3)
        me = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(me).encode(), 0)
        yield


def _holder(path: Path) -> str:
    for _ in range(20):
        time.sleep(0.1)  # on a busy machine the holder may not have written its name yet
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            holder = json.loads(path.read_text())
            return f"pid {holder['pid']} on {holder['host']} since {holder['since']}"
    return "another process"


def in_use(directory: Path) -> bool:
    """Whether a process runs in `directory` now, as far as this host can tell.

    The lock is tried, for an instant and shared, only if the process that last held it is not known to be
    gone: who polls a folder of runs then never stands in the way of a run that begins.
    """
    path = directory / ".lock"
    if not path.is_file() or _gone(path):
        return False
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def _gone(path: Path) -> bool:
    """Whether the process that a lock file names ran on this host and has ended."""
    try:
        holder = json.loads(path.read_text())
        if holder["host"] == socket.gethostname():
            os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return False


OWN = (
    *(".lock", "config.yaml", "data.json", "io.json", "metrics.jsonl", "pretrained.json", "state.json"),
    *("metrics.csv", "tensorboard", "wandb"),
)
"""What a run writes before the first line of its log."""


@contextlib.contextmanager
def occupy(directory: Path) -> Iterator[None]:
    """Make `directory` if necessary and `hold` it; after a `UserError` remove it if it is new and empty.

    Empty means: no line in its log, no checkpoint, and no file that this run did not write.
    """
    made = [p for p in (directory, *directory.parents) if not os.path.lexists(p)]
    directory.mkdir(parents=True, exist_ok=True)
    with hold(directory):
        try:
            yield
        except UserError:
            if made and _is_empty_run(directory):
                shutil.rmtree(directory)
                for parent in made[1:]:
                    with contextlib.suppress(OSError):  # it holds something else by now
                        parent.rmdir()
            raise


def _is_empty_run(directory: Path) -> bool:
    log = directory / "metrics.jsonl"
    return {x.name for x in directory.iterdir()} <= set(OWN) and not (log.exists() and log.stat().st_size)
