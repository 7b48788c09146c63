"""What ends a run early: signals that ask it to stop, and numbers that show that learning has diverged."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import numpy as np
import torch

from mbo2o.envs.faults import Faults
from mbo2o.progress import tell
from mbo2o.run.memory import Memory, first_line
from mbo2o.run.world import World
from mbo2o.types import Diverged, Metrics

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Ask a run to save and stop: a scheduler's, Ctrl-C, and the one of SLURM (--signal=USR1@60)."""
PATIENCE = 8.0
"""Seconds that a turn may still take after a signal."""
LONGEST = 1e5
"""At most so many steps count when the limit on |Q| is guessed, because a discount of 1 sets no bound."""


class Stopped(BaseException):
    """The run was asked to stop and has saved; the same command continues it.

    It can be raised anywhere, as KeyboardInterrupt can, so it must not be caught as an `Exception`.
    """

    exit_code = 143


class Interrupted(Exception):
    """An evaluation was left because the run is to stop."""


class Signals:
    """What signals have asked of a run.

    The first signal asks it to save and stop after the current turn, a second one kills the process. A turn
    that goes on for longer than `PATIENCE` is left without saving; the last checkpoint stays valid.
    """

    def __init__(self, where: Callable[[], str], faults: Faults):
        """`where` names the current turn; `faults` limits the time of environments inside `handled`."""
        self.stop = False
        """Whether the run is to save and stop."""
        self.in_stage = False
        """Whether the run is in a stage that a signal leaves at once (`Run.once`)."""
        self._where, self._faults = where, faults

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handle `SIGNALS` inside the block; without effect outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            with self._faults.watching():
                yield
        finally:
            if self.stop:
                self.turn_done()
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
            for number, handler in before.items():
                signal.signal(number, handler)

    def turn_done(self) -> None:
        """The turn has ended in time: a run that is to stop may now save for as long as it takes."""
        if self.stop:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _on_signal(self, number: int, frame: object) -> None:
        for x in SIGNALS:
            signal.signal(x, signal.SIG_DFL)
        if self.in_stage:
            again = "the same command starts the stage again"
            raise Stopped(f"stopped in a stage that runs once, at {self._where()}; {again}")
        self.stop = True
        signal.signal(signal.SIGALRM, self._on_overdue)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        tell("stopping after this turn; signal once more to leave at once")

    def _on_overdue(self, number: int, frame: object) -> None:
        again = "the same command goes on from the last checkpoint"
        raise Stopped(f"stopped in the middle of {self._where()}; {again}")


class Divergence:
    """Ends a run with `Diverged` when it meets numbers that learning should not produce, and names them.

    These are parameters, metrics and actions that are not finite, and a mean |Q| above a limit. Unless the
    limit is configured, it is ten times what the largest reward met so far can add up to.
    """

    def __init__(self, q_limit: float | None, world: World, memory: Memory, where: Callable[[], str]):
        """`where` names the current turn, for messages."""
        self._q_limit, self._world, self._memory, self._where = q_limit, world, memory, where

    def finite(self, x: np.ndarray, name: str) -> None:
        """`Diverged` unless all of `x` is finite; it names the parameter at fault, or else `name`."""
        if not np.isfinite(x).all():
            raise Diverged(self._not_finite(self._found(self._memory.means.peek()) or name))

    def check(self, means: Metrics) -> None:
        """`Diverged` if one of these metrics or a parameter is not finite, or if |Q| is above its limit."""
        if name := self._found(means):
            raise Diverged(self._not_finite(name))
        if "q" in means and (worst := float(means["q"].abs().max())) > (limit := self._limit()):
            text = (
                f"|Q| reached {worst:.3g} at {self._where()}, beyond run.q_limit={limit:.3g}{self._source()}"
            )
            raise Diverged(f"{text}; the last checkpoint is kept")

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turn a numeric error inside the block into `Diverged` if a parameter or a metric is not finite."""
        try:
            yield
        except (ArithmeticError, AssertionError, IndexError, RuntimeError, ValueError) as e:
            if name := self._found(self._memory.means.peek()):
                raise Diverged(f"{self._not_finite(name)} ({first_line(e)})") from e
            raise

    def _not_finite(self, name: str) -> str:
        return f"{name} is not finite at {self._where()}; the last checkpoint is kept"

    def _found(self, metrics: Metrics) -> str | None:
        """The name of the first of these metrics, or of the parameters, that is not finite, else None."""
        named = [*metrics.items(), *self._memory.parameters()]
        if not named:
            return None
        device = self._world.spec.device  # one answer for all of them: each would cost a wait for the device
        finite = torch.stack([torch.isfinite(x).all().to(device) for _, x in named]).tolist()
        return next((name for (name, _), good in zip(named, finite, strict=True) if not good), None)

    def _limit(self) -> float:
        if self._q_limit is not None:
            return self._q_limit
        return 10 * max(1.0, self._world.largest[0]) / max(1 - self._world.gamma, 1 / LONGEST)

    def _source(self) -> str:
        """Where the limit comes from, for a message; empty for a limit that was configured."""
        if self._q_limit is not None:
            return ""
        reward, where = self._world.largest
        met = f"{reward:.3g} {where}".rstrip() + (", counted as 1" if reward < 1 else "")
        return f" (guessed from the largest |reward| met so far, {met}; set run.q_limit=NUMBER to choose)"
