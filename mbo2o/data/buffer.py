"""A ring of transitions with a seed axis, for what is experienced online and for what is imagined."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mbo2o.data.fields import Fields
from mbo2o.data.layout import RETURN, TRUNCATED, RowLayout
from mbo2o.types import Batch, Spec


class ReplayBuffer:
    """The last `capacity` transitions of each seed: float32 `(S, capacity, W)`, rows of a `RowLayout`.

    Seeds fill at their own pace: an imagined rollout that ends early for one seed writes fewer rows there,
    and the same number as before elsewhere.

    With a `gamma` batches hold the return that followed each row. Rows that are added without returns are
    steps of one episode after another: their return is -inf until their episode ends (Cal-QL's bound is then
    no bound). `failure`: see `TransitionDataset.with_returns`.
    """

    def __init__(self, spec: Spec, capacity: int, gamma: float | None = None, failure: float | None = None):
        self.spec, self.capacity = spec, capacity
        self._gamma, self._failure = gamma, failure
        self._n_seeds = int(np.prod(spec.seeds, dtype=int))
        more = [TRUNCATED] if gamma is None else [TRUNCATED, RETURN]
        self._layout = RowLayout(spec.obs_dim, spec.act_dim, *more)
        self._rows = torch.zeros(self._n_seeds, capacity, self._layout.width, device=spec.device)
        # How many rows each seed ever wrote, which also says where the ring continues.
        self._written = torch.zeros(self._n_seeds, dtype=torch.int64, device=spec.device)
        # The value of that count when the current episode began.
        self._begun = torch.zeros_like(self._written)

    def __len__(self) -> int:
        """How many rows can be drawn, in the seed that has the fewest."""
        return int(self._written.min().clamp(max=self.capacity))

    @property
    def index(self) -> Tensor:
        """The rows that every seed has, `(n,)`."""
        return torch.arange(len(self), device=self.spec.device)

    def add(self, batch: Batch, truncated: Tensor | None = None, keep: Tensor | None = None) -> None:
        """Append the rows of `(*S, B, ...)` for which `keep` `(*S, B)` is true (by default all of them)."""
        b = batch.rew.shape[-1]
        if b > self.capacity:
            raise ValueError(f"{b} rows do not fit into a buffer of {self.capacity}")
        if self._gamma is not None and batch.mc_return is None and b != 1:
            raise ValueError(
                f"a buffer that keeps returns takes steps one at a time, or with their returns; found {b}"
            )
        rows = self._layout.pack(batch, truncated).reshape(self._n_seeds, b, self._layout.width)
        kept = torch.ones(self._n_seeds, b, dtype=torch.bool, device=rows.device)
        if keep is not None:
            kept = keep.reshape(self._n_seeds, b)
        place = (self._written.unsqueeze(-1) + kept.cumsum(-1) - 1) % self.capacity
        seed, row = kept.nonzero(as_tuple=True)
        self._rows[seed, place[seed, row]] = rows[seed, row]
        self._written += kept.sum(-1)
        if batch.mc_return is not None:
            self._begun.copy_(self._written)
        elif self._gamma is not None:
            flags = rows[..., self._layout.column("done")] + rows[..., self._layout.column(TRUNCATED)]
            ended = kept & (flags > 0)
            for k in ended.squeeze(-1).nonzero().flatten().tolist():
                self._close_episode(k)

    def cut(self, k: int) -> None:
        """End seed k's current episode with its latest row: what would have followed is unknown."""
        if self._begun[k] < self._written[k]:
            latest = (self._written[k] - 1) % self.capacity
            self._rows[k, latest, self._layout.column(TRUNCATED)] = 1
            self._begun[k] = self._written[k]

    def _close_episode(self, k: int) -> None:
        """Write the returns of seed k's episode, whose last row is the latest one."""
        assert self._gamma is not None
        n = min(int(self._written[k] - self._begun[k]), self.capacity)
        place = (self._written[k] - n + torch.arange(n, device=self._rows.device)) % self.capacity
        rew = self._rows[k, place, self._layout.column("rew")]
        out, later = [0.0] * n, 0.0
        for t, r in reversed(list(enumerate(rew.tolist()))):
            later = r + self._gamma * later
            out[t] = later
        # The comparison is in float32, in which 0.1 is another number than in Python.
        if self._failure is not None and bool((rew == self._failure).all()):
            out = [self._failure / (1 - self._gamma)] * n
        self._rows[k, place, self._layout.column(RETURN)] = torch.tensor(out, device=self._rows.device)
        self._begun[k] = self._written[k]

    def sample(self, n: int, youngest: int | None = None) -> Batch:
        """`n` rows per seed, uniformly and with replacement; from the `youngest` rows if that is given."""
        if len(self) == 0:
            raise ValueError("cannot sample from an empty buffer")
        of = self.capacity if youngest is None else min(youngest, self.capacity)
        size = self._written.clamp(max=of).unsqueeze(-1)
        # float64, because float32 has too few digits to reach every row of a large ring
        row = (torch.rand(self._n_seeds, n, dtype=torch.float64, device=size.device) * size).long()
        if of < self.capacity:
            row = (self._written.unsqueeze(-1) - size + row) % self.capacity
        return self.rows(row)

    def latest(self, n: int) -> Batch:
        """The `n` youngest rows of each seed (fewer while there are fewer), oldest first."""
        n = min(n, len(self))
        back = torch.arange(-n, 0, device=self._rows.device)
        return self.rows((self._written.unsqueeze(-1) + back) % self.capacity)

    def rows(self, index: Tensor) -> Batch:
        """Rows by position, `(*S, B)` → fields `(*S, B, ...)`."""
        index = index.reshape(self._n_seeds, index.shape[-1])
        start = torch.arange(self._n_seeds, device=index.device).unsqueeze(-1) * self.capacity
        rows = self._rows.flatten(0, 1).index_select(0, (index + start).flatten())
        return self._layout.unpack(rows.reshape(*self.spec.seeds, index.shape[1], self._layout.width))

    def largest_reward(self) -> float:
        """The largest |reward| of all rows; 0 while there are none."""
        return float(self._rows[..., self._layout.column("rew")].abs().max())

    def record(self, seed: int) -> Fields:
        """One seed's rows, oldest first, as the fields of a dataset; the last row counts as a timeout."""
        size = int(self._written[seed].clamp(max=self.capacity))
        order = (int(self._written[seed]) - size + np.arange(size)) % self.capacity
        rows = self._rows[seed].cpu().numpy()[order]
        parts = {key: rows[:, columns] for key, columns in self._layout.columns.items()}
        terminals = parts["done"][:, 0] > 0
        timeouts = parts[TRUNCATED][:, 0] > 0
        timeouts[-1:] |= ~terminals[-1:]
        return {
            "observations": parts["obs"],
            "actions": parts["act"],
            "rewards": parts["rew"][:, 0],
            "next_observations": parts["next_obs"],
            "terminals": terminals,
            "timeouts": timeouts,
        }

    def state_dict(self) -> dict[str, Tensor]:
        """The rows written so far, and how many there were."""
        used = int(self._written.max().clamp(max=self.capacity))
        return {
            "rows": self._rows[:, :used].clone(),
            "written": self._written.clone(),
            "begun": self._begun.clone(),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` of a buffer of the same capacity returned."""
        saved = state["rows"].shape[1]
        if saved > self.capacity or int(state["written"].max()) > saved < self.capacity:
            raise RuntimeError(f"saved by a buffer of {saved} rows, this one has {self.capacity}")
        self._rows[:, :saved] = state["rows"]
        self._written.copy_(state["written"])
        self._begun.copy_(state["begun"])
