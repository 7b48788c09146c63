"""How an ensemble of critics gives one value or loss: reductions of Q, SUNRISE's weights, bootstrap masks.

Values are `(*S, N, B)`: N members at one state and action of each of B transitions. Reductions return
`(*S, B)` and let gradients through, so that an actor may maximise one. Two of them draw at random, with a
`granularity`: one draw per seed and call ("batch", as in ENOTO's code) or one draw per transition ("sample",
as in REDQ's REM).

For N independent Gaussian values the reductions lie at these distances from the mean, in standard deviations:
0 (`mean_q`, `rem`, `first_q`), -0.564 (`random_min_pair` and `weighted_min_pair`, for every N) and -1.539
(`min_q` of ten).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mbo2o.ensemble.hash import GOLDEN, mix, unit
from mbo2o.types import Batch, UserError


def min_q(q: Tensor) -> Tensor:
    """The smallest member: clipped double Q for N = 2, SAC-N's pessimism for more."""
    return q.amin(-2)


def mean_q(q: Tensor) -> Tensor:
    """The members' mean."""
    return q.mean(-2)


def first_q(q: Tensor) -> Tensor:
    """The first member alone (the actors of TD3+BC and LAPO)."""
    return q.select(-2, 0)


def rem(q: Tensor, granularity: str = "batch") -> Tensor:
    """A random convex mixture with weights u_i / Σ u, u_i ~ U(0, 1) (REM, in the targets of REDQ, ENOTO)."""
    # 1 - u lies in (0, 1], so that the weights are never all zero
    u = 1 - torch.rand(*q.shape[:-1], _draws(q, granularity), dtype=q.dtype, device=q.device)
    return (u / u.sum(-2, keepdim=True) * q).sum(-2)


def random_min_pair(q: Tensor, granularity: str = "batch") -> Tensor:
    """The smaller of two members that are drawn without replacement (REDQ with M = 2)."""
    i, j = draw_pair(q.shape[-2], (*q.shape[:-2], 1, _draws(q, granularity)), q.device)
    return torch.minimum(q.take_along_dim(i, -2), q.take_along_dim(j, -2)).squeeze(-2)


