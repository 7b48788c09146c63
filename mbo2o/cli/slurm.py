"""The command `slurm`: a script for `sbatch` whose array tasks are the runs of a sweep."""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbo2o.cli.command import STOPPED, add, folder
from mbo2o.errors import UserError, at_least_one

if TYPE_CHECKING:
    from mbo2o.cli.overrides import Tree

MARK = "# Written by `mbo2o slurm`"
"""How the second line of a script begins that this command may replace."""
KEPT = ("PYTHONPATH", "MBO2O_DATA", "MBO2O_CACHE", "MBO2O_OFFLINE")
"""Environment variables that a script sets as they were when it was written."""
NOTICE = 120
"""Seconds before the end of a task's time in which its run saves."""

SCRIPT = """\
#!/bin/bash
{mark}; each array task is one run of the sweep. It was made with:
#   {command}
# Submit it with: sbatch {path}
# SLURM sends USR1 to this shell {notice} s before a task's time is over. The run then saves, and the task
# goes back into the queue, where it resumes. A task whose run is finished ends at once.
{options}

cd {here} || exit 2
{kept}case "${{SLURM_ARRAY_TASK_ID:?submit this with sbatch}}" in
{tasks}
  *) echo "no run has number $SLURM_ARRAY_TASK_ID" >&2; exit 2 ;;
esac

again=false signalled=false
trap 'again=true signalled=true; kill -TERM "$run"' USR1
trap 'signalled=true; kill -TERM "$run"' TERM
{python} -m mbo2o train "$@" &
run=$!
wait "$run"; code=$?
# a trap ends `wait` before the run ends
while "$signalled"; do signalled=false; wait "$run"; code=$?; done

if "$again" && [ "$code" -eq {stopped} ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}" && exit 0
  echo "the run has saved and stopped; the same task goes on with it" >&2
fi
exit "$code"
"""


def runs_of(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each run of a sweep, in the order in which `mbo2o train -m` runs them."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from mbo2o.cli.overrides import literal

    choices: list[list[str]] = []
    for typed in overrides:
        x = OverridesParser.create().parse_override(literal(typed, sweep=True))
        values = x.sweep_string_iterator() if x.is_sweep_override() else ()
        choices.append([f"{x.get_key_element()}={value}" for value in values] or [typed])
    return [list(run) for run in itertools.product(*choices)]


def _checked(overrides: Sequence[str], tree: Tree, trust: bool) -> list[list[str]]:
    """The runs of the sweep. `UserError` for a mistake in one of them, before anything waits in a queue."""
    from mbo2o.cli.overrides import check_overrides, literal
    from mbo2o.cli.schema import tell_hydra
    from mbo2o.cli.train import load_chosen, to_config

    given = [literal(x, sweep=True) for x in overrides]
    load_chosen(given, tree, trust)
    tell_hydra()
    check_overrides(given, tree)
    runs = runs_of(overrides)
    for run in runs:
        to_config(tree.compose([literal(x) for x in run]))
    if len(set(map(tuple, runs))) < len(runs):
        raise UserError("slurm: a value of the sweep stands there twice; name it once")
    return runs


def _slurm(options: argparse.Namespace) -> None:
    from mbo2o.cli.overrides import Tree
    from mbo2o.store.whole import write_whole, writing

    out, folder = Path(options.out), options.config_dir
    runs = _checked(options.settings, Tree(folder), options.trust)
    if out.exists() and not out.read_text(errors="replace").startswith(f"#!/bin/bash\n{MARK}"):
        raise UserError(f"{out}: is there, and this command has not written it; give another --out")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, script(options, runs))
    print(f"{out}: {len(runs)} run{'s' * (len(runs) > 1)}; submit with: sbatch {shlex.quote(str(out))}")


def script(options: argparse.Namespace, runs: Sequence[Sequence[str]]) -> str:
    """The text of the script for these runs."""
    from mbo2o.store.whole import shown

    flags = [f"--config-dir={options.config_dir.resolve()}"] if options.config_dir else []
    flags += ["--trust"] if options.trust else []
    tasks = [f"  {i}) set -- {shlex.join([*flags, *run])} ;;" for i, run in enumerate(runs)]
    kept = [f"export {x}={shlex.quote(os.environ[x])}\n" for x in KEPT if x in os.environ]
    return SCRIPT.format(
        mark=MARK,
        command=shown(shlex.join(["mbo2o", *options.typed])),
        path=shown(shlex.quote(str(options.out))),
        notice=NOTICE,
        options="\n".join(f"#SBATCH {x}" for x in _sbatch(options, len(runs))),
        here=shlex.quote(os.getcwd()),
        kept="".join(kept),
        tasks="\n".join(tasks),
        python=shlex.quote(sys.executable),
        stopped=STOPPED,
    )


def _sbatch(options: argparse.Namespace, runs: int) -> list[str]:
    """The options for `sbatch`. `UserError` for text that would not stay on its line."""
    counts = {x: getattr(options, x) for x in ("concurrent", "cpus", "gpus")}
    at_least_one("slurm", **{x: n for x, n in counts.items() if n is not None})
    limit = f"%{options.concurrent}" if options.concurrent else ""
    named = {
        "time": options.time,
        "mem": options.mem,
        "cpus-per-task": options.cpus,
        "gres": options.gpus and f"gpu:{options.gpus}",
        "partition": options.partition,
    }
    lines = [f"--job-name={options.name}", f"--array=0-{runs - 1}{limit}"]
    lines += [f"--{key}={x}" for key, x in named.items() if x]
    lines += [f"--signal=B:USR1@{NOTICE}", "--requeue", "--open-mode=append", *options.sbatch]
    if wrong := [x for x in lines if not re.fullmatch(r"--?\w[^\n\r]*", x)]:
        raise UserError(f"slurm: {wrong[0]!r} is no option of sbatch; give it as --sbatch=--account=mine")
    return lines


def add_to(commands: Any) -> None:
    """Declare `slurm`."""
    p = add(
        commands,
        "slurm",
        _slurm,
        "Write a script for sbatch: one array task for each run of the sweep KEY=VALUE,VALUE. Before its "
        "time is over, a task saves and goes back into the queue; a run that is finished is left alone.",
        "mbo2o slurm experiment=hopper-small seed=0,10,20 --time 4:00:00 --mem 4G --cpus 1\n"
        "  mbo2o slurm recipe=moore dataset=my.hdf5 device=cuda --gpus 1 --sbatch=--account=mine",
    )
    p.add_argument("settings", nargs="*", default=[], metavar="KEY=VALUE")
    p.add_argument(
        "-m", "--multirun", action="store_true", help="may stand here; the script is always of a sweep"
    )
    p.add_argument("--time", metavar="TIME", help="of a task until it is queued again: 4:00:00")
    p.add_argument("--mem", metavar="SIZE", help="of a task: 4G")
    p.add_argument("--cpus", type=int, metavar="N", help="of a task")
    p.add_argument("--gpus", type=int, metavar="N", help="of a task; device=cuda uses one")
    p.add_argument("--partition", metavar="NAME")
    p.add_argument("--concurrent", type=int, metavar="N", help="at most so many tasks at a time")
    p.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="LINE",
        help="one more: --sbatch=--account=mine",
    )
    p.add_argument("--name", default="mbo2o", help="of the job")
    p.add_argument("--out", default="mbo2o.sbatch", metavar="FILE", help="the script")
    p.add_argument("--config-dir", type=folder, metavar="DIR", help="a folder of YAML, as for train")
    p.add_argument("--trust", action="store_true", help="as for train")
