"""The vocabulary that every layer shares: a batch, a spec, a source, and errors that are the user's to mend.

Axes are counted from the right. Scalars end in the batch axis `(*S, B)`, vectors in batch and feature `(*S, B, D)`;
ensemble members stand left of the batch `(*S, M, B)` / `(*S, M, B, D)`; whatever is left of that are seeds. `*S` may be
empty (one model, taken away for planning) or `(S,)` (S seeds trained side by side).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Protocol, TypeVar

import torch
from torch import Tensor

Metrics = dict[str, Tensor]
"""Named measurements, one number per seed: each `(*S,)` (or `(*S, K)`), left on its device until a log line is due."""

TerminationFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(obs (*S, B, D), act (*S, B, A), next_obs (*S, B, D)), all in raw units → bool (*S, B): the episode ends here."""

RewardFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(obs, act, next_obs) in raw units → reward (*S, B)."""

RewardT = TypeVar("RewardT", Tensor, float)


class UserError(Exception):
    """A mistake of the user's: shown as one line (what, where, what to do), exit code 2, no traceback."""


def at_least_one(where: str, **counts: float) -> None:
    """Raise a `UserError` for the first of these numbers that is below 1."""
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"{where}: {name}={value} must be at least 1")


def duration(seconds: float) -> str:
    """A time in the unit that suits its size: `7 s`, `2.5 min`, `3.1 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


class Diverged(Exception):
    """Training left the realm of numbers: shown as one line, exit code 3; the last checkpoint stays."""


@dataclass(frozen=True)
class RewardView:
    """The rewards that agents learn from, `scale * r + shift`, beside the task's own `r`."""

    scale: float = 1.0
    shift: float = 0.0

    def __call__(self, reward: RewardT) -> RewardT:
        """The reward that agents see, for a tensor of any shape or one number."""
        return self.scale * reward + self.shift


@dataclass(slots=True)
class Batch:
    """Transitions, seeds first."""

    obs: Tensor
    """`(*S, B, D)`, raw units; networks normalise for themselves."""
    act: Tensor
    """`(*S, B, A)`, in [-1, 1]."""
    rew: Tensor
    """`(*S, B)`."""
    next_obs: Tensor
    """`(*S, B, D)`: the state that followed, also at an episode's end."""
    done: Tensor
    """`(*S, B)`: 1 where the task ended, so that nothing is bootstrapped; 0 at time limits."""
    mc_return: Tensor | None = None
    """`(*S, B)`: discounted sum of the rewards that followed in the record, -inf where its end is not known (yet).
    None where nothing was recorded, as in imagined data."""

    def map(self, f: Callable[[Tensor], Tensor]) -> Batch:
        """Apply `f` to each field that is there."""
        return combine(f, [self])

    def blocks(self) -> Iterator[Batch]:
        """Itself: all `Rows` in one block."""
        yield self

    def deal(self, n: int) -> list[Batch]:
        """The rows dealt out to `n` batches in turn, so that what stands in exact shares in one stands so in each."""
        if n == 1:
            return [self]
        axis = self.rew.dim() - 1
        return [self.map(lambda x: x[(slice(None),) * axis + (slice(i, None, n),)]) for i in range(n)]  # noqa: B023


def combine(f: Callable[..., Tensor], batches: Sequence[Batch]) -> Batch:
    """Apply `f` to the batches' tensors of each name; returns are there only if all batches have them."""
    columns = [[getattr(b, x.name) for b in batches] for x in fields(Batch)]
    return Batch(*(None if any(x is None for x in xs) else f(*xs) for xs in columns))  # type: ignore[arg-type]


def cat(batches: Sequence[Batch]) -> Batch:
    """Join batches along the batch axis."""
    vectors = batches[0].rew.dim() + 1
    return combine(lambda *xs: torch.cat(xs, -2 if xs[0].dim() == vectors else -1), batches)


@dataclass(frozen=True)
class Spec:
    """What an agent or a model has to know of the task, and how many seeds it trains side by side."""

    obs_dim: int
    act_dim: int
    seeds: tuple[int, ...] = ()
    """Leading axes of everything: `()` for one model alone, `(S,)` for S seeds in one process."""
    device: str = "cpu"
    inits: tuple[torch.Generator, ...] = field(default=(), compare=False, repr=False)
    """One generator for each seed, from which its initial networks are drawn; empty: they come from torch's own stream."""


class Rows(Protocol):
    """Known rows, such as a batch, or a dataset's, which may be more than memory holds."""

    def blocks(self) -> Iterator[Batch]:
        """All of them, `(*S, B, ...)` at a time, each time from the first."""
        ...


class Source(Protocol):
    """Where a batch comes from, as a value: a dataset, a buffer, a mixture of both."""

    def __len__(self) -> int: ...

    def sample(self, n: int) -> Batch:
        """Draw `n` transitions per seed: fields `(*S, n, ...)`."""
        ...
