"""All that a log says of a policy, as the metrics of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mbo2o.agents import Agent
from mbo2o.data.dataset import TransitionDataset, returns_to_go
from mbo2o.judge.fqe import FittedQ
from mbo2o.judge.imagined import Imagined
from mbo2o.judge.split import starts
from mbo2o.types import Metrics, RewardView, UserError

STARTS = 64
"""Most episodes from whose first observations values are estimated."""
ROWS = 2000
"""Most held-out rows that are looked at."""


class Judge:
    """Measures an agent on the log; each call depends on the agent and the log alone, and draws nothing.

    `holdout_action_error` is the mean squared distance of the policy's actions from those of held-out rows,
    per number; `holdout_loglik` the log-likelihood of those actions, where the policy has a density;
    `holdout_td_error` the mean squared TD error of the agent's own values on held-out rows, in the units that
    it learns from. `fqe` and `model_value` are two independent estimates of the policy's discounted return
    from the log's starts, in the task's own units, each with `_low` and `_high`; `behaviour_value` is what
    the recorded policy earned from there.
    """

    def __init__(self, rows: TransitionDataset, held: TransitionDataset, gamma: float, seed: int):
        """`rows`: those that are learned from; `held`: those that are not. Both have the task's rewards."""
        self._gamma, self._held = gamma, held
        self._starts = starts(rows, STARTS)
        self._fqe = FittedQ(rows, gamma, seed)
        try:
            self._model: Imagined | None = Imagined(rows, gamma, seed)
        except UserError:  # too few rows for a model
            self._model = None
        whole = returns_to_go(rows, gamma)
        first = torch.cat([torch.ones(1, dtype=torch.bool), rows.episode[1:] != rows.episode[:-1]])
        known = whole[first & whole.isfinite()]
        self._behaviour = float(known.mean()) if len(known) else math.nan

    def __call__(self, agent: Agent, rewards: RewardView) -> Metrics:
        """The metrics, `(*S,)` each; those that are not known for this agent are left out."""
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            found = self._on_held_out(agent, rewards)
            for name, estimate in (("fqe", self._fqe), ("model_value", self._model)):
                if estimate is not None:
                    found |= self._values(agent, name, estimate)
            found["behaviour_value"] = torch.full(agent.spec.seeds, self._behaviour)
        known = {name: x for name, x in found.items() if not bool(x.isnan().all())}
        return {name: x.to(torch.float32) for name, x in known.items()}

    def _on_held_out(self, agent: Agent, rewards: RewardView) -> Metrics:
        data = self._held
        index = data.index[torch.linspace(0, len(data) - 1, min(ROWS, len(data))).round().long()]
        b = data.rows(index.expand(*agent.spec.seeds, -1)).map(lambda x: x.to(agent.spec.device))
        act, after = agent.act(b.obs), agent.act(b.next_obs)
        target = rewards(b.rew) + self._gamma * (1 - b.done) * agent.value(b.next_obs, after)
        found = {
            "holdout_action_error": (act - b.act).square().mean((-2, -1)),
            "holdout_td_error": (target - agent.value(b.obs, b.act)).square().mean(-1),
        }
        density = getattr(getattr(agent, "actor", None), "log_prob", None)
        if density is not None:
            found["holdout_loglik"] = density(agent.observe(b.obs), b.act).mean(-1)
        return {name: x.cpu() for name, x in found.items()}

    def _values(
        self,
        agent: Agent,
        name: str,
        estimate: Callable[[Callable[[Tensor], Tensor], Tensor], tuple[float, float, float]],
    ) -> Metrics:
        """One estimate for each seed: its middle, low and high, `(*S,)`."""
        seeds = agent.spec.seeds
        n = math.prod(seeds)
        found = []
        for k in range(n):

            def policy(obs: Tensor, k: int = k) -> Tensor:
                act = agent.act(obs.to(agent.spec.device).expand(*seeds, *obs.shape))
                return act.reshape(n, *act.shape[-2:])[k].cpu()

            found.append(estimate(policy, self._starts))
        parts = torch.tensor(found).T.reshape(3, *seeds)
        return dict(zip((name, f"{name}_low", f"{name}_high"), parts, strict=True))
