"""A dataset's rows as a record in time: what its flags say of episodes, and what the rows themselves show of them.

A jump, the trace of a reset, is a step that a linear model of in-episode steps misses, and that either lands where the file's
first row stands, coming from elsewhere, or is both far too long and far too badly missed. Angles and switches, which leap
within episodes, are left out of this. Where the known episodes all start alike, a jump has to lead from elsewhere to such
a start; and no step is a jump of which the file says that the row below followed (`told`). The thresholds were chosen on nine
files of Hopper, Walker2d, HalfCheetah and PointMaze, so elsewhere it may do worse.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from mbo2o.data.dataset import build_dataset
from mbo2o.data.fields import Attrs, Fields
from mbo2o.types import TerminationFn, UserError

SAMPLE = 20_000
"""Rows that linear models are fitted to."""
BLOCK = 100_000
"""Rows that are worked on at a time."""
FOLDS = 4
"""Parts of the rows, each of which has to confirm what is read off a linear model."""
SWITCH = 10
"""Values that a dimension takes at most to count as a switch, such as a contact that is on or off."""


@dataclass(frozen=True)
class Task:
    """What is known of the environment from outside the file; None where it is not."""

    env_id: str
    obs_dim: int | None = None
    act_dim: int | None = None
    max_episode_steps: int | None = None
    newest: str | None = None
    """The newest version of it that is registered."""
    problem: str | None = None
    """Why it cannot be made."""
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    """Its box of actions, flattened."""


class Record:
    """The rows, and what several checks ask about them. A pair is a row and the one below it: `(N-1,)`."""

    def __init__(
        self,
        fields: Fields,
        attrs: Attrs,
        task: Task | None,
        termination: TerminationFn | None,
        rule: str,
    ):
        self.attrs, self.task, self.termination, self.rule = attrs, task, termination, rule
        self.obs, self.act, self.rew = fields["observations"], fields["actions"], fields["rewards"]
        self.terminals = fields["terminals"]
        self.timeouts, self.next_obs = fields.get("timeouts"), fields.get("next_observations")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the loader mends is reported here
            self.loaded = build_dataset(fields, attrs, "dataset")
        self.valid_next = self.loaded.valid_next.numpy()
        self.nowhere = np.zeros(len(self.obs), np.bool_)
        self.episode = np.append(0, np.cumsum(self.end[:-1]))
        self.lengths = np.bincount(self.episode)
        self.step_in_episode = (
            np.arange(len(self.obs)) - np.repeat(np.cumsum(self.lengths) - self.lengths, self.lengths) + 1
        )
        self.std = np.maximum(self.obs.astype(np.float64).std(0), 1e-9)

    @property
    def env_id(self) -> str | None:
        """What the environment is called by the caller, or else by the file."""
        found = self.task.env_id if self.task else self.attrs.get("env_id")
        return None if found is None else str(found)

    @property
    def limit(self) -> int | None:
        """The task's time limit, where it is known."""
        own = self.attrs.get("max_episode_steps")
        return own if isinstance(own, int) else self.task.max_episode_steps if self.task else None

    @cached_property
    def flagged(self) -> np.ndarray:
        """`(N,)`: the file says that an episode ends here; with neither timeouts nor next observations by its time limit."""
        if self.timeouts is not None:
            return self.terminals | self.timeouts
        return (
            self.terminals
            if self.next_obs is not None
            else (self.loaded.terminated | self.loaded.truncated).numpy()
        )

    @cached_property
    def end(self) -> np.ndarray:
        """`(N,)`: the same, where the file has no timeouts with the cuts that its next observations show."""
        return self.flagged if self.timeouts is not None else self.flagged | np.append(self.broken, False)

    @cached_property
    def known(self) -> np.ndarray:
        """`(N,)`: the file gives a next observation."""
        return self.nowhere if self.next_obs is None else np.asarray(np.isfinite(self.next_obs).all(1))

    @cached_property
    def zero(self) -> np.ndarray:
        """`(N,)`: the file's next observation is all zeros, and the observation is far from that."""
        if self.next_obs is None:
            return self.nowhere
        return (self.next_obs == 0).all(1) & (np.abs(self.obs) > 1e-3 * self.std).any(1)

    @cached_property
    def stale(self) -> np.ndarray:
        """`(N,)`: at an episode's end the file gives the observation as the next one, and does so at most ends."""
        if self.next_obs is None:
            return self.nowhere
        repeated = (self.next_obs == self.obs).all(1) & self.flagged
        return repeated if repeated.sum() > max(1, 0.5 * self.flagged.sum()) else self.nowhere

    @cached_property
    def same_below(self) -> np.ndarray:
        """Pairs: the file's next observation stands in the row below, up to rounding."""
        if self.next_obs is None:
            return self.nowhere[1:]
        return same(self.next_obs[:-1], self.obs[1:])

    @cached_property
    def broken(self) -> np.ndarray:
        """Pairs without a flag between, where the file's next observation does not stand in the row below."""
        return self.known[:-1] & ~self.same_below & ~self.flagged[:-1]

    @cached_property
    def disordered(self) -> bool:
        """So many are broken that the rows are no record in time, or that the next observations are another's."""
        broken = self.broken & ~self.zero[:-1]  # zeros belong to no row, and are found for themselves
        return bool(broken.sum() > max(20, 0.3 * (~self.flagged[:-1] & self.known[:-1]).sum()))

    @cached_property
    def stray(self) -> np.ndarray:
        """Pairs: broken because of the next observation, which is zeros, or much further than the row below.

        It is further than other steps go, too: before a cut a true next observation may be far and the start near.
        """
        if self.next_obs is None or not self.broken.any():
            return self.nowhere[1:]
        own = self.distance(self.next_obs[:-1], self.obs[:-1])
        others = own[self.same_below & ~self.flagged[:-1]]
        longest = np.quantile(others, 0.99) if len(others) else 0
        far = (own > 3 * self.steps_below) & (own > 3 * longest) & ~self.returned
        return self.broken & (far | self.zero[:-1])

    def distance(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """`(M,)`: how far `x (M, D)` is from `y`, in deviations, mean over dimensions."""
        return np.abs(x - y) @ (1 / self.std) / len(self.std)

    @cached_property
    def steps_below(self) -> np.ndarray:
        """Pairs: how far it is to the row below, in deviations, mean over dimensions."""
        return self.distance(self.obs[1:], self.obs[:-1])

    @cached_property
    def leaping(self) -> tuple[np.ndarray, np.ndarray]:
        """`(D,)` each: angles that leap by their whole range, and switches, which take few values.

        Their leaps are no resets. An angle that has leapt has gone on by an ordinary step.
        """
        inside = ~self.end[:-1]
        size, whole = np.abs(np.diff(self.obs, axis=0))[inside], np.ptp(self.obs, axis=0)
        angle = np.zeros(len(whole), np.bool_)
        few = np.array([len(np.unique(x)) <= SWITCH for x in self.obs[spread(np.arange(len(self.obs)))].T])
        switch = few & (whole > 0)
        for d in np.flatnonzero((whole > 0) & ~switch):
            leap = size[:, d] > 0.5 * whole[d]
            if 0 < leap.sum() < 0.1 * len(leap):
                longest = size[~leap, d].max()
                angle[d] = 0 < longest < 0.3 * whole[d] and (whole[d] - size[leap, d] <= longest).all()
        return angle, switch

    @cached_property
    def smooth(self) -> np.ndarray:
        """Numbers of the other dimensions; of all, if there are no others."""
        angle, switch = self.leaping
        rest = np.flatnonzero(~angle & ~switch & (np.ptp(self.obs, axis=0) > 0))
        return rest if len(rest) else np.arange(len(self.std))

    @cached_property
    def returned(self) -> np.ndarray:
        """Pairs: the row below stands where episodes start, and this one elsewhere; none if starts differ.

        Starts are row 0 and what follows an episode's end. Where flags stand in wrong rows these are not alike, so
        that nothing is concluded from them; `starts_alike` says whether they are.
        """
        away, edge = self._from_start
        return (away[1:] <= edge) & (away[:-1] > edge)

    @property
    def starts_alike(self) -> bool:
        """Whether there are two starts or more, and they tell where an episode starts."""
        return self._from_start[1] > 0

    @cached_property
    def _from_start(self) -> tuple[np.ndarray, float]:
        """`(N,)`: how far rows are from the usual start; and up to which distance a row is one, 0 if starts differ."""
        starts = np.append(0, np.flatnonzero(self.end[:-1]) + 1)
        away = self.distance(self.obs, np.median(self.obs[starts], axis=0))
        edge = 1.5 * float(np.quantile(away[starts], 0.9))
        alike = len(starts) > 1 and away[0] <= edge < 0.5 * np.median(away)
        return away, edge if alike else 0.0

    @cached_property
    def jumps(self) -> tuple[np.ndarray, np.ndarray]:
        """Pairs: whether the step to the row below is a jump, and whether it is an ordinary one; see the module."""
        inside = np.flatnonzero(~self.flagged[:-1])
        if len(inside) < 10:
            return self.nowhere[1:], self.nowhere[1:]
        sample, smooth = spread(inside), self.smooth
        missed = _missed(self.obs[:, smooth], self.act, sample, self.std[smooth])
        length = np.abs(np.diff(self.obs[:, smooth], axis=0)) @ (1 / self.std[smooth]) / len(smooth)
        usual, usual_length = np.quantile(missed[sample], 0.9) + 1e-6, np.quantile(length[sample], 0.9)
        from_start = self.distance(self.obs, self.obs[0])
        back = (missed > 2.5 * usual) & (from_start[1:] < 0.25) & (from_start[:-1] > 0.4)
        beside = np.maximum(np.append(0, length[:-1]), np.append(length[1:], 0))
        # where most rows are at rest usual steps are short, and all of a start's are long, one after the other
        far = (missed > 20 * usual) & (length > 5 * usual_length) & (length > 2 * beside)
        jump = back | far
        if self.starts_alike:  # a reset leads to a start
            jump &= self.returned
        ordinary = (missed <= 1.5 * usual) & ~self.returned
        return jump & ~self.told, ordinary

    @cached_property
    def told(self) -> np.ndarray:
        """Pairs that are known to be of one episode; statistics have no say about them.

        The file keeps flags, none of them stands between the two, and its next observation is the row below.
        """
        kept = self.timeouts is not None and bool(self.flagged.any())
        return self.same_below & ~self.flagged[:-1] if kept else self.nowhere[1:]

    @cached_property
    def goes_on(self) -> np.ndarray:
        """`(N,)`: an episode's end by flag, after which the record goes on as if nothing had been."""
        jump, ordinary = self.jumps
        at = self.flagged[:-1] & (self.same_below if self.next_obs is not None else ~jump)
        on = at & ordinary
        # a reset that looks like a step happens; where that is not rare and the usual case, the flags are what is odd
        usual = on.sum() > max(1, 0.8 * at.sum(), 0.1 * self.flagged[:-1].sum())
        return np.append(at & ~jump & ~self.returned & usual, False)

    @cached_property
    def crossing(self) -> np.ndarray:
        """`(N,)`: the file's next observation is the next episode's start."""
        jump, _ = self.jumps
        return np.append(self.same_below & (jump | self.flagged[:-1]), False) & ~self.goes_on

    @cached_property
    def hidden(self) -> np.ndarray:
        """Row numbers after which another episode starts though no flag says so."""
        jump, _ = self.jumps
        # without timeouts the loader finds the broken ones
        broken = self.broken & ~self.stray if self.timeouts is not None else False
        return np.flatnonzero((jump | broken) & ~self.flagged[:-1] & ~self.end[:-1])

    @cached_property
    def tested(self) -> np.ndarray:
        """`(N,)`: rows whose next observation is known and true as far as can be seen."""
        wrong = self.zero | self.stale | self.crossing | np.append(self.stray, False)
        return self.valid_next & ~wrong

    @cached_property
    def dead(self) -> np.ndarray:
        """`(N,)`: the termination rule ends the episode here; false where not `tested`, or without a rule."""
        dead, rows = self.nowhere.copy(), np.flatnonzero(self.tested)
        if self.termination is None:
            return dead
        for block in np.array_split(rows, len(rows) // BLOCK + 1):
            batch = self.loaded.rows(torch.from_numpy(block))
            try:
                dead[block] = (
                    self.termination(batch.obs, batch.act, batch.next_obs).reshape(len(block)).numpy()
                )
            except Exception as error:  # whatever a user's function raises
                reason = " ".join(str(error).split())
                raise UserError(
                    f"termination {self.rule}: fails on these rows ({type(error).__name__}: {reason})"
                ) from error
        return dead

    @cached_property
    def at_limit(self) -> np.ndarray:
        """`(N,)`: terminals at the very time limit that no rule confirms."""
        limit = self.limit or _usual_longest(self.lengths)
        return self.terminals & (self.step_in_episode == limit) & ~self.dead if limit else self.nowhere


def _usual_longest(lengths: np.ndarray) -> int | None:
    """A time limit that nobody told: the greatest length, if at least three episodes and a fifth of all reach it."""
    longest = int(lengths.max())
    return longest if longest > 1 and (lengths == longest).sum() >= max(3, 0.2 * len(lengths)) else None


def _missed(obs: np.ndarray, act: np.ndarray, sample: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Pairs: by how much a linear model of the sampled ones is wrong, in its usual errors, mean over dimensions."""
    centre = obs.astype(np.float64).mean(0)

    def inputs(rows: np.ndarray) -> np.ndarray:
        return np.concatenate([np.ones((len(rows), 1)), (obs[rows] - centre) / std, act[rows]], 1)

    def steps(rows: np.ndarray) -> np.ndarray:
        return obs[rows + 1].astype(np.float64) - obs[rows]

    weights, scale = _robust_fit(inputs(sample), steps(sample), std)
    pairs = np.arange(len(obs) - 1)
    blocks = np.array_split(pairs, len(pairs) // BLOCK + 1)
    return np.concatenate([(np.abs(steps(x) - inputs(x) @ weights) / scale).mean(1) for x in blocks])


def _robust_fit(x: np.ndarray, y: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of a ridge regression on the three quarters that it fits best, and its usual error per column."""
    keep = np.ones(len(x), np.bool_)
    for _ in range(4):
        weights = _ridge(x[keep], y[keep])
        off = np.abs(y - x @ weights)
        scale = np.maximum(1.4826 * np.median(off, 0), 1e-3 * std)
        score = (off / scale).mean(1)
        keep = score <= np.quantile(score, 0.75)
    return weights, scale


def _ridge(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.linalg.solve(x.T @ x + 1e-4 * len(x) * np.eye(x.shape[1]), x.T @ y)


def same(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`(N,)`: rows equal up to rounding."""
    return np.asarray(np.isclose(x, y, rtol=1e-5, atol=1e-6).all(1))


def spread(rows: np.ndarray) -> np.ndarray:
    """At most `SAMPLE` of the rows, from all over."""
    return rows if len(rows) <= SAMPLE else rows[np.linspace(0, len(rows) - 1, SAMPLE).astype(int)]


def unexplained(x: np.ndarray, y: np.ndarray) -> float:
    """Share of the variance of `y (n, d)` that a ridge regression on `x (n, k)` leaves, mean over columns that vary."""
    y = y[:, y.std(0) > 1e-9]
    if not y.size:
        return 0.0
    x, y = standard(x), standard(y)
    return float(((y - x @ _ridge(x, y)) ** 2).mean())


def held_out(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`(FOLDS,)`: the same share in each part of the rows, where the regression is fitted to the other parts."""
    y = y[:, y.std(0) > 1e-9]
    if not y.size:
        return np.zeros(FOLDS)
    x, y = standard(x), standard(y)
    parts = np.array_split(np.arange(len(x)), FOLDS)
    xx, xy = ([x[rows].T @ z[rows] for rows in parts] for z in (x, y))
    shares = []
    for rows, own_xx, own_xy in zip(parts, xx, xy, strict=True):
        ridge = 1e-4 * (len(x) - len(rows)) * np.eye(x.shape[1])
        weights = np.linalg.solve(sum(xx) - own_xx + ridge, sum(xy) - own_xy)
        shares.append(((y[rows] - x[rows] @ weights) ** 2).mean())
    return np.array(shares)


def standard(x: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and deviation 1, float64."""
    x = x.astype(np.float64)
    return (x - x.mean(0)) / np.maximum(x.std(0), 1e-9)
