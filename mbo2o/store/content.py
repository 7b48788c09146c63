"""What a dataset is, by its content: the sha256 of a file, or of the files of a folder.

A sum is computed once: it is kept in `sums` of the cache folder, beside the maps of `mapped`, with the
identity of each file (size, inode, times), and believed as long as these are the same. A file that changed
less than `SETTLED` seconds ago is not kept, because another change within the clock's resolution would not
show. A cache that cannot be read or written costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from pathlib import Path

from mbo2o.store import hdf5
from mbo2o.types import UserError

SETTLED = 2.0


def cache() -> Path:
    """`$MBO2O_CACHE`, else `mbo2o` in `$XDG_CACHE_HOME`, else `~/.cache/mbo2o`."""
    own, home = os.environ.get("MBO2O_CACHE"), os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(own or f"{home}/mbo2o").expanduser().absolute()


def files(source: Path) -> list[Path]:
    """The file itself, or all files of the folder."""
    return sorted(x for x in source.rglob("*") if x.is_file()) if source.is_dir() else [source]


def identities(source: Path) -> list[tuple[int, ...]]:
    """Other ones when the content is another."""
    return [hdf5.identity(x) for x in files(source)]


def digest(file: Path) -> str:
    """The sha256 of a file."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def sha256(source: Path) -> str:
    """The sum of a file, as `sha256sum` gives it, or of a folder: that of its files' names and sums.

    It does not depend on where the source lies.

    Raises `UserError` for what cannot be read, and for what changes meanwhile.
    """
    try:
        before = identities(source)
        kept = _kept(source, before)
        if kept is not None:
            return kept
        names = [(x, x.relative_to(source)) for x in files(source)] if source.is_dir() else []
        lines = [f"{name}:{digest(x)}" for x, name in names]
        found = hashlib.sha256("\n".join(lines).encode()).hexdigest() if source.is_dir() else digest(source)
        if identities(source) != before:
            raise UserError(
                f"{hdf5.shown(source)}: was changed while it was read; try again when its writer is done"
            )
    except OSError as error:
        raise UserError(
            f"{hdf5.shown(source)}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from error
    _keep(source, before, found)
    return found


def _entry(source: Path) -> Path:
    name = hashlib.sha256(os.fsencode(source.resolve())).hexdigest()[:32]
    return cache() / "sums" / f"{name}.json"


def _kept(source: Path, identity: list[tuple[int, ...]]) -> str | None:
    """What was kept of this very state of the source; None for anything that is not in order."""
    try:
        entry = json.loads(_entry(source).read_text())
        if entry["identity"] == [list(x) for x in identity] and re.fullmatch(
            r"[0-9a-f]{64}", entry["sha256"]
        ):
            return str(entry["sha256"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return None


def _keep(source: Path, identity: list[tuple[int, ...]], found: str) -> None:
    changed = max((t for *_, modified, status in identity for t in (modified, status)), default=0)
    if time.time_ns() - changed < SETTLED * 1e9:
        return
    path = _entry(source)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"identity": identity, "sha256": found}))
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
