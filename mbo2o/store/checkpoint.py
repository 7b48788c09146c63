"""Checkpoints that are whole or not there: a folder written beside, synced, and renamed; read back only if its hashes hold."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mbo2o.store.whole import writing
from mbo2o.types import UserError

SCHEMA = 1
"""Raised when an older version would read a checkpoint wrongly; what lacks newer entries is read with their defaults."""
FILES = ("state.safetensors", "state.json")
KEEP = 2
"""Checkpoints that stay: the newest, and the one before it in case the newest gets damaged."""


def save(folder: Path, turn: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write checkpoint `turn` under `folder`: `state.safetensors`, `state.json` and `manifest.json` with their sha256."""
    final = folder / f"{turn:09d}"
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    with writing(final):
        for left in folder.glob(".*.tmp"):  # of processes that were killed: only one writes here
            shutil.rmtree(left)
        temporary.mkdir(parents=True)
        try:
            # safetensors refuses tensors that share memory; what is tracked twice is saved twice
            save_file(
                {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, temporary / FILES[0]
            )
            (temporary / FILES[1]).write_text(json.dumps(state))
            files = {name: _sha256(temporary / name) for name in FILES}
            (temporary / "manifest.json").write_text(
                json.dumps({"schema": SCHEMA, "turn": turn, "sha256": files}, indent=2)
            )
            for path in [*temporary.iterdir(), temporary]:
                _sync(path)
            shutil.rmtree(
                final, ignore_errors=True
            )  # of the same turn: damaged, or with a fault mended since
            temporary.rename(final)
            _sync(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    for old in _all(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def latest(folder: Path, device: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint whose hashes hold; None where there never was one.

    Damaged ones are named in a warning and skipped; UserError if none is left, for a fresh start would overwrite the log.
    """
    tried: set[Path] = set()
    while new := [p for p in _all(folder) if p not in tried]:
        path = new[-1]
        tried.add(path)
        try:
            return _read(path, device)
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
            SafetensorError,
        ) as e:
            if path.is_dir():  # else whoever looks at a live run has been overtaken: there are newer ones
                warnings.warn(f"checkpoint {path} is damaged ({e}): skipped", stacklevel=2)
    if _all(folder):
        raise UserError(
            f"{folder}: every checkpoint is damaged; choose another dir=, or delete the folder to start anew"
        )
    return None


def _read(path: Path, device: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    manifest = json.loads((path / "manifest.json").read_text())
    if manifest["schema"] > SCHEMA:
        raise UserError(
            f"{path}: written by a newer mbo2o (schema {manifest['schema']}, this one reads {SCHEMA})"
        )
    if manifest["turn"] != int(path.name) or set(manifest["sha256"]) != set(FILES):
        raise ValueError("manifest.json is not of this checkpoint")
    for name in FILES:
        if _sha256(path / name) != manifest["sha256"][name]:
            raise ValueError(f"sha256 of {name} differs")
    return load_file(path / FILES[0], device=device), json.loads((path / FILES[1]).read_text())


def _all(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("[0-9]*") if p.is_dir())


def _sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
