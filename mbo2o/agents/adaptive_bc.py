"""TD3+BC with a controller of its imitation (REDQ+AdaptiveBC, Zhao et al. 2022, arXiv 2210.13846)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mbo2o.agents.td3bc import TD3BC, TD3BCConfig
from mbo2o.registry import agent
from mbo2o.types import Batch, Metrics, Spec, Step, UserError


@dataclass
class AdaptiveBCConfig(TD3BCConfig):
    """Defaults: the authors' code on MuJoCo. Scores are 0 for random play and 1 for an expert."""

    critics: int = 10
    target: str = "random_min_pair"
    actor_reduction: str = "mean_q"
    alpha: float = 1.0
    # b, offline and at the switch, which is also its largest value (walker2d-random 100, adroit 8)
    bc_weight: float = 0.4
    normalize: bool = False
    target_score: float = 1.05
    gain: float = 3e-5  # K_P: how fast b falls while scores are below the target, per step of an episode
    brake: float = 1e-4  # K_D: how fast it rises when an episode falls below the running mean
    score_decay: float = 0.95  # factor of the running mean, per episode
    adapt: bool = False  # whether b changes; offline it does not

    @property
    def acts_on_scores(self) -> bool:
        """The reference of scores decides what is learned: after the switch the scores move b."""
        return True

    def after_switch(self) -> AdaptiveBCConfig:
        """The same with a b that adapts."""
        return replace(self, adapt=True)


@agent("adaptive_bc", AdaptiveBCConfig)
class AdaptiveBC(TD3BC):
    """TD3+BC whose weight of imitation falls while returns are below a target, and rises when they drop."""

    cfg: AdaptiveBCConfig
    b: Tensor
    score: Tensor

    def __init__(self, spec: Spec, cfg: AdaptiveBCConfig):
        super().__init__(spec, cfg)
        if cfg.bc_final is not None:
            text = "adaptive_bc: bc_final and bc_decay_steps are TD3+BC's schedule"
            raise UserError(f"{text}; here a controller moves bc_weight")
        self.needs_scores = cfg.adapt
        self.register_buffer("b", torch.full(spec.seeds, cfg.bc_weight))
        # infinite until the first episode, with whose score the mean begins
        self.register_buffer("score", torch.full(spec.seeds, torch.inf))

    def bc_weight(self, step: Step) -> Tensor:
        """The weight b of the imitation, `(*S,)`."""
        return self.b

    def on_episode(self, ended: Tensor, score: Tensor, length: Tensor) -> None:
        """Set b to clip(b + L [-K_P (target - mean) + K_D max(0, mean - score)], 0, b_max), L = `length`."""
        super().on_episode(ended, score, length)
        cfg = self.cfg
        if not cfg.adapt:
            return
        mean = torch.where(self.score.isinf(), score, self.score)
        change = length * (cfg.brake * (mean - score).clamp(min=0) - cfg.gain * (cfg.target_score - mean))
        self.b.copy_(torch.where(ended, (self.b + change).clamp(0, cfg.bc_weight), self.b))
        mean = cfg.score_decay * mean + (1 - cfg.score_decay) * score
        self.score.copy_(torch.where(ended, mean, self.score))

    def improve(self, b: Batch, step: Step) -> Metrics:
        """The step of TD3+BC's actor, with b among the metrics."""
        return super().improve(b, step) | {"bc_weight": self.b.clone()}
