"""Runs side by side: what the switch cost, arms and their seeds, tables, the page, and the list of runs."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fakeruns import STEPS, fake_run, four_runs

from mbo2o.cli.main import main
from mbo2o.loggers import Loggers
from mbo2o.report.arms import by_task, differences, measured, pooled, shared_steps
from mbo2o.report.comparison import write_comparison
from mbo2o.report.html import in_the_dark, table
from mbo2o.report.numbers import cell, render
from mbo2o.report.page import write_report
from mbo2o.report.read import read_run
from mbo2o.report.runs import find_runs, look_at, noting_end
from mbo2o.report.statistics import (
    interquartile_mean,
    optimality_gap,
    probability_of_improvement,
    stratified_bootstrap,
)
from mbo2o.report.switch import DEFINITIONS, switch_numbers, write_switch
from mbo2o.types import UserError


def command(*args, capsys):
    with pytest.raises(SystemExit) as e:
        main([str(x) for x in args])
    found = capsys.readouterr()
    return e.value.code, found.out, found.err


# ------------------------------------------------------------------------------------------- statistics


def test_rliable_s_measures_by_hand():
    """The values follow from rliable's definitions on paper; its package need not be installed."""
    x = np.array([[0.1, 0.9], [0.3, 1.4], [0.5, 0.2], [0.8, 1.0]])
    # sorted: .1 .2 .3 .5 .8 .9 1.0 1.4; without two at each end: .3 .5 .8 .9
    assert interquartile_mean(x) == pytest.approx(2.5 / 4, abs=1e-12)
    assert interquartile_mean([1, 2, 3, 4, 5]) == 3  # ⌊5 / 4⌋ = 1 at each end
    assert interquartile_mean([7]) == 7
    # 1 - mean of .1 .9 .3 1 .5 .2 .8 1
    assert optimality_gap(x) == pytest.approx(1 - 4.8 / 8, abs=1e-12)
    assert optimality_gap(x, target=2.0) == pytest.approx(2 - 5.2 / 8, abs=1e-12)
    a, b = [1.0, 2.0, 3.0], [2.0, 0.0]
    # pairs: 1>2 no, 1>0; 2=2 half, 2>0; 3>2, 3>0
    assert probability_of_improvement(a, b) == pytest.approx(4.5 / 6)
    two = np.stack([a, [0.0, 0.0, 0.0]], 1), np.stack([b, [1.0, 1.0]], 1)
    assert probability_of_improvement(*two) == pytest.approx(4.5 / 12), "the mean over tasks"


def test_rliable_s_measures_by_brute_force_and_in_any_order():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 9, (7, 3)).astype(float), rng.integers(0, 9, (5, 3)).astype(float)
        assert interquartile_mean(a) == pytest.approx(stats.trim_mean(a, 0.25, axis=None), abs=1e-9)
        u = [stats.mannwhitneyu(a[:, k], b[:, k], alternative="greater")[0] / 35 for k in range(3)]
        assert probability_of_improvement(a, b) == pytest.approx(np.mean(u), abs=1e-9)
        pairs = [float(x > y) + 0.5 * float(x == y) for k in range(3) for x in a[:, k] for y in b[:, k]]
        assert probability_of_improvement(a, b) == pytest.approx(np.mean(pairs), abs=1e-9)
        mixed = rng.permutation(a)
        assert probability_of_improvement(mixed, b) == pytest.approx(probability_of_improvement(a, b))
        assert interquartile_mean(mixed) == interquartile_mean(a)
        assert optimality_gap(mixed / 9) == pytest.approx(optimality_gap(a / 9))
        assert probability_of_improvement(a, b) + probability_of_improvement(b, a) == pytest.approx(1)


def test_a_missing_value_makes_a_measure_missing():
    assert np.isnan(interquartile_mean([1, np.nan]))
    assert np.isnan(probability_of_improvement([1, np.nan], [1.0]))
    with pytest.raises(ValueError, match="same tasks"):
        probability_of_improvement(np.zeros((2, 2)), np.zeros((2, 3)))


