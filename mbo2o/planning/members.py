"""The learned dynamics as a step for planners: which member predicts which particle."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from mbo2o.dynamics.model import GaussianDynamics, Weights
from mbo2o.ensemble.mlp import members
from mbo2o.ensemble.uncertainty import Penalty
from mbo2o.types import RewardFn, TerminationFn, UserError

Drawn = tuple[Tensor, Tensor] | None
"""The elites of the particles and the noise of a step; None for the mean, which draws nothing."""
KINDS = ("ts1", "tsinf", "mean")


class Members:
    """A step of the ensemble for P particles of N plans, see `objective.Model`.

    kind: `ts1`: a particle meets another elite at each step, and the particles of a step are dealt to the
    elites in equal shares (PETS's TS1). `tsinf`: particle p stays with elite p mod K (TS∞). Both draw the
    next state from the member's Gaussian. `mean`: every particle takes the average of the elites' means, so
    that one is enough.

    All plans of a particle meet the same member and the same noise, see `Objective`. The number of particles
    is free; a multiple of the number of elites is fastest.
    """

    def __init__(
        self,
        dynamics: GaussianDynamics,
        kind: str,
        *,
        termination: TerminationFn,
        reward: RewardFn | None = None,
        penalty: Penalty | None = None,
    ):
        """penalty: None, if the uncertainty is not needed: then it is 0, and each row costs one member only.

        reward: a function that replaces the reward that the model predicts.
        """
        if dynamics.spec.seeds:
            raise UserError(
                f"planning needs one model; this one has seeds {dynamics.spec.seeds}: give it model.seed(k)"
            )
        if kind not in KINDS:
            raise UserError(f"plan: members={kind} is not one of {', '.join(KINDS)}")
        self._dynamics, self.kind = dynamics, kind
        self._termination, self._reward, self._penalty = termination, reward, penalty
        self._elites = dynamics.elite_weights()

    @property
    def particles(self) -> int:
        """How many particles see every elite equally often: the number of elites, or 1 for their mean."""
        return 1 if self.kind == "mean" else self._dynamics.elites.shape[-1]

    def draw(self, particles: int, steps: int, generator: torch.Generator) -> list[Drawn]:
        """Which elite predicts each particle `(P,)`, and the noise of its step `(P, 1, D+1)`."""
        model, p, device = self._dynamics, particles, generator.device
        if self.kind == "mean":
            return [None] * steps
        k = model.elites.shape[-1]
        elite = (torch.arange(p, device=device) % k).expand(steps, p)
        if self.kind == "ts1":  # shares differ by one at most
            places = torch.rand(steps, -(-p // k) * k, generator=generator, device=device)
            elite = places.argsort(-1)[:, :p] % k
        size = (steps, p, 1, model.spec.obs_dim + 1)
        noise = torch.randn(size, generator=generator, device=device)
        return list(zip(elite, noise, strict=True))

    def __call__(self, obs: Tensor, act: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `objective.Model`; a function of tensors, which may be compiled."""
        u = torch.zeros(obs.shape[:-1], device=obs.device)
        if drawn is None or self._penalty is not None:
            mean, std = self._all(obs.flatten(0, 1), act.flatten(0, 1))
            if self._penalty is not None:
                u = self._penalty(mean, std).unflatten(0, obs.shape[:2])
            mean, std = mean.unflatten(1, obs.shape[:2]), std.unflatten(1, obs.shape[:2])
        if drawn is None:
            y = mean.mean(0)
        elif self._penalty is not None:
            elite, noise = drawn
            own = (elite, torch.arange(len(obs), device=obs.device))
            y = mean[own] + std[own] * noise
        else:
            y = self._one_each(obs, act, *drawn)
        after = obs + y[..., :-1]
        reward = y[..., -1] if self._reward is None else self._reward(obs, act, after)
        return after, reward, self._termination(obs, act, after), u

    def _all(self, obs: Tensor, act: Tensor) -> tuple[Tensor, Tensor]:
        """Every elite's mean and deviation of (Δobs, reward), `(K, P·N, D+1)`."""
        model = self._dynamics
        x = model.inputs(torch.cat([obs, act], -1))
        mean, log_var = functional_call(model.net, self._elites, (x,))
        return model.targets.inverse(mean), torch.exp(0.5 * log_var) * model.targets.std

    def _one_each(self, obs: Tensor, act: Tensor, elite: Tensor, noise: Tensor) -> Tensor:
        """Draws of (Δobs, reward) `(P, N, D+1)`; each particle is computed by its own elite only."""
        model, (p, n), k = self._dynamics, obs.shape[:2], self._dynamics.elites.shape[-1]
        x = model.inputs(torch.cat([obs, act], -1))
        if p % k == 0:  # equal shares: rows move to the elites, which is cheaper than to move weights
            order = elite.argsort(stable=True)
            found = functional_call(model.net, self._elites, (x[order].reshape(k, p // k * n, -1),))
            back = order.argsort()
            mean, log_var = (y.reshape(p, n, -1)[back] for y in found)
        else:
            mean, log_var = functional_call(model.net, self._taken(elite), (x,))
        return model.targets.inverse(mean + torch.exp(0.5 * log_var) * noise)

    def _taken(self, elite: Tensor) -> Weights:
        net = self._dynamics.net.net
        return {f"net.{name}": w for name, w in members(net, self._dynamics.elites[elite]).items()}
