"""Scores over files: rliable's measures by brute force, and the groups of tables that they are taken over."""

import itertools
import shutil

import numpy as np
import pytest

from studies import aggregate, measured
from studies.aggregate import MEASURES, groups, interquartile_mean, stratified
from studies.measured import RESULTS


def test_the_interquartile_mean_cuts_a_quarter_of_all_runs_at_each_end():
    assert interquartile_mean([np.array([-100.0, 1.0]), np.array([3.0, 900.0])]) == 2
    assert interquartile_mean([np.array([0.0, 1, 2, 3, 100])]) == 2  # ⌊5 / 4⌋ = 1 at each end
    both = interquartile_mean([np.array([[-9.0, 1], [0, 0]]), np.array([[3.0, 9], [4, 4]])])
    assert both.tolist() == [2, 2]
    assert np.isnan(interquartile_mean([np.array([np.nan, 1.0, 2, 3])]))


def test_the_mean_counts_files_equally():
    assert aggregate.mean([np.zeros(3), np.full(1, 100.0)]) == 50


@pytest.mark.parametrize("name", MEASURES)
def test_the_interval_is_that_of_all_draws_within_files(name):
    """Two files of five seeds have 5⁵ × 5⁵ draws; multisets with their weights are few enough to list."""
    rng = np.random.default_rng(1)
    files = [rng.normal(0, 1, 5), rng.normal(3, 2, 5)]
    draws = [_multisets(x) for x in files]
    values, weights = [], []
    for (a, wa), (b, wb) in itertools.product(*draws):
        values.append(float(MEASURES[name]([a, b])))
        weights.append(wa * wb)
    order = np.argsort(values)
    share = np.cumsum(np.array(weights)[order]) / sum(weights)
    exact = [np.array(values)[order][np.searchsorted(share, q)] for q in (0.025, 0.975)]
    assert stratified(files, MEASURES[name], 6000) == pytest.approx(exact, abs=0.06)


def _multisets(x):
    """Every multiset of as many draws from `x`, and how many ordered draws give it."""
    out = []
    for pick in itertools.combinations_with_replacement(range(len(x)), len(x)):
        counts = np.bincount(pick, minlength=len(x))
        ways = np.prod(np.arange(1, len(x) + 1)) / np.prod([max(1, np.prod(range(1, c + 1))) for c in counts])
        out.append((x[list(pick)], ways))
    assert sum(w for _, w in out) == len(x) ** len(x)
    return out


def test_no_draw_mixes_files_and_few_seeds_have_no_interval():
    low, high = stratified([np.zeros((3, 5)), np.full((3, 5), 100.0)], aggregate.mean)
    assert low.tolist() == high.tolist() == [50] * 3
    assert np.isnan(stratified([np.zeros((3, 5)), np.zeros((3, 4))], aggregate.mean)).all()


def test_groups_are_the_tables_with_most_in_common():
    found = {(g.study, g.size, g.kind): g for g in groups()}
    offline = found["offline", "small", "MuJoCo"]
    assert len(offline.tables) * len(offline.arms) == 27
    assert offline.start == ""
    assert {p.stem for p in found["obac", "small", "MuJoCo"].tables} == {
        "obac-HalfCheetah-v5",
        "obac-Hopper-v5",
    }
    assert ("enoto", "small", "MuJoCo") not in found, "one file, and one of another learner"
    for g in found.values():
        assert len(g.tables) > 1
        assert all(len(g.files(arm, "final")) == len(g.tables) for arm in g.arms)


def test_scores_are_those_of_the_reference_set_and_a_page_has_them(tmp_path, monkeypatch):
    assert aggregate.score("PointMaze_UMaze-v3", np.array([0, 0.5, 1])).tolist() == [0, 50, 100]
    for name in ("obac-HalfCheetah-v5", "obac-Hopper-v5"):
        shutil.copy(RESULTS / f"{name}.csv", tmp_path)
    monkeypatch.setattr(measured, "RESULTS", tmp_path)
    (group,) = groups()
    rows = [x for x in aggregate.table().splitlines() if x.startswith("| obac, small, MuJoCo |")]
    assert len(rows) == len(group.arms)
    iqm = float(interquartile_mean(group.files("sac", "final")))
    assert any("| `sac` | 2, 10 | " in row and f"| {iqm:.1f} [" in row for row in rows)
