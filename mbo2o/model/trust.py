"""What to trust of a model: its error and its coverage, step by step and by depth of rollouts.

Recorded episodes are the measure. From some of their states the model rolls `PARTICLES` branches with the
recorded actions, and these are compared with what followed. Ends are ignored there: the branches go on as
long as the record does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mbo2o.types import UserError

if TYPE_CHECKING:
    from mbo2o.data.dataset import TransitionDataset
    from mbo2o.model.dynamics import Array, Dynamics

FILE = "trust.json"
DEPTHS = (1, 2, 5, 10, 20, 50, 100, 200)
"""The depths that tables show; the last one is the deepest that is measured."""
PARTICLES = 19
"""Branches from each state. With 19 of them, the smallest and the largest bound an interval of exactly 90 %,
and the 5th and the 15th one of 50 %, since a true next draw is equally likely to have each of 20 ranks."""
WINDOWS = 64
"""At most so many parts of episodes are compared."""
STRIDE = 25
"""The distance, in steps, of the states of an episode from which parts begin."""
FEWEST = 5
"""Depths that fewer windows reach are left out."""
ROWS = 5000
"""At most so many rows are compared in one step."""
FAR = 10.0
"""A deviation beyond so many standard deviations of the data counts as so many."""


@dataclass(frozen=True)
class Trust:
    """Errors are in standard deviations of the data's observations. Index 0 of a curve is depth 1."""

    error: Tensor
    """`(H,)`: root mean square of the mean branch's deviation, over windows and dimensions."""
    worst: Tensor
    """`(H,)`: nine tenths of the windows deviate less, root mean square over dimensions."""
    inside50: Tensor
    """`(H,)`: the share of numbers inside the intervals that should hold half of them."""
    inside90: Tensor
    """`(H,)`: the same for 90 %."""
    ended: Tensor
    """`(H,)`: the share of branches that the termination rule would have ended by then, although the record
    goes on."""
    windows: Tensor
    """`(H,)`: how many windows reach that depth."""
    held_out: bool
    """Whether the episodes were kept from the fit."""
    table: dict[str, list[float]] = field(default_factory=dict)
    """One step, for each dimension and last the reward, `(D+1,)`: `rmse` in raw units, `unexplained`, the
    share of the variance of the change that is left, `inside50` and `inside90`."""
    rows: int = 0
    """The number of rows behind `table`."""

    def depth(self, error: float = 0.5, coverage: float = 0.8) -> int:
        """The last depth up to which the errors are at most `error` and `inside90` is at least `coverage`."""
        bad = (self.error > error) | (self.inside90 < coverage)
        return int(bad.float().argmax()) if bool(bad.any()) else len(bad)


CRITERION = (
    "The model is to be trusted down to the last depth at which, as at all depths before, the mean of its "
    "rollouts is off by at most {error:g} standard deviations of the data and its 90 % intervals hold at "
    "least {coverage:.0%} of what happened."
)
"""What `trusted_depth` means, in one sentence."""


@dataclass(frozen=True)
class PlanUncertainty:
    """What P rollouts of the same plan say of it; `...` are the plans, H their steps."""

    returns: Array
    """`(...)`: the mean return, without a discount, until the end of the episode."""
    returns_std: Array
    """`(...)`: the standard deviation of the return over rollouts."""
    spread: Array
    """`(..., H)`: the standard deviation of states over rollouts, root mean square over dimensions, in
    standard deviations of the data."""
    uncertainty: Array
    """`(..., H)`: the mean over rollouts of the model's uncertainty u(s, a); 0 after the end."""
    ended: Array
    """`(..., H)`: the share of rollouts that have ended by then."""
    expected_error: Array
    """`(H,)`: the model's `expected_error`; NaN if it was not measured."""


# -------------------------------------------------------------------------------------------------- on disk


def save_trust(folder: Path, found: Sequence[Trust]) -> None:
    """Write `trust.json`, an entry for each seed of the model."""
    seeds = [{k: x.tolist() if isinstance(x, Tensor) else x for k, x in vars(t).items()} for t in found]
    (folder / FILE).write_text(json.dumps({"seeds": [_rounded(x) for x in seeds]}) + "\n")