def draw_pair(n: int, shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Two different numbers below n, each of `shape`; for n = 1 both are 0."""
    i = torch.randint(n, shape, device=device)
    return i, (i + torch.randint(1, max(2, n), shape, device=device)) % n


def weighted_min_pair(q: Tensor) -> Tensor:
    """The mean of min(Q_i, Q_j) over all pairs (ENOTO): as pessimistic as a random pair, with less noise.

    In closed form: the k-th smallest member is the minimum of the N - k pairs it forms with larger ones.
    """
    n = q.shape[-2]
    if n == 1:
        return q.squeeze(-2)
    weight = torch.arange(n - 1, -1, -1, dtype=q.dtype, device=q.device) * (2 / (n * (n - 1)))
    return (weight.unsqueeze(-1) * q.sort(-2).values).sum(-2)


REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    f.__name__: f for f in (min_q, mean_q, first_q, rem, random_min_pair, weighted_min_pair)
}


def reduction(name: str, granularity: str = "batch") -> Callable[[Tensor], Tensor]:
    """The reduction called `name`, a key of `REDUCTIONS`; a random one draws at this granularity."""
    _check_granularity(granularity)
    f = REDUCTIONS[name]
    return partial(f, granularity=granularity) if f in (rem, random_min_pair) else f


def _check_granularity(granularity: str) -> None:
    if granularity not in ("batch", "sample"):
        raise UserError(f"granularity {granularity!r} is not one of batch, sample")


def _draws(q: Tensor, granularity: str) -> int:
    """How many draws a call makes per seed."""
    _check_granularity(granularity)
    return 1 if granularity == "batch" else q.shape[-1]


def member_std(q: Tensor, ddof: int) -> Tensor:
    """The standard deviation over members, axis -2: `(*S, N, B)` → `(*S, B)`; 0 for one member."""
    return q.std(-2, correction=min(ddof, q.shape[-2] - 1))


@dataclass
class SunriseConfig:
    """SUNRISE's weighted Bellman backup: transitions on whose target the critics disagree count less."""

    # none | per_sample (paper) | scalar_batch (ENOTO's released code: one number for the batch)
    weight: str = "none"
    temperature: float = 10.0  # T (ENOTO's code 10; SUNRISE's repo 20, paper 10 to 50)
    # none | batch_mean: the spread is divided by its batch mean, for values of any scale; then T is near 1
    std_norm: str = "none"


def sunrise_weight(q: Tensor, cfg: SunriseConfig) -> Tensor:
    """The factor w = sigmoid(-T std) + 0.5, in [0.5, 1], of each transition's critic loss, detached.

    q: the target critics' values at (s', a'), `(*S, N, B)`. The result multiplies a loss `(*S, B)`. It is
    `(*S, B)` for `per_sample` (population std over members), and `(*S, 1)` for `scalar_batch` (unbiased std
    of the members' batch means) and for `none` (ones).

    A std beyond 5 / T gives the weight 0.5 however large it is. Returns in the hundreds always have such a
    std, unless `batch_mean` brings it to 1 on average. One factor for a whole batch has almost no effect
    under Adam, which divides a constant scale out.
    """
    if cfg.weight not in ("none", "per_sample", "scalar_batch"):
        raise UserError(f"SUNRISE weight {cfg.weight!r} is not one of none, per_sample, scalar_batch")
    if cfg.std_norm not in ("none", "batch_mean"):
        raise UserError(f"SUNRISE std_norm {cfg.std_norm!r} is not one of none, batch_mean")
    if cfg.weight == "scalar_batch" and cfg.std_norm != "none":
        text = "SUNRISE weight scalar_batch is one number per batch"
        raise UserError(f"{text}: std_norm {cfg.std_norm!r} needs per_sample")
    q = q.detach()
    if cfg.weight == "none":
        return torch.ones_like(q[..., 0, :1])
    std = member_std(q, 0) if cfg.weight == "per_sample" else member_std(q.mean(-1, keepdim=True), 1)
    if cfg.std_norm == "batch_mean":
        # where all critics agree everywhere, this gives 0 and not NaN
        std = std / std.mean(-1, keepdim=True).clamp(min=torch.finfo(std.dtype).tiny)
    return torch.sigmoid(-cfg.temperature * std) + 0.5


def bootstrap_mask(batch: Batch, salt: Tensor, p: float) -> Tensor:
    """Which members learn from which transitions, 0 or 1, `(*S, N, B)`: Bernoulli(p), one at least.

    The mask is a hash of the transition's bits (observation, action, reward) and of the member's `salt`
    `(*S, N)` int64. So it is the same whenever the transition is drawn, from whatever buffer, with nothing
    stored. Equal transitions have equal masks.
    """
    content = torch.cat([batch.obs, batch.act, batch.rew.unsqueeze(-1)], -1)
    bits = content.to(torch.float32).view(torch.int32).to(torch.int64)
    place = mix((torch.arange(bits.shape[-1], device=bits.device) + 1) * GOLDEN) | 1
    key = (bits * place).sum(-1).unsqueeze(-2) + salt.unsqueeze(-1) * GOLDEN
    h = unit(mix(key))
    # if no hash is below p, the smallest decides, which is any member's with equal chance
    return ((h < p) | (h == h.amin(-2, keepdim=True))).to(batch.rew.dtype)


def masked_mean(loss: Tensor, mask: Tensor) -> Tensor:
    """Σ m l / (Σ m + 1) over the batch, `(*S, N, B)` → `(*S, N)`; a member without a row gets 0."""
    return (mask * loss).sum(-1) / (mask.sum(-1) + 1)
