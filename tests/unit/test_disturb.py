"""Disturbed tasks: what noise does to whom, how seldom rewards are paid, and that episodes still replay."""

import numpy as np
import pytest
import torch

from mbo2o.cli.main import compose_config
from mbo2o.envs.disturb import DisturbConfig
from mbo2o.envs.lanes import Lane
from mbo2o.run.evaluate import Evaluator
from mbo2o.types import UserError

HOPPER, CHEETAH, PENDULUM = "Hopper-v5", "HalfCheetah-v5", "Pendulum-v1"


def steps(lane, n, seed=0):
    acts = np.random.default_rng(seed).uniform(-1, 1, (n, lane.act_dim))
    return [lane.step(a) for a in acts]


def test_nothing_disturbed_is_the_task_itself():
    plain, told = Lane(CHEETAH, 1), Lane(CHEETAH, 1, DisturbConfig())
    assert type(plain.env) is type(told.env)
    assert [x[0] for x in steps(plain, 5)] == [x[0] for x in steps(told, 5)]


def test_reward_noise_changes_rewards_only():
    plain, noisy = Lane(CHEETAH, 1), Lane(CHEETAH, 1, DisturbConfig(reward_noise=0.5))
    a, b = steps(plain, 400), steps(noisy, 400)
    noise = np.array([y[0] - x[0] for x, y in zip(a, b, strict=True)])
    assert all(np.array_equal(x[1], y[1]) for x, y in zip(a, b, strict=True))
    assert abs(noise.mean()) < 0.1
    assert noise.std() == pytest.approx(0.5, rel=0.15)
    assert noisy.episode_return == pytest.approx(plain.episode_return)  # what is logged is the task's own


@pytest.mark.parametrize("what", ["action_noise", "transition_noise"])
def test_evaluations_have_noise_on_actions_and_states_too(what):
    cfg = DisturbConfig(**{what: 0.05})
    plain, noisy = Lane(CHEETAH, 1), Lane(CHEETAH, 1, cfg)
    assert np.array_equal(plain.obs, noisy.obs)
    gap = np.abs(steps(plain, 1)[0][1] - steps(noisy, 1)[0][1])
    assert (gap > 0).all()
    assert cfg.world() == cfg
    policy, value = (lambda o: torch.zeros(*o.shape[:-1], 6)), (lambda o, a: torch.zeros(o.shape[:-1]))
    found = [
        Evaluator(CHEETAH, (), 1, 0, 0.99, disturb=c)(policy, value)["return"].item()
        for c in (None, cfg, cfg)
    ]
    assert found[0] != found[1] == found[2]


def test_noise_on_actions_has_its_deviation_and_stays_in_the_box():
    lane, seen = Lane(PENDULUM, 0, DisturbConfig(action_noise=0.3)), []
    inner = lane.env.env
    step = inner.step
    inner.step = lambda a: (seen.append(a), step(a))[1]
    for x in [0.0] * 1000 + [1.0] * 50:
        lane.step(np.array([x]))
    torque = np.array(seen).ravel()  # of [-2, 2]
    assert torque[:1000].std() == pytest.approx(0.6, rel=0.1)
    assert torque.max() == 2


def test_noise_on_states_has_its_deviation():
    cfg = DisturbConfig(transition_noise=0.02)
    gaps = []
    for seed in range(40):
        plain, noisy = Lane(CHEETAH, seed), Lane(CHEETAH, seed, cfg)
        gaps.append(steps(plain, 1)[0][1] - steps(noisy, 1)[0][1])
    assert np.array(gaps).std() == pytest.approx(0.02, rel=0.1)


def test_sparse_rewards_add_up_and_the_rest_is_paid_at_the_end():
    plain, seldom = Lane(HOPPER, 4), Lane(HOPPER, 4, DisturbConfig(reward_every=5))
    paid, own = [], []
    for a in np.random.default_rng(0).uniform(-1, 1, (200, 3)):
        own.append(plain.step(a)[0])
        rew, _, terminated, truncated = seldom.step(a)
        paid.append(rew)
        if terminated or truncated:
            break
    assert terminated
    assert len(own) % 5  # the last ones are paid because it ends
    assert [i for i, x in enumerate(paid) if x] == [*range(4, len(own), 5), len(own) - 1]
    assert paid[4] == pytest.approx(sum(own[:5]))
    assert sum(paid) == pytest.approx(sum(own)) == seldom.episode_return


def test_reward_above_a_speed():
    lane = Lane(CHEETAH, 0, DisturbConfig(reward_above=0.0))
    found = [x[0] for x in steps(lane, 100)]
    assert set(found) == {0.0, 1.0}


def test_a_disturbed_episode_replays():
    cfg = DisturbConfig(action_noise=0.1, transition_noise=0.01, reward_noise=1.0, reward_every=7)
    lane, other = Lane(HOPPER, 4, cfg), Lane(HOPPER, 99, cfg)
    steps(lane, 12)
    tensors, rng = lane.state()
    other.load(tensors, rng)
    assert np.array_equal(lane.obs, other.obs)
    assert [x[0] for x in steps(lane, 9, 1)] == [
        x[0] for x in steps(other, 9, 1)
    ]  # rewards that were not paid yet are restored


def test_impossible_settings_are_one_line():
    with pytest.raises(UserError, match="needs a MuJoCo task, and Pendulum-v1 is not one"):
        Lane(PENDULUM, 0, DisturbConfig(transition_noise=0.1))
    with pytest.raises(UserError, match="x_velocity"):
        Lane(PENDULUM, 0, DisturbConfig(reward_above=1.0)).step(np.zeros(1))
    with pytest.raises(UserError, match="action_noise=-1"):
        compose_config(["recipe=scratch", "env=Hopper-v5", "run.disturb.action_noise=-1"])
    with pytest.raises(UserError, match="reward_every=0"):
        compose_config(["recipe=scratch", "env=Hopper-v5", "run.disturb.reward_every=0"])
