"""Tables of docs/results/speed.md and planning.md, from the JSON files that `mbo2o bench` writes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import data, plan, start, turn
from bench.measure import Row, named, read
from bench.peers.processes import VERSIONS
from bench.works import ROLLOUTS, WORKS, Rollout, Work

Results = Mapping[str, Mapping[str, Any]]
COMPILED = "compiled"
TURN, ADD = 1.5, 40.0
"""The most that a turn which learns nothing may cost, in steps of the environment; microseconds of `add`."""
STARTS = {"help": 0.3, "import": 0.1, "cfg": 1.0}
"""The most CPU seconds that a command may take."""


def tables(folder: Path) -> dict[str, Callable[[], str]]:
    """The tables by name, each from the files in `folder` when it is called."""

    def of(what: str) -> Results:
        return read(folder / f"bench-{what}.json")

    works: dict[str, Work | Rollout] = {**WORKS, **ROLLOUTS}
    compared = {name: work for name, work in works.items() if work.peers}
    alone = {name: work for name, work in works.items() if not work.peers}
    return {
        "bench-rates": lambda: rates({**of("update"), **of("rollout")}, compared),
        "bench-wanted": lambda: wanted({**of("update"), **of("rollout")}, compared),
        "bench-utd": lambda: rates(of("update"), {"redq-10": WORKS["redq-10"], **alone}, peers=False),
        "bench-data": lambda: batches(of("data")),
        "bench-turn": lambda: turns(of("turn")),
        "plan-bars": lambda: plan.bars(dict(of("plan"))),
        "plan-speed": lambda: plan.speeds(dict(of("plan"))),
        "plan-runs": lambda: plan.runs(dict(of("plan"))),
        "bench-start": lambda: starts(of("start")),
    }


def rates(results: Results, works: Mapping[str, Work | Rollout], peers: bool = True) -> str:
    """What each does per second: ours by engine and precision, peers, and the matrix products alone."""
    found = {name: results[name] for name in works if name in results}
    ours = dict.fromkeys(_how(row) for x in found.values() for row in x["rows"] if row["who"] == "mbo2o")
    heads = ["work", *ours, *(["peers"] if peers else []), "products alone, fp32, bf16"]
    lines = []
    for name, x in found.items():
        mine = {_how(row): row for row in x["rows"] if row["who"] == "mbo2o"}
        others = [f"{named(r)} {_count(_median(r))}" for r in x["rows"] if r["who"] != "mbo2o"]
        cells = [_count(_median(mine[how])) if how in mine else "" for how in ours]
        alone = ", ".join(_count(f) for f in x.get("floors", {}).values())
        lines.append([works[name].title, *cells, *(["<br>".join(others)] if peers else []), alone])
    return _table(heads, lines, found)


def wanted(results: Results, works: Mapping[str, Work | Rollout]) -> str:
    """The ratios that are wanted of the compiled engine, beside what was measured."""
    heads = ["work", "compiled in", "wanted", "measured (range)", "met", "products alone"]
    heads += ["÷ largest of peers", "÷ largest, like for like"]
    lines: list[list[str]] = []
    found = {name: results[name] for name in works if name in results}
    for name, x in found.items():
        for precision, least in works[name].wanted.items():
            for peer, (ratio, aim) in least.items():
                lines += _compared(works[name].title, x, precision, peer, ratio, aim)
    return _table(heads, lines, found)


def _compared(
    title: str, work: Mapping[str, Any], precision: str, peer: str, least: float, aim: float | None
) -> Iterator[list[str]]:
    rows: Sequence[Row] = work["rows"]
    mine = next((r for r in rows if _how(r) == f"{COMPILED} {precision}" and r["who"] == "mbo2o"), None)
    theirs = next((r for r in rows if r["who"] == VERSIONS[peer] and r["precision"] == "fp32"), None)
    if mine is None or theirs is None:
        return
    ratios = _ratios(mine, theirs)
    goal = f"≥ {least:g}× {peer}" + (f", aim {aim:g}×" if aim else "")
    middle = statistics.median(ratios)
    met = "no" if middle < least else "aim" if aim and middle >= aim else "yes"
    others = [r for r in rows if r["who"] != "mbo2o"]
    best = max((r for r in others if r["precision"] == "fp32"), key=_median)
    alike = max((r for r in others if r["precision"] in ("fp32", precision)), key=_median)
    against = [f"{statistics.median(_ratios(mine, r)):.2f}× ({named(r)})" for r in (best, alike)]
    spread = f"{middle:.2f}× ({min(ratios):.2f} to {max(ratios):.2f})"
    most = work.get("floors", {}).get(precision)
    alone = f"{most / _median(theirs):.2f}×" if most else ""
    yield [title, precision, goal, spread, met, alone, *against]


def batches(results: Results) -> str:
    """Batches per second."""
    lines = []
    found = {name: results[name] for name in data.TITLES if name in results}
    for name, x in found.items():
        ours, *others = x["rows"]
        peers = ", ".join(f"{r['who']} {_count(_median(r))}" for r in others)
        lines.append([data.TITLES[name], _count(_median(ours)), peers])
    return _table(["256 rows of", "mbo2o", "peers"], lines, found)


def turns(results: Results) -> str:
    """Microseconds, and how many steps of the environment that is."""
    lines = []
    found = {name: results[name] for name in turn.TITLES if name in results}
    step = 1e6 / _median(results["step"]["rows"][0])
    for name, x in found.items():
        micro = 1e6 / _median(x["rows"][0])
        ratio = f"{micro / step:.2f}" if name in ("turn", "acting") else ""
        goal = {
            "turn": f"≤ {TURN} steps: {_met(micro / step, TURN)}",
            "add": f"≤ {ADD:g} µs: {_met(micro, ADD)}",
        }
        lines.append([turn.TITLES[name], f"{micro:,.0f}", ratio, goal.get(name, "")])
    return _table(["what", "µs of CPU time", "steps of the environment", "wanted"], lines, found)


def starts(results: Results) -> str:
    """Seconds of commands."""
    lines = []
    found = {name: results[name] for name in start.COMMANDS if name in results}
    for name, x in found.items():
        cpu, wall = (_median(row) for row in x["rows"])
        goal = f"≤ {STARTS[name]:g} s: {_met(cpu, STARTS[name])}" if name in STARTS else ""
        lines.append([f"`{start.COMMANDS[name][0]}`", f"{cpu:.2f}", f"{wall:.2f}", goal])
    return _table(["command", "CPU seconds", "seconds", "wanted of the CPU"], lines, found)


def _met(x: float, most: float) -> str:
    return "met" if x <= most else "not met"


def _how(row: Row) -> str:
    """`compiled bf16`."""
    return " ".join(str(row[key]) for key in ("engine", "precision") if key in row)


def _median(row: Row) -> float:
    return statistics.median(row["rates"])


def _ratios(a: Row, b: Row) -> list[float]:
    """Round by round, because the load of the machine changes between rounds."""
    return [x / y for x, y in zip(a["rates"], b["rates"], strict=True)]


def _count(x: float) -> str:
    """Three digits; thousands as `12.3k`."""
    return f"{x / 1000:.3g}k" if x >= 9999.5 else f"{x:.3g}" if x < 999.5 else f"{x:.0f}"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]], found: Results) -> str:
    """A Markdown table, and under it the machines, loads and rounds of what it shows."""
    text = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    text += [f"| {' | '.join(line)} |" for line in lines]
    loads = [x["load"] for x in found.values()]
    if loads:
        machines = "; ".join(dict.fromkeys(x["machine"] for x in found.values()))
        rounds = min(x["rounds"] for x in found.values())
        seeds = "".join(f", {n} seeds" for n in sorted({x["seeds"] for x in found.values()} - {1}))
        loaded = f"load {min(loads)} to {max(loads)}"
        text += ["", f"Medians of at least {rounds} rounds{seeds}. {machines}; {loaded}."]
    return "\n".join(text)
