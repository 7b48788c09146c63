"""Where an imagined episode ends: the task's own rule, as a function of the next observation.

A dynamics model predicts observations, so a rollout needs a function that says which of them end the episode.
Every function here is a `TerminationFn`: `obs (*S, B, D)`, `act (*S, B, A)`, `next_obs (*S, B, D)`, raw units
→ bool `(*S, B)`, without a host read. Ranges are those of gymnasium's v5 tasks with default arguments (v2 to
v4 share them), where the root's x (for ant, humanoid and swimmer also y) is left out of the observation.

Two rules are added to those of the environments; neither acts on observations of the environments themselves.
Rows that are not finite end in every function but `none`, because a model can produce them. Tasks whose
observations stay far inside ±100 also end outside it (the guard of OfflineRL-Kit), so that a rollout that
explodes does not fill the buffer. Published code writes the guard as `abs(x < 100)`, which lets -1e6 pass;
here it is `abs(x) < 100`.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch import Tensor

from mbo2o.registry import REGISTERED, check_same, check_trust, did_you_mean
from mbo2o.types import RewardFn, TerminationFn, UserError

F = TypeVar("F", bound=TerminationFn)

EXPLODED = 100.0
"""Bound of the guard, raw units: hopper's `healthy_state_range`; other tasks stay far below it."""


