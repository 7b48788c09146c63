"""Datasets by the names that users give: a path, an address, a name in a data folder, or a Minari id.

`find` decides what a name means, once and for all callers; `read` reads its rows.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import mbo2o
from mbo2o.data.actions import TOLERANCE, Actions, Bounds
from mbo2o.data.dataset import COLUMNS, TransitionDataset, build_dataset, fields_of
from mbo2o.data.fields import AS_GIVEN, Attrs, Fields, New, blocks, in_ram
from mbo2o.envs.make import EnvChoice, make_env
from mbo2o.errors import UserError
from mbo2o.registry import did_you_mean
from mbo2o.store import addresses, compact, content, mapped, remote, table
from mbo2o.store.columns import columns_of
from mbo2o.store.columns import given as columns_given
from mbo2o.store.d4rl import read_d4rl, read_d4rl_attrs
from mbo2o.store.hdf5 import check_signature, imports_module, open_hdf5, write_hdf5
from mbo2o.store.minari import minari_box, minari_folder, read_minari, read_minari_attrs
from mbo2o.store.remote import Remote
from mbo2o.store.table import Columns
from mbo2o.store.whole import shown

SUFFIXES = (".hdf5", ".h5")
MINARI_ID = re.compile(r"[-\w]+(/[-\w]+)*-v\d+")
STORAGES = ("ram", "memmap")


# ---------------------------------------------------------------------------------------------------- names


@dataclass(frozen=True)
class Named:
    """A dataset that was found and is not read yet."""

    name: str
    """The path of its file, or its Minari id."""
    dataset_id: str | None = None
    """Its Minari id; None for a file."""
    entry: Remote | None = None
    """Its line of the registry, if it is a fetched file."""
    columns: Columns | None = None
    """Which column holds each field, if it is a table; None: their names say so."""

    @property
    def is_table(self) -> bool:
        """Whether it is a CSV or Parquet file."""
        return self.dataset_id is None and Path(self.name).suffix in table.SUFFIXES

    @property
    def has_lines(self) -> bool:
        """Whether its rows are lines of text."""
        return self.is_table and Path(self.name).suffix != ".parquet"

    def lines(self, units: Actions) -> np.ndarray:
        """The line of each row of a CSV file, `(N,)`; the header is line 1."""
        return table.table_lines(Path(self.name), self._columns(), units)

    @property
    def where(self) -> str:
        """What messages call it."""
        return shown(self.name) if self.dataset_id is None else f"minari:{self.dataset_id}"

    @property
    def source(self) -> Path:
        """The file or the folder with its content. Raises `UserError` if Minari's store has no such set."""
        return Path(self.name) if self.dataset_id is None else minari_folder(self.dataset_id)

    def attrs(self) -> Attrs:
        """Its attributes, without its rows. Raises `UserError` for a file that cannot be read."""
        if self.is_table:
            columns = self._columns()
            return {f"{x[:-1]}_names": json.dumps(columns[x]) for x in ("observations", "actions")}
        own = read_d4rl_attrs(self.name) if self.dataset_id is None else read_minari_attrs(self.dataset_id)
        return (self.entry.attrs if self.entry else {}) | own

    def sha256(self) -> str:
        """The sha256 of its content, which does not depend on its name."""
        return content.sha256(self.source)

    def read(self, storage: str = "ram", units: Actions = AS_GIVEN) -> TransitionDataset:
        """Its rows, with actions in the units that `units` names; storage: see `read`.

        Raises `UserError`, also for actions that look like the environment's own units if no mode was chosen.
        """
        if storage not in STORAGES:
            raise UserError(f"storage={storage} is not one of {', '.join(STORAGES)}")
        if self.is_table and storage != "ram":
            raise UserError(f"{self.where}: a table is read into memory; write it as HDF5 for {storage}")
        dataset = self._in_ram(units) if storage == "ram" else self._mapped(units)
        # A Minari set names its own action space, so that there is no doubt.
        parts = list(blocks(dataset.n_rows, dataset.act_dim))
        if self.dataset_id is None and (doubt := units.doubt(dataset.act.numpy(), parts)):
            raise UserError(f"{self.where}: {doubt}")
        return self.entry.describe(dataset) if self.entry else dataset

    def read_with_sha256(self, storage: str, units: Actions) -> tuple[TransitionDataset, str]:
        """Its rows and the sha256 of their content. Raises `UserError` if that changes meanwhile."""
        if self.dataset_id is None and not self.is_table:
            check_signature(Path(self.name))
        before = content.stat_keys(self.source)
        dataset, found = self.read(storage, units), self.sha256()
        content.check_unchanged(self.source, before, self.where)
        return dataset, found

    def read_stored(self, units: Actions = AS_GIVEN) -> tuple[Fields, Attrs]:
        """Its rows as they are stored, but with actions in [-1, 1], and its attributes; nothing is mended."""
        if self.dataset_id is not None:
            return read_minari(self.dataset_id, units=units)
        if self.is_table:
            return self._fields(units)
        fields, attrs = read_d4rl(self.name, units=units, mend=False)
        return fields, (self.entry.attrs if self.entry else {}) | attrs

    def _fields(self, units: Actions, new: New = in_ram) -> tuple[Fields, Attrs]:
        if self.is_table:
            return table.table_fields(Path(self.name), self._columns(), units), self.attrs()
        if self.dataset_id is None:
            return read_d4rl(self.name, new, units)
        return read_minari(self.dataset_id, new, units)

    def _columns(self) -> Columns:
        path = Path(self.name)
        return self.columns or columns_of(table.header_of(path), self.where)

    def extent(self) -> Bounds:
        """The lowest and the highest action that is stored, each `(A,)` float64, in the file's own units.

        A Minari set gives the box of its action space.
        """
        if self.dataset_id is not None:
            return minari_box(self.dataset_id)
        if self.is_table:
            names = self._columns()
            stored: Any = table.table_columns(Path(self.name), names, "actions")
        else:
            with open_hdf5(self.name) as file:
                stored = np.asarray(file["actions"][()])
        if not len(stored):
            raise UserError(f"{self.where}: 'actions' has no rows; a dataset needs at least one transition")
        rows = stored.reshape(len(stored), -1).astype(np.float64)
        return rows.min(0), rows.max(0)

    def _in_ram(self, units: Actions) -> TransitionDataset:
        return build_dataset(*self._fields(units), self.where)

    def _mapped(self, units: Actions) -> TransitionDataset:
        if self.dataset_id is None:
            check_signature(Path(self.name))

        def convert(new: New) -> mapped.Info:
            made = build_dataset(*self._fields(units, new), self.where, new)
            return {key: getattr(made, key) for key in ("obs_dim", "act_dim", "attrs", "ends_known")}

        salt = f"{self.dataset_id or ''}{units.key}"
        arrays, info = mapped.open_map(self.source, salt, self.where, COLUMNS, convert)
        tensors: dict[str, Any] = {key: mapped.map_tensor(x) for key, x in arrays.items()}
        return TransitionDataset(**tensors, **info, new=mapped.unnamed_array)


