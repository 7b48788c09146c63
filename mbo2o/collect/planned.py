"""Play planners and policies in the real environment, from the same starts, and try plans there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mbo2o.agents import Agent
from mbo2o.envs import streams
from mbo2o.envs.lanes import Lane
from mbo2o.envs.make import EnvChoice
from mbo2o.planning.horizon import DEPTHS, Trust, compare, smooth_plans
from mbo2o.planning.objective import Policy, Value
from mbo2o.planning.planner import Planner
from mbo2o.types import RewardView

STARTS, PLANS, APART = 8, 32, 20
"""The rank-correlation test has so many states, plans from each, and steps between the states."""
FIRST = 10_000_019
"""The seed of the first start; `mbo2o eval` begins at the same ones."""


def of_agent(agent: Agent, k: int) -> tuple[Policy, Value | None]:
    """The deterministic policy of seed k of an agent, and V(s) = Q(s, π(s)); None if it only clones."""
    agent.eval()
    (seeds,) = agent.spec.seeds

    def policy(obs: Tensor) -> Tensor:
        return agent.act(obs.expand(seeds, *obs.shape))[k]

    def value(obs: Tensor) -> Tensor:
        every = obs.expand(seeds, *obs.shape)
        return agent.value(every, agent.act(every))[k]

    return policy, None if agent.clones else value


@dataclass(frozen=True)
class Played:
    """Whole episodes, one for each start."""

    returns: list[float]
    """The task's own rewards, summed."""
    lengths: list[int]


def starts_of(episodes: int, seed: int = 0, k: int = 0) -> list[int]:
    """Seeds of the episodes' starts: those from which `mbo2o eval --seed SEED` plays seed k of a run."""
    return [FIRST + seed + 1000 * k + e for e in range(episodes)]


def first_states(env: EnvChoice, episodes: int, seed: int = 0) -> np.ndarray:
    """The observations `(episodes, D)` with which the episodes of `starts_of` begin."""
    with streams.private():
        return np.stack([_begun(env, start).obs for start in starts_of(episodes, seed)])


def play_policy(env: EnvChoice, policy: Policy, starts: Sequence[int], steps: int | None = None) -> Played:
    """Play one episode from each start, all side by side; `steps` cuts them."""
    return _play(env, starts, steps, policy, lambda rows: None)


def play_planner(
    env: EnvChoice,
    planner: Planner,
    starts: Sequence[int],
    steps: int | None = None,
    *,
    drop: bool = True,
) -> Played:
    """The same with a planner, which begins without a plan.

    drop: plan no longer for episodes that are over. A compiled rating is translated for each number of
    states, so that it is better to go on with all of them.
    """
    planner.reset()
    take = planner.search.take if drop else None
    return _play(env, starts, steps, lambda obs: planner.plan(obs.to(planner.device))[:, 0], take)


def _play(
    env: EnvChoice,
    starts: Sequence[int],
    steps: int | None,
    act: Policy,
    take: Callable[[Tensor], None] | None,
) -> Played:
    with streams.private():
        lanes = [_begun(env, start) for start in starts]
        rows, over = list(lanes), [False] * len(lanes)
        while not all(over):
            with torch.no_grad():
                acts = act(torch.from_numpy(np.stack([x.obs for x in rows]))).cpu().numpy()
            for i, lane in enumerate(rows):
                if not over[i]:
                    _, _, terminated, truncated = lane.step(acts[i])
                    over[i] = terminated or truncated or lane.length == steps
            if take is not None and any(over):
                left = [i for i, x in enumerate(over) if not x]
                take(torch.tensor(left, dtype=torch.int64))
                rows, over = [rows[i] for i in left], [False] * len(left)
        for lane in lanes:
            lane.env.close()
    return Played([x.episode_return for x in lanes], [x.length for x in lanes])


def _begun(env: EnvChoice, start: int) -> Lane:
    streams.seed_globals(start)
    lane = Lane(env, start, resumes=False)
    streams.seed_globals(start)
    lane.start(start)
    return lane


# ------------------------------------------------------------------------------------------- how far to plan


def trust_of(
    env: EnvChoice,
    planner: Planner,
    policy: Policy | None,
    rewards: RewardView,
    *,
    most: int = DEPTHS[-1],
    seed: int = 0,
    starts: int = STARTS,
    plans: int = PLANS,
) -> Trust:
    """The rank-correlation test of a planner's objective: smooth random plans from each of some states.

    The states lie on the way of the policy, or of smooth random actions without one: one at the start of an
    episode, each next one 20 steps later in an episode of its own, as long as the episode lasts. To try a
    plan, the environment is led to its state once more from the same seed, so that it needs no way to set a
    state.

    rewards: how those of the network differ from the task's. most: the deepest plans.
    """
    generator = torch.Generator().manual_seed(seed)
    with streams.private():
        lane = Lane(env, FIRST, resumes=False)
        act_dim = lane.act_dim
        obs, tried, paid = [], [], []
        for k in range(starts):
            way = _way(lane, FIRST + 500 + k, k * APART, policy, generator)
            obs.append(torch.from_numpy(lane.obs.copy()))
            tried.append(smooth_plans(plans, most, act_dim, generator))
            paid.append([_try(lane, FIRST + 500 + k, way, plan.numpy(), rewards) for plan in tried[-1]])
        lane.env.close()
    true = torch.tensor(np.array(paid), dtype=torch.float32)
    device = planner.generator.device
    return compare(
        planner.objective, torch.stack(obs).to(device), torch.stack(tried).to(device), true, planner.generator
    )


def _way(
    lane: Lane, start: int, steps: int, policy: Policy | None, generator: torch.Generator
) -> list[np.ndarray]:
    """Begin the episode of `start`, take up to `steps` steps that do not end it; their actions."""
    random = smooth_plans(1, max(steps, 2), lane.act_dim, generator)[0]
    while True:
        streams.seed_globals(start)
        lane.start(start)
        way: list[np.ndarray] = []
        for t in range(steps):
            with torch.no_grad():
                act = random[t] if policy is None else policy(torch.from_numpy(lane.obs)[None])[0]
            way.append(act.cpu().numpy())
            _, _, terminated, truncated = lane.step(way[-1])
            if terminated or truncated:
                break
        else:
            return way
        steps = t // 2  # that far, the episode goes on


def _try(lane: Lane, start: int, way: list[np.ndarray], plan: np.ndarray, rewards: RewardView) -> np.ndarray:
    """What the task pays at each step of `plan` from the end of `way` on, 0 after the episode's end."""
    streams.seed_globals(start)
    lane.start(start)
    for act in way:
        lane.step(act)
    paid = np.zeros(len(plan), np.float32)
    for t, act in enumerate(plan):
        r, _, terminated, truncated = lane.step(act)
        paid[t] = rewards(r)
        if terminated or truncated:
            break
    return paid
