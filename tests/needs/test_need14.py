"""Need 14: seeing the model's uncertainty, and its decay during fine-tuning, in a notebook.

Each look is a line of the log: epistemic and aleatoric uncertainty by source (offline, online, imagined), the
penalty, and the true error of one step where the next state is known. Acceptance: on a run whose error falls
by construction the slope is negative and the rank correlation of uncertainty and error is given; functions
that plot return a `Figure` and never call `show()`. unit/test_report.py runs the notebook.
"""

import json
import subprocess
import sys

import numpy as np
from matplotlib.figure import Figure

from mbo2o.report import plots
from mbo2o.report.read import read_run
from mbo2o.report.statistics import spearman


def test_each_look_has_both_kinds_of_uncertainty_and_the_true_error_by_source(tiny_run):
    log = read_run(tiny_run("moore"))
    for source in ("offline", "online", "imagined"):
        for name in ("epistemic_std", "aleatoric_std"):
            assert len(log.series("uncertainty", f"{name}/{source}").step), (name, source)
    assert len(log.series("uncertainty", "error/online").step)
    assert len(log.series("uncertainty", "penalty_share").step) or log.names("uncertainty", ("penalty",))


def test_a_decay_is_a_slope_and_a_rank_correlation(tmp_path):
    lines = []
    for step in range(0, 1001, 100):
        error = float(np.exp(-step / 300))
        place = {"kind": "uncertainty", "phase": "online", "step": step, "total": step, "time": 0.0}
        lines.append(
            {
                **place,
                "error/online": [error],
                "epistemic_std/online": [0.5 * error + 0.01 * (step % 200 > 0)],
            }
        )
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (tmp_path / "config.yaml").write_text("recipe: {name: moore}\nenv: x\nseeds: 1\n")
    log = read_run(tmp_path)
    error = log.series("uncertainty", "error/online")
    epistemic = log.series("uncertainty", "epistemic_std/online")
    slope = np.polyfit(error.step, np.log(error.values[:, 0]), 1)[0]
    assert np.isclose(slope, -1 / 300)
    assert spearman(epistemic.values[:, 0], error.values[:, 0]) > 0.9
    assert isinstance(plots.uncertainty(log), Figure)


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
