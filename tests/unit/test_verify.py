"""Evaluations that a run keeps can be played again to the last bit, and what was changed is named."""

import json
import os
import signal
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from survival import assert_same, ended, fork, outcome, small

from mbo2o.cli.main import main
from mbo2o.envs.disturb import DisturbConfig
from mbo2o.envs.make import EnvChoice
from mbo2o.run.evaluate import Evaluator
from mbo2o.run.turns import Run
from mbo2o.training import train
from mbo2o.types import UserError
from mbo2o.verify import replay, traces
from studies.measured import RESULTS

EVERY = {"eval_every": 25, "log_every": 25, "eval_episodes": 2}
SAMPLE = RESULTS / "traces.npz"


def verify(*what):
    with pytest.raises(SystemExit) as done:
        main(["verify", *map(str, what)])
    return done.value.code


def kept(directory):
    return {path.name: path.read_bytes() for path in sorted((directory / "traces").iterdir())}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("study") / "arm"
    train(small(directory, traces=True, **EVERY))
    return directory


@pytest.fixture
def file(run, tmp_path):
    """The last evaluation of the run as a file of its own."""
    path = tmp_path / "one.npz"
    traces.pack(path, [run], 1, 50)
    return path


def test_a_run_with_traces_has_the_bits_of_one_without_and_each_evaluation_is_played_again(
    run, tmp_path, capsys
):
    train(small(tmp_path / "without", **EVERY))
    assert_same(outcome(tmp_path / "without"), outcome(run))
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    evaluations = sum(x["kind"] == "eval" for x in lines)
    assert len(kept(run)) == evaluations == 6
    capsys.readouterr()
    assert verify(run) == 0
    said = capsys.readouterr().out
    assert f"{run}: 6 evaluations, 24 episodes, " in said
    assert "all equal to the last bit" in said
    assert f"mujoco {traces.versions()['mujoco']}" in said


def test_processes_of_evaluations_and_a_kill_leave_the_same_traces(run, tmp_path, monkeypatch):
    cfg = small(tmp_path / run.parent.name / "arm", traces=True, eval_workers=1, **EVERY)
    here = tmp_path / run.parent.name / "arm"

    def die_there(self, last):
        after_turn(self, last)
        if self.phase == "online" and self.turn == 40:
            os.kill(os.getpid(), signal.SIGKILL)

    after_turn = Run._after_turn
    monkeypatch.setattr(Run, "_after_turn", die_there)
    assert ended(fork(lambda: bool(train(cfg))), 300) == -signal.SIGKILL
    monkeypatch.undo()
    assert outcome(here)[1]["online.0"] == 30
    (here / "traces" / "000000999-online-agent.npz").write_bytes(b"of turns after the checkpoint")
    train(cfg)
    assert kept(here) == kept(run)


CHANGES = {
    "actions": (lambda x: np.concatenate([x[:1] + 0.25, x[1:]]), "episode 0 of seed 0"),
    "starts": (lambda x: np.concatenate([x[:-1], x[-1:] + 1]), "episode 1 of seed 1"),
    "returns": (lambda x: np.concatenate([x[:1] + 0.5, x[1:]]), "apart by 0.5"),
    "last": (lambda x: x + np.float32(1e-6), "4 of 4 episodes differ"),
}


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("name", CHANGES)
def test_what_was_changed_in_a_file_is_named_in_one_line(file, name, hidden, capsys):
    change, where = CHANGES[name]
    (trace,) = traces.read(file)
    played = trace.played._replace(**{name: change(getattr(trace.played, name))})
    about = {k: v for k, v in trace.about.items() if k != "sha256" or not hidden}
    traces.write(file, [traces.Trace(about, played)])
    assert verify(file) == 1
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("study")]
    assert len(lines) == 1
    assert where in lines[0]
    assert (f"its {name}" in lines[0]) != hidden


def test_an_episode_that_ends_sooner_or_later_than_recorded_is_named(file):
    (trace,) = traces.read(file)
    p, n = trace.played, int(trace.played.lengths[0])
    longer = p._replace(
        lengths=np.concatenate([[n + 2], p.lengths[1:]]),
        actions=np.concatenate([p.actions[:n], p.actions[:2], p.actions[n:]]),
    )
    assert f"ends after {n} of {n + 2} steps" in replay.differences(replace(trace, played=longer))
    shorter = p._replace(
        lengths=np.concatenate([[n - 1], p.lengths[1:]]), actions=np.delete(p.actions, n - 1, 0)
    )
    assert f"goes on after {n - 1} steps" in replay.differences(replace(trace, played=shorter))


