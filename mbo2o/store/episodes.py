"""Lists of episodes with the names of D4RL or Minari: dicts of arrays, or objects with such attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mbo2o.data.actions import Actions, Bounds
from mbo2o.data.dataset import TransitionDataset, build_dataset
from mbo2o.data.fields import FIELDS, OPTIONAL, Attrs, Fields, check_fields
from mbo2o.envs import goals
from mbo2o.types import UserError

MINARI = {"terminations": "terminals", "truncations": "timeouts"}

Episode = Mapping[str, Any] | Any
"""A dict, or any object with the attributes: Minari's `EpisodeData`, a named tuple, a dataclass."""


def read_episodes(
    episodes: Sequence[Episode],
    attrs: Attrs | None = None,
    bounds: Bounds | None = None,
    clip: bool = False,
) -> TransitionDataset:
    """Build a dataset from a list of episodes, each a dict or object of arrays with D4RL's names.

    `terminations` and `truncations` (Minari's names) stand for `terminals` and `timeouts`. Goal-conditioned
    observations (dicts) become vectors, as in Minari's sets.

    An episode of T steps has T + 1 `observations`, the last of which followed the last step; or T of them,
    perhaps with T `next_observations`. With neither, the observation after the last step is unknown. A last
    step that did not terminate counts as a timeout. attrs, bounds, clip: see `TransitionDataset.from_arrays`.
    Raises `UserError`.
    """
    if not episodes:
        raise UserError("episodes: the list is empty; a dataset needs at least one transition")
    rows = [_episode_fields(_as_dict(x), f"episodes[{i}]") for i, x in enumerate(episodes)]
    widths = [{key: x.shape[1:] for key, x in r.items()} for r in rows]
    for i, width in enumerate(widths):
        if bad := [key for key in FIELDS if width[key] != widths[0][key]]:
            found, expected = width[bad[0]], widths[0][bad[0]]
            raise UserError(
                f"episodes[{i}]: {bad[0]!r} has rows of shape {found}, those of episodes[0] {expected}; "
                "give all the same shape"
            )
    joined = {key: np.concatenate([r[key] for r in rows]) for key in FIELDS}
    fields = check_fields(joined, "episodes", units=Actions.given(bounds, clip))
    return build_dataset(fields, attrs, "episodes")


def _as_dict(episode: Episode) -> Mapping[str, Any]:
    """The episode as a dict; of an object's attributes only those that are fields, so not its `id`."""
    if isinstance(episode, Mapping):
        return episode
    return {key: getattr(episode, key) for key in (*FIELDS, *MINARI) if hasattr(episode, key)}


def _array(key: str, value: Any, where: str) -> np.ndarray:
    """A column; goal-conditioned observations become vectors, as in Minari's sets."""
    if not isinstance(value, Mapping):
        return np.asarray(value)
    if set(value) != goals.KEYS:
        raise UserError(
            f"{where}: {key!r} is a dict of {', '.join(map(str, value)) or 'nothing'}, expected an array, "
            f"or a dict of {', '.join(sorted(goals.KEYS))}; join its parts to one vector per step"
        )
    return goals.flatten(value)


def _episode_fields(episode: Mapping[str, Any], where: str) -> Fields:
    """One episode as all six fields, one row per step. Raises `UserError`."""
    given = {key: value for key, value in episode.items() if value is not None and key != "infos"}
    x = {MINARI.get(key, key): _array(key, value, where) for key, value in given.items()}
    if missing := [key for key in FIELDS if key not in x and key not in OPTIONAL]:
        raise UserError(
            f"{where}: {missing[0]!r} is missing (found {', '.join(episode)}); add it, one row per step"
        )
    if unknown := [key for key in x if key not in FIELDS]:
        raise UserError(f"{where}: {unknown[0]!r} is not a field; the fields are {', '.join(FIELDS)}")
    if scalar := [key for key in x if x[key].ndim == 0]:
        raise UserError(f"{where}: {scalar[0]!r} is one number, expected an array; give one row per step")
    steps, obs = len(x["actions"]), x["observations"]
    next_obs = x.get("next_observations")
    if len(obs) == steps + 1 and next_obs is None:
        obs, next_obs = obs[:-1], obs[1:]
    elif len(obs) != steps:
        raise UserError(
            f"{where}: {len(obs)} observations for {steps} actions, expected {steps}, "
            "or one more and no next ones"
        )
    elif next_obs is None:
        next_obs = np.append(obs[1:], np.full_like(obs[:1], np.nan, dtype=np.float32), axis=0)
    ends = x.get("timeouts", np.zeros(steps, np.bool_)).copy()
    rows = x | {"observations": obs, "next_observations": next_obs, "timeouts": ends}
    if uneven := [key for key, column in rows.items() if len(column) != steps]:
        raise UserError(
            f"{where}: {uneven[0]!r} has {len(rows[uneven[0]])} rows for {steps} actions; "
            "give it one per step"
        )
    if not rows["terminals"][-1:].any():
        ends[-1:] = 1
    return rows
