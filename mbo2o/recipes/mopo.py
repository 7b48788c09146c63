"""MOPO: model-based offline policy optimisation (Yu et al. 2020, arXiv 2005.13239)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mbo2o.recipes.coverage import Coverage
from mbo2o.recipes.horizon import branch_length, longest
from mbo2o.recipes.imagining import Imagining, ImaginingConfig
from mbo2o.registry import recipe
from mbo2o.run.turns import Run
from mbo2o.sources.base import check_counts, check_steps


@dataclass
class MOPOConfig(ImaginingConfig):
    """Defaults: the authors' code."""

    OFFLINE: ClassVar[tuple[str, ...]] = (
        *("agent", "dynamics", "fit", "termination", "reward", "penalty", "coef", "horizon", "real_share"),
        *("batch", "offline_steps", "rollouts", "rollout_every", "retain"),
    )

    offline_steps: int = 1_000_000  # gradient steps
    rollouts: int = 50_000  # branches each time
    rollout_every: int = 1000  # gradient steps
    retain: int = 5  # imagined data of this many times stay
    # evaluations between looks at how far visited and imagined states lie from the data, see coverage.py; 0:
    # no looks. A look costs about a second per seed, and changes nothing that the run computes.
    coverage: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts("recipe", self, "rollouts", "rollout_every", "retain")
        check_steps("recipe", self, "offline_steps", "coverage")


@recipe("mopo", MOPOConfig)
class MOPO(Imagining):
    """SAC inside the learned model, paid r - λ u: it goes where rewards are high and the model is sure."""

    paper = "Yu et al. 2020, arXiv 2005.13239"
    cfg: MOPOConfig

    def offline(self, run: Run) -> None:
        """Fit the model once, then imagine and learn in turn."""
        cfg = self.cfg
        self.make(run)
        if cfg.coverage:
            seen = Coverage(run, self.model, self.looks, cfg.fit, self.penalty, cfg.coef, self.gamma)
            run.look = (seen, cfg.coverage)
        self.remember(run, cfg.retain * longest(cfg.horizon) * cfg.rollouts)
        for _ in run.once("fit"):
            run.say(f"fitting the dynamics ensemble to {len(run.dataset)} transitions")
            fitted = self.fit(run, [(run.dataset, 1.0)], cfg.fit)
            run.write("model", fitted)
            if bool((fitted["updates"] >= cfg.fit.max_updates).any()):
                # An agent exploits what a model has not learned: on HalfCheetah it cost MOPO all its return.
                limit = f"recipe.fit.max_updates={cfg.fit.max_updates}"
                run.say(f"the fit was stopped by {limit}: its error was still falling")
        for t in run.steps(cfg.offline_steps, cfg.rollout_every):
            length = branch_length(cfg.horizon, t // cfg.rollout_every)
            if t % cfg.rollout_every == 0:
                before = self.probe(run, length)
                found = self.imagine(run, run.dataset, cfg.rollouts, cfg.coef, length)
                run.write("uncertainty", before | found)
            run.learn(self.agent, self.mix(run.dataset, cfg.retain * length * cfg.rollouts), cfg.batch)
        self.keep_model(run)
