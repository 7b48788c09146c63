"""The study of precisions: which runs it makes, and what its table says of them."""

import csv

import pytest

pytest.importorskip("studies")

from studies import parity
from studies.presets import preset


def table_of(tmp_path, shift, holdout=""):
    """What the study finds where bf16 returns `shift` more in each of five seeds, of a range of 1000."""
    rows = [
        {"arm": "td3bc", "precision": p, "seed": k, "env": "Hopper-v5", "steps": 100, "range": 1000.0}
        | {"final": 200 + 50 * k + (shift if p == "bf16" else 0) + k % 2, "auc": 100 + k}
        | {"holdout_mse": holdout and (1.0 if p == "fp32" else float(holdout))}
        for p in ("fp32", "bf16")
        for k in range(5)
    ]
    with open(tmp_path / "parity-hopper.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "parity-hopper-evaluations.csv").write_text("arm,seed,step,return\n")
    return parity.parities(tmp_path)


def test_a_difference_is_paired_and_a_share_of_the_reference_range(tmp_path):
    (found,) = table_of(tmp_path, 20)
    assert (found.data, found.method, found.steps) == ("hopper", "td3bc", 100)
    assert found.final.mean == pytest.approx(0.02)
    assert found.auc.mean == 0
    assert found.holdout is None
    assert found.level
    assert "| hopper | td3bc | 100 | 5 | 300 | 320 | +2.0% [+2.0%, +2.0%] |" in parity.table(tmp_path)


def test_a_difference_beyond_the_margin_is_not_level(tmp_path):
    (found,) = table_of(tmp_path, -60)
    assert not found.level
    assert "| not shown |" in parity.table(tmp_path)


def test_the_model_s_error_is_compared_as_a_ratio(tmp_path):
    (found,) = table_of(tmp_path, 0, holdout="1.1")
    assert found.holdout.mean == pytest.approx(0.1)
    assert "+10.0% [+10.0%, +10.0%]" in parity.table(tmp_path)


def test_the_two_precisions_of_a_method_differ_in_nothing_else():
    base = preset(f"experiment={parity.EXPERIMENT}")
    base.dataset = "hopper-medium-v5"
    arms = parity.arms(base)
    assert list(arms) == [f"{m}-{p}" for m in parity.METHODS for p in parity.PRECISIONS]
    for method in parity.METHODS:
        exact, rounded = (arms[f"{method}-{p}"] for p in parity.PRECISIONS)
        assert (exact.precision, rounded.precision) == ("fp32", "bf16")
        rounded.precision = "fp32"
        assert exact == rounded
        assert exact.engine == "compiled"
