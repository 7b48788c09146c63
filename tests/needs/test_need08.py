"""Need 8: self-contained, safe checkpoints, with normaliser, action bounds and config inside, and no pickle.

Load in a process where `pickle.load` and `torch.load` raise; the evaluation return of the loaded policy
equals the in-memory policy's exactly on 5 episodes; a file of the version before this one still loads; and
what was trained is worth something without its dataset.
"""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from tiny import log_of, tiny

import mbo2o
from mbo2o.recipes import finetune
from mbo2o.training import train

OLD = Path(__file__).parents[1] / "golden" / "v1"


@pytest.fixture(scope="module")
def run(pendulum, tmp_path_factory):
    """A run of one seed with normalised observations, whose dataset is gone by now, and its last agent."""
    folder = tmp_path_factory.mktemp("need8")
    data = folder / "mine.hdf5"
    data.write_bytes(pendulum.read_bytes())
    cfg = tiny("finetune", data, folder / "run")
    cfg.recipe.offline = replace(cfg.recipe.offline, normalize=True)
    cfg.run.eval_episodes = 5
    train(cfg)
    data.unlink()
    return folder / "run"


@pytest.fixture
def safe(monkeypatch):
    """Nothing may be unpickled."""

    def refuse(*args, **more):
        raise AssertionError("a file was unpickled")

    for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(owner, name, refuse)


def played(policy, starts):
    """The mean return of whole episodes, played side by side as an evaluation plays them."""
    envs = [gymnasium.make("Pendulum-v1") for _ in starts]
    obs = [env.reset(seed=start)[0] for env, start in zip(envs, starts, strict=True)]
    returns, over = np.zeros(len(envs)), False
    while not over:
        acts, _ = policy.predict(np.stack(obs))
        for i, (env, act) in enumerate(zip(envs, acts, strict=True)):
            obs[i], reward, _, over, _ = env.step(act)
            returns[i] += float(reward)
    return float(np.float32(returns.mean()))


def test_the_loaded_policy_earns_exactly_what_the_trained_one_earned(run, safe):
    policy = mbo2o.load(run)
    last = [x for x in log_of(run) if x["kind"] == "eval"][-1]
    assert played(policy, [10_000_019 + k for k in range(5)]) == last["return"][0]
    assert policy.facts["normaliser"] is not None
    assert policy.facts["action"]["low"] == [-2.0]
    assert policy.facts["env_id"] == "Pendulum-v1"


def test_a_saved_policy_is_the_same_one(run, safe, tmp_path):
    policy = mbo2o.load(run)
    again = mbo2o.load(policy.save(tmp_path / "mine"))
    obs = np.random.default_rng(0).normal(size=(7, 3))
    np.testing.assert_array_equal(again.predict(obs)[0], policy.predict(obs)[0])
    assert sorted(x.name for x in (tmp_path / "mine").iterdir()) == ["io.json", "policy.safetensors"]
    assert json.loads((tmp_path / "mine" / "io.json").read_text())["action"]["high"] == [2.0]


def test_a_run_is_restored_and_evaluated_without_its_dataset(run, safe):
    found, recipe = mbo2o.restore(run)
    last = [x for x in log_of(run) if x["kind"] == "eval"][-1]
    assert found.evaluate()["return"].tolist() == last["return"]
    assert isinstance(recipe, finetune.Finetune)
    with pytest.raises(mbo2o.UserError, match=r"mine\.hdf5: no such file.*rows of it are asked for now"):
        found.dataset.sample(1)


def test_a_run_of_an_older_version_still_loads(safe):
    with pytest.warns(UserWarning, match="an older version stored no bounds of actions; asking Pendulum-v1"):
        policy = mbo2o.load(OLD)
    act, _ = policy.predict([1.0, 0.0, 0.0])
    assert act.shape == (1,)
    assert abs(act[0]) <= 2
    agent = mbo2o.load_agent(OLD)
    unit = agent.act(torch.tensor([1.0, 0.0, 0.0]).expand(*agent.spec.seeds, 1, 3))
    np.testing.assert_array_equal(act, 2 * unit[0, 0].numpy())