def none(obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
    """The episode never ends, not even on rows that are not finite."""
    return torch.zeros(next_obs.shape[:-1], dtype=torch.bool, device=next_obs.device)


def non_finite(obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
    """Only rows that are not finite: for tasks without an ending that observe large numbers (forces)."""
    return ~next_obs.isfinite().all(-1)


def exploded(obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
    """Any `|x| >= 100`, or not finite: for tasks without an ending whose observations stay far below 100."""
    return ~_within(next_obs)


def hopper(obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
    """Healthy: z > 0.7, |angle| < 0.2, and everything but z inside ±100.

    The simulator compares raw velocities with ±100 and the observation clips them at ±10, so real rows do not
    show that part of the rule; no case is known where it decided.
    """
    z, angle = next_obs[..., 0], next_obs[..., 1]
    return ~((z > 0.7) & z.isfinite() & (angle.abs() < 0.2) & _within(next_obs[..., 1:]))


def walker2d(obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
    """Healthy: 0.8 < z < 2 and |angle| < 1. Real rows stay inside the guard: velocities are within ±10."""
    z, angle = next_obs[..., 0], next_obs[..., 1]
    return ~((z > 0.8) & (z < 2.0) & (angle.abs() < 1.0) & _within(next_obs))


def ant(obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
    """Healthy: 0.2 <= z <= 1 and a finite state, with or without v5's contact forces in the observation."""
    z = next_obs[..., 0]
    return ~((z >= 0.2) & (z <= 1.0) & next_obs.isfinite().all(-1))


def humanoid(obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
    """Healthy: 1 < z < 2. No guard, since contact forces in the observation often exceed 100."""
    z = next_obs[..., 0]
    return ~((z > 1.0) & (z < 2.0) & next_obs.isfinite().all(-1))


def inverted_pendulum(obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
    """Healthy: |angle| <= 0.2 and a finite observation."""
    return ~((next_obs[..., 1].abs() <= 0.2) & next_obs.isfinite().all(-1))


def inverted_double_pendulum(obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
    """Healthy: the tip of two 0.6 m links is above 1 m. Observed: x, sines, cosines, velocities, force.

    The simulator takes the tip from the last stage of its integrator, not from the state it returns, so rows
    at the threshold may differ: 2 in 54 000 did (random, sinusoidal and bang-bang actions).
    """
    sin1, sin2, cos1, cos2 = next_obs[..., 1:5].unbind(-1)
    y = 0.6 * cos1 + 0.6 * (cos1 * cos2 - sin1 * sin2)
    return ~((y > 1.0) & next_obs.isfinite().all(-1))


def mountain_car(obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
    """The goal of MountainCarContinuous: position >= 0.45 with velocity >= 0."""
    return ((next_obs[..., 0] >= 0.45) & (next_obs[..., 1] >= 0)) | non_finite(obs, act, next_obs)


def maze_goal(obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
    """PointMaze and AntMaze with `continuing_task=False`: within 0.45 m of the goal, the last two entries.

    `mbo2o.envs.make.make_env` makes sparse mazes like that. The ant's height does not end an AntMaze.
    """
    return ((next_obs[..., :2] - next_obs[..., -2:]).norm(dim=-1) <= 0.45) | non_finite(obs, act, next_obs)


def point_maze_goal(obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
    """`maze_goal` of PointMaze, observed as (x, y, vx, vy, goal x, goal y), with the guard."""
    return maze_goal(obs, act, next_obs) | exploded(obs, act, next_obs)


def _within(x: Tensor) -> Tensor:
    # a comparison with NaN is false, so this also requires finite entries
    return (x.abs() < EXPLODED).all(-1)


TERMINATIONS: dict[str, TerminationFn] = {
    "none": none,
    "non_finite": non_finite,
    "exploded": exploded,
    "halfcheetah": exploded,
    "hopper": hopper,
    "walker2d": walker2d,
    "ant": ant,
    "humanoid": humanoid,
    "humanoid_standup": non_finite,
    "inverted_pendulum": inverted_pendulum,
    "inverted_double_pendulum": inverted_double_pendulum,
    "swimmer": exploded,
    "reacher": non_finite,
    "pusher": non_finite,
    "pendulum": exploded,
    "mountain_car": mountain_car,
    "point_maze": exploded,
    "point_maze_goal": point_maze_goal,
    "maze_goal": maze_goal,
}


def termination(name: str) -> Callable[[F], F]:
    """Function decorator: register a rule under `name`, which settings called `termination` then take."""

    def add(rule: F) -> F:
        if name in RESERVED:
            raise UserError(
                f"a termination rule cannot be called {name!r}, which has a meaning of its own; rename it"
            )
        if name in TERMINATIONS:
            check_same(name, TERMINATIONS[name], rule)
        TERMINATIONS[name] = rule
        REGISTERED.append(rule)
        return rule

    return add


RESERVED = ("auto", "learned")
"""Values of `termination` that are no rule's name: the environment's own rule, and one fitted to data."""

# As `mbo2o.envs.make.make_env` makes them: sparse mazes end at the goal, dense ones never
# (`continuing_task=True`, the default of gymnasium-robotics; for sparse ones made that way, choose
# `point_maze` or `non_finite` by name).
_GOALS = ("", "_Diverse_G", "_Diverse_GR")
_MAZES = ["UMaze", *(f"{m}{goals}" for m in ("Open", "Medium", "Large") for goals in _GOALS)]
_BY_ENV: dict[str, str] = {
    "Hopper": "hopper",
    "Walker2d": "walker2d",
    "HalfCheetah": "halfcheetah",
    "Ant": "ant",
    "Humanoid": "humanoid",
    "HumanoidStandup": "humanoid_standup",
    "InvertedPendulum": "inverted_pendulum",
    "InvertedDoublePendulum": "inverted_double_pendulum",
    "Swimmer": "swimmer",
    "Reacher": "reacher",
    "Pusher": "pusher",
    "Pendulum": "pendulum",
    "MountainCarContinuous": "mountain_car",
    **{f"PointMaze_{m}": "point_maze_goal" for m in _MAZES},
    **{f"PointMaze_{m}Dense": "point_maze" for m in _MAZES},
    **{f"AntMaze_{m}": "maze_goal" for m in _MAZES},
    **{f"AntMaze_{m}Dense": "non_finite" for m in _MAZES},
}


HARMLESS = set(
    """
    render_mode width height camera_id camera_name default_camera_config max_geom max_episode_steps
    forward_reward_weight ctrl_cost_weight contact_cost_weight contact_cost_range impact_cost_weight
    healthy_reward reward_near_weight reward_dist_weight reward_control_weight uph_cost_weight
    reset_noise_scale contact_force_range include_cfrc_ext_in_observation use_contact_forces frame_skip g
    """.split()  # noqa: SIM905
)
"""Arguments of environments that change neither what ends an episode nor where observations show it."""


def resolve(
    name: str | TerminationFn,
    env_id: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    env_layout: str | None = None,
) -> TerminationFn:
    """Turn a config's `termination` into a function.

    Args:
        name: `auto` (by `env_id`), a key of `TERMINATIONS`, `package.module:function`, or a callable,
            which is returned as it is.
        env_id: Gymnasium id. `auto` compares its base name exactly, so that `AntMaze_UMaze-v5` is not an ant.
        env_kwargs: Arguments that the environment is made with. `auto` knows tasks with their default
            arguments, and refuses all arguments that are not in `HARMLESS`.
        env_layout: The layout of observations, if it is not the environment's own.

    Raises:
        UserError: There is no such name, no rule for this environment as it is made, or nothing callable at
            the dotted path, or the path is not trusted (see `registry.trusting`).
        ValueError: The name is `learned`, which needs data: call `LearnedTermination.fit` instead.
    """
    if not isinstance(name, str):
        return name
    if name == "learned":
        raise ValueError(
            "termination 'learned' is fitted, not resolved: use LearnedTermination.fit(obs, act, ...)"
        )
    if name == "auto":
        name = _by_environment(env_id, env_kwargs, env_layout)
    if name in TERMINATIONS:
        return TERMINATIONS[name]
    if ":" in name:
        return load_callable(name, "termination")
    raise UserError(f"termination={name}: no such rule; {did_you_mean(name, TERMINATIONS)}{_choices()}")


def _by_environment(env_id: str | None, env_kwargs: Mapping[str, Any] | None, env_layout: str | None) -> str:
    """The name of the rule that is known for an environment; `UserError` if none is, as it is made."""
    # A version is all that may follow the base name, a module to import all that may precede it.
    base = re.fullmatch(r"(?:[\w.]+:)?(\w+?)(?:-v\d+)?", env_id or "")
    if base is None or base[1] not in _BY_ENV:
        raise UserError(f"termination=auto: no rule known for environment {env_id!r}; {_choices()}")
    name = _BY_ENV[base[1]]
    if changed := sorted(set(env_kwargs or ()) - HARMLESS):
        given = ", ".join(changed)
        text = f"the rule known for {env_id} is for its default arguments, and env_kwargs gives {given}"
        raise UserError(f"termination=auto: {text}; {_choices()}")
    if env_layout and name == "maze_goal":
        text = f"{env_id} ends at the goal, which observations do not show with env_layout={env_layout}"
        raise UserError(f"termination=auto: {text}; {_choices()}")
    return name


def resolve_reward(name: str | RewardFn | None) -> RewardFn | None:
    """Turn a config's `reward` into a function: `package.module:function`, a callable, or None.

    None means that the model predicts the reward.

    Raises:
        UserError: The path does not lead to a callable, or is not trusted (see `registry.trusting`).
    """
    return load_callable(name, "reward") if isinstance(name, str) else name


def name_of(rule: str | TerminationFn | RewardFn, option: str = "termination") -> str:
    """The name or the dotted path by which `resolve` finds the rule again in another process.

    Raises:
        UserError: No path leads to the rule, which is given as `option`: it is a lambda, a local function, an
            object, or a function of the main script or of a notebook.
    """
    if isinstance(rule, str):
        return rule
    path = f"{getattr(rule, '__module__', '?')}:{getattr(rule, '__qualname__', type(rule).__qualname__)}"
    if path.startswith("__main__:") or _at(path) is not rule:
        advice = "put it into a module and give package.module:function"
        raise UserError(f"{option}={path} cannot be found again by `mbo2o eval`; {advice}")
    return path


def _at(path: str) -> Any:
    """The object at `package.module:function`; None if there is none."""
    module, _, attribute = path.partition(":")
    try:
        return attrgetter(attribute)(importlib.import_module(module))
    except (ImportError, AttributeError, ValueError):
        return None


def load_callable(path: str, option: str) -> Callable[..., Any]:
    """Import `package.module:function`, which the config's setting `option` names.

    Raises:
        UserError: It is not such a path, its module is not imported yet and the path is not trusted (see
            `registry.trusting`), the module cannot be imported, or the attribute is missing or not callable.
    """
    module, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")]):
        raise UserError(f"{option}={path}: expected package.module:function")
    if module not in sys.modules:
        check_trust(option, path)
    try:
        found = attrgetter(attribute)(importlib.import_module(module))
    except ImportError as e:
        reason = str(e).splitlines()[0]
        raise UserError(
            f"{option}={path}: cannot import {module} ({reason}); is its folder on PYTHONPATH?"
        ) from e
    except AttributeError as e:
        raise UserError(f"{option}={path}: module {module} has no {attribute}") from e
    if not callable(found):
        raise UserError(f"{option}={path}: {attribute} is a {type(found).__name__}, not a function")
    return found


def _choices() -> str:
    return f"choose one of {', '.join(TERMINATIONS)}, or learned, or your own as package.module:function"
