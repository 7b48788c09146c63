"""REDQ with adaptive behaviour cloning (Zhao et al. 2022, arXiv 2210.13846): TD3+BC whose imitation a controller steers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mbo2o.agents.td3bc import TD3BC, TD3BCConfig
from mbo2o.registry import agent
from mbo2o.types import Batch, Metrics, Spec, UserError


@dataclass
class AdaptiveBCConfig(TD3BCConfig):
    """Defaults: the authors' code on MuJoCo. Scores are 0 for random play and 1 for an expert's."""

    critics: int = 10
    target: str = "random_min_pair"
    actor_reduction: str = "mean_q"
    alpha: float = 1.0
    bc_weight: float = (
        0.4  # b, offline and at the switch; and the most that it can be (walker2d-random 100, adroit 8)
    )
    normalize: bool = False
    target_score: float = 1.05
    gain: float = 3e-5  # K_P: how fast b falls while scores are below the target, per step of an episode
    brake: float = 1e-4  # K_D: how fast it rises when an episode falls below the running mean
    score_decay: float = 0.95  # of the running mean, per episode
    adapt: bool = False  # b moves; offline it stays

    def after_switch(self) -> AdaptiveBCConfig:
        """The same with b set free."""
        return replace(self, adapt=True)


@agent("adaptive_bc", AdaptiveBCConfig)
class AdaptiveBC(TD3BC):
    """TD3+BC on ten critics whose weight of imitation falls while returns are short of the target, and rises when they drop."""

    cfg: AdaptiveBCConfig
    b: Tensor
    score: Tensor

    def __init__(self, spec: Spec, cfg: AdaptiveBCConfig):
        super().__init__(spec, cfg)
        if cfg.bc_final is not None:
            raise UserError(
                "adaptive_bc: bc_final and bc_decay_steps are TD3+BC's schedule; here a controller moves bc_weight"
            )
        self.register_buffer("b", torch.full(spec.seeds, cfg.bc_weight))
        self.register_buffer(
            "score", torch.full(spec.seeds, torch.inf)
        )  # none yet: the mean begins at the first one

    def bc_weight(self) -> Tensor:
        """The weight b of the imitation, `(*S,)`."""
        return self.b

    @property
    def needs_scores(self) -> bool:
        """While b adapts."""
        return self.cfg.adapt

    def on_episode(self, ended: Tensor, score: Tensor, length: Tensor) -> None:
        """Move b by the episode's score: b ← clip(b + L [-K_P (target - mean) + K_D max(0, mean - score)], 0, b_max)."""
        super().on_episode(ended, score, length)
        cfg = self.cfg
        if not cfg.adapt:
            return
        mean = torch.where(self.score.isinf(), score, self.score)
        change = length * (cfg.brake * (mean - score).clamp(min=0) - cfg.gain * (cfg.target_score - mean))
        self.b.copy_(torch.where(ended, (self.b + change).clamp(0, cfg.bc_weight), self.b))
        mean = cfg.score_decay * mean + (1 - cfg.score_decay) * score
        self.score.copy_(torch.where(ended, mean, self.score))

    def improve(self, b: Batch) -> Metrics:
        """TD3+BC's, and b."""
        return super().improve(b) | {"bc_weight": self.b.clone()}
