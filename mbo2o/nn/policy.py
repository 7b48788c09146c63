"""Policies over the unit box."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mbo2o.ensemble.mlp import EnsembleMLP, MLPConfig

LOG_STD = (-5.0, 2.0)
"""Range of log σ before the tanh (OfflineRL-Kit, unifloral, EDAC; RLPD and REDQ start at -20)."""
EDGE = 1e-6
"""Distance from ±1 that actions keep before atanh, which is infinite there, and imprecise close to it."""


class TanhGaussian(nn.Module):
    """a = tanh(u), u ~ N(μ(s), σ(s)): one actor per seed (SAC)."""

    def __init__(self, seeds: tuple[int, ...], obs_dim: int, act_dim: int, cfg: MLPConfig):
        super().__init__()
        self.net = EnsembleMLP(seeds, obs_dim, 2 * act_dim, cfg)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log σ before the tanh, each `(*S, B, A)`."""
        mean, log_std = self.net(obs).chunk(2, -1)
        return mean, log_std.clamp(*LOG_STD)

    def mode(self, obs: Tensor) -> Tensor:
        """The deterministic action tanh(μ), `(*S, B, A)`."""
        return torch.tanh(self(obs)[0])

    def sample(self, obs: Tensor, n: int = 1) -> tuple[Tensor, Tensor]:
        """n reparametrised actions per state, `(*S, n·B, A)`, and log-densities `(*S, n·B)`; see `repeat`."""
        mean, log_std = (x if n == 1 else repeat(x, n) for x in self(obs))
        noise = torch.randn_like(mean)
        u = mean + log_std.exp() * noise
        return torch.tanh(u), _log_density(u, noise, log_std)

    def log_prob(self, obs: Tensor, act: Tensor) -> Tensor:
        """Log-density of the given actions, `(*S, B)`; actions at ±1 count as a little inside."""
        mean, log_std = self(obs)
        u = torch.atanh(act.clamp(-1 + EDGE, 1 - EDGE))
        return _log_density(u, (u - mean) * (-log_std).exp(), log_std)


def _log_density(u: Tensor, z: Tensor, log_std: Tensor) -> Tensor:
    """Log-density of tanh(u), with u at z deviations from the Gaussian's mean: `(*S, B, A)` → `(*S, B)`."""
    log_normal = -0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi)
    # log(1 - tanh²u), in the form that neither overflows nor cancels
    log_jacobian = 2 * (math.log(2) - u - F.softplus(-2 * u))
    return (log_normal - log_jacobian).sum(-1)


class BoundedGaussian(nn.Module):
    """a ~ N(tanh μ(s), σ), clipped when acting; σ is the same in all states (IQL, and AWAC in CORL).

    A sigmoid bounds log σ (by PEX's bounds): behind a hard clamp a parameter that leaves the bounds has no
    gradient to return.
    """

    def __init__(self, seeds: tuple[int, ...], obs_dim: int, act_dim: int, cfg: MLPConfig):
        super().__init__()
        self.net = EnsembleMLP(seeds, obs_dim, act_dim, cfg)
        start = math.log(-LOG_STD[0] / LOG_STD[1])  # σ = 1
        self.spread = nn.Parameter(torch.full((*seeds, 1, act_dim), start))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean in [-1, 1] and log σ, each `(*S, B, A)`."""
        mean = torch.tanh(self.net(obs))
        low, high = LOG_STD
        return mean, (low + (high - low) * torch.sigmoid(self.spread)).expand_as(mean)

    def log_prob(self, obs: Tensor, act: Tensor) -> Tensor:
        """Log-density of unclipped actions, `(*S, B)`."""
        mean, log_std = self(obs)
        z = (act - mean) * (-log_std).exp()
        return (-0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def repeat(x: Tensor, n: int) -> Tensor:
    """`(*S, B, D)` → `(*S, n·B, D)`: the whole batch, n times over."""
    return x.unsqueeze(-3).expand(*x.shape[:-2], n, *x.shape[-2:]).flatten(-3, -2)
