"""Transitions from any gymnasium environment, single or vectorised, with the boundaries of its episodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mbo2o.data.dataset import TransitionDataset
from mbo2o.types import UserError

if TYPE_CHECKING:
    import gymnasium

Act = Callable[[np.ndarray], np.ndarray]
"""Observations `(n, D)` → actions `(n, *shape)` in the environment's units."""
Row = tuple[Any, ...]
"""Observation, action, reward, next observation, terminated, truncated."""


def collect(
    env: gymnasium.Env[Any, Any] | gymnasium.vector.VectorEnv[Any, Any, Any],
    policy: Act | None,
    steps: int,
    seed: int | None = None,
) -> TransitionDataset:
    """Play `steps` transitions in each environment, and return them episode by episode, lane after lane.

    Vector environments may reset in the next step, in the same step, or leave it to the caller. A step that
    crosses a reset is never stored: the observation that ended an episode stands in its last row, and the
    next episode's first row begins with that of the reset. An episode that is not over at the end is cut, as
    by a time limit.

    Args:
        env: An environment with Boxes of observations and actions.
        policy: What acts; None draws from the action space.
        steps: Transitions of each environment.
        seed: For the first reset and for drawn actions.

    Raises:
        UserError: `steps` is below 1, or a space is no Box.
    """
    import gymnasium

    if steps < 1:
        raise UserError(f"collect: steps={steps} must be at least 1")
    envs: Any = env if isinstance(env, gymnasium.vector.VectorEnv) else _One(env)
    for what in ("observation", "action"):
        space = getattr(envs, f"single_{what}_space")
        if not isinstance(space, gymnasium.spaces.Box):
            raise UserError(f"collect: {what}s are {type(space).__name__}, expected a Box")
    if seed is not None:
        envs.action_space.seed(seed)
    obs, _ = envs.reset(seed=seed)
    rows: list[list[Row]] = [[] for _ in range(envs.num_envs)]
    mode = str(getattr(envs.metadata.get("autoreset_mode"), "name", "NEXT_STEP"))
    over = np.zeros(envs.num_envs, bool)
    while min(len(x) for x in rows) < steps:
        act = envs.action_space.sample() if policy is None else np.asarray(policy(obs))
        before = np.array(obs, copy=True)
        after, reward, terminated, truncated, info = envs.step(act)
        ended = np.asarray(terminated | truncated)
        last = np.array(after, copy=True)
        for i in np.flatnonzero(ended) if mode == "SAME_STEP" else ():
            last[i] = info["final_obs"][i]
        for i in np.flatnonzero(~over):  # in the step after an end, a vector environment only resets
            cut = bool(truncated[i] and not terminated[i])
            rows[i].append((before[i], np.array(act[i]), reward[i], last[i], bool(terminated[i]), cut))
        over = ended & (mode == "NEXT_STEP")
        obs = after
        if mode == "DISABLED" and ended.any():
            obs, _ = envs.reset(options={"reset_mask": ended})
    return _dataset([row for lane in rows for row in _cut(lane[:steps])], envs.single_action_space)


def _cut(rows: list[Row]) -> list[Row]:
    """The rows, the last of which ends an episode at least by a cut."""
    *before, last = rows
    return [*before, (*last[:5], not last[4])]


class _One:
    """A single environment as a vector of one that the caller resets."""

    num_envs = 1

    def __init__(self, env: Any):
        from gymnasium.vector import AutoresetMode

        self._env, self.metadata = env, {"autoreset_mode": AutoresetMode.DISABLED}
        self.single_observation_space, self.single_action_space = env.observation_space, env.action_space
        self.action_space = self

    def seed(self, seed: int) -> None:
        """Seed the drawn actions."""
        self._env.action_space.seed(seed)

    def sample(self) -> np.ndarray:
        """One drawn action, `(1, *shape)`."""
        return np.asarray(self._env.action_space.sample())[None]

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, Any]:
        """Begin an episode."""
        obs, info = self._env.reset(seed=seed)
        return np.asarray(obs)[None], info

    def step(self, act: np.ndarray) -> tuple[Any, ...]:
        """One step, with an axis for the one environment."""
        obs, *rest, info = self._env.step(act[0])
        return (np.asarray(obs)[None], *(np.asarray([x]) for x in rest), info)


def _dataset(rows: list[Row], space: Any) -> TransitionDataset:
    obs, act, rew, after, terminated, cut = (np.stack(x) for x in zip(*rows, strict=True))
    return TransitionDataset.from_arrays(
        observations=obs.astype(np.float32).reshape(len(obs), -1),
        actions=act.astype(np.float32),
        rewards=rew.astype(np.float32),
        terminals=terminated,
        timeouts=cut,
        next_observations=after.astype(np.float32).reshape(len(after), -1),
        bounds=(space.low.ravel(), space.high.ravel()),
    )
