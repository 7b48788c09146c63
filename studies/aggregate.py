"""Scores over several files: interquartile mean and mean, with intervals of a stratified bootstrap.

The definitions are rliable's (Agarwal et al. 2021, arXiv 2108.13264). A run is one seed on one file. Its
score is 0 for random play and 100 for a good policy, by the set `mbo2o-v5` of references.json.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mbo2o.envs.scores import find_reference
from mbo2o.report.statistics import FEWEST
from studies.arms import read_rows
from studies.measured import SIZES, STUDIES, files_of

Files = Sequence[np.ndarray]
"""For each file the scores of its seeds, `(..., S)`; the leading axes are the same for all, S is any."""
LEARNERS = ("lapo", "td3bc")
"""What the names of files begin with that are about another offline learner than the study's usual one."""


def interquartile_mean(files: Files) -> np.ndarray:
    """The mean of the runs of all files, `(...)`, after ⌊n / 4⌋ of n are cut at each end.

    A missing value gives NaN.
    """
    runs = np.sort(np.concatenate(files, -1), -1)
    cut = runs.shape[-1] // 4
    middle: np.ndarray = runs[..., cut : runs.shape[-1] - cut].mean(-1)
    return np.where(np.isnan(runs).any(-1), np.nan, middle)


def mean(files: Files) -> np.ndarray:
    """The mean over files of the mean over seeds, `(...)`."""
    found: np.ndarray = np.mean([x.mean(-1) for x in files], 0)
    return found


MEASURES: dict[str, Callable[[Files], np.ndarray]] = {"interquartile mean": interquartile_mean, "mean": mean}


def stratified(
    files: Files, measure: Callable[[Files], np.ndarray], draws: int = 2000, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """The percentile interval of a measure, low and high `(...)`: seeds are drawn again within each file.

    All leading axes share a draw. NaN if a file has fewer than FEWEST seeds.
    """
    if min(x.shape[-1] for x in files) < FEWEST:
        none = np.full(files[0].shape[:-1], np.nan)
        return none, none
    rng = np.random.default_rng(0)
    found = [
        measure([x[..., rng.integers(x.shape[-1], size=x.shape[-1])] for x in files]) for _ in range(draws)
    ]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def score(env: str, returns: np.ndarray) -> np.ndarray:
    """Returns as scores; NaN where the set does not know the task."""
    reference = find_reference("mbo2o-v5", env)
    return 100 * (returns - reference.low) / (reference.high - reference.low)


class Group(NamedTuple):
    """Tables of one study and size, of one kind of task and one learner, that have arms in common."""

    study: str
    size: str
    kind: str
    """`MuJoCo` or `mazes`, and the offline learner if it is not the study's usual one."""
    tables: tuple[Path, ...]
    arms: tuple[str, ...]
    """Those that every table has."""

    def files(self, arm: str, column: str) -> list[np.ndarray]:
        """The scores of a column of an arm, `(S,)` for each table."""
        rows = [read_rows(path)[arm] for path in self.tables]
        return [score(x[0]["env"], np.array([float(r[column]) for r in x])) for x in rows]

    @property
    def start(self) -> str:
        """The column of the return at the switch; "" if the study has none."""
        return "j0" if "j0" in read_rows(self.tables[0])[self.arms[0]][0] else ""


def groups(studies: Sequence[str] = (*STUDIES, "offline")) -> list[Group]:
    """All groups of at least two tables with at least two arms.

    Of tables that have different arms those are taken that have most in common: as many arms times tables as
    possible.
    """
    found = []
    for study in studies:
        for size in SIZES:
            kinds: dict[str, dict[Path, set[str]]] = {}
            for path in files_of(study, size):
                rows = read_rows(path)
                if kind := _kind(study, path, next(iter(rows.values()))[0]["env"]):
                    kinds.setdefault(kind, {})[path] = set(rows)
            for kind, tables in kinds.items():
                arms = _most(list(tables.values()))
                fitting = tuple(path for path, x in tables.items() if arms <= x)
                if len(arms) > 1 and len(fitting) > 1:
                    order = tuple(x for x in read_rows(fitting[0]) if x in arms)
                    found.append(Group(study, size, kind, fitting, order))
    return found


def _kind(study: str, path: Path, env: str) -> str:
    """The kind of a table; "" for a task without scores."""
    if np.isnan(score(env, np.zeros(1))).any():
        return ""
    data = path.stem.removeprefix(f"{study}-")
    learner = next((x for x in LEARNERS if data.startswith(f"{x}-")), "")
    return ("mazes" if "Maze" in env else "MuJoCo") + (f", {learner}" if learner else "")


def _most(tables: list[set[str]]) -> set[str]:
    """The arms that some tables share, such that arms times tables is largest; at least two tables."""
    shared = [a & b for i, a in enumerate(tables) for b in tables[:i]]
    return max(shared, key=lambda x: (len(x) * sum(x <= t for t in tables), len(x)), default=set())


def table() -> str:
    """The scores of all groups, for a page."""
    lines = [
        "| study, size, tasks | arm | files, runs | at the switch: IQM | final: IQM | final: mean |",
        "|---|---|---|---|---|---|",
    ]
    notes = []
    for g in groups():
        names = ", ".join(f"`{x.stem.removeprefix(f'{g.study}-')}`" for x in g.tables)
        notes.append(f"- {g.study}, {g.size}, {g.kind}: {names}.")
        for arm in g.arms:
            final = g.files(arm, "final")
            start = cell(g.files(arm, g.start), interquartile_mean) if g.start else ""
            runs = f"{len(final)}, {sum(len(x) for x in final)}"
            cells = [f"{g.study}, {g.size}, {g.kind}", f"`{arm}`", runs, start]
            lines.append(f"| {' | '.join([*cells, *(cell(final, m) for m in MEASURES.values())])} |")
    return "\n".join([*lines, "", "The files:", "", *notes])


def cell(files: Files, measure: Callable[[Files], np.ndarray]) -> str:
    """A measure with its interval, or "–" for one of too few seeds."""
    value = float(measure(files))
    if np.isnan(value):
        return "diverged"
    low, high = (float(x) for x in stratified(files, measure))
    return f"{value:.1f} " + ("–" if np.isnan(low) else f"[{low:.1f}, {high:.1f}]")
