"""`mbo2o data check`: find a dataset, its environment and its termination rule, and `audit` the rows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mbo2o.data import precision
from mbo2o.data.actions import Actions
from mbo2o.doctor.audit import audit
from mbo2o.doctor.evidence import Task
from mbo2o.doctor.findings import Report
from mbo2o.dynamics.termination import TERMINATIONS, resolve
from mbo2o.envs.layouts import ANT, find_layout
from mbo2o.envs.make import EnvChoice, make_env
from mbo2o.store import datasets
from mbo2o.store.hdf5 import imports_module
from mbo2o.types import TerminationFn, UserError

OPTION = "--actions "
"""How the user of the command gives the units of actions, for messages."""


def check(
    name: str,
    env_id: str | None = None,
    termination: str = "auto",
    actions: Any = None,
    env_kwargs: Mapping[str, Any] | None = None,
    columns: Any = None,
) -> Report:
    """Examine a stored dataset.

    Args:
        name: A dataset, as `store.datasets.find` takes it: a D4RL file, a name in a data folder, or
            `minari:ID`.
        env_id: The environment that the data are meant for; None for the one that the file names.
        termination: The rule to certify: a name, `package.module:function`, or `auto` for the environment's
            own rule.
        actions: The units of the actions, see `Actions.mode`; or their bounds, [LOW, HIGH].
        env_kwargs: The arguments that the environment is made with, as in the run setting of that name.
        columns: Which column of a table holds what, as the run setting `dataset_columns`.

    Raises:
        UserError: A dataset that does not exist or cannot be read, a rule that does not exist, or an
            environment that cannot be made although `env_id` or `env_kwargs` were given.
    """
    found = datasets.find(name, columns)
    own = env_id or found.attrs().get("env_id")
    if env_kwargs and not own:
        raise UserError(
            f"{name}: does not say which environment it is of, so that --env-kwargs has no use; give --env ID"
        )
    choice = None if own is None else EnvChoice(str(own), env_kwargs or {})
    task = find_task(choice, bool(env_id))
    box = None if task is None or task.low is None else (task.low, task.high)
    bounds = isinstance(actions, list | tuple)
    how = datasets.units_for(found, actions, None, OPTION) if bounds else Actions(actions, box, OPTION)
    if task is None and actions is None and found.is_table:
        how, _, said = datasets.units_of_log(found, None, OPTION)
        if said:
            warnings.warn(f"{name}: {said}", stacklevel=2)
    with precision.heard() as lost:
        fields, attrs = found.read_stored(how)
    obs = fields["observations"]
    if choice is not None:
        layout = find_layout(choice.id, obs.shape[1], lambda: bool(np.any(obs[:, ANT:])))
        if layout:
            choice = replace(choice, layout=layout)
            task = find_task(choice, bool(env_id))
    rule, function = _find_rule(termination, task, choice, obs.shape[1])
    report = audit(
        fields,
        attrs,
        dataset=name,
        task=task,
        termination=function,
        rule=rule,
        units_known=how.mode is not None or found.dataset_id is not None,  # Minari stores the action space
        lost=lost,
    )
    return _by_line(report, found, how)


def _by_line(report: Report, found: datasets.Named, units: Actions) -> Report:
    """The report with the lines of a CSV file in place of its rows, because an editor shows lines."""
    if not (found.has_lines and any(f.rows for f in report.findings)):
        return report
    lines = found.lines(units)
    findings = [
        replace(f, rows=[int(lines[row]) for row in f.rows], place="line") if f.rows else f
        for f in report.findings
    ]
    return replace(report, findings=findings)


def find_task(choice: EnvChoice | None, given: bool) -> Task | None:
    """Make the environment and note what the checks need of it; `given` if the user named it, not the file.

    Raises `UserError` if it cannot be made and the user gave it or its arguments; otherwise the problem is a
    finding.
    """
    if choice is None:
        return None
    env_id = choice.id
    if not given and imports_module(env_id):
        return Task(
            env_id, problem=f"that would import a module which the file names; --env {env_id} if you trust it"
        )
    try:
        env = make_env(choice)
    except UserError as error:
        if given or choice.kwargs:
            raise
        return Task(env_id, newest=_newest(env_id), problem=str(error))
    obs, act = env.observation_space.shape or (0,), env.action_space.shape or (0,)
    limit = env.spec.max_episode_steps if env.spec else None
    box: Any = env.action_space
    low, high = (tuple(x.ravel().tolist()) for x in (box.low, box.high))
    env.close()
    return Task(env_id, obs[0], int(np.prod(act)), limit, _newest(env_id), low=low, high=high)


def _newest(env_id: str) -> str | None:
    """The registered environment of the same name, in the same module, with the highest version."""
    try:
        import gymnasium
        from gymnasium.envs.registration import parse_env_id
    except ImportError:
        return None
    module, colon, name = env_id.rpartition(":")
    try:
        namespace, base, _ = parse_env_id(name)
    except gymnasium.error.Error:
        return None
    specs = [x for x in gymnasium.registry.values() if (x.namespace, x.name) == (namespace, base)]
    versions = {x.version: x.id for x in specs if x.version is not None}
    return f"{module}{colon}{versions[max(versions)]}" if versions else None


def _find_rule(
    termination: str, task: Task | None, choice: EnvChoice | None, obs_dim: int
) -> tuple[str, TerminationFn | None]:
    """The rule's name and function; the function is None if `auto` knows no rule for these observations."""
    if termination == "learned":
        raise UserError(
            "--termination learned is fitted to the data, so that there is nothing to certify; name a rule"
        )
    if termination != "auto":
        return termination, resolve(termination)
    if task is None or choice is None or task.obs_dim not in (None, obs_dim):
        return termination, None
    try:
        function = resolve(termination, choice.id, choice.kwargs, choice.layout)
    except UserError:
        return termination, None
    return next((key for key, f in TERMINATIONS.items() if f is function), termination), function
