"""The cost of an update of ten critics when there are many updates for each environment step."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from mbo2o.agents import Agent, make_agent
from mbo2o.agents.redq import REDQConfig
from mbo2o.agents.sac import SACConfig
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.run.engine import Engine
from mbo2o.types import Batch, Spec, uniform_actions

OBS, ACT, BATCH = 17, 6, 256  # HalfCheetah
CRITIC = MLPConfig(layer_norm=True)
UPDATES = (1, 4, 20)


def bench_agents(rounds: int = 5) -> list[dict[str, Any]]:
    """Median CPU milliseconds of a critic update: SAC, and REDQ with G updates for each of its actor's.

    The agents take turns, with one thread. REDQ's target asks two of its ten critics. `all` takes the
    smallest of all ten, as SAC-N does.
    """
    torch.set_num_threads(1)
    agents: dict[tuple[str, int], Agent] = {("sac, 2 critics", 1): _make(SACConfig(critic=CRITIC))}
    for g in UPDATES:
        agents["redq, 10 critics", g] = _make(REDQConfig(critic=CRITIC, policy_delay=g))
    agents["all, 10 critics", max(UPDATES)] = _make(
        REDQConfig(critic=CRITIC, policy_delay=max(UPDATES), target="min_q")
    )
    took: dict[tuple[str, int], list[float]] = {key: [] for key in agents}
    for _ in range(rounds + 1):  # the first allocates
        for key, agent in agents.items():
            took[key].append(_milliseconds(agent, max(UPDATES)))
    return [{"agent": name, "utd": g, "ms": statistics.median(ms[1:])} for (name, g), ms in took.items()]


def print_agents(rounds: int = 5, out: Path | None = None) -> None:
    """Print `bench_agents` as a table; `out` gets one line of JSON for each result."""
    results = bench_agents(rounds)
    print(f"{'CPU ms per critic update, 1 thread, 2x256, batch 256':54}{'G':>4}{'ms':>8}")
    for r in results:
        print(f"{r['agent']:54}{r['utd']:4}{r['ms']:8.1f}")
    if out is not None:
        out.write_text("".join(json.dumps(r) + "\n" for r in results))


def _make(cfg: SACConfig) -> Agent:
    return make_agent(cfg, Spec(OBS, ACT))


def _milliseconds(agent: Agent, updates: int) -> float:
    obs, next_obs = torch.randn(2, BATCH, OBS)
    batch = Batch(obs, uniform_actions(BATCH, ACT), torch.randn(BATCH), next_obs, torch.zeros(BATCH))
    engine = Engine()
    start = time.process_time()
    for _ in range(updates):
        engine.update(agent, batch)
    return (time.process_time() - start) / updates * 1000
