"""A ring of transitions with a seed axis, for what is experienced online and for what is imagined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mbo2o.store import hdf5
from mbo2o.types import Batch, Spec


class ReplayBuffer:
    """The last `capacity` transitions of each seed, float32 `(S, capacity, obs|act|rew|next_obs|done|truncated|return)`.

    Seeds fill at their own pace: an imagined rollout that ends early for one seed writes fewer rows there, and no fewer
    elsewhere.

    With a `gamma` batches hold the return that followed each row. Rows that bring none are steps of one episode after
    another: -inf until theirs ends (Cal-QL's bound is then no bound). `failure`: see `TransitionDataset.with_returns`.
    """

    def __init__(self, spec: Spec, capacity: int, gamma: float | None = None, failure: float | None = None):
        self.spec, self.capacity, self._gamma, self._failure = spec, capacity, gamma, failure
        self._n_seeds = int(np.prod(spec.seeds, dtype=int))
        self._widths = [spec.obs_dim, spec.act_dim, 1, spec.obs_dim, 1, 1] + ([] if gamma is None else [1])
        self._rows = torch.zeros(self._n_seeds, capacity, sum(self._widths), device=spec.device)
        self._written = torch.zeros(
            self._n_seeds, dtype=torch.int64, device=spec.device
        )  # ever, so also the ring's head
        self._begun = torch.zeros_like(self._written)  # where in that count the episode in flight began

    def __len__(self) -> int:
        """Rows that can be drawn, in the seed that has fewest."""
        return int(self._written.min().clamp(max=self.capacity))

    @property
    def index(self) -> Tensor:
        """Rows that every seed can be asked for, `(n,)`."""
        return torch.arange(len(self), device=self.spec.device)

    def add(self, batch: Batch, truncated: Tensor | None = None, keep: Tensor | None = None) -> None:
        """Append the rows of `(*S, B, ...)` for which `keep` `(*S, B)` is true (all of them by default)."""
        b = batch.rew.shape[-1]
        if b > self.capacity:
            raise ValueError(f"{b} rows do not fit into a buffer of {self.capacity}")
        if self._gamma is not None and batch.mc_return is None and b != 1:
            raise ValueError(
                f"a buffer that keeps returns takes steps one at a time, or with their returns; found {b}"
            )
        truncated = torch.zeros_like(batch.rew) if truncated is None else truncated.to(batch.rew.dtype)
        columns = [x.unsqueeze(-1) for x in (batch.rew, batch.done, truncated)]
        if self._gamma is not None:
            mc = torch.full_like(batch.rew, -torch.inf) if batch.mc_return is None else batch.mc_return
            columns.append(mc.unsqueeze(-1))
        rows = torch.cat([batch.obs, batch.act, columns[0], batch.next_obs, *columns[1:]], -1)
        rows = rows.reshape(self._n_seeds, b, rows.shape[-1])
        kept = (
            torch.ones_like(rows[..., 0], dtype=torch.bool)
            if keep is None
            else keep.reshape(self._n_seeds, b)
        )
        place = (self._written.unsqueeze(-1) + kept.cumsum(-1) - 1) % self.capacity
        seed, row = kept.nonzero(as_tuple=True)
        self._rows[seed, place[seed, row]] = rows[seed, row]
        self._written += kept.sum(-1)
        if batch.mc_return is not None:
            self._begun.copy_(self._written)
        elif self._gamma is not None:
            ended = kept & ((batch.done + truncated).reshape(self._n_seeds, b) > 0)
            for k in ended.squeeze(-1).nonzero().flatten().tolist():
                self._close_episode(k)

    def cut(self, k: int) -> None:
        """End seed k's episode in flight with its latest row: what would have followed is not known."""
        if self._begun[k] < self._written[k]:
            self._rows[k, (self._written[k] - 1) % self.capacity, -1 if self._gamma is None else -2] = 1
            self._begun[k] = self._written[k]

    def _close_episode(self, k: int) -> None:
        """Write the returns of seed k's episode, whose last row is the latest one."""
        assert self._gamma is not None
        n = min(int(self._written[k] - self._begun[k]), self.capacity)
        place = (self._written[k] - n + torch.arange(n, device=self._rows.device)) % self.capacity
        rew = self._rows[k, place, self.spec.obs_dim + self.spec.act_dim]
        out, later = [0.0] * n, 0.0
        for t, r in reversed(list(enumerate(rew.tolist()))):
            out[t] = later = r + self._gamma * later
        if self._failure is not None and bool(
            (rew == self._failure).all()
        ):  # as float32, which -0.1 is not in Python
            out = [self._failure / (1 - self._gamma)] * n
        self._rows[k, place, -1] = torch.tensor(out, device=self._rows.device)
        self._begun[k] = self._written[k]

    def sample(self, n: int, youngest: int | None = None) -> Batch:
        """`n` rows per seed, uniformly with replacement, of the `youngest` rows alone if that is given."""
        if len(self) == 0:
            raise ValueError("cannot sample from an empty buffer")
        of = self.capacity if youngest is None else min(youngest, self.capacity)
        size = self._written.clamp(max=of).unsqueeze(-1)
        # float64: float32 would not reach every row of a large ring
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
        rows = rows.reshape(*self.spec.seeds, index.shape[1], sum(self._widths))
        obs, act, rew, next_obs, done, _, *mc = rows.split(self._widths, -1)
        return Batch(obs, act, rew.squeeze(-1), next_obs, done.squeeze(-1), *(x.squeeze(-1) for x in mc))

    def largest_reward(self) -> float:
        """The largest |reward| of all its rows; 0 while it has none."""
        return float(self._rows[..., self.spec.obs_dim + self.spec.act_dim].abs().max())

    def state_dict(self) -> dict[str, Tensor]:
        """The rows written so far and how many there were."""
        used = int(self._written.max().clamp(max=self.capacity))
        return {
            "rows": self._rows[:, :used].clone(),
            "written": self._written.clone(),
            "begun": self._begun.clone(),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what a buffer of the same capacity returned from `state_dict`."""
        if (
            state["rows"].shape[1] > self.capacity
            or int(state["written"].max()) > state["rows"].shape[1] < self.capacity
        ):
            raise RuntimeError(
                f"saved by a buffer of {state['rows'].shape[1]} rows, this one has {self.capacity}"
            )
        self._rows[:, : state["rows"].shape[1]] = state["rows"]
        self._written.copy_(state["written"])
        self._begun.copy_(state["begun"])

    def save(self, path: Path, seed: int, attrs: dict[str, str | int | float]) -> None:
        """Write one seed's rows, oldest first, as a dataset in the schema; the last row closes its episode as cut."""
        size = int(self._written[seed].clamp(max=self.capacity))
        order = (int(self._written[seed]) - size + np.arange(size)) % self.capacity
        parts = np.split(self._rows[seed].cpu().numpy()[order], np.cumsum(self._widths)[:-1], axis=1)
        obs, act, rew, next_obs, done, truncated = parts[:6]
        timeouts = truncated[:, 0] > 0
        timeouts[-1:] |= done[-1:, 0] == 0
        fields = {
            "observations": obs,
            "actions": act,
            "rewards": rew[:, 0],
            "next_observations": next_obs,
            "terminals": done[:, 0] > 0,
            "timeouts": timeouts,
        }
        hdf5.write(path, fields, attrs)
