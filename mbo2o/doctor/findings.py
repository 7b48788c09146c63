"""What the dataset doctor has to say: findings, whom they harm, and the report that they add up to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from mbo2o.store.remote import OTHER_VERSION

Harm = Literal["care", "no"]
Harms = dict[str, Harm]

FAMILIES = {
    "cloning": "cloning",
    "td": "model-free TD",
    "dynamics": "dynamics training",
    "returns": "Monte-Carlo returns",
}
"""Who learns from a dataset, and how they are called in print; the last is Cal-QL's kind."""

FEW = 5e-4
"""Share of wrong rows up to which a family can do with care: half of what one lost cut per 1000-step episode makes."""
EXAMPLES = 5

ALL_NO: Harms = dict.fromkeys(FAMILIES, "no")
ALL_CARE: Harms = dict.fromkeys(FAMILIES, "care")
CARE_BUT_CLONING: Harms = {"td": "care", "dynamics": "care", "returns": "care"}

ADVICE = {
    "next_observations_shifted": "shift next_observations against observations, or leave them out and give timeouts",
    "next_observations_misaligned": "rebuild next_observations from the log",
    "rows_out_of_order": "sort the rows by episode and time if returns are needed; TD and dynamics do not mind",
    "extra_observations": "drop each episode's last observation (or make it the last next_observation) before joining episodes",
    "timeouts_out_of_step": "shift timeouts to the rows named (D4RL's antmaze -v0 and -v1: use -v2)",
    "hidden_cuts": "set timeouts there; this package's loader does, if next_observations show them",
    "terminals_go_on": "as D4RL's antmaze has it: returns stop at the flag, the record does not; check that this is meant",
    "timeouts_go_on": "as D4RL's maze2d has it: returns stop at the flag, the record does not; check that this is meant",
    "timeouts_missing": "nothing, if that number is right; else store timeouts",
    "boundaries_unknown": "store timeouts, or the attribute max_episode_steps",
    "episodes_over_limit": "set timeouts where episodes were cut, or the attribute max_episode_steps",
    "limit_as_terminal": "make them timeouts: what follows a time limit is worth something",
    "next_is_next_start": "store what was seen before the reset (final_obs of vector environments), or NaN",
    "next_strays": "restore them from the row below, or make them NaN (unknown)",
    "zero_next": "make them NaN (unknown), or restore them: TD masks terminals, a dynamics model learns them",
    "stale_next": "make them NaN (unknown), or restore them: TD masks terminals, a dynamics model learns them",
    "next_unknown": "store next_observations",
    "terminals_unused": "store next_observations",
    "actions_shifted": "shift actions back against observations, or check how they were logged",
    "rewards_shifted": "shift rewards back against observations, or check how they were logged",
    "false_dead": "terminals are missing (see rows), or the rule is another task's: choose --termination",
    "false_alive": "time limits may be stored as terminals, or the rule is another task's: choose --termination",
    "duplicate_rows": "drop them, unless they stand for how often it happened",
    "duplicate_episodes": "drop them: a file may have been joined with itself",
    "split_leak": "drop duplicates before fitting a model: its holdout error is too good, and early stopping comes late",
    "constant_actions": "nobody can learn what they do; leave them out, or collect data that move them",
    "saturated_actions": "a tanh-Gaussian's log-probability is poor there; a deterministic or clipped policy clones better",
    "actions_in_env_units": "train with dataset_actions=env if they are, which maps them; with dataset_actions=unit if not",
    "observations_lose_precision": "subtract an offset (the first row, say) before they are stored, or leave them out: a clock "
    "says nothing",
    "constant_rewards": "check what wrote them (goals are lost where last rows are dropped), or relabel",
    "angle_leaps": "give its sine and cosine in its place: a model of steps takes each leap for a long way",
    "rare_switch": "nothing, if the task has it so: few rows show what changes it and what it changes",
    "reward_outliers": "check these rows; clip or drop them",
    "constant_observations": "nothing, if the task has them so",
    "few_episodes": "what was seen in so few says little of the task: collect more",
    "environment_unknown": "name it (--env), so that its time limit, sizes and termination rule can be compared",
    "environment_missing": "evaluate and go on online where it can be made, or in the newest version with care",
    "environment_sizes": "name the right environment (--env); in this one a policy of these data cannot act",
    "environment_version": OTHER_VERSION,
}
"""Every finding there is, and what to do about it."""


GUESSED = {
    "hidden_cuts",
    "timeouts_out_of_step",
    "extra_observations",
    "limit_as_terminal",
    "actions_shifted",
    "rewards_shifted",
}
"""Findings that statistics suggest; the others are facts. In few episodes a guess asks for care at most."""


