"""Checks of time: are rows in order, are cuts where the flags are, does each column belong to its row?

Actions (or rewards) are shifted by one row where the neighbouring row's action (or reward) explains a step
much better than the row's own. It has to do so in each part of the data, by a regression on the other parts.
A policy that depends on the observation alone makes an action informative about the step before it, so a
shift of actions needs a second test; see `_confirmed`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mbo2o.doctor.evidence import Record
from mbo2o.doctor.findings import (
    ALL_NO,
    CARE_BUT_CLONING,
    Finding,
    Harm,
    Harms,
    few,
    in_all,
    in_rows,
    percentage,
)
from mbo2o.doctor.regression import same, spread, standard, unexplained, unexplained_by_part

Unexplained = dict[int, np.ndarray]
"""By row (-1 above, 0 own, 1 below): the share that it leaves unexplained in each part of the data."""
BETTER = 1.2
"""The factor by which the neighbouring row's action has to explain a step better than the row's own."""
IN_EACH = 1.1
"""The factor by which it has to do so, and a reward too, in each part of the data."""


def order(record: Record) -> Iterator[Finding]:
    """Rows that are not in time order, and next observations that belong to other rows."""
    file = record.file
    if not file.disordered or file.next_obs is None:
        return
    rows, of = np.flatnonzero(file.broken), int((~file.flagged[:-1] & file.known[:-1]).sum())
    inner = rows[(rows > 3) & (rows < len(file.obs) - 4)]
    share = {k: _share(same(file.next_obs[inner], file.obs[inner + k])) for k in (-2, -1, 0, 2, 3)}
    best = max(share, key=lambda k: share[k])
    sample = spread(inner)
    inputs = np.concatenate([file.obs[sample], file.act[sample]], 1)
    own, below = (unexplained(inputs, x[sample] - file.obs[sample]) for x in (file.next_obs, file.obs[1:]))
    fits = own < 0.8 * below
    # the rows of several environments in turn look like a shift, but there the row below is farther and fits
    # worse
    in_turn = best >= 2 and fits and not _nearer_below(record, inner)
    if share[best] > 0.8 and not in_turn:
        where = "above" if best < 1 else "below"
        what = "repeat the observation" if best == 0 else f"belong {_rows(best - 1)} {where}"
        harms: Harms = {"td": "no", "dynamics": "no"}
        yield in_rows("next_observations_shifted", rows, of, f"next observations {what}", harms)
    elif fits:
        message = "next observations fit their row and are not in the row below"
        yield in_rows("rows_out_of_order", rows, of, message, {"returns": "no"})
    else:
        message = "next observations neither are in the row below nor fit their row"
        harms = {"td": "no", "dynamics": "no", "returns": "care"}
        yield in_rows("next_observations_misaligned", rows, of, message, harms)


def _nearer_below(record: Record, rows: np.ndarray) -> bool:
    """Whether the row below is usually at least as near as the next observation."""
    file = record.file
    assert file.next_obs is not None
    own = file.distance(file.next_obs[rows], file.obs[rows])
    return bool(np.median(record.motion.step[rows]) <= np.median(own))


def _rows(n: int) -> str:
    return f"{abs(n)} row{'s' * (abs(n) > 1)}"


def cuts(record: Record) -> Iterator[Finding]:
    """Episodes that end without a flag, with or without a pattern, and flags that end nothing."""
    file = record.file
    if file.disordered:
        return
    hidden, flags, of = record.hidden, np.flatnonzero(record.goes_on), len(file.obs)
    flagged, jump = np.flatnonzero(file.flagged), np.append(record.motion.jumps, False)
    if _grows(flagged, hidden):
        message = (
            f"in {len(flagged)} episodes, each cut is one row further below its flag than the cut before: "
            "observations have one row more per episode than actions"
        )
        yield in_rows("extra_observations", hidden, of, message, ALL_NO, share=False)
        return
    timeouts = flagged[~file.terminals[flagged] & ~jump[flagged]]
    if offset := _offset(timeouts, hidden):
        late = hidden[np.isin(hidden - offset, timeouts)]
        side = "before" if offset > 0 else "after"
        message = f"timeouts stand {_rows(offset)} {side} the cut that they mean"
        stored = int((file.flagged & ~file.terminals).sum())
        yield in_rows("timeouts_out_of_step", late, stored, message, _harms_of_cuts(record, late))
        hidden, flags = np.setdiff1d(hidden, late), np.setdiff1d(flags, late - offset)
    if len(hidden):
        message = "rows end an episode without a flag"
        yield in_rows("hidden_cuts", hidden, of, message, _harms_of_cuts(record, hidden))
    yield from _flags_that_end_nothing(record, flags)


def _harms_of_cuts(record: Record, rows: np.ndarray) -> Harms:
    """The harm of hidden cuts; where true next observations are stored, the loader sees the cuts too."""
    file = record.file
    if file.next_obs is not None and not file.same_below[rows].any():
        return {"returns": "care"}
    # a single jump in a small file may be no reset
    bad: Harm = few(len(rows), len(file.obs)) if len(rows) > 1 else "care"
    return {"td": bad, "dynamics": bad, "returns": bad}


def _grows(flags: np.ndarray, hidden: np.ndarray) -> bool:
    """Whether the cut of the i-th flag is i + 1 rows below it."""
    if len(flags) < 3 or len(hidden) < 3:
        return False
    return _share(np.isin(hidden, flags + np.arange(len(flags)) + 1)) > 0.6


def _offset(timeouts: np.ndarray, hidden: np.ndarray) -> int:
    """The number of rows by which hidden cuts follow the timeouts that end nothing; 0 if it varies."""
    hits = {k: int(np.isin(timeouts + k, hidden).sum()) for k in (-3, -2, -1, 1, 2, 3)}
    best = max(hits, key=lambda k: hits[k])
    return best if hits[best] > max(1, 0.5 * len(timeouts)) else 0


def _flags_that_end_nothing(record: Record, flags: np.ndarray) -> Iterator[Finding]:
    file = record.file
    for name, mask in (("terminals", file.terminals), ("timeouts", file.flagged & ~file.terminals)):
        rows, of = flags[mask[flags]], int(mask.sum())
        if len(rows):
            harms: Harms = {"td": "care", "returns": "care"} if name == "terminals" else {"returns": "care"}
            message = f"{name} stand where the episode goes on in the row below"
            yield in_rows(f"{name}_go_on", rows, of, message, harms)


def boundaries(record: Record) -> Iterator[Finding]:
    """Files without timeouts, and what marks the ends of episodes instead."""
    file = record.file
    if file.timeouts is not None:
        return
    found, of = file.end & ~file.terminals, len(file.obs)
    if file.next_obs is not None or "max_episode_steps" in file.attrs:
        source = "max_episode_steps" if file.next_obs is None else "next_observations"
        message = f"there are no timeouts; {found.sum()} cuts follow from {source}"
        yield in_rows("timeouts_missing", found, of, message, share=False)
    else:
        message = (
            "only terminals end an episode: timeouts, next_observations and max_episode_steps are missing"
        )
        yield in_all("boundaries_unknown", message, CARE_BUT_CLONING, count=of)


def time_limit(record: Record) -> Iterator[Finding]:
    """Episodes beyond the environment's time limit."""
    file, limit = record.file, record.file.limit
    if not limit or file.disordered:
        return
    lost = int((np.maximum(file.lengths - 1, 0) // limit).sum())
    if lost:
        rows, bad = np.flatnonzero(file.step_in_episode == limit + 1) - 1, few(lost, len(file.obs))
        message = (
            f"episodes are longer than the time limit of {limit} steps (up to {file.lengths.max()}): "
            f"at least {lost} cuts have no flag"
        )
        blind: Harms = {"td": bad, "dynamics": bad, "returns": bad}
        harms: Harms = blind if file.next_obs is None else {"returns": "care"}
        yield in_rows("episodes_over_limit", rows, len(file.lengths), message, harms)


def limit_as_terminal(record: Record) -> Iterator[Finding]:
    """Time limits that are stored as terminals."""
    file = record.file
    rows, of = np.flatnonzero(record.at_limit), int(file.terminals.sum())
    if len(rows) < 2:
        return
    steps = int(file.step_in_episode[rows[0]])
    if not (file.end & ~file.terminals & (file.step_in_episode == steps)).any():
        bad: Harm = "no" if len(rows) > 0.05 * of else "care"
        message = f"terminals stand at exactly {steps} steps: a time limit stored as a termination"
        harms: Harms = {"td": bad, "dynamics": "care", "returns": "care"}
        yield in_rows("limit_as_terminal", rows, of, message, harms)


def next_observations(record: Record) -> Iterator[Finding]:
    """Next observations that are wrong although the rows are in order."""
    file = record.file
    if file.next_obs is None or file.disordered:
        return
    stray = np.append(record.stray, False)
    for name, mask, what in (
        ("next_is_next_start", record.crossing, "are the next episode's start"),
        ("zero_next", file.zero, "are zeros"),
        ("stale_next", file.stale, "repeat the observation at the end of an episode"),
        ("next_strays", stray & ~file.zero, "are far from their row and from the row below"),
    ):
        if mask.any():
            of, bootstrapped = int(file.known.sum()), int((mask & ~file.terminals).sum())
            harms: Harms = {"dynamics": few(int(mask.sum()), of)}
            if bootstrapped:
                harms |= {"td": few(bootstrapped, of)}
            yield in_rows(name, mask, of, f"next observations {what}", harms)


def unknown(record: Record) -> Iterator[Finding]:
    """Rows that TD and dynamics models cannot use."""
    file = record.file
    rows, terminals = ~file.valid_next, file.terminals
    if rows.any():
        harms: Harms = {"td": "care", "dynamics": "care"} if rows.mean() > 0.3 else {}
        message = "rows have no known next observation: only cloning can use them"
        yield in_rows("next_unknown", rows, len(rows), message, harms)
    if terminals.any() and rows[terminals].all():
        count = int(terminals.sum())
        message = f"all {count} terminals lack a next observation: what ends an episode cannot be learned"
        harms = {"td": "care", "dynamics": "care"}
        yield in_rows("terminals_unused", terminals, count, message, harms, share=False)


def shifts(record: Record) -> Iterator[Finding]:
    """Actions and rewards that belong to the row above or to the row below."""
    if not enough_for_shifts(record):
        return
    file, rows, of = record.file, _inner(record), len(record.file.obs)
    obs, next_obs = file.obs[rows], file.loaded.next_obs.numpy()[rows]
    step = (next_obs - obs)[:, record.motion.smooth]
    off = {k: unexplained_by_part(np.concatenate([obs, file.act[rows + k]], 1), step) for k in (-1, 0, 1)}
    k = _elsewhere(off, BETTER)
    if k and _confirmed(record, rows, step, off, k):
        yield in_all("actions_shifted", _explains_better(off, k, "action"), ALL_NO, count=of)
    if file.rew[rows].std() > 0:
        transition = standard(np.concatenate([obs, file.act[rows], next_obs], 1))
        inputs = np.concatenate([transition, transition**2], 1)
        off = {k: unexplained_by_part(inputs, file.rew[rows + k, None]) for k in (-1, 0, 1)}
        if k := _elsewhere(off, 3.0):
            harms: Harms = {"td": "no", "dynamics": "no", "returns": "care"}
            yield in_all("rewards_shifted", _explains_better(off, k, "reward"), harms, count=of)


def _elsewhere(off: Unexplained, factor: float) -> int:
    """The row that explains steps better by `factor`, in each part by IN_EACH: -1 above, 1 below, 0 none."""
    best = min(off, key=lambda k: off[k].mean())
    better = off[0].mean() > factor * off[best].mean() + 1e-6 and (off[0] > IN_EACH * off[best] + 1e-6).all()
    return best if better and off[best].mean() <= 0.6 else 0


def _confirmed(record: Record, rows: np.ndarray, step: np.ndarray, off: Unexplained, k: int) -> bool:
    """Whether a second test agrees that the action of this row belongs to the row `k` above or below.

    A policy chooses an action from the observation that it sees. If the action of the row above belongs to
    this row, this row's observation explains it at least as well as it explains this row's action. The action
    of the row below needs more care: it may explain the step only because the policy saw where the step led.
    If it does belong to this row, then this row's action belongs to the step before: it adds little to the
    other action, and the observation before explains it better.
    """
    file = record.file
    obs, own = file.obs[rows], file.act[rows]
    by_policy = unexplained_by_part(obs, own).mean()
    if k < 0:
        return bool(unexplained_by_part(obs, file.act[rows + k]).mean() <= 1.1 * by_policy)
    both = unexplained_by_part(np.concatenate([obs, own, file.act[rows + k]], 1), step).mean()
    by_step_before = unexplained_by_part(np.concatenate([obs, file.obs[rows - 1]], 1), own).mean()
    return bool(off[k].mean() <= BETTER * both and by_policy + 0.01 > 1.1 * (by_step_before + 0.01))


def _explains_better(off: Unexplained, k: int, what: str) -> str:
    other, own = (percentage(float(off[i].mean())) for i in (k, 0))
    return (
        f"the {what} of the row {'above' if k < 0 else 'below'} explains a step better than the row's own "
        f"{what} does ({other} of the variance unexplained against {own})"
    )


def enough_for_shifts(record: Record) -> bool:
    """Whether enough rows are inside episodes to tell a shift from chance."""
    inputs = 2 * record.file.obs.shape[1] + record.file.act.shape[1]
    return not record.file.disordered and len(_inner(record)) >= 20 * inputs


def _inner(record: Record) -> np.ndarray:
    """A sample of the rows with both neighbours in their episode and a true next observation."""
    end = record.file.end.copy()
    end[:-1] |= record.motion.jumps
    return spread(np.flatnonzero(~end[:-2] & ~end[1:-1] & record.tested[1:-1]) + 1)


def _share(mask: np.ndarray) -> float:
    return float(mask.mean()) if mask.size else 0.0
