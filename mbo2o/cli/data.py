"""The commands about datasets: `data list`, `fetch`, `inspect`, `check`, `collect` and others."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

from mbo2o.cli.command import add

MODES = ("unit", "env", "clip", "env-clip")
UNITS = (
    "units of its actions: unit ([-1, 1]), env (the environment's box), clip or env-clip (a policy's outputs "
    "in these, to be clipped), or the bounds themselves, such as [-2,2]; as dataset_actions= in training"
)
COLUMNS = (
    "which column of a table holds what, such as '{observations: [x, v], actions: [u], rewards: r, "
    "terminals: done}'; as dataset_columns= in training"
)
OPTION = "--actions "


def _units(text: str) -> Any:
    """The units of actions that an option names: one of `MODES`, or bounds."""
    if text in MODES:
        return text
    return _yaml(text, list, f"expected {', '.join(MODES)}, or bounds such as [-2,2]")


def _columns(text: str) -> Any:
    return _yaml(text, dict, "expected {observations: [...], actions: [...], rewards: ..., terminals: ...}")


def _yaml(text: str, kind: type, expected: str) -> Any:
    """A value as training reads it from KEY=VALUE; argparse makes one line of the error."""
    from mbo2o.cli.compose import settings_of
    from mbo2o.errors import UserError

    try:
        value = settings_of([f"x={text}"], {})[0].value
    except UserError:
        value = None
    if not isinstance(value, kind):
        raise argparse.ArgumentTypeError(f"{text}: {expected}")
    return value


def _add_table(p: argparse.ArgumentParser) -> None:
    """The options that say how a dataset is read."""
    p.add_argument("--actions", type=_units, metavar="UNITS", help=UNITS)
    p.add_argument("--columns", type=_columns, metavar="{FIELD: COLUMNS}", help=COLUMNS)


def _list(options: argparse.Namespace) -> None:
    from mbo2o.store import remote
    from mbo2o.store.datasets import data_folders
    from mbo2o.store.hdf5 import read_hdf5

    for folder in data_folders():
        for path in sorted(folder.glob("*.hdf5")):
            fields, attrs = read_hdf5(path)
            print(f"{path.stem:<28} {len(fields['rewards']):>8} rows  {attrs.get('env_id', '?'):<16} {path}")
        for path in sorted((folder / "actors").glob("*.safetensors")):
            print(f"{path.stem:<28} {'actor':>13}  {'':<16} {path}")
    print(f"`mbo2o data fetch NAME` downloads these to {remote.fetched_folder()}:")
    for entry in remote.registry().values():
        size, env_id = f"{entry.size / 1e6:>4.0f} MB", entry.env_id or "env=?"
        print(f"{entry.name:<34} {size}  {env_id:<16} {entry.licence}  {entry.state()}")


def _fetch(options: argparse.Namespace) -> None:
    from mbo2o.store import remote

    for entry in [remote.find_remote(name) for name in options.names]:
        fetched = remote.fetch(entry)
        print(f"{entry.path}: {'fetched' if fetched else 'is there'}, size and sha256 are right")


def _where(options: argparse.Namespace) -> None:
    from mbo2o.store import remote

    entry = remote.find_remote(options.name)
    print(
        f"{entry.state()}: {entry.size} bytes, sha256 {entry.sha256}, from {' '.join(entry.urls)}",
        file=sys.stderr,
    )
    print(entry.path)


def _inspect(options: argparse.Namespace) -> None:
    from mbo2o.store import datasets

    summary = datasets.summary(_dataset(options, look=True))
    if options.json:
        print(json.dumps(summary))
        return
    attrs = summary.pop("attrs", {})
    for key, value in [*summary.items(), *attrs.items()]:
        print(f"{key:<22} {f'{value:.4g}' if isinstance(value, float) else value}")


def _dataset(options: argparse.Namespace, look: bool = False) -> Any:
    """The rows that the options name.

    look: in a table without an environment, actions outside [-1, 1] are taken to lie between the lowest and
    the highest one, and a warning says so.
    """
    from mbo2o.store import datasets

    actions = options.actions
    if look and actions is None and options.env is None:
        found = datasets.find(options.dataset, options.columns)
        if found.is_table:
            units, _, said = datasets.units_of_log(found, None, OPTION)
            if said:
                warnings.warn(f"{options.dataset}: {said}", stacklevel=2)
            return found.read("ram", units)
    return datasets.read(
        options.dataset, actions=actions, env_id=options.env, option=OPTION, columns=options.columns
    )


def _check(options: argparse.Namespace) -> int:
    from mbo2o.doctor.check import check

    kwargs = _env_kwargs(options.env_kwargs)
    columns = options.columns
    report = check(options.dataset, options.env, options.termination, options.actions, kwargs, columns)
    print(json.dumps(report.as_json()) if options.json else report.text())
    return 0 if report.safe else 1


def _env_kwargs(text: str) -> dict[str, Any]:
    from mbo2o.errors import UserError

    try:
        found = json.loads(text)
    except ValueError as e:
        raise UserError(
            f"--env-kwargs {text}: is not JSON ({e}), such as '{{\"healthy_z_range\": [0.3, 1.0]}}'"
        ) from e
    if not isinstance(found, dict):
        raise UserError(f"--env-kwargs {text}: expected an object of argument names and values")
    return found


def _copy(options: argparse.Namespace) -> None:
    from mbo2o.errors import at_least_one
    from mbo2o.store import datasets
    from mbo2o.store.whole import writing

    at_least_one("data copy", every=options.every)
    dataset = _dataset(options)
    with writing(options.out):
        rows = datasets.write(dataset, options.out, options.layout, options.every)
    size = options.out.stat().st_size
    print(f"{options.out}: {rows} rows in the {options.layout} layout, {size / 1e6:.1f} MB")
    if options.actions not in (None, "unit", "clip"):
        print("its actions are mapped to [-1, 1], as mbo2o reads them")


def _reference(options: argparse.Namespace) -> None:
    from mbo2o.collect.reference import measure_reference

    print(json.dumps(measure_reference(options.actor, options.env, options.episodes, options.seeds)))


def _collect(options: argparse.Namespace) -> None:
    from mbo2o.collect.play import collect_with_policy
    from mbo2o.collect.sac import collect_with_training
    from mbo2o.errors import UserError, at_least_one
    from mbo2o.store.whole import writing

    sizes = {x: getattr(options, x) for x in ("rows", "steps", "hidden", "batch")}
    at_least_one("data collect", **sizes)
    if options.seed < 0:
        raise UserError(f"data collect: --seed {options.seed} must not be negative")
    with writing(options.out):
        if options.policy is None:
            collect_with_training(options)
        else:
            collect_with_policy(options)


def add_to(commands: Any) -> None:
    """Declare `data` with its commands."""
    about = "List, fetch, inspect, check and collect datasets."
    example = "example: mbo2o data inspect my.hdf5"
    parser = commands.add_parser("data", help=about, description=about, epilog=example)
    data = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_known(data)
    _add_looks(data)
    _add_copy(data)
    _add_reference(data)
    _add_collect(data)


def _add_known(data: Any) -> None:
    add(data, "list", _list, "Datasets and actors known by name.", "mbo2o data list")
    p = add(
        data,
        "fetch",
        _fetch,
        "Download datasets of `mbo2o data list` and compare them with their sha256. A file that is there "
        "and right is not downloaded again, and an interrupted download goes on. With MBO2O_OFFLINE=1 the "
        "command says where to put the file instead.",
        "mbo2o data fetch d4rl/hopper-medium-v2 d4rl/hopper-medium-replay-v2",
    )
    p.add_argument("names", nargs="+", metavar="NAME")
    p = add(
        data,
        "where",
        _where,
        "Print the path of a dataset of `mbo2o data fetch`, also if the file is not there, so that you can "
        "put it there by hand: NAME.hdf5 in the folder `datasets` of $MBO2O_DATA, else of "
        "$XDG_DATA_HOME/mbo2o, else of ~/.local/share/mbo2o.",
        "mbo2o data where d4rl/hopper-medium-v2",
    )
    p.add_argument("name", metavar="NAME")


def _add_looks(data: Any) -> None:
    example = "mbo2o data inspect hopper-medium-replay-v5"
    p = add(data, "inspect", _inspect, "Show what a dataset holds.", example)
    p.add_argument("dataset", help="file, name or minari:ID")
    p.add_argument("--env", help="gymnasium id whose box `--actions env` takes (the file's own if not given)")
    _add_table(p)
    p.add_argument("--json", action="store_true")
    p = add(
        data,
        "check",
        _check,
        "Look for what harms learning: false next observations, hidden cuts, time limits stored as "
        "terminations and more. Say whether cloning, TD, dynamics and Monte-Carlo returns may use the data; "
        "the exit code is 1 if one of them must not.",
        "mbo2o data check my.hdf5\n"
        "  mbo2o data check my.hdf5 --env HalfCheetah-v5 --termination mytask:ends --json",
    )
    p.add_argument("dataset", help="file, name or minari:ID")
    p.add_argument(
        "--env", help="gymnasium id (the file's own if not given): its time limit, sizes and termination rule"
    )
    _add_table(p)
    p.add_argument(
        "--env-kwargs",
        default="{}",
        metavar="JSON",
        help="arguments that the environment is made with, as a run's env_kwargs",
    )
    p.add_argument(
        "--termination",
        default="auto",
        help="a rule's name or package.module:function, if not the environment's",
    )
    p.add_argument("--json", action="store_true")


def _add_copy(data: Any) -> None:
    p = add(
        data,
        "copy",
        _copy,
        "Write a dataset again: whole, or each K-th of its whole episodes; in the full layout of D4RL, which "
        "others read, or in a compact one, which only mbo2o reads and which leaves out each next observation "
        "that the row below holds.",
        "mbo2o data copy hopper-replay-v5 full.hdf5\n"
        "  mbo2o data copy my.hdf5 small.hdf5 --every 2 --layout compact",
    )
    p.add_argument("dataset", help="file, name or minari:ID")
    p.add_argument("out", type=Path, help="the new .hdf5 file")
    p.add_argument(
        "--every", type=int, default=1, metavar="K", help="keep each K-th episode, the best one too"
    )
    p.add_argument("--layout", choices=("full", "compact"), default="full")
    p.add_argument("--env", help="gymnasium id whose box `--actions env` takes (the file's own if not given)")
    _add_table(p)


def _add_reference(data: Any) -> None:
    p = add(
        data,
        "reference",
        _reference,
        "Measure the returns of random play and of an actor, which score 0 and 100: "
        "run.reference=[LOW,HIGH].",
        "mbo2o data reference data/actors/hopper-expert-v5.safetensors",
    )
    p.add_argument(
        "actor", metavar="ACTOR", type=Path, help="a file of `data collect`; its mean action is played"
    )
    p.add_argument("--env", help="gymnasium id (the actor's own if not given)")
    p.add_argument("--episodes", type=int, default=20, help="for each seed")
    p.add_argument("--seeds", type=int, default=5, help="of the starts")


def _add_collect(data: Any) -> None:
    p = add(
        data,
        "collect",
        _collect,
        "Make datasets: train SAC and keep its transitions and its policies, or play a policy that was kept.",
        "mbo2o data collect --env Hopper-v5 --steps 150000 --out my-hopper\n"
        "  mbo2o data collect --policy data/actors/hopper-medium-v5.safetensors --out hopper-medium.hdf5\n"
        "  mbo2o data collect --policy random --env Hopper-v5 --rows 20000 --out hopper-random.hdf5\n"
        "  mbo2o data collect --policy waypoint --env PointMaze_UMaze-v3 --noise 0.5 --out umaze-medium.hdf5",
    )
    p.add_argument(
        "--policy", help="an actor's file, `random`, or `waypoint` (PointMaze); without it SAC is trained"
    )
    p.add_argument("--env", help="gymnasium id (an actor knows its own)")
    p.add_argument("--out", required=True, type=Path, help="a .hdf5 file for --policy, a folder otherwise")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--rows", type=int, default=100_000, help="rows of each file but medium-replay")
    p.add_argument("--steps", type=int, default=150_000, help="environment steps of training")
    p.add_argument("--hidden", type=int, default=128, help="width of SAC's two hidden layers")
    p.add_argument("--lr", type=float, default=3e-4, help="SAC's learning rates")
    p.add_argument("--batch", type=int, default=256, help="SAC's batch size")
    p.add_argument("--engine", default="eager", help="of SAC's updates: eager or compiled")
    p.add_argument("--precision", default="fp32", help="of products in SAC's updates: fp32 or bf16")
    p.add_argument(
        "--medium",
        type=float,
        default=0.5,
        help="medium is the first policy at this share of the best return",
    )
    p.add_argument(
        "--medium-step", type=int, help="or name the step (an evaluated one) at which the policy is medium"
    )
    p.add_argument("--deterministic", action="store_true", help="play the mean action instead of a sample")
    p.add_argument(
        "--noise", type=float, default=0.0, help="of waypoint: deviation of the noise on actions in [-1, 1]"
    )
    p.add_argument(
        "--wander", type=float, default=0.0, help="of waypoint: share of episodes that head for another cell"
    )
