"""Goal-conditioned observations as one vector, the same for datasets and environments; and which tasks are mazes."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

KEYS = {"observation", "achieved_goal", "desired_goal"}
"""What the Dict observations of gymnasium-robotics hold, and Minari's sets of its tasks."""

MAZE = re.compile(r"(?:[\w.]+:)?(PointMaze|AntMaze)_\w+?(Dense)?(?:-v\d+)?")
"""Ids of gymnasium-robotics' mazes: the task's family, and whether the reward is dense."""


def sparse_maze(env_id: str) -> str | None:
    """`PointMaze` or `AntMaze` if that is the maze and its reward is in {0, 1}, None for every other task."""
    maze = MAZE.fullmatch(env_id)
    return maze[1] if maze and not maze[2] else None


def flatten(obs: Mapping[str, np.ndarray]) -> np.ndarray:
    """A Dict observation as `(..., D)`: `observation`, then `desired_goal`, as d3rlpy has them; in mazes x, y come first.

    PointMaze: x, y, vx, vy, goal (6). AntMaze's `observation` leaves the ant's x, y out, so `achieved_goal`, which has them,
    goes first wherever `observation` does not begin with it: x, y, the 27 of Ant, in -v5 78 contact forces, goal (31 or 109).
    D4RL's antmaze has the first 29 of these. Sorted keys (gymnasium's FlattenObservation) would put the goal before the state.
    """
    achieved, state, goal = (np.asarray(obs[key]) for key in ("achieved_goal", "observation", "desired_goal"))
    known = np.array_equal(state[..., : achieved.shape[-1]], achieved)
    return np.concatenate([state, goal] if known else [achieved, state, goal], -1)
