"""Datasets by what users call them: a path, a name in a data folder, one that was fetched, or a Minari id."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

import mbo2o
from mbo2o.data.actions import Actions
from mbo2o.data.dataset import TransitionDataset, minari_id
from mbo2o.store import content, d4rl, hdf5, minari, remote
from mbo2o.store.remote import Remote
from mbo2o.types import UserError

SUFFIXES = (".hdf5", ".h5")


@dataclass(frozen=True)
class Named:
    """A dataset that was found, and not loaded yet."""

    name: str
    """What `TransitionDataset.load` takes: a path or an id."""
    entry: Remote | None = None
    """Its line of the registry, if it was fetched."""

    @property
    def dataset_id(self) -> str | None:
        """Its Minari id; None for a file."""
        return minari_id(self.name)

    @property
    def source(self) -> Path:
        """The file, or the folder, that has its content. Raises `UserError` if Minari's store has no such set."""
        return Path(self.name) if self.dataset_id is None else minari.folder(self.dataset_id)

    def attrs(self) -> hdf5.Attrs:
        """What it says of itself, without its rows. Raises `UserError` for a file that cannot be read."""
        own = d4rl.attributes(self.name) if self.dataset_id is None else minari.attributes(self.dataset_id)
        return (self.entry.attrs if self.entry else {}) | own

    def sha256(self) -> str:
        """The sum of its content, which does not depend on its name."""
        return content.sha256(self.source)

    def load_known(self, storage: str, how: Actions) -> tuple[TransitionDataset, str]:
        """Its rows, and the sha256 of the very content that they are of. Raises `UserError` if it changes meanwhile."""
        if self.dataset_id is None:
            hdf5.check_signature(Path(self.name))
        before = content.identities(self.source)
        loaded, found = self.load(storage, how), self.sha256()
        if content.identities(self.source) != before:
            raise UserError(
                f"{hdf5.shown(self.name)}: was changed while it was read; try again when its writer is done"
            )
        return loaded, found

    def load(self, storage: str = "ram", how: Actions = hdf5.AS_GIVEN) -> TransitionDataset:
        """Its rows; see `TransitionDataset.load`."""
        dataset = TransitionDataset.load_as(self.name, storage, how)
        return self.entry.describe(dataset) if self.entry else dataset


def data_folders() -> list[Path]:
    """Where datasets are looked for by name: ./data, and the data folder beside the package."""
    folders = [p for p in (Path("data"), Path(mbo2o.__file__).parent.parent / "data") if p.is_dir()]
    return folders[:1] if len(folders) == 2 and folders[0].samefile(folders[1]) else folders


def find(name: str | None) -> Named:
    """A dataset by its path, its name or its Minari id.

    A name is the stem of a file in a data folder, or the name of a dataset that was fetched. Raises
    `UserError`, with the nearest name, if there is none, and for one that has to be fetched first.
    """
    if name is None:
        raise UserError("no dataset is named: give dataset=FILE, a name of `mbo2o data list`, or minari:ID")
    shipped = {p.stem: p for folder in reversed(data_folders()) for p in folder.glob("*.hdf5")}
    if name in shipped and not os.path.exists(name):
        return Named(str(shipped[name]))
    if not os.path.exists(name) and (entry := remote.lookup(name)):
        return Named(str(entry.ready()), entry)
    if (
        not os.path.exists(name)
        and not name.startswith("minari:")
        and "/" not in name
        and not name.endswith(SUFFIXES)
    ):
        near = [x for x in remote.registry() if x.endswith(f"/{name}")] or difflib.get_close_matches(
            name, shipped, 1
        )
        hint = f"did you mean {near[0]!r}? " if near else ""
        if "\\" in name:
            raise UserError(f"{hdf5.shown(name)}: no such file; {hint or 'check the path'}".rstrip())
        raise UserError(
            f"no dataset is called {name!r}; {hint}known by name: {', '.join(sorted(shipped)) or 'none'}"
        )
    return Named(name)