def test_a_stratified_bootstrap_draws_each_task_s_seeds_by_themselves():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(9, 2)) + np.array([0, 100])
    low, high = stratified_bootstrap(lambda y: float(y.mean()), x, n=4000)
    assert low < x.mean() < high
    error = float(np.sqrt((x.var(0) / 9).sum())) / 2  # tasks are drawn apart: 100 does not add to it
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert np.isnan(stratified_bootstrap(interquartile_mean, x[:4])).all(), "four seeds are too few"


# ------------------------------------------------------------------------------------------- the switch


def test_the_numbers_of_a_switch_by_hand(tmp_path):
    """One seed falls and comes back, one never falls, one never comes back."""
    falls = [10, 4, 6, 8, 10, 12, 12, 12, 12, 12, 12]
    never = [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]
    lost = [9, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3]
    run = fake_run(tmp_path / "r", np.stack([falls, never, lost], 1), before=[10, 10, 10])
    found = switch_numbers(read_run(run))
    assert found.before.tolist() == [10, 10, 10]
    assert found.at.tolist() == [10, 10, 9]
    assert found.dip.tolist() == [6, 0, 7], "the window: evaluations 100 and 200, and the one at the switch"
    assert found.recovery[:2].tolist() == [400, 0]
    assert np.isnan(found.recovery[2])
    assert found.area[1] == pytest.approx(15)
    assert found.regret[0] == pytest.approx((6 + 4 + 2) * 100 / 1000)
    assert found.regret[1] == 0
    assert found.regret[2] == pytest.approx((1 / 2 + 9 * 7 + 7 / 2) * 100 / 1000)
    assert found.final[2] == 3
    assert found.best.tolist() == [12, 20, 9]


def test_a_shortfall_is_the_optimality_gap_of_the_curve(tmp_path):
    run = fake_run(tmp_path / "r", np.full((11, 2), [300.0, 2000.0]), before=[1, 1], score=True)
    assert switch_numbers(read_run(run)).shortfall.tolist() == pytest.approx([0.7, 0])


def test_switch_json_explains_itself_and_keeps_the_parts(tmp_path):
    run = fake_run(tmp_path / "r", np.full((11, 5), 7.0), before=[7] * 5, seed=3)
    parts = [{"what": "kept", "part": "actor", "note": ""}]
    (run / "switch.json").write_text(json.dumps(parts))  # as older versions wrote it
    for _ in range(2):
        assert write_switch(run) == run / "switch.json"
        found = json.loads((run / "switch.json").read_text())
        assert found["parts"] == parts
    assert found["seeds"] == [3, 4, 5, 6, 7]
    assert found["policy_changed"] is False
    assert found["measures"]["dip"] == {
        "meaning": DEFINITIONS["dip"], "mean": 0, "low": 0, "high": 0, "seeds": [0] * 5
    }  # fmt: skip
    assert set(found["measures"]) == set(DEFINITIONS) - {"shortfall"}
    assert "actor" in write_report(run).read_text()


def test_too_few_seeds_have_no_interval_and_a_seed_that_stays_down_is_null(tmp_path):
    online = np.full((11, 2), 5.0)
    online[1:, 1] = 1
    write_switch(fake_run(tmp_path / "r", online, before=[5, 5]))
    found = json.loads((tmp_path / "r" / "switch.json").read_text())["measures"]
    assert found["recovery"]["seeds"] == [0, None]
    assert found["recovery"]["mean"] is None
    assert found["dip"]["low"] is None
    assert found["dip"]["mean"] == 2


def test_a_run_without_an_offline_phase_has_no_switch(tmp_path):
    run = fake_run(tmp_path / "r", np.zeros((11, 2)), recipe="rlpd")
    assert write_switch(run) is None
    assert not (run / "switch.json").exists()


