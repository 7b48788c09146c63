"""Fitting the dynamics ensemble to a mixture of data sets: holdout, patience, each member's best weights, elites."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from mbo2o.dynamics.model import GaussianDynamics
from mbo2o.ensemble.gaussian import gaussian_nll
from mbo2o.ensemble.mlp import EnsembleLinear
from mbo2o.nn.normalizer import mixture_statistics
from mbo2o.nn.optim import Adam
from mbo2o.types import Batch, Diverged, Metrics, UserError

Z50, Z90 = 0.67449, 1.64485
"""Half-widths, in standard deviations, of the intervals that hold 50 % and 90 % of a Gaussian."""


MIN_ROWS = 32
"""Training rows below which a part is left out."""


MAX_ERROR = 100
"""Holdout error, in units of what predicting nothing would give, that counts as divergence."""


class Rows(Protocol):
    """Something with numbered rows: a dataset or a buffer."""

    @property
    def index(self) -> Tensor:
        """Numbers of the rows whose next observation is known, `(n,)`. A row keeps its number."""
        ...

    def rows(self, index: Tensor) -> Batch:
        """`(*S, B)` numbers → fields `(*S, B, ...)`."""
        ...


@dataclass
class FitConfig:
    """Defaults: MOPO (mopo/models/bnn.py) unless said."""

    lr: float = 1e-3
    batch: int = 256
    weight_decay: list[float] = field(
        default_factory=lambda: [2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4]
    )  # input → output
    bound_weight: float = 0.01  # pulls the log-variance's bounds together
    holdout: float = 0.1  # share of rows kept for early stopping and elites (MOPO 0.2)
    max_holdout: int = 2000  # rows of it that are scored (MOPO 1000, MBPO 5000)
    bootstrap: float = 0.63  # share of the rows that a member sees: the distinct rows of a bootstrap sample
    improvement: float = 0.01  # relative, of a member's holdout error, that counts as progress
    patience: int = (
        5  # looks at the holdout without progress of any of a seed's members before the seed stops
    )
    min_updates: int = 2000  # never stop before (ours)
    max_updates: int = 50_000  # stop here in any case (MOPO: no bound)
    epoch_updates: int | None = (
        None  # between two looks at the holdout; None: those of a pass through the data (MOPO), and at
    )
    # least 250 (ours: the passes through a few thousand rows are over before an error can fall)
    scale_tolerance: float = (
        0.5  # relative change of an input's std at which the statistics are renewed (ours)
    )


def fit(model: GaussianDynamics, parts: Sequence[tuple[Rows, float]], cfg: FitConfig) -> Metrics:
    """Train from the current weights on rows drawn from `parts` (source, share) until the holdout error stops falling.

    Each row is held out, and each member is blind to it, by a hash of its number: the split is the same in every refit, also
    while a buffer grows, so early stopping never looks at rows that trained an earlier fit. The holdout error is the squared
    error in target units, weighted over parts by their shares; a member keeps its best weights, the ones it came with
    included, so a refit never makes it worse there. Patience is counted in looks at that error, see `epoch_updates`.

    Statistics of the inputs are set at the first fit and kept, since every change would shift all activations; beyond
    `scale_tolerance` they are renewed and the first layer is rescaled so that the function stays what it was.

    Returns `holdout_mse`, `updates`, `coverage50/90` `(*S, D+1)`: the share of held-out targets inside the elites' intervals.
    Adam starts afresh each time (MBPO keeps its moments): with the best weights kept, a rough start cannot do harm.
    Uses a generator of its own, seeded by one draw from the global one: what it consumes does not depend on the data.
    """
    seed = int(torch.randint(1 << 62, ()))
    rng, host_rng = torch.Generator(model.spec.device).manual_seed(seed), torch.Generator().manual_seed(seed)
    # a part with next to no rows yet cannot be split; it joins when it has grown
    candidates = [(rows, share, _pool(model, rows, cfg)) for rows, share in parts if share > 0]
    usable = [
        (rows, share, pool)
        for rows, share, pool in candidates
        if len(pool.held_out) and len(pool.seen) >= MIN_ROWS
    ]
    if not usable:
        n = sum(len(rows.index) for rows, share in parts if share > 0)
        raise UserError(
            f"{n} transitions are too few to fit a dynamics model; give at least a few hundred (online: a larger "
            "recipe.model_every, so that the first refit has them)"
        )
    parts, pools = [(rows, share) for rows, share, _ in usable], [pool for *_, pool in usable]
    shares = torch.tensor([share for _, share in parts], dtype=torch.float64)
    held = [(_rows(model, rows, p.held_out), share) for (rows, share), p in zip(parts, pools, strict=True)]
    seen = [
        (_rows(model, rows, _some(p.seen, 50_000)), share)
        for (rows, share), p in zip(parts, pools, strict=True)
    ]
    _set_scales(model, seen, cfg)

    def draw() -> tuple[Tensor, Tensor]:
        """Inputs and targets `(*S, M, B, ...)`, every member its own rows."""
        counts = torch.multinomial(shares, cfg.batch, True, generator=host_rng)
        xs, ys = [], []
        for i, ((rows, _), pool) in enumerate(zip(parts, pools, strict=True)):
            if n := int((counts == i).sum()):
                b = rows.rows(pool.draw(n, rng).flatten(-2))
                x, y = _pair(model, b)
                xs.append(x.unflatten(-2, (-1, n)))
                ys.append(y.unflatten(-2, (-1, n)))
        return torch.cat(xs, -2), torch.cat(ys, -2)

    best = _Best(model, _holdout_mse(model, held))
    optim = _adam(model, cfg)
    updates, epoch = 0, cfg.epoch_updates or max(250, sum(len(p.seen) for p in pools) // cfg.batch)
    while updates < cfg.max_updates and not best.settled() and not best.lost.any():
        for _ in range(min(epoch, cfg.max_updates - updates)):
            loss = nll(model, *draw()) + cfg.bound_weight * model.net.bound_width()
            optim.step(loss)
            updates += 1
        best.look(_holdout_mse(model, held), updates, cfg)
    if bool(best.lost.any()):
        raise Diverged(
            "the dynamics model's holdout error is not finite: check the data's range, or lower fit.lr and refit.lr"
        )
    if float(best.error.max()) > MAX_ERROR * _target_square(model, held):
        raise Diverged(
            f"the dynamics model's holdout error is over {MAX_ERROR} times the targets' own size: lower fit.lr, refit.lr"
        )
    best.restore()
    model.elites.copy_(best.error.argsort(-1)[..., : model.cfg.elites])
    model.fitted.fill_(True)
    coverage = _coverage(model, held)
    error = best.error.gather(-1, model.elites).mean(-1)
    return {"holdout_mse": error, "updates": best.updates.to(torch.float32), **coverage}


class _Pool:
    """One part's rows: held out, seen by some member, and seen by each member."""

    def __init__(self, held_out: Tensor, seen: Tensor, members: Tensor, sizes: Tensor):
        self.held_out, self.seen, self._members, self._sizes = held_out, seen, members, sizes

    def draw(self, n: int, rng: torch.Generator) -> Tensor:
        """`n` rows for each member out of those it sees, `(*S, M, n)`."""
        u = torch.rand(*self._sizes.shape, n, generator=rng, device=self._sizes.device, dtype=torch.float64)
        return self._members.gather(-1, (u * self._sizes.unsqueeze(-1)).long())


