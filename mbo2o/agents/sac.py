"""Soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905) with N critics, and what its variants share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor, nn

from mbo2o.agents.qensemble import QConfig, QEnsemble
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.nn.optim import Adam, cosine, polyak
from mbo2o.nn.policy import TanhGaussian, repeat
from mbo2o.registry import agent
from mbo2o.types import Batch, Metrics, Spec, Step, UserError, at_least_one

BACKUPS = ("sampled", "deterministic", "max")


@dataclass
class SACConfig(QConfig):
    """Defaults: the hyperparameters shared by MOPO, MBPO and the SAC paper's table 1 unless said."""

    actor_lr: float = 3e-4
    alpha_lr: float = 3e-4
    # a cosine takes the actor's rate to 0 in so many updates (OfflineRL-Kit's MOPO: the offline steps)
    actor_decay_steps: int | None = None
    init_alpha: float = 1.0  # entropy temperature at the start
    # None: entropy_per_dim * act_dim (MOPO's repo uses -3 on every D4RL task)
    target_entropy: float | None = None
    entropy_per_dim: float = -1.0  # (SAC; RLPD -0.5)
    # the target's a': sampled, deterministic (d3rlpy's CQL), or max, the best of several (CQL on antmaze)
    backup: str = "sampled"
    # whether the target holds the next action's entropy (MOPO, MBPO, RLPD do; CQL and WSRL leave it out)
    backup_entropy: bool = True
    backup_samples: int = 10  # under backup=max, and refused elsewhere
    policy_delay: int = 1  # critic steps per step of actor and temperature (REDQ: 20)
    actor: MLPConfig = field(default_factory=MLPConfig)

    def unchanged(self) -> Self:
        """The same with a constant rate: a cosine of the offline steps has ended at 0."""
        return replace(self, actor_decay_steps=None)


@agent("sac", SACConfig)
class SAC(QEnsemble):
    """Maximise return plus entropy: clipped N-critic targets, reparametrised actor, learned temperature."""

    cfg: SACConfig

    def __init__(self, spec: Spec, cfg: SACConfig):
        super().__init__(spec, cfg)
        at_least_one("agent", policy_delay=cfg.policy_delay, backup_samples=cfg.backup_samples)
        if cfg.backup not in BACKUPS:
            raise UserError(f"backup {cfg.backup!r} is not one of {', '.join(BACKUPS)}")
        if cfg.backup != "max" and cfg.backup_samples != SACConfig.backup_samples:
            text = f"backup_samples={cfg.backup_samples} has an effect under backup=max only"
            raise UserError(f"{text}, and backup={cfg.backup}: leave it out")
        self.cycle = cfg.policy_delay
        self.actor = TanhGaussian(spec.seeds, spec.obs_dim, spec.act_dim, cfg.actor)
        self.log_alpha = nn.Parameter(torch.full(spec.seeds, cfg.init_alpha).log())
        self.actor_optim = Adam(self.actor.parameters(), cfg.actor_lr)
        self.log_alpha_optim = Adam([self.log_alpha], cfg.alpha_lr)
        default = cfg.entropy_per_dim * spec.act_dim
        self.target_entropy = default if cfg.target_entropy is None else cfg.target_entropy

    def mode(self, obs: Tensor) -> Tensor:
        """The tanh of the Gaussian's mean, `(*S, B, A)`."""
        return self.actor.mode(obs)

    def proposal(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the Gaussian before the tanh, each `(*S, B, A)`."""
        mean, log_std = self.actor(obs)
        return mean, log_std.exp()

    def decode(self, obs: Tensor, u: Tensor) -> Tensor:
        """The action tanh(u)."""
        return torch.tanh(u)

    def next_value(self, next_obs: Tensor) -> tuple[Tensor, Tensor]:
        """What the target bootstraps from, `(*S, B)`, and the target critics' values behind it."""
        cfg = self.cfg
        if cfg.backup == "deterministic":
            q = self._q_next(next_obs, self.actor.mode(next_obs))
            return self.reduce(q), q
        k = cfg.backup_samples if cfg.backup == "max" else 1
        act, log_prob = self.actor.sample(next_obs, k)
        q = self._q_next(next_obs if k == 1 else repeat(next_obs, k), act)
        v = self.reduce(q)
        if cfg.backup_entropy:
            v = v - self.log_alpha.exp().unsqueeze(-1) * log_prob
        if cfg.backup == "max":
            best = v.unflatten(-1, (k, -1)).max(-2)
            index = best.indices.unsqueeze(-2).unsqueeze(-2).expand(*q.shape[:-1], 1, -1)
            return best.values, q.unflatten(-1, (k, -1)).gather(-2, index).squeeze(-2)
        return v, q

    def backup(self, b: Batch) -> tuple[Tensor, Tensor]:
        """y = r + γ (1 - d) [R_i Q̄_i(s', a') - α log π(a'|s')], `(*S, B)`; Q̄_i(s', a'), `(*S, N, B)`."""
        with torch.no_grad():
            v, q = self.next_value(b.next_obs)
            return b.rew + self.cfg.gamma * (1 - b.done) * v, q

    def update(self, batch: Batch, step: Step) -> Metrics:
        """One step of the critics, and every `policy_delay` times one of actor and temperature."""
        b = self.scaled(batch)
        metrics = self.critic_step(b)
        if step.due(self.cfg.policy_delay):
            metrics |= self.improve(b, step)
        polyak(self.target, self.critic, self.cfg.tau)
        return metrics

    def actor_loss(self, b: Batch, act: Tensor, log_prob: Tensor, step: Step) -> tuple[Tensor, Metrics]:
        """The loss α log π(ã|s) - R_i Q_i(s, ã), `(*S, B)`, of the actor's own actions ã, and metrics."""
        alpha = self.log_alpha.detach().exp().unsqueeze(-1)
        return alpha * log_prob - self.value_for_actor(b.obs, act), {}

    def improve(self, b: Batch, step: Step) -> Metrics:
        """One step of actor and temperature."""
        act, log_prob = self.actor.sample(b.obs)
        alpha = self.log_alpha.detach().exp()
        losses, metrics = self.actor_loss(b, act, log_prob, step)
        actor_loss = losses.mean(-1)
        decay = self.cfg.actor_decay_steps
        self.actor_optim.step(actor_loss, cosine(step.count - 1, decay) if decay else None)
        entropy = -log_prob.detach().mean(-1)
        # dual ascent on E[-log π] ≥ H̄
        self.log_alpha_optim.step(self.log_alpha * (entropy - self.target_entropy))
        return {"actor_loss": actor_loss.detach(), "entropy": entropy, "alpha": alpha} | metrics
