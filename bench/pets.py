"""The planning loop of mbrl-lib 0.2.0, as PETS runs it there, on a model of this package.

Some of its defects are worked around here: its configs do not pass today's hydra, so that the agent is built
directly; a batch of plans and particles must be a multiple of the number of elites, so that there is a
particle for each elite; random numbers come from torch's global state, too, so that it is seeded. Others stay
as they are: a plan that leads to NaN counts as -1e-10, and the rule of termination does not see the state
before a step. Its MPPI ignores the size of its noise, and its iCEM keeps elites across episodes; CEM, which
is played here, does neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbo2o.model.dynamics import Dynamics
from mbo2o.model.mbrl_state import mlp_arguments, to_mbrl
from mbo2o.planning.mbrl import MbrlModel


class Pets:
    """Acts for one state `(D,)` at a time, in [-1, 1], with mbrl's CEM and `ModelEnv`."""

    def __init__(self, model: Dynamics, settings: Mapping[str, Any], own: bool):
        """Make the agent.

        Args:
            model: The dynamics.
            settings: horizon, population, iterations and elites, as `mbo2o.Planner` takes them.
            own: Whether the model is mbrl's `OneDTransitionRewardModel` with these weights, or this
                package's adapter.
        """
        from mbrl.models import ModelEnv
        from mbrl.planning import TrajectoryOptimizerAgent
        from omegaconf import OmegaConf

        rows: Any = _own(model) if own else MbrlModel(model.net)
        ends = _ends(model) if own else rows.ends(model.about.ends)
        spaces: Any = type("Spaces", (), {"observation_space": None, "action_space": None})
        world = ModelEnv(spaces, rows, ends, generator=torch.Generator().manual_seed(0))
        optimizer = {"_target_": "mbrl.planning.CEMOptimizer", "alpha": 0.1, "device": "cpu"}
        optimizer |= {"num_iterations": settings["iterations"], "population_size": settings["population"]}
        optimizer |= {"elite_ratio": settings["elites"] / settings["population"], "clipped_normal": False}
        node = OmegaConf.create(optimizer | {"lower_bound": "???", "upper_bound": "???"})
        unit = [1.0] * model.act_dim
        particles = len(model.net.elites)
        self._agent = TrajectoryOptimizerAgent(node, [-x for x in unit], unit, settings["horizon"])
        self._agent.set_trajectory_eval_fn(
            lambda obs, plans: world.evaluate_action_sequences(plans, obs, particles)
        )
        torch.manual_seed(0)

    def reset(self) -> None:
        """Forget the plan."""
        self._agent.reset()

    def act(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:
        """The first action of the plan, `(A,)` in [-1, 1]."""
        return np.asarray(self._agent.act(obs), np.float32)


def _own(model: Dynamics) -> Any:
    from mbrl.models import GaussianMLP, OneDTransitionRewardModel

    net = GaussianMLP(**mlp_arguments(model), propagation_method="random_model")
    wrapper = OneDTransitionRewardModel(net, normalize=True)
    to_mbrl(model, wrapper)
    return wrapper


def _ends(model: Dynamics) -> Any:
    def ends(act: Tensor, next_obs: Tensor) -> Tensor:
        # the rules of the tasks that are played look at the state after the step only
        return model.about.ends(next_obs, act, next_obs).unsqueeze(-1)

    return ends
