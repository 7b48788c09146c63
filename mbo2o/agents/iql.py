"""Implicit Q-learning (Kostrikov et al. 2021, arXiv 2110.06169) on N critics."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mbo2o.agents.qensemble import QConfig, QEnsemble
from mbo2o.ensemble.mlp import EnsembleMLP, MLPConfig
from mbo2o.nn.optim import Adam, polyak
from mbo2o.nn.policy import BoundedGaussian
from mbo2o.registry import agent
from mbo2o.types import Batch, Metrics, Spec


@dataclass
class IQLConfig(QConfig):
    """Defaults: the paper's on MuJoCo, as CORL has them, unless said. Antmaze wants rewards of -1 and 0 besides.

    The authors also divide MuJoCo's rewards by a thousandth of the spread of the data's returns (`run.reward_scale=auto`).
    """

    expectile: float = 0.7  # κ (antmaze 0.9, adroit 0.8; CORL on hopper-medium-expert 0.5)
    beta: float = (
        3.0  # inverse temperature of the actor's weights (antmaze 10; CORL on hopper-medium-expert 6)
    )
    weight_clip: float = 100.0  # the largest weight
    deterministic: bool = (
        False  # squared error instead of -log π (CORL on hopper-medium and -medium-replay, with tau 1e-3)
    )
    normalize: bool = True  # CORL; the authors' own code leaves observations as they are
    noise: float = (
        0.03  # std of a deterministic actor's exploration (CORL, whose clip at 0.5 is 17 of them away)
    )
    value_lr: float = 3e-4
    actor_lr: float = 3e-4
    actor_decay_steps: int | None = (
        None  # a cosine takes the actor's rate to 0 in so many updates (CORL: the offline steps)
    )
    value_net: MLPConfig = field(default_factory=MLPConfig)
    actor: MLPConfig = field(default_factory=MLPConfig)  # adroit: dropout 0.1

    def after_switch(self) -> IQLConfig:
        """The schedule ends here: CORL's keeps turning, so that fine-tuning starts at rate 0 and ends at the full one."""
        return replace(self, actor_decay_steps=None)


@agent("iql", IQLConfig)
class IQL(QEnsemble):
    """V is an upper expectile of Q over the data's actions, Q looks ahead by V, the actor imitates what beats V.

    The critics are never asked about an action that the data do not hold.
    """

    cfg: IQLConfig

    def __init__(self, spec: Spec, cfg: IQLConfig):
        super().__init__(spec, cfg)
        self.value_net = EnsembleMLP(spec.seeds, spec.obs_dim, 1, cfg.value_net)
        self.actor = BoundedGaussian(spec.seeds, spec.obs_dim, spec.act_dim, cfg.actor)
        self.value_net_optim = Adam(self.value_net.parameters(), cfg.value_lr)
        learned = self.actor.net if cfg.deterministic else self.actor  # σ has no part in a squared error
        self.actor_optim = Adam(learned.parameters(), cfg.actor_lr)

    def mode(self, obs: Tensor) -> Tensor:
        """The Gaussian's mean, which lies in the box."""
        return self.actor(obs)[0]

    def proposal(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """The Gaussian over actions, before the clamp."""
        mean, log_std = self.actor(obs)
        return mean, torch.full_like(mean, self.cfg.noise) if self.cfg.deterministic else log_std.exp()

    def decode(self, obs: Tensor, u: Tensor) -> Tensor:
        """Clamp."""
        return u.clamp(-1, 1)

    def v(self, obs: Tensor) -> Tensor:
        """V(s), `(*S, B)`."""
        return self.value_net(obs).squeeze(-1)

    def backup(self, b: Batch) -> tuple[Tensor, Tensor]:
        """Y = r + γ (1 - d) V(s'), `(*S, B)`, and what V learns from, Q̄_i(s, a), `(*S, N, B)`."""
        with torch.no_grad():
            y = b.rew + self.cfg.gamma * (1 - b.done) * self.v(b.next_obs)
            return y, self.q_target(b.obs, b.act)

    def update(self, batch: Batch) -> Metrics:
        """One step of V, the critics, their targets and the actor, in this order; the critics' target is from before it all."""
        self.updates += 1
        b = self.observed(batch)
        y, q_target = self.backup(b)
        v = self.v(b.obs)
        advantage = self.reduce(q_target) - v
        value_loss = expectile_loss(advantage, self.cfg.expectile).mean(-1)
        self.value_net_optim.step(value_loss)
        q = self.q(b.obs, b.act)
        # y comes from one V, which has no spread: SUNRISE weighs by that of the target critics that V learns from.
        # CORL averages over critics where td_loss adds up: Adam divides the factor out, all but its ε
        critic_loss = self.td_loss(b, q, y, q_target)
        self.critic_optim.step(critic_loss)
        polyak(self.target, self.critic, self.cfg.tau)
        metrics = {
            "critic_loss": critic_loss,
            "q": q.mean((-2, -1)),
            "value_loss": value_loss,
            "v": v.mean(-1),
        }
        return {name: x.detach() for name, x in metrics.items()} | self.improve(b, advantage.detach())

    def improve(self, b: Batch, advantage: Tensor) -> Metrics:
        """One step of the actor: min(exp(βA), clip) weighs how well it imitates each of the data's actions."""
        cfg = self.cfg
        weight = (cfg.beta * advantage).exp().clamp(max=cfg.weight_clip)
        actor_loss = (weight * self.imitation(b)).mean(-1)
        self.actor_optim.step(actor_loss, cosine(self.updates - 1, cfg.actor_decay_steps))
        return {"actor_loss": actor_loss.detach(), "weight": weight.mean(-1)}

    def imitation(self, b: Batch) -> Tensor:
        """How badly the actor imitates each of the data's actions, `(*S, B)`."""
        if self.cfg.deterministic:
            return (self.mode(b.obs) - b.act).square().sum(-1)
        return -self.actor.log_prob(b.obs, b.act)


def expectile_loss(x: Tensor, expectile: float) -> Tensor:
    """|κ - 1(x < 0)| x², elementwise: half the square for κ = ½; above, x > 0 costs more, and V climbs towards the best Q."""
    return (expectile - (x < 0).to(x.dtype)).abs() * x.square()


def cosine(done: int, steps: int | None) -> float:
    """Share of the learning rate after `done` updates: 1 at first, 0 after `steps` and for good; always 1 without steps."""
    return 0.5 * (1 + math.cos(math.pi * min(done / steps, 1))) if steps else 1.0
