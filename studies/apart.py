"""A study's seeds as jobs of their own, and the run of all of them that they amount to.

Seeds that share a process share its batches of networks, which pays on a GPU. On a CPU it pays to run them
apart: cores fill better, and less is lost when a process stops. Seeds cannot touch each other, so the log
of all of them is what their logs say side by side.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mbo2o.report.read import read_run
from mbo2o.store.whole import write_whole
from studies.arms import DIVERGED, Job
from studies.found import DONE, about, commit, is_done, key_of

Line = dict[str, Any]
SAME = ("kind", "phase", "step", "total", "time")
"""What a line of a log says once, not for each seed."""


def split(jobs: Mapping[str, Job]) -> dict[str, Job]:
    """`NAME/seed-K` for each seed K of each job; it starts from seed K of what the job starts from."""
    found = {}
    for job in jobs.values():
        for k in range(job.config.seeds):
            name = part(job.name, k)
            config = replace(job.config, seed=job.config.seed + k, seeds=1)
            found[name] = Job(name, config, part(job.start, k) if job.start else None)
    return found


def part(name: str, seed: int) -> str:
    """The job of one seed."""
    return f"{name}/seed-{seed}"


def join(jobs: Mapping[str, Job], out: Path, command: Sequence[str]) -> None:
    """Write the run of all seeds into the directory of each job whose seeds have all ended.

    The directory gets a config and a log, which is what tables are made of, and no checkpoint.
    """
    for job in jobs.values():
        folders = [out / part(job.name, k) for k in range(job.config.seeds)]
        if is_done(out / job.name) or not all(map(is_done, folders)):
            continue
        _join(folders, out / job.name)
        facts = [about(x) for x in folders]
        made = {"key": key_of(job, dict(jobs), apart=True), "command": " ".join(command), "commit": commit()}
        hours = round(sum(x.get("hours", 0.0) for x in facts), 4)
        write_whole(out / job.name / DONE, json.dumps(made | {"hours": hours}, indent=1) + "\n")


def _join(folders: Sequence[Path], into: Path) -> None:
    logs = [read_run(x) for x in folders]
    lines = side_by_side([log.lines for log in logs])
    write_whole(into / "metrics.jsonl", "".join(json.dumps(x) + "\n" for x in lines))
    config = logs[0].config | {"seeds": len(logs), "dir": str(into)}
    write_whole(into / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    if ended := [x for x in folders if (x / DIVERGED).exists()]:
        text = "; ".join(f"{x.name}: {(x / DIVERGED).read_text().strip()}" for x in ended)
        write_whole(into / DIVERGED, text + "\n")


def side_by_side(logs: Sequence[Sequence[Line]]) -> list[Line]:
    """The lines of runs of one seed each, as a run of all seeds has them; null where a seed has no such line.

    Lines belong together if they have the same kind, phase and step. `time` is that of the slowest seed.
    """
    found: dict[tuple[Any, ...], list[Line | None]] = {}
    for k, lines in enumerate(logs):
        seen: Counter[tuple[Any, ...]] = Counter()
        for line in lines:
            place = (line["kind"], line["phase"], line["step"])
            seen[place] += 1  # two lines of one place stay two
            found.setdefault((*place, seen[place]), [None] * len(logs))[k] = line
    return sorted(map(_together, found.values()), key=lambda x: x["total"])


def _together(parts: Sequence[Line | None]) -> Line:
    known = [x for x in parts if x is not None]
    out = {x: known[0][x] for x in SAME if x in known[0]}
    if "time" in out:
        out["time"] = max(x["time"] for x in known)
    for name in dict.fromkeys(name for x in known for name in x if name not in out):
        lists = [x[name] for x in known if isinstance(x.get(name), list)]
        if not lists:
            out[name] = next(x[name] for x in known if name in x)
            continue
        ((first,),) = lists[:1]
        blank = [None] * len(first) if isinstance(first, list) else None
        out[name] = [x[name][0] if x and isinstance(x.get(name), list) else blank for x in parts]
    return out