def read_trust(folder: Path, seed: int) -> Trust | None:
    """What `save_trust` wrote for a seed; None if there is no such file. UserError if it cannot be read."""
    if not (folder / FILE).is_file():
        return None
    try:
        entry = json.loads((folder / FILE).read_text())["seeds"][seed]
        curves: dict[str, Any] = {k: torch.tensor(entry.pop(k), dtype=torch.float32) for k in _CURVES}
        return Trust(**curves, **entry)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
        raise UserError(f"{folder / FILE}: cannot be read ({' '.join(str(e).split())})") from e


_CURVES = ("error", "worst", "inside50", "inside90", "ended", "windows")


def _rounded(x: Any) -> Any:
    """Numbers with six digits, which is more than they mean."""
    if isinstance(x, dict):
        return {key: _rounded(value) for key, value in x.items()}
    if isinstance(x, list):
        return [_rounded(value) for value in x]
    return float(f"{x:.6g}") if isinstance(x, float) else x


# ------------------------------------------------------------------------------------------------ measuring


@dataclass(frozen=True)
class Windows:
    """Parts of recorded episodes, padded to one length with their last row."""

    obs: Tensor
    """`(N, L+1, D)`."""
    act: Tensor
    """`(N, L, A)` in [-1, 1]."""
    length: Tensor
    """`(N,)`: the steps of each."""


def measure(
    dynamics: Dynamics,
    dataset: TransitionDataset,
    rows: Tensor | None = None,
    *,
    held_out: bool = False,
    seed: int = 0,
) -> Trust:
    """Compare a model with recorded rows, in one step and by depth.

    Args:
        dynamics: The model.
        dataset: The record, with actions in [-1, 1] as datasets have them.
        rows: Which rows to use, `(n,)` numbers in increasing order; None: all.
        held_out: Whether these rows were kept from the fit; it is noted only.
        seed: The windows and the draws follow from it.

    Raises:
        UserError: There is no row whose next observation is known.
    """
    index = dataset.index.cpu()
    rows = index if rows is None else rows[torch.isin(rows, index)]
    if not len(rows):
        raise UserError("there is no row to compare the model with: no next observation is known")
    rng = torch.Generator().manual_seed(seed)
    table = one_step(dynamics, dataset, rows[torch.randperm(len(rows), generator=rng)[:ROWS].sort().values])
    windows = windows_of(dataset, rows, rng)
    curves = by_depth(dynamics, windows, seed)
    return Trust(**curves, held_out=held_out, table=table, rows=min(len(rows), ROWS))


def one_step(dynamics: Dynamics, dataset: TransitionDataset, rows: Tensor) -> dict[str, list[float]]:
    """`Trust.table` of these rows. The intervals are those of the elites' mixture."""
    b = dataset.rows(rows)
    obs, act = b.obs.to(dynamics.device), b.act.to(dynamics.device)
    y = torch.cat([b.next_obs - b.obs, b.rew.unsqueeze(-1)], -1).to(dynamics.device)
    mean, std = dynamics.distribution(obs, act)
    square = (mean.mean(0) - y).square().mean(0)
    left = square / y.var(0, correction=0).clamp(min=1e-12)
    # the share of the mixture that lies below what happened is uniform if the model is calibrated
    below = torch.special.ndtr((y - mean) / std).mean(0)
    found = {
        "rmse": square.sqrt(),
        "unexplained": left,
        "inside50": ((below - 0.5).abs() < 0.25).float().mean(0),
        "inside90": ((below - 0.5).abs() < 0.45).float().mean(0),
    }
    return {key: x.cpu().tolist() for key, x in found.items()}


def windows_of(dataset: TransitionDataset, rows: Tensor, rng: torch.Generator) -> Windows:
    """At most `WINDOWS` parts of episodes, of at most `DEPTHS[-1]` steps; they may overlap.

    rows: numbers in increasing order. A window holds rows that follow each other in an episode.
    """
    episode = dataset.episode.cpu()[rows]
    breaks = (rows.diff() != 1) | (episode.diff() != 0)
    first = torch.cat([torch.zeros(1, dtype=torch.int64), breaks.nonzero().flatten() + 1])
    ends = torch.cat([first[1:], torch.tensor([len(rows)])])
    parts = [
        (a, min(a + DEPTHS[-1], end))
        for start, end in zip(first.tolist(), ends.tolist(), strict=True)
        for a in range(start, end, STRIDE)
    ]
    # a window is drawn by its number of steps, as one that holds a random row would be
    weights = torch.tensor([float(b - a) for a, b in parts], dtype=torch.float64)
    order = torch.multinomial(weights, min(len(parts), WINDOWS), generator=rng).tolist()
    chosen = [parts[i] for i in sorted(order)]
    longest = max(b - a for a, b in chosen)
    at = torch.stack([rows[torch.arange(a, a + longest).clamp(max=b - 1)] for a, b in chosen])
    batch = dataset.rows(at)
    obs = torch.cat([batch.obs[:, :1], batch.next_obs], 1)
    return Windows(obs, batch.act, torch.tensor([b - a for a, b in chosen]))


