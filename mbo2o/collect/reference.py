"""Measure the two returns that a normalised score needs: those of uniform actions and of a stored actor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mbo2o.collect.actor import Actor
from mbo2o.collect.play import warn_of_episode_cap
from mbo2o.envs.lanes import Lane
from mbo2o.run.evaluate import Evaluator
from mbo2o.types import UserError, at_least_one, uniform_actions


def measure_reference(path: Path, env_id: str | None, episodes: int, seeds: int) -> dict[str, Any]:
    """Measure one entry of a reference set, `{env_id: {"low": ..., "high": ...}}`.

    `low` is for uniform actions, `high` for the actor's mean action.
    Each end is played for `seeds` times `episodes` episodes, with other starts for each seed 0, 1, ... It has
    the mean `return`, its `std` over episodes, and a normal 95 % `interval` for the mean.
    """
    at_least_one("data reference", episodes=episodes, seeds=seeds)
    actor = Actor.load(path)
    env_id = env_id or actor.info["env_id"]
    lane = Lane(env_id, 0)
    if (sizes := (str(lane.obs_dim), str(lane.act_dim))) != (actor.info["obs_dim"], actor.info["act_dim"]):
        raise UserError(
            f"{path}: plays {actor.info['env_id']}; "
            f"{env_id} has {sizes[0]} observations and {sizes[1]} actions"
        )
    warn_of_episode_cap(env_id, lane)

    def uniform(obs: Tensor) -> Tensor:
        return uniform_actions(*obs.shape[:-1], int(actor.info["act_dim"]))

    @torch.no_grad()
    def mean_action(obs: Tensor) -> Tensor:
        return actor.policy.mode(obs.flatten(0, -2)).reshape(*obs.shape[:-1], -1)

    trained = f"SAC step {actor.info.get('step', '?')}, seed {actor.info.get('seed', '?')}"
    low = _play(env_id, uniform, episodes, seeds) | {"policy": "uniform actions"}
    high = _play(env_id, mean_action, episodes, seeds) | {"policy": f"{path.name}: {trained}; mean action"}
    return {env_id: {"low": low, "high": high}}


def _play(env_id: str, policy: Callable[[Tensor], Tensor], episodes: int, seeds: int) -> dict[str, Any]:
    def no_value(obs: Tensor, act: Tensor) -> Tensor:
        return torch.zeros(obs.shape[:-1])  # only the returns are of interest

    torch.manual_seed(0)
    result = Evaluator(env_id, (seeds,), episodes, seed=0, gamma=0.99)(policy, no_value)
    means, stds = result["return"].double(), result["return_std"].double()
    mean = float(means.mean())
    # the variance over all episodes is the mean variance within seeds plus the variance between them
    std = float((stds.square().mean() + means.var(correction=0)).sqrt())
    half = 1.96 * std / (seeds * episodes) ** 0.5
    return {
        "return": round(mean, 2),
        "std": round(std, 2),
        "interval": [round(mean - half, 2), round(mean + half, 2)],
        "episodes": seeds * episodes,
        "seeds": list(range(seeds)),
    }
