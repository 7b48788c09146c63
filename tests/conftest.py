import csv
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

from mbo2o.collect.play import roll
from mbo2o.data.dataset import TransitionDataset
from mbo2o.store import datasets

HERE = Path(__file__).parent
SLOW = {
    "contract/test_agents.py::test_update_is_one_graph_per_form",
    "contract/test_bits.py",
    "contract/test_presets.py",
    "contract/test_recipes.py",
    "contract/test_switch.py",
    "needs/test_need01.py",
    "needs/test_need02.py",
    "needs/test_need03.py",
    "needs/test_need04.py",
    "needs/test_need05.py",
    "needs/test_need07.py",
    "needs/test_need11.py",
    "needs/test_need08.py",
    "needs/test_need12.py",
    "needs/test_need13.py",
    "needs/test_need18.py",
    "needs/test_need16.py",
    "needs/test_need21.py",
    "needs/test_need22.py",
    "needs/test_need23.py",
    "needs/test_need24.py",
    "needs/test_need25.py",
    "test_arms.py",
    "test_cli.py",
    "test_readme.py",
    "test_studies.py",
    "unit/test_actions.py",
    "unit/test_addresses.py",
    "unit/test_audit_rolled.py",
    "unit/test_bad_files.py",
    "needs/test_need06.py",
    "needs/test_need09.py",
    "needs/test_need10.py",
    "needs/test_need14.py",
    "needs/test_need15.py",
    "needs/test_need17.py",
    "unit/test_browser.py",
    "unit/test_comparing.py",
    "unit/test_loggers.py",
    "unit/test_bench.py::test_rollout_measures_both_kinds",
    "unit/test_bench.py::test_update_measures_every_work_by_engine_and_precision",
    "unit/test_checkpoints.py",
    "unit/test_disk.py",
    "unit/test_divergence.py",
    "unit/test_door.py",
    "unit/test_dynamics.py",
    "unit/test_engine.py",
    "unit/test_extending.py",
    "unit/test_faults.py",
    "unit/test_front_door.py",
    "unit/test_launchers.py",
    "unit/test_slurm.py",
    "unit/test_start.py",
    "unit/test_hostile.py::test_an_audit_hook_sees_nothing_run_while_loading",
    "unit/test_identity.py",
    "unit/test_lapo.py",
    "unit/test_compose.py",
    "unit/test_judge.py",
    "unit/test_layouts.py",
    "unit/test_log_alone.py",
    "unit/test_locks.py",
    "unit/test_longer.py",
    "unit/test_made_by_people.py",
    "unit/test_mapped.py",
    "unit/test_mazes.py",
    "unit/test_mbrl.py::test_the_planning_notebook_runs",
    "unit/test_model_adapters.py",
    "unit/test_model_env.py",
    "unit/test_model_page.py",
    "unit/test_model_trust.py",
    "unit/test_modelbased.py",
    "unit/test_overrides.py",
    "unit/test_planning.py",
    "unit/test_plugins.py",
    "unit/test_policy.py",
    "unit/test_pretraining.py",
    "unit/test_reading.py",
    "unit/test_remembered.py",
    "unit/test_remote.py",
    "unit/test_report.py",
    "unit/test_reward_scale.py",
    "unit/test_scores.py",
    "unit/test_seeds.py",
    "unit/test_signals.py",
    "unit/test_sources.py",
    "unit/test_termination.py",
}
"""Files, and tests as `FILE::test_name`, that `./dev test -m quick` leaves out; all other tests are quick."""


def pytest_addoption(parser):
    parser.addoption(
        "--promises", help="write what was counted to this CSV file, if all passes; rows of other tests stay"
    )


@pytest.fixture
def promise(record_property):
    """Count a promise that was kept: `promise("kinds of bad files", 3)`. README shows the sums."""
    return lambda what, n=1: record_property("promise", (what, n))


class Promises:
    """Adds up what passing tests counted, in the process that the reports of all workers come to."""

    def __init__(self, path):
        self.path, self.kept = path, {}

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and report.passed:
            for key, value in report.user_properties:
                if key == "promise":
                    what, n = value
                    self.kept[what] = self.kept.get(what, 0) + n

    def pytest_sessionfinish(self, exitstatus):
        if exitstatus or not self.kept:
            return
        try:
            with open(self.path, newline="") as f:
                rows = {row["promise"]: row["kept"] for row in csv.DictReader(f)}
        except FileNotFoundError:
            rows = {}
        with open(self.path, "w", newline="") as f:
            csv.writer(f, lineterminator="\n").writerows([("promise", "kept"), *(rows | self.kept).items()])


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    for item in items:
        file = item.path.relative_to(HERE).as_posix()
        slow = item.get_closest_marker("slow") or item.get_closest_marker("survival")
        if not slow and not {file, f"{file}::{item.originalname}"} & SLOW:
            item.add_marker("quick")


def pytest_configure(config):
    if missing := [name for name in SLOW if not (HERE / name.split("::")[0]).is_file()]:
        raise pytest.UsageError(
            f"tests/conftest.py: SLOW names files that do not exist: {', '.join(missing)}"
        )
    if (path := config.getoption("--promises")) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Promises(os.path.abspath(path)))


@pytest.fixture(autouse=True)
def _one_thread_the_same_draws_and_a_clean_folder(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)  # runs and MuJoCo's log go here


@pytest.fixture(scope="session")
def pendulum(tmp_path_factory):
    """A file of 600 random transitions of Pendulum-v1."""
    path = tmp_path_factory.mktemp("data") / "pendulum-random.hdf5"
    fields = roll("Pendulum-v1", None, 600, seed=0)
    datasets.write(TransitionDataset.from_arrays(**fields, attrs={"env_id": "Pendulum-v1"}), path)
    assert np.isfinite(fields["rewards"]).all()
    return path
