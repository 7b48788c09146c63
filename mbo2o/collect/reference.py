"""What random play and a kept actor return in a task: the two numbers behind a score, with how they came about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mbo2o.collect.sac import Actor
from mbo2o.envs.lanes import Lane
from mbo2o.envs.make import EnvChoice
from mbo2o.run.evaluate import Evaluator
from mbo2o.run.log import tell
from mbo2o.types import UserError, at_least_one, uniform_actions


def measure_reference(path: Path, env_id: str | None, episodes: int, seeds: int) -> dict[str, Any]:
    """One entry of a reference set, `{env_id: {"low": ..., "high": ...}}`: uniform actions, and the actor's mean action.

    Each end has the mean `return` over `seeds` times `episodes` episodes (other starts for each seed, drawn from 0, 1, ...) and
    its 95 % `interval` (normal, over episodes).
    """
    at_least_one("data reference", episodes=episodes, seeds=seeds)
    actor = Actor.load(path)
    env_id = env_id or actor.info["env_id"]
    lane = Lane(env_id, 0)
    if (sizes := (str(lane.obs_dim), str(lane.act_dim))) != (actor.info["obs_dim"], actor.info["act_dim"]):
        raise UserError(
            f"{path}: plays {actor.info['env_id']}; {env_id} has {sizes[0]} observations and {sizes[1]} actions"
        )
    if lane.capped:
        tell(EnvChoice(env_id).cut)
    known = f"{path.name}: SAC step {actor.info.get('step', '?')}, seed {actor.info.get('seed', '?')}"

    def uniform(obs: Tensor) -> Tensor:
        return uniform_actions(*obs.shape[:-1], int(actor.info["act_dim"]))

    @torch.no_grad()
    def mean_action(obs: Tensor) -> Tensor:
        return actor.policy.mode(obs.flatten(0, -2)).reshape(*obs.shape[:-1], -1)

    low = _played(env_id, uniform, episodes, seeds) | {"policy": "uniform actions"}
    high = _played(env_id, mean_action, episodes, seeds) | {"policy": f"{known}; mean action"}
    return {env_id: {"low": low, "high": high}}


def _played(env_id: str, policy: Callable[[Tensor], Tensor], episodes: int, seeds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    result = Evaluator(env_id, (seeds,), episodes, 0, 0.99)(
        policy, lambda obs, act: torch.zeros(obs.shape[:-1])
    )
    means, stds = result["return"].double(), result["return_std"].double()
    mean, std = float(means.mean()), float((stds.square().mean() + means.var(correction=0)).sqrt())
    half = 1.96 * std / (seeds * episodes) ** 0.5
    return {
        "return": round(mean, 2),
        "std": round(std, 2),
        "interval": [round(mean - half, 2), round(mean + half, 2)],
        "episodes": seeds * episodes,
        "seeds": list(range(seeds)),
    }
