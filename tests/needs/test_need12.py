"""Need 12: my own data, with no simulator (NumPy, CSV, HDF5, Minari, SB3 buffer).

A CSV of 200 rows and no environment installed: MOPO and IQL train, and their policies give finite actions in
bounds. A table whose columns are wrong gives an error that names the column.
"""

import os
import subprocess
import sys

import pytest
from logs import write_log

import mbo2o

ROOT = os.path.dirname(os.path.dirname(mbo2o.__file__))
PROGRAM = """
import sys, time
for name in ("gymnasium", "mujoco", "minari", "hydra", "matplotlib", "pandas"):
    sys.modules[name] = None
import numpy as np
import mbo2o
nets = {{"actor": {{"hidden": [16]}}, "critic": {{"hidden": [16]}}}}
mopo = {{"agent": nets, "offline_steps": 50, "rollouts": 50,
        "dynamics": {{"members": 2, "elites": 2, "net": {{"hidden": [16]}}}}, "fit": {{"max_updates": 100}}}}
iql = {{"offline_steps": 50, "offline": nets | {{"value_net": {{"hidden": [16]}}}}}}
for method, recipe in (("mopo", mopo), ("iql", iql)):
    start = time.monotonic()
    run = mbo2o.train(method, {path!r}, env=None, recipe=recipe, engine="eager", quiet=True, report=False)
    metrics = run.metrics("eval")
    assert np.isfinite(metrics["fqe"]).all() and np.isfinite(metrics["model_value"]).all()
    policy = run.policy()
    obs = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    action, _ = policy.predict(obs)
    assert action.shape == (20, 1) and np.isfinite(action).all() and (np.abs(action) <= 2).all(), action
    print(method, time.monotonic() - start, np.abs(action).max())
"""


def test_a_csv_becomes_a_policy_without_a_simulator(tmp_path):
    path = write_log(tmp_path / "my.csv")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(path=str(path))],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ROOT},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["mopo", "iql"]


def test_a_wrong_column_is_named(tmp_path, capsys):
    from mbo2o.cli.main import main

    path = write_log(tmp_path / "my.csv", obs_v="speed")
    with pytest.raises(SystemExit) as e:
        main(["train", "switch=td3bc", f"dataset={path}", "env=null"])
    assert e.value.code == 2
    assert "column 'speed' is not known; rename it" in capsys.readouterr().err
    columns = (
        "dataset_columns={observations: [obs_x, sped], actions: act_u, rewards: reward, terminals: terminal}"
    )
    with pytest.raises(SystemExit) as e:
        main(["train", "switch=td3bc", f"dataset={path}", "env=null", columns])
    assert e.value.code == 2
    assert "no column 'sped'; did you mean 'speed'?" in capsys.readouterr().err
