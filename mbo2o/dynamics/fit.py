"""Fitting the dynamics ensemble to a mixture of data: holdout, patience, best weights, elites."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mbo2o.data.priorities import Prioritised, search
from mbo2o.dynamics.model import GaussianDynamics
from mbo2o.ensemble.gaussian import gaussian_nll
from mbo2o.ensemble.hash import row_hash
from mbo2o.ensemble.mlp import EnsembleLinear
from mbo2o.nn.normalizer import mixture_statistics
from mbo2o.nn.optim import Adam
from mbo2o.types import Batch, Diverged, Metrics, Numbered, Prepare, UserError

Z50, Z90 = 0.67449, 1.64485
"""Half-widths, in standard deviations, of the intervals that hold 50 % and 90 % of a Gaussian."""
MIN_ROWS = 32
"""A part with fewer training rows is left out."""
MAX_ERROR = 100
"""Holdout error that counts as divergence, in units of the error of predicting no change."""


@dataclass
class FitConfig:
    """Defaults: MOPO (mopo/models/bnn.py) unless said."""

    lr: float = 1e-3
    batch: int = 256
    # from the first layer to the last
    weight_decay: list[float] = field(default_factory=lambda: [2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4])
    bound_weight: float = 0.01  # pulls the log-variance's bounds together
    holdout: float = 0.1  # share of rows kept for early stopping and elites (MOPO 0.2)
    max_holdout: int = 2000  # at most so many of these rows are scored (MOPO 1000, MBPO 5000)
    bootstrap: float = 0.63  # share of the rows that a member sees: the distinct rows of a bootstrap sample
    improvement: float = 0.01  # relative, of a member's holdout error, that counts as progress
    # a seed stops after so many looks at the holdout without progress of any of its members
    patience: int = 5
    min_updates: int = 2000  # never stop before (ours)
    max_updates: int = 50_000  # stop here in any case (MOPO: no bound)
    # updates between two looks at the holdout; None: those of a pass through the data (MOPO), and at least
    # 250 (ours: the passes through a few thousand rows are over before an error can fall)
    epoch_updates: int | None = None
    # relative change of an input's std from which the statistics are renewed (ours)
    scale_tolerance: float = 0.5


class Learner:
    """The learning steps of a model's fits, with the optimiser; one serves all fits of the same settings."""

    def __init__(self, model: GaussianDynamics, cfg: FitConfig, prepare: Prepare = lambda step: step):
        """`prepare` turns a step into the one that is run, such as a compiled one."""
        self._model, self._bound_weight, self._optim = model, cfg.bound_weight, _adam(model, cfg)
        self._run = prepare(self._step)

    def begin(self) -> None:
        """Set Adam's moments to 0 for another fit."""
        for moment in self._optim.buffers():
            moment.zero_()

    def step(self, x: Tensor, y: Tensor) -> None:
        """One step on inputs `(*S, M, B, D+A)` and targets `(*S, M, B, D+1)`."""
        self._run(x, y)

    def _step(self, x: Tensor, y: Tensor) -> None:
        loss = nll(self._model, x, y) + self._bound_weight * self._model.net.bound_width()
        self._optim.step(loss)


