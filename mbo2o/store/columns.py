"""Which column of a table is what, by the columns' names, or as the user says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mbo2o.data.fields import FIELDS, OPTIONAL
from mbo2o.types import UserError

_PART = r"([_.: \[-]\w[\w\])]*|\d+)?"
PATTERNS = {
    "next_observations": rf"next_?(obs(ervations?)?|states?){_PART}",
    "observations": rf"(obs(ervations?)?|states?){_PART}|[so]_?\d+",
    "actions": rf"(act(ions?)?|controls?){_PART}|[au]_?\d*",
    "rewards": r"rewards?|rew|r",
    "terminals": r"terminals?|terminated|terminations?|dones?|is_terminal",
    "timeouts": r"timeouts?|truncated|truncations?",
    "episode": r"episodes?|episode_(id|number)|ep|traj(ectory)?(_id)?",
    "step": r"steps?|timesteps?|time|t",
}
"""What a column of each kind may be called, in small letters; of two that fit, the first one counts."""
LEFT_OUT = re.compile(r"[_#].*|info.*")
"""Columns that are not read."""
EXAMPLE = (
    "columns are called obs_*, act_*, reward, terminal, and if there are such columns next_obs_*, timeout, "
    "episode, step; or give dataset_columns={observations: [...], actions: [...], rewards: ..., "
    "terminals: ...}"
)
Found = dict[str, str | list[str]]


def columns_of(header: Sequence[str], where: object) -> Found:
    """The columns of each field, as `read_table` takes them, from their names.

    Raises:
        UserError: A column's name says nothing, two columns are the same single number, or a field is
            missing.
    """
    found: dict[str, list[str]] = {}
    for name in header:
        kind = next((k for k, p in PATTERNS.items() if re.fullmatch(p, name.strip().casefold())), None)
        if kind is not None:
            found.setdefault(kind, []).append(name)
        elif not LEFT_OUT.fullmatch(name):
            hint = f"rename it, or begin its name with _ to leave it out; {EXAMPLE}"
            raise UserError(f"{where}: column {name!r} is not known; {hint}")
    vectors = ("observations", "next_observations", "actions")
    for kind, names in found.items():
        if kind not in vectors and len(names) > 1:
            raise UserError(f"{where}: {' and '.join(map(repr, names))} are both {kind}; rename one of them")
    if missing := [x for x in FIELDS if x not in found and x not in OPTIONAL]:
        cure = f"add it (a column of zeros where no step is one); {EXAMPLE}"
        raise UserError(f"{where}: no column holds {missing[0]!r}; {cure}")
    if (n := len(found.get("next_observations", []))) and n != len(found["observations"]):
        both = f"{len(found['observations'])} observations and {n} next observations"
        raise UserError(f"{where}: there are {both}; give each observation a next one, or none")
    return {kind: names if kind in vectors else names[0] for kind, names in found.items()}


def given(columns: Any) -> Mapping[str, str | list[str]] | None:
    """The setting `dataset_columns`, checked; None if it is not set."""
    if columns is None:
        return None
    texts = isinstance(columns, Mapping) and all(
        isinstance(x, str) or (isinstance(x, list | tuple) and all(isinstance(y, str) for y in x))
        for x in columns.values()
    )
    if not texts:
        text = (
            "expected a field's name and its columns, {observations: [x, y], actions: [u], rewards: r, ...}"
        )
        raise UserError(f"dataset_columns={columns}: {text}")
    return {str(k): v if isinstance(v, str) else list(v) for k, v in columns.items()}
