"""D4RL's HDF5 files, which are also our own, and dicts by the same names: fields, the file's attributes, `metadata/`.

The variants differ in what they leave out: -v0 of the MuJoCo tasks and kitchen may have neither `timeouts` nor
`next_observations`, adroit has the former, -v1 and -v2 of the MuJoCo tasks have both. Replay buffers may keep rewards and flags
as columns `(N, 1)`, which D4RL's own loader flattens, as does this one. `infos` (in kitchen an array, elsewhere a group) and
collecting policies are not read.

D4RL's antmaze: 29 observations, the ant's x, y and 27 more, and rewards in {0, 1} for the goal of the evaluation, which is the
same in all episodes and not observed. `infos/goal`, the place the collecting controller was heading for, is not that goal
and is not read. Rows are left as they are: gymnasium-robotics' AntMaze observes the goal too (31, see `goals.flatten`) and puts
the origin elsewhere; a run with these files makes it show D4RL's 29 instead (`run.layouts`). Minari's D4RL/antmaze/* are the
sets of that environment as it is. Use -v2: in -v0 and -v1 the timeouts are out of step (D4RL issue 77).

D4RL's maze2d is one long walk: a timeout says that a waypoint was reached (D4RL issue 85), and rewards are those of the row's
own observation, a step early (issue 194); both are left as they are.
"""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np

from mbo2o.data.actions import Actions
from mbo2o.store import hdf5
from mbo2o.types import UserError

VECTORS = [key for key, (_, ndim) in hdf5.LAYOUT.items() if ndim == 1]


def read(
    path: str | os.PathLike[str], new: hdf5.New = hdf5.in_ram, how: Actions = hdf5.AS_GIVEN
) -> tuple[hdf5.Fields, hdf5.Attrs]:
    """Return the fields that the file has, in `new` arrays, and its attributes; scalars under `metadata/` become
    `metadata/<name>`.

    Where a file of D4RL's mazes (it has `infos/goal`) lacks `next_observations`, they are the rows below, see `_rows_below`.
    Raises `UserError` as `hdf5.read` does.
    """
    name = hdf5.shown(path)
    with hdf5.opened(path) as file:
        metadata = _metadata(file)
        is_maze = "infos/goal" in file
        foreign = any(
            file[key].shape[1:] == (1,) for key in VECTORS if key in file
        )  # none of our own, of any version
        if foreign:
            attrs = hdf5.scalars(file.attrs)
            fields = hdf5.check(
                {key: file[key] for key in hdf5.LAYOUT if key in file}, name, new, flatten=True, how=how
            )
    if not foreign:
        fields, attrs = hdf5.read(path, new, how)
    return _mended(fields, is_maze, name, new), hdf5.scalars(metadata) | attrs


def attributes(path: str | os.PathLike[str]) -> hdf5.Attrs:
    """The file's attributes alone. Raises `UserError` as `hdf5.opened` does."""
    with hdf5.opened(path) as file:
        return hdf5.scalars(_metadata(file)) | hdf5.scalars(file.attrs)


def _metadata(file: h5py.File) -> dict[str, Any]:
    group = file.get("metadata")
    items = group.items() if isinstance(group, h5py.Group) else ()
    return {f"metadata/{k}": v[()] for k, v in items if isinstance(v, h5py.Dataset) and not v.shape}


def read_dict(data: Mapping[str, Any], how: Actions = hdf5.AS_GIVEN) -> tuple[hdf5.Fields, hdf5.Attrs]:
    """The same of a dict of arrays, such as D4RL's `env.get_dataset()` returns; `infos` and what has a `/` in it are optional.

    Raises `UserError` for a name that is none of the fields, and as `hdf5.check` does.
    """
    for key in data:
        if key not in hdf5.LAYOUT and "/" not in key and key != "infos":
            near = difflib.get_close_matches(key, hdf5.LAYOUT, 1, 0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(f"dict: {key!r} is not a field; {hint}the fields are {', '.join(hdf5.LAYOUT)}")
    raw = {key: np.asarray(data[key]) for key in hdf5.LAYOUT if data.get(key) is not None}
    metadata = {key: x for key, x in data.items() if key.startswith("metadata/") and np.ndim(x) == 0}
    fields = hdf5.check(raw, "dict", flatten=True, how=how)
    return _mended(fields, "infos/goal" in data, "dict", hdf5.in_ram), hdf5.scalars(metadata)


def _mended(fields: hdf5.Fields, is_maze: bool, where: object, new: hdf5.New) -> hdf5.Fields:
    if not is_maze or "next_observations" in fields:
        return fields
    fields = fields | _rows_below(fields, where, new)
    unknown = fields["timeouts"].copy()
    unknown[-1] = True
    if (fields["terminals"] & ~unknown).sum() < fields["terminals"].sum() / 2:
        warnings.warn(
            f"{where}: most steps to the goal have no known next observation and are not used", stacklevel=3
        )
    return fields


def _rows_below(fields: hdf5.Fields, where: object, new: hdf5.New) -> hdf5.Fields:
    """`next_observations` of a D4RL maze, and `timeouts`; flags, some bytes a row, are worked on as a whole.

    Its terminals were set afterwards, in every step at the goal, where the episode went on (scripts/generation/
    relabel_antmaze_rewards.py): what followed them is known, and they are the only rows with a reward. A leap of x, y by
    over 1 m is a reset without a flag. An observation that stands there twice was not looked up again after a waypoint
    (generate_maze2d_datasets.py): what followed the first is lost, and the second is not where its action was taken.
    """
    obs = fields["observations"]
    below = new("below", obs.shape, obs.dtype)
    leaps, stale = np.zeros((2, len(obs)), np.bool_)
    for rows, after in _pairs(obs):
        leaps[rows] = np.linalg.norm(obs[after, :2] - obs[rows, :2], axis=1) > 1
        stale[rows] = (obs[after] == obs[rows]).all(1)
        below[rows] = obs[after]
    flags = fields.get("timeouts", np.zeros(len(obs), np.bool_))
    timeouts = (
        flags | leaps | stale | _shifted(stale, 1) | _out_of_step(flags, leaps & ~fields["terminals"], where)
    )
    below[timeouts] = np.nan
    below[-1] = np.nan
    return {"next_observations": below, "timeouts": timeouts}


def _pairs(obs: np.ndarray) -> Iterator[tuple[slice, slice]]:
    """Blocks of all rows that have one below, and the blocks of those below them."""
    for rows in hdf5.blocks(len(obs) - 1, obs.shape[1]):
        yield rows, slice(rows.start + 1, rows.stop + 1)


def _out_of_step(flags: np.ndarray, leaps: np.ndarray, where: object) -> np.ndarray:
    """Rows that end an episode if flags are one row off, which most of the visible resets (`leaps`) have to say; it warns."""
    for late, word in ((1, "late"), (-1, "early")):
        ends = _shifted(flags, -late)
        n = int((ends & leaps).sum())
        if n > (flags & leaps).sum() and 2 * n >= leaps.sum():
            warnings.warn(
                f"{where}: timeouts are out of step: at {n} of {leaps.sum()} resets the flag is one row {word}, as in D4RL's "
                "antmaze -v0 and -v1 (its issue 77); the flag's row and the reset's both count as ends, unused; take -v2",
                stacklevel=5,
            )
            return ends
    return np.zeros_like(flags)


def _shifted(flags: np.ndarray, rows: int) -> np.ndarray:
    """The flags one row further down (1) or up (-1)."""
    return np.append(False, flags[:-1]) if rows > 0 else np.append(flags[1:], False)
