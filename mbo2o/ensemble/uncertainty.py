"""How uncertain an ensemble is, as one number per state and action.

Each function takes the members' means and standard deviations of (Δobs, reward), `(*S, M, B, D+1)` with the
reward last, and returns `(*S, B)`. Their scales differ by an order of magnitude, so the coefficient of one
penalty does not suit another. `max_aleatoric` saturates: it never exceeds sqrt(Σ (target's std)²
exp(max_log_var)), however far from the data the query is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mbo2o.registry import REGISTERED
from mbo2o.types import UserError

FEW, ROWS = 16, 1024
"""From so many members on, differences of all pairs at once would need gigabytes: rows are then processed in
parts, of which only distances are kept, 64 MB for 128 members."""
Penalty = Callable[[Tensor, Tensor], Tensor]


def max_aleatoric(mean: Tensor, std: Tensor) -> Tensor:
    """U1: the members' largest ‖σ‖ over all outputs (MOPO as released; not a variance)."""
    return std.norm(dim=-1).amax(-2)


def max_deviation(mean: Tensor, std: Tensor) -> Tensor:
    """U2: the largest distance of a member's next state from their mean (OfflineRL-Kit's "pairwise-diff")."""
    mean = mean[..., :-1]
    return (mean - mean.mean(-3, keepdim=True)).norm(dim=-1).amax(-2)


def max_pairwise(mean: Tensor, std: Tensor) -> Tensor:
    """U3: the largest distance between two members' next states (MOReL's disagreement)."""
    mean = mean[..., :-1]
    members = mean.shape[-3]
    if members > FEW:
        parts = (x.transpose(-3, -2).contiguous() for x in mean.split(ROWS, -2))
        exact = "donot_use_mm_for_euclid_dist"  # products of matrices cancel digits of near members
        return torch.cat([torch.cdist(x, x, compute_mode=exact).amax((-2, -1)) for x in parts], -1)
    # a single member makes the pair (0, 0)
    i, j = torch.triu_indices(members, members, min(1, members - 1), device=mean.device)
    return (mean.index_select(-3, i) - mean.index_select(-3, j)).norm(dim=-1).amax(-2)


def epistemic_std(mean: Tensor, std: Tensor) -> Tensor:
    """U4: the members' spread of the next state, root mean square over its dimensions (OfflineRL-Kit)."""
    return mean[..., :-1].var(-3, correction=0).mean(-1).sqrt()


def mixture_std(mean: Tensor, std: Tensor) -> Tensor:
    """U5: the standard deviation of the members' mixture over all outputs: noise plus disagreement."""
    return (std.square().mean(-3) + mean.var(-3, correction=0)).sum(-1).sqrt()


def aleatoric_std(mean: Tensor, std: Tensor) -> Tensor:
    """The noise that members predict for the next state, root mean square: U4's counterpart."""
    return std[..., :-1].square().mean((-3, -1)).sqrt()


PENALTIES: dict[str, Penalty] = {
    f.__name__: f for f in (max_aleatoric, max_deviation, max_pairwise, epistemic_std, mixture_std)
}


BELLMAN = "bellman"
"""The name of the penalty that needs an agent's critics too, see `mbo2o.dynamics.bellman`."""


def penalty(name: str) -> Callable[[Penalty], Penalty]:
    """Function decorator: register an uncertainty under `name`, as settings called `penalty` take it.

    The function takes means and standard deviations `(*S, M, B, D+1)` and returns `(*S, B)`. A second
    definition of the same function replaces the first, as when a notebook's cell runs again.

    Raises:
        UserError: The name is taken by another function.
    """

    def add(f: Penalty) -> Penalty:
        old = PENALTIES.get(name, f)
        if name == BELLMAN or (old.__module__, old.__qualname__) != (f.__module__, f.__qualname__):
            raise UserError(f"a penalty is called {name!r} already; rename the one of {f.__module__}")
        PENALTIES[name] = f
        REGISTERED.append(f)
        return f

    return add
