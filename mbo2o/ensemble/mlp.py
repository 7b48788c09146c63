"""Multi-layer perceptrons with leading member axes, for actors, critics and models of any number of seeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mbo2o.types import UserError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "elu": F.elu,
    "gelu": F.gelu,
}
# forms for passes without gradients, which overwrite a layer's output: that saves 3 % of a rollout's time
OVERWRITING = ACTIVATIONS | {
    "relu": torch.relu_,
    "silu": partial(F.silu, inplace=True),
    "tanh": torch.tanh_,
    "elu": partial(F.elu, inplace=True),
}


@dataclass
class MLPConfig:
    """Shape of one member."""

    hidden: list[int] = field(default_factory=lambda: [256, 256])
    activation: str = "relu"
    layer_norm: bool = False  # after each hidden layer, before the activation (RLPD, WSRL, DroQ)
    dropout: float = 0.0  # before the LayerNorm (DroQ); active in training mode only


class EnsembleLinear(nn.Module):
    """`members` independent affine maps that start as `nn.Linear` does: U(±1/sqrt(n_in)), biases too."""

    def __init__(self, members: tuple[int, ...], n_in: int, n_out: int):
        super().__init__()
        bound = 1 / math.sqrt(n_in)
        self.weight = nn.Parameter(torch.empty(*members, n_in, n_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(*members, 1, n_out).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """`(*members, B, n_in)`, or shared by the last axis `(*S, B, n_in)` → `(*members, B, n_out)`."""
        w, b = self.weight, self.bias
        if w.dim() == 2:
            return torch.addmm(b, x, w)
        if x.dim() < w.dim():  # one wide product for a shared input was tried: 0.8 to 1.0 times this speed
            x = x.unsqueeze(-3).expand(*w.shape[:-2], *x.shape[-2:])
        if w.dim() == 3:
            return torch.baddbmm(b, x, w)
        y = torch.baddbmm(b.flatten(0, -3), x.flatten(0, -3), w.flatten(0, -3))
        return y.unflatten(0, w.shape[:-2])


class EnsembleMLP(nn.Module):
    """Independent MLPs, evaluated together: `members` is `(*S,)` for an actor, `(*S, N)` for N critics."""

    def __init__(self, members: tuple[int, ...], n_in: int, n_out: int, cfg: MLPConfig):
        super().__init__()
        if min(cfg.hidden, default=1) < 1:
            raise UserError(f"hidden={list(cfg.hidden)}: every hidden layer needs at least one unit")
        if cfg.activation not in ACTIVATIONS:
            raise UserError(f"activation {cfg.activation!r} is not one of {sorted(ACTIVATIONS)}")
        self.members, self.cfg = members, cfg
        self.activation, self._overwriting = ACTIVATIONS[cfg.activation], OVERWRITING[cfg.activation]
        sizes = [n_in, *cfg.hidden, n_out]
        self.layers = nn.ModuleList(EnsembleLinear(members, i, o) for i, o in pairwise(sizes))
        norms = cfg.hidden if cfg.layer_norm else []
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(*members, 1, n)) for n in norms)
        self.shifts = nn.ParameterList(nn.Parameter(torch.zeros(*members, 1, n)) for n in norms)

    def forward(self, *xs: Tensor) -> Tensor:
        """Inputs `(*S, B, n_i)`, or with a member axis, joined along features → `(*members, B, n_out)`."""
        x = torch.cat(xs, -1) if len(xs) > 1 else xs[0]
        activation = self.activation if torch.is_grad_enabled() else self._overwriting
        for i, layer in enumerate(self.layers[:-1]):
            x = layer(x)
            if self.cfg.dropout:
                x = F.dropout(x, self.cfg.dropout, self.training)
            if self.cfg.layer_norm:
                x = F.layer_norm(x, x.shape[-1:]) * self.scales[i] + self.shifts[i]
            x = activation(x)
        if torch.is_autocast_enabled(x.device.type):  # what values and densities are made of stays float32
            with torch.autocast(x.device.type, enabled=False):
                return self.layers[-1](x.float())
        return self.layers[-1](x)


def members(net: EnsembleMLP, index: Tensor) -> dict[str, Tensor]:
    """Parameters of the members at `index` `(*S, K)` of the last axis, for `torch.func.functional_call`."""

    def take(p: Tensor) -> Tensor:
        k = index.reshape(*index.shape, *[1] * (p.dim() - index.dim()))
        return p.gather(index.dim() - 1, k.expand(*index.shape, *p.shape[index.dim() :]))

    return {name: take(p) for name, p in net.named_parameters()}
