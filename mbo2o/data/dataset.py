"""Offline transitions in memory: where episodes end, which next observations are known, and batches of them."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbo2o.data import schema
from mbo2o.data.io import d4rl, episodes, minari, sb3, table
from mbo2o.types import Batch, UserError

MINARI_ID = re.compile(r"[-\w]+(/[-\w]+)*-v\d+")


@dataclass(frozen=True, eq=False)
class TransitionDataset:
    """N transitions in the order they were collected, and a `Source` of batches.

    Make one with `load` or `from_arrays`, or from what `from_dict`, `from_episodes`, `from_table` and `from_sb3` take. Three
    things are kept apart: the task ended (`terminated`), the record ended while the task went on (`truncated`), and nobody
    knows what followed (not `valid_next`). `sample` never draws the last kind, except from `every_row`.
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
    """`(U,)` int64: the rows that `sample` draws: those with `valid_next`, fit for TD and dynamics, or `every_row`."""
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

        Where episodes end: at `terminals`, at `timeouts` when given, and wherever a row is not followed by its own next
        observation, if these are given; a warning counts the cuts that `timeouts` hid (if most rows are such, `timeouts` are
        believed). With neither, the attribute `max_episode_steps` splits if it is there. With none of the three a cut cannot
        be seen, the row before it pairs two episodes, and a warning says so: give one of them.

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
        return cls._of(schema.check({key: x for key, x in given.items() if x is not None}, "arrays"), attrs, "arrays")

    @classmethod
    def _of(cls, fields: schema.Fields, attrs: schema.Attrs | None, where: object) -> TransitionDataset:
        """Build from what `schema.check` returned; `where` names it in errors."""
        attrs = dict(attrs or {})
        obs, act, terminated = fields["observations"], fields["actions"], fields["terminals"]
        truncated = _truncated(fields, attrs, where)
        end = terminated | truncated
        next_obs = fields.get("next_observations")
        if next_obs is None:
            next_obs = np.full_like(obs, np.nan)
            inside = ~end[:-1]
            next_obs[:-1][inside] = obs[1:][inside]
        valid_next = np.isfinite(next_obs).all(1)
        if not valid_next.any():
            raise UserError(f"{where}: not one next observation is known; give next_observations, or longer episodes")
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

        `minari:<id>` is always an id; `namespace/name-v0` is one where no such path exists. A set that the local store lacks
        is downloaded into it. Raises `UserError`.
        """
        name = os.fspath(path_or_id)
        path = Path(name)
        if path.suffix in table.SUFFIXES and path.exists():
            raise UserError(
                f"{name}: a table does not say which column is what; turn it into HDF5 in Python: "
                f'TransitionDataset.from_table({name!r}, {{"observations": [...], ...}}).save("{path.stem}.hdf5")'
            )
        if name.startswith("minari:"):
            fields, attrs = minari.read(name.removeprefix("minari:"))
        elif path.exists() or path.suffix in (".hdf5", ".h5"):
            fields, attrs = d4rl.read(path)
        elif MINARI_ID.fullmatch(name):
            fields, attrs = minari.read(name)
        else:
            raise UserError(f"{name}: no such file, and not a Minari id (namespace/name-v0); check the name")
        return cls._of(fields, attrs, name)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], attrs: schema.Attrs | None = None) -> TransitionDataset:
        """Build from a dict of arrays by D4RL's names, such as its `env.get_dataset()` returns. See `from_arrays`.

        Columns `(N, 1)` of rewards or flags are flattened, scalars under `metadata/` become attributes, and what else has a `/`
        in its name is left out. Raises `UserError`, for any other name, too.
        """
        fields, found = d4rl.read_dict(data)
        return cls._of(fields, found | (attrs or {}), "dict")

    @classmethod
    def from_episodes(cls, data: Sequence[Mapping[str, Any]], attrs: schema.Attrs | None = None) -> TransitionDataset:
        """Build from a list of episodes, each a dict of arrays by D4RL's names, or `terminations` and `truncations`.

        An episode of T steps has T + 1 `observations`, the last of which followed the last step; or T, perhaps with T
        `next_observations`: with neither, what followed the last step is unknown. A last step that did not terminate counts as
        a timeout. Raises `UserError`.
        """
        return cls._of(episodes.read(data), attrs, "episodes")

    @classmethod
    def from_table(
        cls, path: str | os.PathLike[str], columns: table.Columns, attrs: schema.Attrs | None = None
    ) -> TransitionDataset:
        """Read a CSV file with a header, or Parquet (a name in .parquet; extra `parquet`), one row per step.

        columns: which column each field is in, `{"observations": ["x", "y"], "actions": ["u"], "rewards": "r", "terminals":
        "done"}`, and if there are such columns, `timeouts`, `next_observations` (an empty cell is unknown), `episode` (any
        value, the same in all rows of an episode) and `step` (numbers that grow within an episode).

        An episode ends where `episode` changes, or, without it, where `step` does not grow. With both, rows in another order
        are sorted, episodes as they first come, and a warning says so. With `episode` alone, one that comes back after another
        is refused. Where `step` counts by one and some are missing, the episode is cut, with a warning. Where `episode` says
        that a row is the last of its own and it did not terminate, it counts as a timeout.

        Raises `UserError` for a column that is not there (naming the nearest), a cell that is no number, and as `from_arrays`.
        """
        return cls._of(table.read(path, columns), attrs, os.fspath(path))

    @classmethod
    def from_sb3(cls, buffer: Any, attrs: schema.Attrs | None = None) -> TransitionDataset:
        """Copy a Stable-Baselines3 replay buffer that is alive, such as `model.replay_buffer`; it is never read from a file.

        Each environment's steps follow one another, oldest first. With `optimize_memory_usage` what followed an episode's last
        step is unknown. Without `handle_timeout_termination` the buffer takes time limits for terminations; a warning says so.
        Observations are vectors, or goal-conditioned (`HerReplayBuffer`), then as Minari's are read. Raises `UserError`.
        """
        return cls._of(sb3.read(buffer), attrs, "replay buffer")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Store everything at `path` in the layout of `schema`; `load` gives it back bit for bit."""
        schema.write(path, self._fields(), self.attrs)

    def to_minari(self, dataset_id: str) -> None:
        """Add a set to Minari's local store (`MINARI_DATASETS_PATH`, or `~/.minari`), under an id `namespace/name-v0`.

        Each episode of T steps has T + 1 observations; the last one is NaN where it is not known, with a warning. Minari has no
        other word for that: to repeat an observation would be a lie, and without the step a termination would be lost. The
        environment goes along if it can be made here and its spaces are those of the data. Raises `UserError`.
        """
        minari.write(dataset_id, self._fields(), self.attrs)

    def _fields(self) -> schema.Fields:
        columns = {
            "observations": self.obs,
            "actions": self.act,
            "rewards": self.rew,
            "terminals": self.terminated,
            "timeouts": self.truncated,
            "next_observations": self.next_obs,
        }
        return {key: x.cpu().numpy() for key, x in columns.items()}

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

    def every_row(self) -> TransitionDataset:
        """The same data, sampled from all rows: for cloning, which needs no next observation (it is NaN where unknown)."""
        return replace(self, index=torch.arange(self.n_rows, device=self.index.device))

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


