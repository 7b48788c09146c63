"""Need 22: Gymnasium API correctness (5-tuple, vector autoreset modes, final_obs).

A counter environment, single, in a SyncVectorEnv and in an AsyncVectorEnv, with every way of resetting: the
stored transitions equal the list that is computed by hand.
"""

import functools

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from mbo2o.collect.vector import collect
from mbo2o.types import UserError

LENGTHS = (3, 2)
"""Steps of episodes, in turn: the first ends the task, the second is cut by a time limit."""
STEPS = 7


class Counter(gymnasium.Env):
    """Shows (lane, episode, step); every other episode terminates, the others are truncated."""

    observation_space = gymnasium.spaces.Box(-100, 100, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-2, 2, (1,), np.float32)

    def __init__(self, lane=0):
        self.lane, self.episode, self.t = lane, -1, 0

    def _obs(self):
        return np.array([self.lane, self.episode, self.t], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self._obs(), {}

    def step(self, action):
        self.t += 1
        over = self.t == LENGTHS[self.episode % 2]
        terminated = over and self.episode % 2 == 0
        return self._obs(), float(10 * self.episode + self.t), terminated, over and not terminated, {}


def by_hand(lanes):
    """(obs, reward, next_obs, terminated, truncated) of each row, lane after lane."""
    rows = []
    for lane in range(lanes):
        episode, t = 0, 0
        for i in range(STEPS):
            over = t + 1 == LENGTHS[episode % 2]
            terminated = over and episode % 2 == 0
            cut = (over or i == STEPS - 1) and not terminated
            rows.append(((lane, episode, t), 10 * episode + t + 1, (lane, episode, t + 1), terminated, cut))
            episode, t = (episode + 1, 0) if over else (episode, t + 1)
    return rows


def stored(dataset):
    columns = (dataset.obs, dataset.rew, dataset.next_obs, dataset.terminated, dataset.truncated)
    rows = zip(*(x.tolist() for x in columns), strict=True)
    return [(tuple(obs), rew, tuple(after), done, cut) for obs, rew, after, done, cut in rows]


def test_a_single_environment():
    assert stored(collect(Counter(), None, STEPS, seed=0)) == by_hand(1)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_vector_environments_with_every_way_of_resetting(kind, mode):
    envs = kind([functools.partial(Counter, k) for k in range(2)], autoreset_mode=mode)
    try:
        found = collect(envs, lambda obs: np.full((len(obs), 1), 1.0, np.float32), STEPS)
    finally:
        envs.close()
    assert stored(found) == by_hand(2)
    assert found.act.unique().tolist() == [0.5]  # in [-1, 1]


def test_what_is_no_box_is_refused():
    env = Counter()
    env.action_space = gymnasium.spaces.Discrete(2)
    with pytest.raises(UserError, match="actions are Discrete, expected a Box"):
        collect(env, None, 3)
