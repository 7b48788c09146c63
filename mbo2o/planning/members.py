"""The learned dynamics as a step for planners: which member predicts which particle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mbo2o.dynamics.model import GaussianDynamics
from mbo2o.ensemble.gaussian import soft_clamp
from mbo2o.ensemble.uncertainty import Penalty
from mbo2o.types import RewardFn, TerminationFn, UserError

KINDS = ("ts1", "tsinf", "mean")
PRECISIONS = ("fp32", "bf16")


Layers = list[tuple[Tensor, ...]]
"""For each layer of K networks: weights `(K, in, out)`, bias `(K, 1, out)`, and with a LayerNorm its scale
and shift, `(K, 1, out)` each."""


class Drawn(NamedTuple):
    """The randomness of a step of P particles."""

    elite: Tensor
    """`(P,)`: which elite predicts each of them."""
    noise: Tensor
    """`(P, 1, D+1)`."""
    layers: Layers | None
    """Those of these elites; None if particles are dealt to all elites in equal shares."""


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
        precision: str = "fp32",
    ):
        """penalty: None, if the uncertainty is not needed: then it is 0, and each row costs one member only.

        reward: a function that replaces the reward that the model predicts. precision: of the products of
        hidden layers; `bf16` keeps 8 bits of the significand, and is faster where the processor has it.
        """
        if dynamics.spec.seeds:
            raise UserError(
                f"planning needs one model; this one has seeds {dynamics.spec.seeds}: give it model.seed(k)"
            )
        if kind not in KINDS:
            raise UserError(f"plan: members={kind} is not one of {', '.join(KINDS)}")
        if precision not in PRECISIONS:
            raise UserError(f"plan: precision={precision} is not one of {', '.join(PRECISIONS)}")
        self._dynamics, self.kind = dynamics, kind
        self._termination, self._reward, self._penalty = termination, reward, penalty
        self._layers = layers_of(dynamics, precision)
        elites = range(dynamics.elites.shape[-1])
        self._single: list[Layers] = [[tuple(w[k : k + 1] for w in x) for x in self._layers] for k in elites]
        self._bounds = dynamics.net.min_log_var, dynamics.net.max_log_var
        self._activation = dynamics.net.net.activation

    @property
    def particles(self) -> int:
        """How many particles see every elite equally often: the number of elites, or 1 for their mean."""
        return 1 if self.kind == "mean" else self._dynamics.elites.shape[-1]

    def draw(self, particles: int, steps: int, generator: torch.Generator) -> Sequence[Drawn | None]:
        """What each step draws; the mean draws nothing."""
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
        alone = self._penalty is None and p % k > 0
        layers = [self._taken(x) if alone else None for x in elite]
        return [Drawn(*x) for x in zip(elite, noise, layers, strict=True)]

    def __call__(
        self, obs: Tensor, act: Tensor, drawn: Drawn | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
            own = (drawn.elite, torch.arange(len(obs), device=obs.device))
            y = mean[own] + std[own] * drawn.noise
        else:
            y = self._one_each(obs, act, drawn)
        after = obs + y[..., :-1]
        reward = y[..., -1] if self._reward is None else self._reward(obs, act, after)
        return after, reward, self._termination(obs, act, after), u

    def _all(self, obs: Tensor, act: Tensor) -> tuple[Tensor, Tensor]:
        """Every elite's mean and deviation of (Δobs, reward), `(K, P·N, D+1)`."""
        model = self._dynamics
        x = model.inputs(torch.cat([obs, act], -1))
        mean, log_var = self._net(self._layers, x)
        return model.targets.inverse(mean), torch.exp(0.5 * log_var) * model.targets.std

    def _one_each(self, obs: Tensor, act: Tensor, drawn: Drawn) -> Tensor:
        """Draws of (Δobs, reward) `(P, N, D+1)`; each particle is computed by its own elite only."""
        model, (p, n), k = self._dynamics, obs.shape[:2], self._dynamics.elites.shape[-1]
        x = model.inputs(torch.cat([obs, act], -1))
        if (
            drawn.layers is None
        ):  # equal shares: rows move to the elites, which is cheaper than to move weights
            order = drawn.elite.argsort(stable=True)
            found = self._net(self._layers, x[order].reshape(k, p // k * n, -1))
            back = order.argsort()
            mean, log_var = (y.reshape(p, n, -1)[back] for y in found)
        else:
            mean, log_var = self._net(drawn.layers, x)
        return model.targets.inverse(mean + torch.exp(0.5 * log_var) * drawn.noise)

    def _net(self, layers: Layers, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of these networks, of their inputs `(K, B, D+A)`, or of the same `(B, D+A)`.

        It is `GaussianEnsemble.forward` written with tensors: a call of a compiled program checks what the
        program was made for, and to check modules takes as long as a step.
        """
        if x.dim() == 2:
            x = x.expand(len(layers[0][0]), *x.shape)
        for w, b, *norm in layers[:-1]:
            x = torch.bmm(x.to(w.dtype), w) + b  # a compiled sum costs nothing, `baddbmm` costs more
            if norm:
                x = F.layer_norm(x, x.shape[-1:]) * norm[0] + norm[1]
            x = self._activation(x)
        w, b = layers[-1]
        mean, log_var = (torch.bmm(x.float(), w) + b).chunk(2, -1)
        return mean, soft_clamp(log_var, *self._bounds)

    def _taken(self, elite: Tensor) -> Layers:
        """The layers of the elites `(P,)`; of one alone they are no copy.

        They are tensors of their own, since a compiler makes another program where two steps share them.
        """
        if len(elite) == 1:
            return [tuple(x.view_as(x) for x in layer) for layer in self._single[int(elite)]]
        return [tuple(w[elite] for w in layer) for layer in self._layers]


def layers_of(dynamics: GaussianDynamics, precision: str) -> Layers:
    """The elites' layers; the hidden ones are converted here once, instead of in every step."""
    named, depth = dynamics.elite_weights(), len(dynamics.cfg.net.hidden)
    found = []
    for i in range(depth + 1):
        names = [f"net.layers.{i}.weight", f"net.layers.{i}.bias", f"net.scales.{i}", f"net.shifts.{i}"]
        layer = tuple(named[name].detach() for name in names if name in named)
        low = precision == "bf16" and i < depth
        found.append(tuple(x.bfloat16() for x in layer) if low else layer)
    return found
