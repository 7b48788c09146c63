"""Stochastic policies over the unit box."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mbo2o.ensemble.mlp import EnsembleMLP, MLPConfig

LOG_STD = (-5.0, 2.0)
"""Range of log σ before the tanh, by clamping (OfflineRL-Kit, unifloral; RLPD and REDQ start at -20)."""


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

    def sample(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """A reparametrised action `(*S, B, A)` and its log-density `(*S, B)`."""
        mean, log_std = self(obs)
        noise = torch.randn_like(mean)
        u = mean + log_std.exp() * noise
        log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        # log(1 - tanh²u), in the form that neither overflows nor cancels
        log_jacobian = 2 * (math.log(2) - u - F.softplus(-2 * u))
        return torch.tanh(u), (log_normal - log_jacobian).sum(-1)
