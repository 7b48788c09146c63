"""Studies run from the command line at sizes that show nothing but that they run; their verdicts on made-up numbers."""

import csv

import numpy as np
import pytest

from mbo2o.cli import main
from mbo2o.studies import enoto, offline
from mbo2o.studies.arms import read


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
    found = {(claim.name, claim.text): verdict for claim, *_, verdict in enoto.verdicts({"kept": kept, "freed": freed})}
    assert found == {
        ("A1", "kept: drop below a tenth of J0"): "holds",
        ("A1", "kept gains: AUC - J0"): "direction only",
        ("A2", "drop: freed > kept"): "contrary",
    }


def test_learners_take_the_nets_of_the_base():
    from mbo2o.agents.cql import CQLConfig
    from mbo2o.ensemble.mlp import MLPConfig

    base = CQLConfig(critic=MLPConfig(hidden=[7]), tau=0.5)
    lapo = offline.sized("lapo", base, {"tau": 0.5, "samples": 3})
    assert lapo.critic.hidden == lapo.latent.hidden == [7]
    assert lapo.tau == 0.5
