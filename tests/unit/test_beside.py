"""Evaluations that other processes play leave a run as it would be without them, whatever happens."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from nets import make as make_agent
from survival import assert_same, ended, eventually, fork, outcome, small

from mbo2o.envs import worker
from mbo2o.registry import AGENTS
from mbo2o.run.beside import Beside, alone
from mbo2o.run.evaluate import Evaluator
from mbo2o.training import train
from mbo2o.types import RewardView, UserError

EVERY = {"eval_every": 7, "log_every": 5, "eval_episodes": 2}


def pool_of(n, env="InvertedPendulum-v5"):
    return Beside(n, None, env, (2,), 1, 0, 0.9)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "here"
    train(small(directory, **EVERY))
    return outcome(directory)


def test_a_run_with_processes_for_evaluations_leaves_the_same_bits_and_log(tmp_path, undisturbed):
    train(small(tmp_path / "a", eval_workers=2, **EVERY))
    assert_same(outcome(tmp_path / "a"), undisturbed)


def test_a_killed_run_with_processes_goes_on_to_the_same_bits(tmp_path, undisturbed):
    cfg = small(tmp_path / "a", eval_workers=1, **EVERY)
    pid = fork(lambda: train(cfg))
    eventually(lambda: len([*(tmp_path / "a" / "checkpoints").glob("[0-9]*")]) > 1, 60)
    os.kill(pid, signal.SIGKILL)
    ended(pid)
    train(cfg)
    assert_same(outcome(tmp_path / "a"), undisturbed)


@pytest.mark.parametrize("fate", ["dies", "cannot"])
def test_an_evaluation_that_a_process_does_not_answer_is_played_by_the_run(
    tmp_path, undisturbed, monkeypatch, capsys, fate
):
    code = "import sys; sys.exit()" if fate == "dies" else worker.START.replace("serve()", "serve()  #")
    monkeypatch.setattr(worker, "START", code)
    if fate == "cannot":
        monkeypatch.setattr(worker.Worker, "answer", lambda self: setattr(self, "busy", False))
        monkeypatch.setattr(worker.Worker, "answered", lambda self: True)
    train(small(tmp_path / "a", eval_workers=1, **EVERY))
    assert_same(outcome(tmp_path / "a"), undisturbed)
    assert "the run plays it itself" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_the_copy_of_an_agent_acts_as_it_did_and_no_longer_changes(name):
    agent = make_agent(name, (2,))
    obs = torch.randn(2, 5, agent.spec.obs_dim)
    before, twin = agent.act(obs), alone(agent)
    with torch.no_grad():
        for p in agent.parameters():
            p.add_(1)
    state = torch.get_rng_state()
    assert torch.equal(twin.act(obs), before)
    assert torch.equal(torch.get_rng_state(), state)  # a run's draws do not depend on who plays


def test_a_process_that_is_at_work_is_not_asked_again_and_ends_with_its_run():
    agent = make_agent("sac", (2,), obs_dim=4, act_dim=1)
    pool = pool_of(1)
    first = pool.ask(agent, RewardView())
    assert pool.ask(agent, RewardView()) is None
    eventually(first.worker.answered, 60)
    expected = Evaluator("InvertedPendulum-v5", (2,), 1, 0, 0.9)(agent.act, agent.value)
    found, _ = first.result()
    assert {k: v.tolist() for k, v in found.items()} == {k: v.tolist() for k, v in expected.items()}
    assert pool.ask(agent, RewardView()) is not None
    process = pool._workers[0]._process
    pool.close()
    assert process.poll() is not None


def test_an_environment_that_the_process_cannot_make_gives_no_answer():
    pool = pool_of(1, "No-Such-Task-v0")
    agent = make_agent("sac", (2,), obs_dim=4, act_dim=1)
    assert pool.ask(agent, RewardView()).result() is None
    pool.close()


def test_an_agent_of_a_class_that_no_other_process_knows_is_evaluated_by_the_run(capsys):
    class Own(type(make_agent("sac", (2,)))):
        pass

    agent = make_agent("sac", (2,), obs_dim=4, act_dim=1)
    agent.__class__ = Own
    pool = pool_of(1)
    assert pool.ask(agent, RewardView()) is None
    pool.close()
    assert "cannot import this agent;" in capsys.readouterr().err


def test_the_number_of_processes_is_no_part_of_what_a_run_is(tmp_path, undisturbed):
    cfg = small(tmp_path / "a", steps=30, **EVERY)
    train(cfg)
    train(replace(cfg, run=replace(cfg.run, eval_workers=1)))
    with pytest.raises(UserError, match=r"run\.eval_workers=-1 must not be negative"):
        replace(cfg.run, eval_workers=-1)


def test_the_process_of_a_script_without_a_guard_does_not_run_the_script(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys
sys.path[:0] = [{os.getcwd()!r}, {os.path.dirname(__file__)!r}]
print('once')
from test_beside import *
pool = pool_of(1)
agent = make_agent('sac', (2,), obs_dim=4, act_dim=1)
print(sorted(pool.ask(agent, RewardView()).result()[0])[0])
pool.close()
""")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["once", "length"]