def _truncated(fields: schema.Fields, attrs: schema.Attrs, where: object) -> np.ndarray:
    """`(N,)`: rows where an episode ends though the task does not; `from_arrays` says how they are found."""
    terminated, flagged = fields["terminals"], fields.get("timeouts")
    if "next_observations" in fields:
        truncated = _cuts(fields["observations"], fields["next_observations"], flagged is not None)
        if flagged is not None:
            truncated = _with_flags(truncated & ~terminated, flagged, where)
    elif flagged is not None:
        truncated = flagged
    elif "max_episode_steps" in attrs:
        truncated = _at_limit(terminated, attrs["max_episode_steps"], where)
    else:
        warnings.warn(
            f"{where}: no timeouts, no next_observations: if a time limit cut an episode it cannot be seen, and what "
            "followed its last row is then the next one's start; give one of them, or max_episode_steps",
            stacklevel=4,
        )
        truncated = np.zeros_like(terminated)
    return truncated & ~terminated


def _with_flags(cuts: np.ndarray, flagged: np.ndarray, where: object) -> np.ndarray:
    """Flags and cuts; the flags alone where most rows are cuts, because rounding or shuffling made them."""
    hidden = int((cuts & ~flagged).sum())
    many = 2 * hidden > len(cuts)
    if hidden:
        what = "rounded or shuffled? timeouts are believed" if many else "their episodes are cut there"
        text = f"{where}: {hidden} rows without a flag are not followed by their own next observation; {what}"
        warnings.warn(text, stacklevel=5)
    return flagged if many else flagged | cuts


def _cuts(obs: np.ndarray, next_obs: np.ndarray, flagged: bool) -> np.ndarray:
    """`(N,)`: rows that are not followed by their own next observation; an unknown one is a cut if nothing else tells them."""
    cuts = np.append((next_obs[:-1] != obs[1:]).any(1), False)
    return cuts & ~np.isnan(next_obs[:, 0]) if flagged else cuts


def _at_limit(terminated: np.ndarray, limit: object, where: object) -> np.ndarray:
    """`(N,)`: every `limit`-th row of what lies between two terminations."""
    if not isinstance(limit, int) or limit < 1:
        raise UserError(f"{where}: attribute max_episode_steps is {limit!r}, expected a positive int; mend it")
    row = np.arange(len(terminated))
    first = np.concatenate([[True], terminated[:-1]])
    step = row - np.maximum.accumulate(np.where(first, row, 0)) + 1
    return step % limit == 0
