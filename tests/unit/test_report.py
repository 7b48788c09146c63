"""The report on made-up runs: what it says of known curves, and that it survives unfinished and damaged
runs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbclient import NotebookClient

from mbo2o.report import compare, plots
from mbo2o.report.page import write_report
from mbo2o.report.read import read_run
from mbo2o.report.statistics import (
    Pace,
    benjamini_hochberg,
    bootstrap_interval,
    common_window,
    interval,
    ks_two_sample,
    late_evaluations,
    mean_over_seeds,
    paired_difference,
    spearman,
    summarise,
    t_quantile,
    t_tail,
    unpaired_difference,
)
from mbo2o.types import UserError

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "01_uncertainty_decay.ipynb"
OFFLINE, ONLINE = 20_000, 10_000


def synthesise(
    path: Path, seeds: int = 3, phases: tuple[str, ...] = ("offline", "switch", "online"), model: bool = True
) -> Path:
    """A run that reaches 2000 offline, drops by 600 after the switch and climbs to 3200; its model gets
    surer.
    """
    rng = np.random.default_rng(0)
    lines: list[dict] = []

    def log(kind: str, phase: str, step: int, **metrics: float | np.ndarray) -> None:
        noisy = {
            k: (np.asarray(v) * rng.normal(1, 0.05, (seeds, *np.shape(v)))).tolist()
            for k, v in metrics.items()
        }
        total = step if phase == "offline" else OFFLINE + step
        lines.append(dict(kind=kind, phase=phase, step=step, total=total, time=total / 100, **noisy))

    def uncertainty(phase: str, step: int, surer: float, states: list[str]) -> None:
        scale = {"offline": 0.1, "online": 0.1 + surer, "imagined": 0.1 + 0.6 * surer}
        metrics: dict[str, float] = {"penalty_share": 0.1 + surer, "reward/imagined": 2.0}
        for w in states:
            metrics |= {f"epistemic_std/{w}": 0.5 * scale[w], f"aleatoric_std/{w}": 0.12}
            metrics |= {f"{u}/{w}": 3 * scale[w] for u in ("max_aleatoric", "max_pairwise", "mixture_std")}
            metrics |= {f"error/{w}": 1.2 * scale[w]} if w != "imagined" else {}
        log("uncertainty", phase, step, **metrics)

    def evaluate(phase: str, step: int, ret: float, q: float) -> None:
        log(
            "eval",
            phase,
            step,
            **{"return": ret},
            length=300.0,
            score=ret / 32,
            q=q * ret,
            mc_return=0.06 * ret,
        )

    def fit(phase: str, step: int, share: float, sharp: float) -> None:
        log("model", phase, step, holdout_mse=0.1, updates=400.0, epochs=5.0)
        for level in (50, 90):
            covered = rng.normal(np.linspace(level / 100 - sharp, level / 100, 12), 0.02, (seeds, 12))
            lines[-1][f"coverage{level}"] = covered.clip(0, 1).tolist()
        lines[-1]["share_offline"] = [share] * seeds

    if "offline" in phases:
        if model:
            fit("offline", 0, 1.0, 0.3)
        for step in range(0, OFFLINE + 1, 1000):
            ret = 2000 * (1 - np.exp(-step / 4000))
            evaluate("offline", step, ret, 0.04)
            log("train", "offline", step, critic_loss=1.0)
            if model and step % 5000 == 0:
                uncertainty("offline", step, 0.4, ["offline", "imagined"])
    if "switch" in phases:
        log("train", "switch", 0, critic_loss=1.0)
    if "online" in phases:
        for step in range(0, ONLINE + 1, 500):
            ret = 2000 + 1200 * step / ONLINE - 700 * np.exp(-(((step - 1500) / 800) ** 2))
            evaluate("online", step, ret, 0.055)
            if model:
                fit("online", step, 0.85 ** (step / 500), 0.05)
                uncertainty("online", step, np.exp(-step / 3000), ["offline", "online", "imagined"])
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(
        f"recipe: {{name: moore}}\nenv: Hopper-v5\ndataset: <hopper & medium>\nseeds: {seeds}\nseed: 0\n"
        "behaviour_return: 1500.0\nformula: ${seed}\n"
    )
    (path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return path


def test_bootstrap_interval_agrees_with_resampling_row_by_row():
    x = np.random.default_rng(1).normal(size=(4, 6))
    rng = np.random.default_rng(2)
    means = np.array([x[:, rng.integers(6, size=6)].mean(-1) for _ in range(8000)])
    low, high = bootstrap_interval(x, level=0.9, n=8000)
    np.testing.assert_allclose(low, np.quantile(means, 0.05, axis=0), atol=0.04)
    np.testing.assert_allclose(high, np.quantile(means, 0.95, axis=0), atol=0.04)
    assert np.isnan(bootstrap_interval([3.0])).all(), "one seed has no interval"


def test_paired_difference_ignores_what_seeds_share():
    shared = np.array([0.0, 100, 200, 300, 400])
    found = paired_difference(shared + np.array([1, 2, 3, 2, 2]), shared)
    assert found.mean == pytest.approx(2)
    assert found.low == pytest.approx(2 - 2.776 * 0.5**0.5 / 5**0.5, abs=1e-3)
    assert found.high - found.mean == pytest.approx(found.mean - found.low)
    assert found.p == pytest.approx(2 * t_tail(2 / (0.5**0.5 / 5**0.5), 4))
    with pytest.raises(ValueError, match="same seeds"):
        paired_difference([1, 2], [1, 2, 3])


def test_student_s_tail_and_quantile_are_those_of_the_tables():
    for df, t, tail in [
        (1, 12.7062, 0.025),
        (4, 2.77645, 0.025),
        (4, 7.17318, 0.001),
        (10, 1.81246, 0.05),
        (30, 3.38518, 0.001),
    ]:
        assert t_tail(t, df) == pytest.approx(tail, rel=1e-4)
        assert t_quantile(1 - tail, df) == pytest.approx(t, rel=1e-3)
    assert t_tail(0, 7) == pytest.approx(0.5)
    # one degree of freedom is Cauchy's distribution, two have a closed form
    assert t_tail(1e4, 1) == pytest.approx(0.5 - np.arctan(1e4) / np.pi, rel=1e-6)
    assert t_tail(3, 2) == pytest.approx(0.5 - 3 / (2 * (2 + 9) ** 0.5), rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.51, 0.999), st.floats(2, 60))
def test_tail_and_quantile_are_inverses(p, df):
    """Five seeds have four degrees of freedom, and Welch's comparison of them no fewer than that."""
    assert t_tail(t_quantile(p, df), df) == pytest.approx(1 - p, rel=1e-3)


