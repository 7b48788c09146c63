"""The dataset doctor on time: are the rows in order, do episodes end where the flags say, and is what followed what followed?

A shift of actions (rewards) by one row is found where the neighbouring row's action (reward) explains the step markedly better
than its own, in each part of the data that the explanation was not fitted to. A policy that is a function of the
observation leaks the next one, so that a shift of actions needs a second test; see `_confirmed`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mbo2o.doctor.evidence import Record, held_out, same, spread, standard, unexplained
from mbo2o.doctor.findings import (
    ALL_NO,
    CARE_BUT_CLONING,
    Finding,
    Harm,
    Harms,
    few,
    finding,
    percent,
    percentage,
)

Unexplained = dict[int, np.ndarray]
"""By row (-1 above, 0 own, 1 below): what that row's action or reward leaves unexplained in each part of the data."""
BETTER = 1.2
"""By which factor the neighbouring row's action has to explain a step better than the row's own."""
IN_EACH = 1.1
"""By which factor it has to do so, and a reward too, in each part of the data by itself."""


def order(record: Record) -> Iterator[Finding]:
    """Rows that are no record in time, and next observations that belong to other rows."""
    if not record.disordered or record.next_obs is None:
        return
    rows, of = np.flatnonzero(record.broken), int((~record.flagged[:-1] & record.known[:-1]).sum())
    inner = rows[(rows > 3) & (rows < len(record.obs) - 4)]
    share = {k: _share(same(record.next_obs[inner], record.obs[inner + k])) for k in (-2, -1, 0, 2, 3)}
    best = max(share, key=lambda k: share[k])
    sample = spread(inner)
    inputs = np.concatenate([record.obs[sample], record.act[sample]], 1)
    own, below = (
        unexplained(inputs, x[sample] - record.obs[sample]) for x in (record.next_obs, record.obs[1:])
    )
    fits = own < 0.8 * below
    # rows of several environments in turn look like a shift, but the row below is further away, and fits worse
    in_turn = best >= 2 and fits and not _nearer_below(record, inner)
    if share[best] > 0.8 and not in_turn:
        what = "repeat the observation" if best == 0 else f"belong to the row {best - 1:+d}"
        message = f"{percent(len(rows), of)} of next observations {what}"
        yield finding("next_observations_shifted", message, rows, of, {"td": "no", "dynamics": "no"})
    elif fits:
        message = f"{percent(len(rows), of)} of rows are followed by another than their next observation, which fits them"
        yield finding("rows_out_of_order", message, rows, of, {"returns": "no"})
    else:
        message = f"{percent(len(rows), of)} of next observations neither stand in the row below nor fit"
        yield finding(
            "next_observations_misaligned",
            message,
            rows,
            of,
            {"td": "no", "dynamics": "no", "returns": "care"},
        )


def _nearer_below(record: Record, rows: np.ndarray) -> bool:
    """Whether the row below is usually no further away than the next observation."""
    assert record.next_obs is not None
    own = record.distance(record.next_obs[rows], record.obs[rows])
    return bool(np.median(record.steps_below[rows]) <= np.median(own))


def cuts(record: Record) -> Iterator[Finding]:
    """Episodes' ends without a flag, in a pattern or not, and flags without an end."""
    if record.disordered:
        return
    hidden, flags, of = record.hidden, np.flatnonzero(record.goes_on), len(record.obs)
    flagged, jump = np.flatnonzero(record.flagged), np.append(record.jumps[0], False)
    if _grows(flagged, hidden):
        message = f"{len(flagged)} episodes end ever later than flagged: observations hold one row more per episode than actions"
        yield finding("extra_observations", message, hidden, of, ALL_NO)
        return
    timeouts = flagged[~record.terminals[flagged] & ~jump[flagged]]
    if offset := _offset(timeouts, hidden):
        late = hidden[np.isin(hidden - offset, timeouts)]
        side = f"{abs(offset)} row{'s' * (abs(offset) > 1)} {'before' if offset > 0 else 'after'}"
        of_timeouts = int((record.flagged & ~record.terminals).sum())
        message = f"{percent(len(late), of_timeouts)} of timeouts stand {side} the cut that they mean"
        yield finding("timeouts_out_of_step", message, late, of_timeouts, _harms_of_cuts(record, late))
        hidden, flags = np.setdiff1d(hidden, late), np.setdiff1d(flags, late - offset)
    if len(hidden):
        message = f"{percent(len(hidden), of)} of rows are an episode's last without a flag that says so"
        yield finding("hidden_cuts", message, hidden, of, _harms_of_cuts(record, hidden))
    yield from _flags_that_cut_nothing(record, flags)


