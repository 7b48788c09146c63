"""Imagined transitions for each second, from 50 000 states at a time into the buffer, beside mbrl's."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench.measure import Options, Rate, one_core, repeated
from bench.update import chosen, compare, dataset
from bench.works import BATCH, ELITES, HORIZON, MEMBERS, ROLLOUTS, STARTS, Rollout
from mbo2o.agents.sac import SACConfig
from mbo2o.dynamics.model import DynamicsConfig
from mbo2o.recipes.mopo import MOPO, MOPOConfig
from mbo2o.run.config import RunConfig
from mbo2o.run.engine import EngineConfig
from mbo2o.run.turns import Run
from mbo2o.run.world import Task
from mbo2o.training import keep_memory

ENV = "HalfCheetah-v5"


def main(options: Options) -> None:
    """Measure the rollouts of `options.only`, or all, and print and keep each as soon as it is done."""
    keep_memory()
    engines = options.engines()
    with one_core(), tempfile.TemporaryDirectory() as folder:
        for name, work in chosen(options, ROLLOUTS).items():
            ours = [(cfg, *started(work, cfg, options, Path(folder))) for cfg in engines]
            compare(name, work, "transitions/s", ours, options)


def started(work: Rollout, cfg: EngineConfig, options: Options, folder: Path) -> tuple[Rate, float]:
    """The rate of the rollouts that MOPO makes, and the seconds of the first one."""
    start = time.monotonic()
    task = Task(ENV, 0, options.seeds, 0.99, options.device, engine=cfg)
    run = Run(Path(tempfile.mkdtemp(dir=folder)), RunConfig(online_capacity=1), task, dataset())
    recipe = MOPO(
        MOPOConfig(
            agent=SACConfig(),
            dynamics=DynamicsConfig(members=MEMBERS, elites=ELITES),
            termination="none",
            batch=BATCH,
        )
    )
    recipe.make(run)
    recipe.remember(run, STARTS * HORIZON, STARTS, "data")

    def step() -> None:
        recipe.imagine(run, run.dataset, STARTS, work.coef, HORIZON)

    step()
    rate = repeated(step, STARTS * HORIZON * options.seeds, options.device)
    return rate, time.monotonic() - start
