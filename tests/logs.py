"""What tests of learning from a log alone share: a small log as CSV, and sizes that take a second."""

import csv

import numpy as np

from mbo2o.dynamics.fit import FitConfig
from mbo2o.judge import imagined

TINY = {
    "recipe": {
        "offline_steps": 30,
        "offline": {"actor": {"hidden": [8]}, "critic": {"hidden": [8]}},
        "batch": 16,
    },
    "engine": "eager",
    "run": {"online_capacity": 50},
}
"""Settings of a run of switch=td3bc."""


def rough_model(patch):
    """Let the model that judges policies be fitted in a moment; unit/test_judge.py has the real one."""
    patch.setattr(imagined, "FIT", FitConfig(min_updates=20, max_updates=20))


def write_log(path, episodes=10, length=20, **names):
    """A mass that is pushed to the origin with forces of up to 2: `episodes * length` rows.

    names: other names of columns, by the usual one.
    """
    rng = np.random.default_rng(0)
    header = ["obs_x", "obs_v", "act_u", "reward", "terminal", "episode", "step"]
    with open(path, "w", newline="") as file:
        out = csv.writer(file)
        out.writerow([names.get(name, name) for name in header])
        for episode in range(episodes):
            x, v = rng.uniform(-1, 1), 0.0
            for t in range(length):
                u = float(np.clip(-1.5 * x - v + 0.8 * rng.normal(), -2, 2))
                numbers = [f"{y:.6f}" for y in (x, v, u, -x * x - 0.1 * u * u)]
                out.writerow([*numbers, 0, episode, t])
                v += 0.1 * u
                x += 0.1 * v
    return path
