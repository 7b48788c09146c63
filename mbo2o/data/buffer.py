"""A ring of transitions with a seed axis, for what is experienced online and for what is imagined."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mbo2o.data.fields import Fields
from mbo2o.data.layout import RETURN, TRUNCATED, Packed, RowLayout
from mbo2o.types import Batch, Spec


class ReplayBuffer:
    """The last `capacity` transitions of each seed: float32 `(S, capacity, W)`, rows of a `RowLayout`.

    Seeds fill at their own pace: an imagined rollout that ends early for one seed writes fewer rows there,
    and the same number as before elsewhere. How full they are is known on the device, so that neither `add`
    nor `sample` waits for it, and a graph that has captured `sample` draws from a buffer that grows.

    With a `gamma` batches hold the return that followed each row. Rows that are added without returns are
    steps of one episode after another: their return is -inf until their episode ends (Cal-QL's bound is then
    no bound). `failure`: see `TransitionDataset.with_returns`.
    """

    def __init__(self, spec: Spec, capacity: int, gamma: float | None = None, failure: float | None = None):
        self.spec, self.capacity = spec, capacity
        self._gamma, self._failure = gamma, failure
        self._n_seeds = int(np.prod(spec.seeds, dtype=int))
        more = [TRUNCATED] if gamma is None else [TRUNCATED, RETURN]
        self.layout = RowLayout(spec.obs_dim, spec.act_dim, *more)
        # One row more than the ring has takes what is not kept.
        self._rows = torch.zeros(self._n_seeds, capacity + 1, self.layout.width, device=spec.device)
        self._first = torch.arange(self._n_seeds, device=spec.device) * (capacity + 1)
        # How many rows each seed ever wrote, which also says where the ring continues.
        self._written = torch.zeros(self._n_seeds, dtype=torch.int64, device=spec.device)
        # The value of that count when the current episode began.
        self._begun = torch.zeros_like(self._written)
        # Both as arrays, where they lie in the host's memory.
        on_host = torch.device(spec.device).type == "cpu"
        self._host = (self._rows.numpy(), self._written.numpy()) if on_host else None
        # The count where the host knows it: as long as all rows of all seeds are kept.
        self._even: int | None = 0

    def __len__(self) -> int:
        """How many rows can be drawn, in the seed that has the fewest."""
        return min(int(self._written.min()) if self._even is None else self._even, self.capacity)

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
        rows = self.layout.pack(batch, truncated).reshape(self._n_seeds, b, self.layout.width)
        kept = None if keep is None else keep.reshape(self._n_seeds, b)
        self._write(rows, kept)
        if batch.mc_return is not None:
            self._begun.copy_(self._written)
        elif self._gamma is not None:
            ended = self._ends(rows[:, 0])
            self._close_episodes((ended if kept is None else ended & kept[:, 0]).tolist())

    def append(self, steps: np.ndarray) -> None:
        """Append a step of each seed: float32 `(S, width)` in the order of `layout`, in one transfer."""
        if self._host is not None and self._even is not None:  # NumPy writes a row in a tenth of the time
            rows, written = self._host
            rows[:, self._even % self.capacity] = steps
            self._even += 1
            written.fill(self._even)
        else:
            self._write(torch.from_numpy(steps[:, None]))
        if self._gamma is not None:
            self._close_episodes(self._ends(steps).tolist())

    def _write(self, rows: Tensor, kept: Tensor | None = None) -> None:
        """Write rows `(S, B, width)`, or those that are `kept` `(S, B)`, without a wait for the device."""
        b = rows.shape[1]
        if kept is None and self._even is not None:
            first = self._even % self.capacity
            if first + b <= self.capacity:
                self._rows[:, first : first + b].copy_(rows, non_blocking=True)
                self._written += b
                self._even += b
                return
        written = self._written.unsqueeze(-1)
        if kept is None:
            place = (written + torch.arange(b, device=written.device)) % self.capacity
            self._written += b
            self._even = None if self._even is None else self._even + b
        else:
            place = torch.where(kept, (written + kept.cumsum(-1) - 1) % self.capacity, self.capacity)
            self._written += kept.sum(-1)
            self._even = None
        place = (place + self._first.unsqueeze(-1)).flatten()
        self._rows.flatten(0, 1).index_copy_(0, place, rows.flatten(0, 1).to(place.device))

    def _ends(self, rows: Any) -> Any:
        """Which of these rows `(S, width)` end an episode."""
        return (rows[:, self.layout.column("done")] + rows[:, self.layout.column(TRUNCATED)]) > 0

    def cut(self, k: int) -> None:
        """End seed k's current episode with its latest row: what would have followed is unknown."""
        if self._begun[k] < self._written[k]:
            latest = (self._written[k] - 1) % self.capacity
            self._rows[k, latest, self.layout.column(TRUNCATED)] = 1
            self._begun[k] = self._written[k]

    def _close_episodes(self, ended: list[bool]) -> None:
        for k in [k for k, over in enumerate(ended) if over]:
            self._close_episode(k)

    def _close_episode(self, k: int) -> None:
        """Write the returns of seed k's episode, whose last row is the latest one."""
        assert self._gamma is not None
        n = min(int(self._written[k] - self._begun[k]), self.capacity)
        place = (self._written[k] - n + torch.arange(n, device=self._rows.device)) % self.capacity
        rew = self._rows[k, place, self.layout.column("rew")]
        out, later = [0.0] * n, 0.0
        for t, r in reversed(list(enumerate(rew.tolist()))):
            later = r + self._gamma * later
            out[t] = later
        # The comparison is in float32, in which 0.1 is another number than in Python.
        if self._failure is not None and bool((rew == self._failure).all()):
            out = [self._failure / (1 - self._gamma)] * n
        self._rows[k, place, self.layout.column(RETURN)] = torch.tensor(out, device=self._rows.device)
        self._begun[k] = self._written[k]

    def sample(self, n: int, youngest: int | None = None) -> Batch:
        """`n` rows per seed, uniformly and with replacement; from the `youngest` rows if that is given."""
        return self.gather(self.draw(n, youngest)).batch

    def draw(self, n: int, youngest: int | None = None) -> Tensor:
        """Positions `(*S, n)` of rows that `sample` draws."""
        if self._even == 0:
            raise ValueError("cannot sample from an empty buffer")
        of = self.capacity if youngest is None else min(youngest, self.capacity)
        size = self._written.clamp(max=of).unsqueeze(-1)
        # float64, because float32 has too few digits to reach every row of a large ring
        row = (torch.rand(self._n_seeds, n, dtype=torch.float64, device=size.device) * size).long()
        if of < self.capacity:
            row = (self._written.unsqueeze(-1) - size + row) % self.capacity
        return row.view(*self.spec.seeds, n)

    def latest(self, n: int) -> Batch:
        """The `n` youngest rows of each seed (fewer while there are fewer), oldest first."""
        n = min(n, len(self))
        back = torch.arange(-n, 0, device=self._rows.device)
        return self.rows((self._written.unsqueeze(-1) + back) % self.capacity)

    def rows(self, index: Tensor) -> Batch:
        """Rows by position, `(*S, B)` → fields `(*S, B, ...)`."""
        return self.gather(index).batch

    def gather(self, index: Tensor) -> Packed:
        """Rows by position, `(*S, B)`."""
        index = index.reshape(self._n_seeds, index.shape[-1])
        place = (index + self._first.unsqueeze(-1)).flatten()
        rows = self._rows.flatten(0, 1).index_select(0, place)
        return Packed(rows.view(*self.spec.seeds, index.shape[1], self.layout.width), self.layout)

    def largest_reward(self) -> float:
        """The largest |reward| of all rows; 0 while there are none."""
        return float(self._rows[:, : self.capacity, self.layout.column("rew")].abs().max())

    def record(self, seed: int) -> Fields:
        """One seed's rows, oldest first, as the fields of a dataset; the last row counts as a timeout."""
        size = int(self._written[seed].clamp(max=self.capacity))
        order = (int(self._written[seed]) - size + np.arange(size)) % self.capacity
        rows = self._rows[seed].cpu().numpy()[order]
        parts = {key: rows[:, columns] for key, columns in self.layout.columns.items()}
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
        rows, surplus = state["rows"], self.layout.width - state["rows"].shape[-1]
        if abs(surplus) == 1:  # the return, the last column, which only some runs keep
            rows = F.pad(rows, (0, surplus), value=-torch.inf)
        self._rows[:, :saved] = rows
        self._written.copy_(state["written"])
        counts = set(state["written"].tolist())
        self._even = counts.pop() if len(counts) == 1 else None
        self._begun.copy_(state["begun"])
