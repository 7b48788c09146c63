"""The dataset doctor: compares what a file says of its episodes with what its rows show.

Each check yields findings. A finding names the families of methods that it harms and how much; the worst
finding gives a family its verdict. Next observations, duplicates and the termination rule are decided
exactly. The rest is read off statistics (`evidence`, `timing`), which would rather miss a fault than report
one that is not there. Facts come first: where a file stores flags and its next observations equal the rows
below, no leap is taken for a cut. A faulty file that is consistent with itself, such as one with next
observations copied from shifted rows, cannot be told from a sound one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mbo2o.data import precision
from mbo2o.data.actions import Actions
from mbo2o.doctor import timing
from mbo2o.doctor.evidence import Record, Task
from mbo2o.doctor.findings import (
    ALL_CARE,
    ALL_NO,
    CARE_BUT_CLONING,
    Certificate,
    Finding,
    Harms,
    Report,
    few,
    in_all,
    in_rows,
    listed,
    percent,
    percentage,
)
from mbo2o.doctor.regression import standard
from mbo2o.store import hdf5
from mbo2o.types import TerminationFn

SEVERITIES = ("fault", "warning", "note")
DUPLICATES = 0.01
"""The share of duplicates from which the holdout error of a random split is too low to stop training by."""
HOLDOUT = 0.1
"""The share of rows that such a split holds out (the default of `dynamics.fit`)."""
RARE = 0.01
"""The share of steps up to which a switch changes rarely."""
BINS = 20
"""The number of cells of the coverage grid along each axis."""


def audit(
    fields: Mapping[str, np.ndarray],
    attrs: hdf5.Attrs | None = None,
    *,
    dataset: str = "arrays",
    task: Task | None = None,
    termination: TerminationFn | None = None,
    rule: str = "given",
    units_known: bool = False,
    lost: Sequence[str] = (),
) -> Report:
    """Examine the rows of a dataset as they are stored.

    Args:
        fields: The columns that `hdf5.check` accepts, with rows in time order.
        attrs: The file's attributes; `env_id` and `max_episode_steps` are used.
        dataset: The dataset's name in the report.
        task: The environment that the data are meant for.
        termination: The rule to compare with the file's terminals.
        rule: The rule's name in the report.
        units_known: The units of the actions were stated, so their range raises no doubt about them.
        lost: The messages of `precision` about observations that lost digits when they were read.

    Raises:
        UserError: Columns that `hdf5.check` or `TransitionDataset.from_arrays` refuse, or a rule that fails
            on these rows.
    """
    with precision.heard() as heard:
        checked = hdf5.check(fields, dataset)
    record = Record(checked, dict(attrs or {}), task, termination, rule)
    findings = [f for check in CHECKS for f in check(record)]
    findings += [] if units_known else _units(record)
    findings += _precision(record, [*lost, *heard])
    if any(f.name == "few_episodes" for f in findings):
        findings = [f.lowered() for f in findings]
    certificate = _certificate(record)
    return Report(
        dataset=dataset,
        env_id=record.file.env_id,
        rows=len(record.file.obs),
        episodes=len(record.file.lengths),
        findings=sorted(findings, key=lambda f: SEVERITIES.index(f.severity)),
        certificate=certificate,
        coverage=_coverage(record),
        not_checked=_not_checked(record, certificate),
    )


# ---- termination


def _certificate(record: Record) -> Certificate | None:
    if record.termination is None:
        return None
    terminals = record.file.terminals
    alive, ended = record.tested & ~terminals, record.tested & terminals
    return Certificate(
        rule=record.rule,
        alive_rows=int(alive.sum()),
        false_dead=int((alive & record.dead).sum()),
        terminal_rows=int(ended.sum()),
        false_alive=int((ended & ~record.dead).sum()),
        terminals_untested=int((terminals & ~record.tested).sum()),
    )


def _termination(record: Record) -> Iterator[Finding]:
    if record.termination is None:
        return
    terminals = record.file.terminals
    alive, ended = record.tested & ~terminals, record.tested & terminals
    rows, of = alive & record.dead, int(alive.sum())
    if rows.any():
        message = f"rows without a terminal are ended by the rule {record.rule}"
        yield in_rows("false_dead", rows, of, message, {"td": "care", "dynamics": few(int(rows.sum()), of)})
    rows, of = ended & ~record.dead & ~record.at_limit, int(ended.sum())  # time limits have their own finding
    if rows.any():
        harms: Harms = {"td": "care", "dynamics": "no" if rows.sum() > 0.01 * of else "care"}
        yield in_rows("false_alive", rows, of, f"terminals are not ended by the rule {record.rule}", harms)


# ---- repetitions


def _duplicates(record: Record) -> Iterator[Finding]:
    file = record.file
    columns = [file.obs, file.act, file.rew[:, None]]
    columns += [] if file.next_obs is None else [file.next_obs]
    packed = np.ascontiguousarray(np.concatenate(columns, 1))
    keys = packed.view(np.dtype((np.void, packed.dtype.itemsize * packed.shape[1]))).ravel()
    _, first, group, sizes = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    again, of, copies = np.ones(len(keys), np.bool_), len(keys), sizes[group]
    again[first] = False
    if again.any():
        yield in_rows("duplicate_rows", again, of, "rows repeat an earlier row in every field")
        # a row that is held out has a copy among the others unless all its copies are held out too
        leaked = float((1 - HOLDOUT ** (copies[copies > 1] - 1.0)).sum()) / of
        message = (
            f"a random split trains on copies of about {percentage(leaked)} of the rows that it holds out"
        )
        harms: Harms = {"dynamics": "care"} if leaked > DUPLICATES else {}
        yield in_rows("split_leak", copies > 1, of, message, harms, share=False)


def _duplicate_episodes(record: Record) -> Iterator[Finding]:
    file, seen, again = record.file, set(), []
    starts, of = np.cumsum(file.lengths) - file.lengths, len(file.lengths)
    for start, length in zip(starts.tolist(), file.lengths.tolist(), strict=True):
        rows = slice(start, start + length)
        content = file.obs[rows].tobytes() + file.act[rows].tobytes()
        key = hashlib.blake2b(content, digest_size=16).digest()
        if key in seen and length > 1:
            again.append(start)
        seen.add(key)
    if again:
        harms: Harms = {"cloning": "care", "dynamics": "care"} if len(again) > DUPLICATES * of else {}
        message = "episodes repeat an earlier episode step by step"
        yield in_rows("duplicate_episodes", np.array(again), of, message, harms)


# ---- actions and rewards


def _actions(record: Record) -> Iterator[Finding]:
    act, dims = record.file.act, record.file.act.shape[1]
    constant = np.flatnonzero(np.ptp(act, axis=0) == 0)
    if n := len(constant):
        message = f"{percent(n, dims)} of action dimensions never change: {listed(constant)}"
        harms: Harms = {"td": "care", "dynamics": "care"}
        yield in_all("constant_actions", message, harms, count=n, of=dims)
    share = (np.abs(act) > 0.999).mean(0)
    pressed = np.setdiff1d(np.flatnonzero(share > 0.25), constant)
    if n := len(pressed):
        harms = {"cloning": "care"} if share[pressed].max() > 0.9 else {}
        shown = listed([f"{100 * share[d]:.0f} % of dimension {d}" for d in pressed])
        yield in_all("saturated_actions", f"actions are at ±1: {shown}", harms, count=n, of=dims)


def _units(record: Record) -> Iterator[Finding]:
    """Actions that never leave the environment's box, where that is smaller than [-1, 1]."""
    task, act = record.file.task, record.file.act
    if task is None or task.low is None or task.high is None:
        return
    how = Actions(None, (np.array(task.low), np.array(task.high)), "--actions ")
    if doubt := how.doubt(act, list(hdf5.blocks(*act.shape))):
        yield in_all("actions_in_env_units", doubt, ALL_NO, count=len(act))


