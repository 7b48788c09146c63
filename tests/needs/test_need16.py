"""Need 16: config without Hydra surprises, equal power in Python and notebooks.

The same settings give the same directory from the command line, Python and YAML; a misspelt setting names
the right one; a run trains with Hydra blocked, inside an event loop, and in a thread.
"""

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from logs import TINY, rough_model, write_log

import mbo2o
from mbo2o.cli.main import main
from mbo2o.settings import flat
from mbo2o.types import UserError

SETTINGS = ["recipe.offline_steps=2", "engine=eager", "report=false", "run.online_capacity=50"]


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return write_log(tmp_path_factory.mktemp("log") / "my.csv")


def test_the_same_settings_give_the_same_directory_everywhere(log, monkeypatch):
    rough_model(monkeypatch)

    def trained(args):
        with pytest.raises(SystemExit) as e:
            main(args)
        assert e.value.code == 0
        return {x.name for x in Path("runs").iterdir()}

    by_command = trained(["train", "switch=bc", f"dataset={log}", "env=null", "seed=1", *SETTINGS])
    Path("x.yaml").write_text(
        f"switch: bc\ndataset: {log}\nenv: null\nseed: 1\nengine: eager\nreport: false\n"
        "recipe: {offline_steps: 2}\nrun: {online_capacity: 50}\n"
    )
    assert trained(["train", "--config", "x.yaml"]) == by_command
    run = mbo2o.train(
        *("bc", str(log)), env=None, seed=1, recipe={"offline_steps": 2}, engine="eager", report=False,
        run={"online_capacity": 50}, quiet=True
    )  # fmt: skip
    assert {run.directory.name} == by_command
    assert (run / "config.yaml").is_file()


def test_a_misspelt_setting_names_the_right_one():
    with pytest.raises(UserError, match=r"'sed' is not a setting; did you mean 'seed'\?"):
        mbo2o.config("wsrl", "hopper-medium", sed=3)


def test_importing_the_package_and_making_a_config_needs_no_hydra():
    program = (
        "import sys; sys.modules['hydra'] = None; import mbo2o; "
        "print(mbo2o.config('wsrl', 'hopper-medium', seed=1).recipe.offline.critics)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "10\n"), done.stderr


def test_a_run_trains_inside_an_event_loop_and_in_a_thread(log, tmp_path, capfd, monkeypatch):
    rough_model(monkeypatch)

    def small(name):
        cfg = {"offline_steps": 2, "offline": {"actor": {"hidden": [8]}}}
        return mbo2o.train(
            "bc", str(log), env=None, dir=tmp_path / name, recipe=cfg, report=False, quiet=True
        )

    async def inside():
        return small("loop")

    runs = [asyncio.run(inside())]
    thread = threading.Thread(target=lambda: runs.append(small("thread")))
    thread.start()
    thread.join()
    loop, other = (x.metrics("eval") for x in runs)
    assert loop["holdout_loglik"].tolist() == other["holdout_loglik"].tolist()
    assert capfd.readouterr().err == ""


def test_every_setting_of_tiny_runs_is_one(log):
    cfg = mbo2o.config("td3bc", str(log), **TINY)
    assert cfg.recipe.offline.actor.hidden == [8]
    assert all("." not in x for x in TINY)
    assert "recipe.offline_steps" in flat(TINY)
