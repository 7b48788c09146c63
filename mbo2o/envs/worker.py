"""A process with environments of its own that answers questions, one at a time."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import torch

from mbo2o.envs.faults import Faults

Unsendable = pickle.PicklingError
START = "from mbo2o.envs.worker import serve; serve()"


class Worker:
    """A new interpreter, which imports neither the caller's main module nor anything of its state.

    It ends when this process does. Signals that ask a run to stop do not reach it.
    """

    def __init__(self, make: Callable[..., Callable[..., Any]], seconds: float | None):
        """`make(faults=)` makes there what answers; `seconds`: how long its environments may take."""
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        self._pipe, theirs = Pipe()
        number = theirs.fileno()
        command = [sys.executable, "-c", START, str(number)]
        # what environments print goes to stderr
        self._process = subprocess.Popen(command, env=env, pass_fds=(number,), stdout=sys.__stderr__)
        theirs.close()
        self.busy = False
        self.ask(torch.get_num_threads(), make, seconds)
        self.busy = False

    def ask(self, *question: Any) -> None:
        """Ask for the answer to `question`. Raises what pickling it raises."""
        message = pickle.dumps(question)  # `send` would share tensors instead of copying them
        with contextlib.suppress(OSError):  # a process that has died is noticed where its answer is read
            self._pipe.send_bytes(message)
        self.busy = True

    def answered(self) -> bool:
        """Whether `answer` returns at once."""
        with contextlib.suppress(OSError):
            return self._pipe.poll()
        return True

    def answer(self) -> Any:
        """The answer; None if there is none, because something failed there."""
        self.busy = False
        with contextlib.suppress(EOFError, OSError):
            return pickle.loads(self._pipe.recv_bytes())
        return None

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._pipe.close()


def serve() -> None:
    """What the process does: answer each question, with None where that fails, until the pipe is closed."""
    pipe: Connection[Any, Any] = Connection(int(sys.argv[1]))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # it also ends where it cannot read a question, such as a class that it cannot import
    with contextlib.suppress(Exception):
        threads, make, seconds = pickle.loads(pipe.recv_bytes())
        torch.set_num_threads(threads)
        faults = Faults(seconds=seconds)
        reply = make(faults=faults)
        with faults.watching():
            while True:
                question, answer = pickle.loads(pipe.recv_bytes()), None
                with contextlib.suppress(Exception):
                    answer = reply(*question)
                pipe.send_bytes(pickle.dumps(answer))
