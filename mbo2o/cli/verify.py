"""The commands about evaluations that can be played again: `verify` and `traces`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mbo2o.cli.command import add

SAMPLES = "traces*.npz"
"""The files of traces that ship with the results."""


def _verify(options: argparse.Namespace) -> int:
    from mbo2o.registry import trusting

    faults: list[str] = []
    with trusting(options.trust):
        if not options.what:
            faults += _tables()
        for path in options.what or _samples():
            faults += _one(Path(path), options.trust)
    for line in faults:
        print(line)
    return int(bool(faults))


def _tables() -> list[str]:
    """Compute the published numbers again; a line for each that differs."""
    from mbo2o.cli.study import of_checkout

    again = of_checkout("studies.again")
    faults: list[str] = again.tables() + again.claims() + again.drops()
    print(f"{again.measured.RESULTS}: {again.counted()} computed again, {_found(faults)}", flush=True)
    return faults


def _samples() -> list[Path]:
    from mbo2o.cli.study import of_checkout

    return sorted(of_checkout("studies.measured").RESULTS.glob(SAMPLES))


def _one(path: Path, trust: bool) -> list[str]:
    """Play a run's traces, or those of a file, again, and compare; a line for each that differs."""
    from mbo2o.cli.study import ROOT, of_checkout
    from mbo2o.verify.replay import verify
    from mbo2o.verify.traces import files_of, left_out

    extra: list[str] = []

    def watched() -> Iterator[Any]:
        for trace in _read(files_of(path)):
            if (ROOT / "studies" / "__init__.py").is_file():
                extra.extend(of_checkout("studies.again").published(trace))
            yield trace

    report = verify(watched())
    if path.is_dir():
        extra += _log(path) + _checkpoint(path, trust)
    faults = report.faults + extra
    size = f"{report.evaluations} evaluations, {report.episodes} episodes, {report.steps} steps"
    print(f"{path}: {size} played again, {_found(faults)}", flush=True)
    for made_with in sorted(report.made_with):
        print(f"  recorded with {made_with}")
    for other in sorted(report.others):
        print(f"  another version plays it again: {other}; differences may come from that alone")
    for line in [] if path.is_dir() else left_out(path):
        print(f"  left out: {line}")
    return faults


def _found(faults: list[str]) -> str:
    return f"{len(faults)} differ" if faults else "all equal to the last bit"


def _read(paths: Iterable[Path]) -> Iterator[Any]:
    from mbo2o.verify.traces import read

    for path in paths:
        yield from read(path)


def _log(run: Path) -> list[str]:
    """Where a run's log says other returns than its traces, or lacks an evaluation that has a trace."""
    from mbo2o.report.read import read_run
    from mbo2o.verify.traces import files_of

    lines = {(x["kind"], x["phase"], x["step"]): x["return"] for x in read_run(run).lines if "return" in x}
    faults, traced = [], 0
    for trace in _read(files_of(run)):
        a = trace.about
        kind = "eval" if a["agent"] == "agent" else f"eval-{a['agent']}"
        said = lines.get((kind, a["phase"], a["step"]))
        traced += said is not None
        if said is None:
            faults.append(f"{trace.name}: metrics.jsonl has no such evaluation")
        elif said != (mean := trace.means().tolist()):
            faults.append(f"{trace.name}: metrics.jsonl says the return {said}, the episodes return {mean}")
    missing = sum(k.startswith("eval") for k, _, _ in lines) - traced
    if missing > 0:
        print(f"{run}: {missing} evaluations of metrics.jsonl have no trace", file=sys.stderr)
    return faults


def _checkpoint(run: Path, trust: bool) -> list[str]:
    """Where the policy in a run's last checkpoint is not the one that its last trace was played by."""
    from mbo2o.errors import UserError
    from mbo2o.store import checkpoint
    from mbo2o.training import restore
    from mbo2o.verify.traces import files_of, read, weights_of

    (last,) = read(files_of(run)[-1])
    saved = checkpoint.latest(run / "checkpoints", "cpu")
    if saved is None or sum(n for k, n in saved[1]["done"].items() if ":" not in k) != last.about["total"]:
        return []  # the run has not ended, or was stopped after its last evaluation
    try:
        agents = restore(run, trust)[0].memory.agents()
    except UserError as e:
        print(f"{run}: its checkpoint is not compared: {e}", file=sys.stderr)
        return []
    agent = agents.get(last.about["agent"])
    if agent is None or weights_of(agent) == last.about["weights"]:
        return []
    return [f"{last.name}: the weights in the checkpoint are not those that played it (sha256)"]


def _pack(options: argparse.Namespace) -> None:
    """Write one file with the last evaluations of runs, newest first, as far as it may grow."""
    from mbo2o.errors import at_least_one
    from mbo2o.verify.traces import left_out, pack

    at_least_one("traces", last=options.last)
    out = Path(options.out)
    pack(out, [Path(x) for x in options.runs], options.last, options.most)
    for line in left_out(out):
        print(f"left out: {line}", file=sys.stderr)
    print(f"{out} ({out.stat().st_size / 1e6:.2f} MB)")


def add_to(commands: Any) -> None:
    """Declare `verify` and `traces`."""
    p = add(
        commands,
        "verify",
        _verify,
        "Play the kept evaluations of a run, or of a file of traces, again, and compare returns, lengths and "
        "last observations to the last bit.",
        "mbo2o verify runs/moore-...\n  mbo2o verify traces.npz\n  mbo2o verify",
        "A run keeps them with run.traces=true. Without an argument, in a checkout, it computes tables and "
        "claims again from the stored curves, and plays the sample in data/results. Exit code 1: "
        "something differs; each difference is a line.",
    )
    p.add_argument("what", nargs="*", metavar="RUN|FILE")
    p.add_argument("--trust", action="store_true", help="import the modules that registered environments")

    p = add(
        commands,
        "traces",
        _pack,
        "Put the kept evaluations of runs into one file, which `mbo2o verify` plays again.",
        "mbo2o traces runs/studies/enoto-*/* --out traces.npz --last 3 --most 50",
        "What does not fit is left out, the earliest evaluations first, and is listed in the file.",
    )
    p.add_argument("runs", nargs="+", metavar="RUN|FILE")
    p.add_argument("--out", required=True, metavar="FILE")
    p.add_argument("--last", type=int, default=3, metavar="N", help="evaluations of each run; 3")
    p.add_argument("--most", type=float, default=50.0, metavar="MB", help="the largest file; 50")
