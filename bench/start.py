"""The seconds that commands take before anything is learned."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from bench.measure import Options, keep, result, show
from bench.update import chosen
from mbo2o.types import UserError

ROOT = Path(__file__).parent.parent
COMMANDS = {
    "python": ("python -c pass", ["-c", "pass"]),
    "import": ("import mbo2o", ["-c", "import mbo2o"]),
    "help": ("mbo2o --help", ["-m", "mbo2o", "--help"]),
    "cfg": (
        "mbo2o train ... --cfg job",
        ["-m", "mbo2o", "train", "experiment=hopper-small", "--cfg", "job"],
    ),
}


def main(options: Options) -> None:
    """Measure what `options.only` names, or all, in turns."""
    names = list(chosen(options, COMMANDS))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for name in names:
        taken(COMMANDS[name][1])  # the first time writes bytecode
    for _ in range(options.rounds):
        for name in names:
            found[name].append(taken(COMMANDS[name][1]))
    for name, seconds in found.items():
        cpu, wall = ([round(x, 3) for x in column] for column in zip(*seconds, strict=True))
        rows = [{"who": "CPU", "rates": cpu}, {"who": "wall", "rates": wall}]
        measured = result(rows, options, "seconds")
        show(COMMANDS[name][0], measured)
        keep(options.json, name, measured)


def taken(arguments: list[str]) -> tuple[float, float]:
    """CPU seconds and seconds of a Python process with these arguments."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise UserError(f"bench start: {' '.join(arguments)} failed: {done.stderr.strip().splitlines()[-1]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall
