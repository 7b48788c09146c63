"""TD3+BC (Fujimoto and Gu 2021, arXiv 2106.06860) on N critics; without its imitation, TD3 with a normalised value."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mbo2o.agents.qensemble import QConfig, QEnsemble
from mbo2o.ensemble.mlp import EnsembleMLP, MLPConfig
from mbo2o.nn.optim import Adam, polyak
from mbo2o.registry import agent
from mbo2o.types import Batch, Metrics, Spec, UserError


@dataclass
class TD3BCConfig(QConfig):
    """Defaults: the paper's table 3, the same in the authors' code and in CORL, unless said."""

    alpha: float = 2.5  # of λ = α / mean|Q|: how much value counts beside imitation
    bc_weight: float = 1.0  # b of the imitation, at the start
    bc_final: float | None = None  # b goes there linearly and stays; None: b is constant
    bc_decay_steps: int | None = None  # in so many updates of this agent
    online_bc_weight: float = (
        0.3  # b after the switch, from where it goes to 0 (ENOTO's code; the weight before is not known)
    )
    online_bc_decay_steps: int = 500_000  # ditto: 250,000 of the actor's steps, which is every second
    target_noise: float = 0.2  # deviation of the target policy's smoothing
    target_noise_clip: float = 0.5
    exploration_noise: float = 0.1
    policy_delay: int = 2  # critic steps per step of the actor and of all targets
    actor_lr: float = 3e-4
    actor_reduction: str = "first_q"
    normalize: bool = (
        True  # they add 1e-3 to the deviation; here a constant dimension gets 1, and the others their own
    )
    actor: MLPConfig = field(default_factory=MLPConfig)

    def after_switch(self) -> TD3BCConfig:
        """The same with imitation that fades out (ENOTO's code, which does not stop at 0)."""
        return replace(
            self, bc_weight=self.online_bc_weight, bc_final=0.0, bc_decay_steps=self.online_bc_decay_steps
        )


@agent("td3bc", TD3BCConfig)
class TD3BC(QEnsemble):
    """A deterministic actor climbs a critic scaled to α, and is held to the data's actions by their mean squared distance."""

    cfg: TD3BCConfig

    def __init__(self, spec: Spec, cfg: TD3BCConfig):
        super().__init__(spec, cfg)
        if (cfg.bc_final is None) != (cfg.bc_decay_steps is None):
            raise UserError(
                "bc_final and bc_decay_steps make the schedule of bc_weight together: set both or none"
            )
        self.actor = EnsembleMLP(spec.seeds, spec.obs_dim, spec.act_dim, cfg.actor)
        self.actor_target = copy.deepcopy(self.actor).requires_grad_(False)
        self.actor_optim = Adam(self.actor.parameters(), cfg.actor_lr)

    def mode(self, obs: Tensor) -> Tensor:
        """Tanh of the actor's output."""
        return torch.tanh(self.actor(obs))

    def proposal(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """The action itself, with a constant deviation; without it all candidates of ucb would be one (ENOTO's code)."""
        mean = self.mode(obs)
        return mean, torch.full_like(mean, self.cfg.exploration_noise)

    def decode(self, obs: Tensor, u: Tensor) -> Tensor:
        """Clipped to the box."""
        return u.clamp(-1, 1)

    def bc_weight(self) -> float | Tensor:
        """The weight b of the imitation at this update."""
        cfg = self.cfg
        if cfg.bc_final is None or cfg.bc_decay_steps is None:
            return cfg.bc_weight
        t = min(1.0, self.updates / max(1, cfg.bc_decay_steps))
        return (1 - t) * cfg.bc_weight + t * cfg.bc_final

    def backup(self, b: Batch) -> tuple[Tensor, Tensor]:
        """Y = r + γ (1 - d) R_i Q̄_i(s', a'), `(*S, B)`, and Q̄_i(s', a'), `(*S, N, B)`, where a' = π̄(s') + clipped noise."""
        cfg = self.cfg
        with torch.no_grad():
            noise = cfg.target_noise * torch.randn_like(b.act)
            noise = noise.clamp(-cfg.target_noise_clip, cfg.target_noise_clip)
            act = torch.tanh(self.actor_target(b.next_obs)) + noise
            q = self.q_next(b.next_obs, act.clamp(-1, 1))
            return b.rew + cfg.gamma * (1 - b.done) * self.reduce(q), q

    def update(self, batch: Batch) -> Metrics:
        """One step of the critics, and every `policy_delay` times one of the actor and of all targets."""
        self.updates += 1
        b = self.observed(batch)
        q = self.q(b.obs, b.act)
        y, next_q = self.backup(b)
        critic_loss = self.td_loss(b, q, y, next_q)
        self.critic_optim.step(critic_loss)
        metrics = {"critic_loss": critic_loss.detach(), "q": q.detach().mean((-2, -1))}
        if self.updates % self.cfg.policy_delay == 0:
            metrics |= self.improve(b)
            polyak(self.target, self.critic, self.cfg.tau)
            polyak(self.actor_target, self.actor, self.cfg.tau)
        return metrics

    def improve(self, b: Batch) -> Metrics:
        """One step of the actor down -λ mean Q(s, π(s)) + b mean (π(s) - a)²; the second mean is over dimensions too."""
        act = self.mode(b.obs)
        q = self.value_for_actor(b.obs, act)
        scale = self.cfg.alpha / q.detach().abs().mean(-1).clamp(
            min=1e-8
        )  # λ; a critic that is 0 everywhere has no slope
        imitation = (act - b.act).square().mean((-2, -1))
        actor_loss = -scale * q.mean(-1) + self.bc_weight() * imitation
        self.actor_optim.step(actor_loss)
        return {"actor_loss": actor_loss.detach(), "imitation": imitation.detach(), "lambda": scale}
