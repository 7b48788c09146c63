"""A policy's return in a dynamics model that is fitted to the log, with the spread of its members."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mbo2o.data.dataset import TransitionDataset
from mbo2o.dynamics.fit import FitConfig, fit
from mbo2o.dynamics.learned_termination import LearnedTermination
from mbo2o.dynamics.model import DynamicsConfig, GaussianDynamics
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.types import Spec

MEMBERS = 5
LONGEST = 300
"""Most steps of an imagined episode."""
FIT = FitConfig(batch=128, patience=3, min_updates=200, max_updates=1000, epoch_updates=100)


class Imagined:
    """A small ensemble, each member of which is a world of its own; it is not the model of any recipe.

    Observations and rewards are kept inside what was recorded, so that a member that errs does not make
    numbers without bounds. Episodes end where a classifier of the log's terminal rows says so.
    """

    def __init__(self, data: TransitionDataset, gamma: float, seed: int):
        """Fit the model to `data`, rows with the task's own rewards and without a seed axis.

        Raises `UserError` for too few rows.
        """
        self._gamma, self._seed = gamma, seed
        lengths = torch.bincount(data.episode)
        self.horizon = min(LONGEST, int(lengths.max()), math.ceil(3 / max(1 - gamma, 1e-2)))
        b = data.rows(data.index)
        self._low, self._high = (
            x.amin(0) if low else x.amax(0) for x, low in ((b.obs, True), (b.obs, False))
        )
        self._rewards = float(b.rew.min()), float(b.rew.max())
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            cfg = DynamicsConfig(MEMBERS, MEMBERS, MLPConfig(hidden=[64, 64], activation="silu"))
            self.model = GaussianDynamics(Spec(data.obs_dim, data.act_dim), cfg)
            fit(self.model, [(data, 1.0)], FIT)
            ends = bool(b.done.any()) and not bool(b.done.all())
            self._ended = LearnedTermination.fit(b.obs, b.act, b.next_obs, b.done) if ends else None

    @torch.no_grad()
    def __call__(self, policy: Callable[[Tensor], Tensor], starts: Tensor) -> tuple[float, float, float]:
        """The policy's discounted return of `horizon` steps from `starts` `(n, D)`: mean, low and high.

        policy: observations `(n, D)` → actions `(n, A)` in [-1, 1]. Low and high are two standard deviations
        of the members' values away from their mean: what the ensemble does not know, and not what all
        members have wrong.
        """
        rng = torch.Generator().manual_seed(self._seed)
        n = len(starts)
        obs = starts.repeat(MEMBERS, 1)
        own = torch.arange(MEMBERS).repeat_interleave(n)
        rows = torch.arange(MEMBERS * n)
        total, alive = torch.zeros(MEMBERS * n), torch.ones(MEMBERS * n)
        for t in range(self.horizon):
            act = policy(obs)
            mean, std = (x[own, rows] for x in self.model.predict(obs, act))
            out = mean + std * torch.randn(mean.shape, generator=rng)
            after = torch.minimum(torch.maximum(obs + out[:, :-1], self._low), self._high)
            total += alive * self._gamma**t * out[:, -1].clamp(*self._rewards)
            if self._ended is not None:
                alive = alive * (~self._ended(obs, act, after)).float()
            obs = after
        values = total.view(MEMBERS, n).mean(-1)
        spread = 2 * float(values.std())
        return float(values.mean()), float(values.mean()) - spread, float(values.mean()) + spread
