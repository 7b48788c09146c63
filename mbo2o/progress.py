"""What a run shows while it goes on: lines on stderr, and a bar with the time left."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from typing import Any

import torch
from tqdm import tqdm

from mbo2o.quiet import quiet
from mbo2o.types import duration


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
