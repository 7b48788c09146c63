"""Learning steps per second by engine and precision, for agents and the dynamics model, in one process."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mbo2o.agents import AgentConfig, make_agent
from mbo2o.agents.cql import CQLConfig
from mbo2o.agents.iql import IQLConfig
from mbo2o.agents.redq import REDQConfig
from mbo2o.agents.sac import SACConfig
from mbo2o.agents.td3bc import TD3BCConfig
from mbo2o.dynamics.fit import FitConfig, Learner
from mbo2o.dynamics.model import DynamicsConfig, GaussianDynamics
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.registry import find
from mbo2o.run.engine import Engine, EngineConfig
from mbo2o.types import Batch, Spec, uniform_actions

OBS, ACT, BATCH = 17, 6, 256  # HalfCheetah
DEEP = MLPConfig(hidden=[256, 256, 256])
WORKS: dict[str, AgentConfig | DynamicsConfig] = {
    "TD3+BC, 2x256": TD3BCConfig(),
    "IQL, 2x256": IQLConfig(),
    "SAC, 2 critics, 2x256": SACConfig(),
    "SAC, 10 critics, 3x256": SACConfig(critics=10, actor=DEEP, critic=DEEP),
    "REDQ, 10 critics, 2x256, actor every 4th": REDQConfig(policy_delay=4),
    "CQL, 2 critics, 3x256, 3x10 actions": CQLConfig(actor=DEEP, critic=DEEP),
    "dynamics, 7 members, 4x200": DynamicsConfig(),
}
"""Learning steps on batches of 256 rows, with one seed."""
ENGINES = (EngineConfig(), EngineConfig("compiled"), EngineConfig("compiled", "bf16"))
SECONDS = 1.0
"""About how long a measurement takes."""


def bench_engines(rounds: int = 5, works: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Median steps per second of CPU time for each work and engine, with one thread.

    The engines take turns in each round. `start` are the CPU seconds of an engine's first steps, in which it
    translates what it compiles.
    """
    torch.set_num_threads(1)
    results = []
    for work in works or WORKS:
        cfg = find(WORKS, work, "work")
        steps, starts = [], []
        for engine in ENGINES:
            begin = time.process_time()
            steps.append(_prepared(cfg, engine))
            starts.append(time.process_time() - begin)
        n = [max(1, round(SECONDS / _seconds(step, 2))) for step in steps]
        took: list[list[float]] = [[] for _ in steps]
        for _ in range(rounds):
            for k, step in enumerate(steps):
                took[k].append(_seconds(step, n[k]))
        for engine, start, seconds in zip(ENGINES, starts, took, strict=True):
            name = {"work": work, "engine": engine.mode, "precision": engine.precision}
            results.append(name | {"rate": 1 / statistics.median(seconds), "start": start})
            print(json.dumps(results[-1]), flush=True)
    return results


def print_engines(rounds: int = 5, out: Path | None = None) -> None:
    """Print a line of JSON for each result of `bench_engines`; `out` gets all of them."""
    results = bench_engines(rounds)
    if out is not None:
        out.write_text("".join(json.dumps(r) + "\n" for r in results))


def _prepared(cfg: AgentConfig | DynamicsConfig, engine: EngineConfig) -> Callable[[], object]:
    """One learning step of new networks, after as many steps as an engine needs to meet all of its forms."""
    torch.manual_seed(0)
    spec, runner = Spec(OBS, ACT, (1,)), Engine(engine)
    step = _fitting(cfg, spec, runner) if isinstance(cfg, DynamicsConfig) else _updating(cfg, spec, runner)
    for _ in range(2 + 2 * getattr(cfg, "policy_delay", 1)):
        step()
    return step


def _updating(cfg: AgentConfig, spec: Spec, engine: Engine) -> Callable[[], object]:
    agent = make_agent(replace(cfg), spec)
    obs, next_obs = torch.randn(2, 1, BATCH, OBS)
    act = uniform_actions(1, BATCH, ACT)
    batch = Batch(obs, act, torch.randn(1, BATCH), next_obs, torch.zeros(1, BATCH))
    return lambda: engine.update(agent, batch)


def _fitting(cfg: DynamicsConfig, spec: Spec, engine: Engine) -> Callable[[], object]:
    learner = Learner(GaussianDynamics(spec, cfg), FitConfig(), engine.prepare)
    x, y = torch.randn(1, cfg.members, BATCH, OBS + ACT), torch.randn(1, cfg.members, BATCH, OBS + 1)
    return lambda: learner.step(x, y)


def _seconds(step: Callable[[], object], n: int) -> float:
    """CPU seconds for each of `n` steps."""
    begin = time.process_time()
    for _ in range(n):
        step()
    return (time.process_time() - begin) / n
