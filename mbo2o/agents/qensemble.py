"""What agents with an ensemble of critics share: reductions, weights, masks, a critic step, exploration."""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.func import functional_call

from mbo2o.agents.base import Agent, AgentConfig
from mbo2o.ensemble.explore import EXPLORATIONS, ExploreConfig, explore
from mbo2o.ensemble.mlp import EnsembleMLP, MLPConfig, members
from mbo2o.ensemble.targets import (
    REDUCTIONS,
    SunriseConfig,
    bootstrap_mask,
    draw_pair,
    masked_mean,
    reduction,
    sunrise_weight,
)
from mbo2o.nn.optim import Adam
from mbo2o.registry import find
from mbo2o.types import Batch, Metrics, Spec, at_least_one


@dataclass
class QConfig(AgentConfig):
    """Defaults: the hyperparameters that CORL's algorithms share, unless said."""

    critics: int = 2  # N
    target: str = "min_q"  # how N target critics become one value: see mbo2o/ensemble/targets.py
    # how often rem and random_min_pair draw: once per batch (ENOTO's code) or per sample (REDQ's REM)
    granularity: str = "batch"
    # how N critics become what the actor maximises (ENOTO's code keeps min_q; REDQ mean_q; TD3 first_q)
    actor_reduction: str = "min_q"
    tau: float = 0.005  # Polyak step of the targets
    critic_lr: float = 3e-4
    # probability that a critic learns from a transition (bootstrapped DQN, SUNRISE: 0.5); 1: all do
    mask: float = 1.0
    sunrise: SunriseConfig = field(default_factory=SunriseConfig)
    explore: ExploreConfig = field(default_factory=ExploreConfig)
    critic: MLPConfig = field(default_factory=MLPConfig)


