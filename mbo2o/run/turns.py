"""The clock of a run: it hands out turns, and between turns it logs, evaluates and saves."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from mbo2o.agents.base import Agent
from mbo2o.data.dataset import TransitionDataset
from mbo2o.envs.faults import EnvironmentFault
from mbo2o.progress import Progress, describe, tell
from mbo2o.run.beside import Pending
from mbo2o.run.config import RunConfig
from mbo2o.run.engine import Engine
from mbo2o.run.evaluate import Evaluator, Visited
from mbo2o.run.memory import Memory, Stateful
from mbo2o.run.watch import Divergence, Interrupted, Signals, Stopped
from mbo2o.run.world import Task, World
from mbo2o.types import Metrics, Source, UserError, form

GOES_ON = "the same command goes on from here"
Found = Mapping[str, Any] | Pending  # tensors or arrays by name, or the evaluation that will give them


class Line(NamedTuple):
    """A line of the log that is to be written."""

    place: dict[str, Any]
    what: Found
    said: str
    """What is shown before the values that are shown."""
    shown: tuple[str, ...]
    """The names of the values that are shown; none: it is not shown."""


class Run:
    """One training run in one directory: its turns, its world, its memory, and what may end it early.

    A recipe takes turns from `steps`, `interact` and `once`. A loop is known by the phase in which it is
    entered and by its order there. To resume, the recipe is simply run again: loops that were finished yield
    nothing, the unfinished one yields the turns that are left, and `track` restores what it is given. This
    sets three rules for recipes. The body of a loop depends only on its turn and on tracked objects. Whatever
    has an effect happens inside a turn. Networks are made before the loop that uses them.

    A run saves when it enters a loop, every `checkpoint_every` turns, and at its end, but never after the
    last turn of a loop: what a recipe does between two loops, such as making networks, is then repeated
    before any later turn.

    The run seeds the global generators of PyTorch, NumPy and Python and saves their states with its
    checkpoints; it does not restore the caller's at the end.
    """

    def __init__(
        self,
        directory: Path,
        cfg: RunConfig,
        task: Task,
        dataset: TransitionDataset | None = None,
        *,
        start_from: Path | None = None,
        look_only: bool = False,
        loggers: Sequence[str] = (),
    ):
        """Open `directory` for a new run, or for the rest of the one that it holds.

        start_from: another run's directory, whose finished offline phase is this run's past; several online
        phases can share one offline phase. look_only: restore networks, take no turn and write nothing;
        `Restored` is raised where the recipe would go on. loggers: what follows its log (`loggers.py`).
        """
        self.directory, self.cfg = directory, cfg
        self.world = World(task, cfg, dataset, self._warn)
        self.env, self.env_id, self.spec = self.world.env, self.world.env.id, self.world.spec
        self.online, self.reference = self.world.online, self.world.reference
        self.engine = Engine(task.engine, task.device)
        self.phase, self._order = "", 0
        self.turn = 0
        """Turns done in the current phase."""
        self._bar: Progress | None = None
        self._elapsed, self._since = 0.0, time.monotonic()
        self._owed = False  # an evaluation that was due before the last save, and interrupted
        self._evaluated = ("", -1)  # phase and turn of the last evaluation
        self._may_leave = False
        self.look: tuple[Callable[[Visited], Metrics], int] | None = None
        """What to measure on an agent's evaluation episodes, and with how many evaluations it is due; it is
        also due with those that begin a phase or end a loop."""
        self._look_only = look_only
        self._beside = self.world.beside(cfg.eval_workers, cfg.eval_episodes, task.seed)
        self._lines: list[Line] = []  # what waits for an evaluation before it
        self._lot = 1  # turns whose updates are made together
        # a turn is logged, evaluated or saved only if this divides it
        self._events = math.gcd(cfg.log_every, cfg.eval_every, cfg.checkpoint_every)
        # the updates of a turn that is over, and how many such turns wait
        self._waiting: tuple[Any, ...] = ()
        self.memory = Memory(directory, self.world, loggers, start_from=start_from, look_only=look_only)
        self._done = self.memory.done  # turns done of each loop, in the order they began
        self._traces = self.world.traces(directory) if cfg.traces and not look_only else None
        if self._traces is not None:
            self._traces.begin(self._total() if self._done else -1)
        self.divergence = Divergence(cfg.q_limit, self.world, self.memory, self._where)
        self.signals = Signals(self._where, self.world.faults)

    # ------------------------------------------------------------------ what recipes use

    @property
    def dataset(self) -> TransitionDataset:
        """The offline data, with the run's seed axis."""
        return self.world.dataset

    def track(self, **objects: Stateful) -> None:
        """Name what has to survive a restart; it is restored at once if the checkpoint has it.

        Every agent among them is evaluated; the one called `agent` is shown.
        """
        for name, x in objects.items():
            self.memory.track(name, f"{self.phase}.{name}", x)

    def steps(self, n: int, *breaks: int) -> Iterator[int]:
        """`n` turns of learning, numbered from 0.

        An engine may make the updates of several turns together. So that it does not do so across a turn in
        which the body looks at what was learned, or changes what is drawn, `breaks` says how often: in turns
        that one of these numbers divides.
        """
        every = (self.cfg.log_every, self.cfg.eval_every, self.cfg.checkpoint_every, *breaks)
        self._lot = self.engine.turns_at_once(*every)
        try:
            for t in self._loop(n):
                if any(t % every == 0 for every in breaks):
                    self._settle()
                yield t
        finally:
            self._lot = 1

    def interact(self, agent: Agent | None, n: int) -> Iterator[int]:
        """`n` turns, each of which begins with one environment step per seed; `agent=None` acts uniformly.

        The transition is in `online` when the turn is handed out.
        """
        self.check_scores(agent)
        explore = None if agent is None else functools.partial(self.engine.act, agent)
        for t in self._loop(n):
            try:
                act = self.world.act(explore)
                if agent is not None:
                    self.divergence.finite(act, "an action")
                ended = self.world.step(act, agent, f"at {self.phase} turn {self.turn + 1}")
            except EnvironmentFault as e:
                self._save()
                text = f"{e} at {self._where()}; saved, {GOES_ON}"
                raise EnvironmentFault(text) from e
            if ended is not None:
                self.write("episode", dict(zip(("return", "length"), ended, strict=True)))
            yield t

    def once(self, name: str) -> Iterator[None]:
        """One turn for a stage such as a model's first fit, which runs once; a signal leaves it unsaved."""
        key = f"{self.phase}.:{name}"
        if self._done.get(key, 0) == 0:
            self._go_live()
            self.signals.in_stage = True
            yield
            self.signals.in_stage = False
            self._done[key] = 1

    def learn(self, agent: Agent, source: Source, batch: int, updates: int = 1, **others: Agent) -> None:
        """Make `updates` updates of `agent` on batches of `batch` rows from `source`, and log their metrics.

        others: agents that learn from the same batches; their name stands before the names of their metrics.
        """
        asked = (source, batch, updates, {"": agent, **others})
        if self._waiting and not _same(asked, self._waiting[0]):
            self._settle()
        self._waiting = (asked, self._waiting[1] + 1 if self._waiting else 1)
        if self._lot == 1:
            self._settle()

    def _settle(self) -> None:
        """Make the updates that wait."""
        if self._waiting:
            (source, batch, updates, agents), turns = self._waiting
            self._waiting = ()
            for sums, count in self.engine.learn(source, batch, updates, agents, turns):
                self.memory.means.add(sums, count)

    def log(self, *metrics: Metrics) -> None:
        """Include metrics in the means of the next line; they stay on their device until then."""
        for m in metrics:
            self.memory.means.add(m)

    def write(self, kind: str, metrics: Mapping[str, Any]) -> None:
        """Write a line of its own, now."""
        self._put(self._place(kind), metrics, "model refitted: ", ("holdout_mse",) if kind == "model" else ())

    def say(self, text: str) -> None:
        """Show a line to the user."""
        tell(text)

    def imagined(self, largest: Tensor) -> None:
        """Note the largest |reward| `(*S,)` of transitions that a model has just generated for the agent."""
        self.world.meet(float(largest.max()), f"imagined at {self.phase} turn {self.turn + 1}")

    def check_scores(self, agent: Agent | None) -> None:
        """UserError for an agent that acts on scores where the reference knows none."""
        if agent is not None and agent.needs_scores and not self.reference.known:
            text = f"the agent steers by scores, and run.reference knows no returns of {self.env_id}"
            raise UserError(f"{text}: give two, random play's and a good policy's, as [LOW,HIGH]")

    # ------------------------------------------------------------------ what drives a run

    def enter(self, phase: str) -> None:
        """Begin a phase: `offline`, `switch` or `online`."""
        self.phase, self._order = phase, 0
        self.turn = sum(n for key, n in self._done.items() if key.startswith(f"{phase}.") and ":" not in key)
        if phase == "switch" and self.memory.repeating and all(k.startswith("offline.") for k in self._done):
            # the saved part ends here: networks made at the switch draw as they would without an interruption
            self._go_live()

    def evaluate(self, name: str = "agent", evaluator: Evaluator | None = None) -> Metrics:
        """Evaluate a tracked agent's deterministic policy, by default on the run's own episodes."""
        return self._play(self.memory.agents()[name], evaluator)

    def _play(self, agent: Agent, evaluator: Evaluator | None = None) -> Metrics:
        def policy(obs: Tensor) -> Tensor:
            if self.signals.stop and self._may_leave:
                raise Interrupted
            act = agent.act(obs).cpu()
            self.divergence.finite(act.numpy(), "an action")
            return act

        return self.world.evaluate(agent, policy, evaluator)

    def finish(self) -> None:
        """Save the end of the run."""
        if not self._look_only:
            self._go_live()
            self._save()
            self.close()

    def close(self) -> None:
        """Close files, and end the processes of evaluations."""
        self._beside.close()
        self.memory.close()

    # ------------------------------------------------------------------ turns

    def _loop(self, n: int) -> Iterator[int]:
        key = f"{self.phase}.{self._order}"
        self._order += 1
        first = self._done.get(key, 0)
        if first >= n:
            return
        self._go_live()
        entered = key in self._done
        if entered:  # a loop that was finished and got more turns: the phase's later stages happen again
            later = list(self._done)[list(self._done).index(key) + 1 :]
            self._done = {k: n for k, n in self._done.items() if k not in later or ":" not in k}
        self._done[key] = first
        before = self.turn - first  # turns of the phase's earlier loops
        self._bar = Progress(self.phase, self.turn, before + n)
        # A second loop of a phase begins with the policy that the first one's last evaluation has seen.
        if self._owed or not (entered or self._evaluated == (self.phase, self.turn)):
            self._evaluate_and_log()
        if not entered:
            self._save()
        for t in range(first, n):
            yield t
            self._done[key] = t + 1
            self.turn += 1
            self._bar.step()
            self._after_turn(last=t + 1 == n)
        self._bar.close()
        self._bar = None

    def _after_turn(self, last: bool) -> None:
        t, ends = self.turn, last or self.signals.stop
        if t % self._lot == 0 or ends:  # every event falls on such a turn
            self._settle()
        if t % self._events and not ends:
            return
        if t % self.cfg.log_every == 0 or last:
            self._log_means()
        if t % self.cfg.eval_every == 0 or last:
            self._evaluate_and_log(last)
        if last:
            return  # the next loop saves when it is entered, or the run at its end
        if self.signals.stop or t % self.cfg.checkpoint_every == 0:
            self._save()
        if self.signals.stop:
            raise Stopped(f"stopped at {self._where()}; {GOES_ON}")

    def _log_means(self) -> None:
        if means := self.memory.means.pop():
            self._put(self._place("train"), means)
            self.divergence.check(means)

    def _evaluate_and_log(self, last: bool = False) -> None:
        """Evaluate every tracked agent.

        If the run is to stop, or an environment fails for good, the turns so far are saved and the evaluation
        is owed: a restart begins with it. After the `last` turn of a loop nothing may be saved, so the
        evaluation is not left.
        """
        self._owed, self._may_leave = True, not last
        agents = self.memory.agents()
        take, every = (None if self.world.absent else self.look) or (None, 1)
        look = take is not None and (last or self.turn % (every * self.cfg.eval_every) == 0)
        ask = self._beside.ask
        found: list[Metrics | Pending] = []
        try:
            for name, agent in agents.items():  # a look is at episodes that are played here
                beside = None if look else ask(agent, self.world.rewards)
                found.append(beside or self.evaluate(name))
                if beside is None and self._traces is not None:
                    self._traces.keep(self._place(_kind(name)), agent, self.world.played())
            self._may_leave = False
        except Interrupted as e:
            self._save()
            raise Stopped(f"stopped at {self._where()}; {GOES_ON}") from e
        except EnvironmentFault as e:
            if not last:
                self._save()
            again = "the same command goes on from the last checkpoint" if last else GOES_ON
            raise EnvironmentFault(f"{e} in the evaluation at {self._where()}; {again}") from e
        self._owed = False
        self._evaluated = (self.phase, self.turn)
        shown = ("return", self.reference.metric, "success", "length", "fqe", "model_value")
        for name, x in zip(agents, found, strict=True):
            own = name == "agent"
            self._put(self._place(_kind(name)), x, "", shown if own else ())
        if take is not None and look:  # the first turn of a phase is 0
            self._put(self._place("coverage"), take(self.world.visited()))

    def _put(self, place: dict[str, Any], what: Found, said: str = "", shown: tuple[str, ...] = ()) -> None:
        """Write a line of the log, in its turn, and then show some of its values."""
        self._lines.append(Line(place, what, said, shown))
        self._flush()

    def _flush(self, wait: bool = False) -> None:
        """Write the lines that wait; those behind an evaluation that goes on only with `wait`."""
        while self._lines:
            line = self._lines[0]
            if isinstance(line.what, Pending) and not (wait or line.what.worker.answered()):
                return
            del self._lines[0]
            metrics = self._result(line) if isinstance(line.what, Pending) else line.what
            values = self.memory.write(line.place, metrics)
            if line.shown and self._bar is not None:
                self._bar.say(line.said + describe(values, line.shown), line.place["step"])

    def _result(self, line: Line) -> Metrics:
        """What an evaluation beside training found; it is played again here if the process could not tell."""
        assert isinstance(line.what, Pending)
        result = line.what.result()
        if result is not None:
            if self._traces is not None:
                self._traces.keep(line.place, line.what.agent, result[1])
            return self.world.scored(result[0])
        self.say("a process of run.eval_workers failed in an evaluation: the run plays it itself")
        agent = line.what.agent.to(self.spec.device)
        agent.spec = self.spec
        try:
            metrics = self._play(agent)
            if self._traces is not None:
                self._traces.keep(line.place, agent, self.world.played())
            return metrics
        except EnvironmentFault as e:
            place = f"{line.place['phase']} turn {line.place['step']}"
            text = f"{e} in the evaluation at {place}; the same command goes on from the last checkpoint"
            raise EnvironmentFault(text) from e

    def _go_live(self) -> None:
        """Restore clock, random streams and episodes before the first turn that is new."""
        clock = self.memory.resume()
        if clock is not None:
            self._elapsed, self._since = clock["elapsed"], time.monotonic()
            self._owed = clock.get("owed", False)

    def _save(self) -> None:
        self.signals.turn_done()
        self._flush(wait=True)
        self.divergence.check(self.memory.means.peek())  # a checkpoint is what a restart begins with
        self.memory.save({"done": self._done, "owed": self._owed, "elapsed": self._seconds()})

    def _seconds(self) -> float:
        return self._elapsed + time.monotonic() - self._since

    def _where(self) -> str:
        return f"{self.phase} turn {self.turn}"

    def _place(self, kind: str) -> dict[str, Any]:
        """What every line of the log begins with: what it is, and where in the run."""
        seconds = round(self._seconds(), 3)
        return {"kind": kind, "phase": self.phase, "step": self.turn, "total": self._total(), "time": seconds}

    def _total(self) -> int:
        """The turns of all loops so far."""
        return sum(n for key, n in self._done.items() if ":" not in key)

    def _warn(self, text: str) -> None:
        self.say(f"warning: {text}")
        if not self._look_only:
            self._put({**self._place("fault"), "what": text}, {})


def _kind(agent: str) -> str:
    """What lines of the log on evaluations of a tracked agent are called."""
    return "eval" if agent == "agent" else f"eval-{agent}"


def _same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    """Whether two turns ask for the same updates: source, rows of a batch, updates, agents."""
    rows = a[1] * a[2]
    return a[1:] == b[1:] and form(a[0], rows) == form(b[0], rows)
