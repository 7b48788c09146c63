"""How good a policy is, measured in environments of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mbo2o.envs import streams
from mbo2o.envs.disturb import DisturbConfig
from mbo2o.envs.faults import EnvironmentFault, Faults
from mbo2o.envs.lanes import Lane
from mbo2o.envs.make import EnvChoice
from mbo2o.types import Metrics


class Evaluator:
    """Plays whole episodes with a deterministic policy, S seeds at a time; each lane has its own environments and seeds.

    Every evaluation plays the same starts, so that curves do not jump with the luck of the draw: each of its episodes begins
    with a seed of its own, which the environment's `reset` is given, and which the global generators are set to. These stand
    after an evaluation where they stood before.
    """

    def __init__(
        self,
        env: str | EnvChoice,
        seeds: tuple[int, ...],
        episodes: int,
        seed: int,
        gamma: float,
        shaped: tuple[float, float] = (1.0, 0.0),
        disturb: DisturbConfig | None = None,
        faults: Faults | None = None,
    ):
        """`shaped` are the scale and shift of the rewards that the agent's values are about; returns stay raw.

        Of `disturb` only what concerns actions and states is played. While `faults` last, an evaluation in which an
        environment fails is played again, from the same starts.
        """
        world = disturb and disturb.world()
        self._seeds, self._gamma, self._shaped, self._faults = seeds, gamma, shaped, faults or Faults()
        self._n = int(np.prod(seeds, dtype=int))
        # far from the training lanes' seeds
        first = 10_000_019 + seed
        self._starts = [first + 1000 * k + e for k in range(self._n) for e in range(episodes)]
        with streams.private():
            streams.seed_globals(first)
            self._lanes = [Lane(env, start, world, self._faults, resumes=False) for start in self._starts]

    def unrepeatable(self) -> str | None:
        """What cannot be repeated of the environment's random draws, in words; None where all can be."""
        with streams.private():
            try:
                seeded, saved = self._lanes[0].follows(self._starts[0])
            except EnvironmentFault:
                return None  # it is met again where it can be mended
        if seeded and saved:
            return None
        text = "a seed does not settle its starts: the same run differs each time, and evaluations play other starts each time"
        if seeded:
            text = "its starts do not follow a saved random state: a restart goes on in other episodes than the run would have"
        cure = "draw in reset from self.np_random, from a generator that is an attribute, or from np.random"
        return f"environment {self._lanes[0].env_id!r}: {text} ({cure})"

    def __call__(
        self, policy: Callable[[Tensor], Tensor], value: Callable[[Tensor, Tensor], Tensor]
    ) -> Metrics:
        """Mean return and length `(*S,)`, and the agent's value beside the discounted return that followed.

        `q_over_return` is the first of the two over the second: 1 where the critics have grown to what the policy earns.
        `success` is the share of episodes in which the task said so at some step, where it says such things.

        policy: `(*S, B, D)` → `(*S, B, A)`; value: `(obs, act)` → `(*S, B)`.
        """
        while True:
            try:
                with streams.private():
                    return self._play(policy, value)
            except EnvironmentFault as e:
                self._faults.mend(e)

    def _play(self, policy: Callable[[Tensor], Tensor], value: Callable[[Tensor, Tensor], Tensor]) -> Metrics:
        lanes = self._lanes
        for lane, start in zip(lanes, self._starts, strict=True):
            streams.seed_globals(start)
            lane.start(start)
        alive, qs, rews = np.ones(len(lanes), bool), [], []
        while alive.any():
            obs = torch.from_numpy(np.stack([x.obs for x in lanes])).reshape(
                *self._seeds, -1, lanes[0].obs.shape[0]
            )
            with torch.no_grad():
                act = policy(obs)
                q = value(obs, act)
            rew, was_alive = np.zeros(len(lanes)), alive.copy()
            for i, a in enumerate(act.reshape(len(lanes), -1).cpu().numpy()):
                if alive[i]:
                    rew[i], _, terminated, truncated = lanes[i].step(a)
                    alive[i] = not (terminated or truncated)
            qs.append(np.where(was_alive, q.reshape(-1).cpu().numpy(), np.nan))
            rews.append(np.where(was_alive, rew, np.nan))
        returns, lengths = (
            np.array([x.episode_return for x in lanes]),
            np.array([x.length for x in lanes], float),
        )
        q_mean, mc_mean = self._values(np.array(qs), np.array(rews), lanes)

        def per_seed(x: np.ndarray) -> torch.Tensor:
            means = torch.as_tensor(x.reshape(self._n, -1).mean(-1), dtype=torch.float32)
            return means.reshape(self._seeds)

        spread = torch.as_tensor(returns.reshape(self._n, -1).std(-1), dtype=torch.float32).reshape(
            self._seeds
        )
        told = [x.success for x in lanes]
        success = {} if not told or None in told else {"success": per_seed(np.array(told, float))}
        return {
            "return": per_seed(returns),
            "return_std": spread,
            **success,
            "length": per_seed(lengths),
            "q": per_seed(q_mean),
            "mc_return": per_seed(mc_mean),
            "q_over_return": per_seed(q_mean) / per_seed(mc_mean),
        }

    def _values(self, q: np.ndarray, rew: np.ndarray, lanes: list[Lane]) -> tuple[np.ndarray, np.ndarray]:
        """Per episode: mean Q and mean discounted return, over states whose return is known.

        (T, L) each, NaN after the end. A time limit hides what would have followed, so the last 3/(1-γ) steps of a truncated
        episode are left out, unless that is all of it.
        """
        scale, shift = self._shaped
        tail = round(3 / max(1 - self._gamma, 1e-9))
        q_mean, mc_mean = np.zeros(len(lanes)), np.zeros(len(lanes))
        for i, lane in enumerate(lanes):
            n, back = lane.length, 0.0
            ret = np.zeros(n)
            for t in range(n - 1, -1, -1):
                ret[t] = back = scale * rew[t, i] + shift + self._gamma * back
            cut = lane.truncated and n > tail
            known = slice(0, n - tail if cut else n)
            q_mean[i], mc_mean[i] = q[known, i].mean(), ret[known].mean()
        return q_mean, mc_mean
