"""A network that tells online rows from offline ones, and says how much likelier they are online."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mbo2o.ensemble.mlp import EnsembleMLP, MLPConfig
from mbo2o.nn.init import per_seed
from mbo2o.nn.optim import Adam
from mbo2o.types import Batch, Spec


class Ratio(nn.Module):
    """w(s, a) ≥ 0 estimates p_online / p_offline (Lee et al. 2021, arXiv 2107.00591); it begins near 1."""

    def __init__(self, spec: Spec, net: MLPConfig, lr: float):
        nn.Module.__init__(self)
        with torch.device(spec.device):
            self.ratio_net = per_seed(lambda s: EnsembleMLP(s.seeds, s.obs_dim + s.act_dim, 1, net), spec)
            nn.init.ones_(self.ratio_net.layers[-1].bias)  # type: ignore[arg-type]
            self.optim = Adam(self.ratio_net.parameters(), lr)

    def ratio(self, b: Batch) -> Tensor:
        """w(s, a) of a batch's pairs, `(*S, B)`."""
        return self.ratio_net(b.obs, b.act).squeeze(-1).relu()

    def tell_apart(self, old: Batch, young: Batch) -> tuple[Tensor, Tensor]:
        """One step on rows of both kinds; returns their ratios before it, `(*S, B)` each."""
        w_old, w_young = self.ratio(old), self.ratio(young)
        self.optim.step(ratio_loss(w_old, w_young))
        return w_old.detach(), w_young.detach()


def ratio_loss(w_offline: Tensor, w_online: Tensor) -> Tensor:
    """Minus a bound on the Jensen-Shannon divergence, `(*S,)`: tight at w = p_online / p_offline, 0 at w = 1.

    It is E_off log((w + 1) / 2) - E_on log(2w / (w + 1)), from ratios `(*S, B)` of rows of each kind.
    """
    offline = ((w_offline + 1) / 2 + 1e-10).log().mean(-1)
    return offline - (2 * w_online / (w_online + 1) + 1e-10).log().mean(-1)
