"""What MOPO, MOORe and MBPO share: a model, what is imagined in it, and an agent that learns from that."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mbo2o.agents import make_agent
from mbo2o.agents.sac import SACConfig
from mbo2o.data.buffer import ReplayBuffer
from mbo2o.data.sources import Aged, Mix, Youngest
from mbo2o.dynamics.fit import FitConfig, fit, holdout
from mbo2o.dynamics.learned_termination import LearnedTermination
from mbo2o.dynamics.model import DynamicsConfig, GaussianDynamics
from mbo2o.dynamics.rollout import Branches, Sink, one_step_error, rollout, uncertainty
from mbo2o.dynamics.termination import name_of, resolve, resolve_reward
from mbo2o.ensemble.uncertainty import PENALTIES
from mbo2o.nn.init import per_seed
from mbo2o.recipes.base import Recipe
from mbo2o.registry import find
from mbo2o.run.run import Run
from mbo2o.types import Metrics, RewardFn, Source, TerminationFn, UserError

PROBE = 1000
"""Rows on which the model's uncertainty is looked at."""


@dataclass
class ModelBasedConfig:
    """Defaults: MOPO's code (mopo/algorithms/mopo.py, examples/config/d4rl) unless said."""

    agent: SACConfig = field(
        default_factory=SACConfig
    )  # or a variant: redq, sacn, edac, cql (as in COMBO), obac
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    termination: str = (
        "auto"  # by the environment's name; or one of the named, `learned`, `none`, `module:function`
    )
    reward: str | None = None  # `module:function` instead of the learned reward
    penalty: str = "max_aleatoric"  # u(s, a): see mbo2o/ensemble/uncertainty.py; coefficients do not transfer between them
    coef: float = 1.0  # λ of r - λ u; 0.5 to 5 by task in MOPO
    horizon: Any = 5  # steps of an imagined branch, 1 or 5 by task in MOPO; or [FROM, TO, FIRST, LAST]: see `branch_length`
    real: float = 0.05  # share of real rows in the agent's batches; their reward carries no penalty
    batch: int = 256


@dataclass
class OnlineConfig:
    """Learning in the environment with a model that is refitted. Defaults: MBPO (mbpo/algorithms/mbpo.py) unless said."""

    online_steps: int = 100_000  # environment steps per seed
    epoch: int = 1000  # environment steps
    model_every: int = 250  # environment steps between refits, each followed by rollouts
    refit: FitConfig = field(
        default_factory=lambda: FitConfig(min_updates=200, max_updates=2000, epoch_updates=100, patience=3)
    )  # starts from the current weights, hence shorter than the first fit (ours)
    online_rollouts: int = 50_000  # branches after each refit (MBPO 100 000)
    online_retain: int = 1  # epochs whose imagined data stay
    utd: int = (
        1  # whole updates of the agent per environment step (MBPO 20 to 40; the notes on MOORe say nothing)
    )


def branch_length(horizon: Any, epoch: int) -> int:
    """Steps of an imagined branch in an epoch, which counts from 0.

    horizon: the number itself, or [FROM, TO, FIRST, LAST]: FROM until epoch FIRST, then along a line to TO, which is reached
    in epoch LAST and kept (MBPO on Hopper: [1, 15, 20, 150]). Fractions are cut off, as in MBPO's code. An epoch is
    `rollout_every` updates offline, and `recipe.epoch` steps online.
    """
    if isinstance(horizon, int):
        return horizon
    low, high, first, last = horizon
    share = min(max((epoch - first) / (last - first), 0.0), 1.0)
    return int(low + share * (high - low))


def longest(horizon: Any) -> int:
    """The largest length that `branch_length` returns."""
    return horizon if isinstance(horizon, int) else max(horizon[:2])


def check_horizon(name: str, horizon: Any) -> None:
    """Raise a `UserError` for what `branch_length` cannot read."""
    numbers = [horizon] if isinstance(horizon, int) else horizon
    if (
        not isinstance(numbers, list)
        or len(numbers) not in (1, 4)
        or not all(type(x) is int for x in numbers)
    ):
        raise UserError(
            f"recipe.{name}={horizon} must be a number of steps, or [FROM, TO, FIRST, LAST], four whole numbers"
        )
    if min(numbers[:2]) < 1:
        raise UserError(f"recipe.{name}={horizon}: a branch must have at least 1 step")
    if len(numbers) == 4 and not 0 <= numbers[2] < numbers[3]:
        raise UserError(f"recipe.{name}={horizon}: the length changes from epoch FIRST to a later epoch LAST")


