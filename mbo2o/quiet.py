"""Whether a run prints its progress."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)


def quiet() -> bool:
    """Whether nothing is to be printed here."""
    return _QUIET.get()


@contextlib.contextmanager
def quietly(on: bool = True) -> Iterator[None]:
    """Inside, if `on`, no progress is printed from this thread or task."""
    token = _QUIET.set(on or quiet())
    try:
        yield
    finally:
        _QUIET.reset(token)
