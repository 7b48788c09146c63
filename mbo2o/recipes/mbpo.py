"""MBPO: when to trust your model (Janner et al. 2019, arXiv 1906.08253); MOORe without data and penalty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mbo2o.recipes.horizon import branch_length, longest
from mbo2o.recipes.imagining import Imagining
from mbo2o.recipes.refitting import RefittingConfig
from mbo2o.recipes.starts import ENDS
from mbo2o.registry import recipe
from mbo2o.run.turns import Run
from mbo2o.sources.base import check_steps
from mbo2o.sources.mixtures import Youngest


@dataclass
class MBPOConfig(RefittingConfig):
    """Defaults: the authors' code on HalfCheetah and Walker2d, except that HalfCheetah has utd=40 there."""

    STARTS: ClassVar[tuple[str, ...]] = ("data", "visited", ENDS)

    random_steps: int = 5000  # uniform random actions before the online phase
    coef: float = 0.0  # no penalty
    # HalfCheetah, Walker2d; Hopper [1, 15, 20, 150], Ant [1, 25, 20, 100], Humanoid [1, 25, 20, 300]
    horizon: Any = 1
    utd: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps("recipe", self, "random_steps")


@recipe("mbpo", MBPOConfig)
class MBPO(Imagining):
    """Learn a model of what was experienced, imagine short branches from it, and learn from those."""

    paper = "Janner et al. 2019, arXiv 1906.08253"
    needs_dataset = False
    cfg: MBPOConfig

    def switch(self, run: Run) -> None:
        """Start from nothing: act at random."""
        cfg = self.cfg
        self.make(run)
        self.remember(run, cfg.retained(longest(cfg.horizon)), cfg.online_rollouts, cfg.starts)
        for _ in run.interact(None, cfg.random_steps):
            pass

    def online(self, run: Run) -> None:
        """Act; fit and refit the model; imagine; learn from what is imagined and a little from what is real.

        The model is first fitted in the first turn, if the random steps fill one interval between refits.
        """
        cfg = self.cfg
        for t in run.interact(self.agent, cfg.online_steps):
            real = run.online
            length = branch_length(cfg.horizon, t // cfg.epoch)
            enough = t == 0 and len(real) > cfg.model_every
            if (t + 1) % cfg.model_every == 0 or enough:
                fitted = bool(self.model.fitted)
                before = self.probe(run, length, news=cfg.model_every) if fitted else {}
                run.write("model", self.fit(run, [(real, 1.0)], cfg.refit if fitted else cfg.fit))
                starts = self.begin(cfg.starts, real, data=real, visited=Youngest(real, cfg.epoch))
                found = self.imagine(run, starts, cfg.online_rollouts, cfg.coef, length)
                run.write("uncertainty", before | found)
            if len(self.imagined):
                batches = self.mix(real, cfg.retained(length))
                for _ in range(cfg.utd):
                    run.learn(self.agent, batches, cfg.batch)
        self.keep_model(run)