class ModelBased(Recipe):
    """The parts of a model-based method; subclasses say in which order."""

    imagined: ReplayBuffer

    def make(self, run: Run) -> None:
        """The networks, and what ends an imagined episode."""
        cfg = self.cfg
        if not isinstance(cfg.agent, SACConfig):
            raise UserError(
                f"recipe.agent: {type(cfg.agent).__name__} is no SAC; take sac or a variant: redq, sacn, edac, cql, obac"
            )
        check_horizon("horizon", cfg.horizon)
        self.penalty = find(PENALTIES, cfg.penalty, "penalty")
        self.reward = self._own_reward(run)
        self.agent = make_agent(cfg.agent, run.spec)
        self.model = per_seed(lambda spec: GaussianDynamics(spec, cfg.dynamics), run.spec)
        if self.needs_dataset:
            self.agent.prepare(run.dataset)
        run.track(agent=self.agent, model=self.model)
        self.termination = (
            self._learn_termination(run) if cfg.termination == "learned" else self._named_termination(run)
        )

    def _own_reward(self, run: Run) -> RewardFn | None:
        """The user's reward function, in the units that the run's other rewards have."""
        reward, rewards = resolve_reward(self.cfg.reward), run.world.rewards
        return None if reward is None else lambda *transition: rewards(reward(*transition))

    def _named_termination(self, run: Run) -> TerminationFn:
        rule = resolve(self.cfg.termination, run.env.id, run.env.kwargs, run.env.layout)
        if self.needs_dataset:
            data, wrong = run.dataset, 0
            for b in data.blocks():
                wrong += int((rule(b.obs, b.act, b.next_obs) != (b.done > 0)).sum())
            if wrong > len(data) / 1000:
                text = f"termination {self.cfg.termination!r} disagrees with {wrong} of the dataset's {len(data)} transitions"
                warnings.warn(f"{text}; recipe.termination=learned fits one to the data", stacklevel=2)
        return rule

    def _learn_termination(self, run: Run) -> TerminationFn:
        if not self.needs_dataset:
            raise UserError("recipe.termination=learned needs a dataset to learn from; name a rule instead")
        head = LearnedTermination(run.spec.obs_dim, run.spec.act_dim).to(run.spec.device)
        run.track(termination=head)
        for _ in run.once("termination"):
            b = run.dataset.rows(run.dataset.index)
            head.load_state_dict(LearnedTermination.fit(b.obs, b.act, b.next_obs, b.done).state_dict())
        return head

    def imagine(self, run: Run, starts: Source, n: int, coef: float, horizon: int) -> Metrics:
        """Roll `n` branches of `horizon` steps out of real states into the imagined buffer."""
        result = self._roll(starts.sample(n).obs, self.imagined, coef, horizon)
        run.imagined(result.pop("largest"))
        return {f"{name}/imagined" if name != "penalty_share" else name: x for name, x in result.items()}

    def _roll(self, starts: Tensor, into: Sink, coef: float, horizon: int) -> Metrics:
        return rollout(
            self.model,
            lambda obs: self.agent.act(obs, explore=True),
            starts,
            into,
            horizon=horizon,
            termination=self.termination,
            penalty=self.penalty,
            coef=coef,
            reward=self.reward,
        )

    def probe(self, run: Run, horizon: int, news: int = 0) -> Metrics:
        """What the model does not know, and its true one-step error, on states it was not trained on.

        offline: rows that every fit holds out. online: the latest `news` rows, which no fit has seen yet. imagined: where the
        policy goes from there (from offline states while there are none), over fresh branches of `horizon` steps.
        """
        metrics: Metrics = {}
        batches = {}
        if self.needs_dataset:
            held_out = holdout(run.dataset.index, replace(self.cfg.fit, max_holdout=PROBE))
            batches["offline"] = run.dataset.rows(held_out.expand(*run.spec.seeds, -1))
        if news:
            batches["online"] = run.online.latest(min(news, PROBE))
        for where, batch in batches.items():
            metrics[f"error/{where}"] = one_step_error(self.model, batch)
        starts = batches["online" if news else "offline"].obs
        self._roll(starts, branches := Branches(), 0.0, horizon)
        seen = {where: uncertainty(self.model, batch) for where, batch in batches.items()}
        seen["imagined"] = uncertainty(self.model, branches.rows, branches.keep)
        return metrics | {f"{name}/{where}": x for where, found in seen.items() for name, x in found.items()}

    def learn_online(self, run: Run, coef: float, horizon: Any) -> None:
        """Act, remember; at intervals refit and imagine; learn from what was imagined (MBPO's loop).

        A model that was fitted offline imagines with the first step: then the agent learns from that step on.
        """
        cfg = self.cfg
        for t in run.interact(self.agent, cfg.online_steps):
            real, length = self.real(run, t), branch_length(horizon, t // cfg.epoch)
            known = bool(self.model.fitted)
            late = not known and t == 0 and len(run.online) > cfg.model_every  # random steps came before
            if (t + 1) % cfg.model_every == 0 or late:
                before = self.probe(run, length, cfg.model_every) if known else {}
                fitted = fit(self.model, real.parts, cfg.refit if known else cfg.fit)
                share = sum(p for rows, p in real.parts if rows is not run.online)
                run.write("model", {**fitted, "share_offline": torch.full(run.spec.seeds, share)})
                run.write("uncertainty", before | self.imagine(run, real, cfg.online_rollouts, coef, length))
            elif known and t == 0:
                run.write("uncertainty", self.imagine(run, real, cfg.online_rollouts, coef, length))
            if len(self.imagined):
                batches = Mix((real, cfg.real), (Youngest(self.imagined, self._kept(length)), 1 - cfg.real))
                for _ in range(cfg.utd):
                    run.learn(self.agent, batches, cfg.batch)
        self.keep_model(run)

    def make_online_buffer(self, run: Run, horizon: Any) -> None:
        """An empty buffer for what will be imagined online, with room for the longest branches."""
        self.imagined = ReplayBuffer(run.spec, self._kept(longest(horizon)))
        run.track(imagined=self.imagined)

    def _kept(self, length: int) -> int:
        """Rows that the latest `online_retain` epochs of branches of this length amount to."""
        cfg = self.cfg
        return int(cfg.online_retain * max(1, cfg.epoch // cfg.model_every) * length * cfg.online_rollouts)

    def real(self, run: Run, t: int) -> Aged | Mix:
        """Real data as turn t draws them, for the model, for starts, and for the agent's real share."""
        raise TypeError(f"{type(self).__name__} learns offline only")

    def keep_model(self, run: Run) -> None:
        """Keep the dynamics on their own, for planning and for notebooks."""
        for _ in run.once("keep"):
            info = {"env_id": run.env_id, "termination": name_of(self.cfg.termination), "phase": run.phase}
            self.model.save(run.directory / "dynamics" / run.phase, info)
