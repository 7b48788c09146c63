"""Model-based offline-to-online reinforcement learning: one probabilistic ensemble for dynamics and critics.

    import mbo2o

    run = mbo2o.train("moore", dataset="hopper-medium-replay-v5", seeds=3)
    run.metrics()                                # the log, as a table
    policy = run.policy()                        # or mbo2o.load(run)
    model = run.dynamics()                       # or mbo2o.load_dynamics(run)

`config("wsrl", "my.hdf5", seed=1)` makes what `train` would run, without running it.
`read_dataset` reads a dataset by its path or name, and `Dataset.from_arrays` makes one. `agent`, `recipe`,
`source`, `planner`, `penalty` and `termination` register methods of your own. `Planner` acts by planning in a
model. `UserError` is the exception for a mistake in what was asked. Each name is imported when it is first
used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mbo2o.cli.train import config as config
    from mbo2o.data import dataset as _dataset
    from mbo2o.dynamics.termination import termination as termination
    from mbo2o.ensemble.uncertainty import penalty as penalty
    from mbo2o.errors import UserError as UserError
    from mbo2o.handle import RunHandle as RunHandle
    from mbo2o.handle import train as train
    from mbo2o.model.dynamics import Dynamics as Dynamics
    from mbo2o.model.dynamics import load_dynamics as load_dynamics
    from mbo2o.model.fitting import fit_dynamics as fit_dynamics
    from mbo2o.planning.planner import Planner as Planner
    from mbo2o.policy.load import load as load
    from mbo2o.policy.policy import Policy as Policy
    from mbo2o.registry import agent as agent
    from mbo2o.registry import planner as planner
    from mbo2o.registry import recipe as recipe
    from mbo2o.registry import source as source
    from mbo2o.settings import Config as Config
    from mbo2o.store.datasets import read as read_dataset  # noqa: F401
    from mbo2o.training import load_agent as load_agent
    from mbo2o.training import restore as restore
    from mbo2o.types import Batch as Batch
    from mbo2o.types import Source as Source
    from mbo2o.types import Spec as Spec

    Dataset = _dataset.TransitionDataset

__version__ = "0.1.0"

_HOMES = {
    "Batch": "mbo2o.types:Batch",
    "Config": "mbo2o.settings:Config",
    "Dataset": "mbo2o.data.dataset:TransitionDataset",
    "Dynamics": "mbo2o.model.dynamics:Dynamics",
    "Policy": "mbo2o.policy.policy:Policy",
    "RunHandle": "mbo2o.handle:RunHandle",
    "Source": "mbo2o.types:Source",
    "Spec": "mbo2o.types:Spec",
    "Planner": "mbo2o.planning.planner:Planner",
    "UserError": "mbo2o.errors:UserError",
    "agent": "mbo2o.registry:agent",
    "config": "mbo2o.cli.train:config",
    "fit_dynamics": "mbo2o.model.fitting:fit_dynamics",
    "load": "mbo2o.policy.load:load",
    "load_agent": "mbo2o.training:load_agent",
    "load_dynamics": "mbo2o.model.dynamics:load_dynamics",
    "penalty": "mbo2o.ensemble.uncertainty:penalty",
    "planner": "mbo2o.registry:planner",
    "read_dataset": "mbo2o.store.datasets:read",
    "recipe": "mbo2o.registry:recipe",
    "restore": "mbo2o.training:restore",
    "source": "mbo2o.registry:source",
    "termination": "mbo2o.dynamics.termination:termination",
    "train": "mbo2o.handle:train",
}
"""Where each name lives. No submodule has one of these names: to import it would hide the name here."""

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mbo2o' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    found = globals()[name] = getattr(importlib.import_module(module), attribute)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
