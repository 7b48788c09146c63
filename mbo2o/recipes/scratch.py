"""Online learning from nothing: the baseline that says what pre-training was worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from mbo2o.agents import AgentConfig, make_agent
from mbo2o.recipes.base import Recipe, RecipeConfig
from mbo2o.registry import recipe
from mbo2o.run.turns import Run
from mbo2o.sources.base import check_counts, check_steps


@dataclass
class ScratchConfig(RecipeConfig):
    """Defaults: SAC as in its paper's code unless said."""

    agent: AgentConfig = MISSING  # an agent of `mbo2o methods`
    # A second agent that learns from the same batches, never acts, and is evaluated too (OBAC, section 4).
    watcher: Any = None
    online_steps: int = 250_000  # environment steps per seed (ENOTO's budget)
    batch: int = 256
    utd: int = 1  # gradient steps per environment step
    # uniform random actions before the online phase (REDQ; SUNRISE 1000, OAC 10 000)
    random_steps: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts("recipe", self, "batch", "utd")
        check_steps("recipe", self, "online_steps", "random_steps")


@recipe("scratch", ScratchConfig)
class Scratch(Recipe):
    """An agent with random networks and no data acts at random for a while, then learns while it acts."""

    paper = "Haarnoja et al. 2018, arXiv 1812.05905, or the agent's own"
    needs_dataset = False
    cfg: ScratchConfig

    def switch(self, run: Run) -> None:
        """There is nothing to take over: act at random."""
        self.agent = make_agent(self.cfg.agent, run.spec)
        run.track(agent=self.agent)
        if self.cfg.watcher:
            self.watcher = make_agent(self.cfg.watcher, run.spec)
            run.track(watcher=self.watcher)
        for _ in run.interact(None, self.cfg.random_steps):
            pass

    def online(self, run: Run) -> None:
        """Act, remember, learn."""
        cfg = self.cfg
        others = {"watcher": self.watcher} if cfg.watcher else {}
        for _ in run.interact(self.agent, cfg.online_steps):
            run.learn(self.agent, run.online, cfg.batch, cfg.utd, **others)
