"""The errors that a user sees as one line, each with its exit code. Nothing heavy is imported here."""

from __future__ import annotations

from typing import ClassVar


class UserError(Exception):
    """A mistake that the user can correct: shown as one line (what, where, what to do), with exit code 2."""

    exit_code: ClassVar[int] = 2


class Diverged(Exception):
    """Training produced numbers that are not finite: one line, exit code 3; the last checkpoint stays."""

    exit_code: ClassVar[int] = 3


def at_least_one(where: str, **counts: float) -> None:
    """Raise a `UserError` for the first of these numbers that is below 1."""
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"{where}: {name}={value} must be at least 1")
