"""What agents with an ensemble of critics share: pessimism by reduction, weights, masks, and exploration by disagreement."""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from mbo2o.agents.base import Agent
from mbo2o.ensemble.explore import EXPLORATIONS, ExploreConfig, explore
from mbo2o.ensemble.mlp import EnsembleMLP, MLPConfig, members
from mbo2o.ensemble.targets import (
    REDUCTIONS,
    SunriseConfig,
    bootstrap_mask,
    check_granularity,
    draw_pair,
    masked_mean,
    sunrise_weight,
)
from mbo2o.nn.optim import Adam
from mbo2o.registry import find
from mbo2o.types import Batch, Spec, at_least_one


@dataclass
class QConfig:
    """Defaults: the hyperparameters that CORL's algorithms share, unless said."""

    critics: int = 2  # N
    target: str = "min_q"  # how N target critics become one value: see mbo2o/ensemble/targets.py
    granularity: str = "batch"  # of a random target's draw: batch (ENOTO's code) or sample (REDQ's REM)
    actor_reduction: str = (
        "min_q"  # likewise for what the actor maximises (ENOTO's code keeps min; REDQ mean_q; TD3 first_q)
    )
    gamma: float = 0.99
    tau: float = 0.005  # Polyak step of the targets
    critic_lr: float = 3e-4
    normalize: bool = False  # scale observations by the dataset's mean and deviation, frozen afterwards
    mask: float = (
        1.0  # probability that a critic learns from a transition (bootstrapped DQN, SUNRISE: 0.5); 1: all do
    )
    sunrise: SunriseConfig = field(default_factory=SunriseConfig)
    explore: ExploreConfig = field(default_factory=ExploreConfig)
    critic: MLPConfig = field(default_factory=MLPConfig)

    def after_switch(self) -> Any:
        """The config that goes on in the environment, without what only offline learning needs; itself where all stays."""
        return self.unchanged()

    def unchanged(self) -> Any:
        """The config that goes on as it is, pessimism included."""
        return self


class QEnsemble(Agent):
    """An agent with N critics per seed. Methods below `act` and `value` take observations that `observe` has scaled."""

    cfg: QConfig
    head: Tensor
    salt: Tensor

    def __init__(self, spec: Spec, cfg: QConfig):
        super().__init__(spec, cfg)
        find(EXPLORATIONS, cfg.explore.name, "exploration")
        # what is misspelt or cannot be is refused now, not after the offline phase
        at_least_one("agent", critics=cfg.critics, candidates=cfg.explore.candidates)
        sunrise_weight(torch.zeros(1, 1), cfg.sunrise)
        check_granularity(cfg.granularity)
        self._reduce = find(REDUCTIONS, cfg.target, "target")
        # drawn once per batch and with no weights by the spread of all, a pair needs no more than two target critics
        self._only_a_pair = (cfg.target, cfg.granularity, cfg.sunrise.weight) == (
            "random_min_pair",
            "batch",
            "none",
        )
        self._reduce_for_actor = find(REDUCTIONS, cfg.actor_reduction, "actor_reduction")
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
        """Put another critic in charge of the next episode; drawn every time, so that seeds do not shift each other's draws."""
        self.head.copy_(torch.where(ended, torch.randint_like(self.head, self.cfg.critics), self.head))

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

    def q_next(self, obs: Tensor, act: Tensor) -> Tensor:
        """The target critics' values that the reduction looks at: `q_target`, or of a random pair those two, `(*S, 2, B)`."""
        if not self._only_a_pair:
            return self.q_target(obs, act)
        pair = torch.stack(draw_pair(self.cfg.critics, self.spec.seeds, obs.device), -1)
        return functional_call(self.target, members(self.target, pair), (obs, act)).squeeze(-1)

    def reduce(self, q: Tensor) -> Tensor:
        """The target's reduction of `(*S, N, B)` to `(*S, B)`."""
        return self._reduce(q, self.cfg.granularity)

    def value_for_actor(self, obs: Tensor, act: Tensor) -> Tensor:
        """The actor's reduction of all critics, `(*S, B)`."""
        return self._reduce_for_actor(self.q(obs, act), self.cfg.granularity)

    # ------------------------------------------------------------------ learning

    @abstractmethod
    def backup(self, b: Batch) -> tuple[Tensor, Tensor]:
        """What the critics learn towards, `(*S, B)`, and the target critics' values whose spread SUNRISE weighs by."""

    def td_error(self, batch: Batch) -> Tensor:
        """Mean over critics and a raw batch of (Q_i - y)², `(*S,)`."""
        with torch.no_grad():
            b = self.observed(batch)
            return (self.q(b.obs, b.act) - self.backup(b)[0].unsqueeze(-2)).square().mean((-2, -1))

    def observed(self, b: Batch) -> Batch:
        """The batch with scaled observations."""
        return Batch(self.observe(b.obs), b.act, b.rew, self.observe(b.next_obs), b.done, b.mc_return)

    def td_loss(self, b: Batch, q: Tensor, y: Tensor, next_q: Tensor) -> Tensor:
        """Σ_i mean_b w_b m_ib (Q_i - y)², `(*S,)`: w is SUNRISE's weight by the spread of `next_q`, m the bootstrap's mask."""
        loss = (q - y.unsqueeze(-2)).square()
        if self.cfg.sunrise.weight != "none":
            loss = loss * sunrise_weight(next_q, self.cfg.sunrise).unsqueeze(-2)
        if self.cfg.mask < 1:
            return masked_mean(loss, bootstrap_mask(b, self.salt, self.cfg.mask)).sum(-1)
        return loss.mean(-1).sum(-1)
