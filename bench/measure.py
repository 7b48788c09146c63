"""How speed is measured: all take turns on one core, by CPU time; results go into one JSON file."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mbo2o.run.engine import MODES, PRECISIONS, Engine, EngineConfig
from mbo2o.store.whole import write_whole
from mbo2o.types import UserError, at_least_one

Rate = Callable[[float], float]
"""Work for about so many seconds → units of work for each second."""
Row = dict[str, Any]
"""Who worked (`who`, and `engine` and `precision` where there are such), and its rate in each round; `start`
are the seconds until it worked at full speed.
"""


@dataclass(frozen=True)
class Options:
    """What a benchmark is asked for; each one uses those that make sense for it."""

    rounds: int = 5
    seconds: float = 1.0  # that each works in a turn
    json: Path | None = None
    only: Sequence[str] = ()  # names of works; none: all of them
    peers: bool = False
    device: str = "cpu"
    engine: Sequence[str] = ()  # none: those that can run here
    precision: Sequence[str] = ()
    seeds: int = 1
    runs: Sequence[Path] = ()  # training runs, for `bench plan`
    episodes: int = 5  # played for each seed of a run

    def __post_init__(self) -> None:
        at_least_one("bench", rounds=self.rounds, seeds=self.seeds, episodes=self.episodes)
        if not self.seconds > 0:
            raise UserError(f"bench: seconds={self.seconds} must be above 0")
        if self.peers and self.device != "cpu":
            raise UserError(f"bench: --peers compares on one CPU core, not on device={self.device}")
        try:
            torch.zeros(1, device=self.device).item()
        except (RuntimeError, AssertionError) as e:
            reason = str(e).splitlines()[0]
            raise UserError(f"bench: device={self.device} is not available here ({reason})") from e

    def engines(self) -> list[EngineConfig]:
        """Every engine with every precision. UserError for one that was asked for and cannot run here."""
        if "auto" in (*self.engine, *self.precision):
            raise UserError("bench: auto is decided by the length of a run, and here is none; give a name")
        on_cpu = torch.device(self.device).type == "cpu"
        usual = [m for m in MODES if m in (("eager", "compiled") if on_cpu else ("eager", "graph"))]
        chosen = [EngineConfig(m, p) for m in self.engine or usual for p in self.precision or _usual()]
        found = [x for x in chosen if self._runs(x)]
        if not found:
            raise UserError(f"bench: nothing of that runs on device={self.device}; give another --precision")
        return found

    def _runs(self, cfg: EngineConfig) -> bool:
        try:
            Engine(cfg, self.device)
        except UserError as e:
            if self.engine:
                raise
            print(f"{cfg.mode} is left out: {e}")
            return False
        return True


def _usual() -> list[str]:
    return [x for x in PRECISIONS if x in ("fp32", "bf16")]


# ------------------------------------------------------------------------------------------------ rates


def clock(device: str) -> Callable[[], float]:
    """CPU seconds of this process, or seconds of the device once it is done with what it was given."""
    if torch.device(device).type == "cpu":
        return time.process_time

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


def repeated(step: Callable[[], object], units: float = 1, device: str = "cpu") -> Rate:
    """The rate of calling `step`, which does `units` of work in each call."""
    now = clock(device)

    def rate(seconds: float) -> float:
        done, start = 0, now()
        while (took := now() - start) < seconds or not done or not took:
            step()
            done += 1
        return units * done / took

    return rate


def in_turns(rates: Sequence[Rate], rounds: int, seconds: float) -> list[list[float]]:
    """The rates of each in every round; the order changes, so that none always follows the same one."""
    found: list[list[float]] = [[] for _ in rates]
    for i in range(rounds):
        for k in sorted(range(len(rates)), reverse=bool(i % 2)):
            found[k].append(float(f"{rates[k](seconds):.5g}"))
    return found


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Work on one core with one thread, also in the processes that are started meanwhile."""
    threads, cores = torch.get_num_threads(), None
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if cores is not None:
            os.sched_setaffinity(0, cores)


# ------------------------------------------------------------------------------------------------ results


def machine(device: str = "cpu") -> str:
    """The processor with what it multiplies bf16 with, or the GPU, and torch's version."""
    if torch.device(device).type != "cpu":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    about, text = Path("/proc/cpuinfo"), ""
    with contextlib.suppress(OSError):
        text = about.read_text()
    name = re.search(r"model name\s*: (.*)", text)
    flags = set((re.search(r"flags\s*: (.*)", text) or ["", ""])[1].split())
    units = {"AVX-512": "avx512f", "AVX-512 bf16": "avx512_bf16", "AMX bf16": "amx_bf16"}
    has = ", ".join(f"{'' if flag in flags else 'no '}{unit}" for unit, flag in units.items())
    cores = f"{os.cpu_count()} cores"
    kind = name[1] if name else platform.machine()
    return f"{kind}, {cores}, {has if flags else 'unknown units'}, torch {torch.__version__}"


def result(rows: Sequence[Row], options: Options, unit: str, **more: Any) -> dict[str, Any]:
    """What is stored of a work: who did it at which rates, and under which circumstances."""
    about = {"machine": machine(options.device), "load": round(os.getloadavg()[0], 1)}
    how = {"device": options.device, "seeds": options.seeds, "rounds": options.rounds}
    return {"unit": unit, **about, **how, **more, "rows": list(rows)}


def keep(path: Path | None, name: str, found: Mapping[str, Any]) -> None:
    """Put the result of a work into the JSON file, in the place of an earlier one of the same name."""
    if path is None:
        return
    works = read(path) if path.exists() else {}
    write_whole(path, json.dumps(works | {name: dict(found)}, indent=1) + "\n")


def read(path: Path) -> dict[str, Any]:
    """The results of all works, by name. UserError for a file that a benchmark did not write."""
    try:
        found = json.loads(path.read_text())
        assert all("rows" in work for work in found.values())
    except (OSError, ValueError, AttributeError, TypeError, AssertionError) as e:
        raise UserError(f"{path}: holds no results of a benchmark; give another name") from e
    return dict(found)


def named(row: Row) -> str:
    """Who worked: `mbo2o compiled bf16`, `sbx-rl 0.28.0 fp32`."""
    return " ".join(str(row[key]) for key in ("who", "engine", "precision") if key in row)


def show(title: str, found: Mapping[str, Any]) -> None:
    """Print the medians of a work's rates, with the least and the largest."""
    print(f"{title}, {found['unit']}", flush=True)
    for row in found["rows"]:
        rates = row["rates"]
        spread = f"({min(rates):,.4g} to {max(rates):,.4g})"
        print(f"  {named(row):32}{statistics.median(rates):>12,.4g}  {spread}", flush=True)