def fit(
    model: GaussianDynamics,
    parts: Sequence[tuple[Numbered, float]],
    cfg: FitConfig,
    learner: Learner | None = None,
) -> Metrics:
    """Train from the current weights on rows drawn from `parts`, until the holdout error stops falling.

    parts: rows with their shares, such as the `parts` of a `Weighted` source. Training rows of a
        `Prioritised` part are drawn by priority; its held-out rows count alike, as they do in every fit.
    learner: made once for many fits of `model` with these settings; None: one is made for this fit.

    A hash of its number decides whether a row is held out, and which members never see it. So the split is
    the same in every refit, also while a buffer grows, and early stopping never looks at rows that trained an
    earlier fit. The holdout error is the squared error in target units, weighted over parts by their shares.
    A member keeps its best weights, those it came with included, so a refit never makes it worse there.
    Patience is counted in looks at that error, see `epoch_updates`.

    Statistics of the inputs are set at the first fit and kept, since every change would shift all
    activations. Beyond `scale_tolerance` they are renewed, and the first layer is rescaled so that the
    function stays the same.

    Returns `holdout_mse`, `updates`, and `coverage50` and `coverage90` `(*S, D+1)`, the shares of held-out
    targets inside the elites' intervals. Adam's moments start at 0 each time (MBPO keeps them): since the
    best weights are kept, a rough start does no harm. The draws come from a generator that one draw of the
    global one seeds, so the state of the global one afterwards does not depend on the data.

    Raises:
        UserError: The rows are too few.
        Diverged: The holdout error is not finite, or far too large.
    """
    split = _Split(model, parts, cfg)
    held = split.held_out(model)
    _set_scales(model, split.training(model, 50_000), cfg)
    best = _Best(model, _holdout_mse(model, held))
    learner = learner or Learner(model, cfg)
    learner.begin()
    updates = 0
    epoch = cfg.epoch_updates or max(250, split.size // cfg.batch)
    while updates < cfg.max_updates and not best.settled() and not best.lost.any():
        for _ in range(min(epoch, cfg.max_updates - updates)):
            learner.step(*split.draw(model))
            updates += 1
        best.look(_holdout_mse(model, held), updates, cfg)
    if bool(best.lost.any()):
        text = "the dynamics model's holdout error is not finite"
        raise Diverged(f"{text}: check the data's range, or lower fit.lr and refit.lr")
    if float(best.error.max()) > MAX_ERROR * _target_square(model, held):
        text = f"the dynamics model's holdout error is over {MAX_ERROR} times the targets' own size"
        raise Diverged(f"{text}: lower fit.lr, refit.lr")
    best.restore()
    model.elites.copy_(best.error.argsort(-1)[..., : model.cfg.elites])
    model.fitted.fill_(True)
    coverage = _coverage(model, held)
    error = best.error.gather(-1, model.elites).mean(-1)
    return {"holdout_mse": error, "updates": best.updates.to(torch.float32), **coverage}


Pairs = list[tuple[tuple[Tensor, Tensor], float]]
"""Inputs and targets of each part, and the part's share."""


class _Split:
    """The parts that have enough rows, each with held-out and training rows; draws the batches of a fit."""

    def __init__(self, model: GaussianDynamics, parts: Sequence[tuple[Numbered, float]], cfg: FitConfig):
        seed = int(torch.randint(1 << 62, ()))
        self._rng = torch.Generator(model.spec.device).manual_seed(seed)
        self._host_rng = torch.Generator().manual_seed(seed)
        self._batch = cfg.batch
        wanted = [(rows, share) for rows, share in parts if share > 0]
        # a part with very few rows cannot be split; it joins when it has grown
        pools = [(rows, share, _pool(model, rows, cfg)) for rows, share in wanted]
        self._parts = [x for x in pools if len(x[2].held_out) and len(x[2].seen) >= MIN_ROWS]
        if not self._parts:
            n = sum(len(rows.index) for rows, _ in wanted)
            raise UserError(
                f"{n} transitions are too few to fit a dynamics model; give at least a few hundred "
                "(online: a larger recipe.model_every, so that the first refit has them)"
            )
        self._shares = torch.tensor([share for _, share, _ in self._parts], dtype=torch.float64)

    @property
    def size(self) -> int:
        """Training rows of all parts."""
        return sum(len(pool.seen) for *_, pool in self._parts)

    def held_out(self, model: GaussianDynamics) -> Pairs:
        """The held-out rows."""
        return [(_rows(model, rows, pool.held_out), share) for rows, share, pool in self._parts]

    def training(self, model: GaussianDynamics, n: int) -> Pairs:
        """At most `n` training rows of each part."""
        return [(_rows(model, rows, _some(pool.seen, n)), share) for rows, share, pool in self._parts]

    def draw(self, model: GaussianDynamics) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a batch, `(*S, M, B, ...)`; every member has rows of its own."""
        counts = torch.multinomial(self._shares, self._batch, True, generator=self._host_rng)
        xs, ys = [], []
        for i, (rows, _, pool) in enumerate(self._parts):
            if n := int((counts == i).sum()):
                b = rows.rows(pool.draw(n, self._rng).flatten(-2))
                x, y = _pair(model, b)
                xs.append(x.unflatten(-2, (-1, n)))
                ys.append(y.unflatten(-2, (-1, n)))
        return torch.cat(xs, -2), torch.cat(ys, -2)


class _Pool:
    """The rows of one part: held out, seen by some member, and seen by each member.

    sums: of the priorities of each member's rows `(*S, M, n)`, where rows have priorities.
    """

    def __init__(
        self, held_out: Tensor, seen: Tensor, members: Tensor, sizes: Tensor, sums: Tensor | None = None
    ):
        self.held_out, self.seen, self._members, self._sizes = held_out, seen, members, sizes
        self._sums = sums

    def draw(self, n: int, rng: torch.Generator) -> Tensor:
        """`n` rows for each member out of those it sees, `(*S, M, n)`."""
        u = torch.rand(*self._sizes.shape, n, generator=rng, device=self._sizes.device, dtype=torch.float64)
        if self._sums is not None:
            return self._members.gather(-1, search(self._sums, u))
        return self._members.gather(-1, (u * self._sizes.unsqueeze(-1)).long())


def _pool(model: GaussianDynamics, rows: Numbered, cfg: FitConfig) -> _Pool:
    index = rows.index
    out = row_hash(index, 0) < cfg.holdout
    seen = index[~out]
    mine = row_hash(seen, model.bootstrap.unsqueeze(-1)) < cfg.bootstrap  # (*S, M, n)
    # each member's rows first, in order; the tail behind its size is never drawn
    order = mine.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    sums = None
    if isinstance(rows, Prioritised):
        weights = rows.weights[..., ~out].unsqueeze(-2)
        sums = torch.where(mine, weights, 0.0).gather(-1, order).cumsum(-1)
    return _Pool(holdout(index, cfg), seen, seen[order], mine.sum(-1), sums)


def holdout(index: Tensor, cfg: FitConfig) -> Tensor:
    """The rows among `index` `(n,)` that no fit trains on: at most `max_holdout`, from all over the data."""
    return _some(index[row_hash(index, 0) < cfg.holdout], cfg.max_holdout)


def held_and_seen(index: Tensor, cfg: FitConfig, held: int, seen: int) -> tuple[Tensor, Tensor]:
    """At most `held` rows among `index` that no fit trains on, and at most `seen` of the others."""
    out = row_hash(index, 0) < cfg.holdout
    return _some(index[out], held), _some(index[~out], seen)


def _some(index: Tensor, n: int) -> Tensor:
    """At most `n` rows from all over the data; the first ones of a replay would be of its worst policy."""
    return index if len(index) <= n else index[row_hash(index, 0).argsort(stable=True)[:n]]


def _rows(model: GaussianDynamics, rows: Numbered, index: Tensor) -> tuple[Tensor, Tensor]:
    return _pair(model, rows.rows(index.expand(*model.spec.seeds, -1)))


def _pair(model: GaussianDynamics, b: Batch) -> tuple[Tensor, Tensor]:
    """Raw inputs (obs, act) and raw targets (Δobs, reward)."""
    return torch.cat([b.obs, b.act], -1), torch.cat([b.next_obs - b.obs, b.rew.unsqueeze(-1)], -1)


def nll(model: GaussianDynamics, x: Tensor, y: Tensor) -> Tensor:
    """The members' negative log-likelihoods of raw targets, summed over members: `(*S,)`."""
    mean, log_var = model.net(model.inputs(x))
    return gaussian_nll(mean, log_var, model.targets(y)).sum(-1)


def _adam(model: GaussianDynamics, cfg: FitConfig) -> Adam:
    """Adam with the term wd/2·‖W‖² of MOPO's loss on each layer's weights, not on biases and bounds."""
    layers = len(model.net.net.layers)
    decay = {f"net.layers.{i}.weight": wd for i, wd in enumerate(_spread(cfg.weight_decay, layers))}
    named = dict(model.net.named_parameters())
    return Adam(named.values(), cfg.lr, weight_decay=[decay.get(name, 0.0) for name in named])


def _spread(decay: list[float], layers: int) -> list[float]:
    """Weight decays for `layers` layers: the first and last stay; those between are repeated or left out."""
    return [decay[round(i * (len(decay) - 1) / max(1, layers - 1))] for i in range(layers)]


@torch.no_grad()
def _set_scales(model: GaussianDynamics, seen: Pairs, cfg: FitConfig) -> None:
    """Set the statistics from training rows, or renew them if a spread moved too far; the function stays."""
    shares = [share for _, share in seen]
    first = ~model.fitted
    mean, std = mixture_statistics([x for (x, _), _ in seen], shares)
    far = ((std / model.inputs.std).log().abs() > math.log1p(cfg.scale_tolerance)).any(-1, keepdim=True)
    mean = torch.where(first | far, mean, model.inputs.mean)
    std = torch.where(first | far, std, model.inputs.std)
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
def _holdout_mse(model: GaussianDynamics, held: Pairs) -> Tensor:
    """Each member's squared error in target units, `(*S, M)`, weighted by the parts' shares."""
    total = sum(share for _, share in held)
    error = torch.zeros(())
    for (x, y), share in held:
        mean, _ = model.net(model.inputs(x))
        square = (mean - model.targets(y).unsqueeze(-3)).square().mean((-2, -1))
        error = error.to(mean.device) + share / total * square
    return error


def _target_square(model: GaussianDynamics, held: Pairs) -> float:
    """Mean square of the held-out targets in target units, weighted by the parts' shares."""
    total = sum(share for _, share in held)
    return float(sum(share * model.targets(y).square().mean() for (_, y), share in held) / total)


@torch.no_grad()
def _coverage(model: GaussianDynamics, held: Pairs) -> Metrics:
    """The share of held-out targets inside the elites' intervals, averaged over elites, `(*S, D+1)`."""
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
    """Each member's best weights so far, each seed's patience, and whether its error was ever not finite."""

    def __init__(self, model: GaussianDynamics, error: Tensor):
        self._params = dict(model.net.named_parameters())
        self._kept = {n: p.detach().clone() for n, p in self._params.items()}
        # the weights of a model that was never fitted are not worth keeping
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
        """Keep the weights of members that improved; seeds that have stopped keep what they have.

        Every improvement is kept, though only one of size `improvement` counts for patience (MOPO keeps those
        only): the error of the means levels off long before the variances are learned, and weights of that
        moment predict a multiple of the noise.
        """
        improved = (error < self.error) & ~self._over.unsqueeze(-1)
        progress = improved & (self._mark.isinf() | (self._mark - error > cfg.improvement * self._mark))
        self._mark = torch.where(progress, error, self._mark)
        self.lost |= ~error.isfinite().all(-1) & ~self._over
        any_improved = improved.any(-1)
        for name, p in self._params.items():
            # the bounds of the variance belong to a seed, everything else to a member
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