def data_folders() -> list[Path]:
    """Where datasets are looked up by name: ./data, and the data folder beside the package."""
    folders = [p for p in (Path("data"), Path(mbo2o.__file__).parent.parent / "data") if p.is_dir()]
    return folders[:1] if len(folders) == 2 and folders[0].samefile(folders[1]) else folders


def find(name: str | os.PathLike[str] | None, columns: Any = None) -> Named:
    """Find a dataset by its path, its address, its name or its Minari id.

    In this order: an address (`minari:ID` is always an id); a path that exists; a name, which is the stem of
    a file in a data folder or the name of a fetched dataset; a Minari id, `namespace/name-v0`. Raises
    `UserError`, with the nearest name, if there is none, and for a dataset that has to be fetched first.

    columns: which column holds each field, if it is a table whose columns' names do not say so.
    """
    if name is None:
        raise UserError(
            "no dataset is named: give dataset=FILE, an address, a name of `mbo2o data list`, or minari:ID"
        )
    name = os.fspath(name)
    if name.startswith("minari:"):
        dataset_id = name.removeprefix("minari:")
        return Named(dataset_id, dataset_id)
    if addresses.is_address(name):
        name = str(addresses.local_copy(name))
        if not os.path.exists(name):
            raise UserError(f"{shown(name)}: no such file; check the address")
    if os.path.exists(name):
        return Named(name, columns=columns_given(columns))
    shipped = {p.stem: p for folder in reversed(data_folders()) for p in folder.glob("*.hdf5")}
    if name in shipped:
        return Named(str(shipped[name]))
    if entry := remote.lookup_remote(name):
        return Named(str(entry.ready()), entry=entry)
    if name.endswith(SUFFIXES):
        return Named(name)
    if "/" not in name:
        raise _unknown_name(name, list(shipped))
    if MINARI_ID.fullmatch(name):
        return Named(name, name)
    raise UserError(f"{shown(name)}: no such file, and not a Minari id (namespace/name-v0); check the name")


