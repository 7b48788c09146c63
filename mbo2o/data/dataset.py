"""Offline transitions: where episodes end, which next observations are known, and batches of them.

They lie in memory, or in files (`mapped`) of which the system keeps in memory what it has room for. Whatever works on all rows
takes a block at a time, the same way for both.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbo2o.data import cuts
from mbo2o.data.actions import Actions, Bounds
from mbo2o.store import d4rl, episodes, hdf5, mapped, minari, sb3, table
from mbo2o.types import Batch, UserError

MINARI_ID = re.compile(r"[-\w]+(/[-\w]+)*-v\d+")
STORAGES = ("ram", "memmap")
COLUMNS = ("packed", "terminated", "truncated", "valid_next", "episode", "index")
"""The tensors of a dataset that a map holds."""


@dataclass(frozen=True, eq=False)
class TransitionDataset:
    """N transitions in the order they were collected, and a `Source` of batches.

    Make one with `load` or `from_arrays`, or from what `from_dict`, `from_episodes`, `from_table` and `from_sb3` take. Three
    things are kept apart: the task ended (`terminated`), the record ended while the task went on (`truncated`), and nobody
    knows what followed (not `valid_next`). `sample` never draws the last kind, except from `every_row`.
    """

    packed: Tensor
    """`(N, 2D + A + 2)` float32, columns obs, act, rew, next_obs, done: a batch is then one gather."""
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
    attrs: hdf5.Attrs = field(default_factory=dict)
    """What the file says of itself: `env_id` and the like."""
    seeds: tuple[int, ...] = ()
    """Leading axes of what `sample` returns."""
    shaped: Tensor | None = None
    """`(N,)` float32: the rewards, where `with_reward` made them others than those in `packed`."""
    returns: Tensor | None = None
    """`(N,)` float32: what `with_returns` found."""
    ends_known: bool = True
    """Whether the record says where all its episodes end. Without timeouts, next observations and a time limit only
    terminations are seen, and the rewards between two of them may be of several episodes."""
    new: hdf5.New = hdf5.in_ram
    """Where a column of N numbers is put that is derived from these."""

    @classmethod
    def from_arrays(
        cls,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        terminals: np.ndarray,
        timeouts: np.ndarray | None = None,
        next_observations: np.ndarray | None = None,
        attrs: hdf5.Attrs | None = None,
        bounds: Bounds | None = None,
        clip: bool = False,
    ) -> TransitionDataset:
        """Build from rows in time order: `(N, D)`, `(N, A)` in [-1, 1], `(N,)`, `(N,)`; flags are bool or 0 and 1.

        Actions `(N, *shape)` are flattened in C order. bounds: the lowest and the highest action, `(low, high)`, if actions are
        in the environment's units; they are then mapped to [-1, 1]. clip: actions are a policy's outputs that may lie outside
        the bounds, or outside [-1, 1] if there are none; they are clipped, as an environment clips them.

        Where episodes end: at `terminals`, at `timeouts` when given, and wherever a row is not followed by its own next
        observation, if these are given; a warning counts the cuts that `timeouts` hid (if most rows are such, `timeouts` are
        believed). With neither, the attribute `max_episode_steps` splits if it is there. With none of the three a cut cannot
        be seen, the row before it pairs two episodes, no return is known (`ends_known` is false), and a warning says so: give
        one of them. Without timeouts a warning counts the ends that were concluded, and from what.

        What followed: `next_observations` where given (NaN rows are unknown), otherwise the next row's observation
        inside an episode. The last row of an episode is then unknown, also where it terminated: its TD target needs no
        next observation, but the reset that stands in the next row would poison a dynamics model.

        Raises `UserError` for what `hdf5.check` refuses, and when not one next observation is known.
        """
        given = {
            "observations": observations,
            "actions": actions,
            "rewards": rewards,
            "terminals": terminals,
            "timeouts": timeouts,
            "next_observations": next_observations,
        }
        given = {key: x for key, x in given.items() if x is not None}
        return cls._of(hdf5.check(given, "arrays", how=Actions.given(bounds, clip)), attrs, "arrays")

    @classmethod
    def _of(
        cls, fields: hdf5.Fields, attrs: hdf5.Attrs | None, where: object, new: hdf5.New = hdf5.in_ram
    ) -> TransitionDataset:
        """Build from what `hdf5.check` returned, in `new` arrays; `where` names it in errors."""
        attrs = dict(attrs or {})
        obs, act, given = fields["observations"], fields["actions"], fields.get("next_observations")
        n, obs_dim, act_dim = len(obs), obs.shape[1], act.shape[1]
        truncated, ends_known = cuts.find(fields, attrs, where, new)
        packed = new("packed", (n, 2 * obs_dim + act_dim + 2), np.float32)
        terminated, valid_next = new("terminated", (n,), np.bool_), new("valid_next", (n,), np.bool_)
        episode = new("episode", (n,), np.int64)
        usable, begun = 0, 0
        for rows in hdf5.blocks(*packed.shape):
            terminated[rows] = done = fields["terminals"][rows]
            end = done | truncated[rows]
            next_obs = _below(obs, end, rows) if given is None else given[rows]
            known = valid_next[rows] = np.isfinite(next_obs).all(1)
            columns = [obs[rows], act[rows], fields["rewards"][rows, None], next_obs, done[:, None]]
            np.concatenate(columns, axis=1, out=packed[rows])
            ended = np.cumsum(end)
            episode[rows] = begun + ended - end
            usable, begun = usable + int(known.sum()), begun + int(ended[-1])
        if not usable:
            raise UserError(
                f"{where}: not one next observation is known; give next_observations, or longer episodes"
            )
        index = new("index", (usable,), np.int64)
        arrays = (packed, terminated, truncated, valid_next, episode, _filled(index, valid_next))
        tensors: dict[str, Any] = {name: torch.from_numpy(x) for name, x in zip(COLUMNS, arrays, strict=True)}
        return cls(**tensors, obs_dim=obs_dim, act_dim=act_dim, attrs=attrs, ends_known=ends_known)

    @classmethod
    def load(
        cls,
        path_or_id: str | os.PathLike[str],
        storage: str = "ram",
        bounds: Bounds | None = None,
        clip: bool = False,
    ) -> TransitionDataset:
        """Read a D4RL file (any existing path, or a name ending in .hdf5 or .h5) or a Minari set by its id.

        `minari:<id>` is always an id; `namespace/name-v0` is one where no such path exists. A set that the local store lacks
        is downloaded into it. Raises `UserError`.

        storage: `ram`, or `memmap` for what is larger than memory: converted once, a block at a time, into files that later
        calls and other processes share (see `mapped`). What is drawn is the same to the bit. The tensors are then read-only:
        to write to one ends the process. `to` another device copies all of it there; `save` and `to_minari` go through memory.

        bounds, clip: see `from_arrays`. A Minari set whose action space is not [-1, 1] is mapped by that space.
        """
        return cls.load_as(path_or_id, storage, Actions.given(bounds, clip))

    @classmethod
    def load_as(cls, path_or_id: str | os.PathLike[str], storage: str, how: Actions) -> TransitionDataset:
        """The same, with actions in the units that `how` names, or doubts: see `Actions`."""
        if storage not in STORAGES:
            raise UserError(f"storage={storage} is not one of {', '.join(STORAGES)}")
        name = os.fspath(path_or_id)
        dataset_id = minari_id(name)
        made = cls._stored(name, dataset_id, storage, how)
        # a Minari set names its own action space, so that there is nothing to doubt
        parts = list(hdf5.blocks(made.n_rows, made.act_dim))
        if dataset_id is None and (doubt := how.doubt(made.act.numpy(), parts)):
            raise UserError(f"{hdf5.shown(name)}: {doubt}")
        return made

    @classmethod
    def _stored(cls, name: str, dataset_id: str | None, storage: str, how: Actions) -> TransitionDataset:
        """A file, or a Minari set, in memory or mapped."""
        where = hdf5.shown(name) if dataset_id is None else f"minari:{dataset_id}"
        read = partial(d4rl.read, name) if dataset_id is None else partial(minari.read, dataset_id)
        if storage == "ram":
            return cls._of(*read(how=how), where)
        if dataset_id is None:
            hdf5.check_signature(Path(name))
        source = Path(name) if dataset_id is None else minari.folder(dataset_id)

        def convert(new: hdf5.New) -> mapped.Info:
            made = cls._of(*read(new, how), where, new)
            return {
                "obs_dim": made.obs_dim,
                "act_dim": made.act_dim,
                "attrs": made.attrs,
                "ends_known": made.ends_known,
            }

        arrays, info = mapped.opened(source, f"{dataset_id or ''}{how.key}", where, COLUMNS, convert)
        tensors: dict[str, Any] = {key: mapped.tensor(x) for key, x in arrays.items()}
        return cls(**tensors, **info, new=mapped.unnamed)

    @classmethod
    def from_dict(
        cls,
        data: Mapping[str, Any],
        attrs: hdf5.Attrs | None = None,
        bounds: Bounds | None = None,
        clip: bool = False,
    ) -> TransitionDataset:
        """Build from a dict of arrays by D4RL's names, such as its `env.get_dataset()` returns. See `from_arrays`.

        Columns `(N, 1)` of rewards or flags are flattened, scalars under `metadata/` become attributes, and what else has a `/`
        in its name is left out. Raises `UserError`, for any other name, too.
        """
        fields, found = d4rl.read_dict(data, Actions.given(bounds, clip))
        return cls._of(fields, found | (attrs or {}), "dict")

    @classmethod
    def from_episodes(
        cls,
        data: Sequence[episodes.Episode],
        attrs: hdf5.Attrs | None = None,
        bounds: Bounds | None = None,
        clip: bool = False,
    ) -> TransitionDataset:
        """Build from a list of episodes, each a dict of arrays by D4RL's names, or `terminations` and `truncations`.

        An object that has them as attributes is as good as a dict: Minari's `EpisodeData`, a named tuple, a dataclass.
        Goal-conditioned observations (dicts) become vectors, as Minari's sets are read.

        An episode of T steps has T + 1 `observations`, the last of which followed the last step; or T, perhaps with T
        `next_observations`: with neither, what followed the last step is unknown. A last step that did not terminate counts as
        a timeout. bounds, clip: see `from_arrays`. Raises `UserError`.
        """
        return cls._of(episodes.read(data, Actions.given(bounds, clip)), attrs, "episodes")

    @classmethod
    def from_table(
        cls,
        path: str | os.PathLike[str],
        columns: table.Columns,
        attrs: hdf5.Attrs | None = None,
        bounds: Bounds | None = None,
        clip: bool = False,
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
        return cls._of(table.read(path, columns, Actions.given(bounds, clip)), attrs, os.fspath(path))

    @classmethod
    def from_sb3(
        cls, buffer: Any, attrs: hdf5.Attrs | None = None, bounds: Bounds | None = None, clip: bool = False
    ) -> TransitionDataset:
        """Copy a Stable-Baselines3 replay buffer that is alive, such as `model.replay_buffer`; it is never read from a file.

        Each environment's steps follow one another, oldest first. With `optimize_memory_usage` what followed an episode's last
        step is unknown. Without `handle_timeout_termination` the buffer takes time limits for terminations; a warning says so.
        Observations are vectors, or goal-conditioned (`HerReplayBuffer`), then as Minari's are read. Its algorithms
        store actions in [-1, 1]; bounds and clip (see `from_arrays`) are for buffers that were filled by hand.
        Raises `UserError`.
        """
        return cls._of(sb3.read(buffer, Actions.given(bounds, clip)), attrs, "replay buffer")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Store everything at `path` in the layout of `schema`; `load` gives it back bit for bit."""
        hdf5.write(path, self._fields(), self.attrs)

    def to_minari(self, dataset_id: str) -> None:
        """Add a set to Minari's local store (`MINARI_DATASETS_PATH`, or `~/.minari`), under an id `namespace/name-v0`.

        Each episode of T steps has T + 1 observations; the last one is NaN where it is not known, with a warning. Minari has no
        other word for that: to repeat an observation would be a lie, and without the step a termination would be lost. The
        environment goes along if it can be made here and its spaces are those of the data. Raises `UserError`.
        """
        minari.write(dataset_id, self._fields(), self.attrs)

    def _fields(self) -> hdf5.Fields:
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
        return self._split(self.packed).rew if self.shaped is None else self.shaped

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
        flat, width = index.reshape(-1), self.packed.shape[1]
        drawn = self.packed.new_empty(len(flat), width + (self.returns is not None))
        torch.index_select(self.packed, 0, flat, out=drawn[:, :width])
        if self.shaped is not None:
            torch.index_select(self.shaped, 0, flat, out=drawn[:, self.obs_dim + self.act_dim])
        if self.returns is not None:
            torch.index_select(self.returns, 0, flat, out=drawn[:, width])
        return self._split(drawn.view(*index.shape, drawn.shape[1]))

    def _split(self, packed: Tensor) -> Batch:
        widths = [self.obs_dim, self.act_dim, 1, self.obs_dim, 1]
        known = [1] if packed.shape[-1] > sum(widths) else []
        obs, act, rew, next_obs, done, *mc = packed.split(widths + known, -1)
        return Batch(obs, act, rew.squeeze(-1), next_obs, done.squeeze(-1), *(x.squeeze(-1) for x in mc))

    def blocks(self) -> Iterator[Batch]:
        """All rows that `sample` draws, without a seed axis, some at a time."""
        for part in hdf5.blocks(len(self.index), self.packed.shape[1]):
            yield self.rows(self.index[part])

    def _column(self, name: str, dtype: Any, block: Callable[[slice], Tensor]) -> Tensor:
        """`(N,)`: what `block` makes of each block of rows, where there is room for it."""
        out = self.new(name, (self.n_rows,), dtype)
        for rows in hdf5.blocks(self.n_rows):
            out[rows] = block(rows).cpu().numpy()
        return torch.from_numpy(out).to(self.packed.device)

    def _count(self, block: Callable[[slice], Tensor]) -> int:
        """How often the flags are true that `block` makes of each block of rows."""
        return sum(int(block(rows).sum()) for rows in hdf5.blocks(self.n_rows, self.packed.shape[1]))

    def with_seeds(self, seeds: tuple[int, ...]) -> TransitionDataset:
        """The same data, in the same memory, sampled for `seeds` leading axes."""
        return replace(self, seeds=tuple(seeds))

    def to(self, device: str | torch.device) -> TransitionDataset:
        """The same data on `device`; all of it is copied there, also out of a map, unless it is there already."""
        columns = {name: getattr(self, name) for name in (*COLUMNS, "shaped", "returns")}
        return replace(self, **{name: x.to(device) for name, x in columns.items() if x is not None})

    def every_row(self) -> TransitionDataset:
        """The same data, sampled from all rows: for cloning, which needs no next observation (it is NaN where unknown)."""
        return replace(
            self, index=self._column("index", np.int64, lambda rows: torch.arange(rows.start, rows.stop))
        )

    def with_reward(self, scale: float, shift: float) -> TransitionDataset:
        """The same data with rewards `scale·r + shift`, without returns: `with_returns` comes after."""
        rew = self.rew
        shaped = self.shaped
        if (scale, shift) != (1, 0):
            shaped = self._column("rewards", np.float32, lambda rows: rew[rows] * scale + shift)
        return replace(self, shaped=shaped, returns=None)

    def with_returns(self, gamma: float, failure: float | None = None) -> TransitionDataset:
        """The same data, whose batches hold `returns_to_go` (-inf where it is not known).

        failure: an episode that never gets another reward than this one is taken to go on like that for ever, so its
        return is failure/(1-γ) in every row (Cal-QL's sparse tasks: a cut-off sum of negative rewards would be too high).
        This holds where ends are not known, too: parts of an episode that never gets another reward do not get one either.
        """
        known = self.returns_to_go(gamma)
        rew, episode = self.rew, self.episode
        other = torch.zeros(int(episode[-1]) + 1, dtype=torch.int64, device=episode.device)
        if failure is not None:
            for rows in hdf5.blocks(self.n_rows):
                other.index_add_(0, episode[rows], (rew[rows] != failure).to(torch.int64))

        def block(rows: slice) -> Tensor:
            x = known[rows].nan_to_num(nan=-torch.inf)
            return x if failure is None else torch.where(other[episode[rows]] == 0, failure / (1 - gamma), x)

        return replace(self, returns=self._column("returns", np.float32, block))

    def returns_to_go(self, gamma: float) -> Tensor:
        """Σ_k γ^k r_{t+k} to the end of the row's episode, `(N,)` float32.

        For a truncated episode the sum stops where the record does, so it leaves out what would have followed; in an
        episode cut by the end of the file it is NaN, and so it is everywhere if not `ends_known`.
        """
        out, later = self.new("returns", (self.n_rows,), np.float32), np.nan
        if not self.ends_known:
            out[:] = np.nan
            return torch.from_numpy(out).to(self.packed.device)
        rew = self.rew
        for rows in reversed(list(hdf5.blocks(self.n_rows))):
            end = (self.terminated[rows] | self.truncated[rows]).tolist()
            sums = np.empty(len(end))
            for t, reward in reversed(list(enumerate(rew[rows].tolist()))):
                later = reward if end[t] else reward + gamma * later
                sums[t] = later
            out[rows] = sums
        return torch.from_numpy(out).to(self.packed.device)

    def episode_returns(self) -> tuple[np.ndarray, np.ndarray]:
        """Undiscounted returns (float64) and lengths of the episodes whose end was seen, in file order.

        Of none if not `ends_known`: what seems one episode may be several.
        """
        if not self.ends_known:
            return np.zeros(0), np.zeros(0, np.int64)
        returns, lengths = np.zeros(int(self.episode[-1]) + 1), np.zeros(int(self.episode[-1]) + 1, np.int64)
        rew, complete = self.rew, 0
        for rows in hdf5.blocks(self.n_rows):
            episode = self.episode[rows].cpu().numpy()
            np.add.at(returns, episode, rew[rows].cpu().numpy())
            np.add.at(lengths, episode, 1)
            complete += int((self.terminated[rows] | self.truncated[rows]).sum())
        return returns[:complete], lengths[:complete]

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
            "terminal_fraction": self._count(lambda rows: self.terminated[rows]) / self.n_rows,
            "terminals_unused": self._count(lambda rows: self.terminated[rows] & ~self.valid_next[rows]),
            "obs_dim": self.obs_dim,
            "act_dim": self.act_dim,
            "action_saturation": self._count(lambda rows: self.act[rows].abs() > 0.999) / self.act.numel(),
            "attrs": self.attrs,
        }


