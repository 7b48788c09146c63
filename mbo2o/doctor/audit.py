"""The dataset doctor: what a file says of its episodes against what its rows show, and whom that harms.

Each check yields `Finding`s; a finding says which families of methods it harms, and how badly; the worst of them is the
family's verdict. What can be decided exactly is (next observations against the row below, duplicates, the termination rule);
the rest is read off statistics (`record`, `alignment`) and errs on the side of silence. Facts beat statistics: where
flags are kept and next observations stand in the rows below, no leap is a cut. A file that was made consistent with
itself, such as one whose next observations were copied from shifted rows, cannot be told from a true one by its facts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mbo2o.data import precision
from mbo2o.data.actions import Actions
from mbo2o.data.fields import Attrs, blocks, check_fields
from mbo2o.doctor import timing
from mbo2o.doctor.evidence import Record, Task, standard
from mbo2o.doctor.findings import (
    ALL_CARE,
    ALL_NO,
    CARE_BUT_CLONING,
    Certificate,
    Finding,
    Harms,
    Report,
    few,
    finding,
    listed,
    percent,
    percentage,
)
from mbo2o.types import TerminationFn

SEVERITIES = ("fault", "warning", "note")
DUPLICATES = 0.01
"""Share of duplicates from which a row split's holdout error is too good to steer by."""
HOLDOUT = 0.1
"""The share that such a split holds out (`dynamics.fit`'s default)."""
RARE = 0.01
"""Share of steps up to which a switch changes rarely."""
BINS = 20
"""Of coverage's grid, each way."""


def audit(
    fields: Mapping[str, np.ndarray],
    attrs: Attrs | None = None,
    *,
    dataset: str = "arrays",
    task: Task | None = None,
    termination: TerminationFn | None = None,
    rule: str = "given",
    units_known: bool = False,
    lost: Sequence[str] = (),
) -> Report:
    """Look at the rows of a dataset as they were stored.

    Args:
        fields: As `check_fields` wants them, rows in time order.
        attrs: The file's attributes; `env_id` and `max_episode_steps` are used.
        dataset: What the report calls it.
        task: The environment that the data are for.
        termination: The rule to certify against the file's terminals.
        rule: What to call it.
        units_known: Somebody said in which units the actions are, so that their range is no reason to doubt it.
        lost: What `precision` said of the observations when they were read.

    Raises:
        UserError: What `check_fields` and `TransitionDataset.from_arrays` refuse, and a rule that fails on these rows.
    """
    with precision.heard() as here:
        checked = check_fields(fields, dataset)
    record = Record(checked, dict(attrs or {}), task, termination, rule)
    findings = [f for check in CHECKS for f in check(record)]
    findings += [] if units_known else _units(record)
    findings += _precision(record, [*lost, *here])
    if any(f.name == "few_episodes" for f in findings):
        findings = [f.lowered() for f in findings]
    certificate = _certificate(record)
    return Report(
        dataset=dataset,
        env_id=record.env_id,
        rows=len(record.obs),
        episodes=len(record.lengths),
        findings=sorted(findings, key=lambda f: SEVERITIES.index(f.severity)),
        certificate=certificate,
        coverage=_coverage(record),
        not_checked=_not_checked(record, certificate),
    )


# ---------------------------------------------------------------------------------------------------------- termination


def _certificate(record: Record) -> Certificate | None:
    if record.termination is None:
        return None
    alive, ended = record.tested & ~record.terminals, record.tested & record.terminals
    return Certificate(
        rule=record.rule,
        alive_rows=int(alive.sum()),
        false_dead=int((alive & record.dead).sum()),
        terminal_rows=int(ended.sum()),
        false_alive=int((ended & ~record.dead).sum()),
        terminals_untested=int((record.terminals & ~record.tested).sum()),
    )


def _termination(record: Record) -> Iterator[Finding]:
    if record.termination is None:
        return
    alive, ended = record.tested & ~record.terminals, record.tested & record.terminals
    rows, of = alive & record.dead, int(alive.sum())
    if rows.any():
        message = (
            f"{percent(int(rows.sum()), of)} of rows alive by the file are dead by the rule {record.rule}"
        )
        yield finding("false_dead", message, rows, of, {"td": "care", "dynamics": few(int(rows.sum()), of)})
    # time limits have a finding of their own
    rows, of = ended & ~record.dead & ~record.at_limit, int(ended.sum())
    if rows.any():
        message = f"{percent(int(rows.sum()), of)} of terminals are alive by the rule {record.rule}"
        yield finding(
            "false_alive",
            message,
            rows,
            of,
            {"td": "care", "dynamics": "no" if rows.sum() > 0.01 * of else "care"},
        )


# ---------------------------------------------------------------------------------------------------------- repetitions


