"""D4RL's HDF5 files, which are also our own: the fields, the file's attributes, and D4RL's `metadata/` group.

D4RL's antmaze: 29 observations, the ant's x, y and 27 more, and rewards in {0, 1} for the goal of the evaluation, which is the
same in all episodes and not observed. `infos/goal`, the place the collecting controller was heading for, is not that goal
and is not read. Rows are left as they are: gymnasium-robotics' AntMaze observes the goal too (31, see `goals.flatten`) and puts
the origin elsewhere, so these files serve offline training alone (a run in that environment is refused for the 29); Minari's
D4RL/antmaze/* are the sets of that environment. Use -v2: in -v0 and -v1 the timeouts are out of step (D4RL issue 77).
"""

from __future__ import annotations

import os
import warnings

import h5py
import numpy as np

from mbo2o.data import schema


def read(path: str | os.PathLike[str]) -> tuple[schema.Fields, schema.Attrs]:
    """Return the fields that the file has and its attributes; scalars under `metadata/` become `metadata/<name>`.

    Where a file of D4RL's mazes (it has `infos/goal`) lacks `next_observations`, they are the rows below, see `_rows_below`.
    Raises `UserError` as `schema.read` does.
    """
    fields, attrs = schema.read(path)
    with schema.opened(path) as file:
        group = file.get("metadata")
        if isinstance(group, h5py.Group):
            datasets = {f"metadata/{k}": v[()] for k, v in group.items() if isinstance(v, h5py.Dataset) and not v.shape}
            attrs = schema.scalars(datasets) | attrs
        if "infos/goal" in file and "next_observations" not in fields:
            fields |= _rows_below(fields)
            unknown = np.isnan(fields["next_observations"]).any(1)
            if (fields["terminals"] & ~unknown).sum() < fields["terminals"].sum() / 2:
                warnings.warn(f"{path}: most steps to the goal have no known next observation and are not used", stacklevel=2)
    return fields, attrs


def _rows_below(fields: schema.Fields) -> schema.Fields:
    """`next_observations` of a D4RL maze, and `timeouts`.

    Its terminals were set afterwards, in every step at the goal, where the episode went on (scripts/generation/
    relabel_antmaze_rewards.py): what followed them is known, and they are the only rows with a reward. A leap of x, y by
    over 1 m is a reset without a flag.
    """
    obs = fields["observations"]
    leaps = np.append(np.linalg.norm(obs[1:, :2] - obs[:-1, :2], axis=1) > 1, False)
    timeouts = fields.get("timeouts", np.zeros(len(obs), np.bool_)) | leaps
    below = np.append(obs[1:], np.full_like(obs[:1], np.nan), axis=0)
    below[timeouts] = np.nan
    return {"next_observations": below, "timeouts": timeouts}
