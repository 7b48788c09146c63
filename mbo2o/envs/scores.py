"""Returns as scores: 0 is what random play returns, 100 what somebody good returns; by whose word, has a name.

`references.json` beside this file holds the named sets. `d4rl-v2` is D4RL's, of the tasks' -v2 to -v4 and of mazes, where a
score is 100 times the success rate. `mbo2o-v5` was measured here, in the versions that this package runs, with what played,
episodes, seeds and interval in each entry; `mbo2o data reference` writes such entries.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from mbo2o.envs.goals import sparse_maze
from mbo2o.types import UserError

FILE = Path(__file__).with_name("references.json")
VERSION = re.compile(r"-v(\d+)$")


@dataclass(frozen=True)
class Reference:
    """The returns that score 0 and 100, NaN where the set does not know the task."""

    name: str
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether there are scores."""
        return not math.isnan(self.low)

    @property
    def metric(self) -> str:
        """What its scores are called in logs: `score_d4rl_v2`, say."""
        return "score_" + re.sub(r"\W", "_", self.name)

    def score(self, returns: Tensor) -> Tensor:
        """100 (J - low) / (high - low)."""
        return 100 * (returns - self.low) / (self.high - self.low)

    def spread(self, std: Tensor) -> Tensor:
        """A deviation of returns as one of scores; the offset does not enter."""
        return 100 * std / abs(self.high - self.low)


@cache
def sets() -> dict[str, Any]:
    """What the file holds: each set's `about`, the `versions` it is for (none: exact ids) and its `tasks`."""
    content: dict[str, Any] = json.loads(FILE.read_text())
    return content


def find_reference(choice: Any, env_id: str, allow_mismatch: bool = False) -> Reference:
    """The reference behind a task's scores: a set by its name, or two returns `[low, high]`, called `own`.

    A set of other versions of the task (-v2's constants for -v5: rewards and physics differ) is refused unless
    `allow_mismatch`. UserError for that, for an unknown set, and for a pair that spans nothing. A set that does not know the
    task gives a reference without scores, and a warning.
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
            raise UserError(
                f"run.reference={choice}: its returns are not those of {env_id} (rewards and physics changed); give "
                "run.reference=mbo2o-v5, two returns [LOW,HIGH], or run.allow_mismatch=true"
            )
    if task not in found["tasks"]:
        names = {VERSION.sub("", x) for every in sets().values() for x in every["tasks"]}
        elsewhere = VERSION.sub("", task) in names  # in other sets, or other versions
        who = f"run.reference={choice} does not know" if elsewhere else "no reference set knows"
        warnings.warn(f"{who} {env_id}: there are no scores; give run.reference=[LOW,HIGH]", stacklevel=2)
        return Reference(str(choice), math.nan, math.nan)
    entry = found["tasks"][task]
    return Reference(str(choice), entry["low"]["return"], entry["high"]["return"])


def _pair(choice: Any) -> Reference:
    if (
        len(choice) != 2
        or not all(type(x) in (int, float) and math.isfinite(x) for x in choice)
        or choice[0] == choice[1]
    ):
        raise UserError(
            f"run.reference={list(choice)}: expected two different returns, [random play's, a good policy's]"
        )
    return Reference("own", float(choice[0]), float(choice[1]))