@dataclass(frozen=True)
class Finding:
    """One thing that was seen: in how many of how many rows (or episodes, dimensions), and where."""

    name: str
    """A key of `ADVICE`."""
    message: str
    count: int
    of: int
    rows: list[int]
    """A few row numbers to look at, from 0."""
    harms: Harms
    """By family; a family that is not named does not mind."""

    def lowered(self) -> Finding:
        """The same with `care` in place of `no`, if it is a guess."""
        return replace(self, harms=dict.fromkeys(self.harms, "care")) if self.name in GUESSED else self

    @property
    def severity(self) -> str:
        """`fault` if some family must not use the data, `warning` if one has to take care, else `note`."""
        return "fault" if "no" in self.harms.values() else "warning" if self.harms else "note"


@dataclass(frozen=True)
class Certificate:
    """A termination rule against the file's terminals."""

    rule: str
    alive_rows: int
    """Rows without a terminal whose next observation is known, and how many of them the rule calls dead:"""
    false_dead: int
    terminal_rows: int
    """Rows with one whose next observation is known and true, and how many of them the rule calls alive:"""
    false_alive: int
    terminals_untested: int

    @property
    def certified(self) -> bool:
        """All rows agree, and all terminals could be tested."""
        return not (self.false_dead or self.false_alive or self.terminals_untested)

    def text(self) -> str:
        """In a line."""
        untested = (
            f" ({self.terminals_untested} terminals could not be tested)" if self.terminals_untested else ""
        )
        return (
            f"{'certified' if self.certified else 'not certified'}: {self.false_dead} of {self.alive_rows} rows alive by the "
            f"file are dead by the rule {self.rule}; {self.false_alive} of {self.terminal_rows} the other way{untested}"
        )


@dataclass(frozen=True)
class Report:
    """What `audit` found, worst first; `certificate` is None where no termination rule was tested."""

    dataset: str
    env_id: str | None
    rows: int
    episodes: int
    findings: list[Finding]
    certificate: Certificate | None
    coverage: dict[str, Any]
    not_checked: list[str]

    def verdict(self, family: str) -> tuple[str, str]:
        """Whether a family may learn from these data, `yes`, `with care` or `no`, and the reason (empty for yes)."""
        for harm, verdict in (("no", "no"), ("care", "with care")):
            reasons = [f.message for f in self.findings if f.harms.get(family) == harm]
            if reasons:
                return verdict, reasons[0] + (f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else "")
        return "yes", ""

    @property
    def safe(self) -> bool:
        """No family must keep away."""
        return all(self.verdict(family)[0] != "no" for family in FAMILIES)

    def as_json(self) -> dict[str, Any]:
        """Everything, in types that `json` knows."""
        own = {
            "safe": self.safe,
            "verdicts": {x: dict(zip(("verdict", "reason"), self.verdict(x), strict=True)) for x in FAMILIES},
            "findings": [
                asdict(f) | {"severity": f.severity, "advice": ADVICE[f.name]} for f in self.findings
            ],
        }
        if self.certificate:
            own["certificate"] = asdict(self.certificate) | {"certified": self.certificate.certified}
        return asdict(self) | own

    def text(self) -> str:
        """The same for people."""
        lines = [
            f"{self.dataset}: {self.rows} rows, {self.episodes} episodes, {self.env_id or 'environment unknown'}"
        ]
        lines += [self.certificate.text()] if self.certificate else []
        lines += ["", "fit for"]
        for family, name in FAMILIES.items():
            verdict, reason = self.verdict(family)
            lines.append(f"  {name:<20} {verdict:<10} {reason}".rstrip())
        lines += ["", "findings" if self.findings else "no findings"]
        for f in self.findings:
            more = ", ..." if f.count > len(f.rows) else ""
            at = f" (row {listed(f.rows)}{more})" if f.rows else ""
            lines += [f"  {f.severity:<8} {f.name}: {f.message}{at}", f"  {'':<8} {ADVICE[f.name]}"]
        lines += ["", "coverage"]
        lines += [f"  {key:<24} {_shown(value)}" for key, value in self.coverage.items()]
        return "\n".join(lines + [f"not checked: {what}" for what in self.not_checked])


def finding(
    name: str,
    message: str,
    rows: np.ndarray,
    of: int,
    harms: Harms | None = None,
    *,
    count: int | None = None,
) -> Finding:
    """Put one together; `rows` is a mask or row numbers, `count` is for what is not counted in rows."""
    at = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
    return Finding(
        name, message, len(at) if count is None else count, of, [int(x) for x in at[:EXAMPLES]], harms or {}
    )


def few(count: int, of: int) -> Harm:
    """The harm of so many wrong rows."""
    return "no" if count > FEW * of else "care"


def percent(count: int, of: int) -> str:
    """A count with its share; the share alone where it is all."""
    return f"{percentage(count / of)} ({count})" if count < of else "100 %"


def percentage(part: float) -> str:
    """A part of 1 as a percentage with about two digits, never with an exponent."""
    value = 100 * part
    return f"{value:.{0 if value >= 9.5 else 1 if value >= 1 else 2}f} %"


def listed(items: Iterable[Any]) -> str:
    """With commas."""
    return ", ".join(map(str, items))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return listed([_shown(x) for x in value])
    return f"{value:.4g}" if isinstance(value, float) else str(value)