class QEnsemble(Agent):
    """An agent with N critics per seed.

    `act`, `value`, `td_error` and `update` take raw observations; all other methods take scaled ones.
    """

    cfg: QConfig
    head: Tensor
    salt: Tensor

    def __init__(self, spec: Spec, cfg: QConfig):
        super().__init__(spec, cfg)
        # a setting that is misspelt or impossible is refused now, and not after the offline phase
        find(EXPLORATIONS, cfg.explore.name, "exploration")
        at_least_one("agent", critics=cfg.critics, candidates=cfg.explore.candidates)
        sunrise_weight(torch.zeros(1, 1), cfg.sunrise)
        find(REDUCTIONS, cfg.target, "target")
        find(REDUCTIONS, cfg.actor_reduction, "actor_reduction")
        self._reduce_target = reduction(cfg.target, cfg.granularity)
        self._reduce_for_actor = reduction(cfg.actor_reduction, cfg.granularity)
        # a pair drawn once per batch needs two target critics only, unless all of them weigh the loss
        how = (cfg.target, cfg.granularity, cfg.sunrise.weight)
        self._only_a_pair = how == ("random_min_pair", "batch", "none")
        self.critic = EnsembleMLP((*spec.seeds, cfg.critics), spec.obs_dim + spec.act_dim, 1, cfg.critic)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.critic_optim = Adam(self.critic.parameters(), cfg.critic_lr)
        self.register_buffer("head", torch.randint(cfg.critics, spec.seeds))
        self.register_buffer("salt", torch.randint(2**31, (*spec.seeds, cfg.critics)))

    # ------------------------------------------------------------------ acting

    def act(self, obs: Tensor, explore: bool = False) -> Tensor:
        """The mode of the policy, or the exploration of the config: `(*S, B, D)` → `(*S, B, A)`."""
        with torch.no_grad():
            obs = self.observe(obs)
            return self._explore(obs) if explore else self.mode(obs)

    def _explore(self, obs: Tensor) -> Tensor:
        return explore(self, obs, self.cfg.explore)

    def on_episode(self, ended: Tensor, score: Tensor, length: Tensor) -> None:
        """Put another critic in charge of the next episode; every call draws for all seeds."""
        torch.where(ended, torch.randint_like(self.head, self.cfg.critics), self.head, out=self.head)

    @abstractmethod
    def mode(self, obs: Tensor) -> Tensor:
        """The deterministic action, `(*S, B, A)`."""

    @abstractmethod
    def proposal(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation `(*S, B, U)` of the Gaussian that the policy draws its inner variable u from."""

    @abstractmethod
    def decode(self, obs: Tensor, u: Tensor) -> Tensor:
        """The action in [-1, 1] that u stands for."""

    # ------------------------------------------------------------------ values

    def value(self, obs: Tensor, act: Tensor) -> Tensor:
        """What the actor maximises, `(*S, B)`."""
        return self.value_for_actor(self.observe(obs), act)

    def q(self, obs: Tensor, act: Tensor) -> Tensor:
        """Every critic's value, `(*S, N, B)`."""
        return self.critic(obs, act).squeeze(-1)

    def q_target(self, obs: Tensor, act: Tensor) -> Tensor:
        """Every target critic's value, `(*S, N, B)`."""
        return self.target(obs, act).squeeze(-1)

    def _q_next(self, obs: Tensor, act: Tensor) -> Tensor:
        """The target critics' values that `reduce` needs: of all, or of a random pair, `(*S, 2, B)`."""
        if not self._only_a_pair:
            return self.q_target(obs, act)
        pair = torch.stack(draw_pair(self.cfg.critics, self.spec.seeds, obs.device), -1)
        return functional_call(self.target, members(self.target, pair), (obs, act)).squeeze(-1)

    def reduce(self, q: Tensor) -> Tensor:
        """The reduction `cfg.target` of `(*S, N, B)` to `(*S, B)`."""
        return self._reduce_target(q)

    def value_for_actor(self, obs: Tensor, act: Tensor) -> Tensor:
        """The reduction `cfg.actor_reduction` of all critics, `(*S, B)`."""
        return self._reduce_for_actor(self.q(obs, act))

    # ------------------------------------------------------------------ learning

    @abstractmethod
    def backup(self, b: Batch) -> tuple[Tensor, Tensor]:
        """What critics learn towards, `(*S, B)`, and the target critics' values, for SUNRISE's weights."""

    def regulariser(self, b: Batch, q: Tensor) -> tuple[Tensor | float, Metrics]:
        """What a variant adds to the critics' loss, `(*S,)`, and its metrics; q are their values."""
        return 0.0, {}

    def critic_step(self, b: Batch) -> Metrics:
        """One step of the critics down the loss `td_loss` towards `backup`, plus the `regulariser`."""
        q = self.q(b.obs, b.act)
        y, next_q = self.backup(b)
        loss = self.td_loss(b, q, y, next_q)
        extra, metrics = self.regulariser(b, q)
        self.critic_optim.step(loss + extra)
        return metrics | {"critic_loss": loss.detach(), "q": q.detach().mean((-2, -1))}

    def td_error(self, batch: Batch) -> Tensor:
        """Mean over critics and a raw batch of (Q_i - y)², `(*S,)`."""
        return td_residuals(self, batch).square().mean((-2, -1))

    def td_loss(self, b: Batch, q: Tensor, y: Tensor, next_q: Tensor) -> Tensor:
        """Σ_i mean_b w_b m_ib (Q_i - y)², `(*S,)`: SUNRISE's weight w by the spread of `next_q`, mask m."""
        loss = (q - y.unsqueeze(-2)).square()
        if self.cfg.sunrise.weight != "none":
            loss = loss * sunrise_weight(next_q, self.cfg.sunrise).unsqueeze(-2)
        if self.cfg.mask < 1:
            return masked_mean(loss, bootstrap_mask(b, self.salt, self.cfg.mask)).sum(-1)
        return loss.mean(-1).sum(-1)


@torch.no_grad()
def td_residuals(agent: QEnsemble, batch: Batch) -> Tensor:
    """Q_i - y of each row of a raw batch, `(*S, N, B)`."""
    b = agent.scaled(batch)
    return agent.q(b.obs, b.act) - agent.backup(b)[0].unsqueeze(-2)
