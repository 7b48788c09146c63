"""The world of a run: environments, data, the online buffer, rewards as agents see them, evaluations."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbo2o.agents.base import Agent
from mbo2o.data.buffer import ReplayBuffer
from mbo2o.data.dataset import TransitionDataset
from mbo2o.envs import streams
from mbo2o.envs.absent import Absent, NoLanes
from mbo2o.envs.faults import Faults
from mbo2o.envs.lanes import Lanes
from mbo2o.envs.layouts import about
from mbo2o.envs.make import EnvChoice
from mbo2o.envs.scores import reference_for
from mbo2o.progress import tell
from mbo2o.run.beside import Beside
from mbo2o.run.config import RunConfig
from mbo2o.run.engine import EngineConfig
from mbo2o.run.evaluate import Evaluator, Visited
from mbo2o.types import Metrics, RewardView, Spec, UserError
from mbo2o.verify.traces import Played, Traces


@dataclass(frozen=True)
class Task:
    """What a run learns, and how many seeds learn it side by side; lane k is seeded `seed + k`."""

    env_id: str
    seed: int
    seeds: int
    gamma: float
    device: str = "cpu"
    env_kwargs: Mapping[str, Any] | None = None
    env_layout: str | None = None
    engine: EngineConfig = field(default_factory=EngineConfig)
    returns: bool = True
    """Whether batches hold the return that followed each row, which costs memory and a gather."""
    absent: Absent | None = None  # what stands for the environment, if there is none


class World:
    """Where a run's transitions come from and where its policies are evaluated.

    Making one seeds the global generators of PyTorch, NumPy and Python, because environments may draw from
    the latter two.
    """

    def __init__(
        self, task: Task, cfg: RunConfig, dataset: TransitionDataset | None, warn: Callable[[str], None]
    ):
        """`warn` is told of each fault of an environment."""
        streams.seed_all(task.seed)
        self.env = EnvChoice(task.env_id, task.env_kwargs or {}, task.env_layout, cfg.max_episode_steps)
        self.gamma = task.gamma
        self.rewards = RewardView(cfg.reward_scale, cfg.reward_shift)
        self.largest: tuple[float, str] = (0.0, "")
        """The largest |reward| that the agent may have learned from, and where it was met."""
        self.faults = Faults(cfg.env_faults, cfg.env_seconds, warn)
        self._disturb, self.absent = cfg.disturb, task.absent
        how = (self.env, (task.seeds,), task.seed, cfg.disturb, self.faults, lambda k: self.online.cut(k))
        self.lanes: Any = Lanes(*how) if task.absent is None else NoLanes(task.absent)
        inits = tuple(torch.Generator().manual_seed(task.seed + k) for k in range(task.seeds))
        self.spec = Spec(self.lanes.obs_dim, self.lanes.act_dim, (task.seeds,), task.device, inits)
        self.reference = reference_for(cfg.reference, self.env, cfg.allow_mismatch)
        self._dataset = None if dataset is None else self._shaped(dataset, cfg.failure_reward, task.returns)
        self.online: ReplayBuffer = _online_buffer(self.spec, cfg, task.gamma if task.returns else None)
        # a step of each seed; returns, if there are any, stay unknown
        self._rows = np.full((task.seeds, self.online.layout.width), -np.inf, np.float32)
        # where uniform actions are drawn, cheaper than a new tensor, and the same memory as an array
        self._unit = torch.empty(task.seeds, self.spec.act_dim, device=task.device)
        self._on_host = self._unit.numpy() if self._unit.device.type == "cpu" else None
        nan = torch.full(self.spec.seeds, torch.nan, device=task.device)
        self._none_ended = (torch.zeros_like(nan, dtype=torch.bool), nan, nan)
        if self.absent is not None:
            return
        self._evaluator = self.evaluator(cfg.eval_episodes, task.seed, task.gamma)
        if text := self._evaluator.unrepeatable():
            warnings.warn(text, stacklevel=3)
        if self.lanes.capped:
            tell(f"{self.env.cut} (run.max_episode_steps)")
        if self.env.layout:
            tell(f"{about(self.env.id, self.env.layout)} (env_layout={self.env.layout})")

    def _shaped(self, dataset: TransitionDataset, failure: float | None, returns: bool) -> TransitionDataset:
        """The dataset as agents see it: on the device, with shaped rewards, returns and the seed axis."""
        spec, found = self.spec, (dataset.obs_dim, dataset.act_dim)
        if found != (spec.obs_dim, spec.act_dim):
            data = f"the dataset has {found[0]} observations and {found[1]} actions per step"
            raise UserError(f"{data}, {self.env.id} has {spec.obs_dim} and {spec.act_dim}")
        shaped = dataset.to(spec.device).with_reward(self.rewards.scale, self.rewards.shift)
        self.meet(max(float(shaped.rew.max()), -float(shaped.rew.min())), "in the dataset")
        return (shaped.with_returns(self.gamma, failure) if returns else shaped).with_seeds(spec.seeds)

    @property
    def dataset(self) -> TransitionDataset:
        """The offline data, with the run's seed axis."""
        if self._dataset is None:
            raise RuntimeError("this run has no dataset")
        return self._dataset

    def meet(self, reward: float, where: str) -> None:
        """Note that the agent may learn from a |reward| of this size from now on."""
        if reward > self.largest[0]:
            self.largest = (reward, where)

    def act(self, explore: Callable[[Tensor], Tensor] | None) -> np.ndarray:
        """Actions `(S, A)` of a policy for where the lanes stand; uniform in [-1, 1] without one."""
        self.lanes.check()
        if explore is None:  # the numbers of `uniform_actions`
            unit = self._unit.uniform_()
            return (unit.cpu().numpy() if self._on_host is None else self._on_host) * 2 - 1
        act = explore(self._on_device(self.lanes.obs()))
        return act.cpu().numpy().reshape(len(self._rows), self.spec.act_dim)

    def step(self, acts: np.ndarray, agent: Agent | None, where: str) -> np.ndarray | None:
        """Take the actions `(S, A)`, store the step in `online`, and tell `agent` of episodes that ended.

        A step is put together on the host, and goes to the device in one transfer.

        Returns the returns and lengths `(2, *S)` of those episodes, NaN for seeds whose episode goes on; None
        if no episode ended. `where` names the turn, in case its reward is the largest so far.
        """
        taken, ended = self.lanes.take(acts)
        rows = self._rows
        for row, a, (obs, rew, next_obs, terminated, truncated) in zip(rows, acts, taken, strict=True):
            single: Any = np.float32(rew)  # rounded as in a tensor
            seen = self.rewards(single)
            self.online.layout.write(row, obs, a, seen, next_obs, terminated, truncated)
            self.meet(abs(float(seen)), where)
        self.online.append(rows)
        if not ended:
            if agent is not None:
                agent.on_episode(*self._none_ended)
            return None
        found = np.full((2, *self.spec.seeds), np.nan, np.float32)
        for lane, episode_return, length in ended:
            found[:, lane] = episode_return, length
        if agent is not None:
            returns, lengths = torch.from_numpy(found)
            score = self.reference.score(returns) / 100
            agent.on_episode(*(self._on_device(x) for x in (~lengths.isnan(), score, lengths)))
        return found

    def _on_device(self, x: Tensor) -> Tensor:
        return x.to(self.spec.device, non_blocking=True)

    def beside(self, workers: int, episodes: int, seed: int) -> Beside:
        """So many processes that play this task's evaluations as the run's own evaluator does."""
        args = (self.env, self.spec.seeds, episodes, seed, self.gamma, self._disturb)
        return Beside(0 if self.absent else workers, self.faults.seconds, *args)

    def evaluator(self, episodes: int, seed: int, gamma: float) -> Evaluator:
        """An evaluator that plays this task, `episodes` per seed, from starts that follow from `seed`."""
        return Evaluator(self.env, self.spec.seeds, episodes, seed, gamma, self._disturb, self.faults)

    def traces(self, directory: Path) -> Traces:
        """Where a run keeps its evaluations. `UserError` if they could not be played again."""
        if self.absent is not None:
            raise UserError("run.traces=true keeps the episodes of evaluations, and env=null has none")
        self._evaluator.check_playable()
        return Traces(directory, self.env, self._disturb, len(self._rows))

    def played(self) -> Played:
        """All episodes of the last evaluation on the run's own evaluator."""
        return self._evaluator.played()

    def visited(self) -> Visited:
        """The first episodes of the last evaluation on the run's own evaluator."""
        return self._evaluator.visited()

    def evaluate(
        self, agent: Agent, policy: Callable[[Tensor], Tensor], evaluator: Evaluator | None = None
    ) -> Metrics:
        """Play evaluation episodes with the agent's `policy`, and compare returns with the agent's values.

        policy: `(*S, B, D)` → `(*S, B, A)`, on the run's device. Scores are added where the reference knows
        the task.
        """

        def act(obs: Tensor) -> Tensor:
            return policy(self._on_device(obs)).cpu()

        def value(obs: Tensor, act: Tensor) -> Tensor:
            return agent.value(self._on_device(obs), self._on_device(act)).cpu()

        agent.eval()  # no dropout
        try:
            if self.absent is not None:
                return dict(self.absent.judge(agent, self.rewards))
            result = (evaluator or self._evaluator)(act, value, self.rewards)
        finally:
            agent.train()
        return self.scored(result)

    def scored(self, result: Metrics) -> Metrics:
        """An evaluation with its scores, where the reference knows the task."""
        if not self.reference.known:
            return result
        metric = self.reference.metric
        score, spread = self.reference.score(result["return"]), self.reference.spread(result["return_std"])
        return {**result, metric: score, f"{metric}_std": spread}


def _online_buffer(spec: Spec, cfg: RunConfig, gamma: float | None) -> ReplayBuffer:
    try:
        return ReplayBuffer(spec, cfg.online_capacity, gamma, cfg.failure_reward)
    except RuntimeError as e:  # PyTorch raises it when memory is short
        text = f"run.online_capacity={cfg.online_capacity} rows do not fit into memory; give a smaller number"
        raise UserError(text) from e
