"""Where the lines of a run's log go beside metrics.jsonl: a CSV file, TensorBoard, wandb, trackio.

A logger is a view. No run depends on one: whatever it raises is told once, and the run goes on without it.
metrics.jsonl itself is always written, because a run resumes from it (`run/log.py`).
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib
import json
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from omegaconf import OmegaConf

from mbo2o.errors import UserError
from mbo2o.registry import find

Line = dict[str, Any]
"""A line of metrics.jsonl: its place, and metrics as numbers, or lists with a value for each seed."""
PLACE = ("kind", "phase", "step", "total", "time")
"""What each line begins with; `total`, the turns since the start of the run, is the step of every logger."""
PROJECT = "mbo2o"
"""The project that wandb and trackio put runs into; WANDB_PROJECT, WANDB_MODE and TRACKIO_SPACE_ID count."""


class Logger(Protocol):
    """What a logger does, once it is open."""

    def log(self, line: Line) -> None:
        """Take one line of the log."""
        ...

    def finish(self) -> None:
        """Write what waits, and close."""
        ...


class Loggers:
    """The loggers of a run: opened with its first line, told of every line, finished with it."""

    def __init__(self, names: Sequence[str], log: Path):
        """`names` are some of KNOWN; `log` is the run's metrics.jsonl.

        Raises:
            UserError: A name is not known, or the package that a logger needs is not installed.
        """
        check(names)
        self._log = log
        self._waiting = [name for name in dict.fromkeys(names) if name != "jsonl"]
        self._open: dict[str, Logger] = {}
        for name in list(self._waiting):
            self._needs(name)

    def __bool__(self) -> bool:
        """Whether there are any, open or not."""
        return bool(self._waiting or self._open)

    def _needs(self, name: str) -> None:
        """Import what a logger needs, before the run begins."""
        _, module, extra = KNOWN[name]
        try:
            importlib.import_module(module)
        except ImportError as e:
            raise UserError(f"log=[{name}] needs {extra}: pip install 'mbo2o[{extra}]'") from e
        except Exception as e:  # an installed package that breaks while it is imported
            self._give_up(name, "cannot be imported", e)

    def begin(self) -> None:
        """Open what is not open yet; metrics.jsonl has what came before, and nothing that comes again."""
        for name in list(self._waiting):
            self._waiting.remove(name)
            try:
                with contextlib.redirect_stdout(sys.stderr):  # trackio greets
                    self._open[name] = KNOWN[name][0](self._log)
            except Exception as e:
                self._give_up(name, "cannot begin", e)

    def log(self, line: Line) -> None:
        """Give a line to every logger that is open."""
        for name, logger in list(self._open.items()):
            try:
                logger.log(line)
            except Exception as e:
                self._give_up(name, "cannot take a line", e)

    def finish(self) -> None:
        """Finish all of them."""
        for name, logger in list(self._open.items()):
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    logger.finish()
            except Exception as e:
                self._give_up(name, "cannot finish", e)
        self._open = {}

    def _give_up(self, name: str, what: str, error: Exception) -> None:
        self._open.pop(name, None)
        if name in self._waiting:
            self._waiting.remove(name)
        reason = " ".join(str(error).split()) or type(error).__name__
        text = f"log=[{name}]: {what} ({reason}); the run goes on without it, metrics.jsonl has every line"
        warnings.warn(text, stacklevel=2)


def check(names: Any) -> None:
    """`UserError` for a setting `log` that is no list of known names."""
    if not isinstance(names, list | tuple):
        raise UserError(f"log={names} must be a list, such as log=[csv,tensorboard]")
    for name in names:
        find(KNOWN, str(name), "logger")


def flattened(line: Line) -> dict[str, float]:
    """The numbers of a line by `KIND/METRIC`: means over seeds, and each seed's if there are several.

    Vectors, such as the returns of single episodes, stay in the files. A value that is missing is left out,
    and a mean that needs it, too.
    """
    found: dict[str, float] = {}
    for name, value in line.items():
        if name in PLACE:
            continue
        seeds = value if isinstance(value, list) else [value]
        if not seeds or not all(x is None or isinstance(x, int | float) for x in seeds):
            continue
        tag = f"{line['kind']}/{name}"
        if None not in seeds:
            found[tag] = math.fsum(seeds) / len(seeds)
        if len(seeds) > 1:
            found |= {f"{tag}/seed{k}": x for k, x in enumerate(seeds) if x is not None}
    return found


def _lines(log: Path) -> Iterator[Line]:
    """The lines that a log has so far."""
    if log.is_file():
        for text in log.read_text().splitlines():
            yield json.loads(text)


class Table:
    """metrics.csv: a row for each value, with the columns of COLUMNS.

    It is written again from metrics.jsonl where a run goes on, so that it never has a line twice.
    """

    COLUMNS = (*PLACE, "metric", "seed", "index", "value")

    def __init__(self, log: Path):
        self._file = open(log.with_name("metrics.csv"), "w", newline="")  # noqa: SIM115  as long as the run
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._rows.writerow(self.COLUMNS)
        for line in _lines(log):
            self.log(line)

    def log(self, line: Line) -> None:
        """Write a row for each value; `index` counts in a vector, `value` is empty if it is not finite."""
        place = [line.get(name, "") for name in PLACE]
        for metric, value in line.items():
            if metric not in PLACE:
                self._rows.writerows([*place, metric, *cell] for cell in _cells(value))
        self._file.flush()

    def finish(self) -> None:
        """Close the file."""
        self._file.close()


def _cells(value: Any) -> Iterator[tuple[Any, Any, Any]]:
    """(seed, index, value) of each number of a metric."""
    if not isinstance(value, list):
        yield "", "", value
        return
    for seed, x in enumerate(value):
        if isinstance(x, list):
            yield from ((seed, i, y) for i, y in enumerate(x))
        else:
            yield seed, "", x


class Board:
    """TensorBoard files in the run's folder `tensorboard`."""

    def __init__(self, log: Path):
        from torch.utils.tensorboard import SummaryWriter

        totals = [int(line["total"]) for line in _lines(log)]
        # TensorBoard hides what an earlier part of the run wrote beyond the checkpoint that it goes on from
        purge = totals[-1] + 1 if totals else None
        self._writer: Any = SummaryWriter(log.parent / "tensorboard", purge_step=purge)

    def log(self, line: Line) -> None:
        """Write a scalar for each number."""
        for tag, value in flattened(line).items():
            self._writer.add_scalar(tag, value, line["total"])

    def finish(self) -> None:
        """Close the files."""
        self._writer.close()


