"""Runs put together for a comparison: by task, and within a task by settings, whose seeds are then pooled."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbo2o.report.read import RunLog
from mbo2o.report.runs import Listed, method_of
from mbo2o.report.statistics import Array, common_window, summarise
from mbo2o.report.switch import pace, switch_numbers

OPEN = {
    *("dir", "resume", "report", "log", "provenance", "plugins", "start_from", "behaviour_return"),
    *("seed", "seeds", "threads", "engine", "storage", "env", "run.env_faults", "run.env_seconds"),
    *("run.eval_workers", "run.traces"),
    *("run.tensorboard", "run.reference", "run.allow_mismatch"),
}
"""Settings in which runs of one arm may differ: where and how they ran, their seeds, how they are scored."""
TASK = ("env", "env_kwargs", "run.disturb", "run.max_episode_steps")
"""Settings that decide what a return means: only runs that agree on them share a picture or a table."""
PLACES = ("kind", "phase", "step", "total")


@dataclass(frozen=True)
class Arm:
    """Runs of one task with the same settings and different seeds."""

    name: str
    runs: tuple[Listed, ...]
    log: RunLog
    """Their lines with the seeds of all; only the lines that every one of them has."""
    settings: dict[str, Any]
    """What decides the arm, by dotted name."""

    @property
    def seeds(self) -> list[int]:
        """The seeds of its runs, in the order of the columns of `log`."""
        return [seed for run in self.runs for seed in run.seeds]

    @property
    def reached(self) -> int:
        """Environment steps until the last evaluation that all its runs have; random steps count."""
        step = self.log.series("eval", "return", "online").step
        return int(step[-1]) + self.log.random_steps if len(step) else 0


def by_task(runs: Sequence[Listed]) -> dict[str, list[Arm]]:
    """The arms of each task, by a title for the task; in the order of the runs."""
    tasks: dict[str, list[Listed]] = {}
    for run in runs:
        values = flat(run.log.config)
        key = {x: {k: v for k, v in values.items() if f"{k}.".startswith(f"{x}.")} for x in TASK}
        tasks.setdefault(json.dumps(key, sort_keys=True, default=str), []).append(run)
    named: dict[str, list[Arm]] = {}
    for found in tasks.values():
        env = str(found[0].log.config.get("env") or "no environment")
        title = env if env not in named else f"{env} (other settings of the task: {found[0].path.name})"
        named[title] = _arms(found)
    return named


def _arms(runs: Sequence[Listed]) -> list[Arm]:
    """Runs pooled by their settings; a seed that an arm has already begins another one."""
    groups: list[tuple[dict[str, Any], list[Listed]]] = []
    for run in runs:
        settings, mine = _settings(run.log), set(run.seeds)
        for theirs, members in groups:
            if theirs == settings and not mine & {seed for x in members for seed in x.seeds}:
                members.append(run)
                break
        else:
            groups.append((settings, [run]))
    names = _names([(settings, members[0], folder_of(members)) for settings, members in groups])
    return [
        Arm(name, tuple(members), pooled([x.log for x in members]), settings)
        for name, (settings, members) in zip(names, groups, strict=True)
    ]


def folder_of(runs: Sequence[Listed]) -> str:
    """What the folders of an arm's runs have in common in their names, without the seed."""
    names = [run.path.name for run in runs]
    common = os.path.commonprefix(names) if len(names) > 1 else names[0]
    common = re.sub(r"[-_. ]*(seed|s)?[-_. ]*$", "", common) if len(names) > 1 else common
    return common if len(common) > 2 else names[0]


def _settings(log: RunLog) -> dict[str, Any]:
    """What decides a run, by dotted name; a dataset is its content, if that is known."""
    values = {k: v for k, v in flat(log.config).items() if k not in OPEN and v is not None}
    if "dataset_sha256" in values:
        values.pop("dataset", None)
    return values


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def _names(groups: Sequence[tuple[dict[str, Any], Listed, str]]) -> list[str]:
    """A name for each arm: its method; with the settings that differ if others have it; else its folder."""
    methods = [method_of(run.log) for _, run, _ in groups]
    names = []
    for (settings, run, folder), method in zip(groups, methods, strict=True):
        same = [s for (s, _, _), other in zip(groups, methods, strict=True) if other == method]
        keys = differing(same)
        if keys and len(keys) <= 2:
            told = (f"{_short(key)}={_value(key, settings, run.log)}" for key in keys)
            names.append(" ".join([method, *told]))
        else:
            names.append(method if len(same) == 1 else folder)
    if len(set(names)) < len(names):
        names = [run.path.name for _, run, _ in groups]
    if len(set(names)) < len(names):
        names = [str(run.path) for _, run, _ in groups]
    return names


