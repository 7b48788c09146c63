"""The command line. Errors are one line and an exit code.

2: there is a mistake in what was asked, or the disk cannot be written. 3: training diverged. 4: an
environment kept failing. 143: a signal stopped a run, which goes on when the same command is given again.
130: Ctrl-C in any other command.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

# before torch is imported: threads that spin while they wait starve each other on busy cores
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from mbo2o.cli import bench, data, doctor, model, plan, policy, report, slurm, study, train, verify
from mbo2o.cli.command import Parser, guarded
from mbo2o.cli.train import compose_config

__all__ = ["compose_config", "main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `mbo2o`."""
    args = list(sys.argv[1:] if argv is None else argv)
    sys.exit(guarded(lambda: _dispatch(args)))


def _dispatch(args: list[str]) -> int:
    if not args:
        # the main job: MOPO offline, MOORe online, on the Hopper data that the repository holds
        return train.run(["experiment=first-run"])
    if args[0] == "train" and not {"-h", "--help"} & set(args):
        return train.run(args[1:])  # in Hydra's grammar
    options, left = parser().parse_known_args(args, argparse.Namespace(typed=args))
    # argparse takes KEY=VALUE in one place alone, here it may stand anywhere
    settings = [x for x in left if "=" in x and not x.startswith("-")]
    if len(settings) < len(left) or (left and not hasattr(options, "settings")):
        unknown = [x for x in left if x not in settings] or left
        parser().error(f"unrecognized arguments: {' '.join(unknown)}")
    if left:
        options.settings = [*options.settings, *settings]
    return int(options.run(options) or 0)


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; that of `train` shows help alone."""
    top = Parser(
        "mbo2o",
        description="Model-based offline-to-online RL. Without a command it runs experiment=first-run.",
        epilog="example: mbo2o train experiment=hopper-small seeds=3; each command's --help has its own",
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for group in (train, report, policy, slurm, study, verify, bench, data, model, plan, doctor):
        group.add_to(commands)
    return top
