"""Environments that fail: what counts as a fault, how long a call may take, how many faults a run repairs."""

from __future__ import annotations

import contextlib
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mbo2o.types import UserError

LARGEST = float(np.finfo(np.float32).max)


class EnvironmentFault(UserError):
    """An environment raised an error, took too long, or returned nonsense: one line, exit code 4."""


class Faults:
    """How long a run's environments may take, and how many of their faults are repaired.

    Every call of an environment is made inside `with faults:`. Inside `watching`, a call that takes longer
    than `seconds` ends with a TimeoutError, after at most twice that time.
    """

    def __init__(
        self, allowed: int = 0, seconds: float | None = None, tell: Callable[[str], None] = lambda text: None
    ):
        self.allowed, self.seconds, self._tell = allowed, seconds, tell
        self.count = 0
        """Faults so far."""
        self._calls, self._inside = 0, False

    def accept(self, fault: EnvironmentFault) -> None:
        """Count a fault and report it; raise it if there have been more than `allowed`."""
        self.count += 1
        if self.count > self.allowed:
            raise fault
        count = f"fault {self.count} of {self.allowed} that run.env_faults allows"
        self._tell(f"{fault}; the environment is made again ({count})")

    def __enter__(self) -> None:
        self._calls, self._inside = self._calls + 1, True

    def __exit__(self, *error: object) -> None:
        self._inside = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Limit the time of calls inside the block, in the main thread only; C code ends first."""
        free = (
            threading.current_thread() is threading.main_thread()
            and not signal.getitimer(signal.ITIMER_REAL)[0]
        )
        if not self.seconds or not free:
            yield
            return
        seen = -1

        # one periodic timer for all calls: to set one for each call would cost more than a step
        def ring(number: int, frame: object) -> None:
            nonlocal seen
            # the second ring within a call counts: the first may follow a suspension of the whole process
            if self._inside and self._calls == seen:
                raise TimeoutError(f"no answer within {self.seconds:g} s (run.env_seconds)")
            seen = self._calls

        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, self.seconds, self.seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def describe(e: Exception) -> str:
    """An error in one line, with the file and line that raised it."""
    text = " ".join(str(e).split())
    where = traceback.extract_tb(e.__traceback__)[-1]
    here = "" if isinstance(e, NoTransition) else f" ({where.filename.rsplit('/', 1)[-1]}:{where.lineno})"
    return f"{type(e).__name__ + ': ' if here else ''}{text}{here}"


class NoTransition(Exception):
    """An environment returned something that is no transition."""


def observation(x: Any, width: int) -> np.ndarray:
    """`x` as finite float32 `(width,)`."""
    array = np.asarray(x)
    if array.dtype.kind not in "fiub":
        raise NoTransition(f"the observation is of dtype {array.dtype}")
    if array.shape != (width,):
        raise NoTransition(f"the observation has shape {array.shape}, not {(width,)}")
    if not np.maximum.reduce(np.abs(array), initial=0) <= LARGEST:
        raise NoTransition("the observation is not finite")
    return array.astype(
        np.float32
    )  # a copy, also of float32: some environments reuse the array they returned


def reward(x: Any) -> float:
    """`x` as a float, finite in single precision."""
    number = x if isinstance(x, float | int) else _scalar(x)
    if number is None:
        raise NoTransition(f"the reward is {x!r}, not a number")
    if not abs(number) <= LARGEST:
        raise NoTransition(f"the reward is {number}")
    return float(number)


def flag(x: Any, name: str) -> bool:
    """`x`, a flag for the end of an episode, as a bool."""
    number = x if isinstance(x, bool) else _scalar(x)
    if number not in (0, 1):
        raise NoTransition(f"{name} is {x!r}, neither true nor false")
    return bool(number)


def _scalar(x: Any) -> float | None:
    array = np.asarray(x)
    return array.item() if array.size == 1 and array.dtype.kind in "fiub" else None
