"""Need 23: a predictable `predict`: rank in = rank out, arrays in = arrays out, always inside the bounds.

`action, state = policy.predict(obs, state=None, episode_start=None, deterministic=True)`. It works unchanged
in `stable_baselines3.common.evaluation.evaluate_policy`, and with shapes (d,), (1, d), (n, d).
"""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch
from tiny import tiny

import mbo2o
from mbo2o.training import train

COLD = """
import sys, time
import torch, safetensors.torch  # what any user of a policy has loaded
start = time.process_time()
import mbo2o
policy = mbo2o.load(sys.argv[1])
policy.predict([1.0, 0.0, 0.0])
seconds = time.process_time() - start
assert seconds < 2, seconds  # measured: 0.4 s on an idle core
print([x for x in ("mujoco", "hydra", "matplotlib", "gymnasium", "minari", "h5py") if x in sys.modules])
"""


@pytest.fixture(scope="module")
def run(pendulum, tmp_path_factory):
    directory = tmp_path_factory.mktemp("need23") / "run"
    cfg = tiny("finetune", pendulum, directory)
    train(cfg)
    return directory


@pytest.mark.parametrize("shape", [(3,), (1, 3), (5, 3)])
@pytest.mark.parametrize("deterministic", [True, False])
def test_the_rank_in_is_the_rank_out(run, shape, deterministic):
    policy = mbo2o.load(run)
    obs = 100 * np.random.default_rng(0).normal(size=shape)
    act, state = policy.predict(obs, state=None, episode_start=np.ones(1, bool), deterministic=deterministic)
    assert isinstance(act, np.ndarray)
    assert (act.shape, act.dtype, state) == ((*shape[:-1], 1), np.float32, None)
    assert gymnasium.make("Pendulum-v1").action_space.contains(act.reshape(-1, 1)[0])
    of_tensor, _ = policy.predict(torch.from_numpy(obs))
    assert isinstance(of_tensor, torch.Tensor)
    assert of_tensor.shape == act.shape


def test_the_same_observation_gets_the_same_action_until_it_explores(run):
    policy, obs = mbo2o.load(run), [1.0, 0.0, 0.0]
    assert policy.predict(obs)[0] == policy.predict(obs)[0]
    assert policy.predict(obs, deterministic=False)[0] != policy.predict(obs, deterministic=False)[0]


def test_stable_baselines_evaluates_it(run):
    evaluation = pytest.importorskip("stable_baselines3.common.evaluation")
    monitor = pytest.importorskip("stable_baselines3.common.monitor")
    env = monitor.Monitor(gymnasium.make("Pendulum-v1"))
    returns, lengths = evaluation.evaluate_policy(
        mbo2o.load(run), env, n_eval_episodes=2, return_episode_rewards=True
    )
    assert lengths == [200, 200]
    assert all(-2000 < x < 0 for x in returns)


def test_it_loads_at_once_and_without_simulator(run):
    done = subprocess.run([sys.executable, "-c", COLD, str(run)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
