"""Branched rollouts in the learned model, with a penalty on its uncertainty (MBPO, MOPO)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from mbo2o.dynamics.model import GaussianDynamics
from mbo2o.ensemble.uncertainty import PENALTIES, Penalty, aleatoric_std
from mbo2o.types import Batch, Metrics, RewardFn, TerminationFn, cat


class Sink(Protocol):
    """Where imagined transitions go."""

    def add(self, batch: Batch, *, keep: Tensor) -> None:
        """Append the rows that `keep` marks."""


@torch.no_grad()
def rollout(
    model: GaussianDynamics,
    policy: Callable[[Tensor], Tensor],
    starts: Tensor,
    into: Sink,
    *,
    horizon: int,
    termination: TerminationFn,
    penalty: Penalty,
    coef: float,
    reward: RewardFn | None = None,
) -> Metrics:
    """Branch from `starts` `(*S, B, D)` for up to `horizon` steps, into a buffer, with rewards r - coef·u.

    Each step draws its next state from one random elite (TS1). A branch ends at a termination. It also ends
    at a state, reward or penalty that is not finite, and that transition is left out. All seeds roll B rows
    to the end and mark which ones count, so that random draws do not depend on when another seed's branches
    end. With `coef=0` each row is computed by one member instead of all.

    Returns means over the transitions that count, `(*S,)`: `penalty`, `reward` (before the penalty),
    `penalty_share` = coef·mean(u)/mean|r|, and `ended`, the share of branches that terminated; and as
    `largest` the largest |reward| that went into the buffer, after the penalty.
    """
    obs = starts
    alive = torch.ones(starts.shape[:-1], dtype=torch.bool, device=starts.device)
    ended = torch.zeros_like(alive)
    count = torch.zeros(starts.shape[:-2], device=starts.device)
    u_sum, r_sum, r_abs, largest = (torch.zeros_like(count) for _ in range(4))
    for _ in range(horizon):
        act = policy(obs)
        if coef:
            mean, std = model.predict(obs, act)
            u = penalty(mean, std)
            next_obs, rew = model.draw(obs, mean, std)
        else:
            u = torch.zeros_like(alive, dtype=obs.dtype)
            next_obs, rew = model.step(obs, act)
        if reward is not None:
            rew = reward(obs, act, next_obs)
        done = termination(obs, act, next_obs)
        penalised = rew - coef * u
        alive = alive & next_obs.isfinite().all(-1) & penalised.isfinite()
        into.add(Batch(obs, act, penalised, next_obs, done.to(obs.dtype)), keep=alive)
        for total, x in ((count, torch.ones_like(u)), (u_sum, u), (r_sum, rew), (r_abs, rew.abs())):
            total += torch.where(alive, x, 0.0).sum(-1)
        largest = torch.maximum(largest, torch.where(alive, penalised.abs(), 0.0).amax(-1))
        ended = ended | (alive & done)
        alive = alive & ~done
        # a finished branch stays where it is, so that it cannot reach infinity
        obs = torch.where(alive.unsqueeze(-1), next_obs, obs)
    n = count.clamp(min=1)
    return {
        "penalty": u_sum / n,
        "reward": r_sum / n,
        "penalty_share": coef * u_sum / r_abs.clamp(min=1e-8),
        "ended": ended.to(count.dtype).mean(-1),
        "largest": largest,
    }


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
    mean, _ = model.predict(batch.obs, batch.act)
    error = model.elite_mean(mean)[..., :-1] - (batch.next_obs - batch.obs)
    return error.square().mean(-1).sqrt().mean(-1)