def _harms_of_cuts(record: Record, rows: np.ndarray) -> Harms:
    """Where the file gives true next observations, the loader sees the cut, too."""
    if record.next_obs is not None and not record.same_below[rows].any():
        return {"returns": "care"}
    bad: Harm = (
        few(len(rows), len(record.obs)) if len(rows) > 1 else "care"
    )  # one jump in a small file may be none
    return {"td": bad, "dynamics": bad, "returns": bad}


def _grows(flags: np.ndarray, hidden: np.ndarray) -> bool:
    """Whether the cut that the i-th flag means stands i + 1 rows below it."""
    if len(flags) < 3 or len(hidden) < 3:
        return False
    return _share(np.isin(hidden, flags + np.arange(len(flags)) + 1)) > 0.6


def _offset(timeouts: np.ndarray, hidden: np.ndarray) -> int:
    """By how many rows the hidden cuts stand behind the timeouts that cut nothing; 0 if not by the same number."""
    hits = {k: int(np.isin(timeouts + k, hidden).sum()) for k in (-3, -2, -1, 1, 2, 3)}
    best = max(hits, key=lambda k: hits[k])
    return best if hits[best] > max(1, 0.5 * len(timeouts)) else 0


def _flags_that_cut_nothing(record: Record, flags: np.ndarray) -> Iterator[Finding]:
    for name, mask in (("terminals", record.terminals), ("timeouts", record.flagged & ~record.terminals)):
        rows, of = flags[mask[flags]], int(mask.sum())
        if len(rows):
            harms: Harms = {"td": "care", "returns": "care"} if name == "terminals" else {"returns": "care"}
            message = f"after {percent(len(rows), of)} of {name} the record goes on in the next row"
            yield finding(f"{name}_go_on", message, rows, of, harms)


def boundaries(record: Record) -> Iterator[Finding]:
    """What stands in for timeouts that are not stored."""
    if record.timeouts is not None:
        return
    found, of = record.end & ~record.terminals, len(record.obs)
    if record.next_obs is not None or "max_episode_steps" in record.attrs:
        source = "max_episode_steps" if record.next_obs is None else "next_observations"
        yield finding(
            "timeouts_missing", f"there are no timeouts; {found.sum()} cuts follow from {source}", found, of
        )
    else:
        message = "there are neither timeouts nor next_observations nor max_episode_steps: only terminals end an episode"
        yield finding("boundaries_unknown", message, record.nowhere, of, CARE_BUT_CLONING, count=of)


