"""What a newcomer types, and what the tool says to a slip: one line, with the place of the fault."""

import json
import re
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from logs import TINY, rough_model, write_log
from nbclient import NotebookClient

import mbo2o
from mbo2o import training
from mbo2o.cli.main import main
from mbo2o.model import fitting
from mbo2o.store import datasets
from mbo2o.types import UserError

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "03_q_ensembles_through_the_switch.ipynb"


def said(capsys, *args):
    """(exit code, standard output, standard error) of `mbo2o args`."""
    with pytest.raises(SystemExit) as left:
        main([str(x) for x in args])
    out, err = capsys.readouterr()
    return left.value.code, out, err


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["bogus"], "invalid choice: 'bogus'"),
        (["data"], "required: COMMAND"),
        (["data", "bogus"], "data: argument COMMAND: invalid choice"),
        (["eval"], "eval: the following arguments are required: RUN;"),
        (["data", "copy", "my.csv"], "data copy: the following arguments are required: out"),
        (["eval", "run", "--episodes", "few"], "eval: argument --episodes: invalid int value: 'few'"),
        (["runs", "--bogus"], "unrecognized arguments: --bogus"),
        (
            ["data", "check", "my.csv", "--actions", "bla"],
            "bla: expected unit, env, clip, env-clip, or bounds",
        ),
        (["data", "check", "my.csv", "--columns", "x"], "x: expected {observations: [...]"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(args, text, capsys):
    code, out, err = said(capsys, *args)
    assert (code, out) == (2, "")
    assert text in err
    assert err.count("\n") == 1
    assert err.startswith("mbo2o: ")


# ------------------------------------------------------------------------------------------ steps of a log


def test_a_log_alone_gets_as_many_updates_as_it_repays():
    usual = mbo2o.config("iql", "my.csv", env=None)
    assert usual.updates_per_row == 10
    small, line = training._with_steps(usual, 240)
    assert small.recipe.offline_steps == 2400
    assert small.recipe.offline.actor_decay_steps == 2400, "a schedule ends with the phase"
    assert small.updates_per_row is None, "the run is named by its steps"
    assert small.provenance.endswith("; with 2400 updates, for a log of 240 rows")
    assert "recipe.offline_steps is 2400 here" in line
    assert "recipe.offline_steps=1000000 is the usual number" in line
    assert usual.recipe.offline_steps == 1_000_000, "the caller's config stays"
    assert training._with_steps(usual, 30)[0].recipe.offline_steps == training.LEAST_UPDATES
    large, line = training._with_steps(usual, 200_000)
    assert (large.recipe.offline_steps, line) == (1_000_000, "")


def test_steps_that_are_given_count_and_an_environment_changes_nothing():
    given = mbo2o.config("td3bc", "my.csv", "recipe.offline_steps=50000", env=None)
    assert training._with_steps(given, 240) == (given, "")
    assert mbo2o.config("td3bc", "my.csv").updates_per_row is None
    assert mbo2o.config("td3bc", "my.csv", env=None, updates_per_row=3).updates_per_row == 3
    with pytest.raises(UserError, match=r"updates_per_row=3.*env=null"):
        training._check(replace(mbo2o.config("td3bc", "my.csv"), updates_per_row=3))


# --------------------------------------------------------------------------------------------------- tables


def test_the_commands_about_data_take_the_units_and_columns_of_training(tmp_path, capsys):
    path = write_log(tmp_path / "my.csv", obs_x="place", obs_v="speed", act_u="push")
    columns = "{observations: [place, speed], actions: [push], rewards: reward, terminals: terminal}"
    code, out, err = said(capsys, "data", "copy", path, tmp_path / "x.hdf5", "--columns", columns)
    assert code == 2
    assert "rescale them with --actions env or --actions [LOW,HIGH]" in err
    how = ["--columns", columns, "--actions", "[-2,2]"]
    code, out, _ = said(capsys, "data", "copy", path, tmp_path / "x.hdf5", *how)
    assert code == 0
    assert "200 rows" in out
    assert "mapped to [-1, 1]" in out
    copied = mbo2o.read_dataset(str(tmp_path / "x.hdf5"))
    own = datasets.read(path, bounds=(-2, 2), columns={**_columns(columns)})
    np.testing.assert_allclose(copied.act, own.act, atol=1e-6)
    code, out, _ = said(capsys, "data", "inspect", path, *how, "--json")
    assert (code, json.loads(out)["transitions"]) == (0, 200)
    assert said(capsys, "data", "check", path, *how)[0] == 0
    cfg = fitting.ModelConfig(actions=[-2, 2], columns=_columns(columns))
    assert torch.equal(fitting._read(path, cfg).act, own.act)


def _columns(text):
    from mbo2o.cli.data import _columns as parsed

    return parsed(text)


def test_rows_of_a_csv_are_named_by_the_lines_of_the_file(tmp_path, capsys):
    path = write_log(tmp_path / "my.csv", episodes=4, length=30)
    lines = path.read_text().splitlines()
    lines.insert(10, "")  # an editor counts it, too
    cells = lines[16].split(",")

    def broken(column, text):
        path.write_text(
            "\n".join([*lines[:16], ",".join([*cells[:column], text, *cells[column + 1 :]]), *lines[17:]])
        )
        with pytest.raises(UserError) as caught:
            datasets.read(path, bounds=(-2, 2))
        return str(caught.value)

    assert "line 17, column 'reward': 'many' is not a number" in broken(3, "many")
    assert "'observations' is not a finite float32 in line 17, column 'obs_v'" in broken(1, "nan")
    assert "'terminals' holds values other than 0 and 1 (2.0 in line 17)" in broken(4, "2")
    assert "line 17 has 8 cells, expected 7" in broken(6, "1,1")
    path.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    with pytest.warns(UserWarning, match="rows are out of order"):
        code, out, _ = said(capsys, "data", "check", path)
    ends = re.search(r"next_unknown.*\(line (\d+), ", out)
    assert code == 0
    assert path.read_text().splitlines()[int(ends[1]) - 1].split(",")[6] == "29", (
        "the last step of an episode"
    )


# --------------------------------------------------------------------------------------------------- a run


def test_checkpoints_without_their_settings_are_refused(tmp_path, monkeypatch, capsys):
    rough_model(monkeypatch)
    path = write_log(tmp_path / "my.csv")
    run = mbo2o.train("td3bc", str(path), env=None, dir=tmp_path / "run", quiet=True, report=False, **TINY)
    (run / "config.yaml").unlink()
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="holds checkpoints without the") as caught:
        mbo2o.train("td3bc", str(path), env=None, dir=tmp_path / "run", quiet=True, report=False, **TINY)
    assert "\n" not in str(caught.value)
    assert (run / "metrics.jsonl").read_bytes() == before
    assert not (run / "config.yaml").exists()


