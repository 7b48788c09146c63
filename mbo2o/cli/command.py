"""What the commands share: how one is declared, and which exit code an error has.

Nothing of the package is imported at the top of these modules, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Callable
from typing import Any

USER, DIVERGED, ENVIRONMENT, INTERRUPTED, STOPPED = 2, 3, 4, 130, 143


def add(
    to: Any, name: str, run: Callable[..., Any], text: str, example: str, more: str = ""
) -> argparse.ArgumentParser:
    """Declare the command `name`, which calls `run` with its options.

    text: what it does; its own --help also shows `more`. example: command lines.
    """
    parser: argparse.ArgumentParser = to.add_parser(
        name,
        help=text,
        description=textwrap.fill(f"{text} {more}", 100),
        epilog=textwrap.dedent(f"example:\n  {example}"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def guarded(work: Callable[[], int]) -> int:
    """The exit code of `work`: its own, or that of the error it ends with, which is printed as one line."""
    try:
        return work()
    except BrokenPipeError:  # `mbo2o methods | head`: the reader has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, SystemExit, GeneratorExit) as e:
        if not isinstance(e, KeyboardInterrupt):
            raise
        return _say("interrupted", INTERRUPTED)
    except BaseException as e:
        if (code := _reported(e)) is None:
            raise
        return code


def _reported(error: BaseException) -> int | None:
    """Print an error that is expected, and return its code; None for a fault of the program."""
    from mbo2o.envs.faults import EnvironmentFault
    from mbo2o.run.watch import Stopped
    from mbo2o.types import Diverged, UserError

    if isinstance(error, EnvironmentFault):
        return _say(str(error), ENVIRONMENT)
    if isinstance(error, UserError):
        return _say(str(error), USER)
    if isinstance(error, PermissionError):  # a file that was to be read
        name = error.filename or "a file"
        return _say(f"{name}: {error.strerror}; check who may read or write it", USER)
    if isinstance(error, Diverged):
        return _say(f"diverged: {error}", DIVERGED)
    if isinstance(error, Stopped):
        return _say(str(error), STOPPED)
    return None


def _say(text: str, code: int) -> int:
    print(f"mbo2o: {text}", file=sys.stderr)
    return code
