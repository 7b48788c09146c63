"""A table's columns are found by their names, and what is not found is named."""

import numpy as np
import pytest
from logs import write_log

from mbo2o.store import datasets
from mbo2o.store.columns import columns_of
from mbo2o.types import UserError


@pytest.mark.parametrize(
    "header",
    [
        ["obs_x", "obs_v", "act_u", "reward", "terminal"],
        ["observations[0]", "observations[1]", "actions[0]", "rewards", "terminals"],
        ["s0", "s1", "a0", "r", "done"],
        ["state.x", "state.v", "action", "Reward", "Terminated"],
    ],
)
def test_common_names_are_known(header):
    found = columns_of(header, "x.csv")
    assert found == {
        "observations": header[:2],
        "actions": header[2:3],
        "rewards": header[3],
        "terminals": header[4],
    }


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (["obs_x", "temperature", "act_u", "reward", "done"], "column 'temperature' is not known; rename it"),
        (["obs_x", "act_u", "reward"], "no column holds 'terminals'; add it"),
        (["obs_x", "act_u", "reward", "r", "done"], "'reward' and 'r' are both rewards"),
        (["obs_x", "obs_y", "next_obs_x", "act_u", "r", "done"], "2 observations and 1 next observations"),
    ],
)
def test_what_is_not_known_is_named(header, said):
    with pytest.raises(UserError, match=said):
        columns_of(header, "x.csv")


def test_columns_to_leave_out_are_left_out():
    assert "episode" not in columns_of(["_episode", "#note", "info/x", "o1", "u", "r", "done"], "x")


def test_a_csv_is_read_by_the_names_of_its_columns_or_as_the_user_says(tmp_path):
    usual = datasets.find(write_log(tmp_path / "a.csv")).read(units=datasets.Actions("env", (-2, 2)))
    assert (len(usual), usual.obs_dim, usual.act_dim, int(usual.episode[-1])) == (190, 2, 1, 9)
    named = write_log(tmp_path / "b.csv", obs_x="place", obs_v="speed", act_u="force")
    with pytest.raises(UserError, match="column 'place' is not known"):
        datasets.find(named).read()
    columns = {
        "observations": ["place", "speed"],
        "actions": "force",
        "rewards": "reward",
        "terminals": "terminal",
        "episode": "episode",
    }
    other = datasets.find(named, columns).read(units=datasets.Actions("env", (-2, 2)))
    assert np.array_equal(other.packed.nan_to_num(), usual.packed.nan_to_num())
    with pytest.raises(UserError, match="dataset_columns=3: expected a field"):
        datasets.find(named, 3)
    with pytest.raises(UserError, match="a table is read into memory"):
        datasets.find(tmp_path / "a.csv").read("memmap")


def test_bounds_of_actions_are_taken_from_the_log_or_given(tmp_path):
    found = datasets.find(write_log(tmp_path / "a.csv"))
    units, (low, high), said = datasets.units_of_log(found, None)
    assert units.mode == "env"
    assert -2 <= low[0] < -1.5 < 1.5 < high[0] <= 2
    assert "these bounds are taken" in said
    units, (low, high), said = datasets.units_of_log(found, [-3, 3])
    assert (low, high, said) == (-3, 3, "")
    assert float(found.read(units=units).act.abs().max()) < 0.67
    with pytest.raises(UserError, match="env needs an environment's box"):
        datasets.units_of_log(found, "env")
    with pytest.raises(UserError, match="these are no bounds of actions"):
        datasets.units_of_log(found, [1, 2, 3])
    with pytest.raises(UserError, match=r"expected the box \[-1, 1\]"):
        found.read(units=datasets.units_of_log(found, [-1, 1])[0])
