"""The compact layout: next observations are stored only where the next row does not hold them.

In a log that is in time order the next observation of a row is the observation of the row below, except where
an episode ends. A file in this layout has, instead of `next_observations (N, D)`, the field
`final_observations (E, D)`: what followed each of the E rows that end an episode (a terminal, a timeout, or
the last row), in their order. It takes a little more than half of the full layout's bytes and says the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mbo2o.data.fields import Fields, New, blocks
from mbo2o.errors import UserError

FINAL = "final_observations"


def shrink(fields: Fields, where: object) -> Fields:
    """Checked fields in the compact layout. Raises `UserError` where the row below says something else."""
    if "next_observations" not in fields:
        raise UserError(f"{where}: the compact layout needs next_observations, which are missing")
    obs, after = fields["observations"], fields["next_observations"]
    end = _ends(fields["terminals"], fields.get("timeouts"))
    for rows in blocks(len(obs) - 1, obs.shape[1]):
        below = obs[rows.start + 1 : rows.stop + 1]
        wrong = (after[rows] != below).any(1) & ~end[rows]
        if wrong.any():
            row = rows.start + int(np.argmax(wrong))
            raise UserError(
                f"{where}: the next observation of row {row} is not the observation of row {row + 1}, and no "
                "flag says that an episode ends there; write the full layout"
            )
    kept = {key: x for key, x in fields.items() if key != "next_observations"}
    return kept | {FINAL: after[end]}


def expand(stored: dict[str, Any], final: Any, where: object, new: New) -> np.ndarray:
    """The `next_observations (N, D)` of a compact file, in a `new` array.

    Raises `UserError` if there are more or fewer final observations than episodes, or of another size.
    """
    obs = stored["observations"]
    flags = [np.asarray(stored[x][:], bool).reshape(-1) for x in ("terminals", "timeouts") if x in stored]
    end = _ends(flags[0], *flags[1:])
    expected = (int(end.sum()), *obs.shape[1:])
    if final.shape != expected:
        raise UserError(
            f"{where}: {FINAL!r} has shape {final.shape}, expected {expected}, a row for each end of an "
            "episode; write the file again"
        )
    out = new("next", obs.shape, np.float32)
    for rows in blocks(len(obs), obs.shape[1]):
        below = obs[rows.start + 1 : rows.stop + 1]
        out[rows.start : rows.start + len(below)] = below
    out[end] = final[:]
    return out


def thin(fields: Fields, every: int, where: object) -> Fields:
    """Each `every`-th whole episode, the best one among them; an episode that the file cuts is left out.

    Raises `UserError` for a file without a whole episode.
    """
    end = _ends(fields["terminals"], fields.get("timeouts"))
    number = np.cumsum(end) - end
    whole = int((fields["terminals"] | fields.get("timeouts", np.zeros(len(end), bool))).sum())
    if whole == 0:
        raise UserError(f"{where}: holds no whole episode to choose from")
    best = int(np.argmax(np.bincount(number, fields["rewards"], minlength=whole)[:whole]))
    keep = (number < whole) & (number % every == best % every)
    return {key: x[keep] for key, x in fields.items()}


def _ends(terminals: np.ndarray, timeouts: np.ndarray | None = None) -> np.ndarray:
    end = terminals.copy() if timeouts is None else terminals | timeouts
    end[-1:] = True
    return end