def test_a_policy_that_the_switch_itself_changes_is_flagged(tmp_path):
    run = fake_run(tmp_path / "r", np.full((11, 2), [3.0, 7.0]), before=[7, 7])
    page = write_report(run).read_text()
    assert json.loads((run / "switch.json").read_text())["policy_changed"] is True
    assert "The switch itself changed the policy" in page
    same = fake_run(tmp_path / "same", np.full((11, 2), 7.0), before=[7, 7])
    assert "The switch itself" not in write_report(same).read_text()


# ------------------------------------------------------------------------------------------------- arms


def looked(*paths):
    return [look_at(path) for path in find_runs(paths)]


def test_runs_that_differ_in_their_seeds_alone_are_one_arm(tmp_path):
    online = np.arange(11.0)[:, None] * [1, 2, 3]
    fake_run(tmp_path / "a", online, [0, 0, 0], seed=0, dir="x")
    fake_run(tmp_path / "b", online + 1, [1, 1, 1], seed=3, dir="y")
    fake_run(tmp_path / "c", online, [0, 0, 0], seed=0, dir="again")
    fake_run(tmp_path / "d", online, [0, 0, 0], seed=0, utd=4)
    ((task, arms),) = by_task(looked(tmp_path)).items()
    assert task == "Pendulum-v1"
    assert [arm.seeds for arm in arms] == [[0, 1, 2, 3, 4, 5], [0, 1, 2], [0, 1, 2]]
    assert arms[0].log.series("eval", "return", "online").values[2].tolist() == [2, 4, 6, 3, 5, 7]
    assert differences(arms) == [["recipe.utd", "1", "1", "4"]]
    assert len({arm.name for arm in arms}) == 3


def test_names_say_what_differs(tmp_path):
    online = np.zeros((11, 2))
    fake_run(tmp_path / "a", online, [0, 0], provenance="switch=cql-sac: official: a paper")
    fake_run(tmp_path / "b", online, [0, 0], utd=4)
    fake_run(tmp_path / "c", online, [0, 0], utd=1)
    names = {arm.runs[0].path.name: arm.name for arm in by_task(looked(tmp_path))["Pendulum-v1"]}
    assert names == {"a": "cql-sac", "b": "wsrl utd=4", "c": "wsrl utd=1"}


def test_the_same_data_under_another_path_is_the_same_arm(tmp_path):
    online, sums = np.zeros((11, 2)), {"dataset_sha256": "1f"}
    fake_run(tmp_path / "a", online, [0, 0], dataset="/x/my.hdf5", **sums)
    fake_run(tmp_path / "b", online, [0, 0], seed=2, dataset="/y/copy.hdf5", **sums)
    fake_run(tmp_path / "c", online, [0, 0], dataset="/x/other.hdf5", dataset_sha256="2e")
    arms = by_task(looked(tmp_path))["Pendulum-v1"]
    assert [arm.seeds for arm in arms] == [[0, 1, 2, 3], [0, 1]]
    assert differences(arms) == [["dataset", "my", "other"]]


def test_seeds_are_aligned_by_steps(tmp_path):
    short = fake_run(tmp_path / "a", np.arange(6.0)[:, None], [0], steps=STEPS[:6])
    long = fake_run(tmp_path / "b", np.arange(100, 111.0)[:, None], [0], seed=1)
    both = pooled([read_run(short), read_run(long)]).series("eval", "return", "online")
    assert both.step.tolist() == STEPS[:6].tolist()
    assert both.values.tolist() == [[t, 100 + t] for t in range(6)]


def test_numbers_count_the_steps_that_all_arms_have_made(tmp_path):
    online = np.arange(11.0)[:, None].repeat(5, 1)
    fake_run(tmp_path / "a", online, [0] * 5)
    fake_run(tmp_path / "b", online[:6], [0] * 5, steps=STEPS[:6], recipe="moore")
    arms = by_task(looked(tmp_path))["Pendulum-v1"]
    assert shared_steps(arms) == 500
    found = measured(arms)
    assert found["wsrl"]["area"].tolist() == found["moore"]["area"].tolist() == [2.5] * 5
    page = write_comparison([tmp_path]).read_text()
    assert "count the first 500 environment steps" in page


