"""Studies run from the command line at sizes that show nothing but that they run; their verdicts on made-up numbers."""

import csv
import json
import shutil

import numpy as np
import pytest

from mbo2o.cli import compose_config, main
from mbo2o.report.statistics import paired_difference, t_quantile
from mbo2o.studies import enoto, offline, wsrl
from mbo2o.studies.arms import read, run_arm
from mbo2o.studies.claims import verdicts
from mbo2o.train import train
from mbo2o.types import Diverged


def study(*args):
    with pytest.raises(SystemExit) as done:
        main(["study", *map(str, args)])
    assert done.value.code == 0


@pytest.fixture
def where(tmp_path):
    return ["--out", tmp_path / "runs", "--results", tmp_path / "results", "--quick", "--seeds", 2]


def test_enoto_compares_arms_from_the_same_checkpoints(pendulum, tmp_path, where):
    arms = ["kept", "freed", "freed-n", "wmp", "bootstrapped", "sunrise"]
    study("enoto", pendulum, *where, "--arms", *arms)
    name = f"enoto-{pendulum.stem}"
    rows = read(tmp_path / "results" / f"{name}.csv")
    assert list(rows) == arms
    start = {arm: [r["j0"] for r in found] for arm, found in rows.items()}
    assert len(start["wmp"]) == 2
    assert start["wmp"] == start["freed-n"] == start["sunrise"] == start["bootstrapped"]
    assert start["kept"] == start["freed"]
    assert all(np.isfinite(float(r["q_range"])) and float(r["q_range"]) > 0 for found in rows.values() for r in found)
    ends = {tuple(r["final"] for r in found) for found in rows.values()}
    assert len(ends) > 3  # the arms differ
    assert (tmp_path / "results" / f"{name}.png").stat().st_size > 20_000
    assert (tmp_path / "results" / f"{name}-curves.csv").exists()
    log = (tmp_path / "runs" / name / "wmp" / "metrics.jsonl").read_bytes()
    study("enoto", pendulum, *where, "--arms", *arms)  # finished: nothing runs again
    assert (tmp_path / "runs" / name / "wmp" / "metrics.jsonl").read_bytes() == log


def test_offline_trains_each_learner(pendulum, tmp_path, where):
    study("offline", pendulum, *where)
    with open(tmp_path / "results" / f"offline-{pendulum.stem}.csv") as f:
        rows = list(csv.DictReader(f))
    assert [r["arm"] for r in rows] == [name for name in offline.LEARNERS for _ in range(2)]
    assert all(float(r["final"]) < 0 for r in rows)


def test_an_unknown_arm_is_one_line(pendulum, where, capsys):
    with pytest.raises(SystemExit) as done:
        main(["study", "enoto", str(pendulum), *map(str, where), "--arms", "wpm"])
    assert done.value.code == 2
    assert "did you mean 'wmp'" in capsys.readouterr().err


def test_verdicts():
    kept = {"j0": np.full(5, 100.0), "drop": np.array([1.0, 2, 3, 2, 1]), "auc": np.array([90.0, 130, 100, 120, 80])}
    freed = {"j0": kept["j0"], "drop": np.array([0.0, 1, 2, 1, 0]), "auc": kept["auc"]}
    found = {(claim.name, claim.text): verdict for claim, *_, verdict in verdicts(enoto.CLAIMS, {"kept": kept, "freed": freed})}
    assert found == {
        ("A1", "kept: drop below a tenth of J0"): "holds",
        ("A1", "kept gains: AUC - J0"): "direction only",
        ("A2", "drop: freed > kept"): "contrary",
    }


def test_learners_take_the_nets_of_the_base():
    from mbo2o.agents.cql import CQLConfig
    from mbo2o.ensemble.mlp import MLPConfig

    base = CQLConfig(critic=MLPConfig(hidden=[7]), actor=MLPConfig(hidden=[6]), tau=0.5, weight=3.0, clone_steps=9)
    lapo = offline.sized("lapo", base)
    assert (lapo.critic.hidden, lapo.latent.hidden, lapo.tau) == ([7], [6], 0.5)
    assert offline.sized("iql", base).value_net.hidden == [7]
    assert offline.sized("calql", base).clone_steps == 9
    assert offline.sized("cql", base) is base


def test_student_intervals_know_how_few_seeds_there_are():
    assert t_quantile(0.975, 4) == pytest.approx(2.776, abs=1e-3)
    assert t_quantile(0.975, 1) == pytest.approx(12.706, rel=1e-3)
    rng = np.random.default_rng(0)
    outside = [paired_difference(rng.normal(size=3), np.zeros(3))[1] > 0 for _ in range(2000)]
    assert np.mean(outside) == pytest.approx(0.025, abs=0.01)


