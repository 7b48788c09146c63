"""Claims of papers as differences that should be positive, and what measured arms say of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mbo2o.report.statistics import paired_difference

Measured = dict[str, dict[str, np.ndarray]]
"""By arm and measure, a number for each seed."""


class Claim(NamedTuple):
    """`value` of what was measured should be positive."""

    name: str
    text: str
    value: Callable[[Measured], Any]


def difference(measure: str, more: str, less: str) -> Callable[[Measured], Any]:
    """`more` minus `less`, two arms."""
    return lambda m: m[more][measure] - m[less][measure]


def verdicts(claims: Sequence[Claim], measured: Measured) -> list[tuple[Claim, float, float, float, str]]:
    """Each claim that the arms allow: mean, interval, and whether it holds (interval above 0) or in direction only."""
    out = []
    for claim in claims:
        try:
            found = np.asarray(claim.value(measured), float)
        except KeyError:
            continue  # an arm that was not run
        mean, low, high = paired_difference(found, np.zeros_like(found))
        if np.isnan(mean):
            verdict = "undefined"  # an arm diverged
        elif not found.any():
            verdict = "no difference"  # as where what an agent becomes is what it was, or no arm lost anything
        else:
            verdict = "holds" if low > 0 else "direction only" if mean > 0 else "contrary" if high < 0 else "not reproduced"
        out.append((claim, mean, low, high, verdict))
    return out
