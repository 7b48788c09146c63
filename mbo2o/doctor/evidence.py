"""The dataset doctor's evidence: what a file says of its episodes, and what its rows show of them.

Arrays over rows are `(N,)`. A pair is a row and the row below it; arrays over pairs are `(N-1,)`. A flag is a
terminal or a timeout: the file's statement that an episode ends at this row.

A jump is a pair that looks like a reset. A linear model of the steps within episodes must be wrong about it,
and it must either end close to the file's first row and begin elsewhere, or be much longer and much worse
predicted than usual steps. Angles and switches, which leap within episodes, do not count. Where the known
episodes start alike, a jump also has to lead to such a start. A pair is no jump if the file tells that the
row below followed (`StoredRows.told`). The thresholds were chosen on nine files of Hopper, Walker2d,
HalfCheetah and PointMaze; elsewhere they may fit less well.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from mbo2o.data.dataset import build_dataset
from mbo2o.data.fields import Attrs, Fields
from mbo2o.doctor.regression import BLOCK, same, spread, step_errors
from mbo2o.types import TerminationFn, UserError

SWITCH = 10
"""The largest number of values of a switch, a dimension such as a contact that is on or off."""


@dataclass(frozen=True)
class Task:
    """What is known about the environment from outside the file; None stands for unknown."""

    env_id: str
    obs_dim: int | None = None
    act_dim: int | None = None
    max_episode_steps: int | None = None
    newest: str | None = None
    """The newest registered version of the environment."""
    problem: str | None = None
    """Why it cannot be made."""
    low: tuple[float, ...] | None = None
    """The lower bounds of its actions, flattened."""
    high: tuple[float, ...] | None = None
    """The upper bounds."""


class StoredRows:
    """The rows of a file, and what its flags and its next observations say."""

    def __init__(self, fields: Fields, attrs: Attrs, task: Task | None):
        self.attrs = attrs
        self.task = task
        self.obs = fields["observations"]
        self.act = fields["actions"]
        self.rew = fields["rewards"]
        self.terminals = fields["terminals"]
        self.timeouts = fields.get("timeouts")
        self.next_obs = fields.get("next_observations")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the doctor reports what the loader repairs
            self.loaded = build_dataset(fields, attrs, "dataset")
        self.valid_next = self.loaded.valid_next.numpy()
        self.no_row = np.zeros(len(self.obs), np.bool_)
        self.std = np.maximum(self.obs.astype(np.float64).std(0), 1e-9)
        self.episode = np.append(0, np.cumsum(self.end[:-1]))
        self.lengths = np.bincount(self.episode)
        starts = np.cumsum(self.lengths) - self.lengths
        self.step_in_episode = np.arange(len(self.obs)) - np.repeat(starts, self.lengths) + 1

    @property
    def env_id(self) -> str | None:
        """The environment by the caller's word, or else by the file's."""
        found = self.task.env_id if self.task else self.attrs.get("env_id")
        return None if found is None else str(found)

    @property
    def limit(self) -> int | None:
        """The time limit in steps, where the file or the task has one."""
        own = self.attrs.get("max_episode_steps")
        if isinstance(own, int):
            return own
        return self.task.max_episode_steps if self.task else None

    @cached_property
    def flagged(self) -> np.ndarray:
        """Rows with a flag.

        Without timeouts and next observations, the ends that the loader derives from the time limit count as
        flags.
        """
        if self.timeouts is not None:
            return self.terminals | self.timeouts
        if self.next_obs is not None:
            return self.terminals
        return (self.loaded.terminated | self.loaded.truncated).numpy()

    @cached_property
    def end(self) -> np.ndarray:
        """Rows that end an episode: those with a flag and, in a file without timeouts, the broken ones."""
        return self.flagged if self.timeouts is not None else self.flagged | np.append(self.broken, False)

    @cached_property
    def known(self) -> np.ndarray:
        """Rows whose next observation is stored."""
        return self.no_row if self.next_obs is None else np.asarray(np.isfinite(self.next_obs).all(1))

    @cached_property
    def zero(self) -> np.ndarray:
        """Rows whose next observation is all zeros while the observation is far from zero."""
        if self.next_obs is None:
            return self.no_row
        return (self.next_obs == 0).all(1) & (np.abs(self.obs) > 1e-3 * self.std).any(1)

    @cached_property
    def stale(self) -> np.ndarray:
        """Rows with a flag whose next observation repeats the observation, if most rows with a flag do so."""
        if self.next_obs is None:
            return self.no_row
        repeated = (self.next_obs == self.obs).all(1) & self.flagged
        return repeated if repeated.sum() > max(1, 0.5 * self.flagged.sum()) else self.no_row

    @cached_property
    def same_below(self) -> np.ndarray:
        """Pairs in which the next observation of the row equals the row below, up to rounding."""
        if self.next_obs is None:
            return self.no_row[1:]
        return same(self.next_obs[:-1], self.obs[1:])

    @cached_property
    def broken(self) -> np.ndarray:
        """Pairs without a flag whose stored next observation differs from the row below."""
        return self.known[:-1] & ~self.same_below & ~self.flagged[:-1]

    @cached_property
    def disordered(self) -> bool:
        """Whether so many pairs are broken that rows, or next observations, are out of order."""
        broken = self.broken & ~self.zero[:-1]  # zeros have a finding of their own
        return bool(broken.sum() > max(20, 0.3 * (~self.flagged[:-1] & self.known[:-1]).sum()))

    @cached_property
    def told(self) -> np.ndarray:
        """Pairs that belong to one episode by the file's word, so that statistics do not count.

        The file stores flags, there is none at this row, and its next observation equals the row below.
        """
        has_flags = self.timeouts is not None and bool(self.flagged.any())
        return self.same_below & ~self.flagged[:-1] if has_flags else self.no_row[1:]

    def distance(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """`(M,)`: the distance of `x (M, D)` from `y`, in deviations, mean over dimensions."""
        return np.abs(x - y) @ (1 / self.std) / len(self.std)


class Motion:
    """What the observations themselves show: where episodes start, and where a reset may be."""

    def __init__(self, file: StoredRows):
        self._file = file

    @cached_property
    def step(self) -> np.ndarray:
        """Pairs: the distance to the row below, as `StoredRows.distance`."""
        return self._file.distance(self._file.obs[1:], self._file.obs[:-1])

    @cached_property
    def leaping(self) -> tuple[np.ndarray, np.ndarray]:
        """`(D,)` each: dimensions that are angles, and dimensions that are switches.

        An angle leaps by its whole range now and then, and such a leap is an ordinary step once the range is
        subtracted. A switch takes few values. Their leaps are not resets.
        """
        obs = self._file.obs
        size, whole = np.abs(np.diff(obs, axis=0))[~self._file.end[:-1]], np.ptp(obs, axis=0)
        angle = np.zeros(len(whole), np.bool_)
        few_values = [len(np.unique(x)) <= SWITCH for x in obs[spread(np.arange(len(obs)))].T]
        switch = np.array(few_values) & (whole > 0)
        for d in np.flatnonzero((whole > 0) & ~switch):
            leap = size[:, d] > 0.5 * whole[d]
            if 0 < leap.sum() < 0.1 * len(leap):
                longest = size[~leap, d].max()
                angle[d] = 0 < longest < 0.3 * whole[d] and (whole[d] - size[leap, d] <= longest).all()
        return angle, switch

    @cached_property
    def smooth(self) -> np.ndarray:
        """The numbers of the dimensions that vary and do not leap; of all dimensions if there are none."""
        angle, switch = self.leaping
        rest = np.flatnonzero(~angle & ~switch & (np.ptp(self._file.obs, axis=0) > 0))
        return rest if len(rest) else np.arange(len(angle))

    @cached_property
    def returned(self) -> np.ndarray:
        """Pairs that lead from elsewhere to where episodes start; none if the starts are not alike.

        Starts are row 0 and each row below an episode's end. Where flags are at wrong rows, these rows are
        not alike, and nothing is concluded from them.
        """
        away, edge = self._from_start
        return (away[1:] <= edge) & (away[:-1] > edge)

    @property
    def starts_alike(self) -> bool:
        """Whether there are at least two starts, and they are close together compared with the other rows."""
        return self._from_start[1] > 0

    @cached_property
    def _from_start(self) -> tuple[np.ndarray, float]:
        """`(N,)`: distances from the median start; and the largest distance of a start, 0 if not alike."""
        file = self._file
        starts = np.append(0, np.flatnonzero(file.end[:-1]) + 1)
        away = file.distance(file.obs, np.median(file.obs[starts], axis=0))
        edge = 1.5 * float(np.quantile(away[starts], 0.9))
        alike = len(starts) > 1 and away[0] <= edge < 0.5 * np.median(away)
        return away, edge if alike else 0.0

    @cached_property
    def jumps(self) -> np.ndarray:
        """Pairs that look like a reset; the module's docstring has the rule."""
        return self._jumps_and_ordinary[0]

    @cached_property
    def ordinary(self) -> np.ndarray:
        """Pairs that look like a step within an episode."""
        return self._jumps_and_ordinary[1]

    @cached_property
    def _jumps_and_ordinary(self) -> tuple[np.ndarray, np.ndarray]:
        file, smooth = self._file, self.smooth
        inside = np.flatnonzero(~file.flagged[:-1])
        if len(inside) < 10:
            return file.no_row[1:], file.no_row[1:]
        sample, std = spread(inside), file.std[smooth]
        error = step_errors(file.obs[:, smooth], file.act, sample, std)
        length = np.abs(np.diff(file.obs[:, smooth], axis=0)) @ (1 / std) / len(smooth)
        usual, usual_length = np.quantile(error[sample], 0.9) + 1e-6, np.quantile(length[sample], 0.9)
        from_first = file.distance(file.obs, file.obs[0])
        back = (error > 2.5 * usual) & (from_first[1:] < 0.25) & (from_first[:-1] > 0.4)
        beside = np.maximum(np.append(0, length[:-1]), np.append(length[1:], 0))
        # where most rows are at rest, usual steps are short and the first steps of an episode are long:
        # compare
        # a step with its neighbours too
        far = (error > 20 * usual) & (length > 5 * usual_length) & (length > 2 * beside)
        jump = back | far
        if self.starts_alike:
            jump &= self.returned
        ordinary = (error <= 1.5 * usual) & ~self.returned
        return jump & ~file.told, ordinary


