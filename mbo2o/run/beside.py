"""Evaluations beside training: other processes play the episodes while the run goes on learning."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from mbo2o.agents.base import Agent
from mbo2o.envs.faults import Faults
from mbo2o.envs.worker import Unsendable, Worker
from mbo2o.progress import tell
from mbo2o.run.evaluate import Evaluator
from mbo2o.types import Metrics, RewardView
from mbo2o.verify.traces import Played


def alone(agent: Agent) -> Agent:
    """A copy of an agent on the CPU, as it is at this moment; it refers to nothing of the run."""
    twin = copy.deepcopy(agent).cpu()
    twin.spec = replace(agent.spec, device="cpu", inits=())
    return twin


@dataclass(frozen=True)
class Pending:
    """An evaluation that a process has been asked for."""

    agent: Agent
    """A copy of the agent, which does not change."""
    worker: Worker

    def result(self) -> tuple[Metrics, Played] | None:
        """The evaluation's metrics and its episodes; None if the process could not tell."""
        found: tuple[Metrics, Played] | None = self.worker.answer()
        return found


class Beside:
    """The processes of a run, each of which is started when it is needed first."""

    def __init__(self, n: int, seconds: float | None, *evaluator: Any):
        """`n` processes, whose evaluators are made with these arguments; `seconds`: see `Faults`."""
        self._n, self._seconds, self._make = n, seconds, Player(evaluator)
        self._workers: list[Worker] = []

    def ask(self, agent: Agent, rewards: RewardView) -> Pending | None:
        """Have the agent of this moment evaluated; None if no process is free, and the run has to do it."""
        worker = next((x for x in self._workers if not x.busy), None)
        if worker is None and len(self._workers) < self._n:
            worker = Worker(self._make, self._seconds)
            self._workers.append(worker)
        if worker is None:
            return None
        twin = alone(agent)
        try:
            worker.ask(twin, rewards)
        except (Unsendable, AttributeError, TypeError):  # a class that no other process can import
            self.close()
            self._n = 0
            tell(
                "run.eval_workers: other processes cannot import this agent; the run plays evaluations itself"
            )
            return None
        return Pending(twin, worker)

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.close()
        self._workers = []


class Player:
    """What a process does with an agent: it plays whole episodes, and gives metrics and episodes."""

    def __init__(self, evaluator: tuple[Any, ...]):
        """`evaluator`: the arguments of an `Evaluator`."""
        self._arguments = evaluator

    def __call__(self, faults: Faults) -> Callable[[Agent, RewardView], tuple[Metrics, Played]]:
        """The function that plays, with environments of its own."""
        make: Callable[..., Evaluator] = Evaluator
        evaluator = make(*self._arguments, faults=faults)

        def play(agent: Agent, rewards: RewardView) -> tuple[Metrics, Played]:
            def policy(obs: Tensor) -> Tensor:
                act = agent.act(obs)
                if not np.isfinite(act.numpy()).all():
                    raise ArithmeticError("an action is not finite")
                return act

            agent.eval()  # no dropout
            return evaluator(policy, agent.value, rewards), evaluator.played()

        return play
