"""Need 15: sweeps and clusters: several seeds, requeueing, no collisions of directories.

A run's directory follows from its settings, so that the same command goes on; a lock stops a second writer;
a signal saves; `mbo2o slurm` writes an array and returns; sweeps also work with joblib. Acceptance: of four
runs under joblib one is made to fail: three are complete and the code is not 0; TERM in the middle, and the
same command goes on; a second process is refused with the pid; the script passes `bash -n`.
"""

import csv
import io
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mbo2o.cli.main import main

TINY = [
    *("recipe=scratch", "env=Pendulum-v1", "report=false", "recipe.agent.actor.hidden=[4]", "engine=eager"),
    *("recipe.agent.critic.hidden=[4]", "recipe.batch=8", "recipe.random_steps=10", "recipe.online_steps=60"),
    *("run.eval_episodes=1", "run.eval_every=60", "run.checkpoint_every=20", "run.online_capacity=300"),
]


def mbo2o(*args, **more):
    command = [sys.executable, "-m", "mbo2o", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **more)


def states(capsys):
    with pytest.raises(SystemExit):
        main(["runs", "runs", "--format", "csv"])
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_one_failure_in_a_sweep_leaves_the_others_complete(capsys):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    sweep = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1,2,-5"]
    done = mbo2o("train", "-m", *sweep, *TINY)
    assert done.returncode == 2, done.stderr
    assert "seed=-5 must lie" in done.stderr
    rows = states(capsys)
    assert [row["state"] for row in rows] == ["complete"] * 3
    assert sorted(row["seeds"] for row in rows) == ["0", "1", "2"], "the list shows each run's seed"


def test_a_run_that_was_stopped_says_where_and_goes_on(capsys):
    command = ["train", *TINY, "recipe.online_steps=2500", "run.eval_every=2500"]
    process = subprocess.Popen([sys.executable, "-m", "mbo2o", *command], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(Path("runs").glob("*/checkpoints/*[1-9]*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    second = mbo2o(*command)
    assert second.returncode == 2
    assert f"pid {process.pid}" in second.stderr
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    (row,) = states(capsys)
    assert row["state"] == "stopped"
    assert row["place"].startswith("online ")
    assert "of 2,500" in row["place"]
    assert mbo2o(*command).returncode == 0
    assert states(capsys)[0]["state"] == "complete"


def test_a_script_for_slurm_is_written_and_is_sound(capsys):
    with pytest.raises(SystemExit) as end:
        main(["slurm", *TINY, "seed=0,1,2", "--time", "1:00:00"])
    assert end.value.code == 0
    assert "3 runs" in capsys.readouterr().out
    subprocess.run(["bash", "-n", "mbo2o.sbatch"], check=True)
    assert "--array=0-2" in Path("mbo2o.sbatch").read_text()
