"""Where episodes end although the task does not; `TransitionDataset.from_arrays` says how this is found."""

from __future__ import annotations

import warnings

import numpy as np

from mbo2o.data.fields import Attrs, Fields, New, blocks
from mbo2o.types import UserError


def find_truncations(fields: Fields, attrs: Attrs, where: object, new: New) -> tuple[np.ndarray, bool]:
    """Find the truncated rows, `(N,)` in a `new` array, and whether all episode ends are known.

    Without timeouts a warning says how many ends were inferred, and from what. Raises `UserError` if the
    attribute max_episode_steps is needed and is not a positive integer.
    """
    terminated, flagged = fields["terminals"], fields.get("timeouts")
    out = new("truncated", terminated.shape, np.bool_)
    if "next_observations" in fields:
        _find_breaks(fields, out, where)
        if flagged is None:
            _warn_inferred(where, out, "next_observations")
    elif flagged is not None:
        for rows in blocks(len(out)):
            out[rows] = flagged[rows] & ~terminated[rows]
    elif "max_episode_steps" in attrs:
        _cut_at_limit(terminated, attrs["max_episode_steps"], out, where)
        _warn_inferred(where, out, f"max_episode_steps={attrs['max_episode_steps']}")
    else:
        warnings.warn(
            f"{where}: no timeouts, no next_observations: if a time limit cut an episode it cannot be seen, "
            "what followed its last row is then the next one's start, and no return is known "
            f"({int(terminated.sum())} rows terminate); give one of them (timeouts of 0 if nothing was cut), "
            "or max_episode_steps",
            stacklevel=4,
        )
        out[:] = False
        return out, False
    return out, True


def _warn_inferred(where: object, out: np.ndarray, source: str) -> None:
    ends = int(np.count_nonzero(out))
    verb = "end follows" if ends == 1 else "ends follow"
    text = f"{where}: no timeouts: {ends} episode {verb} from {source}, beside the terminations"
    warnings.warn(text, stacklevel=5)


def _find_breaks(fields: Fields, out: np.ndarray, where: object) -> None:
    """Write timeouts and breaks into `out`; the timeouts alone if most rows are breaks (rounded, shuffled).

    A break is a row whose next observation is not the observation in the row below. A row whose next
    observation is unknown is a break only if there are no timeouts.
    """
    obs, next_obs, terminated = fields["observations"], fields["next_observations"], fields["terminals"]
    flagged = fields.get("timeouts")
    hidden = 0
    for rows in blocks(*obs.shape):
        after = obs[rows.start + 1 : rows.stop + 1]
        cuts = np.zeros(rows.stop - rows.start, np.bool_)
        cuts[: len(after)] = (next_obs[rows][: len(after)] != after).any(1)
        cuts &= ~terminated[rows]
        if flagged is not None:
            cuts &= ~np.isnan(next_obs[rows, 0])
            hidden += int((cuts & ~flagged[rows]).sum())
        out[rows] = cuts
    many = 2 * hidden > len(out)
    if hidden:
        what = "rounded or shuffled? timeouts are believed" if many else "their episodes are cut there"
        text = f"{where}: {hidden} rows without a flag are not followed by their own next observation; {what}"
        warnings.warn(text, stacklevel=5)
    if flagged is not None:
        for rows in blocks(len(out)):
            out[rows] = (flagged[rows] if many else flagged[rows] | out[rows]) & ~terminated[rows]


def _cut_at_limit(terminated: np.ndarray, limit: object, out: np.ndarray, where: object) -> None:
    """Mark every `limit`-th row after a termination."""
    if not isinstance(limit, int) or limit < 1:
        raise UserError(
            f"{where}: attribute max_episode_steps is {limit!r}, expected a positive int; mend it"
        )
    begun = 0
    for rows in blocks(len(out)):
        row = np.arange(rows.start, rows.stop)
        first = np.append(rows.start == 0 or terminated[rows.start - 1], terminated[rows][:-1])
        start = np.maximum.accumulate(np.where(first, row, begun))
        out[rows] = ((row - start + 1) % limit == 0) & ~terminated[rows]
        begun = start[-1]
