"""Time belongs to the run: it hands out turns, and between turns it logs, evaluates and saves."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mbo2o.agents.base import Agent
from mbo2o.data.buffer import ReplayBuffer
from mbo2o.data.dataset import TransitionDataset
from mbo2o.envs import streams
from mbo2o.envs.disturb import DisturbConfig
from mbo2o.envs.faults import EnvironmentFault, Faults
from mbo2o.envs.lanes import Lanes
from mbo2o.envs.layouts import about
from mbo2o.envs.make import CAP, EnvChoice
from mbo2o.envs.scores import Reference, find_reference
from mbo2o.run import engine
from mbo2o.run.evaluate import Evaluator
from mbo2o.run.log import Means, MetricsFile, Progress, describe, tell
from mbo2o.store import checkpoint
from mbo2o.types import Diverged, Metrics, Source, Spec, UserError, at_least_one

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Ask a run to save and stop: a scheduler's, Ctrl-C, and the one that SLURM sends some time before (--signal=USR1@60)."""
PATIENCE = 8.0
"""Seconds that a turn has to come to its end after a signal."""
LONGEST = 1e5
"""Steps that a value sums at most when the limit on |Q| is guessed: a discount of 1 sets no bound."""


@dataclass
class RunConfig:
    """When to look, when to save."""

    log_every: int = 500  # turns between lines of training metrics (means over those turns)
    eval_every: int = 1000  # turns between evaluations; phases also start and end with one
    eval_episodes: int = 5  # per seed, always the same starts, deterministic policy
    checkpoint_every: int = 5000  # turns between checkpoints; entering a loop is one, too
    reference: Any = "mbo2o-v5"  # what scores 0 and 100: that set, d4rl-v2, or two returns [LOW,HIGH]
    allow_mismatch: bool = False  # let a set of other versions of the task stand, as d4rl-v2 for a -v5
    q_limit: float | None = (
        None  # a mean |Q| beyond it counts as divergence; None: ten times what the rewards met so far
    )
    # allow, max(1, |r|) / (1 - γ), in the dataset, the environment and the model; it grows with them
    online_capacity: int = 1_000_000  # rows of the online buffer, per seed
    tensorboard: bool = False
    reward_scale: Any = (
        1.0  # agents learn from scale·r + shift, offline and online; evaluations and episodes stay raw
    )
    # auto: 1000 / (best - worst return of the dataset's whole episodes), as IQL's authors do on MuJoCo; stored as the number
    reward_shift: float = 0.0  # antmaze: -1 (IQL), or 10 and -5 (CQL, Cal-QL)
    failure_reward: float | None = (
        None  # transformed reward of failing: episodes of nothing else fail for ever (Cal-QL: -5)
    )
    disturb: DisturbConfig = field(default_factory=DisturbConfig)
    env_faults: int = 3  # environments that raise, hang or return nonsense are made anew so often, then the run saves and stops
    env_seconds: float | None = (
        300.0  # a step or reset that takes longer is such a fault; None: wait for ever
    )
    max_episode_steps: int | None = (
        CAP  # where the task has no time limit of its own, episodes (of evaluations, too) are cut
    )
    # there, as by one; None: never, for tasks that end by themselves

    def __post_init__(self) -> None:
        self.reward_scale = _reward_scale(self.reward_scale)
        if self.env_faults < 0:
            raise UserError(f"run.env_faults={self.env_faults} must not be negative")
        if self.env_seconds is not None and not self.env_seconds > 0:
            raise UserError(f"run.env_seconds={self.env_seconds} must be above 0, or null for no limit")
        if self.q_limit is not None and not self.q_limit > 0:
            raise UserError(
                f"run.q_limit={self.q_limit} must be above 0, or null for a limit guessed from the rewards"
            )
        if self.max_episode_steps is not None:
            at_least_one("run", max_episode_steps=self.max_episode_steps)


