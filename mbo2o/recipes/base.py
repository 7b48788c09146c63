"""A method as three short phases, in the order of its paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mbo2o.agents.base import Agent
from mbo2o.registry import RECIPES
from mbo2o.run.turns import Run


@dataclass
class RecipeConfig:
    """Base of all settings of recipes. A subclass extends `__post_init__` by checks of its own numbers."""

    OFFLINE: ClassVar[tuple[str, ...]] = ()
    """Names of the settings that decide what the offline phase learns."""

    def __post_init__(self) -> None:
        """Raise a `UserError` for a setting that cannot be; `make_recipe` asks again, after any changes."""

    def offline_part(self) -> dict[str, Any]:
        """The settings that an offline phase depends on: two runs that agree on them have the same one."""
        return {name: getattr(self, name) for name in self.OFFLINE}


class Recipe:
    """`offline`, `switch`, `online`: what a method does with the turns of a `Run`, which says the rules."""

    needs_dataset: ClassVar[bool] = True
    paper: ClassVar[str]
    """Where the method comes from."""
    agent: Agent
    """The learner that acts and is evaluated, from the phase on that makes it."""

    def __init__(self, cfg: Any):
        self.cfg = cfg

    @property
    def gamma(self) -> float:
        """The discount of the returns that values are compared with."""
        return float(self.cfg.agent.gamma)

    def offline(self, run: Run) -> None:
        """Learn from the dataset."""

    def switch(self, run: Run) -> None:
        """Prepare for the environment."""

    def online(self, run: Run) -> None:
        """Learn from the environment."""

    def __call__(self, run: Run) -> None:
        """The whole method. With `online_steps=0` the offline phase alone, for other runs to start from."""
        offline_only = self.needs_dataset and getattr(self.cfg, "online_steps", None) == 0
        for phase in ("offline",) if offline_only else ("offline", "switch", "online"):
            run.enter(phase)
            getattr(self, phase)(run)


def make_recipe(cfg: RecipeConfig) -> Recipe:
    """The recipe that is registered with `cfg`'s dataclass; `UserError` for a setting that cannot be."""
    for entry in RECIPES.values():
        if entry.config is type(cfg):
            cfg.__post_init__()
            recipe: Recipe = entry.cls(cfg)
            return recipe
    raise TypeError(f"no recipe is registered with the config {type(cfg).__name__}")
