"""Claims of papers as differences that should be positive, and their verdicts from measured arms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mbo2o.report.statistics import FEWEST, Estimate, benjamini_hochberg, mean_over_seeds, unpaired_difference

Measured = dict[str, dict[str, np.ndarray]]
"""By arm and measure, a number for each seed."""
LEVEL = 0.05
"""A claim holds if its q is below this."""


class Apart(NamedTuple):
    """Two samples whose seeds share no checkpoint, network or order of data: they are not paired."""

    more: np.ndarray
    less: np.ndarray


class Claim(NamedTuple):
    """`value` of what was measured should be positive: a number for each seed, or two samples `Apart`."""

    name: str
    text: str
    value: Callable[[Measured], Any]
    sanity: bool = False
    """Whether the comparison can hardly fail: it shows that a measure works, and is not corrected."""
    only: str = ""
    """A part of the names of the data that the claim is about; "": any."""


class Finding(NamedTuple):
    """The result of a claim on one dataset of a study."""

    claim: Claim
    data: str
    paired: bool
    estimate: Estimate
    q: float
    """Benjamini and Hochberg's, over all findings of the study that are no sanity checks; NaN for those."""
    verdict: str


def difference(measure: str, more: str, less: str) -> Callable[[Measured], Any]:
    """`more` minus `less` in each seed, for two arms that start from the same checkpoint or networks."""
    return lambda m: m[more][measure] - m[less][measure]


def apart(measure: str, more: str, less: str) -> Callable[[Measured], Any]:
    """`more` and `less`, two arms that start from different checkpoints."""
    return lambda m: Apart(m[more][measure], m[less][measure])


def verdicts(claims: Sequence[Claim], studied: dict[str, Measured]) -> list[Finding]:
    """The finding of each claim on each of the study's data, where the arms that it needs were run."""
    found = []
    for claim in claims:
        for data, measured in studied.items():
            if claim.only not in data:
                continue
            try:
                value = claim.value(measured)
            except KeyError:
                continue  # an arm, or a measure, that this data has not
            paired = not isinstance(value, Apart)
            estimate = mean_over_seeds(value) if paired else unpaired_difference(*value)
            found.append((claim, data, paired, estimate, value))
    q = benjamini_hochberg([np.nan if claim.sanity else e.p for claim, _, _, e, _ in found])
    return [
        Finding(c, d, p, e, float(x), _verdict(c, e, float(x), v))
        for (c, d, p, e, v), x in zip(found, q, strict=True)
    ]


def _verdict(claim: Claim, e: Estimate, q: float, value: Any) -> str:
    """The verdict in the protocol's words: from the interval, and from q for the number of comparisons."""
    if np.isnan(e.mean):
        return "undefined"  # an arm diverged
    if claim.sanity:
        return "sanity check passed" if e.low > 0 else "sanity check not passed"
    if not np.any(np.subtract(*value) if isinstance(value, Apart) else value):
        return "no difference"  # such as a drop where no arm lost anything
    if e.low > 0:
        return "holds" if q < LEVEL else "holds before correction"
    if e.high < 0:
        return "contrary" if q < LEVEL else "contrary before correction"
    return "direction only" if e.mean > 0 else "not reproduced"


def figures(f: Finding) -> str:
    """The numbers behind a verdict: mean, interval, p and q. Fewer than FEWEST seeds have no interval."""
    e = f.estimate
    largest = abs(e.mean) if np.isnan(e.low) else max(abs(e.low), abs(e.high))
    digits = 2 if largest < 10 else 0
    if np.isnan(e.mean):
        return "–"
    if e.seeds < FEWEST:
        return f"{e.mean:+.{digits}f}, {e.seeds} seeds, no interval"
    corrected = "" if f.claim.sanity else f", q {_small(f.q)}"
    return f"{e.mean:+.{digits}f} [{e.low:+.{digits}f}, {e.high:+.{digits}f}], p {_small(e.p)}{corrected}"


def _small(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
