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
from mbo2o.types import TerminationFn, UserError

BROKEN = -1e6
"""The reward of a step to a state that is not finite; mbrl's optimisers would count a NaN as -1e-10."""

State = dict[str, Tensor]


class MbrlModel:
    """What `mbrl.models.ModelEnv` needs of a dynamics model: `device`, `reset` and `sample`.

        model = MbrlModel(dynamics, coef=1.0)
        env = ModelEnv(real_env, model, model.ends(rule), generator=torch.Generator().manual_seed(0))

    Observations are raw and actions in [-1, 1], as for `GaussianDynamics`. Each row is predicted by a random
    elite, which is drawn again at every step (TS1); batches may have any size. ModelEnv's reward function
    does not get the observation that a step starts from, so the penalty coef·u(s, a) is subtracted here. Give
    ModelEnv a generator, because its own has a fixed seed. Raises `UserError` for a model with a seed axis
    and for an unknown penalty.
    """

    def __init__(self, dynamics: GaussianDynamics, penalty: str = "max_aleatoric", coef: float = 0.0):
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
        obs, act = model_state["obs"], act.to(torch.float32)
        if deterministic:
            y = self.dynamics.elite_mean(self.dynamics.predict(obs, act)[0])
            next_obs, rew = obs + y[:, :-1], y[:, -1]
        else:
            next_obs, rew = self.dynamics.step(obs, act, rng)
        if self.coef:
            rew = rew - self.coef * self._penalty(*self.dynamics.predict(obs, act))
        fine = next_obs.isfinite().all(-1) & rew.isfinite()
        next_obs = torch.where(fine.unsqueeze(-1), next_obs, obs)
        rew = torch.where(fine, rew, BROKEN)  # a new tensor, because ModelEnv writes into it
        self._obs = obs
        return next_obs, rew.unsqueeze(-1), None, {"obs": next_obs}

    def ends(self, rule: TerminationFn) -> Callable[[Tensor, Tensor], Tensor]:
        """`rule` as ModelEnv calls it, `(act, next_obs)` → bool `(B, 1)`.

        The observation is that of the last `sample`.
        """

        def ends(act: Tensor, next_obs: Tensor) -> Tensor:
            assert self._obs is not None, "ModelEnv steps before it asks"
            return rule(self._obs, act, next_obs).unsqueeze(-1)

        return ends
