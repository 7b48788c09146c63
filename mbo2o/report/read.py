"""Read the configuration and the log of a run, finished or not."""

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
    """One metric over T log lines."""

    total: NDArray[np.int64]
    """`(T,)`: turns since the start of the run."""
    step: NDArray[np.int64]
    """`(T,)`: turns since the start of the phase."""
    phase: NDArray[np.str_]
    """`(T,)`: "offline", "switch" or "online"."""
    values: NDArray[np.float64]
    """`(T, S)` or `(T, S, K)`; NaN where the log has null."""


@dataclass(frozen=True)
class RunLog:
    """A run's configuration and log lines."""

    config: dict[str, Any]
    lines: list[dict[str, Any]]

    @property
    def title(self) -> str:
        """The recipe, the environment and the dataset, in one line."""
        recipe, dataset, env = (self.config.get(x) for x in ("recipe", "dataset", "env"))
        env = "the log alone" if env == "none" else env
        if dataset and Path(str(dataset)).is_absolute():
            dataset = Path(str(dataset)).stem
        names = [x.get("name") if isinstance(x, dict) else x for x in (recipe, env, dataset)]
        return " · ".join(str(x) for x in names if x) or "unnamed run"

    @property
    def behaviour_return(self) -> float | None:
        """The mean return of the dataset's episodes, if it is known."""
        value = self.config.get("behaviour_return")
        return None if value is None else float(value)

    @property
    def frozen_steps(self) -> int:
        """Online steps that the offline policy acts before the first update; 0 without an offline phase."""
        return self._steps("warmup") if self.config.get("dataset") else 0

    @property
    def random_steps(self) -> int:
        """Random steps before the online phase; 0 with an offline phase."""
        return 0 if self.config.get("dataset") else self._steps("random_steps")

    def _steps(self, name: str) -> int:
        """A number of steps among the recipe's settings; runs of older versions call it `start`."""
        recipe = self.config.get("recipe")
        return int(recipe.get(name, recipe.get("start")) or 0) if isinstance(recipe, dict) else 0

    def has(self, kind: str, name: str) -> bool:
        """Whether any line of this kind has a value of this metric."""
        return any(x["kind"] == kind and x.get(name) is not None for x in self.lines)

    def names(self, kind: str, starts: tuple[str, ...]) -> list[str]:
        """The metrics of this kind that begin with one of `starts`, without deviations, in log order."""
        found = dict.fromkeys(
            name for x in self.lines if x["kind"] == kind for name in x if name.startswith(starts)
        )
        return [name for name in found if not name.endswith("_std") and self.has(kind, name)]

    def series(self, kind: str, name: str, phase: str | None = None) -> Series:
        """One metric in log order, of one phase or of all; T = 0 if the log has none."""
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

    The last line is left out if a running or killed process has half written it. Raises `UserError` if a file
    is missing, or if another line is not a JSON object with kind, phase, step and total.
    """
    path = Path(path)
    for name in ("config.yaml", "metrics.jsonl"):
        if not (path / name).is_file():
            raise UserError(f"{path} is not a run: it has no {name}; give a run directory")
    try:
        config = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
    except Exception as error:  # YAML's and OmegaConf's errors share no base
        raise UserError(f"{path / 'config.yaml'} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path / 'config.yaml'} is not a mapping; give a run directory")
    return RunLog({str(k): v for k, v in config.items()}, _lines(path / "metrics.jsonl"))


def _lines(path: Path) -> list[dict[str, Any]]:
    rows = path.read_text(errors="replace").splitlines()
    lines = []
    for number, row in enumerate(rows, 1):
        try:
            line = json.loads(row)
            if not {"kind", "phase", "step", "total"} <= set(line):
                raise ValueError("it needs kind, phase, step and total")
        except (ValueError, TypeError) as error:
            if number == len(rows):
                break
            raise UserError(f"{path}, line {number} is damaged ({error}); remove the line") from error
        lines.append(line)
    return lines
