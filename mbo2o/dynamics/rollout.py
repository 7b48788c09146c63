"""Branched rollouts in the learned model, with a penalty on its uncertainty (MBPO, MOPO)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from mbo2o.dynamics.model import CHUNK, GaussianDynamics, Weights
from mbo2o.ensemble.uncertainty import PENALTIES, Penalty, aleatoric_std
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
        penalty: Penalty,
        reward: RewardFn | None = None,
        prepare: Prepare = lambda step: step,
    ):
        """`prepare` turns a step into the one that is run, such as a compiled one."""
        self._model, self._policy = model, policy
        self._termination, self._penalty, self._reward = termination, penalty, reward
        self._run = prepare(self._step)

    @torch.no_grad()
    def roll(self, starts: Tensor, into: Sink, *, horizon: int, coef: float) -> Metrics:
        """Branch from `starts` `(*S, B, D)` for up to `horizon` steps into a buffer, with rewards r - coef·u.

        Each step draws its next state from one random elite (TS1). A branch ends at a termination. It also
        ends at a state, reward or penalty that is not finite, and that transition is left out. All seeds roll
        B rows to the end and mark which ones count, so that random draws do not depend on when another seed's
        branches end. With `coef=0` each row is computed by one member instead of all.

        Returns means over the transitions that count, `(*S,)`: `penalty`, `reward` (before the penalty),
        `penalty_share` = coef·mean(u)/mean|r|, and `ended`, the share of branches that terminated; and as
        `largest` the largest |reward| that went into the buffer, after the penalty.
        """
        # laid out like what a step gives, since a program is made for each layout
        split = starts.tensor_split(_parts(starts), -2)
        parts = [x.clone(memory_format=torch.contiguous_format) for x in split]
        states = [(x, torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)) for x in parts]
        # tensors, since a program is made for each number; and None, since there are two forms
        scale = torch.tensor(coef, dtype=starts.dtype, device=starts.device) if coef else None
        elites = None if coef else self._model.elite_weights()
        totals = torch.zeros(5, *starts.shape[:-2], device=starts.device)
        largest = torch.zeros_like(totals[0])
        for _ in range(horizon):
            found = [self._run(obs, alive, scale, elites) for obs, alive in states]
            rows, keep, states, sums, peaks = (list(x) for x in zip(*found, strict=True))
            into.add(cat(rows), keep=torch.cat(keep, -1))
            for part, peak in zip(sums, peaks, strict=True):
                totals, largest = totals + part, torch.maximum(peak, largest)
        count, u, r, r_abs, ended = totals
        n = count.clamp(min=1)
        return {
            "penalty": u / n,
            "reward": r / n,
            "penalty_share": coef * u / r_abs.clamp(min=1e-8),
            "ended": ended / starts.shape[-2],
            "largest": largest,
        }

    @torch.no_grad()
    def _step(self, obs: Tensor, alive: Tensor, coef: Tensor | None, elites: Weights | None) -> Stepped:
        """A step of some branches; `coef=None` is 0. The products alone may be of lower precision.

        Returns the transitions, and which of them count `(*S, B)`; where branches are now and which go on;
        sums over the rows that count, `(5, *S)`: their number, penalties, rewards, |rewards|, terminations;
        and the largest |reward| after the penalty, `(*S,)`.
        """
        act = self._policy(obs)
        if coef is not None:
            mean, std = self._model.predict(obs, act)
            next_obs, rew = self._model.draw(obs, mean, std)
        else:
            next_obs, rew = self._model.step(obs, act, weights=elites)
        with torch.autocast(obs.device.type, enabled=False):
            u = torch.zeros_like(rew) if coef is None else self._penalty(mean, std)
            if self._reward is not None:
                rew = self._reward(obs, act, next_obs)
            done = self._termination(obs, act, next_obs)
        penalised = rew if coef is None else rew - coef * u
        alive = alive & next_obs.isfinite().all(-1) & penalised.isfinite()
        going_on = alive & ~done
        counted = (torch.ones_like(u), u, rew, rew.abs(), done.to(u.dtype))
        return (
            Batch(obs, act, penalised, next_obs, done.to(obs.dtype)),
            alive,
            # a finished branch stays where it is, so that it cannot reach infinity
            (torch.where(going_on.unsqueeze(-1), next_obs, obs), going_on),
            torch.stack([torch.where(alive, x, 0.0).sum(-1) for x in counted]),
            torch.where(alive, penalised.abs(), 0.0).amax(-1),
        )


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
def uncertainty(model: GaussianDynamics, batch: Batch, keep: Tensor | None = None) -> Metrics:
    """Means of each penalty and of the aleatoric spread on a batch `(*S, B, ...)`, each `(*S,)`.

    keep: the rows that count, `(*S, B)`; a seed without one has NaN.
    """
    mean, std = model.predict(batch.obs, batch.act)
    weight = torch.ones_like(batch.rew, dtype=torch.bool) if keep is None else keep
    measures = {**PENALTIES, "aleatoric_std": aleatoric_std}
    return {
        name: torch.where(weight, f(mean, std), 0.0).sum(-1) / weight.sum(-1) for name, f in measures.items()
    }


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
