"""ENOTO: ensemble-based offline-to-online RL (Zhao et al. 2023, arXiv 2306.06871), on any agent with a Q-ensemble."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from mbo2o.agents.qensemble import QConfig
from mbo2o.ensemble.explore import ExploreConfig
from mbo2o.ensemble.targets import SunriseConfig
from mbo2o.recipes.finetune import Finetune, FinetuneConfig
from mbo2o.registry import recipe
from mbo2o.types import UserError


@dataclass
class ENOTOConfig(FinetuneConfig):
    """Defaults: the authors' E2O code, except that it weights a whole batch by one number, which Adam cancels.

    SUNRISE's weight per sample, on a spread divided by its batch mean, wants a temperature near 1: at E2O's 10 nearly all
    weights are at their floor of 0.5.
    """

    critics: int = 10  # N, before and after the switch
    offline_target: str = "min_q"
    target: str = (
        "weighted_min_pair"  # online: less pessimism than the minimum of N, as little noise as the mean
    )
    mask: float = (
        1.0  # online: probability that a critic learns from a transition (0.5 with bootstrapped exploration)
    )
    explore: ExploreConfig = field(default_factory=lambda: ExploreConfig(name="ucb"))
    sunrise: SunriseConfig = field(default_factory=lambda: SunriseConfig("per_sample", 1.0, "batch_mean"))


@recipe("enoto", ENOTOConfig)
class ENOTO(Finetune):
    """N critics carry pessimism across the switch; online their target is loosened and their disagreement explores."""

    paper = "Zhao et al. 2023, arXiv 2306.06871"
    cfg: ENOTOConfig

    def configs(self) -> tuple[Any, Any]:
        """Offline: the learner with N critics and the smallest as target. Online: without its pessimistic term."""
        cfg = self.cfg
        _, after = super().configs()
        for config in (cfg.offline, after):
            if not isinstance(config, QConfig):
                raise UserError(
                    f"enoto: {type(config).__name__} has no critics; take an agent that has, as cql, lapo or td3bc"
                )
        before = replace(cfg.offline, critics=cfg.critics, target=cfg.offline_target)
        _unset(cfg.offline, "offline", critics=cfg.critics, target=cfg.offline_target)
        _unset(cfg.online, "online", critics=cfg.critics, target=cfg.target)
        how = {"target": cfg.target, "mask": cfg.mask, "explore": cfg.explore, "sunrise": cfg.sunrise}
        return before, replace(after, critics=cfg.critics, **how)


def _unset(config: Any, where: str, **settings: Any) -> None:
    """Refuse what was set for an agent and is the recipe's to say."""
    for name, ours in settings.items():
        if config is not None and getattr(config, name) not in (ours, getattr(type(config)(), name)):
            ruler = "offline_target" if (where, name) == ("offline", "target") else name
            raise UserError(
                f"recipe.{where}.{name}={getattr(config, name)} is overruled by recipe.{ruler}={ours}: set that"
            )
