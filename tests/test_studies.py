"""Studies run from the command line at the smallest sizes; their verdicts on made-up numbers."""

import csv
import importlib
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from mbo2o.cli.main import compose_config, main, parser
from mbo2o.registry import conf_folder
from mbo2o.report.read import RunLog
from mbo2o.report.statistics import paired_difference, t_quantile, unpaired_difference
from mbo2o.sources.mix import MixConfig
from mbo2o.sources.online import OnlineConfig
from mbo2o.store import datasets
from mbo2o.store.datasets import data_folders
from mbo2o.training import read_config, train
from mbo2o.types import Diverged
from studies import enoto, methods, moore, mopo, obac, offline, protocol, wsrl
from studies.arms import BESIDE, Job, read_rows, recompute, run_job
from studies.claims import Claim, figures, verdicts
from studies.measured import RESULTS, files_of, numbers
from studies.measured import STUDIES as MEASURED
from studies.presets import changed, preset, resized


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
    rows = read_rows(tmp_path / "results" / f"{name}.csv")
    assert list(rows) == arms
    start = {arm: [r["j0"] for r in found] for arm, found in rows.items()}
    assert len(start["wmp"]) == 2
    assert start["wmp"] == start["freed-n"] == start["sunrise"] == start["bootstrapped"]
    assert start["kept"] == start["freed"]
    assert all(
        np.isfinite(float(r["q_range"])) and float(r["q_range"]) > 0 for found in rows.values() for r in found
    )
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


def test_mopo_has_a_row_for_each_variant_beside_the_returns_of_its_data(pendulum, tmp_path, where):
    study("mopo", pendulum, *where, "--arms", "mopo", "mobile", "long")
    path = tmp_path / "results" / f"mopo-{pendulum.stem}.csv"
    rows = read_rows(path)
    assert list(rows) == ["mopo", "mobile", "long"]
    returns = datasets.read(str(pendulum)).episode_returns()[0]
    for found in rows.values():
        assert [r["seed"] for r in found] == ["0", "1"]
        assert float(found[0]["data_best"]) == pytest.approx(returns.max(), abs=0.01)
        assert float(found[0]["behaviour"]) == pytest.approx(returns.mean(), abs=0.01)
    ends = [float(found[0]["final"]) for found in rows.values()]
    assert len(set(ends)) == 3
    final = np.array([float(r["final"]) for r in rows["mopo"]])
    cells = [x.strip() for x in mopo.table(path.parent).splitlines()[2].split("|")]
    assert cells[4] == "`mopo`"
    assert cells[8] == f"{final.mean() / float(rows['mopo'][0]['behaviour']):.1f}"
    assert cells[10] == f"{final.std(ddof=1) / final.mean():.0%}"


def test_an_unknown_arm_is_one_line(pendulum, where, capsys):
    with pytest.raises(SystemExit) as done:
        main(["study", "enoto", str(pendulum), *map(str, where), "--arms", "wpm"])
    assert done.value.code == 2
    assert "did you mean 'wmp'" in capsys.readouterr().err


def test_verdicts():
    kept = {
        "j0": np.full(5, 100.0),
        "drop": np.array([1.0, 2, 3, 2, 1]),
        "auc": np.array([90.0, 130, 100, 120, 80]),
    }
    freed = {"j0": kept["j0"], "drop": np.array([0.0, 1, 2, 1, 0]), "auc": kept["auc"]}
    found = verdicts(enoto.CLAIMS, {"here": {"kept": kept, "freed": freed}})
    assert {
        (f.claim.name, f.claim.text): (f.verdict, f.paired) for f in found if f.claim.name in ("A1", "A2")
    } == {
        ("A1", "kept: drop below a tenth of J0"): ("holds", True),
        ("A1", "kept gains: AUC - J0"): ("direction only", True),
        ("A2", "drop: freed > kept"): ("contrary", True),
    }


def made_up(p_wanted, n=5):
    """A number for each seed whose mean is 1 and whose two-sided p is as wanted."""
    shape = np.linspace(-1, 1, n)
    t = t_quantile(1 - p_wanted / 2, n - 1)
    return 1 + shape / shape.std(ddof=1) * n**0.5 / t


