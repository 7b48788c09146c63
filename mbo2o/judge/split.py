"""Rows of a log that no training sees, so that what is measured on them is not learned by heart."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mbo2o.data.dataset import TransitionDataset
from mbo2o.types import UserError

EVERY = 10
"""One in so many episodes is held out."""
FEWEST = 20
"""The fewest rows with a known next observation of which a part can be held out."""


def split(data: TransitionDataset) -> tuple[TransitionDataset, TransitionDataset]:
    """The rows to learn from, and those held out.

    Held out is every tenth episode, or with fewer than ten the last tenth of all rows. Both parts are copies
    in memory. Raises `UserError` for too few rows.
    """
    if len(data) < FEWEST:
        text = f"{len(data)} rows with a known next observation are too few to judge a policy on"
        raise UserError(f"{text}; record at least {FEWEST}")
    episodes = int(data.episode[-1]) + 1
    if episodes >= EVERY:
        held = data.episode % EVERY == EVERY - 1
    else:
        held = torch.arange(data.n_rows) >= data.n_rows - max(1, data.n_rows // EVERY)
    if not bool(data.valid_next[held].any()) or not bool(data.valid_next[~held].any()):
        held = torch.arange(data.n_rows) % EVERY == EVERY - 1
    return _part(data, ~held), _part(data, held)


def _part(data: TransitionDataset, rows: Tensor) -> TransitionDataset:
    valid = data.valid_next[rows]
    numbers = torch.unique_consecutive(data.episode[rows], return_inverse=True)[1]
    return replace(
        data,
        packed=data.packed[rows],
        terminated=data.terminated[rows],
        truncated=data.truncated[rows],
        valid_next=valid,
        episode=numbers,
        index=valid.nonzero().squeeze(-1),
    )


def starts(data: TransitionDataset, most: int) -> Tensor:
    """The first observations of at most `most` episodes, evenly over the log: `(n, D)`."""
    first = torch.cat([torch.ones(1, dtype=torch.bool), data.episode[1:] != data.episode[:-1]])
    rows = first.nonzero().squeeze(-1)
    chosen = torch.linspace(0, len(rows) - 1, min(most, len(rows))).round().long()
    return data.obs[rows[chosen]]
