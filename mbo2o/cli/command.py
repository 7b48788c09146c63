"""What the commands share: how one is declared, and which exit code an error has.

Nothing of the package is imported at the top of these modules, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

USER, DIVERGED, INTERRUPTED, STOPPED = 2, 3, 130, 143


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line; commands below a parser have parsers of its class."""

    def error(self, message: str) -> NoReturn:
        """End with the code of a mistake in what was asked."""
        command = self.prog.removeprefix("mbo2o").strip()
        self.exit(_say(f"{command}: {message}; see {self.prog} --help".removeprefix(": "), USER))


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
    """The exit code of `work`: its own, or that of the error it ends with, which is printed as one line.

    Warnings are one line, too.
    """
    warnings.formatwarning = lambda message, *rest, **more: f"warning: {message}\n"
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
    if isinstance(error, PermissionError):  # a file that was to be read
        name = error.filename or "a file"
        return _say(f"{name}: {error.strerror}; check who may read or write it", USER)
    code: int | None = getattr(error, "exit_code", None)
    if code is None:
        return None
    return _say(f"diverged: {error}" if code == DIVERGED else str(error), code)


def _say(text: str, code: int) -> int:
    print(f"mbo2o: {text}", file=sys.stderr)
    return code


def folder(text: str) -> Path:
    """The folder of an option. argparse makes one line of the error if there is none."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text}: no such folder")
    return Path(text)
