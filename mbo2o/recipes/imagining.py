"""What MOPO, MOORe and MBPO call: make a model, fit it, imagine, probe what the model knows, keep it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from omegaconf import MISSING
from torch import Tensor

from mbo2o.agents import AgentConfig, make_agent
from mbo2o.agents.sac import SACConfig
from mbo2o.data.buffer import ReplayBuffer
from mbo2o.dynamics.bellman import measure
from mbo2o.dynamics.fit import FitConfig, Learner, fit, holdout
from mbo2o.dynamics.model import DynamicsConfig, GaussianDynamics
from mbo2o.dynamics.rollout import Branches, Rollouts, one_step_error, uncertainty
from mbo2o.dynamics.termination import name_of
from mbo2o.nn.init import per_seed
from mbo2o.recipes.base import Recipe, RecipeConfig
from mbo2o.recipes.horizon import check_horizon
from mbo2o.recipes.penalties import check_penalty, penalty_of
from mbo2o.recipes.rules import reward_rule, termination_rule
from mbo2o.recipes.starts import ENDS, Ends, begin, check_starts, shares
from mbo2o.registry import AGENTS, entry_of
from mbo2o.run.turns import Run
from mbo2o.sources.base import check_counts, check_shares
from mbo2o.sources.mixtures import Mix, Youngest
from mbo2o.types import Batch, Metrics, Numbered, Prepare, Source, UserError

PROBE = 1000
"""Rows on which the model's uncertainty is looked at."""
LOOKED_AT = 50_000
"""Most imagined rows among them, whatever the length of branches."""


@dataclass
class ImaginingConfig(RecipeConfig):
    """Defaults: MOPO's code (mopo/algorithms/mopo.py, examples/config/d4rl) unless said."""

    STARTS: ClassVar[tuple[str, ...]] = ("data", ENDS)
    """The kinds of `starts` that there are."""

    # An agent of `mbo2o methods`, by itself SAC. What an agent does to a batch it does to imagined rows: cql
    # keeps their values low, as COMBO does. In rollouts every agent acts as in the environment: by its
    # `explore`, which is a sample of a stochastic policy, and td3bc's action with its noise. td3bc and iql
    # imitate the rows of a batch, imagined ones included, which holds a policy near its own past.
    agent: AgentConfig = MISSING
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    termination: str = "auto"  # by the environment's name; or a rule's, `learned`, `none`, `module:function`
    reward: str | None = None  # `module:function` instead of the learned reward
    # u(s, a), see ensemble/uncertainty.py, or bellman (MOBILE), see dynamics/bellman.py; each wants
    # coefficients of its own
    penalty: str = "max_aleatoric"
    penalty_draws: int = 10  # K of bellman: next states per elite and row (MOBILE; cost grows with it)
    coef: float = 1.0  # λ of r - λ u; 0.5 to 5 by task in MOPO
    horizon: Any = 5  # steps of a branch, 1 or 5 in MOPO; or [FROM, TO, FIRST, LAST]: see `branch_length`
    # Where branches begin: data, visited, imagined-ends, or a dict of these with weights, such as
    # {data: 0.7, imagined-ends: 0.3}; see recipes/starts.py. imagined-ends lengthens branches step by step.
    # `visited` is for mbpo, whose data are all that it experienced.
    starts: Any = "data"
    # Branches also end where u(s, a) passes this quantile of the data's own u; their last row bootstraps. So
    # they may be hundreds of steps long (NEUBAY, arXiv 2512.04341: 1.0, the largest u). None: they do not.
    truncate: float | None = None
    # Most imagined rows that are kept. None: as many as branches of full length would fill, which is much
    # memory, and old rows, where most branches end early (the log's `length/imagined` says how early).
    imagined_rows: int | None = None
    real_share: float = 0.05  # part of the agent's batches; the reward of real rows carries no penalty
    batch: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.agent, str):  # MISSING, since a default would bar agents that are no SAC
            self.agent = SACConfig()
        check_agent(self.agent)
        check_penalty(self.penalty, self.agent, self.dynamics)
        check_horizon("horizon", self.horizon)
        check_starts("starts", self.starts, self.STARTS)
        check_counts("recipe", self, "batch", "penalty_draws")
        check_shares("recipe", self, "real_share")
        if self.truncate is not None and not 0 < self.truncate <= 1:
            raise UserError(f"recipe.truncate={self.truncate} is a quantile: it must lie in (0, 1]")

    def check_fits(self, branches: str) -> None:
        """Raise a `UserError` if a step of all branches is more than the rows that are kept."""
        n = getattr(self, branches)
        if self.imagined_rows is not None and self.imagined_rows < n:
            text = f"must be at least recipe.{branches}={n}, the rows of one step"
            raise UserError(f"recipe.imagined_rows={self.imagined_rows} {text}")


