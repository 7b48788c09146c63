"""What every registered source of online batches offers, and checks that configs make of their numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mbo2o.data.buffer import ReplayBuffer
from mbo2o.data.dataset import TransitionDataset
from mbo2o.registry import SOURCES
from mbo2o.types import Batch, Prepare, Spec, UserError


@dataclass
class SourceConfig:
    """Base of all settings of sources. A subclass checks its numbers in `__post_init__`."""

    def __post_init__(self) -> None:
        """Raise a `UserError` for a number that is out of its range."""


class BaseSource:
    """A `Source` of online batches, drawn from the dataset and from what was experienced.

    A recipe makes one at the switch, calls `begin` there once, and calls `advance` in each turn that learns.

    A subclass that has networks or other state is a `torch.nn.Module` too: then the recipe saves its state
    with the run. A subclass that learns has a method `learn(batch) -> Metrics`, which `Run.learn` calls
    after each update of the agent with the batch of that update.
    """

    def __init__(
        self, cfg: Any, spec: Spec, offline: TransitionDataset, online: ReplayBuffer, warmup: int = 0
    ):
        """Draw from `offline` and `online`; the first update is made after `warmup` environment steps."""
        self.cfg = cfg
        self.spec = spec
        self.offline = offline
        self.online = online
        self.warmup = warmup
        self.share = 1.0
        """The offline share of a batch, for sources that have one; `advance` sets it."""
        self.scores: dict[str, Callable[[Batch], Tensor]] = {}
        """Scores of rows, `(*S, B)`, that the recipe knows; a source that weighs rows names one of them."""

    @classmethod
    def check(cls, cfg: Any, rows: int, capacity: int) -> None:
        """Raise a `UserError` if `rows` rows of data and a buffer for `capacity` rows do not suit `cfg`.

        Recipes ask before the offline phase, so that no training is lost.
        """

    def prepare(self, prepare: Prepare) -> None:
        """Have its own learning steps, if it makes any, run as `prepare` turns them into, such as compiled.

        It is called once, before `begin`.
        """

    def begin(self) -> None:
        """Do what is done once, at the switch, such as writing to the online buffer."""

    def advance(self, steps: int) -> None:
        """Set what depends on time for a turn that learns.

        steps: environment steps per seed of the online phase before this turn, which has added one row
        already.
        """

    def updates(self, usual: int) -> int:
        """The number of updates that this turn makes, where other turns make `usual` ones."""
        return usual

    def __len__(self) -> int:
        return len(self.offline) + len(self.online)

    def sample(self, n: int) -> Batch:
        """Draw `n` transitions per seed: fields `(*S, n, ...)`."""
        raise NotImplementedError


def source_class(cfg: SourceConfig) -> type[BaseSource]:
    """The source that is registered with `cfg`'s dataclass."""
    for entry in SOURCES.values():
        if entry.config is type(cfg):
            return entry.cls
    names = ", ".join(sorted(SOURCES))
    raise UserError(f"recipe.source={cfg}: no source is registered with that config; choices: {names}")


def make_source(
    cfg: SourceConfig, spec: Spec, offline: TransitionDataset, online: ReplayBuffer, warmup: int = 0
) -> BaseSource:
    """The source that is registered with `cfg`'s dataclass, see `BaseSource`."""
    return source_class(cfg)(cfg, spec, offline, online, warmup)


def check_counts(where: str, cfg: Any, *names: str) -> None:
    """Raise a `UserError` for the first of these settings that is below 1."""
    for name in names:
        if getattr(cfg, name) < 1:
            raise UserError(f"{where}.{name}={getattr(cfg, name)} must be at least 1")


def check_steps(where: str, cfg: Any, *names: str) -> None:
    """Raise a `UserError` for the first of these settings that is negative."""
    for name in names:
        if getattr(cfg, name) < 0:
            raise UserError(f"{where}.{name}={getattr(cfg, name)} must not be negative")


def check_shares(where: str, cfg: Any, *names: str) -> None:
    """Raise a `UserError` for the first of these settings that is outside [0, 1]."""
    for name in names:
        if not 0 <= getattr(cfg, name) <= 1:
            raise UserError(f"{where}.{name}={getattr(cfg, name)} is a share: it must lie in [0, 1]")
