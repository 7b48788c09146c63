"""Minari datasets by id: read from the local store, downloaded into it, and written to it from rows.

A Minari episode of T steps holds T + 1 observations, so that the next observation of every row is known.

Observations of goal-conditioned sets become vectors with `goals.flatten`, as `envs.make.make_env` shows the
environment. Minari's PointMaze and AntMaze sets (D4RL/pointmaze/*, D4RL/antmaze/*, collected with
`continuing_task=True`) are read as the task that ends at the goal: an episode terminates with its first
reward, and its later steps are left out. Their `env_id` means the maze as gymnasium-robotics registers it; a
set may have been collected with start and goal in chosen cells of it.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mbo2o.data.actions import Actions, Bounds
from mbo2o.data.dataset import TransitionDataset, fields_of
from mbo2o.data.fields import AS_GIVEN, Attrs, Fields, New, check_fields, in_ram
from mbo2o.envs import goals
from mbo2o.errors import optional
from mbo2o.store.hdf5 import imports_module
from mbo2o.store.whole import one_line
from mbo2o.types import UserError


def read_minari(dataset_id: str, new: New = in_ram, units: Actions = AS_GIVEN) -> tuple[Fields, Attrs]:
    """Read all episodes as rows, in `new` arrays, and the attributes `minari_id` and, if known, `env_id`.

    An episode that neither terminated nor was truncated was cut by its collector: its last row counts as a
    timeout. A set has an action space; actions of a space that is not [-1, 1] are mapped to [-1, 1], with a
    warning, unless the mode of `units` is `unit` or `clip`. Raises `UserError` if the set is not in the local
    store and cannot be downloaded, if it is empty or unreadable, if its observations are neither flat vectors
    nor goal-conditioned, or if its actions have no bounds.
    """
    minari = optional("minari", "a Minari dataset")

    where = f"minari:{dataset_id}"
    minari_folder(dataset_id)
    try:
        dataset = minari.load_dataset(dataset_id)
        _check_spaces(dataset, where)
        units = _set_units(dataset.action_space, units, where)
        flat = goals.flatten if _is_goal_dict(dataset.observation_space) else np.asarray
        ends_at_goal = dataset.env_spec is not None and goals.sparse_maze(dataset.env_spec.id) is not None
        episodes = (_episode_rows(x, where, flat, ends_at_goal) for x in dataset.iterate_episodes())
        fields = _joined(episodes, dataset.total_steps, new)
    except (OSError, RuntimeError, KeyError, ValueError, MemoryError) as error:
        raise UserError(f"{where}: cannot be read ({one_line(error)}); download it again") from error
    if not fields:
        raise UserError(f"{where}: has no episodes; a dataset needs at least one transition")

    return check_fields(fields, where, new, units=units), _attrs(dataset, dataset_id)


def read_minari_attrs(dataset_id: str) -> Attrs:
    """The attributes alone. Raises `UserError` as `read_minari` does."""
    minari = optional("minari", "a Minari dataset")

    minari_folder(dataset_id)
    try:
        return _attrs(minari.load_dataset(dataset_id), dataset_id)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        text = f"cannot be read ({one_line(error)}); download it again"
        raise UserError(f"minari:{dataset_id}: {text}") from error


def _attrs(dataset: Any, dataset_id: str) -> Attrs:
    known: Attrs = {} if dataset.env_spec is None else {"env_id": dataset.env_spec.id}
    return {"minari_id": dataset_id, **known}


def minari_box(dataset_id: str) -> Bounds:
    """The lowest and the highest action of the set's action space, each `(A,)`. Raises `UserError`."""
    minari = optional("minari", "a Minari dataset")
    minari_folder(dataset_id)
    space = minari.load_dataset(dataset_id).action_space
    return space.low.ravel().astype(np.float64), space.high.ravel().astype(np.float64)