def test_an_interval_needs_five_seeds_and_is_student_s():
    x = np.array([1.0, 2, 3, 4, 5])
    low, high = interval(x)
    assert (low, high) == pytest.approx((3 - 2.776 * 0.5**0.5, 3 + 2.776 * 0.5**0.5), abs=1e-3)
    assert np.isnan(interval(x[:4])).all()
    assert np.isnan(mean_over_seeds(x[:4])[1:4]).all()
    assert mean_over_seeds(x[:4]).mean == 2.5
    rows = interval(np.stack([x, 10 * x]))
    np.testing.assert_allclose(rows[0], [low, 10 * low])


def test_welch_s_difference_of_unequal_samples():
    a, b = (
        [27.5, 21.0, 19.0, 23.6, 17.0, 17.9],
        [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1],
    )
    found = unpaired_difference(a, b)
    va, vb = np.var(a, ddof=1) / 6, np.var(b, ddof=1) / 12
    df = (va + vb) ** 2 / (va**2 / 5 + vb**2 / 11)
    assert found.mean == pytest.approx(np.mean(a) - np.mean(b))
    assert found.high - found.mean == pytest.approx(t_quantile(0.975, df) * (va + vb) ** 0.5)
    assert found.p == pytest.approx(2 * t_tail(abs(found.mean) / (va + vb) ** 0.5, df))
    assert unpaired_difference([1.0] * 5, [1.0] * 5).p == 1
    assert unpaired_difference([2.0] * 5, [1.0] * 5).p == 0


def test_an_unpaired_difference_is_as_often_wrong_as_it_says():
    rng = np.random.default_rng(3)
    wrong = [unpaired_difference(rng.normal(0, 3, 5), rng.normal(size=5)).p < 0.05 for _ in range(400)]
    assert np.mean(wrong) == pytest.approx(0.05, abs=0.035)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_corrected_p_values_by_their_definition(p):
    q = benjamini_hochberg([*p, np.nan])
    assert np.isnan(q[-1])
    n, ordered = len(p), sorted(p)
    for mine, found in zip(p, q, strict=False):
        # the smallest level at which Benjamini and Hochberg's step-up rule rejects this one
        assert found == pytest.approx(min(1, *(n * x / k for k, x in enumerate(ordered, 1) if x >= mine)))


