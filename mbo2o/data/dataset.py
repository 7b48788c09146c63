"""Offline transitions: where episodes end, which next observations are known, and batches of them.

The rows are in memory, or in files (see `store.mapped`) of which the system keeps in memory as much as fits.
Everything that needs all rows processes one block at a time, so that both cases run the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbo2o.data import cuts
from mbo2o.data.actions import Actions, Bounds
from mbo2o.data.fields import Attrs, Fields, New, blocks, check_fields, in_ram
from mbo2o.data.layout import RETURN, TRUNCATED, Packed, RowLayout
from mbo2o.types import Batch, UserError

COLUMNS = ("packed", "terminated", "truncated", "valid_next", "episode", "index")
"""The tensors that make up a dataset, by their names as attributes."""


@dataclass(frozen=True, eq=False)
class TransitionDataset:
    """N transitions in the order in which they were collected, and a `Source` of batches.

    `from_arrays` makes one; `store.datasets.read` reads one from a file or a Minari set, and `store` has
    functions for tables, episodes and buffers of other packages. Three things are kept apart: the task ended
    (`terminated`), the record ended while the task went on (`truncated`), and the next observation is unknown
    (not `valid_next`). `sample` never draws rows of the last kind, except from `every_row`.
    """

    packed: Tensor
    """`(N, 2D + A + 2)` float32, a `RowLayout` of obs, act, rew, next_obs and done."""
    obs_dim: int
    act_dim: int
    terminated: Tensor
    """`(N,)` bool: the task ended here."""
    truncated: Tensor
    """`(N,)` bool: the episode ended here, but the task did not; never true where `terminated` is."""
    valid_next: Tensor
    """`(N,)` bool: the next observation is known; where false, `next_obs` is NaN."""
    episode: Tensor
    """`(N,)` int64: the number of the row's episode, counted from 0."""
    index: Tensor
    """`(U,)` int64: the rows that `sample` draws from: those with `valid_next`, or all of them
    (`every_row`)."""
    attrs: Attrs = field(default_factory=dict)
    """What the file says of the dataset: `env_id` and the like."""
    seeds: tuple[int, ...] = ()
    """Leading axes of what `sample` returns."""
    shaped: Tensor | None = None
    """`(N,)` float32: the rewards of `with_reward`, where they differ from those in `packed`."""
    returns: Tensor | None = None
    """`(N,)` float32: the returns of `with_returns`."""
    ends_known: bool = True
    """Whether the record shows where all episodes end. Without timeouts, next observations and a time limit
    only terminations are visible, and the rewards between two of them may belong to several episodes."""
    new: New = in_ram
    """Where columns of N numbers are stored that are computed from these."""

    @classmethod
    def from_arrays(
        cls,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        terminals: np.ndarray,
        timeouts: np.ndarray | None = None,
        next_observations: np.ndarray | None = None,
        attrs: Attrs | None = None,
        bounds: Bounds | None = None,
        clip: bool = False,
    ) -> TransitionDataset:
        """Build from rows in time order: `(N, D)`, `(N, A)` in [-1, 1], `(N,)`, `(N,)`; flags are 0 and 1.

        Actions `(N, *shape)` are flattened in C order. bounds: the lowest and the highest action, `(low,
        high)`, if actions are in the environment's units; they are then mapped to [-1, 1]. clip: actions are
        outputs of a policy that may lie outside the bounds, or outside [-1, 1] without bounds; they are
        clipped, as an environment clips them.

        Where episodes end: at `terminals`, at `timeouts` if they are given, and, if `next_observations` are
        given, at every row whose next observation is not the observation in the row below. A warning counts
        the ends that `timeouts` do not mark; if most rows are such ends, `timeouts` alone count. With
        neither, the attribute `max_episode_steps` splits the rows if it is there. With none of the three,
        episode ends without a terminal are invisible: the row before such an end pairs two episodes and no
        return is known (`ends_known` is false); a warning asks for one of the three. Without timeouts a
        warning says how many ends were inferred, and how.

        What followed a row: `next_observations` if given (rows of NaN are unknown), otherwise the observation
        of the next row of the episode. The last row of an episode is then unknown, even where it terminated:
        its TD target needs no next observation, but the reset in the row below would mislead a dynamics
        model.

        Raises `UserError` for what `fields.check_fields` refuses, and if not one next observation is known.
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
        fields = check_fields(given, "arrays", units=Actions.given(bounds, clip))
        return build_dataset(fields, attrs, "arrays")

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
        return self._layout.unpack(self.packed).obs

    @property
    def act(self) -> Tensor:
        """`(N, A)` float32 in [-1, 1], a view."""
        return self._layout.unpack(self.packed).act

    @property
    def rew(self) -> Tensor:
        """`(N,)` float32, a view."""
        return self._layout.unpack(self.packed).rew if self.shaped is None else self.shaped

    @property
    def next_obs(self) -> Tensor:
        """`(N, D)` float32, a view; NaN where not `valid_next`."""
        return self._layout.unpack(self.packed).next_obs

    @cached_property
    def _layout(self) -> RowLayout:
        return RowLayout(self.obs_dim, self.act_dim)

    @cached_property
    def _drawn(self) -> RowLayout:
        """The layout of rows that are drawn: that of a buffer, whose rows stand beside them in mixtures."""
        returns = [] if self.returns is None else [RETURN]
        return RowLayout(self.obs_dim, self.act_dim, TRUNCATED, *returns)

    def sample(self, n: int) -> Batch:
        """Draw `n` usable rows for each seed, uniformly and with replacement: `(*seeds, n, ...)`."""
        return gather(self, draw(self, n)).batch

    def rows(self, index: Tensor) -> Batch:
        """The rows at `index (*S, B)`, as `(*S, B, ...)`; `next_obs` is NaN where unknown."""
        return gather(self, index).batch

    def blocks(self) -> Iterator[Batch]:
        """All rows that `sample` draws from, without a seed axis, one block at a time."""
        for part in blocks(len(self.index), self._layout.width):
            yield self.rows(self.index[part])

    def _column(self, name: str, dtype: Any, block: Callable[[slice], Tensor]) -> Tensor:
        """`(N,)`: what `block` makes of each block of rows, in a `new` array."""
        out = self.new(name, (self.n_rows,), dtype)
        for rows in blocks(self.n_rows):
            out[rows] = block(rows).cpu().numpy()
        return torch.from_numpy(out).to(self.packed.device)

    def with_seeds(self, seeds: tuple[int, ...]) -> TransitionDataset:
        """The same data, in the same memory, sampled for `seeds` leading axes."""
        return replace(self, seeds=tuple(seeds))

    def to(self, device: str | torch.device) -> TransitionDataset:
        """The same data on `device`; all of it is copied, also out of a map, unless it is there already."""
        columns = {name: getattr(self, name) for name in (*COLUMNS, "shaped", "returns")}
        return replace(self, **{name: x.to(device) for name, x in columns.items() if x is not None})

    def every_row(self) -> TransitionDataset:
        """The same data, sampled from all rows: for cloning, which needs no next observations."""
        index = self._column("index", np.int64, lambda rows: torch.arange(rows.start, rows.stop))
        return replace(self, index=index)

    def with_reward(self, scale: float, shift: float) -> TransitionDataset:
        """The same data with rewards `scale·r + shift` and without returns: call `with_returns` later."""
        rew = self.rew
        shaped = self.shaped
        if (scale, shift) != (1, 0):
            shaped = self._column("rewards", np.float32, lambda rows: rew[rows] * scale + shift)
        return replace(self, shaped=shaped, returns=None)

    def with_returns(self, gamma: float, failure: float | None = None) -> TransitionDataset:
        """The same data, whose batches hold the return that followed each row (-inf where it is unknown).

        failure: an episode in which every reward is this number is assumed to go on like that for ever, so
        that its return is failure/(1-γ) in every row (Cal-QL's sparse tasks: a truncated sum of negative
        rewards is too high). The same holds where ends are unknown: no part of an episode of failures
        contains another reward.
        """
        known = returns_to_go(self, gamma)
        rew, episode = self.rew, self.episode
        other = torch.zeros(int(episode[-1]) + 1, dtype=torch.int64, device=episode.device)
        if failure is not None:
            for rows in blocks(self.n_rows):
                other.index_add_(0, episode[rows], (rew[rows] != failure).to(torch.int64))

        def block(rows: slice) -> Tensor:
            x = known[rows].nan_to_num(nan=-torch.inf)
            return x if failure is None else torch.where(other[episode[rows]] == 0, failure / (1 - gamma), x)

        return replace(self, returns=self._column("returns", np.float32, block))

    def episode_returns(self) -> tuple[np.ndarray, np.ndarray]:
        """Undiscounted returns (float64) and lengths of the episodes whose end is recorded, in file order.

        Both are empty if not `ends_known`: what looks like one episode may be several.
        """
        if not self.ends_known:
            return np.zeros(0), np.zeros(0, np.int64)
        returns, lengths = np.zeros(int(self.episode[-1]) + 1), np.zeros(int(self.episode[-1]) + 1, np.int64)
        rew, complete = self.rew, 0
        for rows in blocks(self.n_rows):
            episode = self.episode[rows].cpu().numpy()
            np.add.at(returns, episode, rew[rows].cpu().numpy())
            np.add.at(lengths, episode, 1)
            complete += int((self.terminated[rows] | self.truncated[rows]).sum())
        return returns[:complete], lengths[:complete]


def draw(dataset: TransitionDataset, n: int) -> Tensor:
    """Numbers of `n` usable rows for each seed, uniformly and with replacement: `(*seeds, n)`."""
    chosen = torch.randint(len(dataset.index), (*dataset.seeds, n), device=dataset.index.device)
    return dataset.index[chosen]


def gather(dataset: TransitionDataset, index: Tensor) -> Packed:
    """The rows at `index (*S, B)`; `truncated` is not filled in, because no batch holds it."""
    flat, layout = index.reshape(-1), dataset._drawn
    drawn = dataset.packed.new_empty(len(flat), layout.width)
    torch.index_select(dataset.packed, 0, flat, out=drawn[:, : dataset.packed.shape[1]])
    if dataset.shaped is not None:
        torch.index_select(dataset.shaped, 0, flat, out=drawn[:, layout.column("rew")])
    if dataset.returns is not None:
        torch.index_select(dataset.returns, 0, flat, out=drawn[:, layout.column(RETURN)])
    return Packed(drawn.view(*index.shape, layout.width), layout)


def build_dataset(fields: Fields, attrs: Attrs | None, where: object, new: New = in_ram) -> TransitionDataset:
    """Build a dataset, in `new` arrays, from what `check_fields` returned; `where` names it in errors.

    Raises `UserError` if not one next observation is known.
    """
    attrs = dict(attrs or {})
    obs, act, given = fields["observations"], fields["actions"], fields.get("next_observations")
    n, obs_dim, act_dim = len(obs), obs.shape[1], act.shape[1]
    layout = RowLayout(obs_dim, act_dim)
    truncated, ends_known = cuts.find_truncations(fields, attrs, where, new)
    packed = new("packed", (n, layout.width), np.float32)
    terminated = new("terminated", (n,), np.bool_)
    valid_next = new("valid_next", (n,), np.bool_)
    episode = new("episode", (n,), np.int64)
    usable, episodes = 0, 0
    for rows in blocks(*packed.shape):
        done = fields["terminals"][rows]
        end = done | truncated[rows]
        next_obs = _observations_below(obs, end, rows) if given is None else given[rows]
        known = np.isfinite(next_obs).all(1)
        rew = fields["rewards"][rows]
        layout.fill(packed[rows], obs=obs[rows], act=act[rows], rew=rew, next_obs=next_obs, done=done)
        terminated[rows] = done
        valid_next[rows] = known
        ended = np.cumsum(end)
        episode[rows] = episodes + ended - end
        usable += int(known.sum())
        episodes += int(ended[-1])
    if not usable:
        raise UserError(
            f"{where}: not one next observation is known; give next_observations, or longer episodes"
        )
    index = new("index", (usable,), np.int64)
    _write_row_numbers(index, valid_next)
    arrays = (packed, terminated, truncated, valid_next, episode, index)
    tensors: dict[str, Any] = {name: torch.from_numpy(x) for name, x in zip(COLUMNS, arrays, strict=True)}
    return TransitionDataset(**tensors, obs_dim=obs_dim, act_dim=act_dim, attrs=attrs, ends_known=ends_known)


def fields_of(dataset: TransitionDataset) -> Fields:
    """All six fields of a dataset, in memory, as `check_fields` takes them."""
    columns = {
        "observations": dataset.obs,
        "actions": dataset.act,
        "rewards": dataset.rew,
        "terminals": dataset.terminated,
        "timeouts": dataset.truncated,
        "next_observations": dataset.next_obs,
    }
    return {key: x.cpu().numpy() for key, x in columns.items()}


def returns_to_go(dataset: TransitionDataset, gamma: float) -> Tensor:
    """Σ_k γ^k r_{t+k} to the end of the row's episode, `(N,)` float32.

    In a truncated episode the sum stops where the record does, so that later rewards are missing. In an
    episode that the end of the file cuts it is NaN, and so it is everywhere if not `ends_known`.
    """
    out = dataset.new("returns", (dataset.n_rows,), np.float32)
    if not dataset.ends_known:
        out[:] = np.nan
        return torch.from_numpy(out).to(dataset.packed.device)
    rew, later = dataset.rew, np.nan
    for rows in reversed(list(blocks(dataset.n_rows))):
        end = (dataset.terminated[rows] | dataset.truncated[rows]).tolist()
        sums = np.empty(len(end))
        for t, reward in reversed(list(enumerate(rew[rows].tolist()))):
            later = reward if end[t] else reward + gamma * later
            sums[t] = later
        out[rows] = sums
    return torch.from_numpy(out).to(dataset.packed.device)


def _observations_below(obs: np.ndarray, end: np.ndarray, rows: slice) -> np.ndarray:
    """The observations one row below; NaN for rows that end an episode, and for the last row of all."""
    below = np.full_like(obs[rows], np.nan)
    after = obs[rows.start + 1 : rows.stop + 1]
    inside = ~end[: len(after)]
    below[: len(after)][inside] = after[inside]
    return below


def _write_row_numbers(index: np.ndarray, mask: np.ndarray) -> None:
    """Write into `index` the numbers of the rows in which `mask` is true."""
    done = 0
    for rows in blocks(len(mask)):
        found = rows.start + np.flatnonzero(mask[rows])
        index[done : done + len(found)] = found
        done += len(found)
