"""The vocabulary that every layer shares: batches, sources, what an update is told, and errors for the user.

Axes are counted from the right. Scalars end in the batch axis `(*S, B)`, vectors in batch and feature
`(*S, B, D)`. Ensemble members stand left of the batch: `(*S, M, B)`, `(*S, M, B, D)`. What is left of that
are seeds: `*S` is empty for one model alone, as planning uses it, and `(S,)` for S seeds in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from mbo2o.errors import Diverged as Diverged
from mbo2o.errors import UserError as UserError
from mbo2o.errors import at_least_one as at_least_one

Metrics = dict[str, Tensor]
"""Measurements by name, per seed: `(*S,)` or `(*S, K)`. They stay on their device until a log line is due."""

TerminationFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(obs (*S, B, D), act (*S, B, A), next_obs (*S, B, D)) in raw units → bool (*S, B): the episode ends."""

RewardFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(obs, act, next_obs) in raw units → reward (*S, B)."""

Prepare = Callable[[Callable[..., Any]], Callable[..., Any]]
"""A step of learning or imagining → the same step as an engine runs it, such as compiled."""

RewardT = TypeVar("RewardT", Tensor, float)


def duration(seconds: float) -> str:
    """A time in the unit that suits its size: `7 s`, `2.5 min`, `3.1 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


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
    """`(*S, B, D)` in raw units; networks normalise for themselves."""
    act: Tensor
    """`(*S, B, A)` in [-1, 1]."""
    rew: Tensor
    """`(*S, B)`."""
    next_obs: Tensor
    """`(*S, B, D)`: the state that followed, also at the end of an episode."""
    done: Tensor
    """`(*S, B)`: 1 where the task ended, so that nothing is bootstrapped; 0 at time limits."""
    mc_return: Tensor | None = None
    """`(*S, B)`: the discounted sum of the rewards that followed in the record; -inf where its end is not
    known (yet). None where nothing was recorded, as in imagined data."""

    def map(self, f: Callable[[Tensor], Tensor]) -> Batch:
        """Apply `f` to each field that is there."""
        return combine(f, [self])

    def blocks(self) -> Iterator[Batch]:
        """All rows as one block: a batch is `Blocks`."""
        yield self

    def deal(self, n: int) -> list[Batch]:
        """Deal the rows out to `n` batches, row i to batch i mod n: exact shares stay exact in each."""
        if n == 1:
            return [self]
        axis = self.rew.dim() - 1

        def every_nth(first: int) -> Batch:
            rows = (slice(None),) * axis + (slice(first, None, n),)
            return self.map(lambda x: x[rows])

        return [every_nth(i) for i in range(n)]


def combine(f: Callable[..., Tensor], batches: Sequence[Batch]) -> Batch:
    """Apply `f` to the batches' tensors of each name; it has returns only if all batches have them."""

    def column(name: str) -> Tensor | None:
        found = [getattr(b, name) for b in batches]
        return None if any(x is None for x in found) else f(*found)

    return Batch(**{x.name: column(x.name) for x in fields(Batch)})  # type: ignore[arg-type]


def cat(batches: Sequence[Batch]) -> Batch:
    """Join batches along the batch axis."""
    vectors = batches[0].rew.dim() + 1
    return combine(lambda *xs: torch.cat(xs, -2 if xs[0].dim() == vectors else -1), batches)


def uniform_actions(
    *shape: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None
) -> Tensor:
    """Actions of the given shape, drawn uniformly from [-1, 1)."""
    return torch.rand(*shape, device=device, generator=generator) * 2 - 1


@dataclass(frozen=True)
class Spec:
    """What an agent or a model has to know of the task, and how many seeds it trains side by side."""

    obs_dim: int
    act_dim: int
    seeds: tuple[int, ...] = ()
    """Leading axes of everything: `()` for one model alone, `(S,)` for S seeds in one process."""
    device: str = "cpu"
    inits: tuple[torch.Generator, ...] = field(default=(), compare=False, repr=False)
    """A generator per seed, from which its networks are drawn; without one, torch's own stream is used."""


@dataclass(frozen=True)
class Step:
    """What an update is told beside its batch: which one it is, counted since the agent was made.

    Nothing else changes from one update to the next, so that an update can be compiled, or captured as a
    graph that holds several of them: the host's number only selects among the few forms that an update has
    (see `due`), and everything that changes gradually is computed from the tensor.
    """

    index: int
    """In the last update of an agent's `cycle`, `cycle - 1`; in all others 0. Only `due` reads it."""
    count: Tensor
    """Which update this is, from 1: `()` int64 on the agent's device."""

    def due(self, every: int) -> bool:
        """Whether something that happens once in `every` updates happens in this one."""
        return (self.index + 1) % every == 0


class Blocks(Protocol):
    """Rows that can be gone through, such as a batch, or a dataset that memory may not hold at once."""

    def blocks(self) -> Iterator[Batch]:
        """All rows, `(*S, B, ...)` at a time, from the first one in each call."""
        ...


class Numbered(Protocol):
    """Rows that have numbers: a dataset or a buffer."""

    @property
    def index(self) -> Tensor:
        """Numbers of the rows whose next observation is known, `(n,)`. A row keeps its number."""
        ...

    def rows(self, index: Tensor) -> Batch:
        """`(*S, B)` numbers → fields `(*S, B, ...)`."""
        ...


class Source(Protocol):
    """Where a batch comes from, as a value: a dataset, a buffer, a mixture of both."""

    def __len__(self) -> int: ...

    def sample(self, n: int) -> Batch:
        """Draw `n` transitions per seed: fields `(*S, n, ...)`."""
        ...


def form(source: Source, n: int) -> Hashable:
    """What a draw of `n` rows depends on beside the contents of tensors, which may change.

    A source that is made of others, or of numbers, says so by its method `form`; another one is itself.
    """
    own = getattr(source, "form", None)
    return id(source) if own is None else own(n)


class Weighted(Source, Protocol):
    """A source that mixes numbered rows in known shares, as a dynamics model is fitted to."""

    @property
    def parts(self) -> Sequence[tuple[Numbered, float]]:
        """The parts, each with the probability that a row of the mixture comes from it."""
        ...