def _unknown_name(name: str, shipped: list[str]) -> UserError:
    near = [x for x in remote.registry() if x.endswith(f"/{name}")]
    hint = did_you_mean(name, near, 0) or did_you_mean(name, shipped)
    if "\\" in name:
        return UserError(f"{shown(name)}: no such file; {hint or 'check the path'}".rstrip())
    known = ", ".join(sorted(shipped)) or "none"
    return UserError(
        f"no dataset is called {name!r}; {hint}known by name: {known}; `mbo2o data list` shows all"
    )


# -------------------------------------------------------------------------------------- reading and writing


def read(
    name: str | os.PathLike[str] | None,
    storage: str = "ram",
    bounds: Bounds | None = None,
    clip: bool = False,
    actions: Any = None,
    env_id: str | None = None,
    option: str = "",
    columns: Any = None,
) -> TransitionDataset:
    """Read a dataset: a D4RL file, a dataset in a data folder, a fetched one, or a Minari set; see `find`.

    A Minari set that the local store lacks is downloaded into it.

    Args:
        name: What it is called.
        storage: `ram`, or `memmap` for data larger than memory. They are converted once, a block at a time,
            into files that later calls and other processes share (see `mapped`). Draws are the same to the
            bit. The tensors are then read-only: writing to one ends the process. `to` another device copies
            all of the data there, and `write` and `write_minari` need room in memory.
        bounds: The lowest and the highest action, see `TransitionDataset.from_arrays`. The actions of a
            Minari set whose action space is not [-1, 1] are mapped from that space.
        clip: Whether actions may lie outside and are clipped, see `from_arrays`.
        actions: The units by their name instead, see `Actions.mode`, or [LOW, HIGH]; `env` and `env-clip`
            take the box of `env_id`, or of the environment that the dataset names.
        env_id: The environment that the data are for.
        option: How the user sets `actions`, for errors.
        columns: Which column holds each field, see `find`.

    Raises:
        UserError: There is no such dataset, it cannot be read, or its environment is needed and cannot be
            made.
    """
    found = find(name, columns)
    if actions is None:
        given = bounds is not None or clip
        return found.read(storage, Actions.given(bounds, clip) if given else Actions(option=option))
    option = option or "actions="
    if isinstance(actions, list | tuple):
        return found.read(storage, units_for(found, actions, None, option))
    if actions not in ("env", "env-clip"):
        return found.read(storage, Actions(actions, option=option))
    own = found.attrs().get("env_id")
    if env_id is None and own is not None and imports_module(own):
        raise UserError(
            f"the dataset names environment {own!r}, which imports a module; give it as env if you trust it"
        )
    named_env = env_id or own
    choice = EnvChoice(str(named_env)) if named_env else None
    return found.read(storage, units_for(found, actions, choice, option))


def units_for(found: Named, mode: Any, env: EnvChoice | None, option: str = "dataset_actions=") -> Actions:
    """The units of a dataset's actions, with the box of the environment if the mode or a doubt needs it.

    mode: one of `data.actions.MODES`, or the bounds themselves, [LOW, HIGH]. A Minari set names its own box.
    Raises `UserError` if the environment is needed and cannot be made.
    """
    if isinstance(mode, list | tuple):
        return Actions("env", given_bounds(mode, option), option)
    units = Actions(mode, option=option)
    doubted = mode is None and found.dataset_id is None
    if env is None or not (units.maps or doubted):
        return units
    made = make_env(env)
    box: Any = made.action_space
    made.close()
    return Actions(mode, (box.low, box.high), option)


