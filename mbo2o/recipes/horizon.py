"""The length of imagined branches, which may grow as a model gets better (MBPO)."""

from __future__ import annotations

from typing import Any

from mbo2o.types import UserError


def branch_length(horizon: Any, epoch: int) -> int:
    """Steps of an imagined branch in an epoch, which counts from 0.

    horizon: the number itself, or [FROM, TO, FIRST, LAST]: FROM until epoch FIRST, then along a line to TO, which is
    reached in epoch LAST and kept (MBPO on Hopper: [1, 15, 20, 150]). Fractions are cut off, as in MBPO's code. An
    epoch is `rollout_every` updates offline, and `recipe.epoch` steps online.
    """
    if isinstance(horizon, int):
        return horizon
    low, high, first, last = horizon
    share = min(max((epoch - first) / (last - first), 0.0), 1.0)
    return int(low + share * (high - low))


def longest(horizon: Any) -> int:
    """The largest length that `branch_length` returns."""
    return horizon if isinstance(horizon, int) else max(horizon[:2])


def check_horizon(name: str, horizon: Any) -> None:
    """Raise a `UserError` for what `branch_length` cannot read."""
    grows = isinstance(horizon, list)
    numbers = horizon if grows else [horizon]
    if len(numbers) != (4 if grows else 1) or not all(type(x) is int for x in numbers):
        raise UserError(
            f"recipe.{name}={horizon} must be a number of steps, or [FROM, TO, FIRST, LAST], four whole numbers"
        )
    if min(numbers[:2]) < 1:
        raise UserError(f"recipe.{name}={horizon}: a branch must have at least 1 step")
    if grows and not 0 <= numbers[2] < numbers[3]:
        raise UserError(f"recipe.{name}={horizon}: the length changes from epoch FIRST to a later epoch LAST")
