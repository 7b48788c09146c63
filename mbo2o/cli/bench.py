"""The commands `bench update`, `rollout`, `data`, `turn`, `start` and `plan`, which a checkout has."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from mbo2o.cli.command import add, folder
from mbo2o.cli.study import of_checkout

ONE_CORE = "All take turns on one core, with one thread, by CPU time."


def _measure(what: str, options: argparse.Namespace) -> None:
    given = {name: x for name, x in vars(options).items() if name not in ("run", "typed")}
    of_checkout(f"bench.{what}").main(of_checkout("bench.measure").Options(**given))


def add_to(commands: Any) -> None:
    """Declare `bench` with its commands."""
    about = "Measure speed, on the works of this repository's tables."
    example = "example: mbo2o bench update --peers --json data/results/bench-update.json"
    parser = commands.add_parser("bench", help=about, description=about, epilog=example)
    kinds = parser.add_subparsers(required=True, metavar="COMMAND")
    _add(
        kinds,
        "update",
        f"Learning steps per second of agents and of the dynamics, by engine and precision. {ONE_CORE}",
        "mbo2o bench update --peers --json data/results/bench-update.json\n"
        "  mbo2o bench update --only sac-2 cql --engine compiled --precision bf16",
        engine=True,
        peers="sbx, Stable-Baselines3, d3rlpy and mbrl",
    )
    _add(
        kinds,
        "rollout",
        f"Imagined transitions per second, by engine and precision. {ONE_CORE}",
        "mbo2o bench rollout --peers --json data/results/bench-rollout.json",
        engine=True,
        peers="mbrl",
    )
    _add(
        kinds,
        "data",
        f"Batches per second of a dataset, a buffer, and mixtures. {ONE_CORE}",
        "mbo2o bench data --peers --json data/results/bench-data.json",
        peers="Stable-Baselines3 and d3rlpy",
    )
    _add(
        kinds,
        "turn",
        f"Turns of a run that learns nothing, beside the environment's own step, on Hopper. {ONE_CORE}",
        "mbo2o bench turn --json data/results/bench-turn.json",
    )
    _add(
        kinds,
        "start",
        "Seconds that commands take before anything is learned.",
        "mbo2o bench start --json data/results/bench-start.json",
        works=False,
    )
    _add(
        kinds,
        "plan",
        "Returns of planning in learned models, beside the true dynamics and mbrl's CEM, and plans per "
        "second; with --runs returns of a run's policy, of planning, and of both.",
        "mbo2o bench plan --json data/results/bench-plan.json\n"
        "  mbo2o bench plan --runs runs/moore-hopper --episodes 5 --json data/results/bench-plan.json",
        engine=True,
    )
    p = kinds.choices["plan"]
    p.add_argument("--runs", nargs="+", type=folder, default=[], metavar="RUN", help="of mopo, moore or mbpo")
    p.add_argument("--episodes", type=int, default=5, help="for each seed of a run")


def _add(
    kinds: Any,
    name: str,
    text: str,
    example: str,
    *,
    engine: bool = False,
    peers: str = "",
    works: bool = True,
) -> None:
    """Declare one command, with the options that make sense for it.

    works: whether it is of work that goes on for some seconds, on a device, for some seeds.
    """
    p = add(kinds, name, partial(_measure, name), text, example)
    p.add_argument("--rounds", type=int, default=5, help="turns of each; medians are shown")
    p.add_argument(
        "--json", type=Path, metavar="F", help="put the results into this file; works not measured now stay"
    )
    p.add_argument("--only", nargs="+", default=[], metavar="NAME", help="measure only these works")
    if works:
        p.add_argument("--seconds", type=float, default=1.0, help="of work in each turn")
        p.add_argument("--device", default="cpu")
        p.add_argument("--seeds", type=int, default=1, help="side by side in one process")
    if engine:
        p.add_argument("--engine", nargs="+", default=[], metavar="E", help="if not given, all that run here")
        p.add_argument("--precision", nargs="+", default=[], metavar="P", help="if not given, fp32 and bf16")
    if peers:
        p.add_argument(
            "--peers",
            action="store_true",
            help=f"also {peers}, installed once into a folder of the cache that may be deleted",
        )
