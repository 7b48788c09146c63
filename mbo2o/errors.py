"""The errors that a user sees as one line, each with its exit code. Nothing heavy is imported here."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar


class UserError(Exception):
    """A mistake that the user can correct: shown as one line (what, where, what to do), with exit code 2."""

    exit_code: ClassVar[int] = 2


class Diverged(Exception):
    """Training produced numbers that are not finite: one line, exit code 3; the last checkpoint stays."""

    exit_code: ClassVar[int] = 3


def optional(module: str, what: str, extra: str = "all") -> Any:
    """Import a module that only some uses need; `UserError` names the extra that installs it.

    what: what needs it, as the beginning of a sentence.
    """
    try:
        return importlib.import_module(module)
    except ImportError as e:
        missing = (e.name or module).partition(".")[0]
        text = f"{what} needs {missing}, which is not installed: pip install 'mbo2o[{extra}]'"
        raise UserError(text) from e


def at_least_one(where: str, **counts: float) -> None:
    """Raise a `UserError` for the first of these numbers that is below 1."""
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"{where}: {name}={value} must be at least 1")
