"""Normalised scores: a named reference set gives the returns that score 0 and 100.

0 is what random actions return, 100 what a good policy returns.

`references.json` beside this file holds the sets. `d4rl-v2` has D4RL's constants for the tasks' versions -v2
to -v4, and for mazes, where a score is 100 times the success rate. `mbo2o-v5` was measured in the versions
that this package runs; each entry names its policies, episodes, seeds and interval. `mbo2o data reference`
writes such entries.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from mbo2o.envs.goals import sparse_maze
from mbo2o.envs.make import EnvChoice
from mbo2o.types import UserError

ABSENT = "none"
"""The id of no environment."""
FILE = Path(__file__).with_name("references.json")
VERSION = re.compile(r"-v(\d+)$")


@dataclass(frozen=True)
class Reference:
    """The returns that score 0 (`low`) and 100 (`high`); NaN if the set does not know the task."""

    name: str
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether there are scores."""
        return not math.isnan(self.low)

    @property
    def metric(self) -> str:
        """The name of its scores in logs, such as `score_d4rl_v2`."""
        return "score_" + re.sub(r"\W", "_", self.name)

    def score(self, returns: Tensor) -> Tensor:
        """100 (J - low) / (high - low)."""
        return 100 * (returns - self.low) / (self.high - self.low)

    def spread(self, std: Tensor) -> Tensor:
        """A standard deviation of returns as one of scores; the offset cancels."""
        return 100 * std / abs(self.high - self.low)


UNKNOWN = Reference("none", math.nan, math.nan)
"""Where there are no returns to score."""


@cache
def sets() -> dict[str, Any]:
    """The sets of the file: `about`, the `versions` that each is for (empty: exact ids) and its `tasks`."""
    content: dict[str, Any] = json.loads(FILE.read_text())
    return content


def find_reference(choice: Any, env_id: str, allow_mismatch: bool = False) -> Reference:
    """The reference for a task's scores: a set by name, or two returns `[low, high]`, called `own`.

    UserError for an unknown set, for two equal returns, and, unless `allow_mismatch`, for a set made for
    other versions of the task: -v2 and -v5 differ in rewards and physics. For a task that the set does not
    know there is a warning, and a reference without scores.
    """
    if isinstance(choice, list | tuple):
        return _pair(choice)
    if str(choice) not in sets():
        raise UserError(
            f"reference set {choice!r} is unknown; choices: {', '.join(sets())}, or two returns [LOW,HIGH]"
        )
    found, task = sets()[str(choice)], sparse_maze(env_id) or env_id
    version = VERSION.search(task)
    if version and found["versions"]:
        task = task[: version.start()]
        if task in found["tasks"] and int(version[1]) not in found["versions"] and not allow_mismatch:
            wrong = (
                f"run.reference={choice}: its returns are not those of {env_id} (rewards and physics changed)"
            )
            cure = "give run.reference=mbo2o-v5, two returns [LOW,HIGH], or run.allow_mismatch=true"
            raise UserError(f"{wrong}; {cure}")
    if task not in found["tasks"]:
        names = {VERSION.sub("", x) for every in sets().values() for x in every["tasks"]}
        elsewhere = VERSION.sub("", task) in names  # in another set, or another version
        who = f"run.reference={choice} does not know" if elsewhere else "no reference set knows"
        warnings.warn(f"{who} {env_id}: there are no scores; give run.reference=[LOW,HIGH]", stacklevel=2)
        return Reference(str(choice), math.nan, math.nan)
    entry = found["tasks"][task]
    return Reference(str(choice), entry["low"]["return"], entry["high"]["return"])


def reference_for(choice: Any, env: EnvChoice, allow_mismatch: bool) -> Reference:
    """`find_reference` for an environment with arguments, which make it a task without scores."""
    if env.id == ABSENT:
        return UNKNOWN
    found = find_reference(choice, env.id, allow_mismatch)
    if not (env.kwargs and found.known) or found.name == "own" or allow_mismatch:
        return found
    text = f"run.reference={choice} is for {env.id} with its default arguments, which env_kwargs changes"
    warnings.warn(f"{text}: no scores; give [LOW,HIGH], or run.allow_mismatch=true", stacklevel=2)
    return replace(found, low=math.nan, high=math.nan)


def _pair(choice: Any) -> Reference:
    numbers = all(type(x) in (int, float) and math.isfinite(x) for x in choice)
    if len(choice) != 2 or not numbers or choice[0] == choice[1]:
        wanted = "expected two different returns, [random actions', a good policy's]"
        raise UserError(f"run.reference={list(choice)}: {wanted}")
    return Reference("own", float(choice[0]), float(choice[1]))