def check_agent(cfg: AgentConfig) -> None:
    """Raise a `UserError` for an agent to which imagined rows are no experience."""
    entry = entry_of(cfg, AGENTS)
    if entry is None:
        raise UserError(f"recipe.agent: {type(cfg).__name__} is not the config of a registered agent")
    if reason := entry.cls.not_imagined:  # type: ignore[attr-defined]
        text = f"recipe.agent: {entry.name} cannot learn from imagined rows: {reason}"
        raise UserError(f"{text}; take sac, sacn, edac, redq, cql, td3bc, iql, awac or obac")
    if steps := getattr(cfg, "clone_steps", 0):
        text = "most rows are imagined, so the actor would clone itself"
        raise UserError(f"recipe.agent.clone_steps={steps} must be 0: {text}")


class Imagining(Recipe):
    """The parts of a model-based method. They are called; the loops are on the methods' own pages."""

    imagined: ReplayBuffer
    ends: Ends | None = None

    def make(self, run: Run) -> None:
        """Make the agent, the model, and the rules of imagined episodes."""
        cfg = self.cfg
        self.reward = reward_rule(run, cfg.reward)
        self.agent = make_agent(cfg.agent, run.spec)
        self.model = per_seed(lambda spec: GaussianDynamics(spec, cfg.dynamics), run.spec)
        self.penalty = penalty_of(cfg.penalty, self.agent, self.model, cfg.penalty_draws)
        self.learners: dict[int, Learner] = {}  # by the settings of fits
        if self.needs_dataset:
            self.agent.prepare(run.dataset)
        run.track(agent=self.agent, model=self.model)
        self.termination = termination_rule(run, cfg.termination, self.needs_dataset)
        self.rollouts, self.looks = self._rollouts(run.engine.prepare), self._rollouts(lambda step: step)

    def remember(self, run: Run, rows: int, branches: int, starts: Any) -> None:
        """Start an empty buffer for the latest `rows` imagined rows of each seed, or `imagined_rows`.

        starts: where the phase's rollouts, of so many branches, begin: their ends are kept if that needs it.
        """
        self.imagined = ReplayBuffer(run.spec, min(rows, self.cfg.imagined_rows or rows))
        run.track(imagined=self.imagined)
        if ENDS in shares(starts):
            self.ends = Ends(run.spec, branches, run.dataset if self.needs_dataset else run.online)
            run.track(ends=self.ends)
        else:
            self.ends = None

    def fit(self, run: Run, rows: Sequence[tuple[Numbered, float]], how: FitConfig) -> Metrics:
        """Fit the model, from its present weights on, to rows of each kind with their shares."""
        learner = self.learners.get(id(how))
        if learner is None:
            learner = self.learners[id(how)] = Learner(self.model, how, run.engine.prepare)
        fitted = fit(self.model, rows, how, learner)
        share = sum(p for kind, p in rows if kind is not run.online)
        return {**fitted, "share_offline": torch.full(run.spec.seeds, share)}

    def imagine(self, run: Run, starts: Source, n: int, coef: float | Tensor, horizon: int) -> Metrics:
        """Roll `n` branches of `horizon` steps out of the states of `starts` into the imagined buffer."""
        how: dict[str, Any] = {"horizon": horizon, "coef": coef, "limit": self.limit(run), "ends": self.ends}
        result = self.rollouts.roll(starts.sample(n).obs, self.imagined, **how)
        run.imagined(result.pop("largest"))
        if len(self.imagined) == 0:  # a draw would not notice, because only the device knows
            raise ValueError("not one imagined transition of a seed is finite")
        return {f"{name}/imagined" if name != "penalty_share" else name: x for name, x in result.items()}

    def begin(self, starts: Any, usual: Source, **kinds: Source | None) -> Source:
        """The states that branches begin with; see `recipes.starts.begin`."""
        if self.ends is not None:
            self.ends.usual = usual
        return begin(starts, usual, **kinds, **{ENDS: self.ends})

    def held_out(self, run: Run, n: int) -> Batch:
        """At most `n` rows that every fit holds out: from the dataset, or from experience without one."""
        rows = run.dataset if self.needs_dataset else run.online
        index = holdout(rows.index, replace(self.cfg.fit, max_holdout=n))
        return rows.rows(index.expand(*run.spec.seeds, -1))

    @torch.no_grad()
    def limit(self, run: Run) -> Tensor | None:
        """Where branches end: the quantile `truncate` of u over held-out rows, `(*S,)`, at this moment."""
        if self.cfg.truncate is None:
            return None
        b = self.held_out(run, self.cfg.fit.max_holdout)
        u = measure(self.penalty, b.obs, *self.model.predict(b.obs, b.act))
        return u.quantile(self.cfg.truncate, -1)

    def mix(self, real: Source, latest: int) -> Mix:
        """The agent's batches: real rows, and rows among the `latest` imagined ones."""
        share = self.cfg.real_share
        return Mix((real, share), (Youngest(self.imagined, latest), 1 - share))

    def probe(self, run: Run, horizon: int, news: int = 0) -> Metrics:
        """What the model does not know, and its true one-step error, on states it was not trained on.

        offline: rows that every fit holds out. online: the latest `news` rows, which no fit has seen yet.
        imagined: where the policy goes from the latter, or else from the former, over fresh branches.
        """
        batches = {}
        if self.needs_dataset:
            batches["offline"] = self.held_out(run, PROBE)
        if news:
            batches["online"] = run.online.latest(min(news, PROBE))
        metrics = {f"error/{where}": one_step_error(self.model, batch) for where, batch in batches.items()}
        branches = Branches()
        starts = batches["online" if news else "offline"].obs[..., : max(1, LOOKED_AT // horizon), :]
        self.looks.roll(starts, branches, horizon=horizon, coef=0.0, limit=self.limit(run))
        own = self.penalty
        seen = {where: uncertainty(self.model, rows, penalty=own) for where, rows in batches.items()}
        seen["imagined"] = uncertainty(self.model, branches.rows, branches.keep, own)
        return metrics | {f"{name}/{where}": x for where, found in seen.items() for name, x in found.items()}

    def keep_model(self, run: Run) -> None:
        """Save the dynamics on their own, for planning and for notebooks."""
        for _ in run.once("keep"):
            info = {"env_id": run.env_id, "termination": name_of(self.cfg.termination), "phase": run.phase}
            self.model.save(run.directory / "dynamics" / run.phase, info)

    def _rollouts(self, prepare: Prepare) -> Rollouts:
        rules: dict[str, Any] = {
            "termination": self.termination,
            "penalty": self.penalty,
            "reward": self.reward,
        }
        return Rollouts(self.model, self._explore, prepare=prepare, **rules)

    def _explore(self, obs: Tensor) -> Tensor:
        return self.agent.act(obs, explore=True)
