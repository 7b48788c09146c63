"""Branched rollouts in the learned model, with a penalty on its uncertainty (MBPO, MOPO)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from mbo2o.dynamics.bellman import Bellman, measure
from mbo2o.dynamics.model import CHUNK, GaussianDynamics, Weights
from mbo2o.ensemble.uncertainty import BELLMAN, PENALTIES, Penalty, aleatoric_std
from mbo2o.types import Batch, Metrics, Prepare, RewardFn, TerminationFn, cat

Stepped = tuple[Batch, Tensor, tuple[Tensor, Tensor], Tensor, Tensor]


class Sink(Protocol):
    """Where imagined transitions go."""

    def add(self, batch: Batch, *, keep: Tensor) -> None:
        """Append the rows that `keep` marks."""


class Rollouts:
    """Rollouts in a model under the same rules; one serves all of them, so that its step is compiled once.

    The branches go through a step in parts of some 2000, whose intermediate results a CPU's cache holds.
    """

    def __init__(
        self,
        model: GaussianDynamics,
        policy: Callable[[Tensor], Tensor],
        *,
        termination: TerminationFn,
        penalty: Penalty | Bellman,
        reward: RewardFn | None = None,
        prepare: Prepare = lambda step: step,
    ):
        """`prepare` turns a step into the one that is run, such as a compiled one."""
        self._model, self._policy = model, policy
        self._termination, self._penalty, self._reward = termination, penalty, reward
        self._run = prepare(self._step)

    def roll(
        self,
        starts: Tensor,
        into: Sink,
        *,
        horizon: int,
        coef: float | Tensor,
        limit: Tensor | None = None,
        ends: Sink | None = None,
    ) -> Metrics:
        """Branch from `starts` `(*S, B, D)` for up to `horizon` steps into a buffer, with rewards r - coef·u.

        Each step draws its next state from one random elite (TS1). A branch ends at a termination. It also
        ends at a state, reward or penalty that is not finite, and that transition is left out. All seeds roll
        B rows to the end and mark which ones count, so that random draws do not depend on when another seed's
        branches end. With `coef=0` and no limit each row is computed by one member instead of all.

        coef: a number, or one for each seed, `(*S,)`. limit: a branch also ends with the first transition
        whose u is larger, `(*S,)`; it counts and is no termination, so that its end bootstraps (NEUBAY's
        code, experience/collector.py). The rollout is over when all branches are. ends: a sink for the last
        step's rows, and which of them the horizon alone has ended.

        Returns means over the transitions that count, `(*S,)`: `penalty`, `reward` (before the penalty),
        `penalty_share` = coef·mean(u)/mean|r|, and `ended`, the share of branches that terminated; and as
        `largest` the largest |reward| that went into the buffer, after the penalty. With a limit also
        `truncated`, the share of branches that it ended, and `length`, the transitions of a branch.
        """
        if limit is None:
            return self._roll(starts, into, horizon, coef, None, ends)
        # How many steps there are depends on the data. One draw of the global stream seeds one for them.
        seed = int(torch.randint(1 << 62, ()))
        with torch.random.fork_rng([] if starts.device.type == "cpu" else [starts.device]):
            torch.manual_seed(seed)
            return self._roll(starts, into, horizon, coef, limit, ends)

    @torch.no_grad()
    def _roll(
        self,
        starts: Tensor,
        into: Sink,
        horizon: int,
        coef: float | Tensor,
        limit: Tensor | None,
        ends: Sink | None,
    ) -> Metrics:
        # laid out like what a step gives, since a program is made for each layout
        split = starts.tensor_split(_parts(starts), -2)
        parts = [x.clone(memory_format=torch.contiguous_format) for x in split]
        states = [(x, torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)) for x in parts]
        scale = _scale(coef, starts)
        elites = self._model.elite_weights() if scale is None and limit is None else None
        totals = torch.zeros(6, *starts.shape[:-2], device=starts.device)
        largest = torch.zeros_like(totals[0])
        for _ in range(horizon):
            found = [self._run(obs, alive, scale, limit, elites) for obs, alive in states]
            rows, keep, states, sums, peaks = (list(x) for x in zip(*found, strict=True))
            into.add(cat(rows), keep=torch.cat(keep, -1))
            for part, peak in zip(sums, peaks, strict=True):
                totals, largest = totals + part, torch.maximum(peak, largest)
            if limit is not None and not any(bool(alive.any()) for _, alive in states):
                break
        if ends is not None:
            ends.add(cat(rows), keep=torch.cat([alive for _, alive in states], -1))
        count, u, r, r_abs, ended, cut = totals
        n, branches = count.clamp(min=1), starts.shape[-2]
        metrics = {
            "penalty": u / n,
            "reward": r / n,
            "penalty_share": coef * u / r_abs.clamp(min=1e-8),
            "ended": ended / branches,
            "largest": largest,
        }
        return (
            metrics if limit is None else metrics | {"truncated": cut / branches, "length": count / branches}
        )

    @torch.no_grad()
    def _step(
        self, obs: Tensor, alive: Tensor, coef: Tensor | None, limit: Tensor | None, elites: Weights | None
    ) -> Stepped:
        """A step of some branches; `coef=None` is 0. The products alone may be of lower precision.

        Returns the transitions, and which of them count `(*S, B)`; where branches are now and which go on;
        sums over the rows that count, `(6, *S)`: their number, penalties, rewards, |rewards|, terminations,
        ends by the limit; and the largest |reward| after the penalty, `(*S,)`.
        """
        act = self._policy(obs)
        if elites is None:
            mean, std = self._model.predict(obs, act)
            next_obs, rew = self._model.draw(obs, mean, std)
        else:
            next_obs, rew = self._model.step(obs, act, weights=elites)
        with torch.autocast(obs.device.type, enabled=False):
            u = measure(self._penalty, obs, mean, std) if elites is None else torch.zeros_like(rew)
            if self._reward is not None:
                rew = self._reward(obs, act, next_obs)
            done = self._termination(obs, act, next_obs)
        penalised = rew if coef is None else rew - coef * u
        alive = alive & next_obs.isfinite().all(-1) & penalised.isfinite() & u.isfinite()
        cut = torch.zeros_like(done) if limit is None else (u > limit.unsqueeze(-1)) & ~done
        going_on = alive & ~done & ~cut
        counted = (torch.ones_like(u), u, rew, rew.abs(), done.to(u.dtype), cut.to(u.dtype))
        return (
            Batch(obs, act, penalised, next_obs, done.to(obs.dtype)),
            alive,
            # a finished branch stays where it is, so that it cannot reach infinity
            (torch.where(going_on.unsqueeze(-1), next_obs, obs), going_on),
            torch.stack([torch.where(alive, x, 0.0).sum(-1) for x in counted]),
            torch.where(alive, penalised.abs(), 0.0).amax(-1),
        )


def _scale(coef: float | Tensor, like: Tensor) -> Tensor | None:
    """The coefficient as a step takes it, a tensor, since a program is made for each number; None for 0."""
    if isinstance(coef, Tensor):
        return coef.unsqueeze(-1)
    return torch.tensor(coef, dtype=like.dtype, device=like.device) if coef else None


def _parts(starts: Tensor) -> int:
    """In how many parts branches go through a step; equal parts if possible, since each size is compiled."""
    if starts.device.type != "cpu":
        return 1
    n = starts.shape[-2]
    least = -(-n * math.prod(starts.shape[:-2]) // CHUNK)
    return next((k for k in range(least, 2 * least) if n % k == 0), least)


class Branches:
    """A sink that holds all rows of a rollout, and which of them count, in each seed."""

    def __init__(self) -> None:
        self._parts: list[Batch] = []
        self._keep: list[Tensor] = []

    def add(self, batch: Batch, *, keep: Tensor) -> None:
        """One step of all branches."""
        self._parts.append(batch)
        self._keep.append(keep)

    @property
    def rows(self) -> Batch:
        """Every step of every branch, `(*S, h·B, ...)`."""
        return cat(self._parts)

    @property
    def keep(self) -> Tensor:
        """Which of these rows come before the end of their branch, `(*S, h·B)`."""
        return torch.cat(self._keep, -1)


@torch.no_grad()
def uncertainty(
    model: GaussianDynamics,
    batch: Batch,
    keep: Tensor | None = None,
    penalty: Penalty | Bellman | None = None,
) -> Metrics:
    """Means of each penalty and of the aleatoric spread on a batch `(*S, B, ...)`, each `(*S,)`.

    keep: the rows that count, `(*S, B)`; a seed without one has NaN. penalty: a run's own; if it is no
    function of the prediction alone, its mean is there too, as `bellman`.
    """
    mean, std = model.predict(batch.obs, batch.act)
    weight = torch.ones_like(batch.rew, dtype=torch.bool) if keep is None else keep
    found = {name: f(mean, std) for name, f in {**PENALTIES, "aleatoric_std": aleatoric_std}.items()}
    if isinstance(penalty, Bellman):
        found[BELLMAN] = penalty(batch.obs, mean, std)
    return {name: torch.where(weight, u, 0.0).sum(-1) / weight.sum(-1) for name, u in found.items()}


@torch.no_grad()
def one_step_error(model: GaussianDynamics, batch: Batch) -> Tensor:
    """The error of the elites' mean next state: root mean square over dimensions, batch mean, `(*S,)`."""
    return row_errors(model, batch).mean(-1)


@torch.no_grad()
def row_errors(model: GaussianDynamics, batch: Batch) -> Tensor:
    """The same error of each row, `(*S, B)`."""
    mean, _ = model.predict(batch.obs, batch.act)
    error = model.elite_mean(mean)[..., :-1] - (batch.next_obs - batch.obs)
    return error.square().mean(-1).sqrt()
