"""D4RL's HDF5 files, which are also our own, and dicts with the same names: fields, attributes, `metadata/`.

The variants differ in what they leave out: -v0 of the MuJoCo tasks and kitchen may have neither `timeouts`
nor `next_observations`, adroit has the former, -v1 and -v2 of the MuJoCo tasks have both. Rewards and flags
may be columns `(N, 1)`, which D4RL's own loader flattens, and so does this one. `infos` (an array in kitchen,
elsewhere a group) and collecting policies are not read.

D4RL's antmaze has 29 observations, the ant's x, y and 27 more, and rewards in {0, 1} for the goal of the
evaluation, which is the same in all episodes and not observed. `infos/goal`, the place to which the
collecting controller walked, is not that goal and is not read. The rows stay as they are. Gymnasium-robotics'
AntMaze also observes the goal (31 numbers, see `goals.flatten`) and has another origin; a run with these
files makes it show D4RL's 29 numbers instead (`envs.layouts`). Minari's D4RL/antmaze/* were collected in that
environment as it is. Use -v2: in -v0 and -v1 the timeouts are out of step (D4RL issue 77).

D4RL's maze2d is one long walk: a timeout means that a waypoint was reached (D4RL issue 85), and rewards are
those of the row's own observation, a step early (issue 194). Both stay as they are.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np

from mbo2o.data.actions import Actions, Bounds
from mbo2o.data.dataset import TransitionDataset, build_dataset
from mbo2o.data.fields import AS_GIVEN, FIELDS, VECTORS, Attrs, Fields, New, blocks, check_fields, in_ram
from mbo2o.registry import did_you_mean
from mbo2o.store.hdf5 import open_hdf5, read_open_file, scalar_attrs
from mbo2o.store.whole import shown
from mbo2o.types import UserError


def read_d4rl(
    path: str | os.PathLike[str], new: New = in_ram, units: Actions = AS_GIVEN, mend: bool = True
) -> tuple[Fields, Attrs]:
    """Read the fields of a file, in `new` arrays, and its attributes.

    Scalars in `metadata/` become attributes `metadata/<name>`. mend: if a file of D4RL's mazes (it has
    `infos/goal`) lacks `next_observations`, fill them in, see `_observations_of_maze`. Raises `UserError` as
    `read_hdf5` does.
    """
    name = shown(path)
    with open_hdf5(path) as file:
        metadata = scalar_attrs(_metadata(file))
        is_maze = "infos/goal" in file
        columns = any(file[key].shape[1:] == (1,) for key in VECTORS if key in file)
        fields, attrs = read_open_file(file, name, new, units, flatten=columns)
    if mend:
        fields = _mended(fields, is_maze, name, new)
    return fields, metadata | attrs


def read_d4rl_attrs(path: str | os.PathLike[str]) -> Attrs:
    """The attributes alone. Raises `UserError` as `open_hdf5` does."""
    with open_hdf5(path) as file:
        return scalar_attrs(_metadata(file)) | scalar_attrs(file.attrs)


def _metadata(file: h5py.File) -> dict[str, Any]:
    group = file.get("metadata")
    items = group.items() if isinstance(group, h5py.Group) else ()
    return {f"metadata/{k}": v[()] for k, v in items if isinstance(v, h5py.Dataset) and not v.shape}


def read_dict(
    data: Mapping[str, Any], attrs: Attrs | None = None, bounds: Bounds | None = None, clip: bool = False
) -> TransitionDataset:
    """Build a dataset from a dict of arrays with D4RL's names, such as its `env.get_dataset()` returns.

    Columns `(N, 1)` of rewards or flags are flattened, scalars in `metadata/` become attributes, and `infos`
    and other names with a `/` are left out. attrs, bounds, clip: see `TransitionDataset.from_arrays`. Raises
    `UserError` for any other name, and as `from_arrays` does.
    """
    for key in data:
        if key not in FIELDS and "/" not in key and key != "infos":
            hint = did_you_mean(key, FIELDS, 0.4)
            raise UserError(f"dict: {key!r} is not a field; {hint}the fields are {', '.join(FIELDS)}")
    raw = {key: np.asarray(data[key]) for key in FIELDS if data.get(key) is not None}
    metadata = {key: x for key, x in data.items() if key.startswith("metadata/") and np.ndim(x) == 0}
    fields = check_fields(raw, "dict", flatten=True, units=Actions.given(bounds, clip))
    fields = _mended(fields, "infos/goal" in data, "dict", in_ram)
    return build_dataset(fields, scalar_attrs(metadata) | (attrs or {}), "dict")


def _mended(fields: Fields, is_maze: bool, where: object, new: New) -> Fields:
    if not is_maze or "next_observations" in fields:
        return fields
    fields = fields | _observations_of_maze(fields, where, new)
    unknown = fields["timeouts"].copy()
    unknown[-1] = True
    if (fields["terminals"] & ~unknown).sum() < fields["terminals"].sum() / 2:
        warnings.warn(
            f"{where}: most steps to the goal have no known next observation and are not used", stacklevel=3
        )
    return fields


def _observations_of_maze(fields: Fields, where: object, new: New) -> Fields:
    """`next_observations` of a D4RL maze, the rows below, and `timeouts`; flags are processed as a whole.

    The terminals were set afterwards, in every step at the goal, while the episode went on
    (scripts/generation/ relabel_antmaze_rewards.py): what followed them is known, and they are the only rows
    with a reward. A leap of x, y by more than 1 m is a reset without a flag. An observation that stands there
    twice was not read again after a waypoint (generate_maze2d_datasets.py): what followed the first is lost,
    and the second is not the one in which its action was taken.
    """
    obs = fields["observations"]
    below = new("below", obs.shape, obs.dtype)
    leaps, stale = np.zeros((2, len(obs)), np.bool_)
    for rows, after in _pairs(obs):
        leaps[rows] = np.linalg.norm(obs[after, :2] - obs[rows, :2], axis=1) > 1
        stale[rows] = (obs[after] == obs[rows]).all(1)
        below[rows] = obs[after]
    flags = fields.get("timeouts", np.zeros(len(obs), np.bool_))
    late = _out_of_step(flags, leaps & ~fields["terminals"], where)
    timeouts = flags | leaps | stale | _shifted(stale, 1) | late
    below[timeouts] = np.nan
    below[-1] = np.nan
    return {"next_observations": below, "timeouts": timeouts}


def _pairs(obs: np.ndarray) -> Iterator[tuple[slice, slice]]:
    """Blocks of all rows but the last, and the blocks of the rows below them."""
    for rows in blocks(len(obs) - 1, obs.shape[1]):
        yield rows, slice(rows.start + 1, rows.stop + 1)


def _out_of_step(flags: np.ndarray, leaps: np.ndarray, where: object) -> np.ndarray:
    """The rows that end an episode if the flags are one row off, with a warning; all false otherwise.

    The flags are off if most of the visible resets (`leaps`) say so.
    """
    for late, word in ((1, "late"), (-1, "early")):
        ends = _shifted(flags, -late)
        n = int((ends & leaps).sum())
        if n > (flags & leaps).sum() and 2 * n >= leaps.sum():
            text = (
                f"timeouts are out of step: at {n} of {leaps.sum()} resets the flag is one row {word}, as in "
                "D4RL's antmaze -v0 and -v1 (its issue 77); the flag's row and the reset's both count as "
                "ends, unused; take -v2"
            )
            warnings.warn(f"{where}: {text}", stacklevel=5)
            return ends
    return np.zeros_like(flags)


def _shifted(flags: np.ndarray, rows: int) -> np.ndarray:
    """The flags one row further down (1) or up (-1)."""
    return np.append(False, flags[:-1]) if rows > 0 else np.append(flags[1:], False)
