"""The improved cross-entropy method (Pinneri et al. 2020, arXiv 2008.06389)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mbo2o.planning.search import Rate, Search, SearchConfig, best, shifted
from mbo2o.registry import planner


@dataclass
class ICEMConfig(SearchConfig):
    """Defaults: the paper's, but for `population` and what every search has."""

    elites: int = 10
    alpha: float = 0.1
    std: float = 0.5
    colour: float = 2.5  # β: the noise's power falls as 1 / frequency^β; 0 is white noise
    decay: float = 1.25  # γ: by which the population shrinks in each iteration
    keep: float = 0.3  # ξ: the share of the elites that joins the next population


@planner("icem", ICEMConfig)
class ICEM(Search):
    """CEM whose noise is coloured and whose elites live on.

        S_i = max(S γ^-i, 2K),    a ~ clip(μ + σ · noise of colour β)
        elites of the last iteration join each population; those of the last step, moved by one, the first
        μ itself joins the last population;    the plan is the best one that was rated

    Noise that is correlated in time reaches farther than white noise of the same size.
    """

    cfg: ICEMConfig
    _elites: Tensor | None = None

    def improve(self, start: Tensor, rate: Rate, proposals: Tensor) -> Tensor:
        """See `Search.improve`."""
        cfg, mean, std = self.cfg, start, torch.full_like(start, self.cfg.std)
        kept = max(1, round(cfg.keep * cfg.elites))
        # before there are elites, doing nothing takes their places
        old = start.new_zeros(len(start), kept, *start.shape[1:]) if self._elites is None else self._elites
        found, worth = start, start.new_full((len(start),), -torch.inf)
        for i in range(cfg.iterations):
            n = max(round(cfg.population * cfg.decay**-i), 2 * cfg.elites)
            drawn = (mean[:, None] + std[:, None] * coloured(self.normal(n), cfg.colour)).clamp(-1, 1)
            middle = [mean[:, None]] if i == cfg.iterations - 1 else []
            plans = torch.cat([drawn, shifted(old) if i == 0 else old, *middle, proposals], 1)
            elites, values = best(plans, rate(plans), cfg.elites)
            better = values[:, 0] > worth
            found = torch.where(better[:, None, None], elites[:, 0], found)
            worth = torch.maximum(worth, values[:, 0])
            mean = torch.lerp(elites.mean(1), mean, cfg.alpha)
            std = torch.lerp(elites.std(1, correction=0), std, cfg.alpha)
            old = elites[:, :kept]
        self._elites = old
        return found

    def reset(self, rows: Tensor | None = None) -> None:
        """See `Search.reset`; elites are forgotten with the plans."""
        super().reset(rows)
        if rows is None:
            self._elites = None
        elif self._elites is not None:
            self._elites = torch.where(rows[:, None, None, None], 0.0, self._elites)

    def take(self, rows: Tensor) -> None:
        """See `Search.take`."""
        super().take(rows)
        self._elites = None if self._elites is None else self._elites[rows]


def coloured(white: Tensor, colour: float) -> Tensor:
    """White noise `(..., H, A)` made noise whose power falls as 1 / frequency^colour, of variance 1.

    Timmer and König 1995, as the package colorednoise does it: the lowest frequency, 0, gets the power of
    the next one.
    """
    h = white.shape[-2]
    frequency = torch.fft.rfftfreq(h, device=white.device)
    scale = frequency.clamp(min=1 / h) ** (-colour / 2)
    spectrum = torch.fft.rfft(white, dim=-2) * scale[:, None]
    # the variance that this gives to each step: frequencies between the ends count twice
    twice = torch.full_like(scale, 2.0)
    twice[0] = 1.0
    if h % 2 == 0:
        twice[-1] = 1.0
    return torch.fft.irfft(spectrum, n=h, dim=-2) / ((twice * scale.square()).sum() / h).sqrt()
