"""SAC of Stable-Baselines3 inside a learned model, beside the same SAC in the real task.

    python -m studies.sb3_in_model Pendulum-v1 --out runs/sb3            # what is finished is not run again
    python -m studies.sb3_in_model Hopper-v5 --out runs/sb3 --seeds 5

Both are played in the real task. The model is fitted to data without an agent (`mbo2o.fit_dynamics`). In it,
episodes begin in states of the data and are as long as the model is to be trusted; the reward is r - u(s, a).
It writes data/results/sb3-in-model.csv, a row for each task, arm, seed and evaluation.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from mbo2o.collect.play import roll
from mbo2o.data.dataset import TransitionDataset
from mbo2o.dynamics.fit import FitConfig
from mbo2o.dynamics.model import DynamicsConfig
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.model.dynamics import Dynamics, load_dynamics
from mbo2o.model.fitting import ModelConfig, fit_dynamics
from mbo2o.store import datasets
from studies.arms import write
from studies.methods import with_interval

RESULTS = Path(__file__).parent.parent / "data" / "results"
FILE = "sb3-in-model.csv"
ARMS = {"model": "inside the model", "task": "in the real task"}
STEPS, EVERY, BRANCHES, EPISODES = 20_000, 5_000, 4, 10
"""Steps of training, steps between evaluations, environments side by side, and episodes of an evaluation."""
SHORTEST = 5
"""Episodes in the model have at least so many steps, also where it is to be trusted for fewer."""


@dataclass(frozen=True)
class Setup:
    """What differs between tasks."""

    dataset: str | None
    """The data of the model; None: uniformly random actions, as many rows as SAC takes steps."""
    net: list[int] = field(default_factory=lambda: [256, 256])
    """The hidden layers of SAC's networks; all else are the package's defaults."""


TASKS = {
    "Pendulum-v1": Setup(None, [64, 64]),
    "Hopper-v5": Setup("hopper-medium-replay-v5"),
}


def data_of(task: str) -> TransitionDataset:
    """The data that the model of a task is fitted to."""
    name = TASKS[task].dataset
    if name is not None:
        return datasets.read(name)
    fields: dict[str, Any] = roll(task, None, STEPS, seed=0)
    return TransitionDataset.from_arrays(**fields, attrs={"env_id": task})


def model_of(task: str, data: TransitionDataset, folder: Path) -> Dynamics:
    """The model of a task, fitted at the first call."""
    if not (folder / "README.md").exists():
        dynamics = DynamicsConfig(net=MLPConfig(hidden=[200, 200], activation="silu"))
        fit_dynamics(data, ModelConfig(dynamics=dynamics, fit=FitConfig(max_updates=20_000)), folder, print)
    return load_dynamics(folder)


def horizon_of(model: Dynamics) -> int:
    """The length of episodes in a model."""
    return min(max(SHORTEST, model.trusted_depth()), model.about.time_limit or STEPS)


def train(task: str, arm: str, seed: int, model: Dynamics, starts: np.ndarray) -> list[dict[str, Any]]:
    """Train one agent; its returns in the real task, with the step of each."""
    from stable_baselines3 import SAC
    from stable_baselines3.common.env_util import make_vec_env

    from mbo2o.model.sb3 import SB3VecEnv

    if arm == "model":
        how: dict[str, Any] = {"horizon": horizon_of(model), "penalty": 1.0, "autoreset": "SameStep"}
        env: Any = SB3VecEnv(model.as_vector_env(BRANCHES, starts, **how))
    else:
        env = make_vec_env(task, BRANCHES)
    net = {"net_arch": TASKS[task].net}
    # a gradient step for each transition, whatever the number of environments
    sac = SAC("MlpPolicy", env, seed=seed, device="cpu", policy_kwargs=net, gradient_steps=-1)
    rows = []
    for step in range(EVERY, STEPS + 1, EVERY):
        sac.learn(EVERY, reset_num_timesteps=False)
        found = evaluate(task, sac, seed)
        rows.append({"step": step, "return": float(np.mean(found))})
        print(f"{task} {arm} seed {seed} step {step}: {rows[-1]['return']:.0f}", flush=True)
    env.close()
    return rows


def evaluate(task: str, sac: Any, seed: int) -> list[float]:
    """Returns of the mean action in the real task, from the same starts for every arm of a seed."""
    env = gymnasium.make(task)
    returns = []
    for k in range(EPISODES):
        obs, _ = env.reset(seed=10_000 + 100 * seed + k)
        total, over = 0.0, False
        while not over:
            obs, reward, terminated, truncated, _ = env.step(sac.predict(obs, deterministic=True)[0])
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    env.close()
    return returns


def run(task: str, out: Path, seeds: int) -> None:
    """Train every arm and seed that is not finished under `out`."""
    data = data_of(task)
    model = model_of(task, data, out / task / "model")
    starts = data.obs.numpy()
    for seed in range(seeds):
        for arm in ARMS:
            file = out / task / f"{arm}-{seed}.json"
            if not file.exists():
                rows = train(task, arm, seed, model, starts)
                file.write_text(json.dumps(rows))


def collect(out: Path, results: Path) -> None:
    """Write the finished runs of all tasks as one file; tasks that `out` lacks keep their rows."""
    rows = [r for r in read(results) if not (out / r["task"]).is_dir()]
    for task in TASKS:
        for file in sorted((out / task).glob("*-*.json")):
            arm, seed = file.stem.split("-")
            model = load_dynamics(out / task / "model")
            facts = {"trusted": model.trusted_depth(), "horizon": horizon_of(model)}
            for row in json.loads(file.read_text()):
                rows.append({"task": task, "arm": arm, "seed": seed, **facts, **row})
    write(results / FILE, rows)


def read(results: Path) -> list[dict[str, Any]]:
    """The rows of the results file; none if there is no file yet."""
    if not (results / FILE).exists():
        return []
    with open(results / FILE, newline="") as f:
        return list(csv.DictReader(f))


def table(results: Path) -> str:
    """Returns in the real task, as Markdown: a row for each task and arm, a column for each evaluation."""
    rows = read(results)
    if not rows:
        return "Not measured yet: `python -m studies.sb3_in_model Pendulum-v1 --out runs/sb3`."
    steps = sorted({int(r["step"]) for r in rows})
    heads = ["task", "SAC learns", "seeds", "steps of an episode", *(f"after {s}".strip() for s in steps)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for task in dict.fromkeys(r["task"] for r in rows):
        for arm, name in ARMS.items():
            mine = [r for r in rows if (r["task"], r["arm"]) == (task, arm)]
            seeds = len({r["seed"] for r in mine})
            length = mine[0]["horizon"] if arm == "model" else "the task's"
            cells = [
                with_interval(np.array([float(r["return"]) for r in mine if int(r["step"]) == s]), 0)
                for s in steps
            ]
            lines.append(f"| {' | '.join([task, name, str(seeds), length, *cells])} |")
    return "\n".join(lines)


def main() -> None:
    """What the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    run(options.task, options.out, options.seeds)
    collect(options.out, options.results)


if __name__ == "__main__":
    main()
