"""The sha256 of a dataset's content: of a file, or of the files in a folder.

A sum is computed once and kept in the folder `sums` of the cache, together with the `stat_key` of each file.
It counts as long as these keys are unchanged. The sum of a file that changed less than `SETTLED` seconds ago
is not kept, because another change within the resolution of the clock would not show. If the cache cannot be
read or written, the sum is computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from pathlib import Path

from mbo2o.errors import UserError
from mbo2o.store.whole import file_sha256, shown, stat_key, whole_file

SETTLED = 2.0

StatKeys = list[tuple[int, ...]]


def cache_folder() -> Path:
    """`$MBO2O_CACHE`, else `mbo2o` in `$XDG_CACHE_HOME`, else `~/.cache/mbo2o`."""
    own, home = os.environ.get("MBO2O_CACHE"), os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(own or f"{home}/mbo2o").expanduser().absolute()


def files_of(source: Path) -> list[Path]:
    """The file itself, or all files in the folder."""
    return sorted(x for x in source.rglob("*") if x.is_file()) if source.is_dir() else [source]


def stat_keys(source: Path) -> StatKeys:
    """The `stat_key` of each file: they change when the content does."""
    return [stat_key(x) for x in files_of(source)]


def check_unchanged(source: Path, before: StatKeys, where: str) -> None:
    """Raise `UserError` if the content of `source` has changed since `stat_keys` returned `before`."""
    if stat_keys(source) != before:
        raise UserError(f"{where}: was changed while it was read; try again when its writer is done")


def sums_of(source: Path) -> list[str]:
    """`name:sha256` of each file in a folder, or `.:sha256` of a file."""
    return [f"{x.relative_to(source)}:{file_sha256(x)}" for x in files_of(source)]


def sha256(source: Path) -> str:
    """The sha256 of a file, as `sha256sum` gives it, or of a folder: that of the names and sums of its files.

    It does not depend on where the source lies. Raises `UserError` if the source cannot be read, or changes
    meanwhile.
    """
    try:
        before = stat_keys(source)
        found = _kept_sum(source, before)
        if found is not None:
            return found
        found = _folder_sha256(source) if source.is_dir() else file_sha256(source)
        check_unchanged(source, before, shown(source))
    except OSError as error:
        raise UserError(
            f"{shown(source)}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from error
    _keep_sum(source, before, found)
    return found


def _folder_sha256(source: Path) -> str:
    return hashlib.sha256("\n".join(sums_of(source)).encode()).hexdigest()


def _entry(source: Path) -> Path:
    name = hashlib.sha256(os.fsencode(source.resolve())).hexdigest()[:32]
    return cache_folder() / "sums" / f"{name}.json"


def _kept_sum(source: Path, keys: StatKeys) -> str | None:
    """The sum that was kept for exactly this state of the source; None if it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        entry = json.loads(_entry(source).read_text())
        is_sum = re.fullmatch(r"[0-9a-f]{64}", entry["sha256"])
        if entry["identity"] == [list(x) for x in keys] and is_sum:
            return str(entry["sha256"])
    return None


def _keep_sum(source: Path, keys: StatKeys, found: str) -> None:
    changed = max((t for *_, modified, status in keys for t in (modified, status)), default=0)
    if time.time_ns() - changed < SETTLED * 1e9:
        return
    path = _entry(source)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps({"identity": keys, "sha256": found}))