class Record:
    """What follows from the file's words and its rows together; the checks read it."""

    def __init__(
        self,
        fields: Fields,
        attrs: Attrs,
        task: Task | None = None,
        termination: TerminationFn | None = None,
        rule: str = "given",
    ):
        self.file = StoredRows(fields, attrs, task)
        self.motion = Motion(self.file)
        self.termination = termination
        self.rule = rule

    @cached_property
    def stray(self) -> np.ndarray:
        """Pairs that are broken by a wrong next observation: zeros, or much farther than the row below.

        It must also be farther than other steps go, because before a cut a true next observation may be far
        away and the next episode's start near.
        """
        file = self.file
        if file.next_obs is None or not file.broken.any():
            return file.no_row[1:]
        own = file.distance(file.next_obs[:-1], file.obs[:-1])
        others = own[file.same_below & ~file.flagged[:-1]]
        longest = np.quantile(others, 0.99) if len(others) else 0
        far = (own > 3 * self.motion.step) & (own > 3 * longest) & ~self.motion.returned
        return file.broken & (far | file.zero[:-1])

    @cached_property
    def goes_on(self) -> np.ndarray:
        """Rows with a flag after which the same episode goes on."""
        file, motion = self.file, self.motion
        at = file.flagged[:-1] & (file.same_below if file.next_obs is not None else ~motion.jumps)
        on = at & motion.ordinary
        # single resets may look like steps: the flags are wrong only if many rows with a flag look like this
        usual = on.sum() > max(1, 0.8 * at.sum(), 0.1 * file.flagged[:-1].sum())
        return np.append(at & ~motion.jumps & ~motion.returned & usual, False)

    @cached_property
    def crossing(self) -> np.ndarray:
        """Rows whose next observation is the start of the next episode."""
        ends = self.motion.jumps | self.file.flagged[:-1]
        return np.append(self.file.same_below & ends, False) & ~self.goes_on

    @cached_property
    def hidden(self) -> np.ndarray:
        """The numbers of rows that end an episode without a flag."""
        file = self.file
        # without timeouts, broken pairs are ends already
        broken = file.broken & ~self.stray if file.timeouts is not None else False
        return np.flatnonzero((self.motion.jumps | broken) & ~file.flagged[:-1] & ~file.end[:-1])

    @cached_property
    def tested(self) -> np.ndarray:
        """Rows whose next observation is known and, as far as can be seen, true."""
        wrong = self.file.zero | self.file.stale | self.crossing | np.append(self.stray, False)
        return self.file.valid_next & ~wrong

    @cached_property
    def dead(self) -> np.ndarray:
        """Rows at which the termination rule ends the episode.

        False where not `tested`, or without a rule.
        """
        file = self.file
        dead, rows = file.no_row.copy(), np.flatnonzero(self.tested)
        if self.termination is None:
            return dead
        for block in np.array_split(rows, len(rows) // BLOCK + 1):
            b = file.loaded.rows(torch.from_numpy(block))
            try:
                dead[block] = self.termination(b.obs, b.act, b.next_obs).reshape(len(block)).numpy()
            except Exception as error:  # a user's function may raise anything
                reason = " ".join(str(error).split())
                raise UserError(
                    f"termination {self.rule}: fails on these rows ({type(error).__name__}: {reason})"
                ) from error
        return dead

    @cached_property
    def at_limit(self) -> np.ndarray:
        """Rows with a terminal at exactly the time limit that the rule does not confirm."""
        file = self.file
        limit = file.limit or _usual_longest(file.lengths)
        return file.terminals & (file.step_in_episode == limit) & ~self.dead if limit else file.no_row


def _usual_longest(lengths: np.ndarray) -> int | None:
    """A time limit guessed from the lengths: the longest, if three episodes and a fifth of all reach it."""
    longest = int(lengths.max())
    return longest if longest > 1 and (lengths == longest).sum() >= max(3, 0.2 * len(lengths)) else None
