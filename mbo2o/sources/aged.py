"""Offline data fade by age (MOORe, Mao et al. 2022, arXiv 2201.10070).

The paper draws transitions by priority, with the exponent of prioritised replay: an online transition has a
fixed priority, an offline transition d = (s, a, r, s') has f(d, t), which falls with the epoch t. The
function is not published. Here f(d, t) = g(d) f(t): `SAMPLING` is the family of f(t) that the text admits,
with the baselines of the paper's ablation, and `WEIGHINGS` has the choices of g.

The weights by which prioritised replay corrects a loss for its draws are left out. That method wants the
gradient of uniform draws with less noise; this one wants other draws, and full correction would undo f.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from mbo2o.data.buffer import ReplayBuffer
from mbo2o.data.dataset import TransitionDataset
from mbo2o.data.priorities import Prioritised
from mbo2o.registry import find, source
from mbo2o.sources.append import Append
from mbo2o.sources.balanced import CEILING, FLOOR, BalancedConfig
from mbo2o.sources.base import SourceConfig, check_counts
from mbo2o.sources.mixtures import Blend
from mbo2o.sources.ratio import Ratio
from mbo2o.types import Metrics, Spec, UserError

Sampling = Callable[..., float]
"""(epoch ≥ 1, alpha, offline rows, online rows, exponent=1.0) → probability that a row is offline."""
WEIGHINGS = ("none", "td_error", "model_error", "density_ratio")
"""What g(d) is: 1; the critics' mean |Q_i - y|; the model's error of one step; p_online / p_offline.