def given_bounds(mode: Any, option: str) -> Bounds:
    """The bounds `[LOW, HIGH]`, each a number or a list of them. Raises `UserError` for anything else."""
    try:
        low, high = (np.asarray(x, np.float64) for x in mode)
        np.broadcast_shapes(low.shape, high.shape)
    except (TypeError, ValueError) as error:
        text = "give [LOW, HIGH], each a number or a list with one for each action"
        raise UserError(f"{option}{mode}: these are no bounds of actions; {text}") from error
    return low, high


def units_of_log(found: Named, mode: Any, option: str = "dataset_actions=") -> tuple[Actions, Bounds, str]:
    """The units of a dataset's actions where there is no environment, the box of actions, and a line to say.

    mode: as in `units_for`; None: [-1, 1] if no action lies outside, else the lowest and the highest action
    that was recorded. Raises `UserError` for a mode that needs an environment's box.
    """
    if isinstance(mode, list | tuple):
        units = units_for(found, mode, None, option)
        assert units.box is not None
        return units, units.box, ""
    low, high = found.extent()
    if found.dataset_id is not None:
        return units_for(found, mode, None, option), (low, high), ""
    if mode in ("env", "env-clip"):
        text = f"{option}{mode} needs an environment's box of actions, and there is none (env=null)"
        raise UserError(f"{text}; give the bounds, {option}[LOW,HIGH]")
    unit = bool((np.abs([low, high]) <= 1 + TOLERANCE).all())
    if mode is not None or unit:
        return Actions(mode or "unit", option=option), (-np.ones_like(low), np.ones_like(low)), ""
    shown_bounds = "; ".join(f"[{a:.6g}, {b:.6g}]" for a, b in zip(low, high, strict=True))
    said = f"actions lie in {shown_bounds}: these bounds are taken; {option}[LOW,HIGH] gives others"
    return Actions("env", (low, high), option), (low, high), said


def write(
    dataset: TransitionDataset, path: str | os.PathLike[str], layout: str = "full", every: int = 1
) -> int:
    """Write a dataset as HDF5, whole or not at all, and return its rows; `read` gives them bit for bit.

    layout: D4RL's `full` one, or `compact`, see `store.compact`. every: keep each K-th whole episode only.
    """
    fields = fields_of(dataset)
    if every > 1:
        fields = compact.thin(fields, every, path)
    write_hdf5(path, fields, dataset.attrs, layout)
    return len(fields["rewards"])


def summary(dataset: TransitionDataset) -> dict[str, Any]:
    """What to know of a dataset before training; return and length are of complete episodes (else NaN)."""
    returns, lengths = dataset.episode_returns()
    stats = returns if len(returns) else np.array([np.nan])

    def count(flags: Callable[[slice], Tensor]) -> int:
        return sum(int(flags(rows).sum()) for rows in blocks(dataset.n_rows, dataset.packed.shape[1]))

    act, terminated, valid_next = dataset.act, dataset.terminated, dataset.valid_next
    return {
        "transitions": dataset.n_rows,
        "usable": len(dataset),
        "episodes": int(dataset.episode[-1]) + 1,
        "complete_episodes": len(returns),
        "return_mean": float(stats.mean()),
        "return_std": float(stats.std()),
        "return_min": float(stats.min()),
        "return_max": float(stats.max()),
        "length_mean": float(lengths.mean()) if len(lengths) else float("nan"),
        "terminal_fraction": count(lambda rows: terminated[rows]) / dataset.n_rows,
        "terminals_unused": count(lambda rows: terminated[rows] & ~valid_next[rows]),
        "obs_dim": dataset.obs_dim,
        "act_dim": dataset.act_dim,
        "action_saturation": count(lambda rows: act[rows].abs() > 0.999) / act.numel(),
        "attrs": dataset.attrs,
    }