def _hash(number: Tensor, salt: Tensor | int) -> Tensor:
    """A number in [0, 1) that looks random, from a row's number and a salt (int64 arithmetic wraps)."""
    x = (number + 1) * -7046029254386353131 + salt * 6364136223846793005 + 1442695040888963407
    x = (x ^ (x >> 29)) * -4658895280553007687
    return ((x ^ (x >> 32)) & 0xFFFFFF).to(torch.float32) / (1 << 24)


def _pool(model: GaussianDynamics, rows: Rows, cfg: FitConfig) -> _Pool:
    index = rows.index
    out = _hash(index, 0) < cfg.holdout
    seen = index[~out]
    mine = _hash(seen, model.bootstrap.unsqueeze(-1)) < cfg.bootstrap  # (*S, M, n)
    # each member's rows first, in order; the tail behind its size is never drawn
    order = mine.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return _Pool(holdout(index, cfg), seen, seen[order], mine.sum(-1))


def holdout(index: Tensor, cfg: FitConfig) -> Tensor:
    """The rows among `index` `(n,)` that no fit trains on: at most `max_holdout`, from all over the data."""
    return _some(index[_hash(index, 0) < cfg.holdout], cfg.max_holdout)


def _some(index: Tensor, n: int) -> Tensor:
    """At most `n` rows, from all over the data: the first ones would be the oldest, of the worst policy in a replay."""
    return index if len(index) <= n else index[_hash(index, 0).argsort(stable=True)[:n]]


