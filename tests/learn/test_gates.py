"""What published work says of learners, at sizes where it shows: hours each, so none runs by default.

    MBO2O_GATES=FOLDER ./dev test -m slow tests/learn/test_gates.py

FOLDER holds the files that do not ship; data/README.md says how they are made. Costs are for one idle core of
2025 and are estimated from the rates of docs/results/speed.md, except where a test says that it was run.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from mbo2o.cli.main import parser
from mbo2o.cli.study import arms_of, of_checkout
from mbo2o.errors import UserError
from mbo2o.store import datasets
from mbo2o.store.datasets import read
from studies import cloning, results
from studies.arms import run_job
from studies.measured import numbers

pytestmark = pytest.mark.slow


def at_hand(name):
    """The path or the name of a file; skips the test without it."""
    path = Path(os.environ.get("MBO2O_GATES", "data")) / f"{name}.hdf5"
    try:
        return str(path) if path.is_file() else str(datasets.find(name).source and name)
    except UserError:
        pytest.skip(f"{path} is not at hand; MBO2O_GATES names its folder, data/README.md how it is made")


def learned(folder, study, on, arms, *settings, size="small", seeds=3):
    """The measures of some arms of a study, by arm and name; each has a number for each seed."""
    words = ["study", study, on, "--size", size, "--seeds", str(seeds), "--arms", *arms, "--set", *settings]
    module, known = of_checkout(f"studies.{study}"), arms_of(parser().parse_args(words))
    for job in results.jobs_of(module, known, arms).values():
        run_job(job, folder)
    module.collect(known, folder, folder, "gate")
    return numbers(folder / "gate.csv")


LONG = ("recipe.offline_steps=500000", "recipe.offline.normalize=true", "run.eval_every=10000")


@pytest.mark.parametrize("task", ["hopper", "halfcheetah"])
def test_edac_and_sacn_after_half_a_million_updates(tmp_path, task):
    """EDAC needs fewer critics than SAC-N: Hopper medium shows it (An et al. 2021, figure 3 and table 1).

    On HalfCheetah medium both end above the data. Three seeds of two learners with ten small critics take
    some three hours.
    """
    found = learned(tmp_path, "offline", at_hand(f"{task}-medium"), ["edac", "sacn"], *LONG)
    edac, sacn = (found[x]["final"].mean() for x in ("edac", "sacn"))
    if task == "hopper":
        assert edac > sacn
    else:
        behaviour = read(at_hand(f"{task}-medium")).episode_returns()[0].mean()
        assert min(edac, sacn) > behaviour


@pytest.mark.parametrize("file", ["hopper-medium-replay-v5", "halfcheetah-medium-replay"])
def test_a_clone_of_a_replay_buffer_reaches_its_mean_once_the_first_policies_are_left_out(file):
    """D4RL's BC reaches the mean of medium-replay; docs/results/offline.md says why it may stand still here.

    A minute for each file. HalfCheetah's figures are in the table of docs/results/offline.md.
    """
    whole = read(at_hand(file)).episode_returns()[0].mean()
    parts = {}
    for rows in cloning.measure(at_hand(file), 2000, 3):
        parts[rows[0]["arm"]] = np.mean([r["return"] for r in rows if r["how"] == "mean"] or [np.nan])
        if "without the first quarter" in parts:
            break
    assert parts["without the first quarter"] > whole


def test_iql_nears_the_best_episode_of_hopper_s_replay_buffer(tmp_path):
    """IQL stitches: on hopper-medium-replay it comes to 95 where BC has 30 (Kostrikov et al. 2021, table 1).

    The papers' nets and half of their updates: an hour for three seeds.
    """
    file = at_hand("hopper-medium-replay-v5")
    settings = ("recipe.offline_steps=500000", "run.eval_every=10000", "run.reward_scale=auto")
    found = learned(tmp_path, "offline", file, ["iql"], *settings, size="mid")
    best = read(file).episode_returns()[0].max()
    assert found["iql"]["final"].mean() >= 0.8 * best


def test_wsrl_loses_and_recovers(tmp_path):
    """After a dip WSRL ends above where it was at the switch (Zhou et al. 2024, figures 5 and 7).

    The published table of this study on the same file has it; five seeds take an hour.
    """
    maze = ("run.reward_shift=-1", "run.eval_episodes=10", "recipe.warmup=500")
    found = learned(tmp_path, "wsrl", at_hand("pointmaze-umaze"), ["warm"], *maze, seeds=5)
    warm = found["warm"]
    assert warm["drop"].mean() > 0
    assert warm["final"].mean() >= warm["j0"].mean()


def test_cal_ql_dips_less_than_cql(tmp_path):
    """CQL's values are too low at the switch, so that what it finds online misleads it; Cal-QL's are not
    (Nakamoto et al. 2023, figures 2 and 5).

    Five seeds at the papers' nets: two days. A GPU takes an hour.
    """
    found = learned(
        tmp_path, "methods", at_hand("hopper-medium"), ["calql", "cql-sac"], "seed=0", size="mid", seeds=5
    )
    assert found["calql"]["drop"].mean() < found["cql-sac"]["drop"].mean()
