"""What tests of sweeps share: four tiny runs, a process that runs them, what they leave."""

import subprocess
import sys

from survival import outcome

from mbo2o.store import checkpoint

TINY = [
    *("recipe=scratch", "env=Pendulum-v1", "report=false", "recipe.agent.actor.hidden=[4]"),
    *(
        "recipe.agent.critic.hidden=[4]",
        "recipe.batch=8",
        "recipe.random_steps=10",
        "recipe.online_steps=300",
    ),
    *("run.eval_episodes=1", "run.eval_every=150", "run.checkpoint_every=50", "run.online_capacity=300"),
]
SWEEP = ["seed=0,10", "recipe.utd=1,2"]


def sweep(folder, launcher, *settings):
    """A process, in a session of its own, that runs a sweep in `folder`."""
    parallel = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    if launcher == "submitit_local":
        parallel = ["hydra.launcher.timeout_min=5"]
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "mbo2o", "train", "-m", f"hydra/launcher={launcher}", *parallel]
    return subprocess.Popen(
        [*command, *(settings or [*SWEEP, *TINY])],
        cwd=folder,
        start_new_session=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def run_dirs(folder):
    return sorted(x for x in (folder / "runs").glob("scratch-*") if x.is_dir())


def turns(directory):
    """Online turns that the last checkpoint of a run holds; 0 without one."""
    found = list((directory / "checkpoints").glob("[0-9]*"))
    return checkpoint.latest(directory / "checkpoints", "cpu")[1]["done"].get("online.0", 0) if found else 0


def table(folder):
    return {x.name: outcome(x) for x in run_dirs(folder)}
