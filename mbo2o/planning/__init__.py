"""Planning with the learned dynamics: CEM, iCEM and MPPI, and a bridge to mbrl-lib."""

from mbo2o.planning import cem, icem, mppi  # noqa: F401  registers
