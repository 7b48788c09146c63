"""RLPD: efficient online RL with offline data (Ball et al. 2023, arXiv 2302.02948)."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from mbo2o.agents import AgentConfig, make_agent
from mbo2o.recipes.base import Recipe, RecipeConfig
from mbo2o.recipes.finetune import check_ahead, open_source, probe, warn_of_warmup
from mbo2o.registry import recipe
from mbo2o.run.turns import Run
from mbo2o.sources import SourceConfig
from mbo2o.sources.base import check_counts, check_steps
from mbo2o.sources.mix import MixConfig


@dataclass
class RLPDConfig(RecipeConfig):
    """Defaults: the authors' code on locomotion (train_finetuning.py) unless said."""

    # an agent of `mbo2o methods`; theirs is SAC with ten critics that are layer-normalised
    agent: AgentConfig = MISSING
    online_steps: int = 250_000  # environment steps per seed, the warm-up among them
    batch: int = 256
    utd: int = 20  # gradient steps of the critics per environment step
    # The first steps: the agent acts, nothing learns. Their first actions are uniform, here the policy's.
    warmup: int = 5000
    source: SourceConfig | None = None  # what batches are drawn from; None: half of each from the dataset
    probe_every: int = 1000  # turns between looks at Q and actions on fixed rows of the dataset

    def __post_init__(self) -> None:
        super().__post_init__()
        self.source = self.source or MixConfig()
        self.source.__post_init__()
        check_counts("recipe", self, "batch", "utd", "probe_every")
        check_steps("recipe", self, "online_steps", "warmup")


@recipe("rlpd", RLPDConfig)
class RLPD(Recipe):
    """An agent with random networks learns online at once, and half of every batch is offline."""

    paper = "Ball et al. 2023, arXiv 2302.02948"
    cfg: RLPDConfig

    def switch(self, run: Run) -> None:
        """There is nothing to take over: make the networks, which know the scale of the data."""
        cfg = self.cfg
        check_ahead(run, cfg.agent, cfg.source, cfg.online_steps)
        self.agent = make_agent(cfg.agent, run.spec)
        self.agent.prepare(run.dataset)
        run.track(agent=self.agent)
        self.source = open_source(run, cfg.source, self.agent, cfg.warmup)
        for _ in run.once("source"):
            self.source.begin()
            warn_of_warmup(run, cfg.warmup, cfg.online_steps)

    def online(self, run: Run) -> None:
        """Act for a while, then act, remember, and learn from both kinds of data."""
        cfg = self.cfg
        warmup = min(cfg.warmup, cfg.online_steps)
        for _ in run.interact(self.agent, warmup):
            pass
        for t in run.interact(self.agent, cfg.online_steps - warmup):
            if t % cfg.probe_every == 0:
                run.write("probe", probe(run, self.agent))
            self.source.advance(warmup + t)
            run.learn(self.agent, self.source, cfg.batch, self.source.updates(cfg.utd))
