"""REDQ: randomised ensembled double Q-learning (Chen et al. 2021, arXiv 2101.05982)."""

from __future__ import annotations

from dataclasses import dataclass

from mbo2o.agents.sac import SAC, SACConfig
from mbo2o.registry import agent


@dataclass
class REDQConfig(SACConfig):
    """Defaults: the paper's, made for twenty updates per environment step (`recipe.utd=20`).

    Its `target_entropy` is MBPO's: Hopper -1, Walker2d and HalfCheetah -3, Ant -4.
    """

    critics: int = 10  # N
    target: str = "random_min_pair"  # M = 2 of N, drawn in every update
    actor_reduction: str = "mean_q"
    policy_delay: int = 20  # the actor learns in the last of a step's updates


@agent("redq", REDQConfig)
class REDQ(SAC):
    """SAC that can update often: a random pair makes the target, and the actor moves seldom."""

    cfg: REDQConfig