def test_a_claim_holds_if_it_does_so_for_as_many_claims_as_were_tested():
    claims = [Claim(str(i), "", lambda m, i=i: m["a"][str(i)]) for i in range(4)]
    claims.append(Claim("sure", "", lambda m: m["a"]["sure"], sanity=True))
    ps = [0.001, 0.03, 0.6, 0.8]
    found = verdicts(
        claims, {"here": {"a": {str(i): made_up(p) for i, p in enumerate(ps)} | {"sure": made_up(1e-6)}}}
    )
    assert [f.estimate.p for f in found[:4]] == pytest.approx(ps, rel=0.02)
    # the sanity check is no member of the family, whose q are 4 p / rank
    assert [f.q for f in found[:4]] == pytest.approx([0.004, 0.06, 0.8, 0.8], rel=0.02)
    assert [f.verdict for f in found[:2]] == ["holds", "holds before correction"]
    assert (found[4].verdict, np.isnan(found[4].q)) == ("sanity check passed", True)
    alone = verdicts(claims[1:2], {"here": {"a": {"1": made_up(0.03)}}})
    assert alone[0].verdict == "holds"
    below = verdicts(claims[:4], {"here": {"a": {str(i): -made_up(p) for i, p in enumerate(ps)}}})
    assert [f.verdict for f in below] == [
        "contrary",
        "contrary before correction",
        "not reproduced",
        "not reproduced",
    ]


def test_all_data_of_a_study_are_one_family():
    claim = Claim("", "", lambda m: m["a"]["x"])
    found = verdicts([claim], {str(i): {"a": {"x": made_up(p)}} for i, p in enumerate([0.02, 0.9, 0.9])})
    assert found[0].q == pytest.approx(0.06, rel=0.02)
    assert found[0].verdict == "holds before correction"


def test_three_seeds_give_a_direction_and_no_interval():
    claim = Claim("", "", lambda m: m["a"]["x"])
    for sign, verdict in ((1, "direction only"), (-1, "not reproduced")):
        (found,) = verdicts([claim], {"here": {"a": {"x": sign * np.array([1.0, 1.01, 0.99])}}})
        assert found.verdict == verdict
        assert "no interval" in figures(found)


def test_arms_from_different_checkpoints_are_not_paired():
    one, two = np.arange(5.0), np.arange(5.0)[::-1] - 1
    m = {"here": {"freed": {"drop": one}, "freed-n": {"drop": two}}}
    (found,) = verdicts([c for c in enoto.CLAIMS if c.name == "A3"], m)
    assert not found.paired
    assert found.estimate == unpaired_difference(one, two)
    unpaired = {
        (study.__name__.split(".")[-1], c.name)
        for study in (enoto, methods, moore, obac, wsrl)
        for c in study.CLAIMS
        if protocol.is_unpaired(c.value)
    }
    across = {"A3", "A4", "A5", "A6", "A7", "E1", "E2", "E1, F1"}
    assert unpaired == {("enoto", x) for x in across} | {
        ("moore", "M3"),
        ("methods", "W4"),
        ("methods", ""),
        *(("methods", x) for x in ("D1", "D3", "D4", "D5", "D6", "D7", "D8")),
        ("obac", "O2"),
    }


def test_every_numbered_claim_is_stated_and_the_others_are_said_to_be_untested():
    stated = {name for found in protocol.STATED.values() for name in found}
    assert len(stated) == 46
    named = {x for study in MEASURED.values() for c in study.CLAIMS for x in c.name.split(", ")} - {""}
    assert named <= stated
    table = protocol.stated_table({kind: study.CLAIMS for kind, study in MEASURED.items()})
    assert table.count("not measured") == len(stated - named) > 0


def test_coverage_is_what_the_protocol_s_table_says():
    with open(RESULTS / protocol.COVERAGE) as f:
        stored = {(r["spread"], r["seeds"]): r for r in csv.DictReader(f)}
    for row in protocol.simulate_coverage(2000, seed=7):
        told = stored[row["spread"], str(row["seeds"])]
        for kind in ("student", "bootstrap"):
            assert row[kind] == pytest.approx(float(told[kind]), abs=0.035), (row, kind)


def test_recomputing_from_curves_gives_what_is_published():
    """The CSV files say of their curves what the present definitions make of them."""
    files = [p for kind in (*MEASURED, "offline") for p in files_of(kind)]
    assert len(files) > 15
    for path in files:
        copy = {p: p.read_bytes() for p in (path, path.with_name(f"{path.stem}-curves.csv"))}
        with tempfile.TemporaryDirectory() as folder:
            for p, data in copy.items():
                (Path(folder) / p.name).write_bytes(data)
            recompute(Path(folder) / path.name)
            assert (Path(folder) / path.name).read_bytes() == copy[path], path.name