def test_an_arm_that_diverges_is_told_and_the_others_run(pendulum, tmp_path, where, capsys):
    out, name = tmp_path / "runs", f"enoto-{pendulum.stem}"
    study("enoto", pendulum, *where, "--arms", "kept")
    (out / name / "freed").mkdir()
    shutil.copytree(out / name / "kept", out / name / "freed", dirs_exist_ok=True)
    lines = (out / name / "kept" / "metrics.jsonl").read_text().splitlines(True)
    cut = [i for i, x in enumerate(lines) if '"online"' in x][6]
    (out / name / "freed" / "metrics.jsonl").write_text("".join(lines[:cut]))
    (out / name / "freed" / "diverged.txt").write_text("q is 1e9\n")
    (out / name / "wmp").mkdir()  # killed: neither finished nor diverged
    shutil.copy(out / name / "kept" / "config.yaml", out / name / "wmp")
    (out / name / "wmp" / "metrics.jsonl").write_text("".join(lines[:cut]))
    capsys.readouterr()
    study("enoto", pendulum, *where, "--arms", "kept", "freed")
    rows = read(tmp_path / "results" / f"{name}.csv")
    assert list(rows) == ["kept", "freed"]
    assert rows["freed"][0]["auc"] == "nan"
    assert rows["freed"][0]["j0"] == rows["kept"][0]["j0"]
    assert "wmp: has not finished" in capsys.readouterr().err


def test_a_study_goes_on_after_an_arm_diverges(pendulum, tmp_path, monkeypatch, capsys):
    def explode(cfg):
        raise Diverged("loss is nan")

    monkeypatch.setattr("mbo2o.studies.arms.train", explode)
    for _ in range(2):
        run_arm(compose_config(["experiment=qensemble-small", f"dataset={pendulum}"]), tmp_path, tmp_path / "offline")
    assert capsys.readouterr().err.count("loss is nan") == 1  # the second time nothing is run
    assert (tmp_path / "diverged.txt").exists()


def test_other_methods_stand_beside_the_arms(pendulum, tmp_path, where):
    """A run without probes or a dataset among them."""
    out, name = tmp_path / "runs", f"enoto-{pendulum.stem}"
    sizes = [f"recipe.{x}" for x in ("online_steps=60", "start=20", "batch=16")]
    sizes += ["run.eval_every=20", "run.eval_episodes=1", "report=false", f"dir={out / name / 'scratch'}"]
    train(compose_config(["recipe=scratch", "env=Pendulum-v1", "seeds=2", *sizes]))
    study("enoto", pendulum, *where, "--arms", "kept")
    assert list(read(tmp_path / "results" / f"{name}.csv")) == ["kept", "scratch"]


def test_a_study_wants_its_own_kind_of_experiment(pendulum, where, capsys):
    for what, experiment in (
        ("enoto", "hopper-small"),
        ("offline", "hopper-small"),
        ("moore", "qensemble-small"),
        ("wsrl", "hopper-small"),
    ):
        with pytest.raises(SystemExit) as done:
            main(["study", what, str(pendulum), "--experiment", experiment, *map(str, where)])
        assert done.value.code == 2
        assert "of another kind" in capsys.readouterr().err


def test_enoto_on_another_learner_as_the_help_says(pendulum, tmp_path, where):
    study("enoto", pendulum, *where, "--arms", "freed", "wmp", "--experiment", "td3bc-small", "--name", "my-td3bc")
    assert len(read(tmp_path / "results" / "enoto-my-td3bc.csv")) == 2


def test_wsrl_compares_arms_from_one_checkpoint(pendulum, tmp_path, where):
    study("wsrl", pendulum, *where)
    rows = read(tmp_path / "results" / f"wsrl-{pendulum.stem}.csv")
    assert list(rows) == list(wsrl.arms(compose_config(["experiment=wsrl-small", "dataset=x"]).recipe))
    whole = {arm: found for arm, found in rows.items() if arm not in ("policy", "critics", "none")}
    assert len({tuple(r["j0"] for r in found) for found in whole.values()}) == 1
    assert all(float(r["td_error"]) > 0 for found in rows.values() for r in found)
    measured = {arm: {k: np.array([float(r[k]) for r in found]) for k in found[0] if k != "arm"} for arm, found in rows.items()}
    assert len(verdicts(wsrl.CLAIMS, measured)) == len(wsrl.CLAIMS)
    starts = json.loads((tmp_path / "runs" / f"wsrl-{pendulum.stem}" / "none" / "switch.json").read_text())
    assert {x["part"] for x in starts if x["what"] == "kept"} == {"observe"}
