"""Minari datasets, by id, from the local store.

A Minari episode of T steps holds T + 1 observations, so that every row's next observation is known, the last one's too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mbo2o.data import schema
from mbo2o.types import UserError


def read(dataset_id: str) -> tuple[schema.Fields, schema.Attrs]:
    """Return all episodes as rows, and the attributes `minari_id` and, where Minari knows it, `env_id`.

    An episode that neither terminated nor was truncated was cut by its collector: its last row counts as a timeout.
    Raises `UserError` when the set is not in the local store, is empty or unreadable, or when its observations are not
    flat vectors or its actions do not live in [-1, 1].
    """
    import minari

    where = f"minari:{dataset_id}"
    try:
        dataset = minari.load_dataset(dataset_id)
        _check_spaces(dataset, where)
        episodes = [_rows(episode, where) for episode in dataset.iterate_episodes()]
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
    if not _is_flat_box(obs):
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


def _name(space: Any) -> str:
    return f"{type(space).__name__}{space.shape if space.shape is not None else ''}"


def _rows(episode: Any, where: str) -> schema.Fields:
    obs, steps = np.asarray(episode.observations), len(episode.rewards)
    if len(obs) != steps + 1:
        raise UserError(
            f"{where}: episode {episode.id} has {len(obs)} observations for {steps} steps, expected {steps + 1}; "
            "download it anew"
        )
    terminals = np.asarray(episode.terminations, dtype=np.bool_)
    timeouts = np.array(episode.truncations, dtype=np.bool_)
    timeouts[-1:] |= ~terminals[-1:]
    return {
        "observations": obs[:-1],
        "actions": np.asarray(episode.actions),
        "rewards": np.asarray(episode.rewards),
        "terminals": terminals,
        "timeouts": timeouts,
        "next_observations": obs[1:],
    }
