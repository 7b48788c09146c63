"""A trained policy as an object that can be called, saved and exported; it needs no dataset and no simulator.

Importing this package, and loading a policy, imports neither gymnasium nor mujoco, hydra or matplotlib.
"""

from mbo2o.policy.facts import FILE as FILE
from mbo2o.policy.facts import facts_of as facts_of
from mbo2o.policy.load import load as load
from mbo2o.policy.policy import Policy as Policy

__all__ = ["FILE", "Policy", "facts_of", "load"]
