"""A Stable-Baselines3 replay buffer, taken from the live object: by its attributes, never from its pickle.

Its arrays are rings `(buffer_size, n_envs, ...)` in which `pos` is written next. Actions are what its off-policy algorithms
store, scaled to [-1, 1]; `dones` are 1 at time limits, too, which `timeouts` marks. With `optimize_memory_usage` there is one
array of observations: a step's next one is the next slot's, until the first observation after a reset takes its place.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from mbo2o.data.actions import Actions
from mbo2o.envs import goals
from mbo2o.store import hdf5
from mbo2o.types import UserError

ATTRIBUTES = ("observations", "actions", "rewards", "dones", "pos", "full", "n_envs")


def read(buffer: Any, how: Actions = hdf5.AS_GIVEN) -> hdf5.Fields:
    """Each environment's rows, oldest first, one environment after the other; where its record ends counts as a timeout.

    Raises `UserError` for what is no such buffer, is empty, or holds observations or actions that are no vectors.
    """
    where = f"{type(buffer).__name__} of Stable-Baselines3"
    if missing := [name for name in ATTRIBUTES if not hasattr(buffer, name)]:
        raise UserError(
            f"{where}: has no {missing[0]!r}, which a replay buffer has; give model.replay_buffer, alive"
        )
    if np.asarray(buffer.actions).dtype.kind != "f":
        raise UserError(
            f"{where}: actions are {np.asarray(buffer.actions).dtype}; only continuous control is supported"
        )
    shared = bool(getattr(buffer, "optimize_memory_usage", False))
    if not getattr(buffer, "handle_timeout_termination", True):
        warnings.warn(
            f"{where}: with handle_timeout_termination=False it cannot tell time limits from terminations; all count as such",
            stacklevel=3,
        )
    obs = _flat(buffer.observations)
    slots = _slots(len(obs), int(buffer.pos), bool(buffer.full), shared)
    dones = np.asarray(buffer.dones)[slots].astype(np.bool_)
    timeouts = (
        np.asarray(getattr(buffer, "timeouts", np.zeros_like(buffer.dones)))[slots].astype(np.bool_) & dones
    )
    next_obs = _next_slots(obs, slots, dones) if shared else _flat(buffer.next_observations)[slots]
    terminals = dones & ~timeouts
    timeouts[-1:] |= ~terminals[-1:]
    rings = {
        "observations": obs[slots],
        "actions": np.asarray(buffer.actions)[slots],
        "rewards": np.asarray(buffer.rewards)[slots],
        "terminals": terminals,
        "timeouts": timeouts,
        "next_observations": next_obs,
    }
    return hdf5.check(
        {key: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]) for key, x in rings.items()}, where, how=how
    )


def _flat(x: Any) -> np.ndarray:
    """Dict observations, as `HerReplayBuffer` has them, become vectors like those of the environments."""
    return goals.flatten(x) if isinstance(x, dict) and set(x) == goals.KEYS else np.asarray(x)


def _slots(size: int, pos: int, full: bool, shared: bool) -> np.ndarray:
    """Those that hold a step, oldest first. Sharing has put the latest next observation into the oldest step's slot."""
    if not full:
        return np.arange(pos)
    return (pos + np.arange(shared, size)) % size


def _next_slots(obs: np.ndarray, slots: np.ndarray, dones: np.ndarray) -> np.ndarray:
    """NaN after an episode's end, but for the latest step, which no reset has followed yet."""
    next_obs = obs[(slots + 1) % len(obs)].astype(np.float32)
    next_obs[:-1][dones[:-1]] = np.nan
    return next_obs
