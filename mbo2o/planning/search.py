"""What the planners share: settings, a warm start, draws of their own, and the best of a population."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from mbo2o.planning.objective import BROKEN
from mbo2o.types import UserError, at_least_one

Rate = Callable[[Tensor], Tensor]
"""Plans `(B, S, H, A)` in [-1, 1] → their values `(B, S)`, to be maximised."""
SHARES = ("alpha", "momentum", "keep")


@dataclass
class SearchConfig:
    """What every search has."""

    horizon: int = 12  # steps of a plan, H
    population: int = 128  # plans that an iteration draws, S
    iterations: int = 4
    elites: int = 16  # the best plans, from which the next ones are drawn

    def __post_init__(self) -> None:
        at_least_one(
            "plan", **{x: getattr(self, x) for x in ("horizon", "population", "iterations", "elites")}
        )
        if self.elites > self.population:
            raise UserError(f"plan: elites={self.elites} must not exceed population={self.population}")
        for f in fields(self):
            x = getattr(self, f.name)
            if isinstance(x, float) and not 0 <= x < float("inf"):
                raise UserError(f"plan: {f.name}={x} must be a finite number, and not negative")
            if f.name in SHARES and x > 1:
                raise UserError(f"plan: {f.name}={x} is a share, and must lie in [0, 1]")


class Search(ABC):
    """Looks for the best plans of B states at once.

    A search draws from a generator of its own, the same numbers for every state, so that the same seed gives
    the same plans to the bit, and a state's plan does not depend on the states beside it. It starts from the
    last plan, moved by the step that was taken since. `reset` forgets all that one state leaves for the next.
    """

    def __init__(self, cfg: SearchConfig, act_dim: int, generator: torch.Generator):
        self.cfg, self.act_dim, self.generator = cfg, act_dim, generator
        self.kept: Tensor | None = None
        """The last plans `(B, H, A)`; None before the first."""

    @abstractmethod
    def improve(self, start: Tensor, rate: Rate, proposals: Tensor) -> Tensor:
        """Better plans than `start`, `(B, H, A)`; `proposals` `(B, n, H, A)` join each population."""

    def __call__(self, states: int, rate: Rate, proposals: Tensor | None = None) -> Tensor:
        """The best plans found, `(B, H, A)` for B `states`."""
        device = self.generator.device
        shape = (states, self.cfg.horizon, self.act_dim)
        if self.kept is not None and len(self.kept) != states:
            raise UserError(
                f"plan: the last plans were for {len(self.kept)} states, and {states} are given; reset first"
            )
        start = torch.zeros(shape, device=device) if self.kept is None else shifted(self.kept)
        if proposals is None:
            proposals = torch.zeros(states, 0, *shape[1:], device=device)
        self.kept = self.improve(start, rate, proposals)
        return self.kept

    def reset(self, rows: Tensor | None = None) -> None:
        """Forget the plans of states `rows` `(B,)` bool, whose episode begins again; None: of all states."""
        if rows is None:
            self.kept = None
        elif self.kept is not None:
            self.kept = torch.where(rows[:, None, None], 0.0, self.kept)

    def take(self, rows: Tensor) -> None:
        """Go on with the states at `rows` `(B',)` alone, because the episodes of the others are over."""
        if self.kept is not None:
            self.kept = self.kept[rows]

    def normal(self, n: int) -> Tensor:
        """Standard normal draws for n plans, `(n, H, A)`."""
        shape = (n, self.cfg.horizon, self.act_dim)
        return torch.randn(shape, generator=self.generator, device=self.generator.device)

    def uniform(self, n: int) -> Tensor:
        """Draws from [0, 1), `(n, H, A)`."""
        shape = (n, self.cfg.horizon, self.act_dim)
        return torch.rand(shape, generator=self.generator, device=self.generator.device)


def shifted(plans: Tensor) -> Tensor:
    """Plans `(..., H, A)` one step later; the new last action is 0, the middle of the box."""
    return torch.cat([plans[..., 1:, :], torch.zeros_like(plans[..., :1, :])], -2)


def best(plans: Tensor, values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best plans `(B, k, H, A)` of `(B, S, H, A)`, the best one first, and their values `(B, k)`.

    A value that is no number counts as `BROKEN`, so that it is never taken for a good one.
    """
    top, index = values.nan_to_num(BROKEN, neginf=BROKEN).topk(min(k, plans.shape[1]), -1)
    return plans.gather(1, index[..., None, None].expand(*index.shape, *plans.shape[2:])), top
