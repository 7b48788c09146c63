"""MOORe: model-based offline-to-online RL (Mao, Wang, Wang & Zhang 2022, arXiv 2201.10070).

No code of the authors is public, and their priority function is not known to us: `SAMPLING` is the family that the text admits
(online transitions at a fixed priority, offline ones at f(d, t) falling with the epoch t) with its ablation's baselines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mbo2o.data.sources import Aged, offline_share
from mbo2o.recipes.modelbased import OnlineConfig, branch_length, check_horizon
from mbo2o.recipes.mopo import MOPO, MOPOConfig
from mbo2o.registry import find, recipe
from mbo2o.run.run import Run
from mbo2o.types import UserError

Sampling = Callable[[int, float, int, int], float]
"""(epoch ≥ 1, alpha, offline rows, online rows) → probability that a row is offline."""


def _by_priority(priority: Callable[[int, float], float]) -> Sampling:
    return lambda t, alpha, n_off, n_on: offline_share(priority(t, alpha), n_off, n_on)


SAMPLING: dict[str, Sampling] = {
    # priority of an offline row where an online row has 1. It depends on the epoch alone: the paper's f(d, t) may depend on the
    # transition d, too, which is not built. Of two levels a sampling exponent would only rename alpha, so there is none.
    "geometric": _by_priority(lambda t, alpha: alpha**t),  # smaller alpha fades faster
    "hyperbolic": _by_priority(lambda t, alpha: 1 / (1 + alpha * t)),  # larger alpha fades faster
    "linear": _by_priority(lambda t, alpha: max(0.0, 1 - alpha * t)),  # gone at epoch 1/alpha
    # the baselines of the paper's ablation
    "uniform": _by_priority(lambda t, alpha: 1.0),
    "half": lambda t, alpha, n_off, n_on: 0.5,
    "online": lambda t, alpha, n_off, n_on: 0.0,
}


@dataclass
class MOOReConfig(OnlineConfig, MOPOConfig):
    """The paper's own numbers are not known; MOPO's offline and MBPO's online."""

    sampling: str = "geometric"  # see SAMPLING; uniform, half and online are the ablation's baselines
    alpha: float = 0.9  # pace of the offline data's fading, per epoch (ours)
    online_coef: float | None = None  # λ online; None: what it was offline, as the paper has it
    online_horizon: Any = (
        None  # as horizon, in epochs online; None: the length that the offline phase ends with
    )


@recipe("moore", MOOReConfig)
class MOORe(MOPO):
    """Offline data fade by age; the model is refitted as they do, so its uncertainty and the penalty fade by themselves."""

    paper = "Mao et al. 2022, arXiv 2201.10070"
    cfg: MOOReConfig

    def offline(self, run: Run) -> None:
        """MOPO."""
        self.sampling = find(SAMPLING, self.cfg.sampling, "sampling")
        if not 0 <= self.cfg.alpha <= 1:
            raise UserError(f"recipe.alpha={self.cfg.alpha} must lie in [0, 1]")
        if self.cfg.online_horizon is not None:
            check_horizon("online_horizon", self.cfg.online_horizon)
        super().offline(run)

    @property
    def online_horizon(self) -> Any:
        """The length of branches online, constant or growing."""
        cfg = self.cfg
        last = cfg.offline_steps // cfg.rollout_every
        return branch_length(cfg.horizon, last) if cfg.online_horizon is None else cfg.online_horizon

    def switch(self, run: Run) -> None:
        """Policy, critics, model and its statistics stay; what was imagined offline is forgotten."""
        self.make_online_buffer(run, self.online_horizon)

    def online(self, run: Run) -> None:
        """Act; refit the model as offline data fade; learn from what it imagines."""
        coef = self.cfg.coef if self.cfg.online_coef is None else self.cfg.online_coef
        self.learn_online(run, coef, self.online_horizon)

    def real(self, run: Run, t: int) -> Aged:
        """Offline and online data by their priorities in the current epoch."""
        epoch = t // self.cfg.epoch + 1
        share = self.sampling(epoch, self.cfg.alpha, len(run.dataset), len(run.online))
        return Aged(run.dataset, run.online, share)
