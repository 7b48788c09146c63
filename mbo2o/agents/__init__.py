"""Learners from batches, one file each; they know no environment, dataset, phase or logger."""

import importlib
import pkgutil

from mbo2o.agents.base import Agent, AgentConfig, make_agent

# importing a sibling registers its agents: a new method is a new file, and nothing else changes
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Agent", "AgentConfig", "make_agent"]
