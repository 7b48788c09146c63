"""Conservative Q-learning (Kumar et al. 2020, arXiv 2006.04779) on N critics."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor, nn

from mbo2o.agents.sac import SAC, SACConfig
from mbo2o.nn.optim import Adam
from mbo2o.nn.policy import repeat
from mbo2o.registry import agent
from mbo2o.types import Batch, Metrics, Spec, Step, UserError, at_least_one, uniform_actions

LARGEST = 1e6
"""Upper bound of the Lagrange multiplier (Cal-QL, CORL)."""


@dataclass
class CQLConfig(SACConfig):
    """Defaults: the CQL of ENOTO's released code (d3rlpy v1's), unless said; its nets are 3x256."""

    weight: float = 5.0  # c of the conservative term (CORL 10 on MuJoCo, 5 on antmaze)
    samples: int = 10  # K uniform, K from π(·|s), K from π(·|s')
    temperature: float = 1.0  # temperature in the log-sum-exp
    # the term's reduction over critics: mean (ENOTO's code: c/N per critic) or sum (c per critic)
    ensemble: str = "mean"
    # Lagrange: c is scaled so that the gap stays at this (antmaze 0.8); None: c is constant
    gap: float | None = None
    gap_floor: float = -math.inf  # a state's gap is not pushed below (CORL on antmaze -200)
    lagrange_lr: float = 3e-4  # CORL
    init_lagrange: float = math.e  # CORL starts the logarithm at 1
    backup: str = "deterministic"
    backup_entropy: bool = False
    actor_lr: float = 3e-5
    alpha_lr: float = 1e-4
    # in so many updates at first the actor imitates the data (CQL's example script 40k; d3rlpy, CORL 0)
    clone_steps: int = 0

    def after_switch(self) -> SACConfig:
        """SAC: the conservative term goes, and the backup becomes soft (ENOTO)."""
        own = {f.name: getattr(self, f.name) for f in fields(SACConfig)}
        backup = {"backup": "sampled", "backup_entropy": True, "backup_samples": SACConfig.backup_samples}
        return SACConfig(**own | backup).unchanged()

    def unchanged(self) -> Self:
        """The same without cloning, which is over."""
        return replace(super().unchanged(), clone_steps=0)


@agent("cql", CQLConfig)
class CQL(SAC):
    """SAC whose critics are pushed down at actions of the policy and at random ones, and up at the data."""

    cfg: CQLConfig

    def __init__(self, spec: Spec, cfg: CQLConfig):
        super().__init__(spec, cfg)
        at_least_one("cql", samples=cfg.samples)
        if cfg.temperature <= 0:
            raise UserError(f"cql: temperature={cfg.temperature} must be above 0")
        if cfg.ensemble not in ("mean", "sum"):
            raise UserError(f"ensemble {cfg.ensemble!r} is not one of mean, sum")
        if cfg.gap is not None:
            self.log_lagrange = nn.Parameter(torch.full(spec.seeds, cfg.init_lagrange).log())
            self.log_lagrange_optim = Adam([self.log_lagrange], cfg.lagrange_lr)

    def bound(self, q: Tensor, b: Batch) -> tuple[Tensor, Metrics]:
        """Values of the policy's actions, `(*S, N, 2K, B)`, as the term counts them."""
        return q, {}

    def log_sum_exp(self, b: Batch) -> tuple[Tensor, Metrics]:
        """T log Σ_k exp(q_k / T), `(*S, N, B)`; q_k = Q(s, a_k) - log density(a_k) of 3K actions at s."""
        k, n = self.cfg.samples, b.rew.shape[-1]
        with torch.no_grad():  # otherwise the critics' loss would train the actor
            uniform = uniform_actions(*b.act.shape[:-2], k * n, b.act.shape[-1], device=b.act.device)
            here, log_here = self.actor.sample(b.obs, k)
            there, log_there = self.actor.sample(b.next_obs, k)
        q = self.q(repeat(b.obs, 3 * k), torch.cat([uniform, here, there], -2)).unflatten(-1, (3 * k, n))
        policy, metrics = self.bound(q[..., k:, :], b)
        q = torch.cat([q[..., :k, :], policy], -2)
        log_uniform = torch.full_like(log_here, -b.act.shape[-1] * math.log(2))
        log_density = torch.cat([log_uniform, log_here, log_there], -1).unflatten(-1, (3 * k, n))
        t = self.cfg.temperature
        return t * torch.logsumexp((q - log_density.unsqueeze(-3)) / t, -2), metrics

    def actor_loss(self, b: Batch, act: Tensor, log_prob: Tensor, step: Step) -> tuple[Tensor, Metrics]:
        """SAC's; in the first `clone_steps` updates -log π(a|s) of the data.

        The authors' code adds SAC's α log π there. At α = 1, where it starts, that cancels the likelihood's
        hold on σ, which then grows without bound: nothing is cloned before the temperature has come down.
        """
        loss, metrics = super().actor_loss(b, act, log_prob, step)
        if self.cfg.clone_steps:
            cloning = step.count <= self.cfg.clone_steps
            loss = torch.where(cloning, -self.actor.log_prob(b.obs, b.act), loss)
        return loss, metrics

    def regulariser(self, b: Batch, q: Tensor) -> tuple[Tensor, Metrics]:
        """c [log Σ_a exp Q_i(s, a) - Q_i(s, a_data)], averaged or summed over critics, `(*S,)`."""
        cfg = self.cfg
        above, metrics = self.log_sum_exp(b)
        gap = (above - q).clamp(min=cfg.gap_floor).mean(-1)
        metrics |= {"gap": gap.detach().mean(-1)}
        over_critics = gap.mean(-1) if cfg.ensemble == "mean" else gap.sum(-1)
        if cfg.gap is None:
            return cfg.weight * over_critics, metrics
        slack = cfg.weight * (gap - cfg.gap).mean(-1)
        self.log_lagrange_optim.step(-self.log_lagrange.exp() * slack.detach())
        with torch.no_grad():  # a clamp in the loss would stop the gradient that brings the multiplier back
            self.log_lagrange.clamp_(max=math.log(LARGEST))
        scale = self.log_lagrange.detach().exp()
        return scale * cfg.weight * over_critics, metrics | {"lagrange": scale}
