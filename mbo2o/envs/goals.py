"""Goal-conditioned observations as one vector, for datasets and environments; and which tasks are mazes."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

KEYS = {"observation", "achieved_goal", "desired_goal"}
"""Keys of the Dict observations of gymnasium-robotics, and of Minari's datasets of its tasks."""

MAZE = re.compile(r"(?:[\w.]+:)?(PointMaze|AntMaze)_\w+?(Dense)?(?:-v\d+)?")
"""Matches ids of gymnasium-robotics' mazes; groups: the family, and `Dense` if the reward is dense."""


def sparse_maze(env_id: str) -> str | None:
    """`PointMaze` or `AntMaze` for a maze whose reward is in {0, 1}; None for every other task."""
    maze = MAZE.fullmatch(env_id)
    return maze[1] if maze and not maze[2] else None


def flatten(obs: Mapping[str, np.ndarray]) -> np.ndarray:
    """A Dict observation as `(..., D)`: `observation`, then `desired_goal`, as in d3rlpy; mazes: x, y first.

    PointMaze: x, y, vx, vy, goal (6 numbers). AntMaze's `observation` lacks the ant's x, y, which
    `achieved_goal` has, so `achieved_goal` is put first wherever `observation` does not begin with it: x, y,
    the 27 numbers of Ant, in -v5 also 78 contact forces, then the goal (31 or 109 numbers). D4RL's antmaze
    has the first 29 of these. gymnasium's FlattenObservation sorts keys, which would put the goal before the
    state.
    """
    achieved, state, goal = (np.asarray(obs[key]) for key in ("achieved_goal", "observation", "desired_goal"))
    known = np.array_equal(state[..., : achieved.shape[-1]], achieved)
    return np.concatenate([state, goal] if known else [achieved, state, goal], -1)