class Tracker:
    """A package with wandb's three calls: `init`, which gives a run, and the run's `log` and `finish`.

    A run that goes on continues its curves: both packages find it again, wandb by an id of the directory's
    path, trackio by the directory's name.
    """

    def __init__(self, module: str, log: Path, **more: Any):
        directory = log.parent.resolve()
        path = directory / "config.yaml"
        config: Any = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else {}
        self._run: Any = importlib.import_module(module).init(
            project=PROJECT, name=directory.name, config=config, resume="allow", **more
        )

    def log(self, line: Line) -> None:
        """Send the numbers of a line, with the turns since the start as their step."""
        if found := flattened(line):
            self._run.log(found, step=line["total"])

    def finish(self) -> None:
        """Send what waits, and end the run."""
        self._run.finish()


def _wandb(log: Path) -> Tracker:
    folder = log.parent.resolve()
    place = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    # create_new: a run that the caller has opened in this process stays open and apart
    return Tracker("wandb", log, id=f"{folder.name}-{place}", dir=str(folder), reinit="create_new")


def _trackio(log: Path) -> Tracker:
    return Tracker("trackio", log, embed=False, auto_log_cpu=False, auto_log_gpu=False)


KNOWN: dict[str, Any] = {
    "jsonl": (None, "json", ""),
    "csv": (Table, "csv", ""),
    "tensorboard": (Board, "torch.utils.tensorboard", "tensorboard"),
    "wandb": (_wandb, "wandb", "wandb"),
    "trackio": (_trackio, "trackio", "trackio"),
}
"""By name: what opens a logger, the module that it needs, and the extra of this package that installs it."""
