"""How environments are made, and which ones are supported."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mbo2o.envs import goals
from mbo2o.envs.box import ActionBox as ActionBox
from mbo2o.envs.faults import describe
from mbo2o.errors import optional
from mbo2o.types import UserError

if TYPE_CHECKING:
    import gymnasium

CAP = 1000
"""Length in steps at which an episode is truncated where the task has no time limit of its own."""


@dataclass(frozen=True)
class EnvChoice:
    """An environment and how it is made."""

    id: str
    """Gymnasium id."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments for `gymnasium.make`, beside the id."""
    layout: str | None = None
    """The layout of observations, one of `layouts.LAYOUTS`; None: the environment's own."""
    cap: int | None = CAP
    """Steps after which episodes are truncated where the task has no time limit of its own; None: never."""

    @property
    def cut(self) -> str:
        """What happens in a lane that is `capped`, in one sentence."""
        why = f"{self.id} is registered without max_episode_steps"
        return f"{why}: episodes are truncated after {self.cap} steps"

    @classmethod
    def of(cls, env: str | EnvChoice) -> EnvChoice:
        """The choice itself, or for an id alone the environment with its defaults."""
        return env if isinstance(env, EnvChoice) else cls(env)


def make_env(env: str | EnvChoice) -> gymnasium.Env:
    """A gymnasium environment with flat Box observations and actions in a bounded box of real numbers.

    UserError in one line for an environment that is not supported. Observations with several axes, such as
    images, are not supported, because all networks here take vectors; gymnasium's FlattenObservation makes
    them flat. Actions may have several axes (see `ActionBox`).

    Goal-conditioned observations are made flat by `goals.flatten`. gymnasium-robotics' sparse mazes pay 1
    within 0.45 m of the goal and 0 elsewhere. Here their episodes end at the goal, as in D4RL's antmaze but
    unlike the package's default, so that an episode's return is 1 for success and 0 for failure. Its dense
    mazes go on until the time limit. `layouts` provides other layouts of observations.
    """
    choice = EnvChoice.of(env)
    gymnasium = simulator(f"environment {choice.id!r}")
    if goals.MAZE.fullmatch(choice.id):
        _import_mazes(choice.id)
    if choice.layout:
        from mbo2o.envs import antmaze

        made = antmaze.make(
            choice.id, choice.layout, lambda more: _gymnasium(choice, {**more, **choice.kwargs})
        )
    else:
        made = _gymnasium(choice, choice.kwargs)
    obs, act = made.observation_space, made.action_space
    if isinstance(obs, gymnasium.spaces.Dict) and set(obs) == goals.KEYS:
        obs = gymnasium.spaces.Box(-np.inf, np.inf, goals.flatten(made.reset(seed=0)[0]).shape, np.float64)
        made = gymnasium.wrappers.TransformObservation(made, goals.flatten, obs)
    if path := getattr(made.unwrapped, "tmp_xml_file_path", None):
        Path(path).unlink(missing_ok=True)  # each maze leaves a file in /tmp
    if not (isinstance(obs, gymnasium.spaces.Box) and len(obs.shape) == 1):
        is_box = isinstance(obs, gymnasium.spaces.Box)
        cure = "; wrap it in gymnasium.wrappers.FlattenObservation" if is_box else ""
        found = f"needs a flat Box of observations, found {_short(obs)}{cure}"
        raise UserError(f"environment {choice.id!r}: {found}")
    _check_actions(choice.id, act)
    return made


def simulator(what: str) -> Any:
    """The module gymnasium, with MuJoCo beside it. `UserError` if one is missing that `what` needs."""
    gymnasium, mujoco = optional("gymnasium", what), optional("mujoco", what)
    # without this, MuJoCo prints warnings about gymnasium's models and logs them to a file in the working
    # directory; errors are raised all the same
    mujoco.set_mju_user_warning(lambda message: None)
    return gymnasium


def _gymnasium(choice: EnvChoice, kwargs: Mapping[str, Any]) -> gymnasium.Env:
    import gymnasium

    ends_at_goal = {"continuing_task": False} if goals.sparse_maze(choice.id) else {}
    arguments: dict[str, Any] = {"disable_env_checker": True, **ends_at_goal, **kwargs}
    start = f"environment {choice.id!r} cannot be made"
    arguments_text = ", ".join(f"{k}: {v}" for k, v in choice.kwargs.items())
    given = f" with env_kwargs {{{arguments_text}}}" if choice.kwargs else ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return gymnasium.make(choice.id, **arguments)
    except (gymnasium.error.Error, ImportError) as e:
        raise UserError(f"{start}: {' '.join(str(e).split())}") from e
    except Exception as e:  # the environment's own
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(e))
        if unknown and unknown[1] in choice.kwargs:
            raise UserError(f"{start}: it takes no argument {unknown[1]!r}, which env_kwargs gives") from e
        raise UserError(f"{start}{given}: {describe(e)}") from e


def _import_mazes(env_id: str) -> None:
    try:
        with contextlib.redirect_stderr(
            io.StringIO()
        ):  # importing it prints advice about environments that are not used here
            importlib.import_module("gymnasium_robotics")  # registers its environments
    except ImportError as e:
        raise UserError(f"environment {env_id!r} needs gymnasium-robotics: pip install 'mbo2o[mazes]'") from e


def _check_actions(env_id: str, space: gymnasium.Space[Any]) -> None:
    import gymnasium

    start = f"environment {env_id!r}"
    if not isinstance(space, gymnasium.spaces.Box):
        raise UserError(f"{start}: needs a bounded Box of actions, found {_short(space)}")
    if space.dtype is None or space.dtype.kind != "f":
        real = "needs a bounded Box of real actions (float32, float64)"
        raise UserError(f"{start}: {real}, found dtype {space.dtype}")
    if not space.shape or not np.prod(space.shape):
        one = "needs a bounded Box of actions with at least one number and one axis"
        raise UserError(f"{start}: {one}, found {_short(space)}")
    with np.errstate(over="ignore", invalid="ignore"):
        wide = ~np.isfinite(space.high - space.low)
    if wide.any():
        at = tuple(int(i) for i in np.argwhere(wide)[0])
        where = f"action[{', '.join(map(str, at))}] lies in [{space.low[at]}, {space.high[at]}]"
        cure = f"the width must be a finite {space.dtype}"
        raise UserError(f"{start}: needs a bounded Box of actions, but {where}; {cure}")


def _short(space: gymnasium.Space[Any]) -> str:
    text = " ".join(str(space).split())
    return text if len(text) <= 150 else f"{type(space).__name__} of shape {space.shape}"


def time_limited(env: gymnasium.Env) -> bool:
    """Whether the task has a time limit of its own, as far as gymnasium knows."""
    import gymnasium

    layer = env
    while isinstance(layer, gymnasium.Wrapper):
        if isinstance(layer, gymnasium.wrappers.TimeLimit):
            return True
        layer = layer.env
    return env.spec is not None and env.spec.max_episode_steps is not None
