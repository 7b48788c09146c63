"""Read what a run left behind: its configuration and its log, whether it finished or not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from mbo2o.types import UserError


class Series(NamedTuple):
    """One metric over time, T log lines."""

    total: NDArray[np.int64]
    """`(T,)`: turns since the start of the run, over all phases."""
    step: NDArray[np.int64]
    """`(T,)`: turns since the start of the phase."""
    phase: NDArray[np.str_]
    """`(T,)`: "offline", "switch" or "online"."""
    values: NDArray[np.float64]
    """`(T, S)` or `(T, S, K)`; NaN where the log says null."""


@dataclass(frozen=True)
class RunLog:
    """A run's configuration and log lines."""

    config: dict[str, Any]
    lines: list[dict[str, Any]]

    @property
    def title(self) -> str:
        """What ran, in one line."""
        recipe, dataset = self.config.get("recipe"), self.config.get("dataset")
        names = [
            x.get("name") if isinstance(x, dict) else x for x in (recipe, self.config.get("env"), dataset)
        ]
        return " · ".join(str(x) for x in names if x) or "unnamed run"

    @property
    def behaviour_return(self) -> float | None:
        """Mean return of the episodes in the dataset, if the run knew it."""
        value = self.config.get("behaviour_return")
        return None if value is None else float(value)

    @property
    def frozen_steps(self) -> int:
        """Online steps before the first update, acted with the offline policy; 0 without an offline phase."""
        return self._steps("warmup") if self.config.get("dataset") else 0

    @property
    def random_steps(self) -> int:
        """Steps at random before the online phase, of a run that starts from nothing."""
        return 0 if self.config.get("dataset") else self._steps("random_steps")

    def _steps(self, name: str) -> int:
        """A number of steps among the recipe's settings; runs of older versions call it `start`."""
        recipe = self.config.get("recipe")
        return int(recipe.get(name, recipe.get("start")) or 0) if isinstance(recipe, dict) else 0

    def has(self, kind: str, name: str) -> bool:
        """Whether any line of this kind holds this metric."""
        return any(x["kind"] == kind and x.get(name) is not None for x in self.lines)

    def names(self, kind: str, starts: tuple[str, ...]) -> list[str]:
        """Metrics of this kind that begin with one of `starts`, deviations left out, in log order."""
        found = dict.fromkeys(
            name for x in self.lines if x["kind"] == kind for name in x if name.startswith(starts)
        )
        return [name for name in found if not name.endswith("_std") and self.has(kind, name)]

    def series(self, kind: str, name: str, phase: str | None = None) -> Series:
        """One metric over time, in log order, over one phase or all; T = 0 where nothing was logged."""
        rows = [
            x
            for x in self.lines
            if x["kind"] == kind and x.get(name) is not None and phase in (None, x["phase"])
        ]
        values = np.array([np.atleast_1d(np.asarray(x[name], float)) for x in rows])
        return Series(
            np.array([x["total"] for x in rows], np.int64),
            np.array([x["step"] for x in rows], np.int64),
            np.array([x["phase"] for x in rows], np.str_),
            values if rows else np.empty((0, 1)),
        )


def read_run(path: str | Path) -> RunLog:
    """Read `path/config.yaml` and `path/metrics.jsonl`.

    A last line that a running or killed process has half written is left out; any other that is no JSON object with
    kind, phase, step and total is a `UserError`, as is a missing file.
    """
    path = Path(path)
    for name in ("config.yaml", "metrics.jsonl"):
        if not (path / name).is_file():
            raise UserError(f"{path} is no run: it has no {name}; give a run directory")
    try:
        config = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
    except Exception as error:  # YAML's and OmegaConf's errors share no base
        raise UserError(f"{path / 'config.yaml'} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path / 'config.yaml'} is no mapping; give a run directory")
    return RunLog({str(k): v for k, v in config.items()}, _lines(path / "metrics.jsonl"))


def _lines(path: Path) -> list[dict[str, Any]]:
    rows = path.read_text(errors="replace").splitlines()
    lines = []
    for number, row in enumerate(rows, 1):
        try:
            line = json.loads(row)
            if not {"kind", "phase", "step", "total"} <= set(line):
                raise ValueError("needs kind, phase, step, total")
        except (ValueError, TypeError) as error:
            if number == len(rows):
                break
            raise UserError(f"{path}, line {number} is damaged ({error}); remove the line") from error
        lines.append(line)
    return lines
