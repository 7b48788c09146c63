"""How updates are run: draw batches, tell each agent which update it makes, keep the metrics."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mbo2o.agents.base import Agent
from mbo2o.run.graphs import Captured, totals
from mbo2o.store.content import cache_folder
from mbo2o.types import Batch, Metrics, Source, Step, UserError, form

MODES = ("eager", "compiled", "graph", "auto")
PRECISIONS = ("fp32", "tf32", "bf16", "auto")
LEVEL = {"cpu": "fp32", "cuda": "fp32"}
"""What `auto` rounds to: the lowest precision that was shown to learn as well, see studies/parity.py."""
REPAID = 20_000
"""Updates from which `auto` takes a run to repay its translation: an estimate from measured rates."""
LARGEST = 32
"""The most turns whose updates one graph holds."""
Update = Callable[[Agent, Batch], Metrics]


@dataclass(frozen=True)
class EngineConfig:
    """How learning steps are run.

    mode: `eager`, operation by operation, is the reference. `compiled` translates a step to one program at
    its first call, which takes some seconds to a minute; results differ from the reference in the last bits.
    `graph` records the kernels of steps on a GPU and replays them; results are those of the reference.
    precision: of products of matrices in learning steps. In `bf16` they keep 8 bits of the significand, in
    `tf32`, which only GPUs have, 11; last layers, parameters, optimisers, targets and densities stay float32.
    `auto` in either: see `chosen`.
    """

    mode: str = "eager"
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"engine={self.mode} is not one of {', '.join(MODES)}")
        if self.precision not in PRECISIONS:
            raise UserError(f"precision={self.precision} is not one of {', '.join(PRECISIONS)}")

    def missing(self, device: str) -> str:
        """Why steps cannot be run like this on `device`, and what to do; "" if they can."""
        kind = torch.device(device).type
        if self.mode == "compiled" and kind == "cpu" and (lack := _no_compiler()):
            return f"engine=compiled: {lack}; mend that, or give engine=eager"
        if self.mode == "graph" and kind != "cuda":
            return f"engine=graph needs a GPU, and device={device}; give device=cuda, or engine=compiled"
        if self.precision == "tf32" and kind != "cuda":
            return f"precision=tf32 needs a GPU, and device={device}; give precision=fp32 or bf16"
        return ""

    def chosen(self, device: str, updates: int) -> tuple[EngineConfig, str]:
        """The config with `auto` decided for a run of so many updates, and a line that gives the reason.

        Graphs on a GPU; elsewhere a compiled step if there is a compiler and the run repays it, else eager.
        """
        kind = torch.device(device).type
        precision = LEVEL.get(kind, "fp32") if self.precision == "auto" else self.precision
        mode, why = self.mode, ""
        if mode == "auto" and kind == "cuda":
            mode = "graph"
        elif mode == "auto":
            lack = _no_compiler()
            mode = "eager" if lack or updates < REPAID else "compiled"
            if lack and updates >= REPAID:
                why = f"engine: eager ({lack})"
            elif mode == "compiled":
                why = f"engine: compiled (translated once, in 10 to 60 s, which {updates} updates repay)"
        return EngineConfig(mode, precision), why


def _compiler() -> str | None:
    """The C++ compiler that torch would call, None if there is none."""
    names = [os.environ.get("CXX"), "g++", "clang++"]
    return next((found for name in names if name and (found := shutil.which(name))), None)


def _no_compiler() -> str:
    """Why steps cannot be compiled here; "" if they can."""
    if not _compiler():
        return "a C++ compiler is needed, and CXX, g++ and clang++ lead to none"
    if " " in torch.__path__[0]:
        return f"torch lies in {torch.__path__[0]}, and its compiler's command breaks at the space"
    return ""


class Engine:
    """Runs the updates of agents and counts them.

    The count lies in the agent, as the tensor `updates` that its state holds. The engine remembers it as a
    number too, so that the device is not asked in every update; what else writes the tensor, such as a
    checkpoint, is noticed.
    """

    def __init__(self, cfg: EngineConfig | None = None, device: str = "cpu") -> None:
        """Raises `UserError` if steps cannot be run like that: here, since a config is only read."""
        self.cfg, self._device = cfg or EngineConfig(), device
        if "auto" in (self.cfg.mode, self.cfg.precision):
            raise ValueError(f"{self.cfg}: decide `auto` first, with `chosen`")
        if missing := self.cfg.missing(device):
            raise UserError(missing)
        self._known: WeakKeyDictionary[Agent, tuple[int, int]] = WeakKeyDictionary()
        self._steps: WeakKeyDictionary[Agent, Callable[[Batch, Step], Metrics]] = WeakKeyDictionary()
        self._acts: WeakKeyDictionary[Agent, Captured] = WeakKeyDictionary()
        self._blocks: WeakKeyDictionary[Agent, dict[Hashable, Captured]] = WeakKeyDictionary()

    def update(self, agent: Agent, batch: Batch) -> Metrics:
        """Make one update of `agent` on a batch `(*S, B, ...)`; returns its metrics, `(*S,)` each."""
        step = self._steps.get(agent)
        if step is None:
            step = self._steps[agent] = self.prepare(agent.update)
        return step(batch, self._next(agent))

    def act(self, agent: Agent, obs: Tensor) -> Tensor:
        """Exploring actions `(*S, B, A)` for observations `(*S, B, D)`; on a GPU one launch as a graph."""
        if self.cfg.mode != "graph":
            return agent.act(obs, explore=True)
        if agent not in self._acts:
            self._acts[agent] = Captured(functools.partial(agent.act, explore=True))
        act: Tensor = self._acts[agent](obs)
        return act

    def prepare(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A learning step as this engine runs it: at its precision, compiled or captured if its mode says so.

        The random draws of a compiled step are those of the eager one, so that both learn from the same
        numbers. A step is compiled or captured again for other shapes of its arguments, and for each of its
        forms (see `Step.due`).
        """
        step = self._rounding(step)
        if self.cfg.mode == "compiled":
            return _compiled(step)
        return Captured(step) if self.cfg.mode == "graph" else step

    def _rounding(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """`step`, whose products of matrices are rounded as the config says."""
        kind, precision = torch.device(self._device).type, self.cfg.precision
        if precision == "fp32":
            return step

        def rounding(*args: Any) -> Any:
            if precision == "bf16":
                with torch.autocast(kind, torch.bfloat16):
                    return step(*args)
            before = torch.backends.cuda.matmul.fp32_precision
            torch.backends.cuda.matmul.fp32_precision = "tf32"
            try:
                return step(*args)
            finally:
                torch.backends.cuda.matmul.fp32_precision = before

        return rounding

    def learn(
        self, source: Source, n: int, updates: int, agents: dict[str, Agent], turns: int = 1
    ) -> Iterator[tuple[Metrics, int]]:
        """Make `updates` updates of every agent on batches of `n` rows, in each of `turns` turns.

        Yields metrics as sums, with the number of updates that they are summed over.

        The rows of all updates of a turn are drawn at once and dealt out, so that exact shares are exact in
        each batch. A source that learns, by a method `learn(batch) -> Metrics`, is asked for one batch at a
        time, and learns from each batch after the agents.

        agents: by the prefix of their metrics' names; "" is no prefix. All learn from the same batches.
        """
        if self.cfg.mode == "graph" and not hasattr(source, "learn"):
            yield from self._replay(source, n, updates, agents, turns)
            return
        for _ in range(turns):
            for metrics in self._turn(source, n, updates, agents, self.update):
                yield metrics, 1

    def turns_at_once(self, *events: int) -> int:
        """How many turns' updates are made together: no turn that one of `events` divides is crossed."""
        if self.cfg.mode != "graph":
            return 1
        most = math.gcd(*events)
        return max(n for n in range(1, LARGEST + 1) if most % n == 0)

    def _turn(
        self, source: Source, n: int, updates: int, agents: dict[str, Agent], update: Update
    ) -> Iterator[Metrics]:
        teach = getattr(source, "learn", None)
        if teach is None:
            for batch in source.sample(n * updates).deal(updates):
                yield from _update_all(batch, agents, update)
            return
        for _ in range(updates):
            batch = source.sample(n)
            yield from _update_all(batch, agents, update)
            yield teach(batch)

    def _replay(
        self, source: Source, n: int, updates: int, agents: dict[str, Agent], turns: int
    ) -> Iterator[tuple[Metrics, int]]:
        """The same as one graph, which draws its batches, too.

        The host counts the updates beforehand, since it does not see those that a graph counts.
        """
        first = next(iter(agents.values()))
        due = {name: [self._peek(a, k) for k in range(updates * turns)] for name, a in agents.items()}
        steps: dict[Agent, Iterator[Step]] = {}

        def update(agent: Agent, batch: Batch) -> Metrics:
            agent.updates.add_(1)
            return agent.update(batch, next(steps[agent]))

        def block() -> list[tuple[Metrics, int]]:
            for name, agent in agents.items():
                steps[agent] = (Step(index, agent.updates) for index in due[name])
            found: list[Metrics] = []
            for _ in range(turns):
                found += self._turn(source, n, updates, agents, update)
            return totals(found)

        which = tuple((name, id(a), *due[name]) for name, a in agents.items())
        key = (form(source, n * updates), n, updates, turns, which)
        blocks = self._blocks.setdefault(first, {})
        if key not in blocks:
            blocks[key] = Captured(self._rounding(block))
        found = blocks[key]()
        for agent in agents.values():
            begun, _ = self._known[agent]
            self._known[agent] = (begun + updates * turns, agent.updates._version)
        yield from found

    def _begun(self, agent: Agent) -> int:
        """How many updates the agent has made; the device is asked only if something else wrote the count."""
        begun, version = self._known.get(agent, (0, -1))
        if version != agent.updates._version:  # written by something else since, or never seen
            begun = int(agent.updates)
            self._known[agent] = (begun, agent.updates._version)
        return begun

    def _peek(self, agent: Agent, ahead: int) -> int:
        """The `index` of the step `ahead` updates after the next one."""
        # two forms only, whatever the delay, because each form is compiled
        return agent.cycle - 1 if (self._begun(agent) + ahead + 1) % agent.cycle == 0 else 0

    def _next(self, agent: Agent) -> Step:
        """Count an update of `agent`, and tell it which one it is."""
        index, begun = self._peek(agent, 0), self._begun(agent)
        agent.updates.add_(1)
        self._known[agent] = (begun + 1, agent.updates._version)
        return Step(index, agent.updates)


def _update_all(batch: Batch, agents: dict[str, Agent], update: Update) -> Iterator[Metrics]:
    for name, agent in agents.items():
        metrics = update(agent, batch)
        yield {f"{name}_{key}": x for key, x in metrics.items()} if name else metrics


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
    _remove_halves(Path(folder))
    translated = torch.compile(step, fullgraph=True, dynamic=False)

    @functools.wraps(step)
    def run(*args: Any) -> Any:
        # `autograd.grad` within a step is traced; draws come from torch's own generator, as in eager mode
        with (
            torch._dynamo.config.patch(trace_autograd_ops=True, recompile_limit=64),
            torch._inductor.config.patch(fallback_random=True),
        ):
            for again in (True, False):
                try:
                    return translated(*args)
                except (TorchDynamoException, InductorError) as e:
                    if again and _removed(str(e)):
                        continue
                    reason = " ".join(str(e).split("\n\n")[0].split())
                    text = f"engine=compiled: torch could not translate a step ({reason}); give engine=eager"
                    raise UserError(text) from e

    return run


def _remove_halves(folder: Path) -> None:
    """Remove programs that end too early: a process that was killed while it wrote them left them.

    A file of the last minute may still be written by another process, and stays (see `_removed`).
    """
    for path in folder.glob("**/*.so"):
        with contextlib.suppress(OSError):
            about = path.stat()
            with open(path, "rb") as f:
                head = f.read(64).ljust(64, b"\0")
            # an ELF file ends with the table of its sections: where it begins, the size of a row, rows
            begin = int.from_bytes(head[40:48], "little")
            row, rows = (int.from_bytes(head[k : k + 2], "little") for k in (58, 60))
            if (not begin or about.st_size < begin + row * rows) and time.time() - about.st_mtime > 60:
                path.unlink()


def _removed(reason: str) -> bool:
    """Whether a kept program could not be read, and is gone now, so that it is translated again."""
    broken = re.search(r"ImportError: (/.*\.so): (file too short|invalid ELF header|cannot read)", reason)
    if broken is None:
        return False
    with contextlib.suppress(FileNotFoundError):
        os.remove(broken[1])
    return True