def _duplicates(record: Record) -> Iterator[Finding]:
    columns = [
        record.obs,
        record.act,
        record.rew[:, None],
        *([] if record.next_obs is None else [record.next_obs]),
    ]
    packed = np.ascontiguousarray(np.concatenate(columns, 1))
    keys = packed.view(np.dtype((np.void, packed.dtype.itemsize * packed.shape[1]))).ravel()
    _, first, group, sizes = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    again, of, size = np.ones(len(keys), np.bool_), len(keys), sizes[group]
    again[first] = False
    if again.any():
        message = f"{percent(int(again.sum()), of)} of rows repeat an earlier one in every field"
        yield finding("duplicate_rows", message, again, of)
        # a row of k twins has one on the other side unless all k are held out
        leaked = float((1 - HOLDOUT ** (size[size > 1] - 1.0)).sum()) / of
        message = (
            f"a split by rows trains on twins of about {percentage(leaked)} of the rows that it holds out"
        )
        yield finding(
            "split_leak", message, size > 1, of, {"dynamics": "care"} if leaked > DUPLICATES else {}
        )


def _duplicate_episodes(record: Record) -> Iterator[Finding]:
    seen: set[bytes] = set()
    starts, again, of = np.cumsum(record.lengths) - record.lengths, [], len(record.lengths)
    for start, length in zip(starts.tolist(), record.lengths.tolist(), strict=True):
        rows = slice(start, start + length)
        key = hashlib.blake2b(
            record.obs[rows].tobytes() + record.act[rows].tobytes(), digest_size=16
        ).digest()
        if key in seen and length > 1:
            again.append(start)
        seen.add(key)
    if again:
        many: Harms = {"cloning": "care", "dynamics": "care"} if len(again) > DUPLICATES * of else {}
        message = f"{percent(len(again), of)} of episodes repeat an earlier one step by step"
        yield finding("duplicate_episodes", message, np.array(again), of, many)


# --------------------------------------------------------------------------------------------------- actions and rewards


def _actions(record: Record) -> Iterator[Finding]:
    dims = record.act.shape[1]
    constant = np.flatnonzero(np.ptp(record.act, axis=0) == 0)
    if len(constant):
        message = f"{percent(len(constant), dims)} of action dimensions never change: {listed(constant)}"
        yield finding(
            "constant_actions",
            message,
            record.nowhere,
            dims,
            {"td": "care", "dynamics": "care"},
            count=len(constant),
        )
    share = (np.abs(record.act) > 0.999).mean(0)
    pressed = np.setdiff1d(np.flatnonzero(share > 0.25), constant)
    if len(pressed):
        harms: Harms = {"cloning": "care"} if share[pressed].max() > 0.9 else {}
        shown = listed([f"{100 * share[d]:.0f} % of dimension {d}" for d in pressed])
        yield finding(
            "saturated_actions",
            f"actions stand at ±1: {shown}",
            record.nowhere,
            dims,
            harms,
            count=len(pressed),
        )


def _units(record: Record) -> Iterator[Finding]:
    """Actions that never leave the environment's box, where that is smaller than [-1, 1]."""
    task = record.task
    if task is None or task.low is None or task.high is None:
        return
    how = Actions(None, (np.array(task.low), np.array(task.high)), "--actions ")
    if doubt := how.doubt(record.act, list(blocks(*record.act.shape))):
        yield finding(
            "actions_in_env_units", doubt, record.nowhere, len(record.act), ALL_NO, count=len(record.act)
        )


def _precision(record: Record, lost: Sequence[str]) -> Iterator[Finding]:
    for text in dict.fromkeys(lost):
        of = record.obs.shape[1]
        harms: Harms = {"td": "care", "dynamics": "no"}
        yield finding("observations_lose_precision", text, record.nowhere, of, harms, count=of)


def _rewards(record: Record) -> Iterator[Finding]:
    rew, of = record.rew.astype(np.float64), len(record.rew)
    if np.ptp(rew) == 0:
        # a pay for each step, or a price of it, chooses between long episodes and short ones
        by_length = rew[0] > 0 or (rew[0] < 0 and record.terminals.any())
        message = f"all rewards are {rew[0]:g}: " + (
            "only an episode's length tells good from bad"
            if by_length
            else "there is nothing to choose between"
        )
        harms: Harms = {"td": "care", "returns": "care"} if by_length else {"td": "no", "returns": "no"}
        yield finding("constant_rewards", message, record.nowhere, of, harms, count=of)
        return
    low, middle, high = np.quantile(rew, [0.01, 0.5, 0.99])
    far = np.abs(rew - middle) > 10 * (high - low)
    if high > low and far.any():
        message = (
            f"{percent(int(far.sum()), of)} of rewards in [{rew.min():.4g}, {rew.max():.4g}] are far outside "
            f"[{low:.4g}, {high:.4g}], where 98 % are"
        )
        yield finding("reward_outliers", message, far, of, CARE_BUT_CLONING)


# ------------------------------------------------------------------------------------------------- coverage, environment


def _effective_episodes(record: Record) -> float:
    """Episodes of equal length that would be as unequal a sample: (Σ length)² / Σ length²."""
    lengths = record.lengths.astype(np.float64)
    return float(lengths.sum() ** 2 / (lengths**2).sum())


