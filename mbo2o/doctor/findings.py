"""What the dataset doctor reports: findings, and a verdict for each family of methods."""

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
"""The families of methods that learn from a dataset, and their printed names. Cal-QL is in the last."""

FEW = 5e-4
"""The share of wrong rows up to which a family can learn with care: one row in 2000."""
EXAMPLES = 5
"""How many row numbers a finding shows."""

ALL_NO: Harms = dict.fromkeys(FAMILIES, "no")
ALL_CARE: Harms = dict.fromkeys(FAMILIES, "care")
CARE_BUT_CLONING: Harms = {"td": "care", "dynamics": "care", "returns": "care"}

UNKNOWN_NEXT = (
    "restore them, or set them to NaN (unknown): at terminals, TD ignores them and dynamics models do not"
)
SHIFT_BACK = "shift the column back to its observations, or check how it was logged"
GOES_ON = "{} stores such flags: returns stop at the flag, the episode does not; check that this is meant"
ADVICE = {
    "next_observations_shifted": "shift them back to their rows, or leave them out and store timeouts",
    "next_observations_misaligned": "rebuild next_observations from the log",
    "rows_out_of_order": "sort the rows by episode and time if returns are needed; TD needs no order",
    "extra_observations": "make each episode's last observation its last next_observation, not a row",
    "timeouts_out_of_step": "move the timeouts to the rows named (D4RL's antmaze -v0 and -v1: use -v2)",
    "hidden_cuts": "set timeouts there; our loader does so where next_observations show the cut",
    "terminals_go_on": GOES_ON.format("D4RL's antmaze"),
    "timeouts_go_on": GOES_ON.format("D4RL's maze2d"),
    "timeouts_missing": "do nothing if that number is right; otherwise store timeouts",
    "boundaries_unknown": "store timeouts, or the attribute max_episode_steps",
    "episodes_over_limit": "set timeouts where episodes were cut, or the attribute max_episode_steps",
    "limit_as_terminal": "store them as timeouts: the state at a time limit still has a value",
    "next_is_next_start": "store the observation before the reset (final_obs of vector environments), or NaN",
    "next_strays": "restore them from the row below, or set them to NaN (unknown)",
    "zero_next": UNKNOWN_NEXT,
    "stale_next": UNKNOWN_NEXT,
    "next_unknown": "store next_observations",
    "terminals_unused": "store next_observations",
    "actions_shifted": SHIFT_BACK,
    "rewards_shifted": SHIFT_BACK,
    "false_dead": "terminals are missing at the rows named, or --termination names the wrong rule",
    "false_alive": "time limits may be stored as terminals, or --termination names the wrong rule",
    "duplicate_rows": "drop them, unless each copy stands for one occurrence",
    "duplicate_episodes": "drop them: a file may have been joined with itself",
    "split_leak": "drop the copies before fitting a model: they make its holdout error too low",
    "constant_actions": "leave them out, or collect data that vary them: their effect cannot be learned",
    "saturated_actions": "clone with a deterministic policy: a tanh-Gaussian fits badly at ±1",
    "actions_in_env_units": "train with dataset_actions=env if they are, which converts them; otherwise with "
    "dataset_actions=unit",
    "observations_lose_precision": "subtract the first row, say, before storing them, or leave them out: a "
    "clock carries no information",
    "constant_rewards": "check what wrote them (dropping last rows loses goals), or label them again",
    "angle_leaps": "replace it by its sine and cosine: a model takes each leap for a long step",
    "rare_switch": "do nothing if the task is like that: few rows show when it changes, and with what effect",
    "reward_outliers": "check these rows; clip or drop them",
    "constant_observations": "do nothing if the task is like that",
    "few_episodes": "collect more: so few episodes show little of the task",
    "environment_unknown": "name it (--env), so that its time limit, sizes and rule can be compared",
    "environment_missing": "evaluate where it can be made, or with care in the newest version",
    "environment_sizes": "name the right one (--env): a policy from these data cannot act in this one",
    "environment_version": OTHER_VERSION,
}
"""The name of every finding, and what to do about it."""

GUESSED = {
    "hidden_cuts",
    "timeouts_out_of_step",
    "extra_observations",
    "limit_as_terminal",
    "actions_shifted",
    "rewards_shifted",
}
"""Findings that rest on statistics; all others are facts. In few episodes they ask for care at most."""


@dataclass(frozen=True)
class Finding:
    """One fault or peculiarity of a dataset: how often it occurs, and where."""

    name: str
    """A key of `ADVICE`."""
    message: str
    count: int
    of: int
    """Out of how many rows, episodes or dimensions `count` is."""
    rows: list[int]
    """The first few row numbers, from 0; with place="line" lines of a CSV file, whose header is line 1."""
    harms: Harms
    """By family; a family that is not named is not harmed."""
    place: str = "row"

    def lowered(self) -> Finding:
        """The same finding; a guess asks for care where it said no."""
        return replace(self, harms=dict.fromkeys(self.harms, "care")) if self.name in GUESSED else self

    @property
    def severity(self) -> str:
        """`fault` if some family must not use the data, `warning` if some must take care, else `note`."""
        if "no" in self.harms.values():
            return "fault"
        return "warning" if self.harms else "note"


