"""Advantage-weighted actor-critic (Nair et al. 2020, arXiv 2006.09359) with N critics."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mbo2o.agents.qensemble import QConfig, QEnsemble
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.nn.optim import Adam, polyak
from mbo2o.nn.policy import BoundedGaussian, repeat
from mbo2o.registry import agent
from mbo2o.types import Batch, Metrics, Spec, Step, UserError

WEIGHTS = ("exp", "softmax")


@dataclass
class AWACConfig(QConfig):
    """Defaults: CORL's on MuJoCo, where rewards are not scaled."""

    lam: float = 1 / 3  # λ, in units of return (CORL on antmaze and adroit 0.1; d3rlpy 1)
    weights: str = "exp"  # exp: min(exp(A/λ), clip); softmax: of A/λ over the batch, times its size (d3rlpy)
    weight_clip: float = 100.0  # the largest weight of exp
    actor_lr: float = 3e-4
    normalize: bool = True
    critic: MLPConfig = field(default_factory=lambda: MLPConfig(hidden=[256, 256, 256]))
    actor: MLPConfig = field(default_factory=lambda: MLPConfig(hidden=[256, 256, 256]))


@agent("awac", AWACConfig)
class AWAC(QEnsemble):
    """Critics as SAC's without entropy; the actor imitates the data, more where they beat its own actions.

    In CORL the Gaussian's mean has no bounds. Here a tanh bounds it: outside the box actions are clamped, so
    critics could not distinguish means there. IQL and BC have the same policy, which can be taken over.
    """

    cfg: AWACConfig

    def __init__(self, spec: Spec, cfg: AWACConfig):
        super().__init__(spec, cfg)
        if cfg.weights not in WEIGHTS:
            raise UserError(f"weights {cfg.weights!r} is not one of {', '.join(WEIGHTS)}")
        self.actor = BoundedGaussian(spec.seeds, spec.obs_dim, spec.act_dim, cfg.actor)
        self.actor_optim = Adam(self.actor.parameters(), cfg.actor_lr)

    def mode(self, obs: Tensor) -> Tensor:
        """The Gaussian's mean, which lies in the box, `(*S, B, A)`."""
        return self.actor(obs)[0]

    def proposal(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the Gaussian over actions, before the clamp, each `(*S, B, A)`."""
        mean, log_std = self.actor(obs)
        return mean, log_std.exp()

    def decode(self, obs: Tensor, u: Tensor) -> Tensor:
        """The action u, clamped to the box."""
        return u.clamp(-1, 1)

    def sample(self, obs: Tensor) -> Tensor:
        """An action of the policy, `(*S, B, A)`."""
        mean, std = self.proposal(obs)
        return self.decode(obs, mean + std * torch.randn_like(mean))

    def backup(self, b: Batch) -> tuple[Tensor, Tensor]:
        """y = r + γ (1 - d) R_i Q̄_i(s', a'), a' ~ π, `(*S, B)`, and Q̄_i(s', a'), `(*S, N, B)`."""
        with torch.no_grad():
            q = self._q_next(b.next_obs, self.sample(b.next_obs))
            return b.rew + self.cfg.gamma * (1 - b.done) * self.reduce(q), q

    def update(self, batch: Batch, step: Step) -> Metrics:
        """One step of the critics, the actor and the targets."""
        b = self.scaled(batch)
        metrics = self.critic_step(b) | self.improve(b)
        polyak(self.target, self.critic, self.cfg.tau)
        return metrics

    def improve(self, b: Batch) -> Metrics:
        """One step of the actor on the weighted likelihood of the data's actions."""
        weight = self.weigh(self.advantage(b))
        actor_loss = -(weight * self.actor.log_prob(b.obs, b.act)).mean(-1)
        self.actor_optim.step(actor_loss)
        return {"actor_loss": actor_loss.detach(), "weight": weight.mean(-1)}

    def advantage(self, b: Batch) -> Tensor:
        """A = R Q(s, a) - R Q(s, ã), ã ~ π(·|s), `(*S, B)`."""
        with torch.no_grad():
            # one call for both: a reduction that draws once per batch asks the same critics about a and ã
            q = self.value_for_actor(repeat(b.obs, 2), torch.cat([b.act, self.sample(b.obs)], -2))
            of_data, of_policy = q.chunk(2, -1)
            return of_data - of_policy

    def weigh(self, advantage: Tensor) -> Tensor:
        """The weight of imitating each of the data's actions, `(*S, B)`."""
        z = advantage / self.cfg.lam
        if self.cfg.weights == "softmax":
            return z.softmax(-1) * z.shape[-1]
        return z.exp().clamp(max=self.cfg.weight_clip)
