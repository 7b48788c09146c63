"""What every learner offers: `update(batch)`, `act(obs)`, a state that is complete, and a way to take over another's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mbo2o.nn.init import per_seed
from mbo2o.nn.normalizer import Normalizer, block_statistics
from mbo2o.nn.optim import Adam
from mbo2o.registry import AGENTS
from mbo2o.types import Batch, Metrics, Rows, Spec


@dataclass(frozen=True)
class Change:
    """A line of the switch's table: what became of a part or a setting of the offline agent."""

    part: str
    what: str
    """kept: taken over; reset: both have it, yet it starts afresh; new: only the online agent has it; dropped: only the
    offline agent had it; changed: a setting whose value differs."""
    note: str = ""


class Agent(nn.Module, ABC):
    """A learner from batches. It knows no environment, dataset, phase or logger.

    Networks, targets, temperatures and optimisers are its submodules, so `state_dict` is everything that a restart needs.
    Observations are in raw units outside; `observe` scales them for the networks within.
    """

    clones = False
    """It learns from observations and actions alone: rows whose next observation is unknown are good enough, offline."""

    def __init__(self, spec: Spec, cfg: Any):
        super().__init__()
        self.spec, self.cfg = spec, cfg
        self.observe = Normalizer(spec.seeds, spec.obs_dim)  # x itself until `prepare` sets statistics
        self.updates = 0  # begun so far: schedules and delays count by it

    @property
    def needs_scores(self) -> bool:
        """Whether `on_episode` acts on scores, so that a task without a reference cannot be learned."""
        return False

    def prepare(self, data: Rows) -> None:
        """Before anything is learned from `data`, all of it: set what the networks have to know of its scale."""
        if getattr(self.cfg, "normalize", False):
            mean, std = block_statistics(lambda: (b.obs for b in data.blocks()))
            self.observe.mean.copy_(mean)
            self.observe.std.copy_(std)

    @abstractmethod
    def update(self, batch: Batch) -> Metrics:
        """One step of learning from `(*S, B, ...)`; metrics are `(*S,)` and stay on the device."""

    @abstractmethod
    def act(self, obs: Tensor, explore: bool = False) -> Tensor:
        """Observations `(*S, B, D)` → actions `(*S, B, A)` in [-1, 1]: exploring, or the deterministic best."""

    @abstractmethod
    def value(self, obs: Tensor, act: Tensor) -> Tensor:
        """The agent's own estimate of the discounted return from `(obs, act)`: `(*S, B)`."""

    def on_episode(self, ended: Tensor, score: Tensor, length: Tensor) -> None:
        """Hear, after every step, in which seeds `ended` `(*S,)` the exploring episode is over, and how it went there.

        score: its return, 0 for random play's and 1 for an expert's, NaN where no reference is known; length: its steps.
        """

    def adopt(
        self, other: Agent, *, moments: bool = True, only: Collection[str] | None = None
    ) -> list[Change]:
        """Take over whatever both have: networks, targets, temperature, scales, optimisers; says what became of what.

        A part is taken over if it has the same name and shapes. moments: an optimiser's moments come along with its network.
        only: no other parts than these and their optimisers. Learning rates are those of this agent's own config, and a rate
        that differs from the other's is a changed setting. Schedules and delays count from 0 again.
        """
        mine, theirs, table = _parts(self), _parts(other), []
        afresh = {name for name in mine if name not in theirs or _shapes(mine[name]) != _shapes(theirs[name])}
        afresh |= {name for name in mine if only is not None and name.removesuffix("_optim") not in only}
        afresh |= {f"{name}_optim" for name in afresh} & set(
            mine
        )  # moments of other parameters, though of the same shapes
        for name, part in mine.items():
            if name not in theirs:
                table.append(Change(name, "new"))
            elif name in afresh:
                resized = _shapes(part) != _shapes(theirs[name])
                table.append(
                    Change(name, "reset", f"{_size(theirs[name])} → {_size(part)}" if resized else "")
                )
            elif isinstance(part, Adam) and not moments:
                table.append(Change(name, "reset", "moments"))
            else:
                _copy(theirs[name], part)
                table.append(Change(name, "kept"))
        table += [Change(name, "dropped") for name in theirs if name not in mine]
        return table + _settings(other.cfg, self.cfg)

    def get_extra_state(self) -> Tensor:
        """The count of updates, for `state_dict`; a tensor on the host."""
        return torch.tensor(self.updates)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the count."""
        self.updates = int(state)

    def inner(self, kind: str) -> set[str]:
        """Names of parts: "all", the "policy" (temperature included), the "critics", or "none"; scales belong to each."""
        names = {name.removesuffix("_optim") for name in _parts(self)}
        scales = {name for name, part in _parts(self).items() if isinstance(part, Normalizer)}
        critics = names & {"critic", "target", "value_net"}
        return {"all": names, "policy": names - critics, "critics": critics | scales, "none": scales}[kind]


def _parts(agent: Agent) -> dict[str, Any]:
    """An agent's networks, optimisers and bare parameters by name; buffers are its own business."""
    return {**dict(agent.named_children()), **dict(agent.named_parameters(recurse=False))}


def _state(part: nn.Module | Tensor) -> dict[str, Tensor]:
    return dict(part.state_dict()) if isinstance(part, nn.Module) else {"": part}


def _shapes(part: nn.Module | Tensor) -> list[tuple[str, torch.Size]]:
    return [(k, v.shape) for k, v in _state(part).items()]


def _size(part: nn.Module | Tensor) -> str:
    return f"{sum(v.numel() for v in _state(part).values())} numbers"


@torch.no_grad()
def _copy(source: nn.Module | Tensor, target: nn.Module | Tensor) -> None:
    for a, b in zip(_state(source).values(), _state(target).values(), strict=True):
        b.copy_(a)


def _settings(old: Any, new: Any) -> list[Change]:
    """Settings that one config has and the other has not, or that differ."""
    a, b = _flat(old), _flat(new)
    table = [Change(k, "dropped", str(v)) for k, v in a.items() if k not in b]
    table += [Change(k, "new", str(v)) for k, v in b.items() if k not in a]
    return table + [Change(k, "changed", f"{a[k]} → {v}") for k, v in b.items() if k in a and a[k] != v]


def _flat(cfg: Any, prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for f in fields(cfg):
        value = getattr(cfg, f.name)
        out |= _flat(value, f"{prefix}{f.name}.") if is_dataclass(value) else {f"{prefix}{f.name}": value}
    return out


def make_agent(cfg: Any, spec: Spec) -> Any:
    """The agent that is registered with `cfg`'s dataclass, built on `spec.device`; its networks start as `per_seed` says."""
    cls = next((entry.cls for entry in AGENTS.values() if entry.config is type(cfg)), None)
    if cls is None:
        raise TypeError(f"no agent is registered with the config {type(cfg).__name__}")
    with torch.device(spec.device):
        return per_seed(lambda s: cls(s, cfg), spec)
