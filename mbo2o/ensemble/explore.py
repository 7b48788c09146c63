"""How to act while learning: which action a Gaussian policy and an ensemble of critics try next.

Each exploration maps observations `(*S, B, D)` to actions `(*S, B, A)`. It draws the policy's internal
variable u: the policy gives the Gaussian of u and decodes u to an action. The same code thus serves squashed,
clipped and latent policies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mbo2o.ensemble.targets import member_std


class Proposer(Protocol):
    """A policy with critics, as exploration sees it."""

    @property
    def head(self) -> Tensor:
        """The critic in charge of each seed's episode, `(*S,)` int64, drawn at its start (`bootstrapped`)."""
        ...

    def proposal(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of u, each `(*S, B, U)`; at 0 all candidates would be the same."""
        ...

    def decode(self, obs: Tensor, u: Tensor) -> Tensor:
        """The action that u stands for, `(*S, B, A)` in [-1, 1]."""
        ...

    def q(self, obs: Tensor, act: Tensor) -> Tensor:
        """Every critic's value, `(*S, N, B)`."""
        ...


@dataclass
class ExploreConfig:
    """Which exploration, and its numbers."""

    name: str = "policy"  # policy | ucb | bootstrapped | oac
    candidates: int = 10  # actions that ucb and bootstrapped choose from (ENOTO's released code)
    # ucb: stds above the mean (ENOTO's code 10; SUNRISE's paper 1 to 10; 1 does on small tasks)
    ucb_coef: float = 1.0
    std_ddof: int = 1  # correction in the critics' std (ENOTO's code 1; SUNRISE, and OAC's |Q1 - Q2| / 2: 0)
    # oac: stds in the upper bound whose gradient is followed (OAC's paper on Humanoid, ENOTO's code)
    oac_beta: float = 4.66
    # oac: KL to the policy (the same sources): a shift of 6.9 of its stds; 0.5 to 2 for small tasks
    oac_delta: float = 23.53


def policy(p: Proposer, obs: Tensor, cfg: ExploreConfig) -> Tensor:
    """A sample of the policy."""
    mean, std = p.proposal(obs)
    return p.decode(obs, mean + std * torch.randn_like(mean))


def ucb(p: Proposer, obs: Tensor, cfg: ExploreConfig) -> Tensor:
    """The policy's sample of largest mean + coefficient · std over critics (SUNRISE; for one actor ENOTO)."""
    return _best(p, obs, cfg, lambda q: q.mean(-2) + cfg.ucb_coef * member_std(q, cfg.std_ddof))


def bootstrapped(p: Proposer, obs: Tensor, cfg: ExploreConfig) -> Tensor:
    """The policy's sample that the episode's head values most (Bootstrapped DQN for continuous actions)."""
    return _best(p, obs, cfg, lambda q: q.take_along_dim(p.head[..., None, None], -2).squeeze(-2))


def oac(p: Proposer, obs: Tensor, cfg: ExploreConfig) -> Tensor:
    """A sample of the policy, shifted up the critics' upper bound (OAC: Ciosek et al. 2019, 1910.12807).

    Within KL `oac_delta` of N(μ, Σ) the linearised bound is largest at μ + √(2δ) Σg / √(g'Σg), with g its
    gradient in u at μ.
    """
    mean, std = p.proposal(obs)
    with torch.enable_grad():  # acting turns gradients off
        u = mean.detach().requires_grad_()
        q = p.q(obs, p.decode(obs, u))
        upper = q.mean(-2) + cfg.oac_beta * member_std(q, cfg.std_ddof)
        # rows are independent: the gradient of the sum holds each row's own gradient
        (grad,) = torch.autograd.grad(upper.sum(), u)
    scaled = std * grad
    # 1e-5 as in OAC's code: where the gradient vanishes, as in a tanh's corners, the policy is not shifted
    shift = math.sqrt(2 * cfg.oac_delta) * std * scaled / (scaled.norm(dim=-1, keepdim=True) + 1e-5)
    return p.decode(obs, mean + shift + std * torch.randn_like(mean))


def _best(p: Proposer, obs: Tensor, cfg: ExploreConfig, score: Callable[[Tensor], Tensor]) -> Tensor:
    """The policy's sample with the largest score `(*S, N, K·B)` → `(*S, K·B)`, K candidates per state."""
    k, b = cfg.candidates, obs.shape[-2]
    mean, std = p.proposal(obs)
    noise = torch.randn(*mean.shape[:-2], k, *mean.shape[-2:], dtype=mean.dtype, device=mean.device)
    u = mean.unsqueeze(-3) + std.unsqueeze(-3) * noise
    many = obs.unsqueeze(-3).expand(*obs.shape[:-2], k, *obs.shape[-2:]).flatten(-3, -2)
    act = p.decode(many, u.flatten(-3, -2))
    best = score(p.q(many, act)).unflatten(-1, (k, b)).argmax(-2)
    return act.unflatten(-2, (k, b)).take_along_dim(best[..., None, :, None], -3).squeeze(-3)


EXPLORATIONS: dict[str, Callable[[Proposer, Tensor, ExploreConfig], Tensor]] = {
    f.__name__: f for f in (policy, ucb, bootstrapped, oac)
}


@torch.no_grad()
def explore(policy: Proposer, obs: Tensor, cfg: ExploreConfig) -> Tensor:
    """Act as `cfg.name` says: `(*S, B, D)` → `(*S, B, A)`, without gradients."""
    return EXPLORATIONS[cfg.name](policy, obs, cfg)
