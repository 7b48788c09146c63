"""Runs of studies by their content: what is the same run is not run twice, wherever it was run.

A job that ends leaves `study.json` in its directory: the key of its content, the command, the commit and the
hours. The key covers all settings that decide the run's numbers, the content of the dataset, and the run
that it started from; paths and names do not count.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from mbo2o import naming
from mbo2o.errors import UserError
from mbo2o.report.read import read_run
from mbo2o.store import datasets
from mbo2o.store.whole import write_whole
from studies.arms import DIVERGED, Job

DONE = "study.json"
ROOT = Path(__file__).parent.parent


def key_of(job: Job, jobs: dict[str, Job], apart: bool = False) -> str:
    """The key of a job's content; `jobs` has the one that it starts from.

    apart: each seed ran in a process of its own. It draws other batches there than side by side.
    """
    cfg = job.config
    content, env_id = _data(cfg.dataset) if cfg.dataset else ("", "")
    bare = replace(cfg, dataset=None, dir=None, start_from=None, provenance=None)
    start = key_of(jobs[job.start], jobs, apart) if job.start else ""
    text = "|".join([naming.name(bare, str(cfg.env or env_id)), content, start, *["apart"] * apart])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _data(name: str) -> tuple[str, str]:
    found = datasets.find(name)
    return found.sha256(), str(found.attrs().get("env_id") or "")


def is_done(directory: Path) -> bool:
    """Whether a job has run to its end there, or has diverged."""
    return (directory / DONE).is_file() or (directory / DIVERGED).exists()


def mark_done(directory: Path, key: str, command: Sequence[str]) -> None:
    """Say that the job in `directory` has run to its end, and how."""
    if is_done(directory) or not (directory / "metrics.jsonl").exists():
        return
    about = {"key": key, "command": " ".join(command), "commit": commit(), "hours": hours(directory)}
    write_whole(directory / DONE, json.dumps(about, indent=1) + "\n")


def hours(directory: Path) -> float:
    """The hours that a run has taken so far, over all its parts."""
    times = [x["time"] for x in read_run(directory).lines if x.get("time") is not None]
    return round(max(times, default=0.0) / 3600, 4)


@cache
def commit() -> str:
    """The short name of the checkout's commit, with + if files differ from it; "" outside of git."""
    git = ["git", "-C", str(ROOT)]
    try:
        name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True)
    except OSError:
        return ""
    return name.stdout.strip() + ("+" if changed.stdout.strip() else "") if name.returncode == 0 else ""


def about(directory: Path) -> dict[str, Any]:
    """What `mark_done` wrote; empty if it wrote nothing."""
    path = directory / DONE
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def check_content(jobs: dict[str, Job], out: Path, apart: bool = False) -> None:
    """Raise `UserError` for a job whose directory holds a run of other content that has ended."""
    for job in jobs.values():
        key = about(out / job.name).get("key")
        if key and key != key_of(job, jobs, apart):
            text = "holds a run of other settings or other data; give another --out or --name, or remove it"
            raise UserError(f"{out / job.name}: {text}")


def take_over(jobs: dict[str, Job], out: Path, folders: Iterable[Path]) -> list[str]:
    """Link what was run elsewhere into `out`, and return a line for each; what has begun in `out` stays.

    folders: where to look for studies: folders whose folders hold runs.
    """
    elsewhere = {
        about(path.parent)["key"]: path.parent
        for folder in folders
        for path in sorted([*folder.glob(f"*/*/{DONE}"), *folder.glob(f"*/*/seed-*/{DONE}")])
        if not path.parent.is_symlink() and out.resolve() not in path.resolve().parents
    }
    lines = []
    for job in jobs.values():
        here = out / job.name
        there = elsewhere.get(key_of(job, jobs)) if elsewhere and not os.path.lexists(here) else None
        if there:
            here.parent.mkdir(parents=True, exist_ok=True)
            here.symlink_to(os.path.relpath(there.resolve(), here.parent.resolve()))
            lines.append(f"{job.name}: the same run is at {there}")
    return lines
