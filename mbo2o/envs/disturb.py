"""Tasks made harder: noise on actions, states and rewards, and rewards that come seldom (OBAC, arXiv 2405.18520)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv

from mbo2o.types import UserError, at_least_one


@dataclass
class DisturbConfig:
    """Nothing is disturbed unless said. OBAC's sizes are not known to us."""

    action_noise: float = (
        0.0  # deviation of Gaussian noise on actions in [-1, 1], before they are clipped there
    )
    transition_noise: float = 0.0  # of noise on positions and velocities after each step (MuJoCo)
    reward_noise: float = 0.0  # of noise on the rewards that are learned from
    reward_every: int = (
        1  # rewards are paid so many steps at a time, summed up, and what is left when the episode ends
    )
    reward_above: float | None = (
        None  # instead of its reward a step pays 1 where info["x_velocity"] exceeds this, else 0
    )

    def __post_init__(self) -> None:
        at_least_one("run.disturb", reward_every=self.reward_every)
        for name in ("action_noise", "transition_noise", "reward_noise"):
            if getattr(self, name) < 0:
                raise UserError(f"run.disturb.{name}={getattr(self, name)} must not be negative")

    def world(self) -> DisturbConfig:
        """Without what only concerns rewards: evaluations play in the noisy world and count what it pays."""
        return replace(self, reward_noise=0.0, reward_every=1, reward_above=None)


class Disturbed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A task under `DisturbConfig`. Its noise comes from the task's own generator, so that an episode can be replayed.

    `info["undisturbed_reward"]` is what the task paid.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], cfg: DisturbConfig):
        super().__init__(env)
        self.cfg, self._owed, self._steps = cfg, 0.0, 0
        if cfg.transition_noise and not isinstance(env.unwrapped, MujocoEnv):
            raise UserError(f"run.disturb.transition_noise needs a MuJoCo task, {_name(env)} is none")
        assert isinstance(env.action_space, gymnasium.spaces.Box)
        self._half = (env.action_space.high - env.action_space.low) / 2

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Start an episode that owes nothing."""
        self._owed, self._steps = 0.0, 0
        return self.env.reset(**options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step of the disturbed task."""
        cfg, draw = self.cfg, self.np_random.standard_normal
        if cfg.action_noise:
            space = self.env.action_space
            assert isinstance(space, gymnasium.spaces.Box)
            noise = cfg.action_noise * self._half * draw(self._half.shape)
            # rounded first: a bound is a number of the box's dtype, so that nothing leaves the box by rounding
            action = np.clip((action + noise).astype(space.dtype), space.low, space.high)
        obs, paid, terminated, truncated, info = self.env.step(action)
        if cfg.transition_noise:
            obs = self._push(draw)
        reward = self._reward(float(paid), info, bool(terminated or truncated))
        if cfg.reward_noise:
            reward += cfg.reward_noise * float(draw())
        return obs, reward, terminated, truncated, info | {"undisturbed_reward": float(paid)}

    def _push(self, draw: Any) -> Any:
        """Positions and velocities with noise on them, and what is seen then."""
        env = self.env.unwrapped
        assert isinstance(env, MujocoEnv)
        qpos, qvel = env.data.qpos, env.data.qvel
        env.set_state(
            qpos + self.cfg.transition_noise * draw(qpos.shape),
            qvel + self.cfg.transition_noise * draw(qvel.shape),
        )
        return env._get_obs()  # type: ignore[attr-defined]  # every task of gymnasium's has it, MujocoEnv does not declare it

    def _reward(self, paid: float, info: dict[str, Any], ended: bool) -> float:
        cfg = self.cfg
        if cfg.reward_above is not None:
            if "x_velocity" not in info:
                raise UserError(
                    f"run.disturb.reward_above needs info['x_velocity'], which {_name(self.env)} does not tell"
                )
            paid = float(info["x_velocity"] > cfg.reward_above)
        self._owed += paid
        self._steps += 1
        if self._steps % cfg.reward_every and not ended:
            return 0.0
        reward, self._owed = self._owed, 0.0
        return reward


def _name(env: gymnasium.Env[Any, Any]) -> str:
    return env.spec.id if env.spec else type(env.unwrapped).__name__