def test_the_window_has_as_many_updates_and_evaluations_in_every_arm():
    grid = np.arange(0, 10_001, 500)
    warm, cold = Pace(grid, start=1000), Pace(grid)
    updates, looks = common_window({"warm": warm, "cold": cold})
    assert updates == 2000  # 20 % of 9000, in whole spacings of 500
    assert grid[looks["warm"]].tolist() == [1500, 2000, 2500, 3000]
    assert grid[looks["cold"]].tolist() == [500, 1000, 1500, 2000]
    # four updates a step: the spacing is 2000 updates, and others are looked at as seldom
    updates, looks = common_window({"warm": warm._replace(utd=4), "slow": cold})
    assert updates == 4000
    assert (grid[looks["warm"]].tolist(), grid[looks["slow"]].tolist()) == ([1500, 2000], [2000, 4000])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.integers(1, 7), st.integers(0, 40), st.integers(1, 5)),
        min_size=1,
        max_size=4,
    )
)
def test_a_window_s_evaluations_are_distinct_and_follow_the_first_update(arms):
    paces = {
        str(i): Pace(np.arange(n + 1) * every, start, utd) for i, (n, every, start, utd) in enumerate(arms)
    }
    updates, looks = common_window(paces)
    assert len({len(x) for x in looks.values()}) == 1
    for name, found in looks.items():
        assert len(set(found.tolist())) == len(found)
        assert (paces[name].step[found] > paces[name].start).all()
    assert (updates == 0) == (len(looks["0"]) == 0)


def test_frozen_steps_are_no_part_of_a_drop():
    step, ret = np.arange(11) * 100, np.array([9.0, 9, 9, 9, 8, 7, 1, 0, 0, 0, 0])
    assert summarise(step, ret[:, None], start=300).drop == 2  # looks at steps 400 and 500
    assert summarise(step, ret[:, None]).drop == 0  # at 100 and 200, were they learning


def test_a_final_has_three_evaluations_of_the_second_half():
    assert late_evaluations(np.arange(8)) == 3
    assert late_evaluations(np.arange(40)) == 4
    assert late_evaluations([0, 5000, 10_000]) == 1
    assert late_evaluations([0]) == 1


def test_ks_gap_by_brute_force_and_p_by_permutation():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 60).round(1), rng.normal(0.35, 1.2, 45).round(1)  # with ties
    gap, p = ks_two_sample(a, b)
    assert gap == pytest.approx(max(abs((a <= x).mean() - (b <= x).mean()) for x in np.linspace(-5, 5, 1001)))
    a, b = rng.normal(0, 1, 60), rng.normal(0.25, 1, 45)
    gap, p = ks_two_sample(a, b)
    both, more = np.concatenate([a, b]), 0
    for _ in range(2000):
        rng.shuffle(both)
        more += ks_two_sample(both[:60], both[60:])[0] >= gap - 1e-12
    assert p == pytest.approx(more / 2000, abs=0.06)


def test_ks_known_values():
    same = np.arange(10.0)
    assert ks_two_sample(same, same) == (0, 1)
    assert ks_two_sample(same, same + 100)[0] == 1
    # Smirnov's table: a gap of 1.358 sqrt((n + m) / (n m)) is the limit at 5 %
    n = 10_000
    shift = int(1.358 * np.sqrt(2 / n) * n)
    assert ks_two_sample(np.arange(n), np.arange(n) + shift)[1] == pytest.approx(0.05, abs=0.002)


