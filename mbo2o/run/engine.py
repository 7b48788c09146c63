"""How updates are run: draw batches, tell each agent which update it makes, keep the metrics."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from mbo2o.agents.base import Agent
from mbo2o.store.content import cache_folder
from mbo2o.types import Batch, Metrics, Source, Step, UserError

MODES = ("eager", "compiled")
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class EngineConfig:
    """How learning steps are run.

    mode: `eager`, operation by operation, is the reference. `compiled` translates a step to one program at
    its first call, which takes some seconds to a minute; results differ from the reference in the last bits.
    precision: of products of matrices in learning steps. In `bf16` they keep 8 bits of the significand; last
    layers, parameters, optimisers, targets and densities stay float32.
    """

    mode: str = "eager"
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"engine={self.mode} is not one of {', '.join(MODES)}")
        if self.precision not in PRECISIONS:
            raise UserError(f"precision={self.precision} is not one of {', '.join(PRECISIONS)}")


def _compiler() -> str | None:
    """The C++ compiler that torch would call, None if there is none."""
    names = [os.environ.get("CXX"), "g++", "clang++"]
    return next((found for name in names if name and (found := shutil.which(name))), None)


def _check_compiler() -> None:
    """Raise a `UserError` if steps cannot be compiled here."""
    if not _compiler():
        raise UserError(
            "engine=compiled needs a C++ compiler, and CXX, g++ and clang++ lead to none; "
            "install one, or give engine=eager"
        )
    if " " in torch.__path__[0]:
        raise UserError(
            f"engine=compiled: torch lies in {torch.__path__[0]}, and its compiler's command breaks at "
            "the space; set up the environment elsewhere, or give engine=eager"
        )


class Engine:
    """Runs the updates of agents and counts them.

    The count lies in the agent, as the tensor `updates` that its state holds. The engine remembers it as a
    number too, so that the device is not asked in every update; what else writes the tensor, such as a
    checkpoint, is noticed.
    """

    def __init__(self, cfg: EngineConfig | None = None, device: str = "cpu") -> None:
        """Raises `UserError` if steps are to be compiled and cannot be: here, since a config is only read."""
        self.cfg, self._device = cfg or EngineConfig(), device
        if self.cfg.mode == "compiled":
            _check_compiler()
        self._known: WeakKeyDictionary[Agent, tuple[int, int]] = WeakKeyDictionary()
        self._steps: WeakKeyDictionary[Agent, Callable[[Batch, Step], Metrics]] = WeakKeyDictionary()

    def update(self, agent: Agent, batch: Batch) -> Metrics:
        """Make one update of `agent` on a batch `(*S, B, ...)`; returns its metrics, `(*S,)` each."""
        step = self._steps.get(agent)
        if step is None:
            step = self._steps[agent] = self.prepare(agent.update)
        return step(batch, self._next(agent))

    def prepare(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A learning step as this engine runs it: at its precision, and compiled if its mode says so.

        The random draws of a compiled step are those of the eager one, so that both learn from the same
        numbers. A step is compiled again for other shapes of its arguments, and for each of its forms (see
        `Step.due`).
        """
        if self.cfg.precision == "bf16":
            step = self._at_low_precision(step)
        return step if self.cfg.mode == "eager" else _compiled(step)

    def _at_low_precision(self, step: Callable[..., Any]) -> Callable[..., Any]:
        kind = torch.device(self._device).type

        def at_low_precision(*args: Any) -> Any:
            with torch.autocast(kind, torch.bfloat16):
                return step(*args)

        return at_low_precision

    def learn(self, source: Source, n: int, updates: int, agents: dict[str, Agent]) -> Iterator[Metrics]:
        """Make `updates` updates of every agent on batches of `n` rows; yields the metrics of each in turn.

        The rows of all updates are drawn at once and dealt out, so that exact shares are exact in each batch.
        A source that learns, by a method `learn(batch) -> Metrics`, is asked for one batch at a time, and
        learns from each batch after the agents.

        agents: by the prefix of their metrics' names; "" is no prefix. All learn from the same batches.
        """
        teach = getattr(source, "learn", None)
        if teach is None:
            for batch in source.sample(n * updates).deal(updates):
                yield from self._update_all(batch, agents)
            return
        for _ in range(updates):
            batch = source.sample(n)
            yield from self._update_all(batch, agents)
            yield teach(batch)

    def _update_all(self, batch: Batch, agents: dict[str, Agent]) -> Iterator[Metrics]:
        for name, agent in agents.items():
            metrics = self.update(agent, batch)
            yield {f"{name}_{key}": x for key, x in metrics.items()} if name else metrics

    def _next(self, agent: Agent) -> Step:
        """Count an update of `agent`, and tell it which one it is."""
        count = agent.updates
        begun, version = self._known.get(agent, (0, -1))
        if version != count._version:  # written by something else since, or never seen
            begun = int(count)
        count.add_(1)
        self._known[agent] = (begun + 1, count._version)
        # two forms only, whatever the delay, because each form is compiled
        return Step(agent.cycle - 1 if (begun + 1) % agent.cycle == 0 else 0, count)


def _compiled(step: Callable[..., Any]) -> Callable[..., Any]:
    """`step` as one program, which the first call translates."""
    from torch._dynamo.exc import TorchDynamoException  # takes a second, which other runs need not wait
    from torch._inductor.exc import InductorError
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # torch keeps translations on disk; beside our other caches they outlive the machine's temporary folder
    folder, usual = str(cache_folder() / "compiled"), default_cache_dir()
    # torch itself sets the variable to the usual folder, as soon as its compiler is imported
    if " " not in folder and os.environ.get("TORCHINDUCTOR_CACHE_DIR", usual) == usual:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # torch's commands break at a space
    translated = torch.compile(step, fullgraph=True, dynamic=False)

    @functools.wraps(step)
    def run(*args: Any) -> Any:
        # `autograd.grad` within a step is traced; draws come from torch's own generator, as in eager mode
        with (
            torch._dynamo.config.patch(trace_autograd_ops=True, recompile_limit=64),
            torch._inductor.config.patch(fallback_random=True),
        ):
            try:
                return translated(*args)
            except (TorchDynamoException, InductorError) as e:
                reason = str(e).strip().splitlines()[0]
                raise UserError(
                    f"engine=compiled: torch could not translate a step ({reason}); give engine=eager"
                ) from e

    return run
