"""From runs to files: the table of a study, what it leaves out and why, and how it was made.

Beside `NAME.csv` stand `NAME-curves.csv`, `NAME-drops.csv` (what failed, diverged or was left out) and
`NAME-made.json` (the command, and for each run its key, commit and hours). The arms of an earlier table stay
in it if their runs have the same content as this call would give them.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mbo2o.store.whole import write_whole
from mbo2o.training import Config
from studies.arms import DIVERGED, Job, read_rows, recompute, write
from studies.found import about, is_done, key_of

MADE = "-made.json"


class Call(NamedTuple):
    """One call of a study: its module, its arms, the jobs of those that were asked for, and where all is."""

    study: Any
    known: dict[str, Config]
    chosen: Sequence[str]
    out: Path
    path: Path
    """The table, `RESULTS/NAME.csv`."""
    command: Sequence[str]
    apart: bool = False
    """Whether each seed is a job of its own."""


def publish_call(call: Call, failed: Mapping[str, str]) -> bool:
    """Write all files of a call; False if no arm has ended, so that there is no table.

    failed: why jobs did not end well, by name.
    """
    before = _kept(call)
    ended = [arm for arm in call.known if is_done(call.out / arm)]
    if ended:
        call.study.collect(call.known, call.out, call.path.parent, call.path.stem)
        if _append(call.path, before, _order(call)):
            call.study.figure(call.path)
    call.path.parent.mkdir(parents=True, exist_ok=True)
    if ended or before:
        _write_made(call)
    _write_drops(call, failed)
    return bool(ended)


def keys_of(call: Call) -> dict[str, str]:
    """The key of every arm's content."""
    out = {}
    for arm in call.known:
        jobs = {job.name: job for job in call.study.jobs(call.known, arm)}
        out[arm] = key_of(jobs[arm], jobs, call.apart)
    return out


def _order(call: Call) -> list[str]:
    derived: dict[str, str] = getattr(call.study, "DERIVED", {})
    return [*call.known, *derived]


class Kept(NamedTuple):
    """Rows of an earlier table that stay: those of the table, and those of its curves, by arm."""

    rows: dict[str, list[dict[str, str]]]
    curves: dict[str, list[dict[str, str]]]


def _kept(call: Call) -> Kept:
    """The arms of the table that is there whose runs have the content that this call would give them."""
    if not call.path.is_file() or not (made := _made(call.path)):
        return Kept({}, {})
    keys, derived = keys_of(call), getattr(call.study, "DERIVED", {})
    rows = read_rows(call.path)
    same = {arm for arm in rows if (found := made["runs"].get(arm)) and found["key"] == keys.get(arm)}
    same |= {arm for arm in rows if derived.get(arm) in same}
    curves = read_rows(call.path.with_name(f"{call.path.stem}-curves.csv"))
    return Kept({arm: rows[arm] for arm in rows if arm in same}, {arm: curves[arm] for arm in same})


def _append(path: Path, before: Kept, order: list[str]) -> bool:
    """Add to a table what stays of an earlier one; whether there is anything to add."""
    rows, curves = read_rows(path), read_rows(path.with_name(f"{path.stem}-curves.csv"))
    columns = set(next(iter(rows.values()))[0])
    missing = [arm for arm in before.rows if arm not in rows]
    for arm in [x for x in missing if set(before.rows[x][0]) != columns]:
        print(f"{arm}: its earlier rows have other columns and are left out", file=sys.stderr)
        missing.remove(arm)
    if not missing:
        return False
    rows |= {arm: before.rows[arm] for arm in missing}
    curves |= {arm: before.curves[arm] for arm in missing}
    names = sorted(rows, key=lambda x: order.index(x) if x in order else len(order))
    write(path, [row for x in names for row in rows[x]])
    write(path.with_name(f"{path.stem}-curves.csv"), [row for x in names for row in curves[x]])
    recompute(path)
    return True


def _made(path: Path) -> dict[str, Any]:
    beside = path.with_name(f"{path.stem}{MADE}")
    return dict(json.loads(beside.read_text())) if beside.is_file() else {}


def _write_made(call: Call) -> None:
    """Say how the table was made: the arms that it has, and the offline phases that they started from."""
    runs = {x: found for x in read_rows(call.path) if (found := _made(call.path).get("runs", {}).get(x))}
    phases = [job.name for arm in call.known for job in call.study.jobs(call.known, arm)]
    for name in dict.fromkeys(phases):
        if found := about(call.out / name):
            runs[name] = {x: found[x] for x in ("key", "commit", "hours")}
        elif name in _made(call.path).get("runs", {}):
            runs.setdefault(name, _made(call.path)["runs"][name])
    text = json.dumps({"command": " ".join(call.command), "runs": runs}, indent=1)
    write_whole(call.path.with_name(f"{call.path.stem}{MADE}"), text + "\n")


def _write_drops(call: Call, failed: Mapping[str, str]) -> None:
    """List what failed, diverged or was left out, with its reason."""
    measured = set(read_rows(call.path)) if call.path.is_file() else set()
    jobs = [job for arm in call.known for job in call.study.jobs(call.known, arm)]
    dropped = []
    for name in dict.fromkeys(job.name for job in jobs):
        if reason := _dropped(call, name, failed, measured):
            dropped.append({"run": name, "reason": reason})
    write_drops(call.path.with_name(f"{call.path.stem}-drops.csv"), dropped)


def write_drops(path: Path, dropped: Sequence[Mapping[str, str]]) -> None:
    """Write a list of what a table leaves out: `run` and `reason`."""
    with open(path, "w", newline="") as f:
        writer = csv.DictWriter(f, ("run", "reason"), lineterminator="\n")
        writer.writeheader()
        writer.writerows(dropped)


def _dropped(call: Call, name: str, failed: Mapping[str, str], measured: set[str]) -> str:
    """Why a run is not in the table, or only in part; "" if it is."""
    if (call.out / name / DIVERGED).is_file():
        return f"diverged: {(call.out / name / DIVERGED).read_text().strip()}"
    if name in failed:
        return failed[name]
    if name in measured or name not in call.known or is_done(call.out / name):
        return ""
    return "has not finished" if name in call.chosen else "was not asked for"


def jobs_of(study: Any, known: dict[str, Config], chosen: Sequence[str]) -> dict[str, Job]:
    """The jobs of some arms in an order in which each stands after the one that it starts from."""
    return {job.name: job for arm in chosen for job in study.jobs(known, arm)}