def _precision(record: Record, lost: Sequence[str]) -> Iterator[Finding]:
    harms: Harms = {"td": "care", "dynamics": "no"}
    for text in dict.fromkeys(lost):
        yield in_all("observations_lose_precision", text, harms, count=record.file.obs.shape[1])


def _rewards(record: Record) -> Iterator[Finding]:
    rew, of = record.file.rew.astype(np.float64), len(record.file.rew)
    if np.ptp(rew) == 0:
        # a constant reward prefers long episodes, a constant cost short ones, if the policy can end an
        # episode
        by_length = rew[0] > 0 or (rew[0] < 0 and record.file.terminals.any())
        harms: Harms = {"td": "care", "returns": "care"} if by_length else {"td": "no", "returns": "no"}
        what = (
            "only an episode's length tells good from bad" if by_length else "all behaviours are equally good"
        )
        yield in_all("constant_rewards", f"all rewards are {rew[0]:g}: {what}", harms, count=of)
        return
    low, middle, high = np.quantile(rew, [0.01, 0.5, 0.99])
    far = np.abs(rew - middle) > 10 * (high - low)
    if high > low and far.any():
        message = (
            f"rewards, which span [{rew.min():.4g}, {rew.max():.4g}], are far outside "
            f"[{low:.4g}, {high:.4g}], which holds 98 % of them"
        )
        yield in_rows("reward_outliers", far, of, message, CARE_BUT_CLONING)


# ---- coverage, environment


def _effective_episodes(record: Record) -> float:
    """The number of episodes of equal length that vary as much: (Σ length)² / Σ length²."""
    lengths = record.file.lengths.astype(np.float64)
    return float(lengths.sum() ** 2 / (lengths**2).sum())


def _coverage(record: Record) -> dict[str, Any]:
    """The spread of the data in each dimension, and how many episodes and places they cover."""
    file = record.file
    cells, visited = _cells(file.obs)
    visits = np.unique(np.stack([cells, file.episode]), axis=1)[0]
    return {
        "observation_std": file.obs.astype(np.float64).std(0).tolist(),
        "action_std": file.act.astype(np.float64).std(0).tolist(),
        "reward_min": float(file.rew.min()),
        "reward_max": float(file.rew.max()),
        "length_median": float(np.median(file.lengths)),
        "effective_episodes": _effective_episodes(record),
        "cells_visited": visited,
        "cells_in_one_episode": float((np.bincount(visits, minlength=visited) == 1).mean()),
    }


