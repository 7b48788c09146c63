"""Need 14: seeing the model's uncertainty, and its decay during fine-tuning, in a notebook.

Each look is a line of the log: epistemic and aleatoric uncertainty by source (offline, online, imagined), the
penalty, and the true error of one step where the next state is known. The same is a table, in Parquet or CSV.
A decay curve, a reliability diagram, a fan by depth and a heat map over states show it. Acceptance: on a run
whose error falls by construction the slope is negative and the rank correlation of penalty and error is said;
functions that plot return a `Figure` and never call `show()`. unit/test_report.py runs the notebook.
"""

import csv
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from mbo2o.handle import RunHandle
from mbo2o.report import beliefs, plots
from mbo2o.report.read import read_run
from mbo2o.types import UserError


def test_each_look_has_both_kinds_of_uncertainty_and_the_true_error_by_source(tiny_run):
    log = read_run(tiny_run("moore"))
    for source in ("offline", "online", "imagined"):
        for name in ("epistemic_std", "aleatoric_std"):
            assert len(log.series("uncertainty", f"{name}/{source}").step), (name, source)
    assert len(log.series("uncertainty", "error/online").step)
    assert len(log.series("uncertainty", "penalty_share").step) or log.names("uncertainty", ("penalty",))


def write_decay(folder):
    """A run whose true error falls by construction, and whose penalty follows it."""
    lines = []
    for step in range(0, 1001, 100):
        error = float(np.exp(-step / 300))
        place = {"kind": "uncertainty", "phase": "online", "step": step, "total": step, "time": 0.0}
        penalty = 0.5 * error + 0.01 * (step % 200 > 0)
        online = {"error": error, "epistemic_std": penalty, "aleatoric_std": 0.1, "max_aleatoric": penalty}
        values = {f"{name}/online": [x, x] for name, x in online.items()}
        lines.append({**place, **values, "epistemic_std/imagined": [0.2, 0.2]})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (folder / "config.yaml").write_text("recipe: {name: moore, penalty: max_aleatoric}\nenv: x\nseeds: 2\n")
    return read_run(folder)


def test_a_decay_is_a_slope_and_a_rank_correlation(tmp_path):
    log = write_decay(tmp_path)
    found = beliefs.decay(beliefs.table(log))
    assert np.isclose(found.slope, -1000 / 300)
    assert np.isclose(found.half_life, 300 * np.log(2))
    assert found.rank > 0.9
    assert "halves in 208 steps" in str(found)
    assert "rank correlation of penalty and error is 0.9" in str(found)
    assert isinstance(plots.uncertainty(log), Figure)


def test_the_table_has_a_row_for_each_look_seed_and_source(tmp_path):
    found = beliefs.table(write_decay(tmp_path))
    assert len(found["step"]) == 11 * 2 * 2
    imagined = found["source"] == "imagined"
    assert np.isnan(found["error"][imagined]).all()
    assert (found["epistemic"][imagined] == 0.2).all()
    rows = list(csv.DictReader(beliefs.write(found, tmp_path / "u.csv").open()))
    assert list(rows[0]) == list(found)
    assert [float(row["error"] or "nan") for row in rows] == pytest.approx(found["error"], nan_ok=True)


def test_the_table_is_parquet_with_the_extra(tmp_path):
    found = beliefs.table(write_decay(tmp_path))
    path = tmp_path / "uncertainty.parquet"
    if importlib.util.find_spec("pyarrow") is None:
        with pytest.raises(UserError, match=r"pip install 'mbo2o\[parquet\]'"):
            beliefs.write(found, path)
        return
    back = importlib.import_module("pyarrow.parquet").read_table(beliefs.write(found, path))
    assert back.column_names == list(found)
    assert np.array_equal(back["error"].to_numpy(), found["error"], equal_nan=True)


def test_a_map_is_bright_where_the_model_is_unsure():
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(4000, 3)) * np.array([10.0, 10.0, 0.1])
    obs[:, 2] = obs[:, 0] * 0.01
    unsure = np.where(obs[:, 0] > 0, 2.0, 0.1)
    figure = beliefs.state_map(obs, unsure, "uncertainty")
    assert isinstance(figure, Figure)
    grid = np.ma.masked_invalid(figure.axes[0].collections[0].get_array()).reshape(beliefs.BINS, -1)
    sides = sorted([float(grid[:, :10].mean()), float(grid[:, -10:].mean())])
    assert sides[0] < 0.4 < 1.6 < sides[1]
    assert isinstance(beliefs.state_map(obs[:, :1], unsure, "uncertainty", narrow=True), Figure)


def test_a_fan_opens_with_depth_and_leaves_out_what_has_ended():
    rng = np.random.default_rng(0)
    unsure = np.abs(rng.normal(size=(300, 20))) * np.arange(1, 21)
    unsure[:, 15:] = np.nan
    axes = beliefs.depth_fan(unsure, "uncertainty", error=np.linspace(0, 1, 20)).axes
    (line,) = axes[0].lines
    assert list(line.get_xdata()) == list(range(1, 16))
    assert line.get_ydata()[-1] > 5 * line.get_ydata()[0]
    assert len(axes) == 2


def test_a_run_gives_the_table_and_both_figures(tiny_run):
    run = RunHandle(tiny_run("moore"))
    assert {"offline", "online", "imagined"} == set(run.uncertainty()["source"])
    figures = run.beliefs(horizon=5)
    assert set(figures) == {"map", "fan"}
    assert all(isinstance(x, Figure) for x in figures.values())


def test_plots_return_figures_and_never_show_them(tiny_run):
    program = """
import sys
from matplotlib.figure import Figure
from mbo2o.report import plots
from mbo2o.report.coverage import coverage
from mbo2o.report.read import read_run
log = read_run(sys.argv[1])
drawn = [plots.return_curve, plots.uncertainty, plots.offline_share, plots.q_values, plots.calibration]
assert all(isinstance(f(log), Figure) for f in drawn)
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program, str(tiny_run("moore"))], check=True, timeout=120)
