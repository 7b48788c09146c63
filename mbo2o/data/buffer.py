"""A ring of transitions with a seed axis, for what is experienced online and for what is imagined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mbo2o.types import Batch, Spec

from . import schema


class ReplayBuffer:
    """The last `capacity` transitions of each seed, packed: float32 `(S, capacity, obs|act|rew|next_obs|done|truncated)`.

    Seeds fill at their own pace: an imagined rollout that ends early for one seed writes fewer rows there, and no fewer
    elsewhere.
    """

    def __init__(self, spec: Spec, capacity: int):
        self.spec, self.capacity = spec, capacity
        self._n_seeds = int(np.prod(spec.seeds, dtype=int))
        self._widths = [spec.obs_dim, spec.act_dim, 1, spec.obs_dim, 1, 1]
        self._rows = torch.zeros(self._n_seeds, capacity, sum(self._widths), device=spec.device)
        self._written = torch.zeros(self._n_seeds, dtype=torch.int64, device=spec.device)  # ever, so also the ring's head

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
        truncated = torch.zeros_like(batch.rew) if truncated is None else truncated.to(batch.rew.dtype)
        columns = [x.unsqueeze(-1) for x in (batch.rew, batch.done, truncated)]
        rows = torch.cat([batch.obs, batch.act, columns[0], batch.next_obs, columns[1], columns[2]], -1)
        rows = rows.reshape(self._n_seeds, b, rows.shape[-1])
        kept = torch.ones_like(rows[..., 0], dtype=torch.bool) if keep is None else keep.reshape(self._n_seeds, b)
        place = (self._written.unsqueeze(-1) + kept.cumsum(-1) - 1) % self.capacity
        seed, row = kept.nonzero(as_tuple=True)
        self._rows[seed, place[seed, row]] = rows[seed, row]
        self._written += kept.sum(-1)

    def sample(self, n: int) -> Batch:
        """`n` rows per seed, uniformly with replacement."""
        if len(self) == 0:
            raise ValueError("cannot sample from an empty buffer")
        size = self._written.clamp(max=self.capacity).unsqueeze(-1)
        # float64: float32 would not reach every row of a large ring
        return self.rows((torch.rand(self._n_seeds, n, dtype=torch.float64, device=size.device) * size).long())

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
        obs, act, rew, next_obs, done, _ = rows.reshape(*self.spec.seeds, index.shape[1], sum(self._widths)).split(
            self._widths, -1
        )
        return Batch(obs, act, rew.squeeze(-1), next_obs, done.squeeze(-1))

    def state_dict(self) -> dict[str, Tensor]:
        """The rows written so far and how many there were."""
        used = int(self._written.max().clamp(max=self.capacity))
        return {"rows": self._rows[:, :used].clone(), "written": self._written.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what a buffer of the same capacity returned from `state_dict`."""
        if state["rows"].shape[1] > self.capacity or int(state["written"].max()) > state["rows"].shape[1] < self.capacity:
            raise RuntimeError(f"saved by a buffer of {state['rows'].shape[1]} rows, this one has {self.capacity}")
        self._rows[:, : state["rows"].shape[1]] = state["rows"]
        self._written.copy_(state["written"])

    def save(self, path: Path, seed: int, attrs: dict[str, str | int | float]) -> None:
        """Write one seed's rows, oldest first, as a dataset in the schema; the last row closes its episode as cut."""
        size = int(self._written[seed].clamp(max=self.capacity))
        order = (int(self._written[seed]) - size + np.arange(size)) % self.capacity
        parts = np.split(self._rows[seed].cpu().numpy()[order], np.cumsum(self._widths)[:-1], axis=1)
        obs, act, rew, next_obs, done, truncated = parts
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
        schema.write(path, fields, attrs)