def time_limit(record: Record) -> Iterator[Finding]:
    """Episodes beyond the environment's time limit."""
    limit = record.limit
    if not limit or record.disordered:
        return
    lost = int((np.maximum(record.lengths - 1, 0) // limit).sum())
    if lost:
        rows, bad = np.flatnonzero(record.step_in_episode == limit + 1) - 1, few(lost, len(record.obs))
        message = (
            f"{percent(len(rows), len(record.lengths))} of episodes are longer than the time limit of {limit} steps (up to "
            f"{record.lengths.max()}): at least {lost} cuts have no flag"
        )
        harms: Harms = (
            {"returns": "care"}
            if record.next_obs is not None
            else {"td": bad, "dynamics": bad, "returns": bad}
        )
        yield finding("episodes_over_limit", message, rows, len(record.lengths), harms)


def limit_as_terminal(record: Record) -> Iterator[Finding]:
    """Time limits that were stored as terminations."""
    rows, of = np.flatnonzero(record.at_limit), int(record.terminals.sum())
    if len(rows) < 2:
        return
    steps = int(record.step_in_episode[rows[0]])
    if not (record.end & ~record.terminals & (record.step_in_episode == steps)).any():
        bad: Harm = "no" if len(rows) > 0.05 * of else "care"
        message = f"{percent(len(rows), of)} of terminals stand at exactly {steps} steps: a time limit stored as a termination"
        yield finding(
            "limit_as_terminal", message, rows, of, {"td": bad, "dynamics": "care", "returns": "care"}
        )


def next_observations(record: Record) -> Iterator[Finding]:
    """Next observations that are not what followed, though the rows are in order."""
    if record.next_obs is None or record.disordered:
        return
    inside = np.append(record.stray, False)
    for name, mask, what in (
        ("next_is_next_start", record.crossing, "are the next episode's start"),
        ("zero_next", record.zero, "are zeros"),
        ("stale_next", record.stale, "repeat the observation at episodes' ends"),
        ("next_strays", inside & ~record.zero, "are far from the row and from the one below"),
    ):
        if mask.any():
            count, of = int(mask.sum()), int(record.known.sum())
            bootstrapped = int((mask & ~record.terminals).sum())
            harms: Harms = {"dynamics": few(count, of)} | (
                {"td": few(bootstrapped, of)} if bootstrapped else {}
            )
            yield finding(name, f"{percent(count, of)} of next observations {what}", mask, of, harms)


def unknown(record: Record) -> Iterator[Finding]:
    """Rows that are never used for TD and dynamics."""
    rows, of, terminals = ~record.valid_next, len(record.obs), record.terminals
    if rows.any():
        much: Harms = {"td": "care", "dynamics": "care"} if rows.mean() > 0.3 else {}
        message = (
            f"{percent(int(rows.sum()), of)} of rows have no known next observation: good for cloning alone"
        )
        yield finding("next_unknown", message, rows, of, much)
    if terminals.any() and rows[terminals].all():
        count = int(terminals.sum())
        message = f"all {count} terminals lack a next observation: nobody learns what ends an episode"
        yield finding("terminals_unused", message, terminals, count, {"td": "care", "dynamics": "care"})


def shifts(record: Record) -> Iterator[Finding]:
    """Actions and rewards that belong to the row above or below."""
    if not enough_for_shifts(record):
        return
    rows, of = _inner(record), len(record.obs)
    obs, next_obs = record.obs[rows], record.loaded.next_obs.numpy()[rows]
    step = (next_obs - obs)[:, record.smooth]
    off = {k: held_out(np.concatenate([obs, record.act[rows + k]], 1), step) for k in (-1, 0, 1)}
    k = _elsewhere(off, BETTER)
    if k and _confirmed(record, rows, step, off, k):
        yield finding("actions_shifted", _goes_better(off, k, "action"), rows[:0], of, ALL_NO, count=of)
    if record.rew[rows].std() > 0:
        transition = standard(np.concatenate([obs, record.act[rows], next_obs], 1))
        inputs = np.concatenate([transition, transition**2], 1)
        off = {k: held_out(inputs, record.rew[rows + k, None]) for k in (-1, 0, 1)}
        if k := _elsewhere(off, 3.0):
            harms: Harms = {"td": "no", "dynamics": "no", "returns": "care"}
            yield finding("rewards_shifted", _goes_better(off, k, "reward"), rows[:0], of, harms, count=of)


def _elsewhere(off: Unexplained, factor: float) -> int:
    """The row, -1 above or 1 below, with which the data go better by this factor, and each part of them, or 0."""
    best = min(off, key=lambda k: off[k].mean())
    better = off[0].mean() > factor * off[best].mean() + 1e-6 and (off[0] > IN_EACH * off[best] + 1e-6).all()
    return best if better and off[best].mean() <= 0.6 else 0


def _confirmed(record: Record, rows: np.ndarray, step: np.ndarray, off: Unexplained, k: int) -> bool:
    """Whether a second look agrees that the action of this row belongs to the row `k` above or below.

    A policy explains an action by the observation that it saw. An action of the row above which belongs here is
    explained by this row's observation no worse than this row's action is. The action of the row below needs more
    care: it may explain the step only because the policy that chose it saw where the step led. If it belongs here,
    then this row's action is that of the step before: it adds little to the other action, and the observation before
    explains it better.
    """
    obs, own = record.obs[rows], record.act[rows]
    by_policy = held_out(obs, own).mean()
    if k < 0:
        return bool(held_out(obs, record.act[rows + k]).mean() <= 1.1 * by_policy)
    both = held_out(np.concatenate([obs, own, record.act[rows + k]], 1), step).mean()
    by_step_before = held_out(np.concatenate([obs, record.obs[rows - 1]], 1), own).mean()
    return bool(off[k].mean() <= BETTER * both and by_policy + 0.01 > 1.1 * (by_step_before + 0.01))


def _goes_better(off: Unexplained, k: int, what: str) -> str:
    where = "above" if k < 0 else "below"
    return (
        f"a row's step goes better with the {what} of the row {where} than with its own "
        f"({percentage(float(off[k].mean()))} unexplained against {percentage(float(off[0].mean()))})"
    )


def enough_for_shifts(record: Record) -> bool:
    """Rows inside episodes to tell chance from a shift."""
    return not record.disordered and len(_inner(record)) >= 20 * (
        2 * record.obs.shape[1] + record.act.shape[1]
    )


def _inner(record: Record) -> np.ndarray:
    """A sample of the rows whose step is known and true and whose two neighbours are of the same episode."""
    end = record.end.copy()
    end[:-1] |= record.jumps[0]
    return spread(np.flatnonzero(~end[:-2] & ~end[1:-1] & record.tested[1:-1]) + 1)


def _share(mask: np.ndarray) -> float:
    return float(mask.mean()) if mask.size else 0.0