def test_learners_take_the_nets_of_the_base():
    from mbo2o.agents.cql import CQLConfig
    from mbo2o.ensemble.mlp import MLPConfig

    base = CQLConfig(
        critic=MLPConfig(hidden=[7]), actor=MLPConfig(hidden=[6]), tau=0.5, weight=3.0, clone_steps=9
    )
    lapo, iql, calql = (resized(preset(f"switch={x}").recipe.offline, base) for x in ("lapo", "iql", "calql"))
    assert (lapo.critic.hidden, lapo.latent.hidden, lapo.tau) == ([7], [6], 0.5)
    assert iql.value_net.hidden == [7]
    assert (calql.clone_steps, calql.gap) == (9, 0.8)  # what is no size stays the preset's
    learners = offline.arms(compose_config(["experiment=qensemble-small", "dataset=x"]))
    assert learners["cql"].recipe.offline.weight == 5.0


def test_a_setting_that_does_not_exist_is_refused():
    base = compose_config(["experiment=qensemble-small", "dataset=x"])
    assert changed(base, {"recipe.offline.tau": 0.5}).recipe.offline.tau == 0.5
    with pytest.raises(TypeError, match="taau"):
        changed(base, {"recipe.offline.taau": 0.5})


def test_student_intervals_know_how_few_seeds_there_are():
    assert t_quantile(0.975, 4) == pytest.approx(2.776, abs=1e-3)
    assert t_quantile(0.975, 1) == pytest.approx(12.706, rel=1e-3)
    rng = np.random.default_rng(0)
    outside = [paired_difference(rng.normal(size=5), np.zeros(5)).low > 0 for _ in range(2000)]
    assert np.mean(outside) == pytest.approx(0.025, abs=0.01)


def test_an_arm_that_diverges_is_told_and_the_others_run(pendulum, tmp_path, where, capsys):
    out, name = tmp_path / "runs", f"enoto-{pendulum.stem}"
    study("enoto", pendulum, *where, "--arms", "kept", "freed")
    lines = (out / name / "freed" / "metrics.jsonl").read_text().splitlines(True)
    cut = [i for i, x in enumerate(lines) if '"online"' in x][6]
    (out / name / "freed" / "metrics.jsonl").write_text("".join(lines[:cut]))
    (out / name / "freed" / "diverged.txt").write_text("q is 1e9\n")
    (out / name / "wmp").mkdir()  # killed: neither finished nor diverged
    shutil.copy(out / name / "kept" / "config.yaml", out / name / "wmp")
    (out / name / "wmp" / "metrics.jsonl").write_text("".join(lines[:cut]))
    capsys.readouterr()
    study("enoto", pendulum, *where, "--arms", "kept", "freed")
    rows = read_rows(tmp_path / "results" / f"{name}.csv")
    assert list(rows) == ["kept", "freed"]
    assert rows["freed"][0]["auc"] == "nan"
    assert rows["freed"][0]["j0"] == rows["kept"][0]["j0"]
    assert "wmp: has not finished" in capsys.readouterr().err


def test_a_study_goes_on_after_an_arm_diverges(pendulum, tmp_path, monkeypatch, capsys):
    def explode(cfg):
        raise Diverged("loss is nan")

    monkeypatch.setattr("studies.arms.train", explode)
    for _ in range(2):
        config = compose_config(["experiment=qensemble-small", f"dataset={pendulum}"])
        run_job(Job("arm", config), tmp_path)
    assert capsys.readouterr().err.count("loss is nan") == 1  # the second time nothing is run
    assert (tmp_path / "arm" / "diverged.txt").exists()
    run_job(Job("next", config, "arm"), tmp_path)
    assert "arm diverged" in capsys.readouterr().err
    assert not (tmp_path / "next").exists()


def test_other_methods_stand_beside_the_arms(pendulum, tmp_path, where):
    """A run without probes or a dataset among them."""
    out, name = tmp_path / "runs", f"enoto-{pendulum.stem}"
    sizes = [f"recipe.{x}" for x in ("online_steps=60", "random_steps=20", "batch=16")]
    sizes += ["run.eval_every=20", "run.eval_episodes=1", "report=false", f"dir={out / name / 'scratch'}"]
    train(compose_config(["recipe=scratch", "env=Pendulum-v1", "seeds=2", *sizes]))
    study("enoto", pendulum, *where, "--arms", "kept")
    assert list(read_rows(tmp_path / "results" / f"{name}.csv")) == ["kept", "scratch"]


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
    study(
        "enoto",
        pendulum,
        *where,
        "--arms",
        "freed",
        "wmp",
        "--experiment",
        "td3bc-small",
        "--name",
        "my-td3bc",
    )
    assert len(read_rows(tmp_path / "results" / "enoto-my-td3bc.csv")) == 2


