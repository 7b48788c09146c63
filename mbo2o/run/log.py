"""The log of a run: one JSON line per event in metrics.jsonl, which loggers follow."""

from __future__ import annotations

import contextlib
import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mbo2o.envs import streams
from mbo2o.loggers import Loggers
from mbo2o.store.whole import writing
from mbo2o.types import Metrics


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


def _plain(x: Any) -> Any:
    if isinstance(x, list):
        return [_plain(y) for y in x]
    return x if math.isfinite(x) else None
