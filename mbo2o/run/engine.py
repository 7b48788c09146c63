"""How an agent's updates are run: draw a batch, update, keep the metrics."""

from __future__ import annotations

from collections.abc import Iterator

from mbo2o.agents.base import Agent
from mbo2o.types import Batch, Metrics, Source


def learn(source: Source, n: int, updates: int, agents: dict[str, Agent]) -> Iterator[Metrics]:
    """Make `updates` updates of every agent on batches of `n` rows; yields the metrics of each, one after the other.

    The rows of all updates are drawn at once and dealt out, so that exact shares in the draw are exact in each batch.
    A source that learns, by a method `learn(batch) -> Metrics`, is asked for one batch at a time, and learns from
    each batch after the agents.
    agents: by the prefix of their metrics' names; "" for none. All of them learn from the same batches.
    """
    teach = getattr(source, "learn", None)
    if teach is None:
        for batch in source.sample(n * updates).deal(updates):
            yield from _update(batch, agents)
        return
    for _ in range(updates):
        batch = source.sample(n)
        yield from _update(batch, agents)
        yield teach(batch)


def _update(batch: Batch, agents: dict[str, Agent]) -> Iterator[Metrics]:
    for name, agent in agents.items():
        metrics = agent.update(batch)
        yield {f"{name}_{key}": x for key, x in metrics.items()} if name else metrics