@torch.no_grad()
def by_depth(dynamics: Dynamics, windows: Windows, seed: int = 0) -> dict[str, Tensor]:
    """The curves of `Trust` over the depths of the longest window."""
    obs, act = windows.obs.to(dynamics.device), windows.act.to(dynamics.device)
    n, depth, scale = len(obs), act.shape[1], dynamics.about.scale.to(dynamics.device)
    generator = torch.Generator(dynamics.device).manual_seed(seed)
    states = obs[:, 0].repeat(PARTICLES, 1)
    over = torch.zeros(len(states), dtype=torch.bool, device=states.device)
    columns: list[list[float]] = []
    for t in range(depth):
        actions = act[:, t].repeat(PARTICLES, 1)
        states, _, ended, _ = dynamics.model_step(states, actions, generator, measure=False)
        over = over | ended
        there = (windows.length > t).to(states.device)
        branches = states.unflatten(0, (PARTICLES, n))[:, there]
        columns.append(
            _compare(branches, obs[there, t + 1], scale, over.unflatten(0, (PARTICLES, n))[:, there])
        )
    found = torch.tensor(columns).T
    # a depth that very few windows reach tells little
    found = found[:, found[-1] >= min(FEWEST, n)]
    return dict(zip(_CURVES, found, strict=True))


def _compare(branches: Tensor, truth: Tensor, scale: Tensor, over: Tensor) -> list[float]:
    """The numbers of one depth, in the order of `_CURVES`.

    branches: `(P, n, D)`. truth: what happened, `(n, D)`. over: which branches have ended, `(P, n)`.
    """
    off = ((branches.mean(0) - truth) / scale).clamp(-FAR, FAR).square()
    below = (branches < truth).sum(0)
    half, most = (((below >= k) & (below < PARTICLES + 1 - k)).float().mean() for k in (5, 1))
    numbers = (off.mean().sqrt(), off.mean(-1).sqrt().quantile(0.9), half, most, over.float().mean())
    return [*(float(x) for x in numbers), float(len(truth))]


# -------------------------------------------------------------------------------------------- a whole plan


@torch.no_grad()
def plan_uncertainty(
    dynamics: Dynamics, obs: Array, actions: Array, particles: int, seed: int
) -> PlanUncertainty:
    """See `Dynamics.uncertainty_of_plan`."""
    if particles < 2:
        raise UserError(f"particles={particles} must be at least 2, since their spread is measured")
    acts = dynamics.from_unit(dynamics.to_unit(actions))
    if acts.dim() < 2:
        raise UserError(f"actions have the shape {tuple(acts.shape)}, expected (..., H, A)")
    start = torch.as_tensor(obs, dtype=torch.float32, device=dynamics.device)
    lead = torch.broadcast_shapes(start.shape[:-1], acts.shape[:-2])
    many = start.expand(particles, *lead, start.shape[-1])
    r = dynamics.rollout(many, acts.expand(particles, *lead, *acts.shape[-2:]), seed=seed)
    total = r.reward.sum(-1)
    off = r.obs[..., 1:, :].std(0, correction=0) / dynamics.about.scale.to(dynamics.device)
    horizon = acts.shape[-2]
    expected = torch.full((horizon,), math.nan)
    if dynamics.trust is not None:
        expected = torch.tensor([dynamics.expected_error(t + 1) for t in range(horizon)])
    found = PlanUncertainty(
        total.mean(0),
        total.std(0, correction=0),
        off.square().mean(-1).sqrt(),
        r.uncertainty.mean(0),
        (r.ended.cumsum(-1) > 0).float().mean(0),
        expected,
    )
    given = isinstance(actions, Tensor)
    return found if given else PlanUncertainty(**{k: x.cpu().numpy() for k, x in vars(found).items()})
