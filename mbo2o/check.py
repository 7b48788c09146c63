"""`mbo2o data check`: find the file, its environment and the termination rule, and have `data.audit` look at the rows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import parse_env_id

from .data import remote, schema
from .data.audit import audit, stored
from .data.dataset import MINARI_ID
from .data.findings import Report
from .data.io import minari
from .data.record import Task
from .dynamics.termination import TERMINATIONS, resolve
from .run.layouts import ANT, find_layout
from .run.make import EnvChoice, make_env
from .train import data_folders, find_dataset
from .types import TerminationFn, UserError


def check(
    name: str, env_id: str | None = None, termination: str = "auto", env_kwargs: Mapping[str, Any] | None = None
) -> Report:
    """Audit a dataset.

    Args:
        name: A D4RL file, the name of one in a data folder, or `minari:ID`.
        env_id: The environment that the data are for; if not given, the file's own.
        termination: The rule to certify: a name, `package.module:function`, or `auto`, the environment's if it is known.
        env_kwargs: What the environment is made with, as a run's setting of that name.

    Raises:
        UserError: No such file, one that cannot be read, an environment given that cannot be made, no such rule.
    """
    fields, attrs = _read(name)
    choice = _choice(env_id or attrs.get("env_id"), env_kwargs, fields["observations"])
    task = find_task(choice, bool(env_id))
    rule, function = _rule(termination, task, choice, fields["observations"].shape[1])
    return audit(fields, attrs, dataset=name, task=task, termination=function, rule=rule)


def _read(name: str) -> tuple[schema.Fields, schema.Attrs]:
    shipped = [path for folder in data_folders() for path in [folder / f"{name}.hdf5"] if path.is_file()]
    if os.path.exists(name) or name.endswith((".hdf5", ".h5")):
        return stored(name)
    if shipped:
        return stored(shipped[0])
    if entry := remote.lookup(name):
        fields, attrs = stored(entry.ready())
        return fields, entry.attrs | attrs
    if name.startswith("minari:") or ("/" in name and MINARI_ID.fullmatch(name)):
        return minari.read(name.removeprefix("minari:"))
    find_dataset(name)  # says what is wrong with the name
    raise UserError(f"{name}: not a file; data check reads D4RL files and minari:ID")


def _choice(env_id: object, env_kwargs: Mapping[str, Any] | None, obs: np.ndarray) -> EnvChoice | None:
    """The environment as a run would make it for these rows."""
    if env_id is None:
        return None
    layout = find_layout(str(env_id), obs.shape[1], lambda: bool(np.any(obs[:, ANT:])))
    return EnvChoice(str(env_id), env_kwargs or {}, layout)


def find_task(choice: EnvChoice | None, given: bool) -> Task | None:
    """What there is to know of the environment, which was `given`, or which the file names.

    Raises `UserError` for one that was given and cannot be made; of the file's own that is a finding.
    """
    if choice is None:
        return None
    env_id = choice.id
    if not given and schema.imports(env_id):
        return Task(env_id, problem=f"that would import a module which the file names; --env {env_id} if you trust it")
    try:
        env = make_env(choice)
    except UserError as error:
        if given:
            raise
        return Task(env_id, newest=_newest(env_id), problem=str(error))
    obs, act = env.observation_space.shape or (0,), env.action_space.shape or (0,)
    limit = env.spec.max_episode_steps if env.spec else None
    env.close()
    return Task(env_id, obs[0], int(np.prod(act)), limit, _newest(env_id))


def _newest(env_id: str) -> str | None:
    try:
        namespace, base, _ = parse_env_id(env_id.split(":")[-1])
    except gymnasium.error.Error:
        return None
    specs = [x for x in gymnasium.registry.values() if (x.namespace, x.name) == (namespace, base) and x.version is not None]
    return max(specs, key=lambda x: x.version or 0).id if specs else None


def _rule(termination: str, task: Task | None, choice: EnvChoice | None, obs_dim: int) -> tuple[str, TerminationFn | None]:
    """The rule's name and function; None where `auto` knows none, or one that reads other observations than these."""
    if termination == "learned":
        raise UserError("--termination learned is fitted to the data, so that there is nothing to certify; name a rule")
    if termination != "auto":
        return termination, resolve(termination)
    if task is None or choice is None or task.obs_dim not in (None, obs_dim):
        return termination, None
    try:
        function = resolve(termination, choice.id, choice.kwargs, choice.layout)
    except UserError:
        return termination, None
    return next((key for key, f in TERMINATIONS.items() if f is function), termination), function
