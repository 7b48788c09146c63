"""Which runs there are, and how far each has got: the note that a run leaves at its end, and who reads it.

Nothing here draws, so that a run can leave its note without matplotlib.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mbo2o.report.read import RunLog, read_run
from mbo2o.store.whole import in_use, one_line
from mbo2o.types import UserError

NOTE = "state.json"
"""How the last part of a run ended; absent while it runs, and after a death that left no time to write."""
STOPPED = 143
"""The exit code of an error that says that a signal has stopped the run."""


@contextlib.contextmanager
def noting_end(directory: Path) -> Iterator[None]:
    """Leave a note in `directory` of how the block ended: complete, stopped, or failed and why."""
    path = directory / NOTE
    path.unlink(missing_ok=True)
    try:
        yield
    except BaseException as e:
        stopped = isinstance(e, KeyboardInterrupt) or getattr(e, "exit_code", None) == STOPPED
        _note(path, "stopped" if stopped else "failed", one_line(e))
        raise
    _note(path, "complete", "")


def _note(path: Path, state: str, why: str) -> None:
    with contextlib.suppress(OSError):  # the disk may be what failed
        path.write_text(json.dumps({"state": state, "why": why}) + "\n")


@dataclass(frozen=True)
class Listed:
    """A run of a folder: what it is, and how far it has got."""

    path: Path
    log: RunLog
    state: str
    """complete, running, stopped or failed."""
    why: str = ""
    """Why it failed, in one line."""

    @property
    def seeds(self) -> list[int]:
        """The seeds that are trained in it."""
        first = int(self.log.config.get("seed") or 0)
        return list(range(first, first + int(self.log.config.get("seeds") or 1)))

    @property
    def place(self) -> str:
        """Where in the run its last line was written, as "online 3,000 of 10,000"."""
        if not self.log.lines:
            return "nothing logged yet"
        last = self.log.lines[-1]
        recipe = self.log.config.get("recipe")
        planned = recipe.get(f"{last['phase']}_steps") if isinstance(recipe, dict) else None
        return f"{last['phase']} {last['step']:,}" + (f" of {planned:,}" if planned else "")

    @property
    def last_return(self) -> float | None:
        """The mean over seeds of the last evaluation's return; None if there is none, or a seed has none."""
        values = self.log.series("eval", "return").values[-1:]
        return float(values.mean()) if len(values) and np.isfinite(values).all() else None

    @property
    def hours(self) -> float:
        """The time that it has run, all parts together."""
        return max((line.get("time") or 0.0 for line in self.log.lines), default=0.0) / 3600


def find_runs(paths: Sequence[str | Path]) -> list[Path]:
    """The runs among `paths`, and below those that are folders of runs; each once, sorted below a folder.

    Raises `UserError` for a path that has none.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if _is_run(path):
            found.append(path)
            continue
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; give the directory of a run, or a folder of runs")
        inside = sorted(x.parent for x in path.rglob("metrics.jsonl") if _is_run(x.parent))
        if not inside:
            raise UserError(f"{path} is not a run and holds none; give what `mbo2o train` wrote")
        found += inside
    return list({x.resolve(): x for x in found}.values())


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file() and (path / "metrics.jsonl").is_file()


def look_at(path: Path) -> Listed:
    """A run and its state. Raises `UserError` for a damaged one."""
    log = read_run(path)
    if in_use(path):
        return Listed(path, log, "running")
    try:
        note = json.loads((path / NOTE).read_text())
        return Listed(path, log, str(note["state"]), str(note["why"]))
    except (OSError, ValueError, KeyError, TypeError):  # killed, or of a version that left no note
        return Listed(path, log, "complete" if _is_over(log) else "stopped")


def _is_over(log: RunLog) -> bool:
    """Whether the log has the last evaluation of the last phase that its config plans."""
    recipe: dict[str, Any] = log.config.get("recipe") or {}
    phase = "online" if recipe.get("online_steps") else "offline"
    planned = recipe.get(f"{phase}_steps")
    steps = log.series("eval", "return", phase).step
    return planned is not None and len(steps) > 0 and int(steps[-1]) >= int(planned)


def method_of(log: RunLog) -> str:
    """The name that a person calls a run's method by: its preset's, or its recipe's."""
    preset = str(log.config.get("provenance") or "").partition(": ")[0]
    kind, _, name = preset.partition("=")
    recipe = log.config.get("recipe")
    known = recipe.get("name") if isinstance(recipe, dict) else recipe
    return name if kind == "switch" and name else str(known or "unnamed")


def data_of(log: RunLog) -> str:
    """The dataset's name, or the environment's for a run without a dataset."""
    dataset = log.config.get("dataset")
    return Path(str(dataset)).stem if dataset else str(log.config.get("env"))


def span(seeds: Sequence[int]) -> str:
    """Seeds as text: the first and the last one."""
    return str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]}–{seeds[-1]}"


def listing(paths: Sequence[str | Path]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of `mbo2o runs`: a run in each row, with its method, data, seeds and state."""
    rows = []
    for run in map(look_at, find_runs(paths)):
        last = "–" if run.last_return is None else f"{run.last_return:,.1f}"
        state = f"{run.state}: {run.why}" if run.state == "failed" else run.state
        row = [run.path.name, method_of(run.log), data_of(run.log), span(run.seeds), state, run.place, last]
        rows.append([*row, f"{run.hours:.3g}"])
    return ["run", "method", "data", "seeds", "state", "place", "last return", "hours"], rows
