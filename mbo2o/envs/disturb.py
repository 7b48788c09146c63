"""Tasks made harder: noise on actions, states and rewards, and sparse rewards (OBAC, arXiv 2405.18520)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from mbo2o.types import UserError, at_least_one


@dataclass
class DisturbConfig:
    """By default nothing is disturbed. OBAC does not publish the sizes that it used."""

    # standard deviation of Gaussian noise on actions in [-1, 1], which are then clipped to that range
    action_noise: float = 0.0
    # standard deviation of noise on positions and velocities after each step (MuJoCo only)
    transition_noise: float = 0.0
    # standard deviation of noise on the rewards that are learned from
    reward_noise: float = 0.0
    # rewards are summed and paid every so many steps; the rest is paid when the episode ends
    reward_every: int = 1
    # a step pays 1 where info["x_velocity"] exceeds this and 0 elsewhere, in place of the task's reward
    reward_above: float | None = None

    def __post_init__(self) -> None:
        at_least_one("run.disturb", reward_every=self.reward_every)
        for name in ("action_noise", "transition_noise", "reward_noise", "reward_above"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise UserError(f"run.disturb.{name}={value} is not a finite number")
            if value is not None and value < 0 and name != "reward_above":
                raise UserError(f"run.disturb.{name}={value} must not be negative")

    def world(self) -> DisturbConfig:
        """The part that evaluations apply: noise on actions and states, and the task's own rewards."""
        return replace(self, reward_noise=0.0, reward_every=1, reward_above=None)
