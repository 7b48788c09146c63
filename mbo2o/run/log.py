"""What a run says of itself: one JSON line per event in metrics.jsonl, optionally TensorBoard, and a bar or plain lines."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mbo2o.types import Metrics, UserError


class MetricsFile:
    """`metrics.jsonl`: each line an event with its place in the run and, per name, one value per seed (null: not finite)."""

    def __init__(self, path: Path, tensorboard: bool):
        self._file = open(path, "a+b")  # noqa: SIM115  lives as long as the run
        self._board = _board(path.parent) if tensorboard else None

    def write(self, place: dict[str, Any], metrics: Metrics) -> dict[str, Any]:
        """Append one event; returns what was written."""
        values = {name: _plain(x.detach().cpu().tolist()) for name, x in metrics.items()}
        self._file.write(json.dumps({**place, **values}).encode() + b"\n")
        self._file.flush()
        if self._board is not None:
            for name, x in metrics.items():
                for k, y in enumerate(x.detach().cpu().reshape(-1).tolist() if x.dim() <= 1 else []):
                    self._board.add_scalar(f"{place['kind']}/{name}/seed{k}", y, place["total"])
        return values

    def size(self) -> int:
        """Bytes so far, safely on disk."""
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def truncate(self, size: int) -> None:
        """Forget what was written after a checkpoint that said `size`."""
        self._file.truncate(size)
        self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Close the file and the board."""
        self._file.close()
        if self._board is not None:
            self._board.close()


class Means:
    """Running means of metrics, kept as tensors where they were made until someone asks."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: Metrics) -> None:
        """Count these in."""
        for name, x in metrics.items():
            self._sums[name] = self._sums[name] + x if name in self._sums else x.detach().clone()
            self._counts[name] = self._counts.get(name, 0) + 1

    def pop(self) -> Metrics:
        """Means since the last time."""
        means = {name: x / self._counts[name] for name, x in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Sums and counts, for a checkpoint."""
        return dict(self._sums), dict(self._counts)

    def load(self, sums: dict[str, Tensor], counts: dict[str, int]) -> None:
        """Restore what `state` returned."""
        self._sums, self._counts = dict(sums), dict(counts)


class Progress:
    """A bar with the time left, or, where there is no terminal, a line now and then."""

    def __init__(self, name: str, done: int, total: int):
        self._name, self._done, self._start, self._total = name, done, done, total
        self._since = time.monotonic()
        tty = sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, desc=name, unit="step", file=sys.stderr) if tty else None

    def step(self) -> None:
        """One turn done."""
        self._done += 1
        if self._bar is not None:
            self._bar.update()

    def say(self, text: str) -> None:
        """Show a result beside the place in the loop."""
        if self._bar is not None:
            self._bar.set_postfix_str(text)
            return
        done = self._done - self._start
        left = (time.monotonic() - self._since) / done * (self._total - self._done) if done else math.nan
        eta = f"  {left / 60:4.1f} min left" if math.isfinite(left) else ""
        print(f"{self._name:>8} {self._done:>7}/{self._total}  {text}{eta}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Finish the bar."""
        if self._bar is not None:
            self._bar.close()


def describe(values: dict[str, Any], names: tuple[str, ...]) -> str:
    """Some metrics in words: mean over seeds, and the spread when there are several."""
    return "  ".join(f"{name} {_spread(values[name])}" for name in names if name in values)


def _spread(x: Any) -> str:
    numbers = torch.tensor([math.nan if v is None else v for v in (x if isinstance(x, list) else [x])])
    if len(numbers) == 1:
        return f"{float(numbers):.1f}"
    return f"{float(numbers.mean()):.1f} ± {float(numbers.std()):.1f}"


def _plain(x: Any) -> Any:
    if isinstance(x, list):
        return [_plain(y) for y in x]
    return x if math.isfinite(x) else None


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as e:
        raise UserError("run.tensorboard=true needs TensorBoard: pip install 'mbo2o[tensorboard]'") from e
    return SummaryWriter(folder / "tensorboard")
