"""Checkpoints that are whole or not there: a folder written beside, synced, and renamed; read back only if its hashes hold."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from mbo2o.types import UserError

SCHEMA = 1
KEEP = 2
"""Checkpoints that stay: the newest, and the one before it in case the newest gets damaged."""


def save(folder: Path, turn: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write checkpoint `turn` under `folder`: `state.safetensors`, `state.json` and `manifest.json` with their sha256."""
    final = folder / f"{turn:09d}"
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        # safetensors refuses tensors that share memory; what is tracked twice is saved twice
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, temporary / "state.safetensors")
        (temporary / "state.json").write_text(json.dumps(state))
        files = {name: _sha256(temporary / name) for name in ("state.safetensors", "state.json")}
        (temporary / "manifest.json").write_text(json.dumps({"schema": SCHEMA, "turn": turn, "sha256": files}, indent=2))
        for path in [*temporary.iterdir(), temporary]:
            _sync(path)
        shutil.rmtree(final, ignore_errors=True)  # a damaged one of the same turn, which `latest` refused
        temporary.rename(final)
        _sync(folder)
    except OSError as e:
        raise UserError(f"{final}: the checkpoint cannot be written ({e.strerror or e}); earlier ones are intact") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in _all(folder)[:-KEEP]:
        shutil.rmtree(old)


def latest(folder: Path, device: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint whose hashes hold; None where there never was one.

    Damaged ones are named in a warning and skipped; UserError if none is left, for a fresh start would overwrite the log.
    """
    for path in reversed(_all(folder)):
        try:
            manifest = json.loads((path / "manifest.json").read_text())
            if manifest["schema"] > SCHEMA:
                raise UserError(f"{path}: written by a newer mbo2o (schema {manifest['schema']}, this one reads {SCHEMA})")
            for name, expected in manifest["sha256"].items():
                if _sha256(path / name) != expected:
                    raise ValueError(f"sha256 of {name} differs")
            return load_file(path / "state.safetensors", device=device), json.loads((path / "state.json").read_text())
        except (OSError, ValueError, KeyError, TypeError) as e:
            warnings.warn(f"checkpoint {path} is damaged ({e}): skipped", stacklevel=2)
    if _all(folder):
        raise UserError(f"{folder}: every checkpoint is damaged; choose another dir=, or delete the folder to start anew")
    return None


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
