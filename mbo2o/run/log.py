"""The log of a run: one JSON line per event in metrics.jsonl, which loggers follow, and a progress bar."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mbo2o.envs import streams
from mbo2o.loggers import Loggers
from mbo2o.quiet import quiet
from mbo2o.store.whole import writing
from mbo2o.types import Metrics, duration


class MetricsFile:
    """`metrics.jsonl`: one event a line, with its place in the run and values by seed (null: not finite)."""

    def __init__(self, path: Path, loggers: Sequence[str] = ()):
        self._path, self._loggers = path, Loggers(loggers, path)
        with writing(path):
            # unbuffered, so that a full disk raises where a line is written, and not again at closing
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115  lives as long as the run

    def write(self, place: dict[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Append one event of tensors or arrays, whole or not at all; returns the values as written."""
        values = {name: _plain(x.tolist()) for name, x in metrics.items()}
        line = {**place, **values}
        with streams.private() if self._loggers else contextlib.nullcontext():  # their draws are no run's
            self._loggers.begin()
            with writing(self._path):
                self._append(json.dumps(line).encode() + b"\n")
            self._loggers.log(line)
        return values

    def _append(self, line: bytes) -> None:
        done = 0
        try:
            while done < len(line):
                done += self._file.write(line[done:])
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(self._file.seek(0, os.SEEK_END) - done)
            raise

    def size(self) -> int:
        """Bytes so far, after they have reached the disk."""
        with writing(self._path):
            os.fsync(self._file.fileno())
            return self._file.seek(0, os.SEEK_END)

    def truncate(self, size: int) -> None:
        """Cut the file to a `size` from a checkpoint; if it is shorter, warn and keep its whole lines."""
        with writing(self._path):
            there = self._file.seek(0, os.SEEK_END)
            if there < size:  # lost by a disk or a person; `truncate` would fill the gap with zeros
                text = f"{self._path}: {size - there} bytes less than its checkpoint counts"
                warnings.warn(f"{text}; the log has a gap, the run goes on", stacklevel=2)
                self._file.seek(0)
                size = self._file.read().rfind(b"\n") + 1
            self._file.truncate(size)

    def close(self) -> None:
        """Close the file and finish the loggers."""
        self._file.close()
        with streams.private():
            self._loggers.finish()


class Means:
    """Running means of metrics, kept as tensors on their device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: Metrics, count: int = 1) -> None:
        """Include these metrics, each of which is the sum of `count` values."""
        for name, x in metrics.items():
            self._sums[name] = self._sums[name] + x if name in self._sums else x.detach().clone()
            self._counts[name] = self._counts.get(name, 0) + count

    def peek(self) -> Metrics:
        """Means since the last `pop`."""
        return {name: x / self._counts[name] for name, x in self._sums.items()}

    def pop(self) -> Metrics:
        """Means since the last `pop`; counting starts again."""
        means = self.peek()
        self._sums, self._counts = {}, {}
        return means

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Sums and counts, for a checkpoint."""
        return dict(self._sums), dict(self._counts)

    def load(self, sums: dict[str, Tensor], counts: dict[str, int]) -> None:
        """Restore what `state` returned."""
        self._sums, self._counts = dict(sums), dict(counts)


class Progress:
    """A bar with the time left, or without a terminal a line for each result."""

    def __init__(self, name: str, done: int, total: int):
        self._name, self._done, self._start, self._total = name, done, done, total
        self._since = time.monotonic()
        tty = sys.stderr.isatty() and not quiet()
        self._bar = tqdm(total=total, initial=done, desc=name, unit="step", file=sys.stderr) if tty else None

    def step(self) -> None:
        """One turn done."""
        self._done += 1
        if self._bar is not None:
            self._bar.update()

    def say(self, text: str, at: int | None = None) -> None:
        """Show a result beside the place in the loop, which is the present one unless `at` says another."""
        if self._bar is not None:
            self._bar.set_postfix_str(text)
            return
        done = self._done - self._start
        left = (time.monotonic() - self._since) / done * (self._total - self._done) if done else math.nan
        eta = f"  {duration(left)} left" if math.isfinite(left) else ""
        tell(f"{self._name:>8} {self._done if at is None else at:>7}/{self._total}  {text}{eta}")

    def close(self) -> None:
        """Finish the bar."""
        if self._bar is not None:
            self._bar.close()


def tell(text: str) -> None:
    """Print a line on stderr. A closed terminal, or a log on a full disk, does not stop a run."""
    if quiet():
        return
    # RuntimeError: a signal handler prints while another print is in progress
    with contextlib.suppress(OSError, RuntimeError):
        print(text, file=sys.stderr, flush=True)


def describe(values: dict[str, Any], names: tuple[str, ...]) -> str:
    """Some metrics as text: the mean over seeds, and the standard deviation if there are several."""
    return "  ".join(f"{name} {_spread(values[name])}" for name in names if name in values)


def _spread(x: Any) -> str:
    numbers = torch.tensor([math.nan if v is None else v for v in (x if isinstance(x, list) else [x])])
    if len(numbers) == 1:
        return _short(float(numbers))
    return f"{_short(float(numbers.mean()))} ± {_short(float(numbers.std()))}"


def _short(x: float) -> str:
    """One digit after the point, or three significant digits if the number is small."""
    return f"{x:.1f}" if abs(x) >= 10 or x == 0 else f"{x:.3g}"


def _plain(x: Any) -> Any:
    if isinstance(x, list):
        return [_plain(y) for y in x]
    return x if math.isfinite(x) else None
