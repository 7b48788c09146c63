"""The ledger of claims follows from the measured tables, and says where it does not."""

import csv
import json
import shutil

import pytest

from mbo2o.cli.main import main
from studies import ledger, measured, protocol
from studies.measured import RESULTS, SIZES

STATED = {name for found in (protocol.STATED | protocol.SANITY).values() for name in found}


def claims(*options):
    with pytest.raises(SystemExit) as done:
        main(["claims", *options])
    return done.value.code


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """The measured tables, in a folder where they can be changed."""
    for path in RESULTS.glob("*.csv"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(ledger, "RESULTS", tmp_path)
    monkeypatch.setattr(measured, "RESULTS", tmp_path)
    return tmp_path


def test_every_claim_has_a_row_at_every_size_and_the_file_says_what_the_tables_say(capsys):
    table = ledger.read_ledger()
    assert len(STATED) == 51
    assert {(r["claim"], r["size"]) for r in table} == {(c, size) for c in STATED for size in SIZES}
    assert claims("--check") == 0
    assert all(r["text"] and r["source"] and r["verdict"] for r in table)
    measured_rows = [r for r in table if r["verdict"] != ledger.NOT_RUN]
    assert len(measured_rows) > 100
    assert all(r["command"] and r["commit"] and r["seeds"] for r in measured_rows)
    capsys.readouterr()
    assert claims("--json") == 0
    assert json.loads(capsys.readouterr().out) == table


def test_what_differs_between_ledger_and_tables_is_told(copied, capsys):
    path = copied / "obac-Hopper-v5.csv"
    with open(path) as f:
        rows = list(csv.DictReader(f))
    for row in rows:
        if row["arm"] == "obac":
            row["auc"] = str(float(row["auc"]) + 5000)
    with open(path, "w") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert claims("--check") == 1
    said = capsys.readouterr().out
    assert "O4 small obac-Hopper-v5 AUC: OBAC > SAC: difference is" in said
    ledger.write_ledger()
    assert claims("--check") == 0
    (copied / "obac-Hopper-v5.csv").unlink()
    assert claims("--check") == 1
    assert "no table has it" in capsys.readouterr().out


def test_a_table_of_another_size_is_a_family_of_its_own(copied):
    before = {(r["file"], r["claim"], r["measure"]): r["q"] for r in ledger.rows()}
    for end in ("", "-curves"):
        shutil.copy(copied / f"obac-Hopper-v5{end}.csv", copied / f"obac-Hopper-v5-mid{end}.csv")
    made = {"command": "mbo2o study obac Hopper-v5 --size mid", "runs": {}}
    made["runs"] = {x: {"commit": "abc", "hours": 1.25} for x in ("sac", "obac")}
    (copied / "obac-Hopper-v5-mid-made.json").write_text(json.dumps(made))
    rows = ledger.rows()
    small = {(r["file"], r["claim"], r["measure"]): r["q"] for r in rows if r["file"] != "obac-Hopper-v5-mid"}
    assert small == {k: q for k, q in before.items() if k in small}
    mid = [r for r in rows if r["file"] == "obac-Hopper-v5-mid"]
    assert {r["size"] for r in mid} == {"mid"}
    assert {(r["command"], r["commit"], r["hours"]) for r in mid} == {(made["command"], "abc", "2.50")}
    assert (
        next(r for r in mid if r["claim"] == "O4")["q"] != before["obac-Hopper-v5", "O4", "AUC: OBAC > SAC"]
    )


@pytest.mark.parametrize(
    ("verdicts", "result"),
    [
        (["not run"], "not run"),
        (["holds", "holds", "sanity check passed"], "holds"),
        (["holds", "direction only"], "holds in part"),
        (["holds", "contrary"], "mixed"),
        (["contrary", "direction only"], "contrary"),
        (["direction only", "holds before correction", "not reproduced"], "direction only"),
        (["direction only", "contrary before correction"], "not reproduced"),
        (["sanity check passed"], "sanity check only"),
    ],
)
def test_what_the_comparisons_of_a_claim_come_to(verdicts, result):
    assert ledger.overall([{"verdict": x} for x in verdicts]) == result
