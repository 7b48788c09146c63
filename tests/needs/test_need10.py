"""Need 10: honest evaluation and statistics.

Last, best (flagged as chosen with hindsight) and the mean of the last evaluations are reported; per-episode
returns are stored; IQM, optimality gap, probability of improvement and a stratified bootstrap are there in
numpy; few seeds are said to be few. Acceptance: IQM and interval equal rliable's on fixed arrays; the order
of evaluation episodes leaves training bit-identical; a report prints no interval for one seed.
"""

import hashlib
import json

import numpy as np
import pytest
from safetensors import safe_open

from mbo2o.report.numbers import cell
from mbo2o.report.page import write_report
from mbo2o.report.statistics import (
    interquartile_mean,
    optimality_gap,
    probability_of_improvement,
    stratified_bootstrap,
)
from mbo2o.run.evaluate import Evaluator

SCORES = np.arange(40.0).reshape(10, 4) ** 1.5 / 100
"""10 seeds, 4 tasks. On paper: sorted, the middle 20 values are those of 10 to 29."""


def test_iqm_gap_and_improvement_are_rliable_s():
    middle = np.arange(10, 30.0) ** 1.5 / 100
    assert interquartile_mean(SCORES) == pytest.approx(middle.sum() / 20, abs=1e-9)
    below = [min(x**1.5 / 100, 1.0) for x in range(40)]
    assert optimality_gap(SCORES) == pytest.approx(1 - sum(below) / 40, abs=1e-9)
    # each seed beats those in rows above it in every task: 45 of 100 pairs, and 10 ties count half
    assert probability_of_improvement(SCORES, SCORES) == pytest.approx((45 + 5) / 100)
    low, high = stratified_bootstrap(lambda x: float(x.mean()), SCORES, n=8000)
    error = np.sqrt((SCORES.var(0) / 10).sum()) / 4
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.04)
    assert (high + low) / 2 == pytest.approx(SCORES.mean(), rel=0.02)


def fingerprint(run):
    last = max((run / "checkpoints").glob("[0-9]*")) / "state.safetensors"
    with safe_open(last, "np") as f:
        names = sorted(x for x in f.keys() if not x.startswith("lanes/"))  # noqa: SIM118
        return hashlib.sha256(b"".join(f.get_tensor(x).tobytes() for x in names)).hexdigest()


def test_the_order_of_evaluations_leaves_training_bit_identical(tiny_run, monkeypatch):
    settings = {"recipe.online_steps": 60, "recipe.random_steps": 20}
    there = tiny_run("scratch", **settings)
    init = Evaluator.__init__

    def backwards(self, env, seeds, episodes, *rest):
        init(self, env, seeds, episodes, *rest)
        self._starts.reverse()

    monkeypatch.setattr(Evaluator, "__init__", backwards)
    back = tiny_run("scratch", **settings, **{"provenance": "backwards"})
    returns = []
    for run in (there, back):
        lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
        returns.append([x["returns"][0] for x in lines if x["kind"] == "eval"])
    assert returns[0] == [x[::-1] for x in returns[1]], "the same episodes, the other way round"
    assert returns[0][0][0] != returns[0][0][1]
    assert fingerprint(there) == fingerprint(back)


def test_one_seed_has_no_interval_and_the_best_is_flagged(tiny_run, tmp_path):
    page = write_report(tiny_run("scratch"), tmp_path / "page").read_text()
    assert "so there is no interval" in page
    assert "±" not in page
    assert "chosen with hindsight" in page
    assert cell(np.array([3.0])) == "3"


def test_the_return_of_every_episode_is_stored(tiny_run):
    lines = [json.loads(x) for x in (tiny_run("scratch") / "metrics.jsonl").read_text().splitlines()]
    for line in (x for x in lines if x["kind"] == "eval"):
        assert np.mean(line["returns"], 1) == pytest.approx(line["return"], rel=1e-5)
        assert np.shape(line["returns"]) == (1, 2)