def _rows(model: GaussianDynamics, rows: Rows, index: Tensor) -> tuple[Tensor, Tensor]:
    return _pair(model, rows.rows(index.expand(*model.spec.seeds, -1)))


def _pair(model: GaussianDynamics, b: Batch) -> tuple[Tensor, Tensor]:
    """Raw inputs (obs, act) and raw targets (Δobs, reward)."""
    return torch.cat([b.obs, b.act], -1), torch.cat([b.next_obs - b.obs, b.rew.unsqueeze(-1)], -1)


def nll(model: GaussianDynamics, x: Tensor, y: Tensor) -> Tensor:
    """The members' negative log-likelihoods of raw targets, summed over members: `(*S,)`."""
    mean, log_var = model.net(model.inputs(x))
    return gaussian_nll(mean, log_var, model.targets(y)).sum(-1)


def _adam(model: GaussianDynamics, cfg: FitConfig) -> Adam:
    """Adam with the term wd/2·‖W‖² of MOPO's loss, for weights by layer, and not for biases and the variance's bounds."""
    layers = len(model.net.net.layers)
    decay = {f"net.layers.{i}.weight": wd for i, wd in enumerate(_spread(cfg.weight_decay, layers))}
    named = dict(model.net.named_parameters())
    return Adam(named.values(), cfg.lr, weight_decay=[decay.get(name, 0.0) for name in named])


def _spread(decay: list[float], layers: int) -> list[float]:
    """Weight decays for `layers` layers: the first and the last keep theirs, the middle is filled or thinned."""
    return [decay[round(i * (len(decay) - 1) / max(1, layers - 1))] for i in range(layers)]


@torch.no_grad()
def _set_scales(
    model: GaussianDynamics, seen: list[tuple[tuple[Tensor, Tensor], float]], cfg: FitConfig
) -> None:
    """Set the statistics from the training rows, or renew those whose spread has moved too far, keeping the function."""
    shares = [share for _, share in seen]
    first = ~model.fitted
    mean, std = mixture_statistics([x for (x, _), _ in seen], shares)
    far = ((std / model.inputs.std).log().abs() > math.log1p(cfg.scale_tolerance)).any(-1, keepdim=True)
    mean, std = (
        torch.where(first | far, mean, model.inputs.mean),
        torch.where(first | far, std, model.inputs.std),
    )
    if model.fitted:  # (x - m)/s through W, b equals (x - m')/s' through (s'/s) W, b + (m' - m)/s W
        layer = model.net.net.layers[0]
        assert isinstance(layer, EnsembleLinear)
        shift = ((mean - model.inputs.mean) / model.inputs.std).unsqueeze(-3)
        layer.bias.copy_(layer.bias + shift @ layer.weight)
        layer.weight.copy_(layer.weight * (std / model.inputs.std).unsqueeze(-3).transpose(-1, -2))
    model.inputs.mean.copy_(mean)
    model.inputs.std.copy_(std)
    if model.cfg.normalize_targets and first:  # a change of these would change what was learned
        mean, std = mixture_statistics([y for (_, y), _ in seen], shares)
        model.targets.mean.copy_(mean)
        model.targets.std.copy_(std)


