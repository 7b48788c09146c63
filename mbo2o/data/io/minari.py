"""Minari datasets, by id, from the local store.

A Minari episode of T steps holds T + 1 observations, so that every row's next observation is known, the last one's too.

Goal-conditioned sets come as `goals.flatten` makes them, which is also how `run.lanes.make_env` shows the environment. Minari's
PointMaze and AntMaze sets (D4RL/pointmaze/*, D4RL/antmaze/*, collected with `continuing_task=True`) are read as the task that
ends at the goal: an episode terminates with its first reward, and what it held after that is left out. Their `env_id` stands
for the maze as gymnasium-robotics registers it; a set may have been collected with start and goal in chosen cells of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mbo2o.data import schema
from mbo2o.data.io import goals
from mbo2o.types import UserError


def read(dataset_id: str) -> tuple[schema.Fields, schema.Attrs]:
    """Return all episodes as rows, and the attributes `minari_id` and, where Minari knows it, `env_id`.

    An episode that neither terminated nor was truncated was cut by its collector: its last row counts as a timeout.
    Raises `UserError` when the set is not in the local store, is empty or unreadable, or when its observations are neither
    flat vectors nor goal-conditioned, or its actions do not live in [-1, 1].
    """
    import minari

    where = f"minari:{dataset_id}"
    try:
        dataset = minari.load_dataset(dataset_id)
        _check_spaces(dataset, where)
        flat = goals.flatten if _is_goal_dict(dataset.observation_space) else np.asarray
        ends_at_goal = dataset.env_spec is not None and goals.sparse_maze(dataset.env_spec.id) is not None
        episodes = [_rows(episode, where, flat, ends_at_goal) for episode in dataset.iterate_episodes()]
    except FileNotFoundError as error:
        raise UserError(
            f"{where}: not in the local Minari store; run `minari download {dataset_id}`, "
            "or set MINARI_DATASETS_PATH to the folder that has it"
        ) from error
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise UserError(f"{where}: cannot be read ({' '.join(str(error).split())}); download it anew") from error
    if not episodes:
        raise UserError(f"{where}: has no episodes; a dataset needs at least one transition")

    attrs: schema.Attrs = {"minari_id": dataset_id}
    if dataset.env_spec is not None:
        attrs["env_id"] = dataset.env_spec.id
    return schema.check({key: np.concatenate([e[key] for e in episodes]) for key in schema.LAYOUT}, where), attrs


def _check_spaces(dataset: Any, where: str) -> None:
    obs, act = dataset.observation_space, dataset.action_space
    if not (_is_flat_box(obs) or _is_goal_dict(obs)):
        raise UserError(f"{where}: observations are {_name(obs)}, expected a flat Box; export them as one vector")
    if not _is_flat_box(act):
        raise UserError(f"{where}: actions are {_name(act)}, expected a flat Box; only continuous control is supported")
    if not (np.allclose(act.low, -1) and np.allclose(act.high, 1)):
        raise UserError(
            f"{where}: the action space is [{act.low.min():.4g}, {act.high.max():.4g}], expected [-1, 1]; "
            "collect through gymnasium's RescaleAction, or rescale and use from_arrays"
        )


def _is_flat_box(space: Any) -> bool:
    return hasattr(space, "low") and len(space.shape) == 1  # only Box has bounds


def _is_goal_dict(space: Any) -> bool:
    parts = getattr(space, "spaces", {})
    return isinstance(parts, dict) and set(parts) == goals.KEYS and all(map(_is_flat_box, parts.values()))


def _name(space: Any) -> str:
    return f"{type(space).__name__}{space.shape if space.shape is not None else ''}"


def _rows(episode: Any, where: str, flat: Callable[[Any], np.ndarray], ends_at_goal: bool) -> schema.Fields:
    obs, steps = flat(episode.observations), len(episode.rewards)
    if len(obs) != steps + 1:
        raise UserError(
            f"{where}: episode {episode.id} has {len(obs)} observations for {steps} steps, expected {steps + 1}; "
            "download it anew"
        )
    rewards = np.asarray(episode.rewards)
    terminals = np.array(episode.terminations, dtype=np.bool_)
    timeouts = np.array(episode.truncations, dtype=np.bool_)
    if ends_at_goal and (rewards > 0).any():
        steps = int(np.argmax(rewards > 0)) + 1
        terminals[steps - 1] = True
    timeouts[steps - 1 : steps] |= ~terminals[steps - 1 : steps]
    rows = {
        "observations": obs[:-1],
        "actions": np.asarray(episode.actions),
        "rewards": rewards,
        "terminals": terminals,
        "timeouts": timeouts,
        "next_observations": obs[1:],
    }
    return {key: x[:steps] for key, x in rows.items()}
