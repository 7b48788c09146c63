"""The former place of a run's classes; nothing else is here."""

from mbo2o.run.config import RunConfig
from mbo2o.run.memory import Restored
from mbo2o.run.turns import Run
from mbo2o.run.watch import Stopped
from mbo2o.run.world import Task

__all__ = ["Restored", "Run", "RunConfig", "Stopped", "Task"]
