"""The wrapper that disturbs a task as `DisturbConfig` says; importing it imports the simulators."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv

from mbo2o.envs.disturb import DisturbConfig
from mbo2o.types import UserError


class Disturbed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A task disturbed as `DisturbConfig` says, with noise from its own generator: episodes can be replayed.

    `info["undisturbed_reward"]` is the reward that the task paid.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], cfg: DisturbConfig):
        super().__init__(env)
        self.cfg = cfg
        self._owed, self._steps = 0.0, 0
        if cfg.transition_noise and not isinstance(env.unwrapped, MujocoEnv):
            raise UserError(f"run.disturb.transition_noise needs a MuJoCo task, and {_name(env)} is not one")
        assert isinstance(env.action_space, gymnasium.spaces.Box)
        self._half = (env.action_space.high - env.action_space.low) / 2

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Start an episode; rewards not yet paid are dropped."""
        self._owed, self._steps = 0.0, 0
        return self.env.reset(**options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step of the disturbed task."""
        cfg, draw = self.cfg, self.np_random.standard_normal
        if cfg.action_noise:
            space = self.env.action_space
            assert isinstance(space, gymnasium.spaces.Box)
            noise = cfg.action_noise * self._half * draw(self._half.shape)
            # rounded before clipping: bounds have the box's dtype, so that rounding cannot leave the box
            action = np.clip((action + noise).astype(space.dtype), space.low, space.high)
        obs, paid, terminated, truncated, info = self.env.step(action)
        if cfg.transition_noise:
            obs = self._push(draw)
        reward = self._reward(float(paid), info, bool(terminated or truncated))
        if cfg.reward_noise:
            reward += cfg.reward_noise * float(draw())
        return obs, reward, terminated, truncated, info | {"undisturbed_reward": float(paid)}

    def _push(self, draw: Any) -> Any:
        """Add noise to positions and velocities; returns the new observation."""
        env = self.env.unwrapped
        assert isinstance(env, MujocoEnv)
        qpos, qvel = env.data.qpos, env.data.qvel
        env.set_state(
            qpos + self.cfg.transition_noise * draw(qpos.shape),
            qvel + self.cfg.transition_noise * draw(qvel.shape),
        )
        # MujocoEnv does not declare `_get_obs`, but all its tasks have it
        return env._get_obs()  # type: ignore[attr-defined]

    def _reward(self, paid: float, info: dict[str, Any], ended: bool) -> float:
        cfg = self.cfg
        if cfg.reward_above is not None:
            if "x_velocity" not in info:
                needed = "run.disturb.reward_above needs info['x_velocity']"
                raise UserError(f"{needed}, which {_name(self.env)} does not report")
            paid = float(info["x_velocity"] > cfg.reward_above)
        self._owed += paid
        self._steps += 1
        if self._steps % cfg.reward_every and not ended:
            return 0.0
        reward, self._owed = self._owed, 0.0
        return reward


def _name(env: gymnasium.Env[Any, Any]) -> str:
    return env.spec.id if env.spec else type(env.unwrapped).__name__
