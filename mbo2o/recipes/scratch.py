"""Online learning from nothing: the baseline that says what pre-training was worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from mbo2o.agents import make_agent
from mbo2o.recipes.base import Recipe
from mbo2o.registry import recipe
from mbo2o.run.run import Run


@dataclass
class ScratchConfig:
    """Defaults: SAC as in its paper's code unless said."""

    agent: Any = MISSING  # an agent of `mbo2o methods`
    watcher: Any = None  # another that learns from the same batches, never acts, and is evaluated beside it (OBAC, section 4)
    online_steps: int = 250_000  # environment steps per seed (ENOTO's budget)
    batch: int = 256
    utd: int = 1  # gradient steps per environment step
    start: int = 5000  # uniform random actions before anything is learned (REDQ; SUNRISE 1000, OAC 10 000)


@recipe("scratch", ScratchConfig)
class Scratch(Recipe):
    """An online agent with random networks and no data: act at random for a while, then learn as one goes."""

    paper = "Haarnoja et al. 2018, arXiv 1812.05905, or the agent's own"
    needs_dataset = False
    cfg: ScratchConfig

    def switch(self, run: Run) -> None:
        """Nothing to take over: act at random."""
        self.agent = make_agent(self.cfg.agent, run.spec)
        run.track(agent=self.agent)
        if self.cfg.watcher:
            self.watcher = make_agent(self.cfg.watcher, run.spec)
            run.track(watcher=self.watcher)
        for _ in run.interact(None, self.cfg.start):
            pass

    def online(self, run: Run) -> None:
        """Act, remember, learn."""
        for _ in run.interact(self.agent, self.cfg.online_steps):
            for batch in run.online.sample(self.cfg.batch * self.cfg.utd).deal(self.cfg.utd):
                run.log(run.engine.update(self.agent, batch))
                if self.cfg.watcher:
                    watched = run.engine.update(self.watcher, batch)
                    run.log({f"watcher_{name}": x for name, x in watched.items()})