def test_moore_compares_samplings_paces_and_penalties_from_one_checkpoint(pendulum, tmp_path, where):
    arms = list(moore.arms(compose_config(["experiment=hopper-small", "dataset=x"])))
    study("moore", pendulum, *where, "--arms", *arms)
    name = f"moore-{pendulum.stem}"
    rows = read_rows(tmp_path / "results" / f"{name}.csv")
    assert list(rows) == arms
    scratch = rows.pop("mbpo")
    assert {r["behaviour"] for r in scratch} == {""}  # it saw no data
    assert len({tuple(r["j0"] for r in found) for found in rows.values()}) == 1
    shares = {arm: float(found[0]["share_last"]) for arm, found in rows.items()}
    assert shares["online"] == 0
    assert shares["half"] == 0.5
    assert shares["alpha-0.5"] < shares["priority"] < shares["alpha-0.9"] < shares["uniform"] < 1
    config, _ = read_config(tmp_path / "runs" / name / "double-penalty")
    assert config.recipe.online_coef == 2 * config.recipe.coef
    config, env = read_config(tmp_path / "runs" / name / "mbpo")
    assert (env, config.dataset, config.recipe.coef, config.recipe.utd) == ("Pendulum-v1", None, 0.0, 1)
    assert (tmp_path / "results" / f"{name}.png").stat().st_size > 20_000
    assert len(verdicts(moore.CLAIMS, {name: numbers(tmp_path / "results" / f"{name}.csv")})) == len(
        moore.CLAIMS
    )
    assert {r["random"] for r in scratch} != {"0"}
    assert {r["frozen"] for r in scratch} == {"0"}


def test_moore_spreads_count_each_seed_for_itself():
    auc = {"priority": [0, 5], "uniform": [9, 5], "online": [3, 4], "alpha-0.5": [1, 9], "alpha-0.9": [2, 0]}
    claim = next(c for c in moore.CLAIMS if c.name == "M6")
    assert list(claim.value({arm: {"auc": np.array(x, float)} for arm, x in auc.items()})) == [9 - 2, 1 - 9]


def test_wsrl_compares_arms_from_one_checkpoint(pendulum, tmp_path, where):
    study("wsrl", pendulum, *where)
    rows = read_rows(tmp_path / "results" / f"wsrl-{pendulum.stem}.csv")
    assert list(rows) == list(wsrl.DEFAULT)
    whole = {arm: found for arm, found in rows.items() if arm not in ("policy", "critics", "none")}
    assert len({tuple(r["j0"] for r in found) for found in whole.values()}) == 1
    assert all(float(r["td_error"]) > 0 for found in rows.values() for r in found)
    measured = numbers(tmp_path / "results" / f"wsrl-{pendulum.stem}.csv")
    assert len(verdicts(wsrl.CLAIMS, {"": measured})) == len(wsrl.CLAIMS)
    assert {arm: found[0]["frozen"] for arm, found in rows.items() if found[0]["frozen"] == "0"} == {
        "cold": "0",
        "seeded": "0",
    }
    assert len({(r["drop_updates"], r["drop_evals"]) for found in rows.values() for r in found}) == 1
    assert (tmp_path / "results" / f"wsrl-{pendulum.stem}-critics.png").stat().st_size > 20_000
    starts = json.loads((tmp_path / "runs" / f"wsrl-{pendulum.stem}" / "none" / "switch.json").read_text())
    assert {x["part"] for x in starts["parts"] if x["what"] == "kept"} == {"observe"}


def test_wsrl_retains_shares_of_the_data_for_iql_and_cal_ql(pendulum, tmp_path, where):
    arms = ["iql-keep-0", "iql-keep-25", "calql-keep-50"]
    study("wsrl", pendulum, *where, "--arms", *arms)
    rows = read_rows(tmp_path / "results" / f"wsrl-{pendulum.stem}.csv")
    assert list(rows) == arms
    start = {arm: [r["j0"] for r in found] for arm, found in rows.items()}
    assert start["iql-keep-0"] == start["iql-keep-25"] != start["calql-keep-50"]
    assert all(float(r["td_error"]) > 0 for found in rows.values() for r in found)
    runs = tmp_path / "runs" / f"wsrl-{pendulum.stem}"
    found = {arm: read_config(runs / arm)[0].recipe for arm in arms}
    sources = [x.source for x in found.values()]
    assert sources == [OnlineConfig(), MixConfig(offline_share=0.25), MixConfig(offline_share=0.5)]
    known = wsrl.arms(compose_config(["experiment=wsrl-small", "dataset=x"]))
    assert {x for x in known if "-keep-" in x} == {
        f"{a}-keep-{n}" for a in ("iql", "calql") for n in (0, 5, 10, 25, 50)
    }