def test_the_notebook_on_q_ensembles_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MBO2O_STEPS", "40")
    monkeypatch.chdir(NOTEBOOK.parents[1])
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") for cell in notebook.cells), "outputs are not stored"
    where = {"metadata": {"path": str(tmp_path)}}
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    NotebookClient(notebook, timeout=400, kernel_name="python3", resources=where).execute()
    outputs = [x for cell in notebook.cells for x in cell.get("outputs", [])]
    text = "".join(x.get("text", "") for x in outputs)
    assert "with 5 critics, target min_q" in text
    least = [float(x) for x in re.search(r"^the data's +(.*)$", text, re.M)[1].split()]
    assert least[2] < least[3] < least[0], (
        "the minimum lies below the mean of pairs, which lies below the mean"
    )
    assert re.search(r"^kept +critic", text, re.M)
    rows = re.findall(r"^(min_q|mean_q) +(\S+) +(\S+) +(\S+) +(\S+) +(\S+)$", text, re.M)
    assert [row[0] for row in rows] == ["min_q", "mean_q"]
    assert all(row[1] == row[2] for row in rows), "the switch itself changes no policy"
    assert rows[0][1:4] == rows[1][1:4], "both runs have one offline phase"
    assert sum("image/png" in x.get("data", {}) for x in outputs) == 2