def _reward_scale(value: Any) -> float | str:
    """What run.reward_scale may be: `auto`, or a finite number, as a float."""
    if value == "auto":
        return "auto"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"run.reward_scale={value} must be a finite number, or auto")
    return float(value)


class Stateful(Protocol):
    """What can be tracked: a module, a buffer."""

    def state_dict(self) -> dict[str, Any]:
        """Everything a restart needs, as tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Restore what `state_dict` returned."""
        ...


class Stopped(BaseException):
    """The run was asked to stop, has saved itself, and goes on when the same command is given again.

    It may come out of the middle of anything, as KeyboardInterrupt does, and nobody who expects errors may hold it up.
    """


class Interrupted(Exception):
    """An evaluation has been left because the run is to stop."""


class Restored(Exception):
    """A run opened to be looked at has reached the place it was saved at."""


class Run:
    """One training run in one directory: its data, its clock, its log, and its memory.

    A recipe takes turns from `steps`, `interact` and `once`, which are known by the phase they are called in and their order
    there. After an interruption the recipe is simply run again: loops that were finished yield nothing, the unfinished one
    yields the turns that are left, and `track` puts back what it is given. Hence three rules for recipes: a loop's body depends
    only on its turn and on tracked objects; whatever has an effect happens inside a turn; networks are made before the loop
    that uses them. `start_from` takes another run's last checkpoint for this one's first: many online arms, one offline phase.

    PyTorch's, NumPy's and Python's global generators are seeded when a run is made, for environments may draw from the latter
    two; they are part of its checkpoints, and are not put back for the caller at the end.
    """

    def __init__(
        self,
        directory: Path,
        cfg: RunConfig,
        *,
        env_id: str,
        seed: int,
        seeds: int,
        gamma: float,
        dataset: TransitionDataset | None = None,
        device: str = "cpu",
        start_from: Path | None = None,
        look_only: bool = False,
        env_kwargs: Mapping[str, Any] | None = None,
        env_layout: str | None = None,
    ):
        streams.seed_all(seed)
        self.env = EnvChoice(env_id, env_kwargs or {}, env_layout, cfg.max_episode_steps)
        self.directory, self.cfg, self.env_id = directory, cfg, env_id
        self._faults = Faults(cfg.env_faults, cfg.env_seconds, self._warn)
        self._lanes = Lanes(self.env, (seeds,), seed, cfg.disturb, self._faults, lambda k: self.online.cut(k))
        inits = tuple(torch.Generator().manual_seed(seed + k) for k in range(seeds))
        self.spec = Spec(self._lanes.obs_dim, self._lanes.act_dim, (seeds,), device, inits)
        self.reference = self._reference(cfg)
        if dataset is not None and (sizes := (dataset.obs_dim, dataset.act_dim)) != (
            self.spec.obs_dim,
            self.spec.act_dim,
        ):
            here = f"{self.spec.obs_dim} and {self.spec.act_dim}"
            raise UserError(
                f"the dataset has {sizes[0]} observations and {sizes[1]} actions per step, {env_id} has {here}"
            )
        self._dataset, self._gamma = None, gamma
        self._largest = (
            0.0,
            "",
        )  # |reward| among those that the agent may have learned from, and where it was met
        if dataset is not None:
            shaped = dataset.to(device).with_reward(cfg.reward_scale, cfg.reward_shift)
            self._dataset = shaped.with_returns(gamma, cfg.failure_reward).with_seeds(self.spec.seeds)
            self._meet(max(float(shaped.rew.max()), -float(shaped.rew.min())), "in the dataset")
        try:
            self.online = ReplayBuffer(self.spec, cfg.online_capacity, gamma, cfg.failure_reward)
        except RuntimeError as e:  # torch's, when there is not as much memory
            raise UserError(
                f"run.online_capacity={cfg.online_capacity} rows do not fit into memory; give less"
            ) from e
        self._evaluate = self.evaluator(cfg.eval_episodes, seed, gamma)
        if text := self._evaluate.unrepeatable():
            warnings.warn(text, stacklevel=2)
        if self._lanes.capped:
            self.say(f"{self.env.cut} (run.max_episode_steps)")
        if env_layout:
            self.say(f"{about(env_id, env_layout)} (env_layout={env_layout})")
        self.phase, self._order = "", 0
        self._tracked: dict[str, tuple[str, Stateful]] = {"online": ("online", self.online)}
        self._done: dict[str, int] = {}  # turns done of each loop, in the order they began
        self._means = Means()
        self._elapsed, self._since = 0.0, time.monotonic()
        self._bar: Progress | None = None
        self._stop = self._in_stage = self._may_leave = False
        self._owed = False  # an evaluation that was due before the last save, and interrupted
        self._evaluated = ("", -1)  # phase and turn of the last evaluation
        self._look_only = look_only
        self._saved = checkpoint.latest(directory / "checkpoints", device)  # None once the run is live
        if self._saved is None and look_only:
            raise UserError(f"{directory}: has no checkpoint yet")
        if self._saved is None and start_from is not None:
            self._saved = self._take_over(start_from)
        self._file = None if look_only else MetricsFile(directory / "metrics.jsonl", cfg.tensorboard)
        if self._saved is not None:
            self._done = dict(self._saved[1]["done"])
            self.online.load_state_dict(_under("online/", self._saved[0]))
            # checkpoints of older versions do not say it
            self._meet(*(self._saved[1].get("largest") or (self.online.largest_reward(), "online")))
        elif self._file is not None:
            self._file.truncate(0)  # lines of a run that never reached a checkpoint

    def _reference(self, cfg: RunConfig) -> Reference:
        found = find_reference(cfg.reference, self.env.id, cfg.allow_mismatch)
        if not (self.env.kwargs and found.known) or found.name == "own" or cfg.allow_mismatch:
            return found
        text = f"run.reference={cfg.reference} is for {self.env.id} with its default arguments, which env_kwargs changes"
        warnings.warn(f"{text}: no scores; give [LOW,HIGH], or run.allow_mismatch=true", stacklevel=3)
        return replace(found, low=math.nan, high=math.nan)

    # ------------------------------------------------------------------ what recipes use

    @property
    def dataset(self) -> TransitionDataset:
        """The offline data, with the run's seed axis."""
        if self._dataset is None:
            raise RuntimeError("this run has no dataset")
        return self._dataset

    @property
    def turn(self) -> int:
        """Turns done in the current phase."""
        return sum(n for key, n in self._done.items() if key.startswith(f"{self.phase}.") and ":" not in key)

    def track(self, **objects: Stateful) -> None:
        """Name what has to survive a restart; restored on the spot if a checkpoint has it. `agent` is what is evaluated."""
        for name, x in objects.items():
            key = f"{self.phase}.{name}"
            self._tracked[name] = (key, x)
            if self._saved is not None and (state := _under(f"{key}/", self._saved[0])):
                try:
                    x.load_state_dict(state)
                except RuntimeError as e:
                    raise UserError(
                        f"{key} does not fit what was saved ({_first_line(e)}); was it another network?"
                    ) from e

    def steps(self, n: int) -> Iterator[int]:
        """`n` turns of learning, numbered from 0."""
        yield from self._loop(n)

    def check_scores(self, agent: Agent | None) -> None:
        """Refuse an agent that acts on scores where there are none."""
        if agent is not None and agent.needs_scores and not self.reference.known:
            text = f"the agent steers by scores, and run.reference knows no returns of {self.env_id}"
            raise UserError(f"{text}: give two, random play's and a good policy's, as [LOW,HIGH]")

    def interact(self, agent: Agent | None, n: int) -> Iterator[int]:
        """`n` turns that each begin with one environment step per seed, stored in `online`; `agent=None` acts uniformly."""
        self.check_scores(agent)
        for t in self._loop(n):
            try:
                transition, truncated, ended = self._lanes.step(self._act(agent))
            except EnvironmentFault as e:
                self._save()
                raise EnvironmentFault(
                    f"{e} at {self._where()}; saved, the same command goes on from here"
                ) from e
            transition.rew = self.cfg.reward_scale * transition.rew + self.cfg.reward_shift
            self._meet(float(transition.rew.abs().max()), f"at {self.phase} turn {self.turn + 1}")
            self.online.add(transition.map(lambda x: x.to(self.spec.device)), truncated.to(self.spec.device))
            returns, lengths = self._log_episodes(ended)
            if agent is not None:
                score = self.reference.score(returns) / 100
                over = (transition.done + truncated > 0).squeeze(-1)
                agent.on_episode(*(x.to(self.spec.device) for x in (over, score, lengths)))
            yield t

    def _act(self, agent: Agent | None) -> Tensor:
        """What to do now: `(*S, 1, A)`, uniform without an agent."""
        obs = self._lanes.obs().to(self.spec.device)
        if agent is None:
            return torch.rand(*self.spec.seeds, 1, self.spec.act_dim, device=self.spec.device) * 2 - 1
        return self._finite(agent.act(obs, explore=True), "an action")

    def _finite(self, x: Tensor, name: str) -> Tensor:
        if not bool(torch.isfinite(x).all()):
            raise Diverged(
                f"{self._not_finite() or name} is not finite at {self._where()}; the last checkpoint is kept"
            )
        return x

    def once(self, name: str) -> Iterator[None]:
        """One turn for a stage that runs once, such as the first fit of a model; a signal ends it without saving."""
        key = f"{self.phase}.:{name}"
        if self._done.get(key, 0) == 0:
            self._go_live()
            self._in_stage = True
            yield
            self._in_stage = False
            self._done[key] = 1

    def learn(self, agent: Agent, source: Source, batch: int, updates: int = 1, **others: Agent) -> None:
        """Make `updates` updates of `agent` on batches of `batch` rows from `source`, and log their metrics.

        others: agents that learn from the same batches; their name stands before the names of their metrics.
        """
        self.log(*engine.learn(source, batch, updates, {"": agent, **others}))

    def log(self, *metrics: Metrics) -> None:
        """Count metrics into the next line; they stay on their device until it is due."""
        for m in metrics:
            self._means.add(m)

    def imagined(self, largest: Tensor) -> None:
        """Note the largest |reward| `(*S,)` of what a recipe has just made up for the agent to learn from."""
        self._meet(float(largest.max()), f"imagined at {self.phase} turn {self.turn + 1}")

    def write(self, kind: str, metrics: Metrics) -> None:
        """Write a line of its own, now."""
        assert self._file is not None
        values = self._file.write(self._place(kind), metrics)
        if kind == "model" and self._bar is not None:
            self._bar.say("model refitted: " + describe(values, ("holdout_mse",)))

    def say(self, text: str) -> None:
        """Tell whoever watches."""
        tell(text)

    def _warn(self, text: str) -> None:
        self.say(f"warning: {text}")
        if self._file is not None:
            self._file.write({**self._place("fault"), "what": text}, {})

    # ------------------------------------------------------------------ what drives it

    def enter(self, phase: str) -> None:
        """Begin a phase."""
        self.phase, self._order = phase, 0
        if (
            phase == "switch"
            and self._saved is not None
            and all(key.startswith("offline.") for key in self._done)
        ):
            self._go_live()  # what was saved ends here: networks made at the switch draw as they would have without a break

    def finish(self) -> None:
        """Save the end of the run."""
        if not self._look_only:
            self._go_live()
            self._save()
            self.close()

    def close(self) -> None:
        """Let go of files."""
        if self._file is not None:
            self._file.close()

    @contextlib.contextmanager
    def stopping_on_signals(self) -> Iterator[None]:
        """Meanwhile `SIGNALS` save and stop after the current turn, a second one kills at once; and environments are timed.

        A turn that goes on for longer than `PATIENCE` is left without saving: the last checkpoint is whole.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may handle signals
            return

        def overdue(number: int, frame: object) -> None:
            raise Stopped(
                f"stopped in the middle of {self._where()}; the same command goes on from the last checkpoint"
            )

        def stop(number: int, frame: object) -> None:
            for x in SIGNALS:
                signal.signal(x, signal.SIG_DFL)
            if self._in_stage:
                raise Stopped(
                    f"stopped during a stage of {self.phase}, which begins anew when the same command is given again"
                )
            self._stop = True
            signal.signal(signal.SIGALRM, overdue)
            signal.setitimer(signal.ITIMER_REAL, PATIENCE)
            self.say("stopping after this turn; once more to leave at once")

        before = {number: signal.signal(number, stop) for number in SIGNALS}
        try:
            with self._faults.watching():
                yield
        finally:
            if self._stop:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def diverging(self) -> Iterator[None]:
        """Meanwhile errors that come of numbers which are none are `Diverged`, and say which."""
        try:
            yield
        except (ArithmeticError, AssertionError, IndexError, RuntimeError, ValueError) as e:
            if name := self._not_finite():
                text = f"{name} is not finite at {self._where()}; the last checkpoint is kept"
                raise Diverged(f"{text} ({_first_line(e)})") from e
            raise

    def evaluator(self, episodes: int, seed: int, gamma: float) -> Evaluator:
        """One that plays this run's task, and discounts the rewards that its agents learn from."""
        shaped = (self.cfg.reward_scale, self.cfg.reward_shift)
        return Evaluator(
            self.env, self.spec.seeds, episodes, seed, gamma, shaped, self.cfg.disturb, self._faults
        )

    def evaluate(self, who: str = "agent") -> Metrics:
        """Play the evaluation episodes with a tracked agent's deterministic policy."""
        return self.evaluate_with(self._evaluate, who)

    def evaluate_with(self, evaluator: Evaluator, who: str = "agent") -> Metrics:
        """Likewise, with episodes of another evaluator's."""
        agent = self._tracked[who][1]
        assert isinstance(agent, Agent)
        to, back = (lambda x: x.to(self.spec.device)), (lambda x: x.cpu())

        def act(obs: Tensor) -> Tensor:
            if self._stop and self._may_leave:
                raise Interrupted
            return self._finite(back(agent.act(to(obs))), "an action")

        agent.eval()  # no dropout
        try:
            result = evaluator(act, lambda o, a: back(agent.value(to(o), to(a))))
        finally:
            agent.train()
        metric = self.reference.metric
        score = {
            metric: self.reference.score(result["return"]),
            f"{metric}_std": self.reference.spread(result["return_std"]),
        }
        return {**result, **(score if self.reference.known else {})}

    def _take_over(self, other: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Another run's state and log up to its checkpoint: a finished offline phase becomes this run's past."""
        saved = checkpoint.latest(other / "checkpoints", self.spec.device)
        if saved is None:
            raise UserError(f"{other}: has no checkpoint to start from")
        if not all(key.startswith("offline.") for key in saved[1]["done"]):
            raise UserError(
                f"{other}: has gone on online; start_from needs a run that ended offline (recipe.online_steps=0)"
            )
        past = (other / "metrics.jsonl").read_bytes()[: saved[1]["metrics_bytes"]]
        (self.directory / "metrics.jsonl").write_bytes(past)
        return saved

    # ------------------------------------------------------------------ turns

    def _loop(self, n: int) -> Iterator[int]:
        key = f"{self.phase}.{self._order}"
        self._order += 1
        first = self._done.get(key, 0)
        if first >= n:
            return
        self._go_live()
        entered = key in self._done
        self._done[key] = first
        self._bar = Progress(self.phase, first, n)
        # A second loop of a phase begins with the policy that the first one's last evaluation has seen.
        if self._owed or not (entered or self._evaluated == (self.phase, self.turn)):
            self._evaluate_and_log()
        if not entered:
            # Here and never after a loop's last turn: what the recipe does between two loops must lie before the save
            self._save()
        for t in range(first, n):
            yield t
            self._done[key] = t + 1
            self._bar.step()
            self._after_turn(last=t + 1 == n)
        self._bar.close()
        self._bar = None

    def _after_turn(self, last: bool) -> None:
        t = self.turn
        if t % self.cfg.log_every == 0 or last:
            self._log_means()
        if t % self.cfg.eval_every == 0 or last:
            self._evaluate_and_log(last)
        if self._stop and last:
            return  # the next loop's first save, or the run's end, is at hand
        if self._stop or (t % self.cfg.checkpoint_every == 0 and not last):
            self._save()
        if self._stop:
            raise Stopped(f"stopped at {self._where()}; the same command goes on from here")

    def _log_means(self) -> None:
        assert self._file is not None
        if means := self._means.pop():
            self._file.write(self._place("train"), means)
            self._check(means)

    def _check(self, means: Metrics) -> None:
        """Raise `Diverged` if these are not what learning gives, or a network's parameters are not."""
        if name := self._not_finite(means):
            raise Diverged(f"{name} is not finite at {self._where()}; the last checkpoint is kept")
        if "q" in means and (worst := float(means["q"].abs().max())) > (limit := self._q_limit()):
            text = f"|Q| reached {worst:.3g} at {self._where()}, beyond run.q_limit={limit:.3g}{self._q_source()}"
            raise Diverged(f"{text}; the last checkpoint is kept")

    def _meet(self, reward: float, where: str) -> None:
        """The agent may learn from a |reward| of this size from now on."""
        if reward > self._largest[0]:
            self._largest = (reward, where)

    def _q_limit(self) -> float:
        """The |Q| that counts as divergence: as configured, or ten times what the largest reward so far can add up to."""
        return self.cfg.q_limit or 10 * max(1.0, self._largest[0]) / max(1 - self._gamma, 1 / LONGEST)

    def _q_source(self) -> str:
        """Where the limit comes from; nothing for one that was configured."""
        if self.cfg.q_limit is not None:
            return ""
        reward, where = self._largest
        small = ", counted as 1" if reward < 1 else ""
        guess = f"guessed from the largest |reward| met so far, {f'{reward:.3g} {where}'.rstrip()}{small}"
        return f" ({guess}; set run.q_limit=NUMBER to choose)"

    def _not_finite(self, means: Metrics | None = None) -> str | None:
        """The first metric or parameter that holds a number which is none; by default of the metrics since the last line."""
        named = list((self._means.peek() if means is None else means).items())
        for name, (_, x) in self._tracked.items():
            named += [(f"{name}.{k}", p) for k, p in x.named_parameters()] if isinstance(x, nn.Module) else []
        return next((name for name, x in named if not bool(torch.isfinite(x).all())), None)

    def _where(self) -> str:
        return f"{self.phase} turn {self.turn}"

    def _evaluate_and_log(self, last: bool = False) -> None:
        """Evaluate every tracked agent; if the run is to stop, or an environment fails for good, save what led up to here.

        Not after a loop's `last` turn: what the recipe does between two loops must lie before a save.
        """
        assert self._file is not None
        self._owed, self._may_leave = True, not last
        names = [name for name, (_, x) in self._tracked.items() if isinstance(x, Agent)]
        try:
            results = [self.evaluate(name) for name in names]
            self._may_leave = False
        except Interrupted as e:
            self._save()
            raise Stopped(f"stopped at {self._where()}; the same command goes on from here") from e
        except EnvironmentFault as e:
            if not last:
                self._save()
            start = "the last checkpoint" if last else "here"
            raise EnvironmentFault(
                f"{e} in the evaluation at {self._where()}; the same command goes on from {start}"
            ) from e
        self._owed = False
        self._evaluated = (self.phase, self.turn)
        for name, result in zip(names, results, strict=True):
            values = self._file.write(self._place("eval" if name == "agent" else f"eval-{name}"), result)
            if self._bar is not None and name == "agent":
                self._bar.say(describe(values, ("return", self.reference.metric, "success", "length")))

    def _log_episodes(self, ended: list[tuple[int, float, int]]) -> tuple[Tensor, Tensor]:
        """Returns and lengths `(*S,)` of the episodes that ended in this turn, as they were explored, and a line for them.

        NaN, in the log null, for the seeds whose episode goes on.
        """
        assert self._file is not None
        returns, lengths = torch.full((2, *self.spec.seeds), torch.nan)
        for lane, episode_return, length in ended:
            returns[lane], lengths[lane] = episode_return, length
        if ended:
            self._file.write(self._place("episode"), {"return": returns, "length": lengths})
        return returns, lengths

    def _place(self, kind: str) -> dict[str, Any]:
        total = sum(n for key, n in self._done.items() if ":" not in key)
        seconds = round(self._elapsed + time.monotonic() - self._since, 3)
        return {"kind": kind, "phase": self.phase, "step": self.turn, "total": total, "time": seconds}

    # ------------------------------------------------------------------ memory

    def _save(self) -> None:
        if self._stop:
            signal.setitimer(signal.ITIMER_REAL, 0)  # this turn has come to its end
        self._check(self._means.peek())  # what is saved is what a restart begins with
        sums, counts = self._means.state()
        lanes, lane_rngs = self._lanes.state()
        tensors: dict[str, Tensor] = {f"means/{k}": v for k, v in sums.items()} | {
            f"lanes/{k}": v for k, v in lanes.items()
        }
        for key, x in self._tracked.values():
            tensors |= {f"{key}/{name}": v for name, v in x.state_dict().items()}
        tensors["rng/cpu"] = torch.get_rng_state()
        if self.spec.device != "cpu":
            tensors["rng/device"] = torch.cuda.get_rng_state(self.spec.device)
        assert self._file is not None
        state = {
            "done": self._done,
            "counts": counts,
            "lanes": lane_rngs,
            "globals": streams.dumps(streams.globals_state()),
            "owed": self._owed,
            "largest": self._largest,
            "metrics_bytes": self._file.size(),
            "elapsed": self._elapsed + time.monotonic() - self._since,
        }
        checkpoint.save(self.directory / "checkpoints", sum(self._done.values()), tensors, state)

    def _go_live(self) -> None:
        """Before the first turn that is not a repetition: take up clock, random streams and episodes as they were."""
        if self._look_only:
            raise Restored
        if self._saved is None:
            return
        tensors, state = self._saved
        self._means.load(_under("means/", tensors), state["counts"])
        self._elapsed, self._since = state["elapsed"], time.monotonic()
        self._owed = state.get("owed", False)
        assert self._file is not None
        self._file.truncate(state["metrics_bytes"])
        of_process = (
            streams.loads(state["globals"]) if "globals" in state else None
        )  # older checkpoints have none
        if of_process is not None:
            streams.set_globals(of_process)  # lanes whose episode drew nothing since find them here
        self._lanes.load({k: v.cpu() for k, v in _under("lanes/", tensors).items()}, state["lanes"])
        if of_process is not None:
            streams.set_globals(of_process)
        torch.set_rng_state(tensors["rng/cpu"].cpu())
        if self.spec.device != "cpu":
            torch.cuda.set_rng_state(tensors["rng/device"].cpu(), self.spec.device)
        self._saved = None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
