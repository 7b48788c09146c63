"""The task of a model, out of its data and its environment."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mbo2o.data.dataset import TransitionDataset
from mbo2o.envs.make import EnvChoice, make_env
from mbo2o.model.about import About
from mbo2o.nn.normalizer import statistics
from mbo2o.types import RewardFn, RewardView, TerminationFn, UserError

STARTS = 256
"""At most so many start states are kept with a model."""
SCALED = 100_000
"""At most so many rows give the unit of errors."""


def about_of(
    dataset: TransitionDataset | None,
    choice: EnvChoice | None,
    rule: str,
    ends: TerminationFn,
    rewards: RewardView | None = None,
    reward: tuple[RewardFn, str] | None = None,
) -> About:
    """What a model of this dataset and of this environment has to know of its task.

    Start states are the data's; without a dataset they come from resets of the environment. Without an
    environment the box is [-1, 1], in which datasets have their actions.
    """
    env = None if choice is None else environment(choice)
    if dataset is not None:
        episode = dataset.episode.cpu()
        begins = torch.cat([torch.ones(1, dtype=torch.bool), episode.diff() != 0]).nonzero().flatten()
        chosen = begins[torch.linspace(0, len(begins) - 1, min(STARTS, len(begins))).round().long()]
        starts, act_dim = dataset.obs[chosen].cpu(), dataset.act_dim
        scale = statistics(dataset.obs[:: -(-dataset.n_rows // SCALED)].cpu())[1].flatten()
    else:
        assert env is not None
        starts = torch.from_numpy(
            np.stack([env.reset(seed=k)[0] for k in range(STARTS // 4)]).astype(np.float32)
        )
        scale, act_dim = statistics(starts)[1].flatten(), int(np.prod(env.action_space.shape or ()))
    low, high = -torch.ones(act_dim), torch.ones(act_dim)
    limit = None
    if env is not None:
        box: Any = env.action_space
        low, high = (torch.from_numpy(np.asarray(x, np.float32).ravel().copy()) for x in (box.low, box.high))
        limit = env.spec.max_episode_steps if env.spec else None
        env.close()
    return About(
        choice.id if choice else None,
        low,
        high,
        rule,
        ends,
        starts,
        scale,
        rewards=rewards or RewardView(),
        reward=reward[0] if reward else None,
        reward_path=reward[1] if reward else None,
        time_limit=limit,
        bounded=env is not None,
    )


def environment(choice: EnvChoice) -> Any:
    """The environment; None if its package is not installed or its version is gone."""
    try:
        return make_env(choice)
    except UserError:
        return None
