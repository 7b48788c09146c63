"""MOPO: model-based offline policy optimisation (Yu et al. 2020, arXiv 2005.13239)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mbo2o.data.buffer import ReplayBuffer
from mbo2o.data.sources import Mix, Youngest
from mbo2o.dynamics.fit import fit
from mbo2o.recipes.modelbased import ModelBased, ModelBasedConfig, branch_length, longest
from mbo2o.registry import recipe
from mbo2o.run.run import Run


@dataclass
class MOPOConfig(ModelBasedConfig):
    """Defaults: the authors' code."""

    offline_steps: int = 1_000_000  # gradient steps
    rollouts: int = 50_000  # branches each time
    rollout_every: int = 1000  # gradient steps
    retain: int = 5  # imagined data of this many times stay


@recipe("mopo", MOPOConfig)
class MOPO(ModelBased):
    """SAC inside the learned model, paid r - λ u: it goes where the data say it is good and the model knows what happens."""

    paper = "Yu et al. 2020, arXiv 2005.13239"
    cfg: MOPOConfig

    def offline(self, run: Run) -> None:
        """Fit the model once, then imagine and learn in turn."""
        cfg = self.cfg
        self.make(run)
        self.imagined = ReplayBuffer(run.spec, cfg.retain * longest(cfg.horizon) * cfg.rollouts)
        run.track(imagined=self.imagined)
        for _ in run.once("fit"):
            run.say(f"fitting the dynamics ensemble to {len(run.dataset)} transitions")
            fitted = fit(self.model, [(run.dataset, 1.0)], cfg.fit)
            run.write("model", fitted | {"share_offline": torch.ones(run.spec.seeds)})
            if bool((fitted["updates"] >= cfg.fit.max_updates).any()):
                # an agent exploits what a model has not learned yet: on HalfCheetah this alone cost MOPO all its return
                run.say(
                    f"the fit was stopped by recipe.fit.max_updates={cfg.fit.max_updates}: its error was still falling"
                )
        for t in run.steps(cfg.offline_steps):
            length = branch_length(cfg.horizon, t // cfg.rollout_every)
            if t % cfg.rollout_every == 0:
                before = self.probe(run, length)
                run.write(
                    "uncertainty", before | self.imagine(run, run.dataset, cfg.rollouts, cfg.coef, length)
                )
            imagined = Youngest(self.imagined, cfg.retain * length * cfg.rollouts)
            batches = Mix((run.dataset, cfg.real), (imagined, 1 - cfg.real))
            run.learn(self.agent, batches, cfg.batch)
        self.keep_model(run)