def test_obac_compares_agents_from_nothing(tmp_path, where):
    arms = ["sac", "iql", "redq", "obac", "obac-0.1", "fixed-0.1", "sac-sparse", "obac-sparse"]
    study("obac", "Pendulum-v1", *where, "--arms", *arms)
    rows = read_rows(tmp_path / "results" / "obac-Pendulum-v1.csv")
    assert set(rows) == {*arms, obac.WATCHER}
    assert all(0 <= float(r["wins"]) <= 1 for r in rows[obac.WATCHER])
    assert all(0 <= float(r["ahead"]) <= 1 for r in rows["obac"])
    log = (tmp_path / "runs" / "obac-Pendulum-v1" / "sac" / "metrics.jsonl").read_text()
    watching = [
        x["return"]
        for x in map(json.loads, log.splitlines())
        if x["kind"] == "eval-watcher" and x["phase"] == "online"
    ]
    # the curves, which the rows are computed from, hold returns to two places
    assert [float(r["j0"]) for r in rows[obac.WATCHER]] == pytest.approx(watching[0], abs=0.0051)
    config = read_config(tmp_path / "runs" / "obac-Pendulum-v1" / "obac-sparse")[0]
    assert config.run.disturb.reward_every == 50
    assert config.recipe.agent.constraint_weight == 0.1
    found = verdicts(obac.CLAIMS, {"": numbers(tmp_path / "results" / "obac-Pendulum-v1.csv")})
    assert {f.claim.name for f in found} == {"O1", "O2", "O3", "O4", "O5", "O6"}


def test_obac_says_what_its_arms_are():
    base = compose_config(["experiment=obac-small", "env=Hopper-v5"])
    arms = {name: x.recipe for name, x in obac.arms(base).items()}
    assert arms["obac"] == base.recipe
    assert (arms["fixed"].agent.constraint, arms["batch-gate"].agent.gate) == ("fixed", "batch")
    assert (
        arms["sac"].agent.critic
        == arms["iql"].agent.critic
        == arms["sac"].watcher.value_net
        == base.recipe.agent.critic
    )
    assert arms["iql"].agent == arms["sac"].watcher
    assert [name for name, x in arms.items() if x.watcher] == ["sac"]
    assert arms["redq"].utd * arms["redq"].online_steps == base.recipe.online_steps


def test_wins_count_what_is_ahead_by_more_than_the_noise():
    def log(means, stds):
        lines = [{"kind": "eval", "phase": "online", "step": t, "total": t, "return": [m], "return_std": [s]}
                 for t, (m, s) in enumerate(zip(means, stds, strict=True))]  # fmt: skip
        return RunLog({"run": {"eval_episodes": 4}}, lines)

    # pooled standard error: sqrt((3² + 4²) / 4) = 2.5
    assert obac._wins(log([0, 0, 0, 0], [3] * 4), log([2.4, 2.6, -9, 9], [4] * 4)).tolist() == [0.5]


def test_methods_stand_side_by_side(pendulum, tmp_path, where):
    study("methods", pendulum, *where)
    rows = read_rows(tmp_path / "results" / f"methods-{pendulum.stem}.csv")
    assert list(rows) == list(methods.arms(compose_config(["experiment=wsrl-small", "dataset=x"])))
    starts = {arm: [r["j0"] for r in found] for arm, found in rows.items()}
    assert (
        starts["cql"]
        == starts["cql-sac"]
        == starts["enoto"]
        == starts["wsrl"]
        == starts["balanced"]
        != starts["iql"]
    )
    shown = {m.name: methods.measured(m, tmp_path / "results") for m in methods.METHODS}
    final = np.mean([float(r["final"]) for r in rows["wsrl"]])
    assert shown["WSRL"].startswith(f"{pendulum.stem} ")
    assert f"→ {final:.0f} – (150 steps" in shown["WSRL"]
    assert shown["OBAC"] == ""


