"""How good a policy is, measured in environments of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mbo2o.envs import streams
from mbo2o.envs.disturb import DisturbConfig
from mbo2o.envs.faults import EnvironmentFault, Faults
from mbo2o.envs.lanes import Lane
from mbo2o.envs.make import EnvChoice
from mbo2o.types import Metrics, RewardView
from mbo2o.verify import traces

RAW = RewardView()
Policy = Callable[[Tensor], Tensor]
"""Observations `(*S, B, D)` → actions `(*S, B, A)`."""
Value = Callable[[Tensor, Tensor], Tensor]
"""(obs, act) → estimated discounted return `(*S, B)`."""


@dataclass(frozen=True)
class Visited:
    """The first episode of each seed in an evaluation, step by step."""

    obs: Tensor
    """`(*S, T, D)`, T being the longest one's length."""
    act: Tensor
    """`(*S, T, A)`."""
    next_obs: Tensor
    """`(*S, T, D)`."""
    played: Tensor
    """`(*S, T)` bool: the steps before an episode's end."""


class Evaluator:
    """Plays whole episodes with a deterministic policy; each seed has environments of its own.

    Every evaluation plays the same starts, so that curves do not jump with random starts: each episode begins
    with a seed of its own, which is given to the environment's `reset` and to the global generators. An
    evaluation leaves the global generators of NumPy and Python where they stood before.
    """

    def __init__(
        self,
        env: str | EnvChoice,
        seeds: tuple[int, ...],
        episodes: int,
        seed: int,
        gamma: float,
        disturb: DisturbConfig | None = None,
        faults: Faults | None = None,
    ):
        """Make `episodes` environments for each seed.

        disturb: only its noise on actions and states is applied; returns are what the task pays. faults: as
        long as it allows, an evaluation in which an environment fails is repeated from the same starts.
        """
        self._seeds, self._gamma, self._faults = seeds, gamma, faults or Faults()
        self._n = int(np.prod(seeds, dtype=int))
        first = 10_000_019 + seed  # far from the seeds of the training lanes
        self._path: list[tuple[np.ndarray, ...]] = []
        self._starts = [first + 1000 * k + e for k in range(self._n) for e in range(episodes)]
        world = disturb and disturb.world()
        with streams.private():
            streams.seed_globals(first)
            self._lanes = [Lane(env, start, world, self._faults, resumes=False) for start in self._starts]

    def unrepeatable(self) -> str | None:
        """A sentence on random draws of the environment that cannot be repeated; None if all can be."""
        with streams.private():
            return self._lanes[0].unrepeatable(self._starts[0])

    def check_playable(self) -> None:
        """Raise `UserError` if its episodes do not follow from a seed and the actions alone."""
        with streams.private():
            traces.check(self._lanes[0], self._starts[0])

    def __call__(self, policy: Policy, value: Value, rewards: RewardView = RAW) -> Metrics:
        """Play all episodes; each metric is `(*S,)`, a mean over the seed's episodes, but for `returns`.

        `return`, `return_std` and `length` count the task's own rewards; `returns` `(*S, E)` has the return
        of each episode, always from the same E starts. `q` is the agent's value and
        `mc_return` the discounted sum of the rewards that followed, shown as `rewards` says, both averaged
        over states; `q_over_return` is their ratio. `success` is the share of episodes in which the task
        reported success at some step, and is missing where the task reports none.
        """
        while True:
            try:
                with streams.private():
                    return self._play(policy, value, rewards)
            except EnvironmentFault as e:
                self._faults.accept(e)

    def _play(self, policy: Policy, value: Value, rewards: RewardView) -> Metrics:
        q, rew = self._episodes(policy, value)
        q_mean, mc_mean = self._values(q, rew, rewards)
        returns = np.array([lane.episode_return for lane in self._lanes])
        success = [lane.success for lane in self._lanes]
        reported = (
            {} if not success or None in success else {"success": self._means(np.array(success, float))}
        )
        spread = torch.as_tensor(returns.reshape(self._n, -1).std(-1), dtype=torch.float32)
        return {
            "return": self._means(returns),
            "return_std": spread.reshape(self._seeds),
            "returns": torch.as_tensor(returns.reshape(*self._seeds, -1), dtype=torch.float32),
            **reported,
            "length": self._means(np.array([lane.length for lane in self._lanes], float)),
            "q": self._means(q_mean),
            "mc_return": self._means(mc_mean),
            "q_over_return": self._means(q_mean) / self._means(mc_mean),
        }

    def _episodes(self, policy: Policy, value: Value) -> tuple[np.ndarray, np.ndarray]:
        """Play all episodes to their end: values and rewards `(T, L)`, NaN after an episode's end."""
        lanes = self._lanes
        for lane, start in zip(lanes, self._starts, strict=True):
            streams.seed_globals(start)
            lane.start(start)
        alive = np.ones(len(lanes), bool)
        qs, rews, was_alive = [], [], []
        self._path = []
        while alive.any():
            obs = torch.from_numpy(np.stack([x.obs for x in lanes])).reshape(
                *self._seeds, -1, lanes[0].obs_dim
            )
            with torch.no_grad():
                act = policy(obs)
                qs.append(value(obs, act).reshape(-1))
            rews.append(np.full(len(lanes), np.nan))
            was_alive.append(alive.copy())
            first = slice(None, None, len(lanes) // self._n)
            before = np.stack([x.obs for x in lanes[first]])
            for i, a in enumerate(act.reshape(len(lanes), -1).cpu().numpy()):
                if alive[i]:
                    rews[-1][i], _, terminated, truncated = lanes[i].step(a)
                    alive[i] = not (terminated or truncated)
            after = np.stack([x.obs for x in lanes[first]])
            acts = act.reshape(len(lanes), -1)[first].cpu().numpy()
            self._path.append((before, acts, after, was_alive[-1][first]))
        q = torch.stack(qs).cpu().numpy()  # values wait on their device: one copy for an evaluation
        return np.where(np.array(was_alive), q, np.nan), np.array(rews)

    def played(self) -> traces.Played:
        """All episodes of the last evaluation, as they can be played again."""
        return traces.Played.of(self._lanes, self._starts)

    def visited(self) -> Visited:
        """The first episodes of the last evaluation."""
        parts = [torch.from_numpy(np.stack(x, 1)) for x in zip(*self._path, strict=True)]
        return Visited(*(x.reshape(*self._seeds, *x.shape[1:]) for x in parts))

    def _means(self, x: np.ndarray) -> Tensor:
        """Means over each seed's episodes, `(L,)` → `(*S,)`."""
        return torch.as_tensor(x.reshape(self._n, -1).mean(-1), dtype=torch.float32).reshape(self._seeds)

    def _values(self, q: np.ndarray, rew: np.ndarray, rewards: RewardView) -> tuple[np.ndarray, np.ndarray]:
        """Mean value and mean discounted return of each episode, from `(T, L)`, where the return is known.

        A time limit hides the rewards that would have followed, so the last 3/(1-γ) steps of a truncated
        episode are left out, unless that is the whole episode.
        """
        tail = round(3 / max(1 - self._gamma, 1e-9))
        q_mean, mc_mean = np.zeros(len(self._lanes)), np.zeros(len(self._lanes))
        for i, lane in enumerate(self._lanes):
            n, later = lane.length, 0.0
            ret = np.zeros(n)
            for t in range(n - 1, -1, -1):
                ret[t] = later = rewards(rew[t, i]) + self._gamma * later
            known = slice(0, n - tail if lane.truncated and n > tail else n)
            q_mean[i], mc_mean[i] = q[known, i].mean(), ret[known].mean()
        return q_mean, mc_mean
