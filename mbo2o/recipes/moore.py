"""MOORe: model-based offline-to-online RL (Mao, Wang, Wang & Zhang 2022, arXiv 2201.10070).

No code of the authors is public, and their priority function is not known to us: see mbo2o/sources/aged.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mbo2o.agents.qensemble import QEnsemble, td_residuals
from mbo2o.dynamics.rollout import one_step_error, row_errors
from mbo2o.nn.optim import Adam
from mbo2o.recipes.horizon import branch_length, check_horizon, longest
from mbo2o.recipes.imagining import PROBE
from mbo2o.recipes.mopo import MOPO, MOPOConfig
from mbo2o.recipes.refitting import RefittingConfig
from mbo2o.recipes.starts import KINDS, check_starts
from mbo2o.registry import recipe
from mbo2o.run.turns import Run
from mbo2o.sources.aged import Aged, AgedConfig, check_sampling, check_weighing
from mbo2o.sources.mixtures import Youngest
from mbo2o.types import Metrics, Source, Spec, UserError


@dataclass
class MOOReConfig(RefittingConfig, MOPOConfig):
    """The paper's own numbers are not known: MOPO's offline and MBPO's online."""

    sampling: str = "geometric"  # how offline data fade; uniform, half, online: the ablation's baselines
    alpha: float = 0.9  # pace of the offline data's fading, per epoch (ours)
    # g(d) of an offline row's priority g(d) f(t): none (1), td_error, model_error, density_ratio
    weigh: str = "none"
    exponent: float = 1.0  # power of priorities, as in prioritised replay; 0 makes all rows alike
    refresh: int = 1  # epochs between renewals of all offline rows' g(d), each a pass over the dataset
    # λ online: a number; None: what it was offline, as the paper has it; fade: that times the present share
    # of offline rows; error: that times the model's error in one step on the newest experience, which no fit
    # has seen, over its error on held-out rows of the dataset at the switch (both ours)
    online_coef: Any = None
    # as starts, online: also mixture, and visited, the experience of the latest epoch; see recipes/starts.py
    online_starts: Any = "mixture"
    online_horizon: Any = None  # as horizon, in epochs online; None: as long as the offline phase's last
    # the actor's rate online; None: its rate at first offline. A low one keeps a good policy steady (ours)
    online_actor_lr: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sampling("recipe", self.sampling, self.alpha)
        check_weighing("recipe", self.weigh, self.exponent, self.refresh)
        number = type(self.online_coef) in (int, float)
        if not number and self.online_coef not in (None, "fade", "error"):
            raise UserError(f"recipe.online_coef={self.online_coef} must be a number, null, fade or error")
        check_starts("online_starts", self.online_starts, KINDS)
        if self.online_horizon is not None:
            check_horizon("online_horizon", self.online_horizon)
        if self.online_actor_lr is not None and self.online_actor_lr <= 0:
            raise UserError(f"recipe.online_actor_lr={self.online_actor_lr} must be above 0")


class AtSwitch(nn.Module):
    """What the model was worth at the switch: its error in one step on held-out offline rows, `(*S,)`."""

    error: Tensor

    def __init__(self, spec: Spec):
        super().__init__()
        self.register_buffer("error", torch.full(spec.seeds, torch.nan, device=spec.device))


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
        cfg = self.cfg
        self.agent.cfg = cfg.agent.unchanged()  # what only offline learning needs ends here
        if cfg.online_actor_lr is not None:
            optim = self.agent.actor_optim
            assert isinstance(optim, Adam)
            optim.lr = cfg.online_actor_lr
        rows = cfg.retained(longest(self.online_horizon))
        self.remember(run, rows, cfg.online_rollouts, cfg.online_starts)
        if cfg.online_coef == "error":
            self.at_switch = AtSwitch(run.spec)
            run.track(at_switch=self.at_switch)

    def online_coef(self, share: float, before: Metrics) -> float | Tensor:
        """λ of a rollout; share: of offline rows; before: what a probe has just found, if there was one."""
        cfg = self.cfg
        if cfg.online_coef == "fade":
            return cfg.coef * share
        if cfg.online_coef == "error":
            if "error/online" not in before:
                return cfg.coef
            return cfg.coef * before["error/online"] / self.at_switch.error
        return float(cfg.coef if cfg.online_coef is None else cfg.online_coef)

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
        aged = self.aged(run)
        for t in run.interact(self.agent, cfg.online_steps):
            aged.advance(t)  # offline rows lose priority with the epoch
            real = aged.blend
            length = branch_length(self.online_horizon, t // cfg.epoch)
            refit_due = (t + 1) % cfg.model_every == 0
            before = {}
            if t == 0 and cfg.online_coef == "error":
                self.at_switch.error.copy_(one_step_error(self.model, self.held_out(run, PROBE)))
            if refit_due:
                before = self.probe(run, length, news=cfg.model_every)
                run.write("model", self.fit(run, real.weighted_rows, cfg.refit) | aged.spread())
            if refit_due or t == 0:
                recent = Youngest(run.online, cfg.epoch) if t else None  # one state is there at first
                kinds: dict[str, Source | None] = {"data": run.dataset, "mixture": real, "visited": recent}
                starts = self.begin(cfg.online_starts, real, **kinds)
                coef = self.online_coef(real.share, before)
                found = self.imagine(run, starts, cfg.online_rollouts, coef, length)
                if cfg.online_coef is not None:
                    found["coef"] = torch.as_tensor(coef).expand(run.spec.seeds)
                run.write("uncertainty", before | found)
            batches = self.mix(real, cfg.retained(length))
            for _ in range(cfg.utd):
                run.learn(self.agent, batches, cfg.batch)
        self.keep_model(run)