def differing(settings: Iterable[dict[str, Any]]) -> list[str]:
    """The names of the settings in which these differ, sorted; a missing one counts as a value."""
    found = list(settings)
    keys = sorted({key for s in found for key in s})
    return [key for key in keys if any(s.get(key) != found[0].get(key) for s in found)]


def _short(key: str) -> str:
    return "data" if key == "dataset_sha256" else key.rpartition(".")[2]


def _value(key: str, settings: dict[str, Any], log: RunLog) -> str:
    if key == "dataset_sha256":
        return Path(str(log.config.get("dataset"))).stem
    value = settings.get(key)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def differences(arms: Sequence[Arm]) -> list[list[str]]:
    """A row for each setting in which the arms differ: its name, and each arm's value ("–": it has none)."""
    rows = []
    for key in differing(arm.settings for arm in arms):
        cells = [_value(key, a.settings, a.log) if key in a.settings else "–" for a in arms]
        rows.append(["dataset" if key == "dataset_sha256" else key, *cells])
    return rows


def pooled(logs: Sequence[RunLog]) -> RunLog:
    """One log with the seeds of several side by side: the evaluations and metrics that all of them have.

    Evaluations are the same if phase and step agree: runs are aligned by steps, not by time.
    """
    if len(logs) == 1:
        return logs[0]
    tables = [{(x["phase"], x["step"]): x for x in log.lines if x["kind"] == "eval"} for log in logs]
    lines = []
    for key, first in tables[0].items():
        same = [table.get(key) for table in tables]
        if any(x is None for x in same):
            continue
        line = {name: first[name] for name in PLACES}
        for name in first:
            columns = [x[name] for x in same if x is not None and isinstance(x.get(name), list)]
            if len(columns) == len(same):
                line[name] = [seed for column in columns for seed in column]
        lines.append(line)
    seeds = sum(int(log.config.get("seeds") or 1) for log in logs)
    return RunLog({**logs[0].config, "seeds": seeds}, lines)


def until(log: RunLog, steps: int) -> RunLog:
    """A log as it was when the run had made `steps` environment steps online, random ones included."""
    last = steps - log.random_steps
    kept = [x for x in log.lines if x["phase"] != "online" or x["step"] <= last]
    return RunLog(log.config, kept)


def shared_steps(arms: Sequence[Arm]) -> int:
    """The environment steps that every arm that acts has reached; 0 if none acts."""
    acting = [arm for arm in arms if len(arm.log.series("eval", "return", "online").step)]
    return min((arm.reached for arm in acting), default=0)


def measured(arms: Sequence[Arm]) -> dict[str, dict[str, Array]]:
    """The numbers of each arm over `shared_steps`, `(S,)` each, by arm and by the names of DEFINITIONS.

    All arms share one early window. An arm without an offline phase has `area`, `final` and `best`; one that
    has not gone online has `before` alone.
    """
    steps = shared_steps(arms)
    cut = {arm.name: until(arm.log, steps) for arm in arms}
    acting = {name: log for name, log in cut.items() if len(log.series("eval", "return", "online").step)}
    early = common_window({name: pace(log) for name, log in acting.items()})[1] if acting else {}
    found: dict[str, dict[str, Array]] = {}
    for name, log in cut.items():
        offline = log.series("eval", "return", "offline")
        if name not in acting:
            found[name] = {"before": offline.values[-1]} if len(offline.step) else {}
        elif (numbers := switch_numbers(log, early[name])) is not None:
            found[name] = {k: v for k, v in vars(numbers).items() if v is not None}
        else:
            online = log.series("eval", "return", "online")
            s = summarise(online.step, online.values, early[name])
            found[name] = {"area": s.auc, "final": s.final, "best": s.best}
    return found
