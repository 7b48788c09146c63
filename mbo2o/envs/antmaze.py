"""Environments in D4RL's layouts, which `layouts` describes; importing this imports the simulators."""

from __future__ import annotations

import contextlib
import copy
import re
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs import mujoco

from mbo2o.envs.layouts import ANT, FORCES, LAYOUTS, is_ant
from mbo2o.types import UserError

GOAL_CELLS = {"UMaze": (3, 1), "Medium": (6, 6), "Large": (7, 9)}
"""Row and column, from 0, of the goal's cell in each map; the start is in (1, 1)."""
RADIUS = 0.5
"""Distance in metres at which the goal counts as reached."""


def make(env_id: str, layout: str, make_plain: Callable[[Mapping[str, Any]], gymnasium.Env]) -> gymnasium.Env:
    """The environment in this layout, made by `make_plain` from arguments. UserError if it has none such."""
    if layout not in LAYOUTS:
        raise UserError(f"env_layout={layout}: no such layout; choose one of {', '.join(LAYOUTS)}")
    if is_ant(env_id):
        return _ant(env_id, layout, make_plain({}))
    found = re.fullmatch(r"(?:[\w.]+:)?AntMaze_(\w+?)-v5", env_id)
    if layout != "d4rl" or not found or found[1] not in GOAL_CELLS:
        ids = ", ".join(f"AntMaze_{name}-v5" for name in GOAL_CELLS)
        text = f"env_layout={layout}: {env_id} has no such layout; {ids} have d4rl (D4RL's antmaze)"
        raise UserError(f"{text}, Ant-v5 has d4rl and d4rl-no-forces (D4RL's ant)")
    walls = copy.deepcopy(gymnasium.spec(env_id).kwargs["maze_map"])
    row, column = GOAL_CELLS[found[1]]
    walls[1][1], walls[row][column] = "r", "g"
    with _ant_model() as path:
        arguments = {"maze_map": walls[::-1], "xml_file": path, "include_cfrc_ext_in_observation": False}
        return AntMaze(make_plain(arguments))


def _ant(env_id: str, layout: str, env: gymnasium.Env) -> gymnasium.Env:
    if env.observation_space.shape != (ANT + FORCES - 6,):
        shown = f"env_kwargs gives it observations of shape {env.observation_space.shape}"
        raise UserError(f"env_layout={layout} needs {env_id} with its 105 observations, but {shown}")

    def show(obs: np.ndarray) -> np.ndarray:
        forces = np.append(np.zeros(6), obs[ANT:]) if layout == "d4rl" else np.zeros(FORCES)
        return np.append(obs[:ANT], forces)

    space = gymnasium.spaces.Box(-np.inf, np.inf, (ANT + FORCES,), np.float64)
    return gymnasium.wrappers.TransformObservation(env, show, space)


@contextlib.contextmanager
def _ant_model() -> Iterator[str]:
    """The path of a temporary file with gymnasium's ant, given the step, motors and contacts of D4RL's."""
    tree = ET.parse(Path(mujoco.__file__).parent / "assets" / "ant.xml")
    changes = {
        "option": {"timestep": "0.02"},
        "default/geom": {"solref": ".02 1", "solimp": ".8 .8 .01"},
        "actuator/motor": {
            "gear": "30"
        },  # actions stay in [-1, 1]; D4RL's wrapper scales them to ±30 instead
    }
    for place, values in changes.items():
        for element in tree.findall(place):
            element.attrib.update(values)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ant.xml"
        tree.write(path)
        yield str(path)


class AntMaze(gymnasium.Wrapper[Any, Any, Any, Any]):
    """D4RL's antmaze: gymnasium-robotics' AntMaze with the model and map that `make` gives it."""

    def __init__(self, env: gymnasium.Env[Any, Any]):
        super().__init__(env)
        task: Any = env.unwrapped
        self._task = task
        task.position_noise_range = 0.0  # no noise of its own on goal and start
        task.ant_env._reset_noise_scale = 0.1
        self._origin = task.maze.unique_reset_locations[0].copy()
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (29,), np.float64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Put the ant at the start, and draw the goal in its cell."""
        task = self._task
        if seed is not None:
            task.np_random, _ = gymnasium.utils.seeding.np_random(seed)
        task.ant_env.np_random = (
            task.np_random
        )  # a single generator draws everything, so that its state can be saved
        obs, info = self.env.reset(options=options)
        task.goal = task.goal + task.np_random.uniform(0, 1, 2) + task.np_random.uniform(0, 0.5, 2)
        task.update_target_site_pos()
        return self._seen(obs), {**info, "success": self._there(obs)}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step; at the goal the reward is 1 and the episode ends."""
        obs, _, _, truncated, info = self.env.step(action)
        there = self._there(obs)
        return self._seen(obs), float(there), there, truncated, {**info, "success": there}

    @property
    def goal(self) -> np.ndarray:
        """The current goal, `(2,)`, in the coordinates of the observations (metres)."""
        found: np.ndarray = self._task.goal - self._origin
        return found

    def _seen(self, obs: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([obs["achieved_goal"] - self._origin, obs["observation"]])

    def _there(self, obs: Mapping[str, np.ndarray]) -> bool:
        return bool(np.linalg.norm(obs["achieved_goal"] - self._task.goal) <= RADIUS)
