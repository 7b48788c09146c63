"""Checkpoints: folders that are complete or absent, and that are read only if their checksums hold."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mbo2o.store.whole import file_sha256, whole_folder, writing
from mbo2o.types import UserError

SCHEMA = 1
"""The version of the format. It grows when an older version would read a checkpoint wrongly; entries that
were added later have defaults for checkpoints without them."""
FILES = ("state.safetensors", "state.json")
KEEP = 2
"""How many checkpoints stay: the newest, and the one before it in case the newest gets damaged."""


def save(folder: Path, turn: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write checkpoint `turn` under `folder`, whole or not at all.

    It is a folder of `state.safetensors`, `state.json`, and `manifest.json` with their sha256. A checkpoint
    of the same turn is replaced: it is damaged, or an error in it was corrected since.
    """
    final = folder / f"{turn:09d}"
    with writing(final):
        for left in folder.glob(".*.tmp"):  # from processes that were killed: only one writes here
            shutil.rmtree(left)
        with whole_folder(final, replace=True) as temporary:
            # safetensors refuses tensors that share memory, so each is copied
            copies = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
            save_file(copies, temporary / FILES[0])
            (temporary / FILES[1]).write_text(json.dumps(state))
            sums = {name: file_sha256(temporary / name) for name in FILES}
            manifest = {"schema": SCHEMA, "turn": turn, "sha256": sums}
            (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2))
    for old in _checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def latest(
    folder: Path, device: str, wanted: Callable[[str], bool] = lambda key: True
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint whose checksums hold, or None if there never was a checkpoint.

    wanted: says of a tensor's name whether it is read; a policy needs no buffer of experience.

    A warning names each damaged checkpoint, which is skipped. Raises `UserError` if all are damaged, because
    a run that starts from the beginning would overwrite the log.
    """
    damage = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError)
    tried: set[Path] = set()
    while new := [p for p in _checkpoints(folder) if p not in tried]:
        path = new[-1]
        tried.add(path)
        try:
            return _read(path, device, wanted)
        except damage as e:
            if path.is_dir():  # otherwise the run that is being read removed it, and there are newer ones
                warnings.warn(f"checkpoint {path} is damaged ({e}): skipped", stacklevel=2)
    if _checkpoints(folder):
        raise UserError(
            f"{folder}: every checkpoint is damaged; choose another dir=, or delete the folder to start again"
        )
    return None


def _read(path: Path, device: str, wanted: Callable[[str], bool]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    manifest = json.loads((path / "manifest.json").read_text())
    if manifest["schema"] > SCHEMA:
        raise UserError(
            f"{path}: written by a newer mbo2o (schema {manifest['schema']}, this one reads {SCHEMA})"
        )
    if manifest["turn"] != int(path.name) or set(manifest["sha256"]) != set(FILES):
        raise ValueError("manifest.json is not of this checkpoint")
    for name in FILES:
        if file_sha256(path / name) != manifest["sha256"][name]:
            raise ValueError(f"sha256 of {name} differs")
    with safe_open(path / FILES[0], "pt", device=device) as file:
        names = [x for x in file.keys() if wanted(x)]  # noqa: SIM118  it is no dict
        tensors = {name: file.get_tensor(name) for name in names}
    return tensors, json.loads((path / FILES[1]).read_text())


def _checkpoints(folder: Path) -> list[Path]:
    """All checkpoints, oldest first."""
    return sorted(p for p in folder.glob("[0-9]*") if p.is_dir())
