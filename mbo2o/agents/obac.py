"""Offline-boosted actor-critic (Luo et al. 2024, arXiv 2405.18520) on N critics."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mbo2o.agents.iql import expectile_loss
from mbo2o.agents.sac import SAC, SACConfig
from mbo2o.ensemble.mlp import EnsembleMLP
from mbo2o.nn.optim import Adam, polyak
from mbo2o.registry import agent
from mbo2o.types import Batch, Metrics, Spec, Step, UserError

CONSTRAINTS = ("adaptive", "fixed", "none")
GATES = ("state", "batch")
DENSITIES = ("tanh", "released")


@dataclass
class OBACConfig(SACConfig):
    """Defaults: the authors' code, but for gate and density, see `OBAC`. Nets are 2x512, batches 512."""

    expectile: float = 0.9  # κ of the offline value
    # adaptive: while the offline learner is ahead; fixed: always; none: SAC (the paper's ablation)
    constraint: str = "adaptive"
    constraint_weight: float = 0.001  # w
    gate: str = "state"  # which learner is ahead is decided at each state, or once per batch (the code)
    density: str = (
        "tanh"  # how likely the data's actions are: by the policy's density, or by the code's (released)
    )
    # actions are imitated with weight exp(β (Q^μ - V^μ)), at most 100; None: with weight 1 (the code)
    beta: float | None = None


@agent("obac", OBACConfig)
class OBAC(SAC):
    """SAC that imitates the batch's actions where an IQL without an actor, on the same batches, is ahead.

    The released code differs from the paper, and its update does not run on current torch. Here the offline
    value V^μ(s) is compared with the policy's, min_i Q_i(s, ã), at each state, as the paper's rule does; the
    code compares the batch means of min_i Q^μ_i(s, a) and min_i Q_i(s, ã) (`gate=batch`). The density is that
    of the tanh-Gaussian. The code takes the Gaussian before the tanh at the action behind it, averages over
    dimensions and clamps to [-20, 2], which removes the effect of distant actions (`density=released`). As in
    the code, Q holds the policy's entropy and Q^μ does not.
    """

    cfg: OBACConfig

    def __init__(self, spec: Spec, cfg: OBACConfig):
        super().__init__(spec, cfg)
        choices = {"constraint": CONSTRAINTS, "gate": GATES, "density": DENSITIES}
        for name, known in choices.items():
            if getattr(cfg, name) not in known:
                raise UserError(f"obac: {name} {getattr(cfg, name)!r} is not one of {', '.join(known)}")
        self.offline_critic = copy.deepcopy(self.critic)
        self.offline_target = copy.deepcopy(self.critic).requires_grad_(False)
        self.offline_value = EnsembleMLP(spec.seeds, spec.obs_dim, 1, cfg.critic)
        self.offline_critic_optim = Adam(self.offline_critic.parameters(), cfg.critic_lr)
        self.offline_value_optim = Adam(self.offline_value.parameters(), cfg.critic_lr)

    def v_offline(self, obs: Tensor) -> Tensor:
        """V^μ(s), `(*S, B)`."""
        return self.offline_value(obs).squeeze(-1)

    def q_offline(self, obs: Tensor, act: Tensor) -> Tensor:
        """min_i Q̄^μ_i(s, a), `(*S, B)`."""
        return self.offline_target(obs, act).squeeze(-1).amin(-2)

    def update(self, batch: Batch, step: Step) -> Metrics:
        """One step of the offline learner, then one of SAC under its constraint."""
        return self.learn_offline(self.scaled(batch)) | super().update(batch, step)

    def learn_offline(self, b: Batch) -> Metrics:
        """One step of Q^μ towards r + γ (1 - d) V^μ(s'), and of V^μ towards the upper expectile of Q̄^μ."""
        with torch.no_grad():
            y = b.rew + self.cfg.gamma * (1 - b.done) * self.v_offline(b.next_obs)
            best = self.q_offline(b.obs, b.act)
        v = self.v_offline(b.obs)
        self.offline_value_optim.step(expectile_loss(best - v, self.cfg.expectile).mean(-1))
        q = self.offline_critic(b.obs, b.act).squeeze(-1)
        self.offline_critic_optim.step((q - y.unsqueeze(-2)).square().mean(-1).sum(-1))
        polyak(self.offline_target, self.offline_critic, self.cfg.tau)
        return {"offline_q": q.detach().mean((-2, -1)), "offline_v": v.detach().mean(-1)}

    def actor_loss(self, b: Batch, act: Tensor, log_prob: Tensor, step: Step) -> tuple[Tensor, Metrics]:
        """SAC's, and where the offline learner is ahead -w log π(a|s) of the batch's actions, `(*S, B)`.

        The metric `ahead` is the share of states where the offline learner is.
        """
        loss, metrics = super().actor_loss(b, act, log_prob, step)
        # R_i Q_i(s, ã), which the loss holds already
        policy_value = self.log_alpha.exp().unsqueeze(-1) * log_prob - loss
        ahead = self.ahead(b, policy_value.detach())
        metrics |= {"ahead": ahead.mean(-1)}
        if self.cfg.constraint == "none":
            return loss, metrics
        if self.cfg.constraint == "fixed":
            ahead = torch.ones_like(ahead)
        constraint = self.cfg.constraint_weight * ahead * self.worth(b) * self.log_density(b)
        return loss - constraint, metrics

    @torch.no_grad()
    def ahead(self, b: Batch, policy_value: Tensor) -> Tensor:
        """1 where V^μ(s) exceeds the policy's value `policy_value`, else 0, both `(*S, B)`; see `gate`."""
        if self.cfg.gate == "state":
            return (self.v_offline(b.obs) > policy_value).to(policy_value.dtype)
        offline = self.offline_critic(b.obs, b.act).squeeze(-1).amin(-2)
        ahead = offline.mean(-1, keepdim=True) > policy_value.mean(-1, keepdim=True)
        return ahead.to(policy_value.dtype).expand_as(policy_value)

    @torch.no_grad()
    def worth(self, b: Batch) -> Tensor:
        """The weight of imitating each of the batch's actions, `(*S, B)`."""
        if self.cfg.beta is None:
            return torch.ones_like(b.rew)
        advantage = self.q_offline(b.obs, b.act) - self.v_offline(b.obs)
        return (self.cfg.beta * advantage).exp().clamp(max=100)

    def log_density(self, b: Batch) -> Tensor:
        """log π(a|s) of the batch's actions, `(*S, B)`."""
        if self.cfg.density == "tanh":
            return self.actor.log_prob(b.obs, b.act)
        mean, log_std = self.actor(b.obs)
        z = (b.act - mean) * (-log_std).exp()
        return (-0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi)).clamp(-20, 2).mean(-1)
