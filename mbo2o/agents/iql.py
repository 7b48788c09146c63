"""Implicit Q-learning (Kostrikov et al. 2021, arXiv 2110.06169) on N critics."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from mbo2o.agents.qensemble import QConfig, QEnsemble
from mbo2o.ensemble.mlp import EnsembleMLP, MLPConfig
from mbo2o.nn.optim import Adam, cosine, polyak
from mbo2o.nn.policy import BoundedGaussian
from mbo2o.registry import agent
from mbo2o.types import Batch, Metrics, Spec, Step


@dataclass
class IQLConfig(QConfig):
    """Defaults: the paper's on MuJoCo, as CORL has them, unless said. Antmaze also needs rewards of -1 and 0.

    The authors also divide MuJoCo's rewards by a thousandth of the spread of the data's returns
    (`run.reward_scale=auto`).

    Of the options that all agents with critics share, `gamma`, `tau`, `critic_lr`, `critics`, `critic`,
    `normalize`, `mask` and `sunrise` act on the losses. `target` is the reduction of target critics that V
    learns from. `granularity` acts if that reduction is random. `explore` acts when exploring.
    `actor_reduction` acts on the values that evaluations report, and in PEX on the choice between two
    actions; no loss of IQL depends on it.
    """

    expectile: float = 0.7  # κ (antmaze 0.9, adroit 0.8; CORL on hopper-medium-expert 0.5)
    # inverse temperature of the actor's weights (antmaze 10; CORL on hopper-medium-expert 6)
    beta: float = 3.0
    weight_clip: float = 100.0  # the largest weight
    # squared error instead of -log π (CORL on hopper-medium and -medium-replay, with tau 1e-3)
    deterministic: bool = False
    normalize: bool = True  # CORL; the authors' own code leaves observations as they are
    noise: float = 0.03  # std of a deterministic actor's exploration (CORL)
    value_lr: float = 3e-4
    actor_lr: float = 3e-4
    # a cosine takes the actor's rate to 0 in so many updates (CORL: the offline steps)
    actor_decay_steps: int | None = None
    value_net: MLPConfig = field(default_factory=MLPConfig)
    actor: MLPConfig = field(default_factory=MLPConfig)  # adroit: dropout 0.1

    def unchanged(self) -> Self:
        """The same with a constant rate; in CORL the cosine goes on, so the rate starts at 0 and rises."""
        return replace(self, actor_decay_steps=None)


@agent("iql", IQLConfig)
class IQL(QEnsemble):
    """V is an upper expectile of Q over the data's actions, Q learns from V, the actor imitates what beats V.

    The critics are never evaluated at actions that are not in the data.
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
        """The Gaussian's mean, which lies in the box, `(*S, B, A)`."""
        return self.actor(obs)[0]

    def proposal(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the Gaussian over actions, before the clamp, each `(*S, B, A)`."""
        mean, log_std = self.actor(obs)
        return mean, torch.full_like(mean, self.cfg.noise) if self.cfg.deterministic else log_std.exp()

    def decode(self, obs: Tensor, u: Tensor) -> Tensor:
        """The action u, clamped to the box."""
        return u.clamp(-1, 1)

    def v(self, obs: Tensor) -> Tensor:
        """V(s), `(*S, B)`."""
        return self.value_net(obs).squeeze(-1)

    def backup(self, b: Batch) -> tuple[Tensor, Tensor]:
        """y = r + γ (1 - d) V(s'), `(*S, B)`, and what V learns from, Q̄_i(s, a), `(*S, N, B)`."""
        with torch.no_grad():
            y = b.rew + self.cfg.gamma * (1 - b.done) * self.v(b.next_obs)
            return y, self.q_target(b.obs, b.act)

    def update(self, batch: Batch, step: Step) -> Metrics:
        """One step of V, the critics, their targets and the actor, towards values from before the update."""
        b = self.scaled(batch)
        y, q_target = self.backup(b)
        v = self.v(b.obs)
        advantage = self.reduce(q_target) - v
        value_loss = expectile_loss(advantage, self.cfg.expectile).mean(-1)
        self.value_net_optim.step(value_loss)
        q = self.q(b.obs, b.act)
        # y comes from one V, which has no spread: SUNRISE weighs by the target critics that V learns from.
        # CORL averages over critics where td_loss sums: Adam divides the factor out, except for its ε.
        critic_loss = self.td_loss(b, q, y, q_target)
        self.critic_optim.step(critic_loss)
        polyak(self.target, self.critic, self.cfg.tau)
        metrics = {
            "critic_loss": critic_loss,
            "q": q.mean((-2, -1)),
            "value_loss": value_loss,
            "v": v.mean(-1),
        }
        return {name: x.detach() for name, x in metrics.items()} | self.improve(b, advantage.detach(), step)

    def improve(self, b: Batch, advantage: Tensor, step: Step) -> Metrics:
        """One step of the actor, which imitates each of the data's actions with weight min(exp(βA), clip)."""
        cfg = self.cfg
        weight = (cfg.beta * advantage).exp().clamp(max=cfg.weight_clip)
        actor_loss = (weight * self.imitation(b)).mean(-1)
        decay = cfg.actor_decay_steps
        self.actor_optim.step(actor_loss, cosine(step.count - 1, decay) if decay else None)
        return {"actor_loss": actor_loss.detach(), "weight": weight.mean(-1)}

    def imitation(self, b: Batch) -> Tensor:
        """The distance between the actor and each of the data's actions, `(*S, B)`."""
        if self.cfg.deterministic:
            return (self.mode(b.obs) - b.act).square().sum(-1)
        return -self.actor.log_prob(b.obs, b.act)


def expectile_loss(x: Tensor, expectile: float) -> Tensor:
    """|κ - 1(x < 0)| x², elementwise; for κ above ½, x > 0 costs more, so that V rises towards the best Q."""
    return (expectile - (x < 0).to(x.dtype)).abs() * x.square()
