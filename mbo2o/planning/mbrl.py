"""The learned dynamics as a model for mbrl-lib 0.2.0, so that its `ModelEnv` and its planners can use it.

This file does not import mbrl.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mbo2o.dynamics.model import GaussianDynamics
from mbo2o.ensemble.uncertainty import PENALTIES
from mbo2o.model.dynamics import Dynamics
from mbo2o.types import TerminationFn, UserError

BROKEN = -1e6
"""The reward of a step to a state that is not finite; mbrl's optimisers would count a NaN as -1e-10."""

State = dict[str, Tensor]


class MbrlModel:
    """What `mbrl.models.ModelEnv` needs of a dynamics model: `device`, `reset` and `sample`.

        model = MbrlModel(dynamics, coef=1.0)
        env = ModelEnv(real_env, model, model.ends(), generator=torch.Generator().manual_seed(0))

    With `Dynamics` actions are in the environment's units, clipped to its box, as the planners of mbrl give
    them, and rewards are the task's. With `GaussianDynamics` actions are in [-1, 1]. Observations are raw.
    Each row is predicted by a random elite, which is drawn again at every step (TS1); batches may have any
    size. ModelEnv's reward function does not get the observation that a step starts from, so the penalty
    coef·u(s, a) is subtracted here. Give ModelEnv a generator, because its own has a fixed seed. Raises
    `UserError` for a model with a seed axis and for an unknown penalty.
    """

    def __init__(
        self, dynamics: Dynamics | GaussianDynamics, penalty: str = "max_aleatoric", coef: float = 0.0
    ):
        self._task = dynamics if isinstance(dynamics, Dynamics) else None
        if isinstance(dynamics, Dynamics):
            dynamics = dynamics.net
        if dynamics.spec.seeds:
            raise UserError(
                f"planning needs one model; this one has seeds {dynamics.spec.seeds}: give it model.seed(k)"
            )
        if penalty not in PENALTIES:
            raise UserError(f"penalty={penalty}: no such penalty; choose one of {', '.join(PENALTIES)}")
        self.dynamics, self.coef = dynamics, coef
        self.device = torch.device(dynamics.spec.device)
        self._penalty = PENALTIES[penalty]
        self._obs: Tensor | None = None  # where the last step started

    def reset(self, obs: np.ndarray | Tensor, rng: torch.Generator | None = None) -> State:
        """The state for `sample` that begins at `obs` `(B, D)`."""
        return {"obs": torch.as_tensor(obs, dtype=torch.float32, device=self.device)}

    @torch.no_grad()
    def sample(
        self, act: Tensor, model_state: State, deterministic: bool = False, rng: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, None, State]:
        """Step with `act` `(B, A)`: next observation `(B, D)`, penalised reward `(B, 1)`, None, next state.

        `deterministic` gives the elites' mean instead of a draw. A row whose prediction is not finite stays
        where it was and gets the reward `BROKEN`.
        """
        obs, act = model_state["obs"], self._in_unit(act.to(torch.float32))
        if deterministic:
            y = self.dynamics.elite_mean(self.dynamics.predict(obs, act)[0])
            next_obs, rew = obs + y[:, :-1], y[:, -1]
        else:
            next_obs, rew = self.dynamics.step(obs, act, rng)
        if self._task is not None:
            rew = self._paid(self._task, rew, obs, act, next_obs)
        if self.coef:
            rew = rew - self.coef * self._penalty(*self.dynamics.predict(obs, act))
        fine = next_obs.isfinite().all(-1) & rew.isfinite()
        next_obs = torch.where(fine.unsqueeze(-1), next_obs, obs)
        rew = torch.where(fine, rew, BROKEN)  # a new tensor, because ModelEnv writes into it
        self._obs = obs
        return next_obs, rew.unsqueeze(-1), None, {"obs": next_obs}

    def _in_unit(self, act: Tensor) -> Tensor:
        if self._task is None:
            return act
        low, high = (x.to(act.device) for x in (self._task.about.low, self._task.about.high))
        return self._task.to_unit(torch.minimum(torch.maximum(act, low), high))

    @staticmethod
    def _paid(task: Dynamics, rew: Tensor, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        """The reward in the task's own units, or by its function."""
        if task.about.reward is not None:
            return task.about.reward(obs, act, next_obs)
        return (rew - task.about.rewards.shift) / task.about.rewards.scale

    def ends(self, rule: TerminationFn | None = None) -> Callable[[Tensor, Tensor], Tensor]:
        """`rule` as ModelEnv calls it, `(act, next_obs)` → bool `(B, 1)`; None: the rule of `Dynamics`.

        The observation is that of the last `sample`.
        """
        if rule is None:
            if self._task is None:
                raise UserError("GaussianDynamics has no rule of termination; give one")
            rule = self._task.about.ends

        def ends(act: Tensor, next_obs: Tensor) -> Tensor:
            assert self._obs is not None, "ModelEnv steps before it asks"
            return rule(self._obs, act, next_obs).unsqueeze(-1)

        return ends
