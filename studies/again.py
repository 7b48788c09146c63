"""Published numbers, computed again: traces against curves, curves against tables, tables against claims.

`python -m studies.again` lists what tables of earlier versions leave out, in `NAME-drops.csv`, where a study
did not write such a list itself.
"""

from __future__ import annotations

import csv
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from mbo2o.cli.main import parser
from mbo2o.cli.study import arms_of
from mbo2o.verify.traces import Trace
from studies import measured
from studies.arms import read_rows, recomputed, rounded
from studies.ledger import disagreements
from studies.methods import MEASURED_BY
from studies.results import write_drops


def _tables() -> list[Path]:
    """The tables that have curves."""
    found = sorted(measured.RESULTS.glob("*-curves.csv"))
    return [path.with_name(f"{path.stem.removesuffix('-curves')}.csv") for path in found]


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


def drops() -> list[str]:
    """A line for each table that has no list of what it leaves out, or whose list names what it has."""
    lines = []
    for path in _tables():
        beside = path.with_name(f"{path.stem}-drops.csv")
        if not beside.is_file():
            lines.append(f"{path.name}: there is no {beside.name}, which lists what it leaves out")
            continue
        rows = read_rows(path)
        for run, reason in _dropped(beside):
            if run in rows and rows[run][0]["final"] != "nan":
                lines.append(f"{beside.name}: {run} is in the table, and is listed as left out: {reason}")
    return lines


def _dropped(path: Path) -> list[tuple[str, str]]:
    with open(path, newline="") as f:
        return [(r["run"], r["reason"]) for r in csv.DictReader(f)]


def drops_table() -> str:
    """What tables leave out, and why; for a page."""
    lines = ["| table | left out | why |", "|---|---|---|"]
    whole = []
    for path in _tables():
        beside = path.with_name(f"{path.stem}-drops.csv")
        found = _dropped(beside) if beside.is_file() else []
        for reason in dict.fromkeys(reason for _, reason in found):
            names = ", ".join(f"`{run}`" for run, why in found if why == reason)
            lines.append(f"| `{path.stem}` | {names} | {reason} |")
        if not found:
            whole.append(f"`{path.stem}`")
    return "\n".join([*lines, "", f"Nothing is left out of {', '.join(whole)}."])


def list_drops() -> None:
    """Write the lists that are missing: arms that the study has today, and the table has not."""
    for path in _tables():
        beside = path.with_name(f"{path.stem}-drops.csv")
        if beside.is_file() or path.stem not in MEASURED_BY:
            continue
        known = arms_of(parser().parse_args(["study", *shlex.split(MEASURED_BY[path.stem])]))
        there = read_rows(path)
        out = [{"run": x, "reason": "diverged"} for x, rows in there.items() if rows[0]["final"] == "nan"]
        write_drops(beside, [*out, *({"run": x, "reason": "was not run"} for x in known if x not in there)])


def published(trace: Trace) -> list[str]:
    """A line for each seed whose published return is not that of its trace, where a table has the run.

    A study's run is called TABLE/ARM, or TABLE/ARM/seed-K if its seeds ran apart.
    """
    table, arm, apart = [*trace.about["run"].split("/"), "", ""][:3]
    first = int(apart.removeprefix("seed-") or 0)
    if trace.about["agent"] != "agent" or not (measured.RESULTS / f"{table}-curves.csv").is_file():
        return []
    curves, phase = _curves(measured.RESULTS / f"{table}-curves.csv"), trace.about["phase"]
    if phase != ("offline" if table.startswith("offline-") else "online"):
        return []
    lines = []
    for k, mean in enumerate(np.round(trace.means().astype(float), 2), first):
        found = curves.get((arm, str(k), str(trace.about["step"])))
        if found is not None and float(found) != mean:
            lines.append(f"{trace.name}: seed {k} returns {mean}, and {found} in {table}-curves.csv")
    return lines


@cache
def _curves(path: Path) -> dict[tuple[str, str, str], str]:
    with open(path, newline="") as f:
        return {(r["arm"], r["seed"], r["step"]): r["return"] for r in csv.DictReader(f)}


if __name__ == "__main__":
    list_drops()
