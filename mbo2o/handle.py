"""`mbo2o.train` and what it returns: a trained run as an object, for scripts and notebooks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mbo2o import training
from mbo2o.cli.train import config
from mbo2o.errors import UserError, optional
from mbo2o.quiet import quietly
from mbo2o.registry import trusting
from mbo2o.report.read import read_run
from mbo2o.settings import Config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLACE = ("kind", "phase", "step", "total", "time")
"""What every line of a log begins with."""
STATES, BRANCHES = 3000, 200
"""How many states a map of the uncertainty shows, and from how many of them branches go."""


class RunHandle:
    """A run's directory, and what can be made of it. It stands for the path: `open(run / "config.yaml")`."""

    def __init__(self, directory: str | os.PathLike[str]):
        """`directory`: one that `mbo2o train` wrote. Nothing is read before it is asked for."""
        self.directory = Path(directory)

    def __fspath__(self) -> str:
        return str(self.directory)

    def __str__(self) -> str:
        return str(self.directory)

    def __repr__(self) -> str:
        return f"RunHandle({str(self.directory)!r})"

    def __truediv__(self, name: str | os.PathLike[str]) -> Path:
        return self.directory / name

    def metrics(self, kind: str | None = None) -> Any:
        """The log as a table: a row for each event and seed, a column for each number of it.

        The columns `kind`, `phase`, `step` (turns of the phase), `total` (turns of the run), `time` (seconds)
        and `seed` say which event it is. A value with several numbers has a column for each, `name[0]`. What
        an event does not hold is NaN.

        kind: only events of this kind, such as "eval", "train", "model" or "episode".

        Returns a pandas DataFrame, or without pandas a dict of NumPy arrays, one for each column.
        """
        rows = [row for line in read_run(self.directory).lines for row in _by_seed(line)]
        rows = [row for row in rows if kind in (None, row["kind"])]
        names = list(dict.fromkeys([*PLACE, "seed", *(name for row in rows for name in row)]))
        return _framed({name: np.array([row.get(name, np.nan) for row in rows]) for name in names})

    def report(self) -> dict[str, Figure]:
        """The figures of the run's report that its log has data for, by name. They are not drawn on screen.

        Raises `UserError` without matplotlib.
        """
        optional("matplotlib", "a report")
        from mbo2o.report.page import SECTIONS

        log = read_run(self.directory)
        return {x.name: x.draw(log, False) for x in SECTIONS if log.has(*x.needs)}

    def uncertainty(self, path: str | os.PathLike[str] | None = None) -> Any:
        """What the model believed at each look, as a table: a row for each look, seed and source of states.

        The columns are phase, step, total, seed, source (offline, online, imagined), epistemic, aleatoric,
        penalty and error (the true error of one step); see `mbo2o.report.beliefs`, whose `decay` makes
        numbers of it.

        path: also write it there, as CSV, or as Parquet to a name in .parquet (extra `parquet`).

        Returns a pandas DataFrame, or without pandas a dict of NumPy arrays. Raises `UserError` for a run
        without a model, and without matplotlib.
        """
        optional("matplotlib", "a report")
        from mbo2o.report import beliefs

        found = beliefs.table(read_run(self.directory))
        if not len(found["step"]):
            raise UserError(f"{self.directory}: its log says nothing of a model's uncertainty")
        if path is not None:
            beliefs.write(found, Path(path))
        return _framed(found)

    def beliefs(self, states: Any = None, horizon: int = 25, seed: int = 0) -> dict[str, Figure]:
        """Two figures of the learned model: "map", its uncertainty over states, and "fan", by depth.

        Actions are the policy's. The fan has branches from some of the states under the policy, and the
        model's true error by depth where it was measured.

        Args:
            states: `(N, D)` observations; None: 3000 of the run's dataset, which has to be there.
            horizon: The depth of the branches.
            seed: Which of the run's seeds.

        Raises `UserError` if there is no model or no dataset, and without matplotlib.
        """
        optional("matplotlib", "a report")
        from mbo2o.report.beliefs import depth_fan, state_map

        policy, model = self.policy(seed), self.dynamics(seed)
        if states is None:
            run, _ = training.restore(self.directory)
            index = run.dataset.index.cpu()
            rows = index[:: max(1, len(index) // STATES)][:STATES]
            states = run.dataset.rows(rows).obs.cpu().numpy()
        states = np.asarray(states, np.float32)
        unsure = model.predict(states, policy.predict(states)[0]).uncertainty
        branches = model.rollout(states[:: max(1, len(states) // BRANCHES)][:BRANCHES], policy, horizon)
        fan = np.where(branches.alive, branches.uncertainty, np.nan)
        error = None if model.trust is None else np.asarray(model.expected_error())[:horizon]
        told = f"uncertainty ({model.penalty})"
        return {"map": state_map(states, unsure, told), "fan": depth_fan(fan, told, error)}

    def policy(self, seed: int = 0) -> Any:
        """The trained policy of one of the run's seeds, counted from 0; see `mbo2o.load`."""
        import mbo2o

        return mbo2o.load(self.directory, seed=seed)

    def dynamics(self, seed: int = 0) -> Any:
        """The learned dynamics of the run's last phase, of one of its seeds; see `mbo2o.load_dynamics`.

        Raises `UserError` if the method learns none.
        """
        import mbo2o

        return mbo2o.load_dynamics(self.directory, seed=seed)


def train(
    method: str | Config | Mapping[str, Any] = "moore",
    *given: str | Mapping[str, Any],
    quiet: bool = False,
    trust: bool = True,
    **settings: Any,
) -> RunHandle:
    """Train, or go on with the same run where it stopped, and return its handle.

        run = mbo2o.train("moore", dataset="hopper-medium-replay-v5", seeds=3)
        run = mbo2o.train("td3bc", "my.csv", env=None, recipe={"offline_steps": 3000}, quiet=True)

    It works in a script, in a notebook, inside an event loop and in a thread; SIGINT and SIGTERM save and
    stop a run that trains in the main thread.

    Args:
        method: What `mbo2o.config` takes first: a method's name, or settings; or a whole `Config`.
        given: What else `mbo2o.config` takes: the dataset's name, `KEY=VALUE`, dicts.
        quiet: Whether progress is not printed. Warnings still are.
        trust: Whether code that the settings name is imported. They are the caller's own.
        settings: By name, see `mbo2o.config`.

    Raises:
        UserError: There is a mistake in what was asked, or, as an `EnvironmentFault`, the environment kept
            failing.
        Diverged: Training left the realm of numbers.
        Stopped: A signal asked the run to save and stop.
    """
    if isinstance(method, Config):
        if given or settings:
            raise UserError(
                "train takes a Config alone; change the Config, or give a method's name and settings"
            )
        cfg = method
    elif isinstance(method, str | Mapping):
        cfg = config(method, *given, **settings)
    else:
        raise UserError(f"train takes a method's name or a Config, and {method!r} is neither")
    with quietly(quiet), trusting(trust):
        return RunHandle(training.train(cfg))


def _framed(columns: dict[str, Any]) -> Any:
    """The columns as a pandas DataFrame where there is pandas, else as they are."""
    try:
        import pandas
    except ImportError:
        return columns
    return pandas.DataFrame(columns)


def _by_seed(line: dict[str, Any]) -> list[dict[str, Any]]:
    """A line of the log as one row for each seed."""
    own = {k: v for k, v in line.items() if k in PLACE or not isinstance(v, list)}
    lists = {k: v for k, v in line.items() if k not in own}
    rows = []
    for seed in range(max((len(v) for v in lists.values()), default=1)):
        row = {**own, "seed": seed}
        for name, values in lists.items():
            value = values[seed] if seed < len(values) else None
            parts = enumerate(value) if isinstance(value, list) else [("", value)]
            row |= {f"{name}[{i}]" if i != "" else name: np.nan if x is None else x for i, x in parts}
        rows.append(row)
    return rows
