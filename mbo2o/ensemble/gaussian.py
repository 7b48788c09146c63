"""Ensembles that predict a Gaussian: mean and softly bounded log-variance (PETS; MOPO's and MBPO's `BNN`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mbo2o.ensemble.mlp import EnsembleMLP, MLPConfig


def soft_clamp(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Bound `x` to (low, high) by softplus: gradients get smaller towards a bound, but never vanish."""
    x = high - F.softplus(high - x)
    return low + F.softplus(x - low)


def gaussian_nll(mean: Tensor, log_var: Tensor, target: Tensor) -> Tensor:
    """Twice the mean negative log-likelihood per output, up to a constant: `(*S, M, B, O)` → `(*S, M)`."""
    return ((mean - target).square() * torch.exp(-log_var) + log_var).mean((-2, -1))


class GaussianEnsemble(nn.Module):
    """M members, each a network with two linear heads: mean and log-variance of `n_out` outputs.

    The log-variance's bounds are learned per output and seed, and start at [-10, 0.5] (MOPO, MBPO).
    """

    def __init__(self, members: tuple[int, ...], n_in: int, n_out: int, cfg: MLPConfig):
        super().__init__()
        self.net = EnsembleMLP(members, n_in, 2 * n_out, cfg)
        self.max_log_var = nn.Parameter(torch.full((*members[:-1], 1, 1, n_out), 0.5))
        self.min_log_var = nn.Parameter(torch.full((*members[:-1], 1, 1, n_out), -10.0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(*S, B, n_in)` or `(*S, M, B, n_in)` → mean and log-variance, each `(*S, M, B, n_out)`."""
        mean, log_var = self.net(x).chunk(2, -1)
        return mean, soft_clamp(log_var, self.min_log_var, self.max_log_var)

    def bound_width(self) -> Tensor:
        """Σ max - Σ min of the log-variance bounds, `(*S,)`; the loss has it with a small weight."""
        return (self.max_log_var - self.min_log_var).sum((-3, -2, -1))