def _coverage(record: Record) -> dict[str, Any]:
    """How wide the data are: spread per dimension, how many episodes they amount to, how often places were revisited."""
    cells, visited = _cells(record)
    visits = np.unique(np.stack([cells, record.episode]), axis=1)[0]
    return {
        "observation_std": record.obs.astype(np.float64).std(0).tolist(),
        "action_std": record.act.astype(np.float64).std(0).tolist(),
        "reward_min": float(record.rew.min()),
        "reward_max": float(record.rew.max()),
        "length_median": float(np.median(record.lengths)),
        "effective_episodes": _effective_episodes(record),
        "cells_visited": visited,
        "cells_in_one_episode": float((np.bincount(visits, minlength=visited) == 1).mean()),
    }


def _cells(record: Record) -> tuple[np.ndarray, int]:
    """The rows' cells, numbered, on a grid over the first two principal components; and how many of them are visited."""
    x = standard(record.obs)
    _, axes = np.linalg.eigh(x.T @ x)
    plane = x @ axes[:, ::-1][:, :2]
    low, high = np.quantile(plane, [0.005, 0.995], axis=0)
    grid = ((plane - low) / np.maximum(high - low, 1e-9) * BINS).clip(0, BINS - 1).astype(int)
    places, cells = np.unique(grid[:, 0] * BINS + grid[:, -1], return_inverse=True)
    return cells, len(places)


def _narrow(record: Record) -> Iterator[Finding]:
    dims, constant = record.obs.shape[1], np.flatnonzero(np.ptp(record.obs, axis=0) == 0)
    if len(constant):
        message = f"{percent(len(constant), dims)} of observation dimensions never change: {listed(constant)}"
        yield finding("constant_observations", message, record.nowhere, dims, count=len(constant))
    yield from _leaps(record)
    episodes, effective = len(record.lengths), _effective_episodes(record)
    if effective < 5:
        message = f"the rows amount to {effective:.1f} episodes"
        yield finding("few_episodes", message, record.nowhere, episodes, CARE_BUT_CLONING, count=episodes)


def _leaps(record: Record) -> Iterator[Finding]:
    """Dimensions with leaps that a reader, or a model, may take for resets."""
    angle, switch = record.leaping
    inside = np.flatnonzero(~record.end[:-1] & ~record.jumps[0])
    for d in np.flatnonzero(angle | switch):
        column = record.obs[:, d]
        step = np.abs(np.diff(column)[inside])
        rows = inside[step > (0.5 * np.ptp(column) if angle[d] else 0)]
        if angle[d] and len(rows) > 1:
            share = percent(len(rows), len(inside))
            message = f"dimension {d} leaps by its whole range in {share} of steps: an angle?"
            yield finding("angle_leaps", message, rows, len(inside))
        elif switch[d] and 0 < len(rows) <= RARE * len(inside):
            message = f"dimension {d} rarely changes: in {percent(len(rows), len(inside))} of steps"
            yield finding("rare_switch", message, rows, len(inside))


def _environment(record: Record) -> Iterator[Finding]:
    attrs, task = record.attrs, record.task
    own, sizes = attrs.get("collected_in", attrs.get("env_id")), (record.obs.shape[1], record.act.shape[1])
    if task is None:
        yield finding(
            "environment_unknown", "nobody says which environment the data are of", record.nowhere, 1, count=1
        )
        return
    if task.problem:
        other = task.newest is not None and _bare(task.newest) != _bare(task.env_id)
        newest = f"; the newest version is {task.newest}" if other else ""
        message = f"{task.env_id} cannot be made here ({task.problem}){newest}"
        yield finding("environment_missing", message, record.nowhere, 1, count=1)
    if task.obs_dim is not None and sizes != (task.obs_dim, task.act_dim):
        message = (
            f"observations and actions have {sizes[0]} and {sizes[1]} dimensions, {task.env_id} has {task.obs_dim} "
            f"and {task.act_dim}"
        )
        yield finding("environment_sizes", message, record.nowhere, 1, ALL_CARE, count=1)
    if own is not None and _bare(own) != _bare(task.env_id):
        message = f"the data are of {own}, not of {task.env_id}"
        yield finding("environment_version", message, record.nowhere, 1, CARE_BUT_CLONING, count=1)
    elif task.newest is not None and _bare(task.newest) != _bare(task.env_id):
        message = f"the data are of {task.env_id}, of which the newest version is {task.newest}"
        yield finding("environment_version", message, record.nowhere, 1, count=1)


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
    if record.limit is None:
        out.append("the time limit: neither the file nor an environment names one")
    if certificate is None:
        out.append("terminals against a rule: none is known for this environment; choose --termination")
    elif certificate.terminals_untested:
        out.append(
            f"{certificate.terminals_untested} terminals against the rule: what followed is unknown or untrue"
        )
    if record.disordered:
        out.append("cuts, time limits, shifts of actions and rewards: the rows are not in order")
    elif not timing.enough_for_shifts(record):
        out.append("shifts of actions and rewards: too few rows inside episodes")
    return out
