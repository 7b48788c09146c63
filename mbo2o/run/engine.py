"""How updates are run: draw batches, tell each agent which update it makes, keep the metrics."""

from __future__ import annotations

from collections.abc import Iterator
from weakref import WeakKeyDictionary

from mbo2o.agents.base import Agent
from mbo2o.types import Batch, Metrics, Source, Step


class Engine:
    """Runs the updates of agents and counts them.

    The count lies in the agent, as the tensor `updates` that its state holds. The engine remembers it as a
    number too, so that the device is not asked in every update; what else writes the tensor, such as a
    checkpoint, is noticed.
    """

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Agent, tuple[int, int]] = WeakKeyDictionary()

    def update(self, agent: Agent, batch: Batch) -> Metrics:
        """Make one update of `agent` on a batch `(*S, B, ...)`; returns its metrics, `(*S,)` each."""
        return agent.update(batch, self._next(agent))

    def learn(self, source: Source, n: int, updates: int, agents: dict[str, Agent]) -> Iterator[Metrics]:
        """Make `updates` updates of every agent on batches of `n` rows; yields the metrics of each in turn.

        The rows of all updates are drawn at once and dealt out, so that exact shares are exact in each batch.
        A source that learns, by a method `learn(batch) -> Metrics`, is asked for one batch at a time, and
        learns from each batch after the agents.

        agents: by the prefix of their metrics' names; "" is no prefix. All learn from the same batches.
        """
        teach = getattr(source, "learn", None)
        if teach is None:
            for batch in source.sample(n * updates).deal(updates):
                yield from self._update_all(batch, agents)
            return
        for _ in range(updates):
            batch = source.sample(n)
            yield from self._update_all(batch, agents)
            yield teach(batch)

    def _update_all(self, batch: Batch, agents: dict[str, Agent]) -> Iterator[Metrics]:
        for name, agent in agents.items():
            metrics = self.update(agent, batch)
            yield {f"{name}_{key}": x for key, x in metrics.items()} if name else metrics

    def _next(self, agent: Agent) -> Step:
        """Count an update of `agent`, and tell it which one it is."""
        count = agent.updates
        begun, version = self._known.get(agent, (0, -1))
        if version != count._version:  # written by something else since, or never seen
            begun = int(count)
        count.add_(1)
        self._known[agent] = (begun + 1, count._version)
        return Step(begun % agent.cycle, count)
