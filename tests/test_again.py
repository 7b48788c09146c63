"""`mbo2o verify` computes published numbers again: traces, curves, tables, claims, lists of drops."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from mbo2o.envs.make import EnvChoice
from mbo2o.verify.traces import Played, Trace, about
from studies import again, ledger, measured
from studies.measured import RESULTS

REPO = Path(__file__).parents[1]
STEM = "obac-Hopper-v5"


@pytest.fixture
def copied(tmp_path, monkeypatch):
    for path in RESULTS.glob(f"{STEM}*.csv"):
        shutil.copy(path, tmp_path)
    for module in (ledger, measured):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    return tmp_path


def change(path, column, value):
    """Change a column of the first row."""
    with open(path) as f:
        rows = list(csv.DictReader(f))
    before, rows[0][column] = rows[0][column], value
    with open(path, "w") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return before


def test_the_published_tables_follow_from_their_curves_and_say_what_they_leave_out():
    assert again.tables() == []
    assert again.drops() == []


def test_a_changed_table_a_changed_curve_and_a_missing_list_are_named(copied):
    arm = next(iter(measured.numbers(copied / f"{STEM}.csv")))
    assert again.tables() == []
    before = change(copied / f"{STEM}.csv", "auc", "1.0")
    assert again.tables() == [f"{STEM}.csv: {arm} seed 0: auc is 1.0, and {before} by its curve"]
    change(copied / f"{STEM}.csv", "auc", before)
    change(copied / f"{STEM}-curves.csv", "return", "123456.0")
    assert any(f"{arm} seed 0: best is" in x for x in again.tables())
    (copied / f"{STEM}-drops.csv").write_text(f"run,reason\n{arm},was not run\n")
    assert again.drops() == [
        f"{STEM}-drops.csv: {arm} is in the table, and is listed as left out: was not run"
    ]
    (copied / f"{STEM}-drops.csv").unlink()
    assert again.drops() == [f"{STEM}.csv: there is no {STEM}-drops.csv, which lists what it leaves out"]


def test_traces_of_a_study_are_compared_with_its_curves(copied):
    with open(copied / f"{STEM}-curves.csv") as f:
        rows = [r for r in csv.DictReader(f) if (r["arm"], r["step"]) == ("sac", "0")]
    returns = np.array([float(r["return"]) for r in rows])
    place = {"phase": "online", "step": 0, "total": 0, "agent": "agent"}
    told = about(EnvChoice("Hopper-v5"), None, "", len(rows), f"{STEM}/sac", place)
    none = np.zeros((len(rows), 1), np.float32)
    ones = np.ones(len(rows), np.int64)
    assert again.published(Trace(told, Played(ones, ones, none, returns, none))) == []
    off = returns + np.eye(len(rows))[1]
    (line,) = again.published(Trace(told, Played(ones, ones, none, off, none)))
    assert f"seed 1 returns {off[1]:.2f}, and {returns[1]} in {STEM}-curves.csv" in line
    apart = told | {"run": f"{STEM}/sac/seed-1", "seeds": 1}
    assert again.published(Trace(apart, Played(*(x[1:2] for x in (ones, ones, none, returns, none))))) == []
    assert again.published(Trace(apart, Played(*(x[1:2] for x in (ones, ones, none, off, none))))) == [
        line.replace("sac online", "sac/seed-1 online")
    ]
    other = told | {"run": "elsewhere/sac"}
    assert again.published(Trace(other, Played(ones, ones, none, off, none))) == []


def test_no_page_has_a_measured_table_that_no_command_writes():
    """A cell with an interval, a ± or a verdict such as `not run` comes from data/results."""
    pages = [REPO / "README.md", *(x for x in (REPO / "docs").rglob("*.md") if x.parent.name != "methods")]
    measured_cell = re.compile(r"\[[-+]?\d[\d.]*, [-+]?\d[\d.]*\]|±|\bnot reproduced\b|\bnot run\b")
    for page in pages:
        text = re.sub(r"<!-- generated: [\w-]+ -->.*?<!-- end -->", "", page.read_text(), flags=re.DOTALL)
        rows = [x for x in text.splitlines() if x.startswith("|") and measured_cell.search(x)]
        assert not [x for x in rows if x.count("|") > 3], page
