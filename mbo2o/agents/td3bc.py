"""TD3+BC (Fujimoto and Gu 2021, arXiv 2106.06860) on N critics; without imitation it is TD3."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mbo2o.agents.qensemble import QConfig, QEnsemble
from mbo2o.ensemble.mlp import EnsembleMLP, MLPConfig
from mbo2o.nn.optim import Adam, polyak
from mbo2o.registry import agent
from mbo2o.types import Batch, Metrics, Spec, Step, UserError


@dataclass
class TD3BCConfig(QConfig):
    """Defaults: the paper's table 3, the same in the authors' code and in CORL, unless said."""

    alpha: float = 2.5  # α in λ = α / mean|Q|: how much value counts beside imitation
    bc_weight: float = 1.0  # b of the imitation, at the start
    bc_final: float | None = None  # b goes there linearly and stays; None: b is constant
    bc_decay_steps: int | None = None  # in so many updates of this agent
    # b after the switch, from where it goes to 0 (ENOTO's code, which says nothing of the weight before)
    online_bc_weight: float = 0.3
    # in so many updates: 250,000 of the actor's steps, of which there is one in two updates
    online_bc_decay_steps: int = 500_000
    target_noise: float = 0.2  # deviation of the target policy's smoothing
    target_noise_clip: float = 0.5
    exploration_noise: float = 0.1
    policy_delay: int = 2  # critic steps per step of the actor and of all targets
    actor_lr: float = 3e-4
    actor_reduction: str = "first_q"
    # the authors add 1e-3 to deviations; here only a constant dimension's deviation is changed, to 1
    normalize: bool = True
    actor: MLPConfig = field(default_factory=MLPConfig)

    def after_switch(self) -> TD3BCConfig:
        """The same with imitation that fades out (ENOTO's code, which does not stop at 0)."""
        steps = self.online_bc_decay_steps
        return replace(self, bc_weight=self.online_bc_weight, bc_final=0.0, bc_decay_steps=steps)


@agent("td3bc", TD3BCConfig)
class TD3BC(QEnsemble):
    """A deterministic actor climbs a critic scaled to α, held to the data by a squared distance."""

    cfg: TD3BCConfig

    def __init__(self, spec: Spec, cfg: TD3BCConfig):
        super().__init__(spec, cfg)
        if (cfg.bc_final is None) != (cfg.bc_decay_steps is None):
            text = "bc_final and bc_decay_steps make the schedule of bc_weight together"
            raise UserError(f"{text}: set both or none")
        self.cycle = cfg.policy_delay
        self.actor = EnsembleMLP(spec.seeds, spec.obs_dim, spec.act_dim, cfg.actor)
        self.actor_target = copy.deepcopy(self.actor).requires_grad_(False)
        self.actor_optim = Adam(self.actor.parameters(), cfg.actor_lr)

    def mode(self, obs: Tensor) -> Tensor:
        """The tanh of the actor's output, `(*S, B, A)`."""
        return torch.tanh(self.actor(obs))

    def proposal(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """The action and a constant deviation; at 0, candidates of ucb would all be alike (ENOTO's code)."""
        mean = self.mode(obs)
        return mean, torch.full_like(mean, self.cfg.exploration_noise)

    def decode(self, obs: Tensor, u: Tensor) -> Tensor:
        """The action u, clipped to the box."""
        return u.clamp(-1, 1)

    def bc_weight(self, step: Step) -> float | Tensor:
        """The weight b of the imitation at this update: a number, or a tensor `()` or `(*S,)`."""
        cfg = self.cfg
        if cfg.bc_final is None or cfg.bc_decay_steps is None:
            return cfg.bc_weight
        t = (step.count.double() / max(1, cfg.bc_decay_steps)).clamp(max=1)
        return ((1 - t) * cfg.bc_weight + t * cfg.bc_final).float()

    def backup(self, b: Batch) -> tuple[Tensor, Tensor]:
        """y = r + γ (1 - d) R_i Q̄_i(s', a'), `(*S, B)`, and Q̄_i(s', a'), `(*S, N, B)`; a' = π̄(s') +
        noise.
        """
        cfg = self.cfg
        with torch.no_grad():
            noise = cfg.target_noise * torch.randn_like(b.act)
            noise = noise.clamp(-cfg.target_noise_clip, cfg.target_noise_clip)
            act = torch.tanh(self.actor_target(b.next_obs)) + noise
            q = self._q_next(b.next_obs, act.clamp(-1, 1))
            return b.rew + cfg.gamma * (1 - b.done) * self.reduce(q), q

    def update(self, batch: Batch, step: Step) -> Metrics:
        """One step of the critics, and every `policy_delay` times one of the actor and of all targets."""
        b = self.scaled(batch)
        metrics = self.critic_step(b)
        if step.due(self.cfg.policy_delay):
            metrics |= self.improve(b, step)
            polyak(self.target, self.critic, self.cfg.tau)
            polyak(self.actor_target, self.actor, self.cfg.tau)
        return metrics

    def improve(self, b: Batch, step: Step) -> Metrics:
        """One step of the actor down -λ mean Q(s, π(s)) + b mean (π(s) - a)², over dimensions too."""
        act = self.mode(b.obs)
        q = self.value_for_actor(b.obs, act)
        # λ; the bound is for a critic that is 0 everywhere
        scale = self.cfg.alpha / q.detach().abs().mean(-1).clamp(min=1e-8)
        imitation = (act - b.act).square().mean((-2, -1))
        actor_loss = -scale * q.mean(-1) + self.bc_weight(step) * imitation
        self.actor_optim.step(actor_loss)
        return {"actor_loss": actor_loss.detach(), "imitation": imitation.detach(), "lambda": scale}
