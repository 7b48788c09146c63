"""`Planner`: acts by planning in a model, with NumPy arrays in the environment's units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbo2o.ensemble.uncertainty import PENALTIES
from mbo2o.model.dynamics import Dynamics
from mbo2o.planning.members import Members
from mbo2o.planning.objective import Objective, OfRows, Policy, Rated, Step, Value
from mbo2o.planning.search import Search, SearchConfig
from mbo2o.registry import PLANNERS, did_you_mean, find
from mbo2o.types import Prepare, UserError


@dataclass
class PlanConfig:
    """What a plan is worth, see `objective.Objective`, and which plans are proposed."""

    members: str = "ts1"  # who predicts: ts1, tsinf or mean, see `members.Members`
    particles: int = 0  # futures of each plan; 0: one for each elite, or one alone for their mean
    gamma: float = 0.99  # discount
    coef: float = 0.0  # weight of the uncertainty; at 0 it is not computed, and a step costs a K-th
    penalty: str = ""  # the uncertainty, a name of `PENALTIES`; "": the model's own
    proposals: int = 24  # plans that the policy makes, in each population, if there is a policy (TD-MPC)
    spread: float = 0.2  # the noise on their actions
    precision: str = "fp32"  # in hidden layers; bf16 is faster where the processor has it

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise UserError(f"plan: gamma={self.gamma} must lie in [0, 1]")
        for name in ("particles", "proposals", "coef", "spread"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"plan: {name}={getattr(self, name)} must be finite, and not negative")
        if self.penalty and self.penalty not in PENALTIES:
            known = ", ".join(PENALTIES)
            raise UserError(f"plan: penalty={self.penalty}: no such penalty; choose one of {known}")


class Planner:
    """Acts by planning in a model.

        planner = Planner(mbo2o.load_dynamics("runs/x"), "mppi", horizon=12)
        action = planner.act(obs)      # obs (D,) or (B, D) → (A,) or (B, A), in the environment's units
        planner.reset()                # when an episode begins

    Each call starts from the last plan, moved by one step. The same seed gives the same actions to the bit.
    """

    def __init__(
        self,
        model: Dynamics | Step,
        search: str = "mppi",
        *,
        policy: Policy | None = None,
        value: Value | None = None,
        box: tuple[Sequence[float], Sequence[float]] | None = None,
        seed: int = 0,
        prepare: Prepare = lambda step: step,
        **settings: Any,
    ):
        """Make the planner.

        Args:
            model: A learned model, or a function of rows such as the true dynamics.
            search: `cem`, `icem`, `mppi`, or what else is registered with `mbo2o.planner`.
            policy: Observations `(N, D)` → actions `(N, A)` in [-1, 1]; the plans that it makes in the model
                join each population.
            value: Observations `(N, D)` → what is expected after the plan, `(N,)`, in the units of the
                rewards that the network was fitted to.
            box: The lowest and the highest actions, `(A,)` each, for a function; a model knows its own.
            seed: Of the planner's own generator.
            prepare: Turns a step of the rating of plans in a learned model into the one that is run, such
                as a compiled one.
            **settings: Fields of `PlanConfig` and of the search's config, such as `horizon=12`.
                `horizon="trusted"` is the depth to which the model's folder says that it is to be trusted,
                and so is `auto`, which means another test on the command line.

        Raises:
            UserError: A setting is unknown or has a wrong value, or `box` is missing.
        """
        if settings.get("horizon") in ("auto", "trusted"):
            settings["horizon"] = _trusted(model)
        self.plan_cfg, cfg = configs(search, settings)
        if isinstance(model, Dynamics):
            device, box = model.device, (model.low.tolist(), model.high.tolist())
        elif box is None:
            raise UserError("plan: a function has no box of actions; give box=(low, high)")
        else:
            device = torch.device("cpu")
        self._low, self._high = (torch.tensor(x, dtype=torch.float32, device=device) for x in box)
        self.generator = torch.Generator(device).manual_seed(seed)
        self._model, self._prepare = model, prepare
        self.objective, self._policy = self._worth(self.plan_cfg.coef > 0, value), policy
        self._measuring = self.objective if self.plan_cfg.coef else self._worth(True, value)
        entry = find(PLANNERS, search, "planner")
        self.search: Search = entry.cls(cfg, len(self._low), self.generator)

    def _worth(self, measured: bool, value: Value | None) -> Objective:
        """The objective, with a step that measures the uncertainty or leaves it out."""
        cfg, model = self.plan_cfg, self._model
        how: dict[str, Any] = {"gamma": cfg.gamma, "coef": cfg.coef, "value": value}
        if not isinstance(model, Dynamics):
            return Objective(OfRows(model), particles=max(1, cfg.particles), **how)
        about = model.about

        def pay(obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
            assert about.reward is not None
            return about.rewards(about.reward(obs, act, next_obs))  # as the network's agent sees it

        step = Members(
            model.net,
            cfg.members,
            termination=about.ends,
            reward=pay if about.reward else None,
            penalty=PENALTIES[cfg.penalty or model.penalty] if measured else None,
            precision=cfg.precision,
        )
        particles = 1 if cfg.members == "mean" else cfg.particles or step.particles
        return Objective(step, particles=particles, prepare=self._prepare, **how)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.generator.device

    @property
    def horizon(self) -> int:
        """Steps of a plan."""
        return self.search.cfg.horizon

    @torch.no_grad()
    def plan(self, obs: Tensor) -> Tensor:
        """The best plans found from `obs` `(B, D)`: actions `(B, H, A)` in [-1, 1]."""
        cfg, proposals = self.plan_cfg, None
        if isinstance(self._model, Dynamics) and obs.shape[1] != self._model.obs_dim:
            own = self._model.obs_dim
            raise UserError(f"plan: observations have {obs.shape[1]} numbers, the model's have {own}")
        if self._policy is not None and cfg.proposals:
            how = (cfg.proposals, self.horizon, cfg.spread, self.generator)
            proposals = self.objective.follow(obs, self._policy, *how)
        rate = lambda plans: self.objective.rate(obs, plans, self.generator).value  # noqa: E731
        return self.search(len(obs), rate, proposals)

    def act(self, obs: np.ndarray) -> np.ndarray:
        """The first action of the best plan, `(D,)` → `(A,)` or `(B, D)` → `(B, A)`, in the task's units.

        UserError for an observation that is not finite, or for another number of states than in the last
        call (see `reset`).
        """
        x = torch.as_tensor(np.asarray(obs), dtype=torch.float32, device=self._low.device)
        if x.dim() not in (1, 2) or not x.isfinite().all():
            raise UserError(
                f"plan: expected finite observations (D,) or (B, D), got shape {tuple(x.shape)}"
                f"{'' if x.isfinite().all() else ' with numbers that are not finite'}"
            )
        act = self.plan(x if x.dim() == 2 else x[None])[:, 0]
        found = (self._low + (act + 1) / 2 * (self._high - self._low)).clamp(self._low, self._high)
        return (found if x.dim() == 2 else found[0]).cpu().numpy()

    def look(self, obs: Tensor, plans: Tensor) -> Rated:
        """What the model expects of plans `(B, S, H, A)` from `obs` `(B, D)`, their uncertainty included."""
        return self._measuring.rate(obs, plans, self.generator)

    def reset(self, rows: np.ndarray | None = None) -> None:
        """Forget the plans of the states `rows` `(B,)` bool, whose episodes begin again; None: of all."""
        self.search.reset(None if rows is None else torch.as_tensor(rows, device=self._low.device))


def _trusted(model: Dynamics | Step) -> int:
    """The depth to which a model is to be trusted, at least 1."""
    if not isinstance(model, Dynamics):
        raise UserError("plan: horizon=trusted needs a learned model's errors by depth; give a number")
    return max(1, model.trusted_depth())


def configs(search: str, settings: dict[str, Any]) -> tuple[PlanConfig, SearchConfig]:
    """The configs that `settings` describe. UserError for an unknown setting or value."""
    entry = find(PLANNERS, search, "planner")
    both = (PlanConfig, entry.config)
    known = {f.name: (f, kind) for kind in both for f in fields(kind)}
    found: dict[Any, dict[str, Any]] = {kind: {} for kind in both}
    for name, x in settings.items():
        if name not in known:
            near = did_you_mean(name, known)
            raise UserError(
                f"plan: no setting is called {name!r}; {near}settings of {search}: {', '.join(known)}"
            )
        f, kind = known[name]
        found[kind][name] = _typed(name, x, type(f.default))
    return PlanConfig(**found[PlanConfig]), entry.config(**found[entry.config])


def _typed(name: str, x: Any, kind: type) -> Any:
    """The value of a setting, which may be text, as its type."""
    try:
        if kind is int and isinstance(x, float):
            raise ValueError
        return kind(x)
    except (TypeError, ValueError) as e:
        what = {int: "a whole number", float: "a number", str: "text"}[kind]
        raise UserError(f"plan: {name}={x} is not {what}") from e
