"""A replay buffer of Stable-Baselines3, read from the attributes of the live object, never from a pickle.

Its arrays are rings `(buffer_size, n_envs, ...)` in which `pos` is written next. Its off-policy algorithms
store actions scaled to [-1, 1]. `dones` is also 1 at time limits, which `timeouts` marks. With
`optimize_memory_usage` there is one array of observations: the next observation of a step is in the next
slot, until the first observation after a reset overwrites it.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from mbo2o.data.actions import Actions, Bounds
from mbo2o.data.dataset import TransitionDataset, build_dataset
from mbo2o.data.fields import Attrs, check_fields
from mbo2o.envs import goals
from mbo2o.types import UserError

ATTRIBUTES = ("observations", "actions", "rewards", "dones", "pos", "full", "n_envs")


def read_sb3(
    buffer: Any, attrs: Attrs | None = None, bounds: Bounds | None = None, clip: bool = False
) -> TransitionDataset:
    """Copy a live replay buffer of Stable-Baselines3, such as `model.replay_buffer`, into a dataset.

    The rows of each environment follow one another, oldest first; the last one counts as a timeout. With
    `optimize_memory_usage` the observation after an episode's last step is unknown. Without
    `handle_timeout_termination` the buffer stores time limits as terminations; a warning says so.
    Observations are vectors, or goal-conditioned (`HerReplayBuffer`), and then flattened as in Minari's sets.
    Its algorithms store actions in [-1, 1]; bounds and clip (see `TransitionDataset.from_arrays`) are for
    buffers filled in another way.

    Raises `UserError` for an object that is not such a buffer, is empty, or whose observations or actions are
    not vectors.
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
        text = "cannot tell time limits from terminations; all count as such"
        warnings.warn(f"{where}: with handle_timeout_termination=False it {text}", stacklevel=3)
    obs = _flat(buffer.observations)
    slots = _slots(len(obs), int(buffer.pos), bool(buffer.full), shared)
    dones = np.asarray(buffer.dones)[slots].astype(np.bool_)
    limits = getattr(buffer, "timeouts", np.zeros_like(buffer.dones))
    timeouts = np.asarray(limits)[slots].astype(np.bool_) & dones
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
    rows = {key: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]) for key, x in rings.items()}
    fields = check_fields(rows, where, units=Actions.given(bounds, clip))
    return build_dataset(fields, attrs, "replay buffer")


def _flat(x: Any) -> np.ndarray:
    """Dict observations, as in `HerReplayBuffer`, become vectors like those of the environments."""
    return goals.flatten(x) if isinstance(x, dict) and set(x) == goals.KEYS else np.asarray(x)


def _slots(size: int, pos: int, full: bool, shared: bool) -> np.ndarray:
    """The slots with a step, oldest first. With sharing, the oldest slot has the latest next observation."""
    if not full:
        return np.arange(pos)
    return (pos + np.arange(shared, size)) % size


def _next_slots(obs: np.ndarray, slots: np.ndarray, dones: np.ndarray) -> np.ndarray:
    """Next observations; NaN after an episode's end, but not after the latest step: no reset followed it."""
    next_obs = obs[(slots + 1) % len(obs)].astype(np.float32)
    next_obs[:-1][dones[:-1]] = np.nan
    return next_obs
