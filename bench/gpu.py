"""What a GPU makes of learning steps, in one run that stops by the clock and writes each result at once.

    python -m bench.gpu --minutes 8 --out rates.jsonl
    python -m bench.gpu --minutes 1 --out rates.jsonl --device cpu --engine eager --seconds 0.1

The second line is a rehearsal. Results that matter most come first. A measurement that fails is a line with
its error, and the next one begins: on a GPU in a new process, because the old one may have lost the device.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.measure import Options, machine
from bench.update import started
from bench.works import WORKS
from mbo2o.run.engine import MODES, PRECISIONS, EngineConfig
from mbo2o.types import UserError


@dataclass(frozen=True)
class Case:
    """A work of `WORKS` with so many seeds, and the seed updates per second that are wanted of it."""

    work: str
    seeds: int
    wanted: float | None = None


CASES = (
    Case("sac-2", 1, 5000),
    Case("sac-2", 16, 40_000),
    Case("td3bc", 1, 7000),
    Case("redq-10", 8, 16_000),
    Case("sac-10", 8, 8000),
    Case("cql", 5, 5 * 500),  # 500 updates of five seeds each
    Case("dynamics", 8, 8 * 2500),
    Case("iql", 1),
    Case("sac-10", 1),
    Case("redq-10", 1),
)
RESERVE = 20.0
"""Seconds that a measurement may take at most beside those it is given; none begins later."""


def plan(engines: Sequence[str]) -> Iterator[tuple[EngineConfig, Case]]:
    """The measurements: for each engine the precision of the reference, then the lower ones of the captured.

    An eager update waits for its launches on a GPU, whatever the precision, so one will do.
    """
    for mode in engines:
        yield from ((EngineConfig(mode, "fp32"), case) for case in CASES)
    lower = [p for p in PRECISIONS if p not in ("fp32", "auto")]
    for mode in (m for m in engines if m != "eager"):
        for precision in lower:
            yield from ((EngineConfig(mode, precision), case) for case in CASES if case.wanted)


def measured(cfg: EngineConfig, case: Case, device: str, seconds: float, rounds: int) -> dict[str, Any]:
    """Seed updates per second in each round, the seconds until steps ran at speed, and memory."""
    gc.collect()  # the networks of the last measurement refer to each other
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    rate, start = started(WORKS[case.work], cfg, Options(device=device, seeds=case.seeds))
    rates = [float(f"{rate(seconds):.5g}") for _ in range(rounds)]
    found: dict[str, Any] = {"rates": rates, "start": round(start, 2)}
    if torch.device(device).type == "cuda":
        found["memory"] = torch.cuda.max_memory_allocated()
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the time allows."""
    parser = argparse.ArgumentParser(description="learning steps per second on a GPU")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", type=Path, required=True, help="a line of JSON for each result")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--engine", nargs="+", help="if not given, graph if there is one, then eager")
    parser.add_argument("--seconds", type=float, default=1.5, help="of work in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip", type=int, default=0, help="leave out so many measurements at first")
    given = parser.parse_args(arguments)
    end = time.monotonic() + 60 * given.minutes
    try:
        Options(device=given.device)  # says if it is not available
        cases = list(plan(given.engine or [m for m in ("graph", "eager") if m in MODES]))
    except UserError as e:
        parser.error(str(e))
    most = min(RESERVE, 6 * given.minutes) + given.rounds * given.seconds
    with given.out.open("a") as out:
        for i, (cfg, case) in enumerate(cases[given.skip :], given.skip):
            if time.monotonic() + most > end:
                print("the time is up", flush=True)
                break
            row = {"work": case.work, "seeds": case.seeds, "engine": cfg.mode, "precision": cfg.precision}
            try:
                row |= measured(cfg, case, given.device, given.seconds, given.rounds)
            except Exception as e:  # the next measurement may work
                row["error"] = " ".join(f"{type(e).__name__}: {e}".split())[:300]
            line = json.dumps(row | {"wanted": case.wanted, "machine": machine(given.device)})
            print(line, file=out, flush=True)
            print(line, flush=True)
            if "error" in row and torch.device(given.device).type == "cuda":
                rest = going_on(given, i + 1, (end - time.monotonic()) / 60)
                os.execv(sys.executable, [sys.executable, "-m", "bench.gpu", *rest])


def going_on(given: argparse.Namespace, skip: int, minutes: float) -> list[str]:
    """The arguments of a process that does the rest of this one's work."""
    changed = vars(given) | {"skip": skip, "minutes": max(0.0, minutes)}
    listed = {name: x if isinstance(x, list) else [x] for name, x in changed.items() if x is not None}
    return [text for name, xs in listed.items() for text in (f"--{name}", *map(str, xs))]


if __name__ == "__main__":
    main()
