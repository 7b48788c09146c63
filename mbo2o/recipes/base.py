"""A method as three short phases, in the order of its paper."""

from __future__ import annotations

from typing import Any, ClassVar

from mbo2o.agents.base import Agent
from mbo2o.registry import RECIPES
from mbo2o.run.run import Run


class Recipe:
    """`offline`, `switch`, `online`: what a method does with the turns that a `Run` hands out. See `Run` for the rules."""

    needs_dataset: ClassVar[bool] = True
    paper: ClassVar[str]
    """Where the method comes from."""
    agent: Agent
    """The learner that acts and is evaluated, from the phase on that makes it."""

    def __init__(self, cfg: Any):
        self.cfg = cfg

    @property
    def gamma(self) -> float:
        """The discount that values are compared with true returns by."""
        return self.cfg.agent.gamma

    def offline(self, run: Run) -> None:
        """Learn from the dataset."""

    def switch(self, run: Run) -> None:
        """Prepare for the environment."""

    def online(self, run: Run) -> None:
        """Learn from the environment."""

    def __call__(self, run: Run) -> None:
        """The whole method; with `online_steps=0` its offline phase alone, for others to start from."""
        offline_only = self.needs_dataset and getattr(self.cfg, "online_steps", None) == 0
        for phase in ("offline",) if offline_only else ("offline", "switch", "online"):
            run.enter(phase)
            getattr(self, phase)(run)


def make_recipe(cfg: Any) -> Recipe:
    """The recipe that is registered with `cfg`'s dataclass."""
    for entry in RECIPES.values():
        if entry.config is type(cfg):
            return entry.cls(cfg)
    raise TypeError(f"no recipe is registered with the config {type(cfg).__name__}")
