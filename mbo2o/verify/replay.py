"""Play traces again, and say where they differ from what was recorded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from mbo2o.envs import streams
from mbo2o.envs.faults import EnvironmentFault
from mbo2o.envs.lanes import Lane
from mbo2o.registry import check_trust
from mbo2o.verify.traces import Played, Trace, versions

DECISIVE = ("mujoco", "gymnasium", "gymnasium-robotics", "machine")
"""Versions that may change an episode; NumPy's is only told."""


def replay(trace: Trace) -> Played:
    """The episodes of a trace, played again from their starts with their actions.

    All episodes go on side by side, as in an evaluation, so that environments which share a generator draw in
    the same order. An episode that ends before its actions do is shorter here. One that does not end with
    its last action has a step more here than it has actions.

    Raises:
        UserError: The environment cannot be made, is not trusted, or fails (`EnvironmentFault`).
    """
    p = trace.played
    if ":" in trace.env.id:
        check_trust("env", trace.env.id)
    own = np.split(p.actions, np.cumsum(p.lengths)[:-1])
    with streams.private():
        streams.seed_globals(int(p.starts[0]))
        lanes = [Lane(trace.env, int(x), trace.disturb, resumes=False) for x in p.starts]
        for lane, start in zip(lanes, p.starts, strict=True):
            streams.seed_globals(int(start))
            lane.start(int(start))
        alive = np.ones(len(lanes), bool)
        for t in range(int(p.lengths.max())):
            for i, lane in enumerate(lanes):
                if alive[i] and t < len(own[i]):
                    _, _, terminated, truncated = lane.step(own[i][t])
                    alive[i] = not (terminated or truncated)
        again = Played.of(lanes, [int(x) for x in p.starts])
        for lane in lanes:
            lane.env.close()
    return again._replace(lengths=again.lengths + alive)


def differences(trace: Trace) -> str:
    """How a trace differs from the same episodes played again, in one line; "" if it does not."""
    parts = []
    if changed := trace.changed():
        verb = "is" if len(changed) == 1 and changed[0] == "last" else "are"
        parts.append(f"its {' and '.join(changed)} {verb} not what was recorded")
    try:
        again = replay(trace)
    except EnvironmentFault as e:
        return f"{trace.name}: {'; '.join([*parts, str(e)])}"
    if said := _episodes(trace, again):
        parts.append(said)
    return f"{trace.name}: {'; '.join(parts)}" if parts else ""


def _episodes(trace: Trace, again: Played) -> str:
    """The first episode that goes another way, and how many do; "" if none does."""
    p = trace.played
    length, returned = p.lengths != again.lengths, p.returns != again.returns
    last = (p.last != again.last).any(-1) & ~(np.isnan(p.last) & np.isnan(again.last)).all(-1)
    differ = np.flatnonzero(length | returned | last)
    if not len(differ):
        return ""
    i, each = int(differ[0]), len(p.starts) // trace.about["seeds"]
    what = []
    if returned[i]:
        gap = abs(p.returns[i] - again.returns[i])
        what.append(f"returns {again.returns[i]!r} and not {p.returns[i]!r} (apart by {gap:.3g})")
    if length[i]:
        sooner = f"ends after {again.lengths[i]} of {p.lengths[i]} steps"
        what.append(sooner if again.lengths[i] <= p.lengths[i] else f"goes on after {p.lengths[i]} steps")
    if last[i]:
        gap = np.abs(p.last[i].astype(float) - again.last[i]).max()
        what.append(f"ends elsewhere (by {gap:.3g})")
    where = f"episode {i % each} of seed {i // each} (start {p.starts[i]})"
    more = f"; {len(differ)} of {len(p.starts)} episodes differ" if len(differ) > 1 else ""
    return f"{where} {', '.join(what)}{more}"


@dataclass
class Report:
    """What was played again."""

    evaluations: int = 0
    episodes: int = 0
    steps: int = 0
    made_with: set[str] = field(default_factory=set)
    """The versions that played it first, in words."""
    others: set[str] = field(default_factory=set)
    """How these differ from the versions here."""
    faults: list[str] = field(default_factory=list)
    """A line for each evaluation that differs."""


def verify(traces: Iterable[Trace]) -> Report:
    """Play traces again, and report what differs."""
    report, here = Report(), versions()
    for trace in traces:
        then = trace.about["made_with"]
        report.evaluations += 1
        report.episodes += len(trace.played.starts)
        report.steps += len(trace.played.actions)
        report.made_with.add(", ".join(f"{x} {then[x]}" for x in DECISIVE if x in then))
        report.others |= {
            f"{x} {then.get(x, 'none')} then, {here.get(x, 'none')} here"
            for x in DECISIVE
            if then.get(x) != here.get(x) and (x != "gymnasium-robotics" or "Maze" in trace.env.id)
        }
        if line := differences(trace):
            report.faults.append(line)
    return report
