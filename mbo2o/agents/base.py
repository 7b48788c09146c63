"""What every learner offers: `update`, `act`, a complete state, and a way to take over another's parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from mbo2o.nn.init import per_seed
from mbo2o.nn.normalizer import Normalizer, block_statistics
from mbo2o.nn.optim import Adam
from mbo2o.registry import AGENTS
from mbo2o.types import Batch, Blocks, Metrics, Spec, Step


@dataclass
class AgentConfig:
    """What the config of every agent holds."""

    gamma: float = 0.99
    # scale observations by the dataset's mean and deviation, which then stay as they are
    normalize: bool = False

    @property
    def needs_returns(self) -> bool:
        """Whether the agent reads `mc_return`; where no agent of a run does, batches do not hold it."""
        return False

    def after_switch(self) -> AgentConfig:
        """The config that goes on in the environment, without what only offline learning needs."""
        return self.unchanged()

    def unchanged(self) -> Self:
        """The config of this agent when it goes on in the environment as it is, pessimism included."""
        return self


@dataclass(frozen=True)
class Change:
    """A line of the switch's table: what became of a part or a setting of the offline agent."""

    part: str
    what: str
    """kept: taken over; reset: both have it, but it starts from its initial state; new: only the online agent
    has it; dropped: only the offline agent had it; changed: a setting whose value differs."""
    note: str = ""


class Agent(nn.Module, ABC):
    """A learner from batches. It knows no environment, dataset, phase or logger.

    Networks, targets, temperatures and optimisers are its submodules, so `state_dict` is everything that a
    restart needs. Observations are in raw units outside; `observe` scales them for the networks within.
    """

    clones = False
    """Whether it learns from observations and actions alone, and can use rows without next observations."""
    not_imagined = ""
    """Why it makes no sense on rows that a model imagines, in half a sentence; "" if it does."""
    cycle = 1
    """Updates in a cycle: the delayed parts, which share one delay, learn in the last one (see `Step`)."""
    needs_scores = False
    """Whether `on_episode` uses scores, so that the agent cannot learn a task without reference returns."""

    updates: Tensor
    """How many updates have begun since the agent was made, `()` int64; the engine writes it."""

    def __init__(self, spec: Spec, cfg: AgentConfig):
        super().__init__()
        self.spec, self.cfg = spec, cfg
        self.observe = Normalizer(
            spec.seeds, spec.obs_dim
        )  # the identity until `prepare` sets its statistics
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def prepare(self, data: Blocks) -> None:
        """Set the statistics of all of `data` that the networks need, before anything is learned from it."""
        if self.cfg.normalize:
            mean, std = block_statistics(lambda: (b.obs for b in data.blocks()))
            self.observe.mean.copy_(mean)
            self.observe.std.copy_(std)

    def scaled(self, b: Batch) -> Batch:
        """A raw batch with its observations scaled for the networks."""
        return Batch(self.observe(b.obs), b.act, b.rew, self.observe(b.next_obs), b.done, b.mc_return)

    @abstractmethod
    def update(self, batch: Batch, step: Step) -> Metrics:
        """One step of learning from `(*S, B, ...)`; metrics are `(*S,)` and stay on the device.

        It is a function of tensors: parameters are written in place, nothing is read back to the host, and
        the agent keeps no number in Python. What the host knows comes in as `step`.
        """

    @abstractmethod
    def act(self, obs: Tensor, explore: bool = False) -> Tensor:
        """Observations `(*S, B, D)` → actions `(*S, B, A)` in [-1, 1], deterministic unless it explores."""

    @abstractmethod
    def value(self, obs: Tensor, act: Tensor) -> Tensor:
        """The agent's own estimate of the discounted return from `(obs, act)`: `(*S, B)`."""

    def on_episode(self, ended: Tensor, score: Tensor, length: Tensor) -> None:
        """Hear after every step in which seeds `ended` `(*S,)` an exploring episode is over, and how it went.

        score: the episode's return, 0 for random play and 1 for an expert; NaN where no reference is known.
        length: its steps. Both are `(*S,)` and are NaN for seeds whose episode goes on.
        """

    def adopt(
        self, other: Agent, *, moments: bool = True, only: Collection[str] | None = None
    ) -> list[Change]:
        """Take over the parts that both agents have, networks and optimisers; says what became of each.

        A part is taken over if it has the same name and shapes. Learning rates are those of this agent's own
        config, and a rate that differs from the other agent's is a changed setting. Schedules and delays
        count from 0.

        moments: whether an optimiser's moments come along with its network.
        only: names of the parts that may be taken over, with their optimisers; None allows all.
        """
        mine, theirs = _parts(self), _parts(other)
        reset = {name for name in mine if name not in theirs or _shapes(mine[name]) != _shapes(theirs[name])}
        reset |= {name for name in mine if only is not None and name.removesuffix("_optim") not in only}
        # moments are those of other parameters, even if the shapes agree
        reset |= {f"{name}_optim" for name in reset} & set(mine)
        table = []
        for name, part in mine.items():
            if name not in theirs:
                table.append(Change(name, "new"))
            elif name in reset:
                resized = _shapes(part) != _shapes(theirs[name])
                note = f"{_size(theirs[name])} → {_size(part)}" if resized else ""
                table.append(Change(name, "reset", note))
            elif isinstance(part, Adam) and not moments:
                table.append(Change(name, "reset", "moments"))
            else:
                _copy(theirs[name], part)
                table.append(Change(name, "kept"))
        self.updates.zero_()
        table += [Change(name, "dropped") for name in theirs if name not in mine]
        return table + _settings(other.cfg, self.cfg)

    def described(self) -> dict[str, Any]:
        """Its registered name, its class's module and its settings: what makes an agent like it."""
        name = next((x.name for x in AGENTS.values() if x.cls is type(self)), type(self).__name__)
        return {"name": name, "module": type(self).__module__, "config": asdict(self.cfg)}

    def inner(self, kind: str) -> set[str]:
        """Names of parts: "all", "policy" (and temperature), "critics", or "none"; each holds the scales."""
        names = {name.removesuffix("_optim") for name in _parts(self)}
        scales = {name for name, part in _parts(self).items() if isinstance(part, Normalizer)}
        critics = names & {"critic", "target", "value_net"}
        return {"all": names, "policy": names - critics, "critics": critics | scales, "none": scales}[kind]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # checkpoints of earlier versions hold the count of updates under this name
        if (count := state_dict.pop(f"{prefix}_extra_state", None)) is not None:
            state_dict[f"{prefix}updates"] = count
        super()._load_from_state_dict(state_dict, prefix, *args)


def _parts(agent: Agent) -> dict[str, Any]:
    """An agent's networks, optimisers and bare parameters by name, without its own buffers."""
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


def _settings(old: AgentConfig, new: AgentConfig) -> list[Change]:
    """Settings that only one of two configs has, or that differ."""
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


def make_agent(cfg: AgentConfig, spec: Spec) -> Agent:
    """The agent registered with the class of `cfg`, on `spec.device`; its networks start as `per_seed` says.

    Raises:
        TypeError: No agent is registered with this class.
    """
    cls = next((entry.cls for entry in AGENTS.values() if entry.config is type(cfg)), None)
    if cls is None:
        raise TypeError(f"no agent is registered with the config {type(cfg).__name__}")
    with torch.device(spec.device):
        return per_seed(lambda s: cls(s, cfg), spec)
