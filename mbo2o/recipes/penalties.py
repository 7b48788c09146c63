"""The penalty of a run by its name: a function of the model's prediction, or one that asks the agent too."""

from __future__ import annotations

from torch import Tensor

from mbo2o.agents.base import Agent
from mbo2o.agents.qensemble import QConfig, QEnsemble
from mbo2o.dynamics.bellman import Bellman
from mbo2o.dynamics.model import DynamicsConfig, GaussianDynamics
from mbo2o.ensemble.explore import policy
from mbo2o.ensemble.uncertainty import BELLMAN, PENALTIES, Penalty
from mbo2o.registry import find
from mbo2o.types import UserError


def check_penalty(name: str, agent: object, dynamics: DynamicsConfig) -> None:
    """Raise a `UserError` for a name that no penalty has, or one that this agent or model cannot give."""
    find({**PENALTIES, BELLMAN: Bellman}, name, "penalty")
    if name != BELLMAN:
        return
    if not isinstance(agent, QConfig):
        text = f"{type(agent).__name__} has no ensemble of target critics"
        raise UserError(f"recipe.penalty={BELLMAN} is a spread of values, and {text}; choose another penalty")
    if dynamics.elites < 2:
        text = f"recipe.dynamics.elites={dynamics.elites} gives none"
        raise UserError(f"recipe.penalty={BELLMAN} is a spread over elites, and {text}; take two or more")


def penalty_of(name: str, agent: Agent, model: GaussianDynamics, draws: int) -> Penalty | Bellman:
    """The penalty called `name`; draws: next states per elite, under `bellman`."""
    if name != BELLMAN:
        found: Penalty = find(PENALTIES, name, "penalty")
        return found
    if not isinstance(agent, QEnsemble):
        raise TypeError(f"{type(agent).__name__} has no ensemble of target critics")
    return Bellman(model, lambda obs: lowest(agent, obs), draws)


def lowest(agent: QEnsemble, obs: Tensor) -> Tensor:
    """min_i Q̄_i(s, a), `(*S, B)`, at raw observations and actions that the agent's policy draws."""
    scaled = agent.observe(obs)
    return agent.q_target(scaled, policy(agent, scaled, agent.cfg.explore)).amin(-2)
