"""MOORe: model-based offline-to-online RL (Mao, Wang, Wang & Zhang 2022, arXiv 2201.10070).

No code of the authors is public, and their priority function is not known to us: see mbo2o/sources/aged.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mbo2o.agents.qensemble import QEnsemble, td_residuals
from mbo2o.dynamics.rollout import row_errors
from mbo2o.recipes.horizon import branch_length, check_horizon, longest
from mbo2o.recipes.mopo import MOPO, MOPOConfig
from mbo2o.recipes.refitting import RefittingConfig
from mbo2o.registry import recipe
from mbo2o.run.turns import Run
from mbo2o.sources.aged import Aged, AgedConfig, check_sampling, check_weighing


@dataclass
class MOOReConfig(RefittingConfig, MOPOConfig):
    """The paper's own numbers are not known: MOPO's offline and MBPO's online."""

    sampling: str = "geometric"  # how offline data fade; uniform, half, online: the ablation's baselines
    alpha: float = 0.9  # pace of the offline data's fading, per epoch (ours)
    # g(d) of an offline row's priority g(d) f(t): none (1), td_error, model_error, density_ratio
    weigh: str = "none"
    exponent: float = 1.0  # power of priorities, as in prioritised replay; 0 makes all rows alike
    refresh: int = 1  # epochs between renewals of all offline rows' g(d), each a pass over the dataset
    online_coef: float | None = None  # λ online; None: what it was offline, as the paper has it
    online_horizon: Any = None  # as horizon, in epochs online; None: as long as the offline phase's last

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sampling("recipe", self.sampling, self.alpha)
        check_weighing("recipe", self.weigh, self.exponent, self.refresh)
        if self.online_horizon is not None:
            check_horizon("online_horizon", self.online_horizon)


@recipe("moore", MOOReConfig)
class MOORe(MOPO):
    """MOPO offline; online its data fade and the model is refitted: uncertainty and penalty fade, too."""

    paper = "Mao et al. 2022, arXiv 2201.10070"
    cfg: MOOReConfig

    @property
    def online_horizon(self) -> Any:
        """The length of branches online, constant or growing."""
        cfg = self.cfg
        last = cfg.offline_steps // cfg.rollout_every
        return branch_length(cfg.horizon, last) if cfg.online_horizon is None else cfg.online_horizon

    def switch(self, run: Run) -> None:
        """Policy, critics, model and its statistics stay; what was imagined offline is forgotten."""
        self.remember(run, self.cfg.retained(longest(self.online_horizon)))

    def aged(self, run: Run) -> Aged:
        """Real rows as they fade; their priorities are saved with the run."""
        cfg, agent, model = self.cfg, self.agent, self.model
        how = AgedConfig(cfg.sampling, cfg.alpha, cfg.epoch, cfg.weigh, cfg.exponent, cfg.refresh)
        real = Aged(how, run.spec, run.dataset, run.online)
        real.scores["model_error"] = lambda b: row_errors(model, b)
        if isinstance(agent, QEnsemble):
            real.scores["td_error"] = lambda b: td_residuals(agent, b).abs().mean(-2)
        run.track(priorities=real)
        return real

    def online(self, run: Run) -> None:
        """Act; refit as offline data fade; imagine, from the first turn on; learn from both kinds of data."""
        cfg = self.cfg
        coef = cfg.coef if cfg.online_coef is None else cfg.online_coef
        aged = self.aged(run)
        for t in run.interact(self.agent, cfg.online_steps):
            aged.advance(t)  # offline rows lose priority with the epoch
            real = aged.blend
            length = branch_length(self.online_horizon, t // cfg.epoch)
            refit_due = (t + 1) % cfg.model_every == 0
            before = {}
            if refit_due:
                before = self.probe(run, length, news=cfg.model_every)
                run.write("model", self.fit(run, real.weighted_rows, cfg.refit) | aged.spread())
            if refit_due or t == 0:
                found = self.imagine(run, real, cfg.online_rollouts, coef, length)
                run.write("uncertainty", before | found)
            batches = self.mix(real, cfg.retained(length))
            for _ in range(cfg.utd):
                run.learn(self.agent, batches, cfg.batch)
        self.keep_model(run)
