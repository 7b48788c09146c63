"""Offline transitions in memory: where episodes end, which next observations are known, and batches of them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbo2o.data import schema
from mbo2o.data.io import d4rl, minari
from mbo2o.types import Batch, UserError

MINARI_ID = re.compile(r"[-\w]+(/[-\w]+)*-v\d+")


@dataclass(frozen=True, eq=False)
class TransitionDataset:
    """N transitions in the order they were collected, and a `Source` of batches.

    Make one with `load` or `from_arrays`. Three things are kept apart: the task ended (`terminated`), the record ended
    while the task went on (`truncated`), and nobody knows what followed (not `valid_next`). `sample` never draws the
    last kind.
    """

    packed: Tensor
    """`(N, 2D + A + 2)` float32, columns obs, act, rew, next_obs, done: a batch is then one gather. `with_returns` adds a
    column, the return that followed."""
    obs_dim: int
    act_dim: int
    terminated: Tensor
    """`(N,)` bool: the task ended here."""
    truncated: Tensor
    """`(N,)` bool: the episode ended here, but the task did not; never true where `terminated` is."""
    valid_next: Tensor
    """`(N,)` bool: `next_obs` is what followed; where false it is NaN."""
    episode: Tensor
    """`(N,)` int64: from 0, counted in file order."""
    index: Tensor
    """`(U,)` int64: the rows with `valid_next`, the ones fit for TD and dynamics."""
    attrs: schema.Attrs = field(default_factory=dict)
    """What the file says of itself: `env_id` and the like."""
    seeds: tuple[int, ...] = ()
    """Leading axes of what `sample` returns."""

    @classmethod
    def from_arrays(
        cls,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        terminals: np.ndarray,
        timeouts: np.ndarray | None = None,
        next_observations: np.ndarray | None = None,
        attrs: schema.Attrs | None = None,
    ) -> TransitionDataset:
        """Build from rows in time order: `(N, D)`, `(N, A)` in [-1, 1], `(N,)`, `(N,)`; flags are bool or 0 and 1.

        Where episodes end: at `terminals`, and at `timeouts` when given, which are believed. Without `timeouts` cuts
        are looked for: with `next_observations`, a row that is not followed by its own next observation was truncated;
        without, the attribute `max_episode_steps` splits if it is there. With none of the three a cut cannot be seen,
        and the row before it pairs two episodes: give one of them.

        What followed: `next_observations` where given (NaN rows are unknown), otherwise the next row's observation
        inside an episode. The last row of an episode is then unknown, also where it terminated: its TD target needs no
        next observation, but the reset that stands in the next row would poison a dynamics model.

        Raises `UserError` for what `schema.check` refuses, and when not one next observation is known.
        """
        given = {
            "observations": observations,
            "actions": actions,
            "rewards": rewards,
            "terminals": terminals,
            "timeouts": timeouts,
            "next_observations": next_observations,
        }
        fields = schema.check({key: x for key, x in given.items() if x is not None}, "arrays")
        attrs = dict(attrs or {})
        obs, act, terminated = fields["observations"], fields["actions"], fields["terminals"]
        truncated = _truncated(fields, attrs)
        end = terminated | truncated
        next_obs = fields.get("next_observations")
        if next_obs is None:
            next_obs = np.full_like(obs, np.nan)
            inside = ~end[:-1]
            next_obs[:-1][inside] = obs[1:][inside]
        valid_next = np.isfinite(next_obs).all(1)
        if not valid_next.any():
            raise UserError("arrays: not one next observation is known; give next_observations, or longer episodes")
        packed = np.concatenate([obs, act, fields["rewards"][:, None], next_obs, terminated[:, None]], axis=1)
        return cls(
            packed=torch.from_numpy(packed),
            obs_dim=obs.shape[1],
            act_dim=act.shape[1],
            terminated=torch.from_numpy(terminated),
            truncated=torch.from_numpy(truncated),
            valid_next=torch.from_numpy(valid_next),
            episode=torch.from_numpy(np.concatenate([[0], np.cumsum(end[:-1])])),
            index=torch.from_numpy(np.flatnonzero(valid_next)),
            attrs=attrs,
        )

    @classmethod
    def load(cls, path_or_id: str | os.PathLike[str]) -> TransitionDataset:
        """Read a D4RL file (any existing path, or a name ending in .hdf5 or .h5) or a Minari set by its id.

        `minari:<id>` is always an id; `namespace/name-v0` is one where no such path exists. Raises `UserError`.
        """
        name = os.fspath(path_or_id)
        path = Path(name)
        if name.startswith("minari:"):
            fields, attrs = minari.read(name.removeprefix("minari:"))
        elif path.exists() or path.suffix in (".hdf5", ".h5"):
            fields, attrs = d4rl.read(path)
        elif MINARI_ID.fullmatch(name):
            fields, attrs = minari.read(name)
        else:
            raise UserError(f"{name}: no such file, and not a Minari id (namespace/name-v0); check the name")
        return cls.from_arrays(**fields, attrs=attrs)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Store everything at `path` in the layout of `schema`; `load` gives it back bit for bit."""
        columns = {
            "observations": self.obs,
            "actions": self.act,
            "rewards": self.rew,
            "terminals": self.terminated,
            "timeouts": self.truncated,
            "next_observations": self.next_obs,
        }
        schema.write(path, {key: x.cpu().numpy() for key, x in columns.items()}, self.attrs)

    def __len__(self) -> int:
        """How many rows `sample` draws from."""
        return len(self.index)

    @property
    def n_rows(self) -> int:
        """How many rows there are, usable or not."""
        return len(self.packed)

    @property
    def obs(self) -> Tensor:
        """`(N, D)` float32, a view."""
        return self._split(self.packed).obs

    @property
    def act(self) -> Tensor:
        """`(N, A)` float32 in [-1, 1], a view."""
        return self._split(self.packed).act

    @property
    def rew(self) -> Tensor:
        """`(N,)` float32, a view."""
        return self._split(self.packed).rew

    @property
    def next_obs(self) -> Tensor:
        """`(N, D)` float32, a view; NaN where not `valid_next`."""
        return self._split(self.packed).next_obs

    def sample(self, n: int) -> Batch:
        """Draw `n` usable rows per seed, uniformly, with replacement, each seed for itself: `(*seeds, n, ...)`."""
        draw = torch.randint(len(self.index), (*self.seeds, n), device=self.index.device)
        return self.rows(self.index[draw])

    def rows(self, index: Tensor) -> Batch:
        """The rows at `index (*S, B)`, as `(*S, B, ...)`; `next_obs` is NaN where unknown."""
        return self._split(self.packed.index_select(0, index.reshape(-1)).view(*index.shape, self.packed.shape[1]))

    def _split(self, packed: Tensor) -> Batch:
        widths = [self.obs_dim, self.act_dim, 1, self.obs_dim, 1]
        known = [1] if packed.shape[-1] > sum(widths) else []
        obs, act, rew, next_obs, done, *mc = packed.split(widths + known, -1)
        return Batch(obs, act, rew.squeeze(-1), next_obs, done.squeeze(-1), *(x.squeeze(-1) for x in mc))

    def with_seeds(self, seeds: tuple[int, ...]) -> TransitionDataset:
        """The same data, in the same memory, sampled for `seeds` leading axes."""
        return replace(self, seeds=tuple(seeds))

    def to(self, device: str | torch.device) -> TransitionDataset:
        """The same data on `device`."""
        names = ("packed", "terminated", "truncated", "valid_next", "episode", "index")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def with_reward(self, scale: float, shift: float) -> TransitionDataset:
        """The same data with rewards `scale·r + shift`, without returns: `with_returns` comes after."""
        packed = self.packed[:, : 2 * self.obs_dim + self.act_dim + 2].clone()
        self._split(packed).rew.mul_(scale).add_(shift)
        return replace(self, packed=packed)

    def with_returns(self, gamma: float, failure: float | None = None) -> TransitionDataset:
        """The same data, whose batches hold `returns_to_go` (-inf where it is not known).

        failure: an episode that never gets another reward than this one is taken to go on like that for ever, so its
        return is failure/(1-γ) in every row (Cal-QL's sparse tasks: a cut-off sum of negative rewards would be too high).
        """
        column = self.returns_to_go(gamma).nan_to_num(nan=-torch.inf)
        if failure is not None:
            other = (self.rew != failure).to(torch.int64)
            hopeless = (
                torch.zeros(int(self.episode[-1]) + 1, dtype=torch.int64).to(other).index_add(0, self.episode, other) == 0
            )
            column = torch.where(hopeless[self.episode], failure / (1 - gamma), column)
        plain = self.packed[:, : 2 * self.obs_dim + self.act_dim + 2]
        return replace(self, packed=torch.cat([plain, column.unsqueeze(-1)], -1))

    def returns_to_go(self, gamma: float) -> Tensor:
        """Σ_k γ^k r_{t+k} to the end of the row's episode, `(N,)` float32.

        For a truncated episode the sum stops where the record does, so it leaves out what would have followed; in an
        episode cut by the end of the file it is NaN.
        """
        end = (self.terminated | self.truncated).tolist()
        out, later = np.empty(self.n_rows), np.nan
        for t, reward in reversed(list(enumerate(self.rew.tolist()))):
            later = reward if end[t] else reward + gamma * later
            out[t] = later
        return torch.from_numpy(out).to(self.packed)

    def episode_returns(self) -> tuple[np.ndarray, np.ndarray]:
        """Undiscounted returns (float64) and lengths of the episodes whose end was seen, in file order."""
        episode = self.episode.cpu().numpy()
        complete = int((self.terminated | self.truncated).sum())
        returns = np.bincount(episode, weights=self.rew.cpu().numpy())
        return returns[:complete], np.bincount(episode)[:complete]

    def summary(self) -> dict[str, Any]:
        """What there is to know before training on it; return and length are over complete episodes (NaN if none)."""
        returns, lengths = self.episode_returns()
        stats = returns if len(returns) else np.array([np.nan])
        return {
            "transitions": self.n_rows,
            "usable": len(self),
            "episodes": int(self.episode[-1]) + 1,
            "complete_episodes": len(returns),
            "return_mean": float(stats.mean()),
            "return_std": float(stats.std()),
            "return_min": float(stats.min()),
            "return_max": float(stats.max()),
            "length_mean": float(lengths.mean()) if len(lengths) else float("nan"),
            "terminal_fraction": float(self.terminated.float().mean()),
            "terminals_unused": int((self.terminated & ~self.valid_next).sum()),
            "obs_dim": self.obs_dim,
            "act_dim": self.act_dim,
            "action_saturation": float((self.act.abs() > 0.999).float().mean()),
            "attrs": self.attrs,
        }


def _truncated(fields: schema.Fields, attrs: schema.Attrs) -> np.ndarray:
    """`(N,)`: rows where an episode ends though the task does not; `from_arrays` says how they are found."""
    terminated = fields["terminals"]
    if "timeouts" in fields:
        return fields["timeouts"] & ~terminated
    truncated = np.zeros_like(terminated)
    if "next_observations" in fields:
        truncated[:-1] = (fields["next_observations"][:-1] != fields["observations"][1:]).any(1)
    elif "max_episode_steps" in attrs:
        limit = attrs["max_episode_steps"]
        if not isinstance(limit, int) or limit < 1:
            raise UserError(f"arrays: attribute max_episode_steps is {limit!r}, expected a positive int; mend it")
        row = np.arange(len(terminated))
        first = np.concatenate([[True], terminated[:-1]])
        step = row - np.maximum.accumulate(np.where(first, row, 0)) + 1
        truncated = step % limit == 0
    return truncated & ~terminated
