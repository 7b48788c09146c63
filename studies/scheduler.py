"""The jobs of a study as processes, as many at a time as there are cores for them.

Each job is a process of its own command, `mbo2o study ... --only JOB`, and goes on where it stopped. A killed
process is started again, a few times. After anything the same command goes on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mbo2o.errors import UserError
from mbo2o.report.read import read_run
from mbo2o.run.watch import Stopped
from mbo2o.store.whole import lock_file, take_lock
from mbo2o.types import duration
from studies.arms import DIVERGED, Job
from studies.found import is_done

ATTEMPTS = 4
"""How often a job is started whose process was killed."""
STOPPED = 143
LOOK, TELL = 0.2, 60.0
"""Seconds between two looks at the processes, and between two lines about the hours left."""
GRACE = 300.0
"""Seconds in which stopped processes save; after that they are killed, and go on from an earlier save."""


@dataclass
class Scheduler:
    """Runs `jobs` under `out` with `workers` processes at a time.

    `command` is what runs a job if its name follows. `minutes` is the time after which everything stops.
    """

    jobs: dict[str, Job]
    out: Path
    command: Sequence[str]
    workers: int
    minutes: float | None = None
    failed: dict[str, str] = field(default_factory=dict)
    """Why jobs did not end well, by name."""
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _starts: dict[str, int] = field(default_factory=dict)
    _ending: bool = False

    def run(self) -> None:
        """Run all jobs to their ends, or until the time is up or a signal comes.

        Raises:
            Stopped: A signal came. The processes have saved, and the same command goes on.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        since = told = time.monotonic()
        with self._signals() as came:
            try:
                while self._step():
                    time.sleep(LOOK)
                    now = time.monotonic()
                    if came or (self.minutes is not None and now - since > 60 * self.minutes):
                        break
                    if now - told > TELL:
                        told = now
                        self._tell()
            finally:
                self._stop()
        if came:
            raise Stopped("stopped by a signal; everything is saved, and the same command goes on")
        left = [x for x in self.jobs if not self._settled(x)]
        if left:
            self._tell()
            said = f"{self.minutes:g} minutes are over, {len(left)} jobs are left: the same command goes on"
            print(f"{said}, here or where {self.out} was copied to", file=sys.stderr)

    def _settled(self, name: str) -> bool:
        return name in self.failed or is_done(self.out / name)

    def _step(self) -> bool:
        """Look at the processes and start what can start; False if nothing is left to do."""
        for name, process in list(self._running.items()):
            if (code := process.poll()) is not None:
                del self._running[name]
                self._ended(name, code)
        left = [x for x in self.jobs if x not in self._running and not self._settled(x)]
        busy = len(self._running) + sum(self._held(x) for x in left)
        for name in left:
            start = self.jobs[name].start
            if start in self.failed or (start and (self.out / start / DIVERGED).exists()):
                self.failed[name] = f"is left out, because {start} did not end well"
            elif (not start or is_done(self.out / start)) and busy < self.workers and not self._held(name):
                self._start(name)
                busy += 1
        return bool(self._running) or any(not self._settled(x) for x in self.jobs)

    def _held(self, name: str) -> bool:
        """Whether another process runs the job: one that a killed scheduler left behind."""
        path = self.out / name / ".lock"
        if not path.exists():
            return False
        with lock_file(path) as handle:
            return take_lock(handle) is False

    def _start(self, name: str) -> None:
        self._starts[name] = self._starts.get(name, 0) + 1
        (self.out / name).parent.mkdir(parents=True, exist_ok=True)
        with open(self.out / f"{name}.log", "ab") as log:
            self._running[name] = subprocess.Popen(
                [*self.command, name],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in a terminal reaches the scheduler alone, which stops all
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        print(f"{name}: started", file=sys.stderr)

    def _ended(self, name: str, code: int) -> None:
        if is_done(self.out / name):
            print(f"{name}: done", file=sys.stderr)
        elif code < 0 or code == STOPPED:
            if self._starts[name] >= ATTEMPTS:
                self.failed[name] = f"was killed {ATTEMPTS} times (signal {abs(code)})"
        else:
            self.failed[name] = f"exit code {code}: {_last_line(self.out / f'{name}.log')}"
        if name in self.failed:
            print(f"{name}: {self.failed[name]}", file=sys.stderr)

    def _stop(self) -> None:
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        until = time.monotonic() + GRACE
        for process in self._running.values():
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[list[int]]:
        came: list[int] = []
        kinds = (signal.SIGTERM, signal.SIGINT)
        before = {x: signal.signal(x, lambda number, _: came.append(number)) for x in kinds}
        try:
            yield came
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def _tell(self) -> None:
        done = sum(self._settled(x) for x in self.jobs)
        seconds = seconds_left(self.jobs, self.out, set(self.failed))
        left = "unknown" if seconds is None else f"about {duration(seconds / self.workers)}"
        print(f"{done} of {len(self.jobs)} jobs done, left: {left}", file=sys.stderr)


def _last_line(path: Path) -> str:
    lines = [x for x in path.read_text(errors="replace").splitlines() if x.strip()]
    return lines[-1].strip() if lines else "said nothing"


def turns_of(job: Job) -> int:
    """The turns that a job makes: updates offline, environment steps online."""
    recipe = job.config.recipe
    names = ("online_steps",) if job.start else ("offline_steps", "online_steps")
    return sum(int(getattr(recipe, x, 0)) for x in names)


def seconds_left(jobs: dict[str, Job], out: Path, failed: set[str]) -> float | None:
    """The seconds that one process would need for what is left, from the pace so far; None without any.

    A job that has not begun counts with the mean pace of its kind, of offline phases or of arms, or else
    with that of all.
    """
    paces: dict[bool, list[float]] = {True: [], False: []}
    left: list[tuple[str, float]] = []
    own: dict[str, float] = {}
    for name, job in jobs.items():
        made, seconds = _progress(out / name)
        if made > 0:
            own[name] = seconds / made
            paces[job.start is None].append(own[name])
        if name not in failed and not is_done(out / name):
            left.append((name, max(0.0, turns_of(job) - made)))
    every = paces[True] + paces[False]
    if left and not every:
        return None
    total = 0.0
    for name, turns in left:
        kind = paces[jobs[name].start is None] or every
        total += turns * own.get(name, sum(kind) / len(kind))
    return total


def _progress(directory: Path) -> tuple[float, float]:
    """The turns that a run has made, and its seconds for them."""
    try:
        lines = [x for x in read_run(directory).lines if x.get("time") is not None]
    except UserError:
        return 0.0, 0.0
    if len(lines) < 2:
        return 0.0, 0.0
    return float(lines[-1]["total"] - lines[0]["total"]), float(lines[-1]["time"] - lines[0]["time"])
