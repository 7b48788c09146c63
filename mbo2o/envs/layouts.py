"""Observations laid out as in D4RL's files, so that a policy that learned from one can go on in the task.

The facts come from D4RL (Farama-Foundation/D4RL,
d4rl/locomotion/{ant,maze_env,goal_reaching_env,__init__}.py, assets/ant.xml):

- antmaze: x, y and Ant's 27 numbers, 29 in all, without the goal. A cell is 4 m wide, the centre of the start
  cell is the origin, columns count along x and rows along y. The ant starts there, with noise as in Ant. Each
  map has one goal cell; each episode draws its goal there, at the cell's centre plus U(0, 1) + U(0, 0.5) m on
  each axis (from -v2 on). Within 0.5 m of the goal the reward is 1 and the episode ends, elsewhere the reward
  is 0. Episodes last 700 steps in the U maze and 1000 in the others. The rewards of a file belong to one such
  goal, which the file does not name (scripts/generation/relabel_antmaze_rewards.py). The ant is weaker and
  slower than gymnasium's: its motors give up to 30 Nm (not 150), a step lasts 0.1 s (not 0.05 s), and its
  contacts are softer.
- ant: Ant's 27 numbers and the contact forces of 14 bodies, 111 in all. The first body is the world, whose 6
  forces are always 0; Ant-v5 omits these and shows 105. In D4RL's ant-*-v2 all 84 are 0, because MuJoCo 2 did
  not compute them (D4RL issue 143).

gymnasium-robotics has the same maps, but counts rows against y. The maps are passed to it upside down, which
together with a shift of the origin gives D4RL's coordinates.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mbo2o.envs.goals import MAZE

LAYOUTS = ("d4rl", "d4rl-no-forces")
ANT, FORCES = 27, 84
"""Ant's positions and velocities; contact forces of 14 bodies."""


def find_layout(env_id: str, obs_dim: int, has_forces: Callable[[], bool]) -> str | None:
    """The layout of a dataset with `obs_dim` numbers a row; None for the environment's own layout.

    has_forces: says whether any number from the 28th on differs from 0; called only where it matters.
    """
    maze = MAZE.fullmatch(env_id)
    if maze and maze[1] == "AntMaze" and obs_dim == 29:
        return "d4rl"
    if is_ant(env_id) and obs_dim == ANT + FORCES:
        return "d4rl" if has_forces() else "d4rl-no-forces"
    return None


def about(env_id: str, layout: str) -> str:
    """What the layout shows and how the task differs from D4RL's, in one line."""
    if not is_ant(env_id):
        shown = "x, y and the ant's 27 numbers, no goal"
        return f"{env_id} as D4RL's antmaze: {shown}; D4RL's ant, start, goal and radius"
    if layout == "d4rl":
        return f"{env_id} as D4RL's ant: 111 numbers, of which the 6 contact forces of the world are 0"
    shown = "111 numbers, of which the 84 contact forces are 0, as in the data"
    cost = "its rewards still subtract up to 0.042 a step for contact forces"
    return f"{env_id} as D4RL's ant-v2: {shown}; {cost} (+env_kwargs.contact_cost_weight=0 stops that)"


def is_ant(env_id: str) -> bool:
    """Whether this is gymnasium's Ant, of the version that can show D4RL's observations."""
    return re.fullmatch(r"(?:[\w.]+:)?Ant-v5", env_id) is not None
