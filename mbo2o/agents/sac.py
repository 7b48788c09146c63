"""Soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905) with N critics and the smallest as the target."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mbo2o.ensemble.mlp import EnsembleMLP, MLPConfig
from mbo2o.nn.optim import Adam, polyak
from mbo2o.nn.policy import TanhGaussian
from mbo2o.registry import agent
from mbo2o.types import Batch, Metrics, Spec

from .base import Agent


@dataclass
class SACConfig:
    """Defaults: the hyperparameters shared by MOPO, MBPO and the SAC paper's table 1 unless said."""

    critics: int = 2  # N; the target and the actor take the smallest of all N
    gamma: float = 0.99
    tau: float = 0.005  # Polyak step of the target critics
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4
    alpha_lr: float = 3e-4
    init_alpha: float = 1.0  # entropy temperature at the start
    target_entropy: float | None = None  # None: -act_dim (SAC; MOPO's repo uses -3 on every D4RL task)
    backup_entropy: bool = True  # the target holds the next action's entropy (MOPO, MBPO, RLPD; WSRL leaves it out)
    actor: MLPConfig = field(default_factory=MLPConfig)
    critic: MLPConfig = field(default_factory=MLPConfig)


@agent("sac", SACConfig)
class SAC(Agent):
    """Maximise return plus entropy: clipped N-critic targets, a reparametrised actor, a learned temperature."""

    cfg: SACConfig

    def __init__(self, spec: Spec, cfg: SACConfig):
        super().__init__(spec, cfg)
        self.actor = TanhGaussian(spec.seeds, spec.obs_dim, spec.act_dim, cfg.actor)
        self.critic = EnsembleMLP((*spec.seeds, cfg.critics), spec.obs_dim + spec.act_dim, 1, cfg.critic)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.full(spec.seeds, cfg.init_alpha).log())
        self.actor_optim = Adam(self.actor.parameters(), cfg.actor_lr)
        self.critic_optim = Adam(self.critic.parameters(), cfg.critic_lr)
        self.alpha_optim = Adam([self.log_alpha], cfg.alpha_lr)
        self.target_entropy = -float(spec.act_dim) if cfg.target_entropy is None else cfg.target_entropy

    def q(self, obs: Tensor, act: Tensor) -> Tensor:
        """Every critic's value, `(*S, N, B)`."""
        return self.critic(obs, act).squeeze(-1)

    def value(self, obs: Tensor, act: Tensor) -> Tensor:
        """The smallest critic's value, `(*S, B)`."""
        return self.q(obs, act).amin(-2)

    def act(self, obs: Tensor, explore: bool = False) -> Tensor:
        """A sample of the policy, or its mode: `(*S, B, D)` → `(*S, B, A)`."""
        with torch.no_grad():
            return self.actor.sample(obs)[0] if explore else self.actor.mode(obs)

    def backup(self, b: Batch) -> Tensor:
        """Y = r + γ (1 - d) [min_i Q̄_i(s', a') - α log π(a'|s')], `(*S, B)`."""
        with torch.no_grad():
            next_act, log_prob = self.actor.sample(b.next_obs)
            v = self.target(b.next_obs, next_act).squeeze(-1).amin(-2)
            if self.cfg.backup_entropy:
                v = v - self.log_alpha.exp().unsqueeze(-1) * log_prob
            return b.rew + self.cfg.gamma * (1 - b.done) * v

    def update(self, batch: Batch) -> Metrics:
        """One step each of critics, actor and temperature."""
        q, y = self.q(batch.obs, batch.act), self.backup(batch)
        critic_loss = (q - y.unsqueeze(-2)).square().mean(-1).sum(-1)
        self.critic_optim.step(critic_loss)

        act, log_prob = self.actor.sample(batch.obs)
        alpha = self.log_alpha.detach().exp()
        actor_loss = (alpha.unsqueeze(-1) * log_prob - self.value(batch.obs, act)).mean(-1)
        self.actor_optim.step(actor_loss)

        entropy = -log_prob.detach().mean(-1)
        self.alpha_optim.step(self.log_alpha * (entropy - self.target_entropy))  # dual ascent on E[-log π] ≥ H̄

        polyak(self.target, self.critic, self.cfg.tau)
        return {
            "critic_loss": critic_loss.detach(),
            "actor_loss": actor_loss.detach(),
            "q": q.detach().mean((-2, -1)),
            "entropy": entropy,
            "alpha": alpha,
        }
