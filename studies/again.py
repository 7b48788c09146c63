"""Published numbers, computed again: traces against curves, curves against tables, tables against claims."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from mbo2o.verify.traces import Trace
from studies.arms import read_rows, recomputed, rounded
from studies.ledger import disagreements
from studies.measured import RESULTS, STUDIES, files_of


def _tables() -> list[Path]:
    return [path for kind in (*STUDIES, "offline") for path in files_of(kind)]


def counted() -> str:
    """How much there is, in words."""
    return f"{len(_tables())} tables and their claims"


def tables() -> list[str]:
    """A line for each number of a table that does not follow from the stored curves."""
    return [line for path in _tables() for line in _differ(path)]


def _differ(path: Path) -> Iterator[str]:
    stored = [row for rows in read_rows(path).values() for row in rows]
    for then, now in zip(stored, recomputed(path), strict=True):
        for column, x in now.items():
            if str(rounded(x)) != then[column]:
                where = f"{path.name}: {then['arm']} seed {then['seed']}"
                yield f"{where}: {column} is {then[column]}, and {rounded(x)} by its curve"


def claims() -> list[str]:
    """A line for each row in which the ledger of claims does not follow from the tables."""
    return disagreements()


def published(trace: Trace) -> list[str]:
    """A line for each seed whose published return is not that of its trace, where a table has the run.

    A study's run is called TABLE/ARM.
    """
    table, _, arm = trace.about["run"].partition("/")
    if trace.about["agent"] != "agent" or not (RESULTS / f"{table}-curves.csv").is_file():
        return []
    curves, phase = _curves(RESULTS / f"{table}-curves.csv"), trace.about["phase"]
    if phase != ("offline" if table.startswith("offline-") else "online"):
        return []
    lines = []
    for k, mean in enumerate(np.round(trace.means().astype(float), 2)):
        found = curves.get((arm, str(k), str(trace.about["step"])))
        if found is not None and float(found) != mean:
            lines.append(f"{trace.name}: seed {k} returns {mean}, and {found} in {table}-curves.csv")
    return lines


@cache
def _curves(path: Path) -> dict[tuple[str, str, str], str]:
    with open(path, newline="") as f:
        return {(r["arm"], r["seed"], r["step"]): r["return"] for r in csv.DictReader(f)}
