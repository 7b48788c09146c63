"""Learning steps for each second: ours by engine and precision, those of peers, and the products alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.floor import Net, floor
from bench.measure import Options, Rate, Row, clock, in_turns, keep, one_core, repeated, result, show
from bench.peers.processes import make_ready, opened
from bench.works import ACT, BATCH, OBS, WORKS, Rollout, Work
from mbo2o.agents import make_agent
from mbo2o.data.dataset import TransitionDataset
from mbo2o.dynamics.fit import FitConfig, Learner, fit
from mbo2o.dynamics.model import DynamicsConfig, GaussianDynamics
from mbo2o.registry import find
from mbo2o.run.engine import Engine, EngineConfig
from mbo2o.run.log import Means
from mbo2o.training import keep_memory
from mbo2o.types import Spec

ROWS = 100_000
STRIDE = 40
"""Updates that are asked for at once on a GPU, which then waits for the host once in so many; a multiple of
every delay.
"""


def main(options: Options) -> None:
    """Measure the works of `options.only`, or all, and print and keep each as soon as it is done."""
    keep_memory()
    engines, works = options.engines(), chosen(options, WORKS)
    if options.peers:
        make_ready(peer for work in works.values() for peer in work.peers)
    with one_core():
        for name, work in works.items():
            ours = [(cfg, *started(work, cfg, options)) for cfg in engines]
            compare(name, work, "seed updates/s", ours, options)


def chosen(options: Options, works: Mapping[str, Any]) -> dict[str, Any]:
    """The works that were asked for. UserError for a name that is not among `works`."""
    return {name: find(dict(works), name, "work") for name in options.only or works}


def compare(
    name: str,
    work: Work | Rollout,
    unit: str,
    ours: Sequence[tuple[EngineConfig, Rate, float]],
    options: Options,
) -> None:
    """Let ours and the peers of a work take turns; print and keep what was found."""
    rows: list[Row] = [
        {"who": "mbo2o", "engine": cfg.mode, "precision": cfg.precision, "start": round(start, 2)}
        for cfg, _, start in ours
    ]
    with opened(work.peers if options.peers else (), name) as peers:
        rows += [{"who": x.who, "precision": x.precision} for x in peers]
        rates = [rate for _, rate, _ in ours] + [x.rate for x in peers]
        for row, found in zip(rows, in_turns(rates, options.rounds, options.seconds), strict=True):
            row["rates"] = found
    units = work.rows if isinstance(work, Rollout) else 1
    measured = result(rows, options, unit, floors=floors(work.nets, units, options))
    show(work.title, measured)
    keep(options.json, name, measured)


def floors(nets: Sequence[Net], units: int, options: Options) -> dict[str, float]:
    """Units of work for each CPU second that the matrix products alone would allow, by precision."""
    if options.device != "cpu":
        return {}
    return {p: float(f"{units / floor(nets, p):.5g}") for p in ("fp32", "bf16")}


def started(work: Work, cfg: EngineConfig, options: Options) -> tuple[Rate, float]:
    """The rate of learning steps of new networks, and the seconds of the first ones.

    The first steps are as many as an engine needs to meet, and so to translate, all forms of an update.
    """
    torch.manual_seed(0)
    spec, engine = Spec(OBS, ACT, (options.seeds,), options.device), Engine(cfg, options.device)
    start = time.monotonic()
    if isinstance(work.cfg, DynamicsConfig):
        rate = fitting(work.cfg, spec, engine)
        rate(1e-3)
    else:
        turns = 1 if torch.device(options.device).type == "cpu" else STRIDE // work.utd
        step, updates = updating(work, spec, engine, turns), turns * work.utd
        for _ in range(2 + -(-2 * getattr(work.cfg, "policy_delay", 1) // updates)):
            step()
        rate = repeated(step, updates * options.seeds, options.device)
    return rate, time.monotonic() - start


def updating(work: Work, spec: Spec, engine: Engine, turns: int) -> Callable[[], None]:
    """A call learns as so many turns of a run do: draws rows of a dataset, updates, and keeps the metrics."""
    assert not isinstance(work.cfg, DynamicsConfig)
    data = dataset().to(spec.device).with_seeds(spec.seeds)
    agent = make_agent(replace(work.cfg), spec)
    agent.prepare(data)
    means = Means()

    def step() -> None:
        for sums, count in engine.learn(data, BATCH, work.utd, {"": agent}, turns):
            means.add(sums, count)

    return step


class _Enough(Exception):
    """The time is up."""


class _Timed(Learner):
    """A learner that ends a fit when its time is up. Its steps include the draw of the rows before them."""

    def limit(self, seconds: float, device: str) -> None:
        """Count from the next step on."""
        self._now, self._seconds, self._start = clock(device), seconds, 0.0
        self.steps, self.took = -1, 0.0

    def step(self, x: Tensor, y: Tensor) -> None:
        """One step; the first one is not timed, because what came before it was no step."""
        super().step(x, y)
        self.steps += 1
        now = self._now()
        self._start = self._start if self.steps else now
        self.took = now - self._start
        if self.steps and self.took >= self._seconds:
            raise _Enough


def fitting(cfg: DynamicsConfig, spec: Spec, engine: Engine) -> Rate:
    """The rate of the steps of a fit, from the draw of the rows to the optimiser's step."""
    rows = dataset().to(spec.device).with_seeds(spec.seeds)
    how = FitConfig(batch=BATCH, min_updates=10**9, max_updates=10**9, epoch_updates=10**9)
    model = GaussianDynamics(spec, cfg)
    learner = _Timed(model, how, engine.prepare)

    def rate(seconds: float) -> float:
        learner.limit(seconds, spec.device)
        try:
            fit(model, [(rows, 1.0)], how, learner)
        except _Enough:
            return learner.steps * int(np.prod(spec.seeds, dtype=int)) / learner.took
        raise RuntimeError("the fit ended before its time")

    return rate


@cache
def dataset() -> TransitionDataset:
    """Rows of a smooth made-up task, in episodes of a thousand steps."""
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((ROWS, OBS), dtype=np.float32)
    act = rng.uniform(-1, 1, (ROWS, ACT)).astype(np.float32)
    next_obs = obs + 0.1 * np.tanh(np.roll(obs, 1, axis=1) + act.mean(1, keepdims=True))
    no = np.zeros(ROWS, dtype=bool)
    return TransitionDataset.from_arrays(obs, act, next_obs[:, 0], no, ~no, next_obs)
