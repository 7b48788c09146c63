"""SAC-N and EDAC: pessimism by many critics, or by critics that differ (An et al. 2021, arXiv 2110.01548)."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from mbo2o.agents.sac import SAC, SACConfig
from mbo2o.registry import agent
from mbo2o.types import Batch, Metrics, Spec, UserError


@dataclass
class SACNConfig(SACConfig):
    """Defaults: SAC's, as in the paper, which has nets of three layers and takes millions of steps."""

    # N (CORL: halfcheetah 10, walker2d 20, hopper 200 to 500; too few diverge on narrow data)
    critics: int = 10


@agent("sacn", SACNConfig)
class SACN(SAC):
    """SAC with the smallest of N critics: where data are few, critics differ, and the smallest is low."""

    cfg: SACNConfig


@dataclass
class EDACConfig(SACNConfig):
    """The settings of SAC-N, and how strongly critics are made to differ, so that fewer are enough."""

    # η (CORL: 1, on medium-expert 5; the authors on pen 10 to 1000; N is 10, on hopper 50)
    diversity: float = 1.0

    def after_switch(self) -> SACNConfig:
        """SAC-N: the diversity term goes."""
        return SACNConfig(**{f.name: getattr(self, f.name) for f in fields(SACNConfig)}).unchanged()


@agent("edac", EDACConfig)
class EDAC(SACN):
    """SAC-N with a term that turns the critics' slopes in the action apart at the data.

    Critics with the same slope at the data also agree on actions beyond it, where they should differ.
    """

    cfg: EDACConfig

    def __init__(self, spec: Spec, cfg: EDACConfig):
        if cfg.critics < 2:
            raise UserError(
                f"critics={cfg.critics}: EDAC makes critics differ from each other; take two or more, or sac"
            )
        super().__init__(spec, cfg)

    def regulariser(self, b: Batch, q: Tensor) -> tuple[Tensor, Metrics]:
        """η times the alignment mean_b 1/(N-1) Σ_{i≠j} <g_i, g_j>; g_i is the direction of ∇_a Q_i(s, a).

        The alignment is N where all critics agree and 0 where they are orthogonal. The sum over pairs is
        computed as |Σ_i g_i|² - Σ_i |g_i|².
        """
        n = self.cfg.critics
        obs, act = (x.unsqueeze(-3).expand(*q.shape[:-1], *x.shape[-2:]) for x in (b.obs, b.act))
        act = act.detach().requires_grad_()  # one copy per critic keeps the slopes apart
        (slope,) = torch.autograd.grad(self.q(obs, act).sum(), act, create_graph=True)
        g = slope / (slope.norm(dim=-1, keepdim=True) + 1e-10)  # the authors' 1e-10
        alignment = ((g.sum(-3).square() - g.square().sum(-3)).sum(-1) / (n - 1)).mean(-1)
        return self.cfg.diversity * alignment, {"alignment": alignment.detach()}
