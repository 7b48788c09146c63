"""The command about policies: `export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mbo2o.cli.command import add

KINDS = ("onnx", "pt2", "npz")


def _export(options: argparse.Namespace) -> None:
    from mbo2o.policy import FILE, load

    run = Path(options.run_dir)
    kind = f".{options.to or Path(options.out or '').suffix.removeprefix('.') or 'onnx'}"
    out = Path(options.out) if options.out else run / "export" / f"policy_seed{options.seed}{kind}"
    if out.suffix != kind:
        out = out.with_name(f"{out.name}{kind}")
    policy = load(run, options.seed, trust=options.trust)
    print(policy.export(out))
    if out.suffix == ".npz":
        print(out.with_suffix(".py"))
    print(out.parent / FILE)


def add_to(commands: Any) -> None:
    """Declare `export`."""
    p = add(
        commands,
        "export",
        _export,
        "Write a run's policy for other programs: ONNX, torch's .pt2, or NumPy arrays with a script.",
        "mbo2o export runs/moore-... --to onnx\n  mbo2o export runs/moore-... --out robot/policy.npz",
        "Its input `obs` and its output `action` are in the environment's own units. io.json beside it says "
        "names, units and bounds. The default is RUN/export/policy_seedK.KIND.",
    )
    p.add_argument("run_dir", metavar="RUN", help="a run, or a folder of policy.save")
    p.add_argument("--to", choices=KINDS, help="what --out ends with, or else onnx")
    p.add_argument("--out", metavar="F", help="the file to write; its ending may be left out")
    p.add_argument("--seed", type=int, default=0, help="which of the run's seeds, counted from 0")
    p.add_argument("--trust", action="store_true", help="import the module that registered its agent")