def _cells(obs: np.ndarray) -> tuple[np.ndarray, int]:
    """Each row's cell in a grid over the first two principal components, and the number of visited cells."""
    x = standard(obs)
    _, axes = np.linalg.eigh(x.T @ x)
    plane = x @ axes[:, ::-1][:, :2]
    low, high = np.quantile(plane, [0.005, 0.995], axis=0)
    grid = ((plane - low) / np.maximum(high - low, 1e-9) * BINS).clip(0, BINS - 1).astype(int)
    places, cells = np.unique(grid[:, 0] * BINS + grid[:, -1], return_inverse=True)
    return cells, len(places)


def _narrow(record: Record) -> Iterator[Finding]:
    obs, dims = record.file.obs, record.file.obs.shape[1]
    constant = np.flatnonzero(np.ptp(obs, axis=0) == 0)
    if n := len(constant):
        message = f"{percent(n, dims)} of observation dimensions never change: {listed(constant)}"
        yield in_all("constant_observations", message, count=n, of=dims)
    yield from _leaps(record)
    effective = _effective_episodes(record)
    if effective < 5:
        message = f"the rows amount to {effective:.1f} episodes of equal length"
        yield in_all("few_episodes", message, CARE_BUT_CLONING, count=len(record.file.lengths))


def _leaps(record: Record) -> Iterator[Finding]:
    """Dimensions whose leaps a reader, or a model, may take for resets."""
    file, (angle, switch) = record.file, record.motion.leaping
    inside = np.flatnonzero(~file.end[:-1] & ~record.motion.jumps)
    for d in np.flatnonzero(angle | switch):
        column = file.obs[:, d]
        step = np.abs(np.diff(column)[inside])
        rows = inside[step > (0.5 * np.ptp(column) if angle[d] else 0)]
        share, of = percent(len(rows), max(1, len(inside))), len(inside)
        if angle[d] and len(rows) > 1:
            message = f"dimension {d} leaps by its whole range in {share} of steps: it may be an angle"
            yield in_rows("angle_leaps", rows, of, message, share=False)
        elif switch[d] and 0 < len(rows) <= RARE * of:
            message = f"dimension {d} rarely changes: in {share} of steps"
            yield in_rows("rare_switch", rows, of, message, share=False)


def _environment(record: Record) -> Iterator[Finding]:
    file, task = record.file, record.file.task
    own, sizes = (
        file.attrs.get("collected_in", file.attrs.get("env_id")),
        (file.obs.shape[1], file.act.shape[1]),
    )
    if task is None:
        yield in_all("environment_unknown", "neither the file nor --env names the environment")
        return
    if task.problem:
        other = task.newest is not None and _bare(task.newest) != _bare(task.env_id)
        newest = f"; the newest version is {task.newest}" if other else ""
        message = f"{task.env_id} cannot be made here ({task.problem}){newest}"
        yield in_all("environment_missing", message)
    if task.obs_dim is not None and sizes != (task.obs_dim, task.act_dim):
        message = (
            f"observations and actions have {sizes[0]} and {sizes[1]} dimensions, "
            f"{task.env_id} has {task.obs_dim} and {task.act_dim}"
        )
        yield in_all("environment_sizes", message, ALL_CARE)
    if own is not None and _bare(own) != _bare(task.env_id):
        yield in_all("environment_version", f"the data are of {own}, not of {task.env_id}", CARE_BUT_CLONING)
    elif task.newest is not None and _bare(task.newest) != _bare(task.env_id):
        yield in_all(
            "environment_version", f"the data are of {task.env_id}; the newest version is {task.newest}"
        )


def _bare(env_id: object) -> str:
    """An id without the module that registers it: `mytask:Mass-v0` is `Mass-v0`."""
    return str(env_id).split(":")[-1]


CHECKS: list[Callable[[Record], Iterator[Finding]]] = [
    timing.order,
    timing.cuts,
    timing.boundaries,
    timing.time_limit,
    timing.limit_as_terminal,
    timing.next_observations,
    timing.unknown,
    timing.shifts,
    _termination,
    _duplicate_episodes,
    _duplicates,
    _rewards,
    _actions,
    _narrow,
    _environment,
]


def _not_checked(record: Record, certificate: Certificate | None) -> list[str]:
    out = []
    if record.file.limit is None:
        out.append("the time limit: neither the file nor an environment has one")
    if certificate is None:
        out.append(
            "terminals against a rule: no rule is known for this environment; choose one with --termination"
        )
    elif certificate.terminals_untested:
        out.append(f"{certificate.terminals_untested} terminals: the next observation is unknown or wrong")
    if record.file.disordered:
        out.append("cuts, time limits, shifts of actions and rewards: the rows are not in order")
    elif not timing.enough_for_shifts(record):
        out.append("shifts of actions and rewards: too few rows are inside episodes")
    return out
