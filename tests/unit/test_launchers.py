"""Sweeps: whatever launcher runs them, and whenever they are killed, they end with the same runs."""

import os
import signal

import pytest
from survival import assert_same, eventually
from sweeps import TINY, run_dirs, sweep, table, turns

from mbo2o.cli.main import main

LAUNCHERS = [
    "basic",
    # a dozen processes each, every one of which imports torch
    pytest.param("joblib", marks=pytest.mark.slow),
    pytest.param("submitit_local", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    process = sweep(folder, "basic")
    assert process.wait() == 0, process.stderr.read()
    return table(folder)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_sweep_killed_and_given_again_ends_as_an_undisturbed_one(launcher, undisturbed, tmp_path):
    if launcher != "basic":
        pytest.importorskip(f"hydra_plugins.hydra_{launcher.split('_')[0]}_launcher")
    assert len(undisturbed) == 4
    killed = sweep(tmp_path, launcher)
    begun = 2 if launcher == "basic" else 1
    eventually(lambda: len(run_dirs(tmp_path)) >= begun and turns(run_dirs(tmp_path)[-1]), 300)
    os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert sum(turns(x) for x in run_dirs(tmp_path)) < 4 * 300
    again = sweep(tmp_path, launcher)
    _, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    after = table(tmp_path)
    assert after.keys() == undisturbed.keys()
    for name in after:
        assert_same(after[name], undisturbed[name])


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_code_of_a_sweep_is_the_largest_of_its_runs(launcher, tmp_path):
    """The run that cannot begin does not keep the other one from running."""
    if launcher != "basic":
        pytest.importorskip(f"hydra_plugins.hydra_{launcher.split('_')[0]}_launcher")
    process = sweep(tmp_path, launcher, "seed=-1,0", *TINY, "recipe.online_steps=20")
    _, err = process.communicate(timeout=300)
    assert (process.returncode, "Traceback" in err) == (2, False)
    (directory,) = run_dirs(tmp_path)
    assert turns(directory) == 20


@pytest.mark.parametrize(
    ("launcher", "said"),
    [("joblib", "mbo2o[joblib]"), ("submitit_slurm", "mbo2o[submitit]"), ("joblb", "did you mean 'joblib'?")],
)
def test_a_launcher_that_is_missing_is_one_line(launcher, said, capsys, monkeypatch):
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    Plugins.instance()  # a plugin registers its config when Hydra first looks for plugins
    launchers = ConfigStore.instance().repo.get("hydra", {}).get("launcher", {})
    monkeypatch.delitem(launchers, f"{launcher}.yaml", raising=False)
    with pytest.raises(SystemExit) as e:
        main(["train", "-m", f"hydra/launcher={launcher}", *TINY])
    lines = capsys.readouterr().err.splitlines()
    assert (e.value.code, len(lines)) == (2, 1)
    assert said in lines[0]
