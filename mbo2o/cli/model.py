"""The commands about learned models: `model fit` and `model check`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mbo2o.cli.command import add


def _fit(options: argparse.Namespace) -> None:
    import torch

    from mbo2o.model.fitting import fit_dynamics, settings

    cfg = settings(options.settings)
    torch.set_num_threads(cfg.threads)
    fit_dynamics(options.data, cfg, options.out, print)
    print(f"\n{(options.out / 'README.md').read_text()}\nmodel and page: {options.out}")


def _check(options: argparse.Namespace) -> None:
    from mbo2o.model.checking import check_model
    from mbo2o.model.dynamics import load_dynamics

    dynamics = load_dynamics(options.model, options.seed)
    found = check_model(dynamics, options.env, episodes=options.episodes, steps=options.steps)
    print(found.text(options.error, options.coverage))


def add_to(commands: Any) -> None:
    """Declare `model` with its commands."""
    about = "Fit a dynamics model without an agent, and compare one with its task."
    parser = commands.add_parser(
        "model", help=about, description=about, epilog="example: mbo2o model fit my.hdf5 --out my-model"
    )
    model = parser.add_subparsers(required=True, metavar="COMMAND")
    p = add(
        model,
        "fit",
        _fit,
        "Fit a dynamics model to a dataset and measure it on episodes that the fit never saw.",
        "mbo2o model fit hopper-medium-replay-v5 --out my-model\n"
        "  mbo2o model fit my.hdf5 --out my-model env=Pendulum-v1 dynamics.members=5 fit.max_updates=5000",
        "Settings are those of `mbo2o.model.fitting.ModelConfig`, as KEY=VALUE. The page is README.md in the "
        "folder: errors and coverage by dimension and by depth, the check of the data, and how the "
        "termination rule agrees with them.",
    )
    p.add_argument("data", help="file, name or minari:ID")
    p.add_argument("settings", nargs="*", default=[], metavar="KEY=VALUE")
    p.add_argument("--out", required=True, type=Path, metavar="FOLDER")
    p = add(
        model,
        "check",
        _check,
        "Compare a model's rollouts with the real task, from the same starts and with the same actions.",
        "mbo2o model check my-model --env Hopper-v5",
        "Prints errors and coverage by depth, and the depth to which the model is to be trusted.",
    )
    p.add_argument("model", type=Path, help="a run, or a folder of `model fit`")
    p.add_argument("--env", help="gymnasium id (the model's own if not given)")
    p.add_argument("--seed", type=int, default=0, help="which seed of a run")
    p.add_argument("--episodes", type=int, default=20)
    p.add_argument("--steps", type=int, default=200, help="at most, of each episode")
    p.add_argument("--error", type=float, default=0.5, help="that is trusted, in deviations of the data")
    p.add_argument("--coverage", type=float, default=0.8, help="of 90 %% intervals that is trusted")
