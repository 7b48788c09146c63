"""A run without an environment: what it measures, which methods it refuses, and that it resumes exactly."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from logs import TINY, rough_model, write_log
from nbclient import NotebookClient

import mbo2o
from mbo2o.cli.main import main
from mbo2o.run.turns import Run
from mbo2o.types import UserError

ROOT = os.path.dirname(os.path.dirname(mbo2o.__file__))
CORE_ONLY = "gymnasium mujoco minari hydra matplotlib PIL imageio termcolor pandas"
"""What only `mbo2o[all]` and other extras install."""


@pytest.fixture(scope="module", autouse=True)
def _a_rough_model():
    with pytest.MonkeyPatch.context() as patch:
        rough_model(patch)
        yield


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return write_log(tmp_path_factory.mktemp("log") / "my.csv")


@pytest.fixture(scope="module")
def run(log, tmp_path_factory):
    directory = tmp_path_factory.mktemp("alone") / "run"
    return mbo2o.train("td3bc", str(log), env=None, seeds=2, dir=directory, quiet=True, **TINY)


def test_it_measures_what_the_log_says_and_draws_it(run):
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    evals = [x for x in lines if x["kind"] == "eval"]
    assert [x["step"] for x in evals] == [0, 30]
    for line in evals:
        assert "return" not in line
        for name in ("fqe", "model_value", "holdout_td_error", "holdout_action_error", "behaviour_value"):
            assert len(line[name]) == 2
            assert np.isfinite(line[name]).all()
        assert (np.array(line["model_value_low"]) <= line["model_value"]).all()
    page = (run / "report" / "index.html").read_text()
    assert "fitted Q evaluation, seed 1" in page
    assert "the log alone" in page
    assert "estimates" in run.report()
    assert run.report()["estimates"].axes[0].get_ylabel().startswith("discounted return")


def test_its_log_is_a_table(run):
    table = run.metrics("eval")
    assert list(table["seed"]) == [0, 1, 0, 1]
    assert set(table["kind"]) == {"eval"}
    assert np.isfinite(table["fqe"]).all()
    assert {"probe", "train", "eval"} <= set(run.metrics()["kind"])


def test_the_handle_is_a_path(run):
    assert os.fspath(run) == str(run) == str(run.directory)
    assert (run / "config.yaml").is_file()
    assert os.path.isdir(run)
    with pytest.raises(UserError, match="holds no dynamics model"):
        run.dynamics()


def test_the_same_command_goes_on_and_eval_says_the_same(run, log, capsys):
    again = mbo2o.train("td3bc", str(log), env=None, seeds=2, dir=str(run), quiet=True, **TINY)
    assert again.directory == run.directory
    last = run.metrics("eval")["fqe"].to_numpy()[-2:]
    with pytest.raises(SystemExit) as e:
        main(["eval", str(run), "--json"])
    assert e.value.code == 0
    assert json.loads(capsys.readouterr().out)["fqe"] == pytest.approx(last.tolist(), rel=1e-6)


def test_without_its_log_the_policy_is_there_and_nothing_is_measured(run, log, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace(str(log), str(tmp_path / "gone.csv")))
    action, _ = mbo2o.load(copy, seed=1).predict(np.zeros((3, 2), np.float32))
    same, _ = run.policy(1).predict(np.zeros((3, 2), np.float32))
    assert np.array_equal(action, same)
    with pytest.raises(SystemExit) as e:
        main(["eval", str(copy)])
    assert e.value.code == 2
    assert "without the log nothing can be said of the policy" in capsys.readouterr().err


def test_a_policy_acts_between_the_bounds_of_the_log(run):
    facts = json.loads((run / "io.json").read_text())
    assert facts["observation"]["names"] == ["obs_x", "obs_v"]
    assert facts["action"]["names"] == ["act_u"]
    low, high = facts["action"]["low"][0], facts["action"]["high"][0]
    assert -2 <= low < -1.5 < 1.5 < high <= 2
    action, _ = run.policy().predict(100 * np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32))
    assert (low <= action).all()
    assert (action <= high).all()
    assert np.abs(action).max() > 1


def test_a_part_and_the_rest_are_the_whole(log, tmp_path):
    sizes = TINY | {"run": {"online_capacity": 50, "checkpoint_every": 10, "eval_every": 10}}

    def train(name):
        return mbo2o.train(
            "td3bc", str(log), env=None, dir=tmp_path / name, quiet=True, report=False, **sizes
        )

    class Killed(BaseException):
        pass

    whole, save = train("whole"), Run._save

    def killed(self):
        save(self)
        if self.turn == 20:
            raise Killed

    Run._save = killed
    try:
        with pytest.raises(Killed):
            train("parts")
    finally:
        Run._save = save
    parts = train("parts")

    def rows(run):
        lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in x.items() if k != "time"} for x in lines]

    assert rows(whole) == rows(parts)


@pytest.mark.parametrize("method", [("recipe=scratch",), ("switch=rlpd",), ("recipe=mbpo",)])
def test_methods_that_must_act_say_so(method, log, capsys):
    data = [] if "scratch" in method[0] or "mbpo" in method[0] else [f"dataset={log}"]
    with pytest.raises(SystemExit) as e:
        main(["train", *method, *data, "env=null"])
    assert e.value.code == 2
    assert "learns by acting, and env=null leaves it no environment" in capsys.readouterr().err
    assert not os.path.exists("runs")


def test_without_a_word_about_the_environment_it_is_asked_for(log, capsys):
    with pytest.raises(SystemExit) as e:
        main(["train", "switch=td3bc", f"dataset={log}"])
    assert e.value.code == 2
    assert "or env=null to learn from the log alone" in capsys.readouterr().err


def test_a_dataset_that_names_an_environment_may_be_learned_from_without_it(pendulum, tmp_path):
    run = mbo2o.train(
        "td3bc", str(pendulum), env=None, dir=tmp_path / "run", quiet=True, report=False, **TINY
    )
    assert "fqe" in run.metrics("eval")
    with pytest.raises(UserError, match=r"env=none(, | there, )not Pendulum-v1"):
        mbo2o.train("td3bc", str(pendulum), dir=tmp_path / "run", **TINY)


def test_model_based_methods_find_a_rule_of_termination(log, tmp_path, capsys):
    small = {
        "agent": {"actor": {"hidden": [8]}, "critic": {"hidden": [8]}},
        "offline_steps": 5,
        "rollouts": 8,
    }
    model = {
        "dynamics": {"members": 2, "elites": 1, "net": {"hidden": [8]}},
        "fit": {"min_updates": 10, "max_updates": 10},
    }
    run = mbo2o.train(
        "mopo", str(log), env=None, dir=tmp_path / "run", recipe=small | model, report=False, engine="eager"
    )
    assert "recipe.termination=auto is none here: the log has no terminal row" in capsys.readouterr().err
    assert run.dynamics() is not None
    assert np.isfinite(run.metrics("eval")["model_value"]).all()
    policy, model = mbo2o.load(tmp_path / "run"), mbo2o.load_dynamics(tmp_path / "run")
    low, high = np.asarray(model.low), np.asarray(model.high)
    actions = policy.predict(np.random.default_rng(0).normal(size=(50, 2)) * 100)[0]
    assert ((low <= actions) & (actions <= high)).all()
    assert not np.allclose(high, 1)  # the log's own units


def test_the_core_installation_trains_from_a_csv(log, tmp_path):
    """With nothing but the core's packages: Python, the command line, and what is missing in one line."""
    program = f"""
import sys
for name in {CORE_ONLY!r}.split():
    sys.modules[name] = None
import mbo2o
from mbo2o.cli.main import main
tiny = {TINY!r}
run = mbo2o.train("bc", {str(log)!r}, env=None, dir="py", quiet=True, **{{"recipe.offline_steps": 3}})
assert isinstance(run.metrics("eval"), dict), "without pandas"
args = ["train", "switch=bc", "dataset={log}", "env=null", "recipe.offline_steps=3", "dir=cli"]
for argv in (args, ["train", "-m", "recipe=mopo"], ["train", "recipe=scratch", "env=Pendulum-v1"],
             ["train", "recipe=mopo", "dataset=minari:a/b-v0", "env=null"], ["report", "py"], ["doctor"]):
    try:
        main(argv)
    except SystemExit as e:
        print("rc", e.code, argv[0], flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ROOT},
        check=False,
    )
    assert done.stdout.count("rc 0") == 2, done.stdout + done.stderr  # train and doctor
    assert done.stdout.count("rc 2") == 4
    said = done.stderr
    assert "report: not drawn, it needs matplotlib, which is not installed: pip install 'mbo2o[all]'" in said
    assert "train: -m needs Hydra: pip install 'mbo2o[all]'" in said
    assert (
        "environment 'Pendulum-v1' needs gymnasium, which is not installed: pip install 'mbo2o[all]'" in said
    )
    assert "a Minari dataset needs minari, which is not installed: pip install 'mbo2o[all]'" in said
    assert "a report needs matplotlib, which is not installed: pip install 'mbo2o[all]'" in said
    assert "Traceback" not in said
    names = [json.loads(x)["kind"] for x in (tmp_path / "cli" / "metrics.jsonl").read_text().splitlines()]
    assert names.count("eval") == 2


def test_the_notebook_on_data_of_one_s_own_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MBO2O_STEPS", "20")
    monkeypatch.setenv("PYTHONPATH", ROOT)
    path = Path(ROOT) / "notebooks" / "04_your_own_data.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") for cell in notebook.cells), "outputs are not stored"
    NotebookClient(notebook, timeout=400, kernel_name="python3").execute()
    outputs = [x for cell in notebook.cells for x in cell.get("outputs", [])]
    text = "".join(x.get("text", "") for x in outputs)
    assert "fit for" in text
    assert text.count("→  force") == 3
    assert sum("image/png" in x.get("data", {}) for x in outputs) == 1
    assert any("behaviour_value" in x.get("data", {}).get("text/html", "") for x in outputs)


def test_a_table_without_rows_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "my.csv").write_text("obs_0,act_0,reward,terminal\n")
    with pytest.raises(SystemExit) as left:
        main(["train", "switch=td3bc", f"dataset={tmp_path / 'my.csv'}", "env=null"])
    assert left.value.code == 2
    assert "'actions' has no rows" in capsys.readouterr().err


def test_a_model_is_fitted_to_a_log_whose_bounds_are_given(tmp_path, capsys):
    rows = np.random.default_rng(0).uniform(-1, 1, (80, 2))
    lines = [f"{x},{1.9 * a},0,0,{i // 20}" for i, (x, a) in enumerate(rows)]
    path = tmp_path / "my.csv"
    path.write_text("\n".join(["obs_0,act_0,reward,terminal,episode", *lines]) + "\n")
    small = ["dynamics.members=2", "dynamics.elites=1", "dynamics.net.hidden=[8]", "termination=none"]
    command = ["model", "fit", str(path), "--out", str(tmp_path / "m"), *small]
    command += ["fit.min_updates=5", "fit.max_updates=10"]
    with pytest.raises(SystemExit) as left:
        main(command)
    assert left.value.code == 2
    assert "actions=env" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        main([*command, "actions=[-2,2]"])
    assert left.value.code == 0
    dynamics = mbo2o.load_dynamics(tmp_path / "m")
    assert (float(dynamics.low[0]), float(dynamics.high[0])) == (-2, 2)


def test_a_policy_refuses_what_is_no_array_of_numbers(run):
    for observation in ("abc", [[1, 2], [1, 2, 3]]):
        with pytest.raises(UserError, match="not an array of numbers"):
            run.policy().predict(observation)
