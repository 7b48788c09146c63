"""The model as other packages for planning call theirs. Nothing of them is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mbo2o.model.dynamics import Array, Dynamics, as_tensor, states_of
from mbo2o.types import UserError


class MPPIModel:
    """What `pytorch_mppi.MPPI` needs: `dynamics(state, action)` and `running_cost(state, action)`.

        model = MPPIModel(dyn, penalty=1.0)
        planner = pytorch_mppi.MPPI(
            model.dynamics, model.running_cost, model.nx, noise_sigma, u_min=model.low, u_max=model.high
        )
        action = planner.command(model.state(obs))

    A state of the planner is an observation, then what the step that led there paid, then 1, or 0 after the
    end of the episode: `(K, D+2)`. So a cost is a function of the state alone, as the planner asks for it:
    minus r - penalty·u(s, a). After an end a state stays where it is and costs nothing. Actions `(K, A)` are
    in the environment's units and are clipped to its box, since the planner adds noise to them.
    """

    def __init__(self, dynamics: Dynamics, penalty: float = 0.0, sample: bool = True, seed: int = 0):
        """sample: each step is a draw from a random elite; otherwise it is the mean over elites."""
        self.nx = dynamics.obs_dim + 2
        self.low, self.high = (x.to(dynamics.device) for x in (dynamics.about.low, dynamics.about.high))
        self._model, self._penalty, self._sample = dynamics, penalty, sample
        self._generator = torch.Generator(dynamics.device).manual_seed(seed)

    def state(self, obs: Array) -> Tensor:
        """The planner's state `(..., D+2)` at observations `(..., D)`."""
        states_of(self._model, obs)
        obs = as_tensor(self._model, obs)
        return torch.cat([obs, torch.zeros_like(obs[..., :1]), torch.ones_like(obs[..., :1])], -1)

    @torch.no_grad()
    def dynamics(self, state: Tensor, action: Tensor) -> Tensor:
        """The states `(K, D+2)` that follow."""
        obs, alive = state[:, :-2], state[:, -1] > 0
        unit = self._model.to_unit(torch.minimum(torch.maximum(action, self.low), self.high))
        noise = self._model.noise(len(obs), self._generator) if self._sample else None
        next_obs, reward, ended, uncertainty = self._model.advance(obs, unit, noise)
        paid = torch.where(alive, reward - self._penalty * uncertainty, 0.0)
        next_obs = torch.where(alive.unsqueeze(-1), next_obs, obs)
        return torch.cat([next_obs, paid.unsqueeze(-1), (alive & ~ended).float().unsqueeze(-1)], -1)

    def running_cost(self, state: Tensor, action: Tensor) -> Tensor:
        """The cost `(K,)` of the step that led to `state`."""
        return -state[..., -2]


class CostModel:
    """A `Costable` of stable-worldmodel, for its solvers: `get_cost(info, candidates)`.

        solver = stable_worldmodel.solver.CEMSolver(CostModel(dyn), num_samples=300)

    The cost is minus the sum of r - penalty·u(s, a) until the end of the episode. It can be differentiated
    with respect to the candidates, for the solvers that use gradients.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        penalty: float = 0.0,
        key: str = "observation",
        unit: bool = False,
        sample: bool = True,
        seed: int = 0,
    ):
        """Prepare costs.

        Args:
            dynamics: The model.
            penalty: The weight of the uncertainty.
            key: The entry of `info` that holds observations.
            unit: Candidates are in [-1, 1] instead of the environment's units. Both are clipped to the box,
                since the solvers draw them from Gaussians.
            sample: Each step is a draw from a random elite; otherwise it is the mean over elites.
            seed: The draws follow from it. Each call makes the same draws, so that costs compare.
        """
        self._model, self._penalty, self._key, self._unit = dynamics, penalty, key, unit
        self._sample, self._seed = sample, seed

    def get_cost(self, info_dict: Mapping[str, Any], action_candidates: Tensor) -> Tensor:
        """The cost of each candidate, lower is better.

        Args:
            info_dict: Its entry `key` holds observations `(B, S, D)`, or `(B, S, T, D)` of which the last
                counts, or `(B, D)`.
            action_candidates: `(B, S, H, A)`. The last axis may hold several steps (`action_block`).

        Returns `(B, S)`. Raises `UserError` for an entry that is not there, and for other shapes.
        """
        model, device = self._model, action_candidates.device
        start = self._start(info_dict, *action_candidates.shape[:2])
        if action_candidates.dim() != 4 or action_candidates.shape[-1] % model.act_dim:
            found = tuple(action_candidates.shape)
            raise UserError(f"candidates have the shape {found}, expected (B, S, H, {model.act_dim})")
        act = action_candidates.to(model.device, torch.float32).flatten(0, 1)
        act = act.reshape(len(act), -1, model.act_dim)
        unit = act if self._unit else (act - model.from_unit(torch.zeros_like(act[:1, :1]))) / self._half()
        generator = torch.Generator(model.device).manual_seed(self._seed)
        obs, alive, total = start, torch.ones_like(start[:, 0]), torch.zeros_like(start[:, 0])
        for step in unit.clamp(-1, 1).unbind(1):
            noise = model.noise(len(obs), generator) if self._sample else None
            next_obs, reward, ended, uncertainty = model.advance(obs, step, noise)
            total = total + alive * (reward - self._penalty * uncertainty)
            obs = torch.where(alive.unsqueeze(-1) > 0, next_obs, obs)
            alive = alive * (~ended).float()
        return -total.unflatten(0, action_candidates.shape[:2]).to(device)

    criterion = get_cost
    """The protocol's other method; it is the same function."""

    def _half(self) -> Tensor:
        one = torch.ones(self._model.act_dim, device=self._model.device)
        half = self._model.from_unit(one) - self._model.from_unit(torch.zeros_like(one))
        return torch.where(half > 0, half, 1.0)

    def _start(self, info: Mapping[str, Any], b: int, s: int) -> Tensor:
        """The states `(B·S, D)` that the candidates begin with."""
        if self._key not in info:
            raise UserError(f"info has no {self._key!r}, only {', '.join(info)}; give key=")
        obs = as_tensor(self._model, info[self._key])
        if obs.dim() == 2:
            obs = obs.unsqueeze(1).expand(b, s, -1)
        elif obs.dim() == 4:
            obs = obs[:, :, -1]
        if obs.shape[:2] != (b, s):
            raise UserError(f"info[{self._key!r}] has the shape {tuple(obs.shape)}, expected ({b}, {s}, ...)")
        return states_of(self._model, obs)