@pytest.mark.parametrize("method", methods.METHODS, ids=lambda m: m.name)
def test_each_method_is_run_as_it_says(method):
    subject = "env=Hopper-v5" if method.needs == methods.TASK else "dataset=hopper-medium-replay-v5"
    assert compose_config([*method.command.split(), subject]).recipe


def test_each_published_switch_is_a_method():
    named = {m.command.removeprefix("switch=") for m in methods.METHODS}
    others = {p.stem for p in (conf_folder() / "switch").glob("*.yaml")} - named
    assert all(
        name.rpartition("-")[0] in others | named or name.split("-")[0] in named for name in others
    )  # for other tasks


def test_the_paper_s_command_and_the_study_that_measured_are_two_things():
    """Each figure's command exists, is composed as its study would, and is none of the small experiments."""
    results = data_folders()[0] / "results"
    for method in methods.METHODS:
        assert "-small" not in method.command
        assert methods.declared(method.command).partition(": ")[0] in ("official", "adapted"), method.name
        figures, by = methods.measured(method, results), methods.measured_by(method, results)
        assert figures.count("; ") == by.count("; "), method.name
        assert bool(figures) == bool(by), method.name


MEASURED_FILES = [
    p.stem
    for p in sorted((data_folders()[0] / "results").glob("*-*.csv"))
    if p.stem.split("-")[0] in (*MEASURED, "offline") and not p.stem.endswith(BESIDE)
]


@pytest.mark.parametrize("stem", MEASURED_FILES)
def test_each_measured_file_has_a_command_that_can_be_given(stem):
    options = parser().parse_args(["study", *methods.MEASURED_BY[stem].split()])
    assert f"{options.what}-{options.name or Path(options.on).stem}" == stem
    study = importlib.import_module(f"studies.{options.what}")
    subject = f"{study.SUBJECT}={options.on}"
    base = compose_config(
        [f"experiment={options.experiment or study.EXPERIMENT}", subject, *options.overrides]
    )
    assert set(options.arms or ()) <= set(study.arms(base))


def test_methods_with_and_without_a_model_and_data_stand_in_one_table(pendulum, tmp_path, where):
    """From one dataset, over as many environment steps; MOPO takes none, and its return stays what it was."""
    arms = ["cql-sac", "sac", "scratch", "mopo", "moore", "mbpo"]
    study("methods", pendulum, *where, "--arms", *arms)
    rows = read_rows(tmp_path / "results" / f"methods-{pendulum.stem}.csv")
    assert set(rows) == set(arms)
    assert all(r["final"] == r["j0"] == r["auc"] for r in rows["mopo"])
    assert [r["j0"] for r in rows["mopo"]] == [r["j0"] for r in rows["moore"]]
    runs = tmp_path / "runs" / f"methods-{pendulum.stem}"
    configs = {arm: read_config(runs / arm)[0] for arm in arms}
    steps = {arm: getattr(x.recipe, "online_steps", 0) for arm, x in configs.items()}
    begun = {
        arm: configs[arm].recipe.random_steps for arm in ("sac", "scratch", "mbpo")
    }  # acting at random counts
    assert {steps[arm] + begun.get(arm, 0) for arm in arms if arm != "mopo"} == {150}
    assert {configs[arm].dataset for arm in begun} == {None}
    scratch = configs["scratch"].recipe.agent
    assert (scratch.target, scratch.explore.name, scratch.sunrise.weight) == (
        "weighted_min_pair",
        "ucb",
        "per_sample",
    )
    assert scratch.critics == configs["cql-sac"].recipe.offline.critics == 5


def test_what_imitates_by_advantage_sees_scaled_rewards_and_standardised_observations():
    """Else their rows are artefacts of settings: AWAC's return doubles with the scale of its observations."""
    arms = methods.arms(compose_config(["experiment=wsrl-small", "dataset=x"]))
    for name in ("iql", "pex", "awac", "adaptive-bc"):
        assert arms[name].run.reward_scale == "auto", name
        assert arms[name].recipe.offline.normalize, name
    others = {name for name, arm in arms.items() if arm.run.reward_scale != "auto"}
    assert others == set(arms) - {"iql", "pex", "awac", "adaptive-bc"}
    sparse = methods.arms(compose_config(["experiment=wsrl-small", "dataset=x", "run.reward_shift=-1"]))
    assert {(arm.run.reward_scale, arm.run.reward_shift) for arm in sparse.values()} == {(1, -1)}
