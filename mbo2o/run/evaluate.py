"""How good a policy is, measured in environments of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mbo2o.data.io.goals import sparse_maze
from mbo2o.types import Metrics, UserError

from .disturb import DisturbConfig
from .faults import EnvironmentFault, Faults
from .lanes import Lane

REFERENCES: dict[str, dict[str, tuple[float, float]]] = {
    # random and expert return behind D4RL's normalised score, of the -v2 tasks (d4rl/infos.py); sparse mazes have
    # antmaze's, 100 times the success rate, PointMaze too (D4RL's maze2d counts the steps at a goal that ends nothing)
    "d4rl-v2": {
        "Hopper": (-20.272305, 3234.3),
        "HalfCheetah": (-280.178953, 12135.0),
        "Walker2d": (1.629008, 4592.3),
        "Ant": (-325.6, 3879.7),
        "PointMaze": (0.0, 1.0),
        "AntMaze": (0.0, 1.0),
    },
}
"""Named pairs (return that scores 0, return that scores 100). Rewards of -v5 tasks differ a little from -v2: name the set."""


def normalised_score(returns: Tensor, env_id: str, reference: str) -> Tensor:
    """100 (J - low) / (high - low); NaN where the set has no entry for the task. UserError for an unknown set."""
    if reference not in REFERENCES:
        raise UserError(f"reference set {reference!r} is unknown; choices: {', '.join(REFERENCES)}")
    task = sparse_maze(env_id) or env_id.split("-")[0]
    low, high = REFERENCES[reference].get(task, (float("nan"), float("nan")))
    return 100 * (returns - low) / (high - low)


class Evaluator:
    """Plays whole episodes with a deterministic policy, S seeds at a time; each lane has its own environments and seeds.

    Every evaluation plays the same starts, so that curves do not jump with the luck of the draw.
    """

    def __init__(
        self,
        env_id: str,
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
        lane = lambda seed: Lane(env_id, seed, world, self._faults)  # noqa: E731
        self._lanes = [[lane(first + 1000 * k + e) for e in range(episodes)] for k in range(self._n)]
        self._starts = [[lane.state() for lane in lanes] for lanes in self._lanes]

    def __call__(self, policy: Callable[[Tensor], Tensor], value: Callable[[Tensor, Tensor], Tensor]) -> Metrics:
        """Mean return and length `(*S,)`, and the agent's value beside the discounted return that followed.

        policy: `(*S, B, D)` → `(*S, B, A)`; value: `(obs, act)` → `(*S, B)`.
        """
        while True:
            try:
                return self._play(policy, value)
            except EnvironmentFault as e:
                self._faults.mend(e)

    def _play(self, policy: Callable[[Tensor], Tensor], value: Callable[[Tensor, Tensor], Tensor]) -> Metrics:
        lanes = [lane for row, starts in zip(self._lanes, self._starts, strict=True) for lane in _rewind(row, starts)]
        alive, qs, rews = np.ones(len(lanes), bool), [], []
        while alive.any():
            obs = torch.from_numpy(np.stack([x.obs for x in lanes])).reshape(*self._seeds, -1, lanes[0].obs.shape[0])
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
        returns, lengths = np.array([x.episode_return for x in lanes]), np.array([x.length for x in lanes], float)
        q_mean, mc_mean = self._values(np.array(qs), np.array(rews), lanes)
        per_seed = lambda x: torch.as_tensor(x.reshape(self._n, -1).mean(-1), dtype=torch.float32).reshape(self._seeds)  # noqa: E731
        spread = torch.as_tensor(returns.reshape(self._n, -1).std(-1), dtype=torch.float32).reshape(self._seeds)
        return {
            "return": per_seed(returns),
            "return_std": spread,
            "length": per_seed(lengths),
            "q": per_seed(q_mean),
            "mc_return": per_seed(mc_mean),
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


def _rewind(lanes: list[Lane], starts: list[tuple[dict[str, Tensor], str]]) -> list[Lane]:
    for lane, start in zip(lanes, starts, strict=True):
        lane.load(*start)
    return lanes
