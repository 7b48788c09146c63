"""Need 5: published numbers one can reproduce, with provenance.

Each preset says where its numbers come from, and each measured claim which command, commit and seeds gave
it; what was not measured says "not run". Acceptance: `mbo2o claims --check` passes; a preset's settings give
the name, with its hash, that is recorded; a preset that ran in a tiny form can be made again from its run.
"""

import csv
import json
import re
from pathlib import Path

import pytest

import mbo2o
from mbo2o import naming
from mbo2o.cli.main import main
from mbo2o.registry import conf_folder
from mbo2o.settings import KINDS, read_config

REPO = Path(mbo2o.__file__).parents[1]
RECORDED = {
    ("wsrl", "hopper-medium"): "wsrl-hopper-medium-2158e732",
    ("moore", "hopper-medium-replay-v5"): "moore-hopper-medium-replay-v5-2daf1dde",
}
"""What these presets are called in this version; a change of a number in them gives another hash."""


def claims(*options):
    with pytest.raises(SystemExit) as done:
        main(["claims", *options])
    return done.value.code


def test_the_ledger_of_claims_says_what_the_tables_say(capsys):
    assert claims("--check") == 0
    capsys.readouterr()
    assert claims("--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["verdict"] for row in rows} >= {"not run"}
    for row in rows:
        assert row["source"]
        if row["verdict"] != "not run":
            assert row["command"].startswith("mbo2o study ")
            assert re.fullmatch(r"[0-9a-f]{7,}", row["commit"])
            assert int(row["seeds"]) >= 1


def test_the_numbers_of_each_seed_are_in_the_repository():
    files = [
        x for x in (REPO / "data" / "results").glob("*.csv") if x.with_name(f"{x.stem}-curves.csv").exists()
    ]
    assert len(files) > 5
    for path in files:
        rows = list(csv.DictReader(path.open()))
        assert rows
        assert all(row["arm"] and row["seed"].isdigit() for row in rows), path


@pytest.mark.parametrize("group", ["switch", "experiment"])
def test_every_preset_names_its_source(group):
    for path in sorted((conf_folder() / group).glob("*.yaml")):
        text = path.read_text()
        if "The older name of switch=" in text:
            continue  # it is that preset, with its source
        said = re.search(r"^provenance: [\">-]*\s*(\w+): (.{10,})", text, re.MULTILINE)
        assert said, path
        assert said[1] in KINDS, path


@pytest.mark.parametrize("chosen", RECORDED)
def test_a_preset_has_the_hash_that_is_recorded(chosen):
    assert naming.name(mbo2o.config(*chosen, seed=1), "Hopper-v5") == RECORDED[chosen]


def test_a_preset_that_ran_in_a_tiny_form_is_made_again_from_its_run(tiny_run, pendulum):
    directory = tiny_run("switch=cql-sac")
    cfg, env_id = read_config(directory)
    text = (directory / "config.yaml").read_text()
    assert "provenance: " in text
    assert "switch=cql-sac: official, with " in text.replace("\n  ", " ")
    assert naming.directory_of(cfg, env_id, None)[0] == Path(directory)
    again = mbo2o.config("switch=cql-sac", f"dataset={pendulum}", "recipe.online_steps=150")
    assert naming.name(again, env_id) != naming.name(cfg, env_id)  # sizes count
