"""MOBILE's Bellman inconsistency: how far the values of what members predict lie apart (Sun et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mbo2o.dynamics.model import GaussianDynamics
from mbo2o.ensemble.uncertainty import Penalty


class Bellman:
    """u(s, a) = std over elites m of [mean over K draws s' ~ T_m(s, a) of v(s')], in units of values.

    v(s') = min_i Q̄_i(s', a'), with a' drawn from the policy; see offlinerlkit/policy/model_based/mobile.py,
    `compute_lcb`. Like that code, and unlike a spread of whole Bellman targets, it leaves out the factor γ,
    the members' rewards and the end of the task; a coefficient that is published for the code fits. The
    standard deviation is the unbiased one.

    The code computes u in every update, with the critics of that moment. Here it is part of an imagined
    row's reward: it is computed when the row is, with the critics of that rollout, and is as old as the row
    (`retain` rollouts at most). Real rows have no penalty in both. The code also clamps targets to 0 or more,
    which is right only where returns are never negative; there is no clamp here.
    """

    def __init__(self, model: GaussianDynamics, value: Callable[[Tensor], Tensor], draws: int = 10):
        """`value` maps raw observations `(*S, B, D)` to v, `(*S, B)`; draws: K."""
        self._model, self._value, self._draws = model, value, draws

    def __call__(self, obs: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """The penalty `(*S, B)` of a prediction `(*S, M, B, D+1)` at `obs` `(*S, B, D)`."""
        centre = obs.unsqueeze(-3) + self._model.of_elites(mean)[..., :-1]
        spread = self._model.of_elites(std)[..., :-1]
        # one draw at a time: all at once would need memory for K times as many rows
        total = torch.zeros_like(centre[..., 0])
        for _ in range(self._draws):
            next_obs = centre + spread * torch.randn_like(centre)
            total = total + self._value(next_obs.flatten(-3, -2)).unflatten(-1, total.shape[-2:])
        return (total / self._draws).std(-2)


def measure(penalty: Penalty | Bellman, obs: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """u(s, a), `(*S, B)`, by a penalty of either kind."""
    return penalty(obs, mean, std) if isinstance(penalty, Bellman) else penalty(mean, std)