def minari_folder(dataset_id: str) -> Path:
    """The folder of the set in the local store; it is downloaded if necessary. Raises `UserError`."""
    optional("minari", "a Minari dataset")
    from minari.storage import get_dataset_path

    path: Path = get_dataset_path(dataset_id) / "data"
    if not path.exists():
        _download(dataset_id, f"minari:{dataset_id}")
    return path


def _joined(episodes: Iterator[Fields], steps: int, new: New) -> Fields:
    """Join episodes of at most `steps` rows in all; the dtype of a field holds those of all episodes."""
    out: Fields = {}
    n = 0
    for rows in episodes:
        end = n + len(rows["rewards"])
        if end > steps:
            raise ValueError(f"more than the {steps} steps that its metadata name")
        for key, x in rows.items():
            before = out.get(key, x[:0])
            dtype = np.result_type(x.dtype, before.dtype)
            if key not in out or dtype != before.dtype:
                out[key] = new(f"{key}-{dtype}", (steps, *x.shape[1:]), dtype)
                out[key][:n] = before[:n]
            out[key][n:end] = x
        n = end
    return {key: x[:n] for key, x in out.items()}


def _download(dataset_id: str, where: str) -> None:
    minari = optional("minari", "a Minari dataset")
    from minari.storage import get_dataset_path

    try:
        if os.environ.get("MBO2O_OFFLINE", "0") not in ("", "0"):
            raise RuntimeError("MBO2O_OFFLINE is set")
        minari.download_dataset(dataset_id)
    except Exception as error:  # minari passes on every error of its clients without a network
        extra = isinstance(error, ImportError)
        reason = "pip install 'mbo2o[download]'" if extra else one_line(error)[:200]
        raise UserError(
            f"{where}: not in the local Minari store, and cannot be fetched ({reason}); run "
            f"`minari download {dataset_id}` where there is a network and copy the set to "
            f"{get_dataset_path(dataset_id)}, or set MINARI_DATASETS_PATH to the folder that has it"
        ) from error


def _check_spaces(dataset: Any, where: str) -> None:
    obs, act = dataset.observation_space, dataset.action_space
    if not (_is_flat_box(obs) or _is_goal_dict(obs)):
        raise UserError(
            f"{where}: observations are {_name(obs)}, expected a flat Box; export them as one vector"
        )
    if not hasattr(act, "low") or not act.shape:
        raise UserError(
            f"{where}: actions are {_name(act)}, expected a Box; only continuous control is supported"
        )


def _set_units(space: Any, units: Actions, where: str) -> Actions:
    """The units, with the box of the set unless another box is given."""
    bounded = bool(np.isfinite(space.low).all() and np.isfinite(space.high).all())
    if units.mode is None and not bounded:
        raise UserError(
            f"{where}: its action space has no bounds, so that it is unknown which actions are -1 and 1; "
            f"give {units.give('clip')} if they are in [-1, 1] except for a policy's unclipped outputs, "
            "else the bounds"
        )
    mode = units.mode or ("unit" if _is_unit(space) else "env")
    if units.mode is None and mode == "env":
        span = f"[{space.low.min():.4g}, {space.high.max():.4g}]"
        warnings.warn(
            f"{where}: actions are mapped to [-1, 1] from the set's own action space, {span}", stacklevel=4
        )
    own = (space.low, space.high) if bounded else None
    return Actions(mode, units.box if units.maps and units.box is not None else own, units.option)


def _is_flat_box(space: Any) -> bool:
    return hasattr(space, "low") and len(space.shape) == 1  # only Box has bounds


def _is_unit(space: Any) -> bool:
    return np.allclose(space.low, -1) and np.allclose(space.high, 1)


def _is_goal_dict(space: Any) -> bool:
    parts = getattr(space, "spaces", {})
    return isinstance(parts, dict) and set(parts) == goals.KEYS and all(map(_is_flat_box, parts.values()))


def _name(space: Any) -> str:
    return f"{type(space).__name__}{space.shape if space.shape is not None else ''}"


