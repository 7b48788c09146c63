"""The settings of a run: when it evaluates and saves, how agents see rewards, what environments may do."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from mbo2o.envs.disturb import DisturbConfig
from mbo2o.envs.make import CAP
from mbo2o.types import UserError, at_least_one


@dataclass
class RunConfig:
    """When a run logs, evaluates and saves, and what it expects of its environment."""

    log_every: int = 500  # turns between lines of training metrics, which are means over those turns
    eval_every: int = 1000  # turns between evaluations; every loop also begins and ends with one
    eval_episodes: int = 5  # per seed and evaluation, always from the same starts, deterministic policy
    # processes that play evaluations while the run goes on learning; 0: the run waits for its evaluations.
    # They compute actions on a CPU, which rounds differently than a GPU.
    eval_workers: int = 0
    # keep the starts and actions of every evaluation in the folder traces of the run, where `mbo2o verify`
    # plays them again; 4 bytes for each action component
    traces: bool = False
    checkpoint_every: int = 5000  # turns between checkpoints; a run also saves when it enters a loop
    reference: Any = "mbo2o-v5"  # the returns that score 0 and 100: this set, d4rl-v2, or [LOW,HIGH]
    allow_mismatch: bool = False  # use a set made for other versions of the task, as d4rl-v2 for a -v5
    # a mean |Q| beyond this counts as divergence; None: 10 max(1, |r|) / (1 - γ), with the largest reward r
    # met so far in the dataset, the environment or the model
    q_limit: float | None = None
    online_capacity: int = 1_000_000  # rows of the online buffer, per seed
    # agents learn from scale * r + shift, offline and online; returns in the log are the task's own.
    # auto: 1000 / (best - worst return of the dataset's whole episodes), as IQL's authors do on MuJoCo
    reward_scale: Any = 1.0
    reward_shift: float = 0.0  # antmaze: -1 (IQL), or -5 with a scale of 10 (CQL, Cal-QL)
    # the scaled and shifted reward of a step that fails (Cal-QL: -5); an episode in which every step fails
    # has the return failure_reward / (1 - γ), as if it went on for ever
    failure_reward: float | None = None
    disturb: DisturbConfig = field(default_factory=DisturbConfig)
    env_faults: int = 3  # faults of environments that are repaired; at one more, the run saves and stops
    env_seconds: float | None = 300.0  # a step or a reset that takes longer is a fault; None: wait for ever
    # steps after which episodes, also of evaluations, are truncated where the task has no time limit of its
    # own; None: never, for tasks that end by themselves
    max_episode_steps: int | None = CAP

    def __post_init__(self) -> None:
        self.reward_scale = _reward_scale(self.reward_scale)
        counts = ("log_every", "eval_every", "eval_episodes", "checkpoint_every", "online_capacity")
        at_least_one("settings", **{f"run.{name}": getattr(self, name) for name in counts})
        if self.max_episode_steps is not None:
            at_least_one("run", max_episode_steps=self.max_episode_steps)
        if self.eval_workers < 0:
            raise UserError(f"run.eval_workers={self.eval_workers} must not be negative")
        if self.env_faults < 0:
            raise UserError(f"run.env_faults={self.env_faults} must not be negative")
        if self.env_seconds is not None and not self.env_seconds > 0:
            raise UserError(f"run.env_seconds={self.env_seconds} must be above 0, or null for no limit")
        if self.q_limit is not None and not self.q_limit > 0:
            text = f"run.q_limit={self.q_limit} must be above 0"
            raise UserError(f"{text}, or null for a limit that follows the rewards")
        for name in ("env_seconds", "reward_shift", "failure_reward"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise UserError(f"run.{name}={value} is not a finite number")


def _reward_scale(value: Any) -> float | str:
    """`run.reward_scale` as a float, or `auto`. UserError for anything else, and for 0."""
    if value == "auto":
        return "auto"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"run.reward_scale={value} must be a finite number, or auto")
    if value == 0:
        raise UserError(
            "run.reward_scale=0 would make all rewards equal, so that nothing could be learned; "
            "give another number, or auto"
        )
    return float(value)
