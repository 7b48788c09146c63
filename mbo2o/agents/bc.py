"""Behaviour cloning: the likeliest policy given the data (Pomerleau 1988)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mbo2o.agents.base import Agent, AgentConfig
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.nn.optim import Adam
from mbo2o.nn.policy import BoundedGaussian
from mbo2o.registry import agent
from mbo2o.types import Batch, Metrics, Spec, Step


@dataclass
class BCConfig(AgentConfig):
    """Defaults: CORL's, unless said; its BC has no σ, and fits the mean by squared error.

    `gamma` acts on reported returns only, since BC uses no rewards. Online, BC goes on cloning, its own
    transitions included.
    """

    actor_lr: float = 3e-4
    normalize: bool = True
    actor: MLPConfig = field(default_factory=MLPConfig)


@agent("bc", BCConfig)
class BC(Agent):
    """Imitate the data, whatever its actions earned: a baseline, and a first actor for other agents."""

    cfg: BCConfig
    clones = True
    not_imagined = "it imitates all actions of a batch, and would imitate itself"

    def __init__(self, spec: Spec, cfg: BCConfig):
        super().__init__(spec, cfg)
        self.actor = BoundedGaussian(spec.seeds, spec.obs_dim, spec.act_dim, cfg.actor)
        self.actor_optim = Adam(self.actor.parameters(), cfg.actor_lr)

    def act(self, obs: Tensor, explore: bool = False) -> Tensor:
        """The Gaussian's mean, or a sample of it, clamped."""
        with torch.no_grad():
            mean, log_std = self.actor(self.observe(obs))
            return (mean + log_std.exp() * torch.randn_like(mean)).clamp(-1, 1) if explore else mean

    def value(self, obs: Tensor, act: Tensor) -> Tensor:
        """NaN: BC estimates no values."""
        return torch.full_like(obs[..., 0], torch.nan)

    def update(self, batch: Batch, step: Step) -> Metrics:
        """One step of the actor up the data's likelihood."""
        actor_loss = -self.actor.log_prob(self.observe(batch.obs), batch.act).mean(-1)
        self.actor_optim.step(actor_loss)
        return {"actor_loss": actor_loss.detach()}
