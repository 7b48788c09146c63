"""The figures of the papers are drawn from the tables; what lacks is told."""

import csv
import shutil

import pytest

from mbo2o.types import UserError
from studies import figures, measured, offline
from studies.measured import RESULTS, STUDIES


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """The measured tables of two studies, in a folder where files can be added."""
    for stem in ("enoto-hopper-medium-100k", "obac-Hopper-v5"):
        for path in RESULTS.glob(f"{stem}*.csv"):
            shutil.copy(path, tmp_path)
    monkeypatch.setattr(measured, "RESULTS", tmp_path)
    return tmp_path


def put(path, rows):
    with open(path, "w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_every_figure_s_arms_exist_in_its_study():
    from mbo2o.cli.main import compose_config

    known = {}
    for kind, study in (STUDIES | {"offline": offline}).items():
        base = compose_config([f"experiment={study.EXPERIMENT}", f"{study.SUBJECT}=Hopper-v5"])
        known[kind] = {*study.arms(base), *getattr(study, "DERIVED", ())}
    for name, shown in figures.FIGURES.items():
        assert set(shown.arms) <= known[shown.study], name


def test_curves_and_aggregates_are_drawn_and_what_lacks_is_told(tables):
    (path,), lack = figures.draw("obac-agents", "small", tables)
    assert path.stat().st_size > 10_000
    assert lack == ""
    (path,), _ = figures.draw("enoto-2", "small", tables)
    assert path.stat().st_size > 10_000
    with pytest.raises(UserError, match="figure obac-scores: nothing of it is measured"):
        figures.draw("obac-scores", "small", tables)  # one table
    for end in ("", "-curves"):
        shutil.copy(RESULTS / f"obac-HalfCheetah-v5{end}.csv", tables)
    (path,), _ = figures.draw("obac-scores", "small", tables)
    assert path.name == "obac-scores-mujoco-small.png"
    assert path.stat().st_size > 5_000
    assert "not measured: " in figures.missing("obac-constraint", "small")
    with pytest.raises(UserError, match=r"run mbo2o study wsrl .* --arms iql-keep-0"):
        figures.draw("wsrl-3.1", "small", tables)
    with pytest.raises(UserError, match="--size mid --arms kept freed freed-n"):
        figures.draw("enoto-1a", "mid", tables)


def test_values_and_distances_are_drawn_where_a_table_kept_them(tables):
    stem = "enoto-hopper-medium-100k"
    q = [
        {"arm": x, "seed": k, "step": t, "q": 1.0 + k + t}
        for x in ("freed", "freed-n")
        for k in (0, 1)
        for t in (0, 9)
    ]
    put(tables / f"{stem}-q.csv", q)
    shares = [(0.0, 0.5, 0.25), (0.5, 1.0, 0.75)]
    bars = [
        {"arm": x, "from": a, "to": b, "share": s}
        for x in ("kept", "freed-n", "random")
        for a, b, s in shares
    ]
    put(tables / f"{stem}-distances.csv", bars)
    for name in ("enoto-1b", "enoto-1c"):
        (path,), lack = figures.draw(name, "small", tables)
        assert path.stat().st_size > 5_000
        assert lack == ""