def test_tasks_share_no_picture(tmp_path):
    for i, env in enumerate(("Hopper-v5", "Ant-v5")):
        fake_run(tmp_path / str(i), np.zeros((11, 2)), [0, 0], env=env)
    page = write_comparison([tmp_path], tmp_path / "out").read_text()
    assert "of different tasks" in page
    assert page.count('class="task"') == 2
    assert {"0-online.png", "1-online.png", "0-online.svg"} <= {x.name for x in (tmp_path / "out").iterdir()}


# ------------------------------------------------------------------------------------- pages and tables


def test_a_comparison_has_curves_numbers_and_differences(tmp_path):
    four_runs(tmp_path)
    page = write_comparison([tmp_path])
    html = page.read_text()
    assert page == tmp_path / "comparison" / "index.html"
    for heading in ("Return online", "Return offline", "Numbers", "Final return", "Aggregates", "Runs"):
        assert f"<h2>{heading}</h2>" in html
    assert "What differs in the settings" in html
    assert not re.search(r"(src|href)=[\"'](?!#)", html), "the page needs nothing from elsewhere"
    assert all((page.parent / f"{x}.{s}").is_file() for x in ("online", "final") for s in ("png", "svg"))
    assert "Student&#x27;s 95 % interval" in html or "Student's 95 % interval" in html