def test_spearman_known_values():
    assert spearman([1, 2, 3, 4], [1, 8, 27, 64]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert spearman([1, np.nan, 2, 3], [3, 100, 2, 1]) == pytest.approx(-1)
    assert np.isnan(spearman([1, 2, 3], [1, 1, 1]))


def test_summary_of_a_curve_by_hand():
    step = np.arange(11) * 100
    seed = np.array([10, 6, 8, 0, 10, 12, 14, 16, 18, 20, 30.0])  # the 0 comes after the first 20 %
    s = summarise(step, np.stack([seed, np.full(11, 5.0)], -1))
    np.testing.assert_allclose(s.j0, [10, 5])
    np.testing.assert_allclose(s.drop, [4, 0])
    np.testing.assert_allclose(s.final, [(18 + 20 + 30) / 3, 5])
    np.testing.assert_allclose(s.best, [30, 5])
    np.testing.assert_allclose(s.auc, [(seed.sum() - (10 + 30) / 2) / 10, 5])
    long = summarise(np.arange(40), np.arange(40.0)[:, None])
    assert long.final == pytest.approx(np.mean([36, 37, 38, 39]))
    one = summarise([0], [[7.0]])
    assert (one.j0, one.drop, one.auc, one.final) == (7, 0, 7, 7)


def test_series_keeps_order_phase_and_shape(tmp_path: Path):
    log = read_run(synthesise(tmp_path / "run"))
    ret = log.series("eval", "return")
    assert ret.values.shape == (21 + 21, 3)
    assert ret.total[20] == ret.total[21] == OFFLINE
    assert ret.step[21] == 0
    assert list(ret.phase[20:22]) == ["offline", "online"]
    assert log.series("eval", "return", "online").values.shape == (21, 3)
    assert log.series("model", "coverage50").values.shape == (22, 3, 12)
    assert len(log.series("eval", "unheard of").step) == 0
    assert log.series("uncertainty", "epistemic_std/online").phase.tolist() == ["online"] * 21


def test_read_run_survives_a_cut_last_line_and_nulls(tmp_path: Path):
    path = synthesise(tmp_path / "run", phases=("offline",), model=False)
    file = path / "metrics.jsonl"
    whole = read_run(path).lines
    file.write_text(file.read_text()[:-30])
    assert read_run(path).lines == whole[:-1]
    null = {"kind": "eval", "phase": "online", "step": 0, "total": 9, "return": [1.0, None, 3.0]}
    file.write_text(json.dumps(null) + "\n")
    np.testing.assert_array_equal(read_run(path).series("eval", "return").values, [[1, np.nan, 3]])
    file.write_text('{"kind": "eval"\n' + json.dumps(null) + "\n")
    with pytest.raises(UserError, match="line 1"):
        read_run(path)


def test_what_is_no_run_is_a_one_line_error(tmp_path: Path):
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match=r"config\.yaml") as error:
            read_run(path)
        assert "\n" not in str(error.value)
    run = synthesise(tmp_path / "run")
    (run / "config.yaml").write_text("a: [1\nb: }")
    with pytest.raises(UserError, match="cannot be read"):
        read_run(run)


@pytest.mark.parametrize("seeds", [1, 3])
def test_report_has_every_section_and_its_pictures(tmp_path: Path, seeds: int):
    run = synthesise(tmp_path / "run", seeds)
    page = write_report(run)
    html = page.read_text()
    assert page == run / "report" / "index.html"
    for section in ("numbers", "return", "uncertainty", "offline_share", "q_values", "calibration", "config"):
        assert f'id="{section}"' in html
    assert html.count("<svg ") == 2 * 5, "each picture for a wide page and for a narrow one"
    assert not re.search(r"(src|href)=[\"'](?!#)", html), "the page needs nothing from elsewhere"
    assert "<script" not in html
    assert "@import" not in html
    assert "&lt;hopper &amp; medium&gt;" in html
    assert "<hopper" not in html
    assert ("no interval" in html) == (seeds == 1)
    assert f"<th>seed {seeds - 1}</th>" in html
    assert "1,500" in html, "the behaviour policy's return"
    for png in (
        page.parent / f"{name}.png"
        for name in ("return", "uncertainty", "offline_share", "q_values", "calibration")
    ):
        assert png.read_bytes().startswith(b"\x89PNG")
        assert png.stat().st_size > 20_000
        assert "<svg" in png.with_suffix(".svg").read_text()
    j0 = read_run(run).series("eval", "return", "online").values[0]
    assert f"<td>{j0.mean():,.0f}</td>" in html


@pytest.mark.parametrize(
    ("phases", "model", "pictures"),
    [((), True, 0), (("offline",), True, 5), (("offline", "switch"), False, 2), (("online",), False, 2)],
)
def test_report_on_runs_that_are_not_whole(
    tmp_path: Path, phases: tuple[str, ...], model: bool, pictures: int
):
    page = write_report(synthesise(tmp_path / "run", 3, phases, model), tmp_path / "out")
    html = page.read_text()
    assert html.count("<svg ") == 2 * pictures
    assert len(list(page.parent.glob("*.png"))) == len(list(page.parent.glob("*.svg"))) == pictures
    assert ("Nothing was evaluated yet" in html) == (not phases)
    assert ("J0: at the switch" in html) == ("online" in phases)