def minari_id(name: str) -> str | None:
    """The Minari id in what `load` was given, or None for a file's name; `UserError` for what is neither."""
    path = Path(name)
    if path.suffix in table.SUFFIXES and path.exists():
        raise UserError(
            f"{name}: a table does not say which column is what; turn it into HDF5 in Python: "
            f'TransitionDataset.from_table({name!r}, {{"observations": [...], ...}}).save("{path.stem}.hdf5")'
        )
    if name.startswith("minari:"):
        return name.removeprefix("minari:")
    if path.exists() or path.suffix in (".hdf5", ".h5"):
        return None
    if MINARI_ID.fullmatch(name):
        return name
    raise UserError(f"{name}: no such file, and not a Minari id (namespace/name-v0); check the name")


def _below(obs: np.ndarray, end: np.ndarray, rows: slice) -> np.ndarray:
    """What the rows below have observed; NaN for rows that end an episode, and for the last of all."""
    below = np.full_like(obs[rows], np.nan)
    after = obs[rows.start + 1 : rows.stop + 1]
    inside = ~end[: len(after)]
    below[: len(after)][inside] = after[inside]
    return below


def _filled(index: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`index`, with the numbers of the rows in which `mask` is true."""
    done = 0
    for rows in hdf5.blocks(len(mask)):
        found = rows.start + np.flatnonzero(mask[rows])
        index[done : done + len(found)] = found
        done += len(found)
    return index