@torch.no_grad()
def _holdout_mse(model: GaussianDynamics, held: list[tuple[tuple[Tensor, Tensor], float]]) -> Tensor:
    """Each member's squared error in target units, `(*S, M)`, weighted by the parts' shares."""
    total = sum(share for _, share in held)
    error = torch.zeros(())
    for (x, y), share in held:
        mean, _ = model.net(model.inputs(x))
        error = error.to(mean.device) + share / total * (mean - model.targets(y).unsqueeze(-3)).square().mean(
            (-2, -1)
        )
    return error


def _target_square(model: GaussianDynamics, held: list[tuple[tuple[Tensor, Tensor], float]]) -> float:
    """Mean square of the held-out targets in target units, weighted by the parts' shares."""
    return float(
        sum(share * model.targets(y).square().mean() for (_, y), share in held)
        / sum(share for _, share in held)
    )


@torch.no_grad()
def _coverage(model: GaussianDynamics, held: list[tuple[tuple[Tensor, Tensor], float]]) -> Metrics:
    """Share of held-out targets inside each elite's intervals, averaged over elites, per output `(*S, D+1)`."""
    total = sum(share for _, share in held)
    inside: dict[str, Tensor] = {}
    for (x, y), share in held:
        mean, log_var = model.net(model.inputs(x))
        z = (model.targets(y).unsqueeze(-3) - mean).abs() * torch.exp(-0.5 * log_var)
        for name, width in (("coverage50", Z50), ("coverage90", Z90)):
            hit = model.elite_mean((z < width).to(torch.float32)).mean(-2) * share / total
            inside[name] = inside[name] + hit if name in inside else hit
    return inside


class _Best:
    """Each member's best weights so far, each seed's patience, and whether it met an error that is no number."""

    def __init__(self, model: GaussianDynamics, error: Tensor):
        self._params = dict(model.net.named_parameters())
        self._kept = {n: p.detach().clone() for n, p in self._params.items()}
        # a model that was never fitted has nothing to defend
        self.error = error if model.fitted else torch.full_like(error, torch.inf)
        self._mark = self.error
        self._waited = torch.zeros(error.shape[:-1], dtype=torch.int64, device=error.device)
        self._over = torch.zeros_like(self._waited, dtype=torch.bool)
        self.updates = torch.zeros_like(self._waited)
        self.lost = ~error.isfinite().all(-1)

    def settled(self) -> bool:
        """Whether every seed has run out of patience."""
        return bool(self._over.all())

    @torch.no_grad()
    def look(self, error: Tensor, updates: int, cfg: FitConfig) -> None:
        """Keep the weights of members that improved; seeds that are over keep what they have, whatever the others do.

        Any improvement is kept, though only `improvement` counts for patience (MOPO keeps those only): the means' error levels
        off long before the variances are learned, and weights of that moment predict a multiple of the noise.
        """
        improved = (error < self.error) & ~self._over.unsqueeze(-1)
        progress = improved & (self._mark.isinf() | (self._mark - error > cfg.improvement * self._mark))
        self._mark = torch.where(progress, error, self._mark)
        self.lost |= ~error.isfinite().all(-1) & ~self._over
        any_improved = improved.any(-1)
        for name, p in self._params.items():
            # the variance's bounds belong to the seed, everything else to a member
            mask = any_improved if not name.startswith("net.") else improved
            mask = mask.reshape(*mask.shape, *[1] * (p.dim() - mask.dim()))
            self._kept[name] = torch.where(mask, p, self._kept[name])
        self.error = torch.where(improved, error, self.error)
        self.updates = torch.where(self._over, self.updates, updates)
        self._waited = torch.where(progress.any(-1), 0, self._waited + 1)
        if updates >= cfg.min_updates:
            self._over |= self._waited >= cfg.patience

    @torch.no_grad()
    def restore(self) -> None:
        """Put the kept weights into the model."""
        for name, p in self._params.items():
            p.copy_(self._kept[name])
