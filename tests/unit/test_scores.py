"""Which returns score 0 and 100, by whose word; and when a word is refused."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import mbo2o
from mbo2o import naming
from mbo2o.cli.main import compose_config, main
from mbo2o.envs.scores import find_reference, sets
from mbo2o.report.page import write_report
from mbo2o.report.read import read_run
from mbo2o.training import read_config, train
from mbo2o.types import UserError

ACTOR = Path(mbo2o.__file__).parent.parent / "data" / "actors" / "hopper-medium-v5.safetensors"
SMALL = [
    "recipe=finetune",
    "agent@recipe.offline=bc",
    "recipe.online_steps=0",
    "recipe.offline_steps=2",
    "recipe.batch=8",
    "recipe.offline.actor.hidden=[8]",
    "dataset=hopper-medium-v5",
    "run.eval_episodes=2",
    "report=false",
]


@pytest.mark.parametrize(("set_name", "env_id"), [("d4rl-v2", "Hopper-v2"), ("mbo2o-v5", "Hopper-v5")])
def test_the_returns_of_a_set_score_0_and_100(set_name, env_id):
    r = find_reference(set_name, env_id)
    assert r.high > r.low
    scores = r.score(torch.tensor([r.low, r.high, (r.low + r.high) / 2]))
    torch.testing.assert_close(scores, torch.tensor([0.0, 100.0, 50.0]), atol=1e-4, rtol=1e-5)


def test_d4rl_constants():
    """They are those of d4rl/infos.py."""
    known = {
        "Hopper": (-20.272305, 3234.3),
        "HalfCheetah": (-280.178953, 12135.0),
        "Walker2d": (1.629008, 4592.3),
    }
    for task, ends in known.items():
        r = find_reference("d4rl-v2", f"{task}-v4")
        assert (r.low, r.high) == ends


@pytest.mark.parametrize("choice", ["mbo2o-v5", [-100, 900]])
def test_spread_has_no_offset(choice):
    """The deviation of scores, not the score of the deviation."""
    r = find_reference(choice, "HalfCheetah-v5")
    x = torch.tensor([100.0, 700.0, 3000.0])
    torch.testing.assert_close(r.spread(x.std()), r.score(x).std(), rtol=1e-5, atol=1e-4)
    assert not math.isclose(float(r.score(x.std())), float(r.score(x).std()), rel_tol=1e-2)


def test_constants_of_another_version_are_refused_unless_asked_for():
    for task in ("Hopper", "HalfCheetah", "Walker2d", "Ant"):
        with pytest.raises(UserError, match=rf"d4rl-v2.*{task}-v5.*allow_mismatch"):
            find_reference("d4rl-v2", f"{task}-v5")
        assert find_reference("d4rl-v2", f"{task}-v5", True) == find_reference("d4rl-v2", f"{task}-v2")
    assert math.isnan(
        find_reference("mbo2o-v5", "Hopper-v4").low
    )  # it knows only the versions in which it was measured
    assert math.isnan(find_reference("d4rl-v2", "Pendulum-v1").low)


def test_mazes_score_their_success_rate():
    rate = torch.tensor([0.0, 0.25, 1.0])
    ids = (
        "PointMaze_UMaze-v3",
        "PointMaze_Large_Diverse_GR-v3",
        "AntMaze_UMaze-v5",
        "gymnasium_robotics:AntMaze_Medium-v4",
    )
    for env_id in ids:
        for choice in sets():
            assert find_reference(choice, env_id).score(rate).tolist() == [0, 25, 100]
    for env_id in ("PointMaze_UMazeDense-v3", "AntMaze_UMazeDense-v5", "Maze_UMaze-v3"):
        assert math.isnan(find_reference("d4rl-v2", env_id).high)


@pytest.mark.parametrize(
    "choice", ["d4rl-v9", [1.0], [1.0, 1.0], ["a", 2], [0, math.inf], [False, True], {"a": 1}, None, 3]
)
def test_invalid_references_are_refused(choice):
    with pytest.raises(UserError, match="reference"):
        find_reference(choice, "Hopper-v5")


def test_each_measured_entry_says_how_it_was_measured():
    measured = sets()["mbo2o-v5"]["tasks"]
    assert {"Hopper-v5", "HalfCheetah-v5", "Walker2d-v5", "Pendulum-v1"} <= set(measured)
    for task, entry in measured.items():
        for end in entry.values():
            if "Maze" in task:
                continue
            assert {"policy", "episodes", "seeds", "interval", "std"} <= set(end)
            low, high = end["interval"]
            assert low < end["return"] < high
            assert end["episodes"] >= 100
            assert len(end["seeds"]) >= 5
        assert entry["low"]["return"] < entry["high"]["return"]


def scored(tmp_path, *more):
    cfg = compose_config([*SMALL, f"dir={tmp_path}/run", *more])
    train(cfg)
    return read_run(tmp_path / "run")


def test_a_run_names_the_set_in_its_metrics(tmp_path, capsys):
    log = scored(tmp_path)
    line = next(x for x in log.lines if x["kind"] == "eval")
    r = find_reference("mbo2o-v5", "Hopper-v5")
    assert line["score_mbo2o_v5"] == pytest.approx(r.score(torch.tensor(line["return"])).tolist(), rel=1e-5)
    assert line["score_mbo2o_v5_std"] == pytest.approx(
        r.spread(torch.tensor(line["return_std"])).tolist(), rel=1e-5
    )
    assert "score" not in line
    assert "success" not in line
    with pytest.raises(SystemExit) as e:
        main(["eval", str(tmp_path / "run"), "--episodes", "2"])
    assert e.value.code == 0
    assert "(mbo2o-v5)" in capsys.readouterr().out


def test_two_returns_are_a_reference(tmp_path):
    line = next(x for x in scored(tmp_path, "run.reference=[0,50]").lines if x["kind"] == "eval")
    assert line["score_own"] == pytest.approx([2 * y for y in line["return"]], rel=1e-5)


def test_a_run_with_another_versions_constants_is_refused_at_once(tmp_path):
    with pytest.raises(UserError, match=r"run\.reference=d4rl-v2"):
        scored(tmp_path, "run.reference=d4rl-v2")
    assert "score_d4rl_v2" in scored(tmp_path, "run.reference=d4rl-v2", "run.allow_mismatch=true").lines[0]


def test_a_run_from_before_the_rule_can_still_be_opened(tmp_path):
    scored(tmp_path, "run.reference=d4rl-v2", "run.allow_mismatch=true")
    path = tmp_path / "run" / "config.yaml"
    lines = [x for x in path.read_text().splitlines() if "allow_mismatch" not in x]
    path.write_text("\n".join(lines))
    cfg, _ = read_config(tmp_path / "run")
    assert cfg.run.allow_mismatch


def test_another_reference_does_not_make_another_run(tmp_path):
    """The directory keeps its name, except with an agent that acts on scores."""
    scored(tmp_path)
    scored(tmp_path, "run.reference=[0,50]")  # accepted as the same run, which has nothing left to do

    def name(agent, *more):
        cfg = compose_config(
            [*SMALL, f"agent@recipe.offline={agent}", "recipe.offline.actor.hidden=[8]", *more]
        )
        return naming.name(cfg, "Hopper-v5")

    assert name("td3bc") == name("td3bc", "run.reference=[0,50]", "storage=memmap")
    assert name("td3bc") != name("td3bc", "run.eval_every=7")
    assert name("adaptive_bc") != name("adaptive_bc", "run.reference=[0,50]")


def test_an_agent_that_acts_on_scores_says_how_to_go_on(tmp_path):
    steered = ["agent@recipe.offline=adaptive_bc", "recipe.offline.critic.hidden=[8]"]
    scored(tmp_path, *steered, "run.reference=d4rl-v2", "run.allow_mismatch=true")
    with pytest.raises(
        UserError, match=r"give run\.reference=d4rl-v2 run\.allow_mismatch=true to go on with it"
    ):
        scored(tmp_path, *steered)


def test_a_task_without_scores_causes_a_warning():
    with pytest.warns(
        UserWarning,
        match=r"mbo2o-v5 does not know Ant-v5: there are no scores; give run\.reference=\[LOW,HIGH\]",
    ):
        assert not find_reference("mbo2o-v5", "Ant-v5").known
    for choice in sets():
        with pytest.warns(
            UserWarning,
            match=r"^no reference set knows Swimmer-v5: there are no scores; give run\.reference=",
        ):
            assert not find_reference(choice, "Swimmer-v5").known
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_reference([0, 1], "Swimmer-v5").known
        assert find_reference("mbo2o-v5", "Hopper-v5").known


def test_a_report_shows_the_latest_score_alone(tmp_path):
    scored(tmp_path)
    path = tmp_path / "run" / "metrics.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | {"score": [77.0]}), *rest]) + "\n")
    page = write_report(tmp_path / "run").read_text()
    assert "normalised score_mbo2o_v5" in page
    assert "normalised score (" not in page


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--episodes", "0"], "episodes=0 must be at least 1"),
        (["--seeds", "0"], "seeds=0 must be at least 1"),
        (["--env", "Walker2d-v5"], "plays Hopper-v5; Walker2d-v5 has 17 observations and 6 actions"),
    ],
)
def test_mistakes_in_measuring_a_reference_are_one_line(args, said, capsys):
    with pytest.raises(SystemExit) as e:
        main(["data", "reference", str(ACTOR), *args])
    assert e.value.code == 2
    assert said in capsys.readouterr().err


def test_a_reference_can_be_measured(tmp_path, capsys):
    """With a policy whose return is known: an actor of zeros in Pendulum does nothing."""
    from mbo2o.collect.actor import Actor
    from mbo2o.ensemble.mlp import MLPConfig
    from mbo2o.envs.lanes import Lane
    from mbo2o.nn.policy import TanhGaussian

    policy = TanhGaussian((), 3, 1, MLPConfig(hidden=[4]))
    for p in policy.parameters():
        p.data.zero_()
    info = {"env_id": "Pendulum-v1", "obs_dim": "3", "act_dim": "1", "hidden": "[4]"}
    Actor(policy, info).save(tmp_path / "zero.safetensors")
    with pytest.raises(SystemExit) as e:
        main(["data", "reference", str(tmp_path / "zero.safetensors"), "--episodes", "2", "--seeds", "2"])
    assert e.value.code == 0
    entry = json.loads(capsys.readouterr().out)["Pendulum-v1"]

    returns = []
    for k in range(2):
        for i in range(2):
            lane = Lane("Pendulum-v1", 10_000_019 + 1000 * k + i)
            over = False
            while not over:
                *_, terminated, truncated = lane.step(np.zeros(1))
                over = terminated or truncated
            returns.append(lane.episode_return)
    half = 1.96 * np.std(returns) / 2
    assert entry["high"]["return"] == pytest.approx(np.mean(returns), abs=0.01)
    assert entry["high"]["interval"] == pytest.approx(
        [np.mean(returns) - half, np.mean(returns) + half], abs=0.02
    )
    assert entry["high"]["episodes"] == 4
    assert entry["low"]["return"] != entry["high"]["return"]
