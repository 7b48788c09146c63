"""Need 9: offline to online without a mystery drop, and a way to see why it dropped.

What is kept, mixed, reset and calibrated at the switch is declared, and printed as one table. Acceptance:
(a) an evaluation before the switch equals the one after it bit for bit if no update lies between; (b) a batch
of 25 / 75 holds exactly 64 / 192 rows; (c) `switch.json` holds dip, recovery and regret; (d) a policy that is
deliberately drawn again at the switch is flagged.
"""

import json

import torch

from mbo2o.report.page import write_report
from mbo2o.report.read import read_run
from mbo2o.sources.mixtures import Mix
from mbo2o.types import Batch


def first_and_last(run, name):
    log = read_run(run)
    return [log.series("eval", name, p).values[i] for p, i in (("offline", -1), ("online", 0))]


def test_the_evaluation_at_the_switch_is_the_one_before_it(tiny_run):
    run = tiny_run("switch=cql-sac")
    for name in ("return", "returns", "length"):
        before, at = first_and_last(run, name)
        assert before.tolist() == at.tolist(), name
    assert json.loads((run / "switch.json").read_text())["policy_changed"] is False


class Rows:
    """A source whose rows carry one number."""

    def __init__(self, number):
        self.number = float(number)

    def __len__(self):
        return 1000

    def sample(self, n):
        x = torch.full((n,), self.number)
        return Batch(x[:, None], x[:, None], x, x[:, None], x)


def test_a_mixture_of_25_and_75_has_exactly_64_and_192_rows():
    batch = Mix((Rows(0), 0.25), (Rows(1), 0.75)).sample(256)
    assert [(batch.rew == k).sum().item() for k in (0, 1)] == [64, 192]


def test_switch_json_holds_dip_recovery_and_regret(tiny_run):
    found = json.loads((tiny_run("switch=cql-sac") / "switch.json").read_text())
    assert {"before", "at", "dip", "recovery", "regret", "area"} <= set(found["measures"])
    assert all({"meaning", "mean", "low", "high", "seeds"} <= set(x) for x in found["measures"].values())
    assert {"kept", "reset"} & {x["what"] for x in found["parts"]}


def test_a_policy_that_is_drawn_again_is_flagged(tiny_run, tmp_path):
    run = tiny_run("switch=cql-sac", **{"recipe.inherit": "none"})
    assert json.loads((run / "switch.json").read_text())["policy_changed"] is True
    assert "The switch itself changed the policy" in write_report(run, tmp_path / "page").read_text()