def _episode_rows(episode: Any, where: str, flat: Callable[[Any], np.ndarray], ends_at_goal: bool) -> Fields:
    obs, steps = flat(episode.observations), len(episode.rewards)
    if len(obs) != steps + 1:
        raise UserError(
            f"{where}: episode {episode.id} has {len(obs)} observations for {steps} steps, "
            f"expected {steps + 1}; download it again"
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


def write_minari(dataset: TransitionDataset, dataset_id: str) -> None:
    """Add a set to Minari's store (`MINARI_DATASETS_PATH`, or `~/.minari`) under an id `namespace/name-v0`.

    Each episode of T steps has T + 1 observations. The last one is NaN if it is unknown, with a warning:
    Minari has no other way to say so, a repeated observation would be false, and without the step a
    termination would be lost. The environment is stored with the set if it can be made here and its spaces
    are those of the data. Raises `UserError`.
    """
    minari = optional("minari", "a Minari dataset")
    from gymnasium.spaces import Box
    from minari.storage import get_dataset_path

    where = f"minari:{dataset_id}"
    path = get_dataset_path(dataset_id)
    if path.exists():
        raise UserError(f"{where}: exists already, at {path}; choose another id, or delete it")
    fields, attrs = fields_of(dataset), dataset.attrs
    env, buffers = _environment(attrs.get("env_id"), fields), _buffers(fields, where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Minari asks for the author
            minari.create_dataset_from_buffers(
                dataset_id,
                buffers,
                env=env,
                observation_space=Box(-np.inf, np.inf, fields["observations"].shape[1:], np.float32),
                action_space=Box(-1, 1, fields["actions"].shape[1:], np.float32),
                description=", ".join(f"{key}: {x}" for key, x in sorted(attrs.items())) or None,
            )
    except BaseException as error:
        shutil.rmtree(path, ignore_errors=True)  # half a set would look like a small one
        if isinstance(error, OSError | RuntimeError | ValueError | AssertionError):
            raise UserError(
                f"{where}: cannot be written ({one_line(error)}); ids are namespace/name-v0"
            ) from error
        raise


def _environment(env_id: object, fields: Fields) -> Any:
    """The environment, for Minari to rebuild, if it can be made here and its spaces fit the rows."""
    import gymnasium

    if not isinstance(env_id, str) or imports_module(env_id):
        return None
    try:
        env = gymnasium.make(env_id)
    except Exception:  # an environment may raise anything, and the rows are as good without it
        return None
    env.close()
    spaces = [(env.observation_space, fields["observations"]), (env.action_space, fields["actions"])]
    alike = all(_is_flat_box(space) and space.shape == x.shape[1:] for space, x in spaces)
    return env if alike and _is_unit(env.action_space) else None


def _buffers(fields: Fields, where: str) -> list[Any]:
    """One buffer for each run of rows whose next observations are in the rows below; the last may be NaN."""
    from minari.data_collector import EpisodeBuffer

    obs, next_obs, terminals = fields["observations"], fields["next_observations"], fields["terminals"]
    leads_on = (next_obs[:-1] == obs[1:]).all(1) & ~(terminals | fields["timeouts"])[:-1]
    last = np.flatnonzero(np.append(~leads_on, True))
    if unknown := int(np.isnan(next_obs[last, 0]).sum()):
        warnings.warn(
            f"{where}: {unknown} of {len(last)} episodes end in an observation of NaN, because it is "
            "unknown; mbo2o reads it as such, other readers must not bootstrap from these last steps",
            stacklevel=4,
        )
    buffers = []
    for start, end in zip(np.append(0, last[:-1] + 1), last + 1, strict=True):
        buffers.append(
            EpisodeBuffer(
                observations=np.append(obs[start:end], next_obs[end - 1 : end], axis=0),
                actions=fields["actions"][start:end],
                rewards=fields["rewards"][start:end],
                terminations=terminals[start:end],
                truncations=(np.arange(start, end) == end - 1) & ~terminals[start:end],
            )
        )
    return buffers
