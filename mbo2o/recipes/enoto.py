"""ENOTO: ensemble-based offline-to-online RL (Zhao et al. 2023, arXiv 2306.06871), on agents with critics."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from mbo2o.agents.qensemble import QConfig
from mbo2o.ensemble.explore import ExploreConfig
from mbo2o.ensemble.targets import SunriseConfig
from mbo2o.recipes.finetune import Finetune, FinetuneConfig
from mbo2o.registry import recipe
from mbo2o.run.turns import Run
from mbo2o.sources.base import check_counts
from mbo2o.types import UserError


@dataclass
class ENOTOConfig(FinetuneConfig):
    """Defaults: the authors' E2O code, but for its weight of a whole batch by one number, which Adam cancels.

    SUNRISE's weight per sample, on a spread divided by its batch mean, wants a temperature near 1: at E2O's
    10 nearly all weights are at their floor of 0.5.

    The settings below are the recipe's to say. They replace those of the agents, which the run tells when
    it begins; an agent's setting that contradicts them is refused, unless it is the agent's default.
    """

    OFFLINE: ClassVar[tuple[str, ...]] = (*FinetuneConfig.OFFLINE, "critics", "offline_target")

    critics: int = 10  # N, before and after the switch
    offline_target: str = "min_q"
    # The target online: less pessimism than the minimum of N, as little noise as the mean.
    target: str = "weighted_min_pair"
    # The probability that a critic learns from a transition, online (0.5 with bootstrapped exploration).
    mask: float = 1.0
    explore: ExploreConfig = field(default_factory=lambda: ExploreConfig(name="ucb"))
    sunrise: SunriseConfig = field(default_factory=lambda: SunriseConfig("per_sample", 1.0, "batch_mean"))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts("recipe", self, "critics")


@recipe("enoto", ENOTOConfig)
class ENOTO(Finetune):
    """N critics carry pessimism across the switch; online their target is loosened and they explore."""

    paper = "Zhao et al. 2023, arXiv 2306.06871"
    cfg: ENOTOConfig

    def configs(self) -> tuple[Any, Any]:
        """Offline: the learner with N critics and the smallest as target. Online: without its pessimism."""
        _, after = super().configs()
        for config in (self.cfg.offline, after):
            if not isinstance(config, QConfig):
                kind = type(config).__name__
                wanted = "take an agent that has, as cql, lapo or td3bc"
                raise UserError(f"enoto: {kind} has no critics; {wanted}")
        offline, online = self.rules()
        return replace(self.cfg.offline, **offline), replace(after, **online)

    def rules(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The agents' settings that the recipe decides: offline and online."""
        cfg = self.cfg
        loosened = {"target": cfg.target, "mask": cfg.mask, "explore": cfg.explore, "sunrise": cfg.sunrise}
        return {"critics": cfg.critics, "target": cfg.offline_target}, {"critics": cfg.critics, **loosened}

    def offline(self, run: Run) -> None:
        """Say which settings of the agents the recipe replaces, then learn from the dataset alone."""
        self.configs()  # an agent that does not fit is refused first
        offline, online = self.rules()
        told = _replaced(self.cfg.offline, "offline", offline) + _replaced(self.cfg.online, "online", online)
        if told and run.turn == 0:
            run.say(f"enoto replaces settings of its agents: {'; '.join(told)}")
        super().offline(run)


def _replaced(config: Any, where: str, rules: dict[str, Any]) -> list[str]:
    """An agent's settings that the rules replace, as text; `UserError` for one that was set otherwise."""
    found = []
    for name, ours in rules.items():
        own = ours if config is None else getattr(config, name)
        if own == ours:
            continue
        ruler = "offline_target" if (where, name) == ("offline", "target") else name
        if own != getattr(type(config)(), name):
            raise UserError(f"recipe.{where}.{name}={own} is overruled by recipe.{ruler}={ours}: set that")
        found.append(f"recipe.{where}.{name}={own} by recipe.{ruler}={ours}")
    return found
