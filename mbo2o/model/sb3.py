"""The model as a vector environment of Stable-Baselines3, which has an interface of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mbo2o.model.env import ModelVectorEnv
from mbo2o.types import UserError

try:
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as e:
    raise UserError("stable-baselines3 is not installed: pip install 'mbo2o[sb3]'") from e


class SB3VecEnv(VecEnv):  # type: ignore[misc]  # the package is not typed here
    """A `ModelVectorEnv` with `autoreset="SameStep"`, for `SAC("MlpPolicy", SB3VecEnv(env))`.

    At the end of an episode the observation is the next start; the last one is in the info of that step, as
    `terminal_observation`, beside `TimeLimit.truncated`. Every info has the step's `uncertainty`.
    """

    def __init__(self, env: ModelVectorEnv):
        if env.mode.value != "SameStep":
            raise UserError(f"autoreset={env.mode.value}: Stable-Baselines3 needs autoreset='SameStep'")
        self._env, self._actions = env, np.zeros(0, np.float32)
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> np.ndarray:
        """Start all episodes; `seed` was called before or not."""
        obs, _ = self._env.reset(seed=self._seeds[0])
        self._reset_seeds()
        return obs

    def step_async(self, actions: np.ndarray) -> None:
        """Note the actions `(num_envs, A)`."""
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Take the noted actions."""
        obs, rewards, terminated, truncated, info = self._env.step(self._actions)
        done = terminated | truncated
        final = info.get("final_info", {}).get("uncertainty", np.zeros(self.num_envs))
        unsure = np.where(done, final, info.get("uncertainty", 0.0))
        infos: list[dict[str, Any]] = [
            {"uncertainty": float(u), "TimeLimit.truncated": bool(cut)}
            for u, cut in zip(unsure, truncated, strict=True)
        ]
        for i in np.flatnonzero(done):
            infos[i]["terminal_observation"] = info["final_obs"][i]
        return obs, rewards, done, infos

    def close(self) -> None:
        """Nothing is held."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute, which all branches share."""
        return [getattr(self._env, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refused: the branches share their attributes."""
        raise UserError(f"{attr_name} cannot be set: the branches of a model share their attributes")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Refused: there is no environment for each branch."""
        raise UserError(f"{method_name} cannot be called: the branches of a model are one environment")

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """No branch is wrapped."""
        return [False] * len(list(self._get_indices(indices)))

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Give the next `reset` a seed."""
        return super().seed(seed)