def test_a_missing_value_is_shown_as_missing(tmp_path: Path):
    run = synthesise(tmp_path / "run", 2, ("offline", "online"), model=False)
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    lines[-1]["return"][1] = None
    (run / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    final = re.search(r"<tr><td>final.*?</tr>", write_report(run).read_text())
    assert final
    cells = re.findall(r"<td>(.*?)</td>", final[0])[1:]
    assert cells[0] == cells[1] == cells[3] == "–"
    assert cells[2] != "–"


def test_an_uncertainty_that_is_all_missing_or_almost_constant_still_has_a_picture(tmp_path: Path):
    run = synthesise(tmp_path / "run", 2)
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    for value, labelled in ((None, 0), (0.06, 1), (0.024, 1)):
        for x in lines:
            x.update({k: [value] * 2 for k in x if k.startswith(("epistemic_std", "aleatoric_std", "error"))})
        (run / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        figure = plots.uncertainty(read_run(run))
        low, high = figure.axes[0].get_ylim()
        assert sum(low < tick < high for tick in figure.axes[0].get_yticks()) >= labelled
        assert figure.axes[0].get_ylim() == figure.axes[-1].get_ylim(), "one scale"


@pytest.mark.parametrize("draw", [plots.return_curve, plots.uncertainty, plots.offline_share, plots.q_values])
def test_the_switch_is_marked_where_the_panels_touch(tmp_path: Path, draw):
    figure = draw(read_run(synthesise(tmp_path / "run")))
    offline, online = figure.axes[:2]
    for axes in figure.axes[1::2]:
        (line,) = [x for x in axes.lines if x.get_label() == "switch"]
        assert list(line.get_xdata()) == [0, 0]
    assert offline.get_position().x1 == pytest.approx(online.get_position().x0)
    assert offline.get_xlim() == (0, OFFLINE)
    assert online.get_xlim() == (0, ONLINE)
    assert {"OFFLINE", "ONLINE", "switch"} <= {t.get_text() for a in (offline, online) for t in a.texts}
    bottom = figure.axes[-2:]
    assert ["gradient steps" in bottom[0].get_xlabel(), "environment steps" in bottom[1].get_xlabel()] == [
        True,
        True,
    ]
    not_yet = draw(read_run(synthesise(tmp_path / "offline", phases=("offline",))))
    assert all(x.get_label() != "switch" for a in not_yet.axes for x in a.lines)


def test_a_switch_that_takes_turns_lies_left_of_its_mark(tmp_path: Path):
    run = synthesise(tmp_path / "run", phases=("offline",))
    with (run / "metrics.jsonl").open("a") as file:
        for phase, step, total in [
            ("switch", 0, 20_000),
            ("switch", 500, 20_500),
            ("online", 0, 20_500),
            ("online", 90, 20_590),
        ]:
            line = {"kind": "eval", "phase": phase, "step": step, "total": total, "return": [1.0] * 3}
            file.write(json.dumps(line) + "\n")
    online = plots.return_curve(read_run(run)).axes[1]
    assert online.get_xlim() == (-500, 90)
    mean = next(x for x in online.lines if x.get_label() == "evaluated policy")
    assert mean.get_xdata().tolist() == [-500, 0, 0, 90]


def test_each_run_has_a_curve_and_a_band_only_over_seeds(tmp_path: Path):
    runs = {f"{s} seeds": read_run(synthesise(tmp_path / str(s), s, model=False)) for s in (1, 5)}
    curves = {name: compare.curve(run) for name, run in runs.items()}
    (axes,) = compare.compare_panels({"": curves}, "Hopper-v5").axes
    means = [x for x in axes.lines if len(x.get_xdata()) == 21]
    assert len(means) == 2
    np.testing.assert_allclose(
        means[1].get_ydata(), runs["5 seeds"].series("eval", "return", "online").values.mean(-1)
    )
    assert len(axes.collections) == 1
    with pytest.raises(ValueError, match="18 runs"):
        compare.compare_panels({"": {str(i): curves["5 seeds"] for i in range(18)}}, "Hopper-v5")


def drawn(figure, name):
    """The solid and the dotted part of a curve, by its label, in the first panel that has it."""
    for axes in figure.axes:
        for line in axes.lines:
            if line.get_label() == name:
                same = [
                    x for x in axes.lines if x.get_color() == line.get_color() and x.get_linestyle() == ":"
                ]
                return line, same
    raise AssertionError(name)


def test_a_method_has_one_colour_in_all_panels_and_figures():
    curve = compare.Curve(np.arange(4.0), np.arange(20.0).reshape(4, 5))
    first = compare.compare_panels(
        {"a": {"cql": curve, "wsrl": curve}, "b": {"wsrl": curve, "unheard of": curve}}, "x"
    )
    second = compare.compare_panels({"": {"iql": curve, "wsrl": curve}}, "x")
    colours = {
        line.get_color()
        for f in (first, second)
        for a in f.axes
        for line in a.lines
        if line.get_label() == "wsrl"
    }
    assert len(colours) == 1
    assert len({line.get_color() for a in first.axes for line in a.lines}) == 3


def test_names_that_stand_in_one_figure_have_colours_of_their_own():
    from studies import enoto, methods, moore, obac, offline, wsrl

    for study in (enoto, methods, moore, obac, offline, wsrl):
        names = list(dict.fromkeys(name for panel in study.PANELS.values() for name in panel))
        assert set(names) <= set(compare.COLOURS), study.__name__
        assert len({compare.COLOURS[name] for name in names}) == len(names), study.__name__


def test_figures_mark_frozen_steps_and_shade_few_curves():
    step, values = np.arange(0, 1001, 100.0), np.random.default_rng(0).normal(size=(11, 5))
    curves = {
        name: compare.Curve(step, values, frozen=300)
        for name in ("cql", "wsrl", "iql", "pex", "awac", "rlpd")
    }
    figure = compare.compare_panels({"": curves}, "Hopper-v5 · mine")
    solid, dotted = drawn(figure, "wsrl")
    assert solid.get_xdata().tolist() == step[3:].tolist()
    assert dotted[0].get_xdata().tolist() == step[:4].tolist()
    assert len(figure.axes[0].collections) == compare.BANDS == 4
    said = " ".join(t.get_text() for t in figure.texts)
    assert "Hopper-v5 · mine" in said
    assert "Student's 95 % interval" in said
    assert "frozen" in " ".join(t.get_text() for t in figure.axes[0].get_legend().get_texts())


def test_what_starts_from_nothing_has_no_switch_and_comes_after_its_random_steps():
    curve = compare.Curve(np.arange(0, 1001, 100.0), np.zeros((11, 5)), random=200)
    figure = compare.compare_panels({"": {"sac": curve}}, "Hopper-v5")
    assert figure.axes[0].get_xlabel() == "environment steps"
    assert drawn(figure, "sac")[0].get_xdata()[0] == 200
    assert (
        compare.compare_panels({"": {"sac": curve}}, "PointMaze_UMaze-v3").axes[0].get_ylabel()
        == "success rate"
    )


def test_a_figure_is_a_small_png_and_an_svg_with_its_text(tmp_path: Path):
    curve = compare.Curve(np.arange(0, 1001, 100.0), np.zeros((11, 5)))
    compare.save(compare.compare_panels({"": {"sac": curve}}, "Hopper-v5 · mine"), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size < 60_000
    assert "Hopper-v5 · mine</text>" in (tmp_path / "a.svg").read_text()


def test_the_report_shows_how_long_the_policy_was_frozen(tmp_path: Path):
    run = synthesise(tmp_path / "run")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("{name: moore}", "{name: finetune, start: 1000}"))
    online = plots.return_curve(read_run(run)).axes[1]
    (span,) = [x for x in online.patches if x.get_label() == "frozen policy, no updates yet"]
    assert span.get_x() + span.get_width() == 1000


def test_the_uncertainty_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MBO2O_RUN", str(synthesise(tmp_path / "run")))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") for cell in notebook.cells), "outputs are not stored"
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = [x for cell in notebook.cells for x in cell.get("outputs", [])]
    assert sum("image/png" in x.get("data", {}) for x in outputs) >= 3
    table = "".join(x.get("text", "") for x in outputs)
    rho = {
        m[1]: float(m[2])
        for m in re.finditer(r"^(max_pairwise|mixture_std)/online.* (-?\d\.\d+)$", table, re.M)
    }
    assert set(rho) == {"max_pairwise", "mixture_std"}
    assert max(rho.values()) < -0.7, "uncertainty falls in this run by construction"


def test_the_page_fits_a_narrow_screen_and_a_dark_one(tmp_path):
    page = write_report(synthesise(tmp_path / "run", seeds=1, phases=("offline",))).read_text()
    assert '<meta name="viewport" content="width=device-width,initial-scale=1">' in page
    assert re.search(r"h1[^{}]*\{overflow-wrap:anywhere\}", page)
    assert re.search(r"table\{[^}]*overflow-x:auto", page)
    assert "prefers-color-scheme:dark" in page
    assert " · 3.3 min</p>" in page  # 200 s, not 0.06 h
