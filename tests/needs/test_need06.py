"""Need 6: a normalised score that is defined, versioned and correct.

`score(returns, ref)` with the reference set as a part of the metric's name; constants of v2 are refused on v5
unless asked for; a spread is scaled without the offset; the raw return is always logged, too; 0 to 100
everywhere; success has a name of its own. Acceptance: known constants, the scaling of a spread, a refused
mismatch; each entry of the v5 table has method, episodes, seeds and interval.
"""

import json

import pytest
import torch

from mbo2o.envs.scores import find_reference, sets
from mbo2o.types import UserError


def test_known_constants_score_0_and_100():
    d4rl = find_reference("d4rl-v2", "Hopper-v2")
    assert d4rl.score(torch.tensor([-20.272305, 3234.3])).tolist() == pytest.approx([0, 100], abs=1e-3)
    assert d4rl.spread(torch.tensor(3234.3 + 20.272305)).item() == pytest.approx(100, abs=1e-3), "no offset"
    assert d4rl.metric == "score_d4rl_v2"


def test_constants_of_another_version_are_refused_unless_asked_for():
    with pytest.raises(UserError, match="allow_mismatch"):
        find_reference("d4rl-v2", "Hopper-v5")
    assert find_reference("d4rl-v2", "Hopper-v5", allow_mismatch=True).known


def test_each_entry_of_the_v5_table_says_how_it_was_measured():
    for task, ends in sets()["mbo2o-v5"]["tasks"].items():
        for end in ends.values():
            assert {"return", "policy"} <= set(end), task
            if "interval" in end:
                assert end["episodes"] > 0, task
                assert end["seeds"], task


def test_a_run_logs_the_raw_return_beside_the_score(tiny_run):
    lines = [json.loads(x) for x in (tiny_run("scratch") / "metrics.jsonl").read_text().splitlines()]
    last = [x for x in lines if x["kind"] == "eval"][-1]
    assert last["score_own"] == pytest.approx([100 * (r + 1500) / 1350 for r in last["return"]], rel=1e-4)
    assert last["score_own_std"] == pytest.approx([100 * s / 1350 for s in last["return_std"]], rel=1e-4)
