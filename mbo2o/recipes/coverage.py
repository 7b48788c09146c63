"""Where the policy goes: how far from the data its visited and imagined states lie, and the model's error.

It is also where the penalty is weighed: values with and without it, over the same imagined branches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from mbo2o.dynamics.bellman import Bellman, measure
from mbo2o.dynamics.coverage import HELD_OUT, binned, yardstick
from mbo2o.dynamics.fit import FitConfig, holdout
from mbo2o.dynamics.model import GaussianDynamics
from mbo2o.dynamics.rollout import Branches, Rollouts, row_errors
from mbo2o.ensemble.uncertainty import Penalty, epistemic_std
from mbo2o.run.evaluate import Visited
from mbo2o.run.turns import Run
from mbo2o.types import Batch, Metrics

BINS, STATES = 40, 1000
"""Bins of an episode's steps, and the most states of an episode that are looked at."""
BRANCHES, LENGTH = 64, 100
"""Branches that are imagined for a look, and their steps."""
DEPTHS = (0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 99)
"""The steps of a branch that are logged."""


class Coverage:
    """A look at each evaluation's first episode per seed, and at branches that the same policy imagines.

    Branches begin in held-out rows, or in the latest real steps once there are enough, and are longer than
    those that the agent learns from. A look draws from a copy of the random stream, and learns nothing, so
    that a run with looks computes the same as one without.

    Both sets of values come from the same branches: the discounted sum of `LENGTH` rewards r, and of r - λ u.
    Their difference is the *uncertainty value error*, as far as the branches reach; λ is `coef` in all
    phases, so that it shows how u falls. A critic's Q would add the error of the critic.
    """

    def __init__(
        self,
        run: Run,
        model: GaussianDynamics,
        rollouts: Rollouts,
        fit: FitConfig,
        penalty: Penalty | Bellman,
        coef: float,
        gamma: float,
    ):
        self._run, self._model, self._rollouts = run, model, rollouts
        self._penalty, self._coef, self._gamma = penalty, coef, gamma
        self._yardstick = yardstick(run.dataset, fit)
        held = holdout(run.dataset.index, replace(fit, max_holdout=min(BRANCHES, HELD_OUT)))
        self._starts = run.dataset.rows(held.expand(*run.spec.seeds, -1)).obs

    def __call__(self, path: Visited) -> Metrics:
        """What the log holds of an evaluation: vectors over bins of steps `(*S, BINS)`, and over `DEPTHS`."""
        device = torch.device(self._run.spec.device)
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            marks = self._yardstick.marks().expand(*self._run.spec.seeds, -1)
            return self._visited(path) | self._imagined() | {"marks": marks}

    def _visited(self, path: Visited) -> Metrics:
        length = path.played.shape[-1]
        step = torch.arange(0, length, -(-length // STATES), device=self._run.spec.device)
        obs, act, next_obs = (x.to(step.device)[..., step, :] for x in (path.obs, path.act, path.next_obs))
        played = path.played.to(step.device)[..., step]
        b = Batch(obs, act, torch.zeros_like(obs[..., 0]), next_obs, torch.zeros_like(obs[..., 0]))
        width = -(-length // BINS)
        distance = self._yardstick.distances(b.obs)
        found = self._known(distance, b.obs, b.act) | {"error": row_errors(self._model, b)}
        middle = (torch.arange(BINS, device=step.device) + 0.5) * width
        metrics = {name: binned(x, played, step // width, BINS) for name, x in found.items()}
        metrics["step"] = torch.where(metrics["distance"].isnan(), torch.nan, middle)
        return {f"visited/{name}": x for name, x in metrics.items()}

    def _imagined(self) -> Metrics:
        starts = self._starts
        if len(self._run.online) >= starts.shape[-2]:
            starts = self._run.online.latest(starts.shape[-2]).obs
        branches = Branches()
        self._rollouts.roll(starts, branches, horizon=LENGTH, coef=0.0)
        rows, keep = branches.rows, branches.keep
        mean, std = self._model.predict(rows.obs, rows.act)
        by_step: Callable[[Tensor], Tensor] = lambda x: x.unflatten(-1, (LENGTH, -1))  # noqa: E731
        u, alive = by_step(measure(self._penalty, rows.obs, mean, std)), by_step(keep)
        discount = self._gamma ** torch.arange(LENGTH, device=u.device).unsqueeze(-1)

        def value(reward: Tensor) -> Tensor:
            return torch.where(alive, discount * reward, 0.0).sum(-2).mean(-1)

        plain, penalised = value(by_step(rows.rew)), value(by_step(rows.rew) - self._coef * u)
        depths = torch.arange(LENGTH, device=u.device).repeat_interleave(starts.shape[-2])
        found = self._known(self._yardstick.distances(rows.obs), rows.obs, rows.act)
        at = torch.tensor(DEPTHS, device=u.device)
        metrics = {name: binned(x, keep, depths, LENGTH)[..., at] for name, x in found.items()}
        metrics["step"] = at.to(u.dtype).expand(metrics["distance"].shape)
        return {f"imagined/{name}": x for name, x in metrics.items()} | {
            "value": plain,
            "value_penalised": penalised,
            "uncertainty_value_error": plain - penalised,
        }

    def _known(self, distance: Tensor, obs: Tensor, act: Tensor) -> Metrics:
        spread = epistemic_std(*self._model.predict(obs, act))
        return {"distance": distance, "level": self._yardstick.levels(distance), "spread": spread}
