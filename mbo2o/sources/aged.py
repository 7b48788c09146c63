"""Offline data fade by age (MOORe, Mao et al. 2022, arXiv 2201.10070).

The paper draws transitions by priority: an online transition has a fixed one, an offline transition d has
f(d, t), which falls with the epoch t. Its function f is not published. `SAMPLING` is the family that the text
admits, with f the same for all d, and the baselines of the paper's ablation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mbo2o.registry import find, source
from mbo2o.sources.append import Append
from mbo2o.sources.base import SourceConfig, check_counts
from mbo2o.types import UserError

Sampling = Callable[[int, float, int, int], float]
"""(epoch ≥ 1, alpha, offline rows, online rows) → probability that a row is offline."""


def offline_share(priority: float, n_offline: int, n_online: int) -> float:
    """P(offline) if each of `n_offline` rows has `priority`, each of `n_online` 1; it is 1 without the
    latter.
    """
    weight = n_offline * priority
    return weight / (weight + n_online) if n_online else 1.0


def _by_priority(priority: Callable[[int, float], float]) -> Sampling:
    return lambda t, alpha, n_off, n_on: offline_share(priority(t, alpha), n_off, n_on)


SAMPLING: dict[str, Sampling] = {
    # The priority of an offline row, where an online row has 1. An exponent of the priorities, as prioritised
    # replay has it, would only rename alpha where there are two levels, so there is none.
    "geometric": _by_priority(lambda t, alpha: alpha**t),  # a smaller alpha fades faster
    "hyperbolic": _by_priority(lambda t, alpha: 1 / (1 + alpha * t)),  # a larger alpha fades faster
    "linear": _by_priority(lambda t, alpha: max(0.0, 1 - alpha * t)),  # nothing is left at epoch 1/alpha
    # the baselines of the paper's ablation
    "uniform": _by_priority(lambda t, alpha: 1.0),
    "half": lambda t, alpha, n_off, n_on: 0.5,
    "online": lambda t, alpha, n_off, n_on: 0.0,
}


def check_sampling(where: str, sampling: str, alpha: float) -> None:
    """Raise a `UserError` for a name that is not in `SAMPLING`, or an alpha outside [0, 1]."""
    find(SAMPLING, sampling, "sampling")
    if not 0 <= alpha <= 1:
        raise UserError(f"{where}.alpha={alpha} must lie in [0, 1]")


@dataclass
class AgedConfig(SourceConfig):
    """Defaults: ours."""

    sampling: str = "geometric"  # see SAMPLING; uniform, half and online are the ablation's baselines
    alpha: float = 0.9  # pace at which the offline data fade, per epoch
    epoch: int = 1000  # environment steps

    def __post_init__(self) -> None:
        check_sampling("recipe.source", self.sampling, self.alpha)
        check_counts("recipe.source", self, "epoch")


@source("aged", AgedConfig)
class Aged(Append):
    """Online rows have priority 1; offline rows share a smaller one, which falls from epoch to epoch."""

    cfg: AgedConfig

    def chance(self, steps: int) -> float:
        """The offline share of the epoch that these steps fall in; epochs count from 1."""
        epoch = steps // self.cfg.epoch + 1
        return SAMPLING[self.cfg.sampling](epoch, self.cfg.alpha, len(self.offline), len(self.online))
