"""The learned model as Gymnasium environments: a vector of any size, and a single one."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from mbo2o.model.dynamics import Array, Dynamics, states_of
from mbo2o.types import UserError

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


class _World:
    """What both kinds of environment do: start branches in the model, step them, and count their steps."""

    def __init__(self, dynamics: Dynamics, starts: Array | None, horizon: int, penalty: float):
        self.dynamics, self.horizon, self.penalty = dynamics, horizon, penalty
        self.starts = _starts(dynamics, starts)
        self.observations = Box(-np.inf, np.inf, (dynamics.obs_dim,), np.float32)
        self.actions = Box(dynamics.low, dynamics.high, dtype=np.float32)
        self.generator = torch.Generator(dynamics.device)

    def draw(self, n: int, rng: np.random.Generator) -> Tensor:
        """`n` start states."""
        return self.starts[torch.from_numpy(rng.integers(len(self.starts), size=n))]

    def step(self, obs: Tensor, act: Any) -> tuple[Tensor, Floats, Bools, Floats]:
        """Next observations, rewards after the penalty, ends and uncertainties of rows `(B, D)`."""
        unit = self.dynamics.to_unit(act)
        next_obs, reward, ended, uncertainty = self.dynamics.model_step(obs, unit, self.generator)
        rew = reward - self.penalty * uncertainty if self.penalty else reward
        return next_obs, rew.cpu().numpy(), ended.cpu().numpy(), uncertainty.cpu().numpy()


class ModelVectorEnv(VectorEnv[Floats, Floats, Any]):
    """`num_envs` branches in a learned model, stepped together.

    Each episode begins in a state that is drawn from `starts`. It is terminated where the model's rule says
    so, and truncated after `horizon` steps. The reward is r - penalty·u(s, a); `info["uncertainty"]` has the
    u of each step. `reset(seed=...)` takes one number for all branches: the same seed and actions give the
    same episodes. Actions outside the box raise `UserError`.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        num_envs: int,
        starts: Array | None,
        horizon: int,
        penalty: float = 0.0,
        autoreset: str | AutoresetMode = AutoresetMode.NEXT_STEP,
    ):
        """autoreset: a mode of gymnasium, or its value: NextStep, SameStep or Disabled."""
        if num_envs < 1:
            raise UserError(f"num_envs={num_envs} must be at least 1")
        self._world = _World(dynamics, starts, horizon, penalty)
        self.mode = _mode(autoreset)
        self.num_envs, self.metadata = num_envs, {"autoreset_mode": self.mode, "render_modes": []}
        self.single_observation_space = self._world.observations
        self.single_action_space = self._world.actions
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._obs = torch.zeros(num_envs, dynamics.obs_dim, device=dynamics.device)
        self._steps = np.zeros(num_envs, np.int64)
        self._over = np.zeros(num_envs, np.bool_)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Floats, dict[str, Any]]:
        """Start all episodes, or those that `options["reset_mask"]` `(num_envs,)` bool marks."""
        super().reset(seed=seed)
        mask = np.ones(self.num_envs, np.bool_)
        if options and "reset_mask" in options:
            mask = options["reset_mask"]
            if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (self.num_envs,):
                raise UserError(f"reset_mask must be an array of {self.num_envs} booleans, found {mask!r}")
        else:
            self._world.generator.manual_seed(int(self.np_random.integers(1, 2**63 - 1)))
        self._begin(mask)
        return self._seen(), {}

    def step(self, actions: Floats) -> tuple[Floats, Any, Any, Any, dict[str, Any]]:
        """Take an action in every branch; see `gymnasium.vector.AutoresetMode` for branches that are over."""
        waiting: Bools = self._over.copy()
        if waiting.any() and self.mode is AutoresetMode.DISABLED:
            which = ", ".join(map(str, np.flatnonzero(waiting)))
            raise UserError(f"episodes {which} are over; reset them with options={{'reset_mask': mask}}")
        next_obs, rewards, ended, uncertainty = self._world.step(self._obs, actions)
        self._obs = next_obs
        self._steps += 1
        truncated = (self._steps >= self._world.horizon) & ~ended
        info: dict[str, Any] = {}
        if waiting.any():  # in these branches the step is the reset
            self._begin(waiting)
            rewards[waiting], ended[waiting], truncated[waiting] = 0, False, False
        self._over = ended | truncated
        stepped = ~waiting
        if self._over.any() and self.mode is AutoresetMode.SAME_STEP:
            over = self._over.copy()
            last = np.full(self.num_envs, None, object)
            for i in np.flatnonzero(over):
                last[i] = self._obs[i].cpu().numpy()
            final = {"uncertainty": np.where(over, uncertainty, 0), "_uncertainty": over}
            info |= {"final_obs": last, "_final_obs": over, "final_info": final, "_final_info": over}
            self._begin(over)
            stepped = stepped & ~over
        if stepped.any():
            info |= {"uncertainty": np.where(stepped, uncertainty, 0), "_uncertainty": stepped}
        return self._seen(), rewards, ended, truncated, info

    def _begin(self, mask: Bools) -> None:
        where = torch.from_numpy(mask)
        self._obs = self._obs.clone()
        self._obs[where] = self._world.draw(int(mask.sum()), self.np_random)
        self._steps[mask], self._over[mask] = 0, False

    def _seen(self) -> Floats:
        found: Floats = self._obs.cpu().numpy().copy()
        return found


class ModelEnv(gymnasium.Env[Floats, Floats]):
    """One branch in a learned model; see `ModelVectorEnv`, which is faster for many."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  as gymnasium declares it

    def __init__(
        self,
        dynamics: Dynamics,
        starts: Array | None,
        horizon: int,
        penalty: float = 0.0,
    ):
        self._world = _World(dynamics, starts, horizon, penalty)
        self.observation_space, self.action_space = self._world.observations, self._world.actions
        self._obs = torch.zeros(1, dynamics.obs_dim, device=dynamics.device)
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Floats, dict[str, Any]]:
        """Start an episode; the same seed and actions give the same one."""
        super().reset(seed=seed)
        self._world.generator.manual_seed(int(self.np_random.integers(1, 2**63 - 1)))
        self._obs, self._steps = self._world.draw(1, self.np_random), 0
        return self._obs[0].cpu().numpy().copy(), {}

    def step(self, action: Floats) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        """Take an action."""
        self._obs, reward, ended, uncertainty = self._world.step(self._obs, np.asarray(action)[None])
        self._steps += 1
        truncated = self._steps >= self._world.horizon and not ended[0]
        info = {"uncertainty": float(uncertainty[0])}
        return self._obs[0].cpu().numpy().copy(), float(reward[0]), bool(ended[0]), bool(truncated), info


def _starts(dynamics: Dynamics, starts: Array | None) -> Tensor:
    """Start states `(n, D)` on the model's device."""
    found = states_of(dynamics, dynamics.about.starts if starts is None else starts)
    if not len(found):
        text = "the model's folder holds no start states" if starts is None else "there are no start states"
        raise UserError(f"{text}; give starts=, an array (n, {dynamics.obs_dim}) with at least one row")
    return found


def _mode(autoreset: str | AutoresetMode) -> AutoresetMode:
    try:
        return AutoresetMode(autoreset)
    except ValueError as e:
        known = ", ".join(str(x.value) for x in AutoresetMode)
        raise UserError(f"autoreset={autoreset}: no such mode; choose one of {known}") from e