def test_a_missing_run_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        find_runs([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="holds none"):
        find_runs([tmp_path])


def test_many_arms_get_several_pictures(tmp_path):
    for i in range(9):
        fake_run(tmp_path / str(i), np.zeros((11, 1)), [0], utd=i + 1)
    out = write_comparison([tmp_path]).parent
    assert {x.name for x in out.glob("online*.png")} == {"online.png", "online-2.png"}


def test_colours_stand_out_in_the_dark():
    def lum(c):
        parts = [int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        return sum(w * (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4)
                   for w, x in zip((0.2126, 0.7152, 0.0722), parts, strict=True))  # fmt: skip

    from mbo2o.report.compare import PALETTE

    for colour in {x.lower() for x in PALETTE} | {"#222222", "#000000"}:
        assert (lum(in_the_dark(colour)) + 0.05) / (lum("#16181b") + 0.05) > 4, colour
    assert in_the_dark("#ffffff") == "#16181b"
    assert lum(in_the_dark("#f3f5f7")) < 0.05, "a light area becomes a dark one"


def test_a_table_escapes_and_puts_intervals_on_a_line_of_their_own():
    html = table(["a"], [["<b>"], ["1.5 [1, 2]"]])
    assert "&lt;b&gt;" in html
    assert "1.5<br><small>[1, 2]</small>" in html


def test_no_interval_is_printed_for_few_seeds():
    assert cell(np.array([1.0])) == "1"
    assert cell(np.arange(4.0)) == "1.5"
    assert cell(np.arange(5.0)).startswith("2 [")


@pytest.mark.parametrize("form", ["text", "md", "csv", "latex", "json"])
def test_a_table_in_each_format(form, tmp_path, capsys):
    four_runs(tmp_path)
    code, out, _ = command("table", tmp_path, "--format", form, capsys=capsys)
    assert code == 0
    if form == "json":
        found = {x["arm"]: x for x in json.loads(out)}
        assert set(found) == {"wsrl", "moore", "calql", "rlpd"}
        assert len(found["wsrl"]["measures"]["dip"]["seeds"]) == 5
        assert "dip" not in found["rlpd"]["measures"]
    elif form == "csv":
        rows = list(csv.DictReader(io.StringIO(out)))
        assert [x["arm"] for x in rows] == ["wsrl", "moore", "calql", "rlpd"]
        assert rows[3]["dip"] == "–"
    else:
        assert all(x in out for x in ("steps to recover", "wsrl", "calql"))
        assert out.startswith({"md": "| arm", "latex": r"\begin{tabular}", "text": "arm"}[form])


def test_latex_is_escaped():
    assert r"a\_b \& 5\% & --" in render(["x", "y"], [["a_b & 5%", "–"]], "latex")


# ------------------------------------------------------------------------------------- the list of runs


def test_the_list_says_how_each_run_ended(tmp_path, capsys):
    online = np.zeros((11, 2))
    for name in ("done", "old", "cut", "bad", "killed"):
        part = {"steps": STEPS[:4]} if name in ("cut", "bad", "killed") else {}
        run = fake_run(tmp_path / name, online[: len(part.get("steps", STEPS))], [0, 0], seed=4, **part)
        text = (run / "config.yaml").read_text().replace("online_steps: 300", "online_steps: 1000")
        (run / "config.yaml").write_text(text)
    with noting_end(tmp_path / "done"):
        pass
    for name, error in (("cut", KeyboardInterrupt()), ("bad", UserError("the environment\nbroke"))):
        with pytest.raises(type(error)), noting_end(tmp_path / name):
            raise error
    code, out, _ = command("runs", tmp_path, "--format", "csv", capsys=capsys)
    rows = {x["run"]: x for x in csv.DictReader(io.StringIO(out))}
    assert code == 0
    assert {name: row["state"] for name, row in rows.items()} == {
        "done": "complete", "old": "complete", "cut": "stopped", "killed": "stopped",
        "bad": "failed: the environment broke",
    }  # fmt: skip
    assert rows["cut"]["place"] == "online 300 of 1,000"
    assert rows["cut"]["seeds"] == "4–5"
    assert rows["done"]["method"] == "wsrl"
    assert rows["done"]["last return"] == "0.0"


def test_a_run_that_a_process_holds_is_running(tmp_path):
    run = fake_run(tmp_path / "r", np.zeros((11, 2)), [0, 0])
    text = "import sys, pathlib, mbo2o.store.whole as w\nwith w.hold(pathlib.Path(sys.argv[1])):\n"
    text += " print('.', flush=True)\n input()"
    process = subprocess.Popen(
        [sys.executable, "-c", text, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b".\n"
        assert look_at(run).state == "running"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert look_at(run).state == "complete", "the lock of a dead process is none"


# ------------------------------------------------------------------------------------------------ the page


GUIDE = (Path(__file__).parents[2] / "docs" / "comparing.md").read_text()


@pytest.fixture
def runs(tmp_path):
    """The folder `runs` of the guide, with the runs that it names."""
    four_runs(tmp_path / "runs")
    write_switch("runs/a")
    Loggers(["csv"], tmp_path / "runs" / "a" / "metrics.jsonl").begin()


@pytest.mark.parametrize("program", re.findall(r"```python\n(.*?)```", GUIDE, re.S))
def test_a_program_of_the_guide_runs(program, runs, capsys):
    exec(program, {})
    assert "Error" not in capsys.readouterr().out


@pytest.mark.parametrize("line", re.findall(r"^mbo2o ((?:runs|report|table)\b[^#\n]*)", GUIDE, re.M))
def test_a_command_of_the_guide_runs(line, runs, capsys):
    names = {"runs/moore-...": "runs/b", "runs/wsrl-...": "runs/a", "runs/rlpd-...": "runs/d"}
    code, out, _ = command(
        *(names.get(x, x) for x in line.replace("runs/studies", "runs").split()), capsys=capsys
    )
    assert code == 0
    assert out


def test_every_extra_that_the_guide_names_is_declared():
    extras = set(re.findall(r"mbo2o\[(\w+)\]", GUIDE))
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert extras == {"tensorboard", "wandb", "trackio"}
    assert all(re.search(rf"^{x} = \[", text, re.M) for x in extras)