def test_a_changed_log_and_a_changed_checkpoint_are_named(run, tmp_path, capsys):
    copy = tmp_path / "study" / "arm"
    copy.parent.mkdir()
    os.system(f"cp -r {run} {copy}")
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["kind"] == "eval"
    last["return"][0] += 1
    (copy / "metrics.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    path = sorted((copy / "traces").iterdir())[-1]
    (trace,) = traces.read(path)
    traces.write(path, [traces.Trace(trace.about | {"weights": "0" * 64}, trace.played)])
    capsys.readouterr()
    assert verify(copy) == 1
    out = capsys.readouterr().out
    assert "online turn 60 agent: metrics.jsonl says the return" in out
    assert "the weights in the checkpoint are not those that played it" in out


def test_noise_on_actions_and_states_is_drawn_again(tmp_path):
    noise = DisturbConfig(action_noise=0.3, transition_noise=0.01, reward_noise=1.0, reward_every=5)
    evaluator = Evaluator("Hopper-v5", (2,), 1, 0, 0.9, noise)
    evaluator(lambda obs: torch.rand(2, 1, 3) * 2 - 1, lambda obs, act: obs[..., 0])
    place = {"phase": "online", "step": 0, "total": 0, "agent": "agent"}
    told = traces.about(EnvChoice("Hopper-v5"), noise, "", 2, "a/b", place)
    traces.write(tmp_path / "x.npz", [traces.Trace(told, evaluator.played())])
    (trace,) = traces.read(tmp_path / "x.npz")
    assert replay.differences(trace) == ""
    told["disturb"]["action_noise"] = 0.2
    assert "episode 0 of seed 0" in replay.differences(replace(trace, about=told | {"sha256": {}}))


def normalised():
    return gymnasium.wrappers.NormalizeObservation(gymnasium.make("InvertedPendulum-v5"))


class Unseeded(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (1,))
    count = 0

    def reset(self, *, seed=None, options=None):
        type(self).count += 1
        return np.array([float(self.count)]), {}

    def step(self, action):
        return np.array([0.0]), 0.0, True, False, {}


gymnasium.register("Normalised-v0", normalised)
gymnasium.register("Unseeded-v0", Unseeded, max_episode_steps=5)


@pytest.mark.parametrize(
    ("env", "why"),
    [("Normalised-v0", "NormalizeObservation normalises"), ("Unseeded-v0", "starts do not follow the seed")],
)
def test_an_environment_whose_episodes_cannot_be_played_again_is_refused_before_training(tmp_path, env, why):
    with pytest.raises(UserError, match=f"run.traces: the episodes of '{env}' cannot be played again.*{why}"):
        train(small(tmp_path / "a", env=env, traces=True))


def test_other_versions_are_told(file, monkeypatch, capsys):
    monkeypatch.setattr(replay, "versions", lambda: traces.versions() | {"mujoco": "0.1"})
    assert verify(file) == 0
    then = traces.versions()["mujoco"]
    assert f"another version plays it again: mujoco {then} then, 0.1 here" in capsys.readouterr().out


def test_a_release_file_takes_the_last_evaluations_and_lists_what_it_leaves_out(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["traces", str(run), "--out", str(tmp_path / "r.npz"), "--last", "2"])
    assert [x.about["total"] for x in traces.read(tmp_path / "r.npz")] == [70, 80]
    said = traces.left_out(tmp_path / "r.npz")
    assert len(said) == 4
    assert all("not among the last 2 evaluations" in x for x in said)
    size = max(len(x) for x in kept(run).values())
    traces.pack(tmp_path / "s.npz", [run], 2, 1.2 * size / 1e6)
    assert [x.about["total"] for x in traces.read(tmp_path / "s.npz")] == [80]
    assert "the file may have" in traces.left_out(tmp_path / "s.npz")[0]
    with pytest.raises(UserError, match="not one evaluation fits"):
        traces.pack(tmp_path / "s.npz", [run], 2, 1e-6)
    capsys.readouterr()
    assert verify(tmp_path / "r.npz") == 0
    assert "left out: " in capsys.readouterr().out


def test_an_evaluation_by_command_is_kept_and_played_again(run, tmp_path, capsys):
    for options in (["--episodes", "2", "--seed", "0"], ["--episodes", "1"]):
        with pytest.raises(SystemExit) as done:
            main(["eval", str(run), *options, "--traces", str(tmp_path / "e.npz")])
        assert not done.value.code
        assert verify(tmp_path / "e.npz") == 0
        if "--seed" in options:  # the run's own starts
            (mine,), (theirs,) = traces.read(tmp_path / "e.npz"), traces.read(sorted(
                (run / "traces").iterdir()
            )[-1])  # fmt: skip
            assert mine.about == theirs.about
            assert all(map(np.array_equal, mine.played, theirs.played))


def test_files_and_folders_without_traces_are_told_in_one_line(run, file, tmp_path, capsys):
    (tmp_path / "text.npz").write_text("no archive")
    file.write_bytes(file.read_bytes()[:-300])
    for path in (tmp_path / "text.npz", file, tmp_path / "absent.npz", tmp_path):
        assert verify(path) == 2
        (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("mbo2o: ")]
        assert str(path) in line


@pytest.mark.skipif(not SAMPLE.is_file(), reason="the sample does not ship here")
def test_the_sample_that_ships_is_played_again(capsys):
    (made_with,) = {json.dumps(x.about["made_with"]) for x in traces.read(SAMPLE)}
    then, here = json.loads(made_with), traces.versions()
    other = [f"{x} {then[x]}, not {here.get(x)}" for x in ("mujoco", "gymnasium") if then[x] != here.get(x)]
    if other:
        pytest.skip(f"the sample was recorded with {', '.join(other)}")
    assert verify(SAMPLE) == 0
    assert SAMPLE.stat().st_size <= 1e6
