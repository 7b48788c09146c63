"""Policy expansion (Zhang, Xu and Yu 2023, arXiv 2302.00935) over IQL."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mbo2o.agents.iql import IQL, IQLConfig
from mbo2o.ensemble.explore import explore
from mbo2o.nn.optim import Adam
from mbo2o.nn.policy import BoundedGaussian
from mbo2o.registry import agent
from mbo2o.types import Batch, Metrics, Spec, Step, UserError


@dataclass
class PEXConfig(IQLConfig):
    """Defaults: the authors' code; the offline agent's scale of observations is taken over at the switch."""

    beta: float = 10.0
    # h of the choice: with Q in the hundreds it almost always takes the better action
    inverse_temperature: float = 10.0
    # divide Q by the mean |Q| of its batch first, so that h has the same meaning on every task (ours)
    scale: bool = False


@agent("pex", PEXConfig)
class PEX(IQL):
    """The offline actor stays as it is, a second one learns, and the critics choose between their actions.

    V and Q learn as IQL's. The second actor imitates what both together would do at the batch's states, more
    where that beats V. Evaluations take the better mode (the authors: with probability 0.9).
    """

    cfg: PEXConfig
    not_imagined = "it goes on from an offline IQL, beside which it learns in the environment"

    def __init__(self, spec: Spec, cfg: PEXConfig):
        super().__init__(spec, cfg)
        if cfg.deterministic or cfg.actor_decay_steps is not None:
            text = "pex: deterministic and actor_decay_steps are for an IQL actor that learns"
            raise UserError(f"{text}; here it stays as it is")
        self.actor.requires_grad_(False)
        del self.actor_optim
        self.second = BoundedGaussian(spec.seeds, spec.obs_dim, spec.act_dim, cfg.actor)
        self.second_optim = Adam(self.second.parameters(), cfg.actor_lr)

    def mode(self, obs: Tensor) -> Tensor:
        """The better of both modes, `(*S, B, A)`."""
        return self.choose(obs, self.second(obs)[0], None)

    def proposal(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the second actor's Gaussian, each `(*S, B, A)`."""
        mean, log_std = self.second(obs)
        return mean, log_std.exp()

    def _explore(self, obs: Tensor) -> Tensor:
        second = explore(self, obs, self.cfg.explore)
        return self.choose(obs, second, torch.rand_like(obs[..., 0]))

    def choose(self, obs: Tensor, second: Tensor, chance: Tensor | None) -> Tensor:
        """The offline actor's mode or `second` `(*S, B, A)`, by the softmax of h min Q.

        chance: uniform in [0, 1), `(*S, B)`, to draw from the softmax; None takes the better action.
        """
        first = self.actor(obs)[0]
        q = torch.stack([self.value_for_actor(obs, act) for act in (first, second)], -1)
        if self.cfg.scale:
            q = q / q.abs().mean((-2, -1), keepdim=True).clamp(min=1e-6)
        better = q[..., 1] - q[..., 0]
        h = self.cfg.inverse_temperature
        takes = better > 0 if chance is None else chance < torch.sigmoid(h * better)
        return torch.where(takes.unsqueeze(-1), second, first)

    def improve(self, b: Batch, advantage: Tensor, step: Step) -> Metrics:
        """One step of the second actor, on actions of both actors; the data's actions have no part in it."""
        cfg = self.cfg
        with torch.no_grad():
            mean, std = self.proposal(b.obs)
            own = self.decode(b.obs, mean + std * torch.randn_like(mean))
            act = self.choose(b.obs, own, torch.rand_like(b.rew))
            gain = self.reduce(self.q_target(b.obs, act)) - self.v(b.obs)
            weight = (cfg.beta * gain).exp().clamp(max=cfg.weight_clip)
            second = (act == own).all(-1).to(weight.dtype)
        actor_loss = -(weight * self.second.log_prob(b.obs, act)).mean(-1)
        self.second_optim.step(actor_loss)
        return {"actor_loss": actor_loss.detach(), "weight": weight.mean(-1), "second": second.mean(-1)}
