"""Need 3: own termination and reward function (and a learned fallback) for model rollouts.

The rules by name agree with the environments, a state that explodes on either side ends where the
environment bounds it, an unknown environment names the choices, and a user's functions are used.
unit/test_termination.py has more steps, every threshold, and the learned rule.
Not so: Ant and Humanoid bound their height alone, so that a far entry of another dimension ends no episode
in the environment, nor by the rule.
"""

import sys

import gymnasium
import numpy as np
import pytest
import torch

import mbo2o
from mbo2o.dynamics.termination import resolve
from mbo2o.types import UserError

TASKS = ("Hopper-v5", "Walker2d-v5", "HalfCheetah-v5", "Ant-v5", "Humanoid-v5")
SMALL = {
    "agent": {"actor": {"hidden": [8]}, "critic": {"hidden": [8]}},
    "dynamics": {"members": 2, "elites": 1, "net": {"hidden": [8]}},
    "fit": {"min_updates": 10, "max_updates": 10},
    **{"offline_steps": 5, "rollouts": 8, "rollout_every": 5},
}


@pytest.mark.parametrize("task", TASKS)
def test_a_rule_by_name_agrees_with_its_environment(task):
    env, rows = gymnasium.make(task), []
    env.action_space.seed(0)
    obs, _ = env.reset(seed=0)
    for _ in range(200):
        act = env.action_space.sample()
        after, _, terminated, truncated, _ = env.step(act)
        rows.append((obs, act, after, terminated))
        obs = env.reset()[0] if terminated or truncated else after
    env.close()
    obs, act, after, ended = (
        torch.as_tensor(np.array(x), dtype=torch.float32) for x in zip(*rows, strict=True)
    )
    assert torch.equal(resolve("auto", task)(obs, act, after), ended > 0)


@pytest.mark.parametrize("task", TASKS[:3])
@pytest.mark.parametrize("far", [-1e6, 1e6])
def test_a_state_that_explodes_ends_on_either_side(task, far):
    env = gymnasium.make(task)
    obs = torch.as_tensor(env.reset(seed=0)[0], dtype=torch.float32).repeat(2, 1)
    env.close()
    after = obs.clone()
    after[1, -1] = far
    assert resolve("auto", task)(obs, torch.zeros(2, 3), after).tolist() == [False, True]


def test_an_unknown_environment_names_the_choices():
    with pytest.raises(UserError, match=r"choose one of none, .*, or learned, or your own as package"):
        resolve("auto", "Unknown-v0")


def test_functions_of_the_user_s_own_are_used(pendulum, tmp_path, monkeypatch):
    (tmp_path / "mytask.py").write_text(
        "import torch\nseen = []\n"
        "def ends(obs, act, next_obs):\n    seen.append(obs.shape)\n    return next_obs[..., 0] > 2\n"
        "def pay(obs, act, next_obs):\n    return torch.full(obs.shape[:-1], 7.0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    recipe = SMALL | {"termination": "mytask:ends", "reward": "mytask:pay", "coef": 0}
    run = mbo2o.train("mopo", str(pendulum), recipe=recipe, dir=tmp_path / "run", quiet=True, report=False)
    assert sys.modules["mytask"].seen
    assert run.metrics("uncertainty")["reward/imagined"].tolist() == [7.0]
    again = {"termination": sys.modules["mytask"].ends}
    assert mbo2o.config("mopo", recipe=again).recipe.termination is sys.modules["mytask"].ends


def test_a_function_that_no_other_process_finds_is_refused_at_the_start(pendulum, tmp_path):
    recipe = SMALL | {"termination": lambda obs, act, after: after[..., 0] > 2}
    with pytest.raises(UserError, match="cannot be found again by `mbo2o eval`; put it into a module"):
        mbo2o.train("mopo", str(pendulum), recipe=recipe, dir=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "config.yaml").exists()
