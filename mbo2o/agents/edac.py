"""SAC-N and EDAC: pessimism by many critics, and by critics that differ (An et al. 2021, arXiv 2110.01548)."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from mbo2o.agents.sac import SAC, SACConfig
from mbo2o.registry import agent
from mbo2o.types import Batch, Metrics, Spec, UserError


@dataclass
class SACNConfig(SACConfig):
    """Defaults: SAC's, which the paper keeps (but for nets of three layers) while it takes millions of steps."""

    critics: int = (
        10  # N (CORL: halfcheetah 10, walker2d 20, hopper 200 to 500; too few diverge on narrow data)
    )


@agent("sacn", SACNConfig)
class SACN(SAC):
    """SAC whose target and actor take the smallest of N critics: where data are few they disagree, and the smallest is low."""

    cfg: SACNConfig


@dataclass
class EDACConfig(SACNConfig):
    """SAC-N's, and how much the critics are made to differ, so that fewer do."""

    diversity: float = (
        1.0  # η (CORL: 1, on medium-expert 5; the authors on pen 10 to 1000; N is 10, on hopper 50)
    )

    def after_switch(self) -> SACNConfig:
        """SAC-N: the diversity term goes."""
        return SACNConfig(**{f.name: getattr(self, f.name) for f in fields(SACNConfig)})


@agent("edac", EDACConfig)
class EDAC(SACN):
    """SAC-N whose critics' slopes in the action are pushed apart at the data: those that agree there agree beyond it, too."""

    cfg: EDACConfig

    def __init__(self, spec: Spec, cfg: EDACConfig):
        if cfg.critics < 2:
            raise UserError(
                f"critics={cfg.critics}: EDAC makes critics differ from each other; take two or more, or sac"
            )
        super().__init__(spec, cfg)

    def regulariser(self, b: Batch, q: Tensor) -> tuple[Tensor, Metrics]:
        """The alignment mean_b 1/(N-1) Σ_{i≠j} <g_i, g_j>, times η; g_i is the direction of ∇_a Q_i(s, a) at the data.

        N where all critics agree, 0 where they are orthogonal. Σ_{i≠j} <g_i, g_j> = |Σ_i g_i|² - Σ_i |g_i|² spares the pairs.
        """
        n = self.cfg.critics
        obs, act = (x.unsqueeze(-3).expand(*q.shape[:-1], *x.shape[-2:]) for x in (b.obs, b.act))
        act = act.detach().requires_grad_()  # each critic has its own, so that slopes stay apart
        (slope,) = torch.autograd.grad(self.q(obs, act).sum(), act, create_graph=True)
        g = slope / (slope.norm(dim=-1, keepdim=True) + 1e-10)  # the authors' 1e-10
        alignment = ((g.sum(-3).square() - g.square().sum(-3)).sum(-1) / (n - 1)).mean(-1)
        return self.cfg.diversity * alignment, {"alignment": alignment.detach()}