The ratio comes from a network as `Balanced` has it, which is taught before each renewal.
"""
CHUNK = 8192
"""Rows that are scored together."""
RATIO_STEPS, RATIO_BATCH = 500, 256
"""Steps of the ratio before each renewal, and rows of each kind in one; with fewer online rows it waits."""


def offline_share(priority: float, n_offline: int, n_online: int) -> float:
    """P(offline) if each of `n_offline` rows has `priority`, each of `n_online` 1; it is 1 without the
    latter.
    """
    weight = n_offline * priority
    return weight / (weight + n_online) if n_online else 1.0


def _by_priority(priority: Callable[[int, float], float]) -> Sampling:
    return lambda t, alpha, n_off, n_on, exponent=1.0: offline_share(
        priority(t, alpha) ** exponent, n_off, n_on
    )


SAMPLING: dict[str, Sampling] = {
    # The priority of an offline row, where an online row has 1. Where all offline rows are alike, the
    # exponent would only rename alpha.
    "geometric": _by_priority(lambda t, alpha: alpha**t),  # a smaller alpha fades faster
    "hyperbolic": _by_priority(lambda t, alpha: 1 / (1 + alpha * t)),  # a larger alpha fades faster
    "linear": _by_priority(lambda t, alpha: max(0.0, 1 - alpha * t)),  # nothing is left at epoch 1/alpha
    # the baselines of the paper's ablation
    "uniform": _by_priority(lambda t, alpha: 1.0),
    "half": lambda t, alpha, n_off, n_on, exponent=1.0: 0.5,
    "online": lambda t, alpha, n_off, n_on, exponent=1.0: 0.0,
}


def check_sampling(where: str, sampling: str, alpha: float) -> None:
    """Raise a `UserError` for a name that is not in `SAMPLING`, or an alpha outside [0, 1]."""
    find(SAMPLING, sampling, "sampling")
    if not 0 <= alpha <= 1:
        raise UserError(f"{where}.alpha={alpha} must lie in [0, 1]")


def check_weighing(where: str, weigh: str, exponent: float, refresh: int) -> None:
    """Raise a `UserError` for a name that is not in `WEIGHINGS`, or for numbers that make no sense."""
    find(dict.fromkeys(WEIGHINGS), weigh, "weighing of rows")
    if exponent < 0:
        raise UserError(f"{where}.exponent={exponent} must not be negative")
    if refresh < 1:
        raise UserError(f"{where}.refresh={refresh} must be at least 1")
    if weigh == "none" and exponent != 1:
        text = f"{where}.exponent={exponent} would only rename alpha where all offline rows are alike"
        raise UserError(f"{text}: leave it out, or choose {where}.weigh")


@dataclass
class AgedConfig(SourceConfig):
    """Defaults: ours."""

    sampling: str = "geometric"  # see SAMPLING; uniform, half and online are the ablation's baselines
    alpha: float = 0.9  # pace at which the offline data fade, per epoch
    epoch: int = 1000  # environment steps
    weigh: str = "none"  # g(d) of an offline row's priority g(d) f(t): none (1), td_error, density_ratio
    exponent: float = 1.0  # power of priorities, as in prioritised replay; 0 makes all rows alike
    refresh: int = 1  # epochs between renewals of all offline rows' g(d), each a pass over the dataset

    def __post_init__(self) -> None:
        check_sampling("recipe.source", self.sampling, self.alpha)
        check_counts("recipe.source", self, "epoch")
        check_weighing("recipe.source", self.weigh, self.exponent, self.refresh)


def priorities(score: Tensor, exponent: float) -> Tensor:
    """g(d)^exponent over its mean, `(*S, n)`; scores g ≥ 0 are kept within [FLOOR, CEILING] times their mean.

    The mean is 1 so that weighing moves draws from offline rows to other offline rows: the share of them all,
    and with it the pace at which they fade, stays that of f(t).
    """
    level = score.double()
    level = level / level.mean(-1, keepdim=True).clamp(min=1e-12)
    power = level.clamp(FLOOR, CEILING).pow(exponent)
    return power / power.mean(-1, keepdim=True)


@source("aged", AgedConfig)
class Aged(Append, nn.Module):
    """Online rows have priority 1; offline rows share a smaller one, which falls from epoch to epoch.

    With `weigh` an offline row's priority is g(d) f(t), and all priorities are raised to `exponent`.
    """

    cfg: AgedConfig

    def __init__(
        self,
        cfg: AgedConfig,
        spec: Spec,
        offline: TransitionDataset,
        online: ReplayBuffer,
        warmup: int = 0,
    ):
        nn.Module.__init__(self)
        Append.__init__(self, cfg, spec, offline, online, warmup)
        if cfg.weigh != "none":
            self.chosen = Prioritised(offline, spec.seeds)
            self.renewed = nn.Buffer(torch.full((), -1))  # the last renewal's number; the host reads it
        if cfg.weigh == "density_ratio":
            usual = BalancedConfig()
            self.ratio = Ratio(spec, usual.ratio, usual.lr)

    @classmethod
    def check(cls, cfg: AgedConfig, rows: int, capacity: int) -> None:
        """`UserError` for a weighing that needs a learned model; MOORe, which has one, does not ask."""
        if cfg.weigh == "model_error":
            raise UserError("recipe.source.weigh=model_error needs a learned model: give recipe=moore")

    @cached_property
    def blend(self) -> Blend:
        """Both kinds of rows, drawn with the share that `advance` has set last."""
        offline = self.offline if self.cfg.weigh == "none" else self.chosen
        return Blend(offline, self.online, self.share)

    def chance(self, steps: int) -> float:
        """The offline share of the epoch that these steps fall in; epochs count from 1."""
        epoch, sizes = steps // self.cfg.epoch + 1, (len(self.offline), len(self.online))
        return SAMPLING[self.cfg.sampling](epoch, self.cfg.alpha, *sizes, self.cfg.exponent)

    def advance(self, steps: int) -> None:
        """Set the share, and renew the rows' priorities if so many epochs have passed."""
        if self.cfg.weigh != "none":
            number = steps // (self.cfg.epoch * self.cfg.refresh)
            if number != int(self.renewed):
                self.renewed.fill_(number)
                self._renew()
        super().advance(steps)

    def spread(self) -> Metrics:
        """The share of offline rows that uniform draws of equal concentration would have; 1 is uniform."""
        if self.cfg.weigh == "none":
            return {}
        weights = self.chosen.weights
        return {"effective_rows": weights.mean(-1).square() / weights.square().mean(-1)}

    def _renew(self) -> None:
        if self.cfg.weigh == "density_ratio":
            if len(self.online) < RATIO_BATCH:
                return
            for _ in range(RATIO_STEPS):
                self.ratio.tell_apart(self.offline.sample(RATIO_BATCH), self.online.sample(RATIO_BATCH))
        score = self.ratio.ratio if self.cfg.weigh == "density_ratio" else self.scores[self.cfg.weigh]
        with torch.no_grad():
            parts = self.offline.index.split(CHUNK)
            found = [score(self.offline.rows(part.expand(*self.spec.seeds, -1))) for part in parts]
        self.chosen.set(priorities(torch.cat(found, -1), self.cfg.exponent))
