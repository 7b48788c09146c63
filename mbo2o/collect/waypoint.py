"""A controller for PointMaze that needs no training, as in D4RL's maze2d.

It follows the shortest way from cell to cell and pushes the ball toward the next cell. Noise and detours
widen the data.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from mbo2o.envs.goals import MAZE
from mbo2o.envs.lanes import Lane
from mbo2o.types import UserError

Cell = tuple[int, int]
Step = tuple[np.ndarray, np.ndarray, float, np.ndarray, bool, bool]

STIFFNESS = 10.0
"""Force per metre of distance. With DAMPING, 1 m takes about 25 steps of 10 ms, without overshoot."""
DAMPING = 2.0
"""Force per metre a second of speed."""
ARRIVED = 0.45
"""Distance in metres at which a place counts as reached; the task uses the same radius."""


class Waypoint:
    """A PD controller that drives the ball of a PointMaze. `maze` is gymnasium-robotics' `Maze`."""

    def __init__(self, maze: Any):
        self._maze = maze
        self.cells: list[Cell] = [
            (i, j) for i, row in enumerate(maze.maze_map) for j, x in enumerate(row) if x != 1
        ]
        self._ways: dict[Cell, dict[Cell, Cell]] = {}

    def cell(self, xy: np.ndarray) -> Cell:
        """The cell (row, column) of a place, `(2,)` in metres."""
        i, j = self._maze.cell_xy_to_rowcol(xy)
        return int(i), int(j)

    def centre(self, cell: Cell) -> np.ndarray:
        """The centre of a cell, `(2,)` in metres."""
        return self._maze.cell_rowcol_to_xy(np.array(cell))

    def way(self, to: Cell) -> dict[Cell, Cell]:
        """The next cell on a shortest way, for each cell from which `to` can be reached (breadth first)."""
        if to not in self._ways:
            step, queue = {to: to}, deque([to])
            while queue:
                i, j = queue.popleft()
                for near in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                    if near in self.cells and near not in step:
                        step[near] = (i, j)
                        queue.append(near)
            self._ways[to] = step
        return self._ways[to]

    def act(self, obs: np.ndarray, target: np.ndarray) -> np.ndarray:
        """The action `(2,)` in [-1, 1] at `obs (6,)`, on the way to `target (2,)` in metres."""
        last = self.cell(target)
        step = self.way(last).get(self.cell(obs[:2]), last)
        # no wall stands between the target's cell and its neighbours, so from there the ball goes straight to
        # the target
        aim = target if step == last else self.centre(step)
        return np.clip(STIFFNESS * (aim - obs[:2]) - DAMPING * obs[2:4], -1, 1)


def play(env_id: str, rows: int, seed: int, noise: float, wander: float) -> Iterator[Step]:
    """Iterate over `rows` steps (obs, act, rew, next_obs, terminated, truncated) in a PointMaze.

    Args:
        env_id: A PointMaze of gymnasium-robotics.
        rows: The number of steps.
        seed: It seeds the environment and the controller's own draws.
        noise: The standard deviation of what is added to each action; the sum is clipped to [-1, 1].
        wander: The probability that an episode heads for the centre of a cell that holds neither the goal nor
            the start. Such an episode is cut there (truncated); it ends at the goal only if the goal lies
            on the way.

    Raises:
        UserError: Another task, or a number out of range.
    """
    if (maze := MAZE.fullmatch(env_id)) is None or maze[1] != "PointMaze":
        raise UserError(f"--policy waypoint drives PointMaze_*-v3 only, found {env_id!r}")
    if not (0 <= noise < np.inf and 0 <= wander <= 1):
        raise UserError(f"--noise {noise} must be a number of at least 0, and --wander {wander} in [0, 1]")
    rng = np.random.default_rng([seed, 1])  # independent of the environment's generator, which `seed` seeds
    return _steps(Lane(env_id, seed), rows, rng, noise, wander)


def _steps(lane: Lane, rows: int, rng: np.random.Generator, noise: float, wander: float) -> Iterator[Step]:
    driver = Waypoint(lane.env.unwrapped.maze)  # type: ignore[attr-defined]
    target = None
    for _ in range(rows):
        obs = lane.obs
        if target is None:
            target, wandering = obs[4:], rng.random() < wander
            if wandering:
                taken = {driver.cell(obs[:2]), driver.cell(obs[4:])}
                others = [cell for cell in driver.cells if cell not in taken]
                target = driver.centre(others[rng.integers(len(others))])
        act = np.clip(driver.act(obs, target) + noise * rng.standard_normal(2), -1, 1).astype(np.float32)
        rew, next_obs, terminated, truncated = lane.step(act)
        arrived = wandering and bool(np.linalg.norm(next_obs[:2] - target) <= ARRIVED)
        truncated |= arrived and not terminated
        yield obs, act, rew, next_obs, terminated, truncated
        if terminated or truncated:
            lane.reset()
            target = None