@dataclass(frozen=True)
class Certificate:
    """How a termination rule agrees with the file's terminals."""

    rule: str
    alive_rows: int
    """Rows without a terminal whose next observation is known."""
    false_dead: int
    """How many of these the rule ends."""
    terminal_rows: int
    """Rows with a terminal whose next observation is known and true."""
    false_alive: int
    """How many of these the rule does not end."""
    terminals_untested: int
    """Rows with a terminal whose next observation is unknown or wrong."""

    @property
    def certified(self) -> bool:
        """Whether the rule agrees with every row, and every terminal could be tested."""
        return not (self.false_dead or self.false_alive or self.terminals_untested)

    def text(self) -> str:
        """The certificate in a line."""
        verdict = "certified" if self.certified else "not certified"
        line = (
            f"{verdict}: the rule {self.rule} ends {self.false_dead} of {self.alive_rows} rows without a "
            f"terminal, and misses {self.false_alive} of {self.terminal_rows} terminals"
        )
        return f"{line} ({self.terminals_untested} could not be tested)" if self.terminals_untested else line


@dataclass(frozen=True)
class Report:
    """What `audit` found, the worst first; `certificate` is None where no termination rule was tested."""

    dataset: str
    env_id: str | None
    rows: int
    episodes: int
    findings: list[Finding]
    certificate: Certificate | None
    coverage: dict[str, Any]
    not_checked: list[str]

    def verdict(self, family: str) -> tuple[str, str]:
        """Whether a family may use these data, `yes`, `with care` or `no`; and the reason, empty for yes."""
        for harm, verdict in (("no", "no"), ("care", "with care")):
            reasons = [f.message for f in self.findings if f.harms.get(family) == harm]
            if reasons:
                return verdict, reasons[0] + (f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else "")
        return "yes", ""

    @property
    def safe(self) -> bool:
        """Whether no family gets the verdict no."""
        return all(self.verdict(family)[0] != "no" for family in FAMILIES)

    def as_json(self) -> dict[str, Any]:
        """The report in types that `json` can write."""
        verdicts = {x: dict(zip(("verdict", "reason"), self.verdict(x), strict=True)) for x in FAMILIES}
        findings = [asdict(f) | {"severity": f.severity, "advice": ADVICE[f.name]} for f in self.findings]
        out = asdict(self) | {"safe": self.safe, "verdicts": verdicts, "findings": findings}
        if self.certificate:
            out["certificate"] = asdict(self.certificate) | {"certified": self.certificate.certified}
        return out

    def text(self) -> str:
        """The report for a terminal."""
        environment = self.env_id or "environment unknown"
        lines = [f"{self.dataset}: {self.rows} rows, {self.episodes} episodes, {environment}"]
        lines += [self.certificate.text()] if self.certificate else []
        lines += ["", "fit for"]
        for family, name in FAMILIES.items():
            verdict, reason = self.verdict(family)
            lines.append(f"  {name:<20} {verdict:<10} {reason}".rstrip())
        lines += ["", "findings" if self.findings else "no findings"]
        for f in self.findings:
            more = ", ..." if f.count > len(f.rows) else ""
            at = f" ({f.place} {listed(f.rows)}{more})" if f.rows else ""
            lines += [f"  {f.severity:<8} {f.name}: {f.message}{at}", f"  {'':<8} {ADVICE[f.name]}"]
        lines += ["", "coverage"]
        lines += [f"  {key:<24} {_shown(value)}" for key, value in self.coverage.items()]
        return "\n".join(lines + [f"not checked: {what}" for what in self.not_checked])


def in_rows(
    name: str, rows: np.ndarray, of: int, message: str, harms: Harms | None = None, *, share: bool = True
) -> Finding:
    """A finding in rows, given as a mask `(N,)` or as row numbers.

    With `share`, its message begins "SHARE (COUNT) of".
    """
    at = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
    text = f"{percent(len(at), of)} of {message}" if share else message
    return Finding(name, text, len(at), of, [int(x) for x in at[:EXAMPLES]], harms or {})


def in_all(
    name: str, message: str, harms: Harms | None = None, *, count: int = 1, of: int | None = None
) -> Finding:
    """A finding of the whole file, or of `count` of its `of` dimensions or episodes."""
    return Finding(name, message, count, count if of is None else of, [], harms or {})


def few(count: int, of: int) -> Harm:
    """The harm of `count` wrong rows out of `of`."""
    return "no" if count > FEW * of else "care"


def percent(count: int, of: int) -> str:
    """A count after its share, such as "4.1 % (39)"; "100 %" alone where it is all."""
    return f"{percentage(count / of)} ({count})" if count < of else "100 %"


def percentage(part: float) -> str:
    """A part of 1 as a percentage with about two digits, never with an exponent."""
    value = 100 * part
    return f"{value:.{0 if value >= 9.5 else 1 if value >= 1 else 2}f} %"


def listed(items: Iterable[Any]) -> str:
    """The items, separated by commas."""
    return ", ".join(map(str, items))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return listed([_shown(x) for x in value])
    return f"{value:.4g}" if isinstance(value, float) else str(value)
