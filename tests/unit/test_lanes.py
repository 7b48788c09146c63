"""Environments in step against environments stepped by hand; what a restart brings back."""

import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils import seeding

from mbo2o.envs.lanes import Lane, Lanes, make_env
from mbo2o.run.evaluate import Evaluator
from mbo2o.types import UserError

HOPPER, CHEETAH, PENDULUM, POLE = "Hopper-v5", "HalfCheetah-v5", "Pendulum-v1", "InvertedPendulum-v5"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.getbasetemp())  # MuJoCo writes its log into the working directory
    torch.manual_seed(0)


def by_hand(env_id: str, seed: int):
    """The environment itself, seeded once; resets draw from its generator."""
    env = gymnasium.make(env_id, disable_env_checker=True)
    env.unwrapped.np_random, _ = seeding.np_random(seed)
    return env


@pytest.mark.parametrize(("env_id", "steps"), [(HOPPER, 120), (POLE, 60), (PENDULUM, 410)])
@pytest.mark.parametrize("seeds", [(), (3,)])
def test_lanes_equal_environments_stepped_by_hand(env_id, steps, seeds):
    """Episodes end by falling (hopper, pole) and by the clock (pendulum)."""
    lanes = Lanes(env_id, seeds, seed=11)
    envs = [by_hand(env_id, 11 + k) for k in range(3 if seeds else 1)]
    half = envs[0].action_space.high
    obs = [env.reset()[0] for env in envs]
    returns, lengths, ends = np.zeros(len(envs)), np.zeros(len(envs), int), {"terminated": 0, "truncated": 0}
    for _ in range(steps):
        act = torch.rand(*seeds, 1, lanes.act_dim) * 2 - 1
        assert lanes.obs().shape == (*seeds, 1, lanes.obs_dim)
        batch, truncated, ended = lanes.step(act)
        assert batch.obs.shape == batch.next_obs.shape == (*seeds, 1, lanes.obs_dim)
        assert batch.rew.shape == batch.done.shape == truncated.shape == (*seeds, 1)
        assert torch.equal(batch.act, act)
        expected = []
        for k, env in enumerate(envs):
            at = (k, 0) if seeds else (0,)
            next_obs, rew, term, trunc, _ = env.step(half * act[at].numpy())
            assert np.array_equal(batch.obs[at].numpy(), obs[k].astype(np.float32))
            assert np.array_equal(batch.next_obs[at].numpy(), next_obs.astype(np.float32))
            assert batch.rew[at].item() == np.float32(rew)
            assert batch.done[at].item() == term
            assert truncated[at].item() == (trunc and not term)
            returns[k] += rew
            lengths[k] += 1
            ends["terminated"] += term
            ends["truncated"] += trunc
            obs[k] = next_obs
            if term or trunc:
                expected.append((k, pytest.approx(returns[k]), lengths[k]))
                obs[k], returns[k], lengths[k] = env.reset()[0], 0, 0
                assert not np.array_equal(batch.next_obs[at].numpy(), obs[k].astype(np.float32))
        assert ended == expected
    kind = "truncated" if env_id == PENDULUM else "terminated"
    assert ends[kind] >= 2


def test_lanes_differ_and_repeat():
    first, again, other = Lanes(HOPPER, (2,), 5), Lanes(HOPPER, (2,), 5), Lanes(HOPPER, (2,), 6)
    assert torch.equal(first.obs(), again.obs())
    assert not torch.equal(first.obs()[0], first.obs()[1])
    assert torch.equal(first.obs()[1], other.obs()[0])  # lane k is seeded seed + k


def test_actions_are_scaled_to_the_box():
    lanes, env = Lanes(PENDULUM, (), 0), by_hand(PENDULUM, 0)
    env.reset()
    for act, torque in ((-1.0, -2.0), (1.0, 2.0), (0.0, 0.0), (0.5, 1.0)):
        batch, _, _ = lanes.step(torch.tensor([[act]]))
        env.step(np.array([torque], np.float32))
        assert torch.equal(batch.next_obs[0], torch.from_numpy(env.unwrapped._get_obs()))
        assert batch.act.item() == act  # the stored action stays in [-1, 1]


class Skewed(gymnasium.Env):
    """Its action box is not centred; it observes the action that it receives."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(np.array([0.0, -3.0], np.float32), np.array([1.0, 5.0], np.float32))

    def reset(self, *, seed=None, options=None):
        return self.np_random.random(2), {}

    def step(self, act):
        return np.asarray(act, np.float64), 0.0, False, False, {}


@pytest.fixture
def registered():
    made = []

    def register(name, **kwargs):
        gymnasium.register(name, **kwargs)
        made.append(name)
        return name

    yield register
    for name in made:
        gymnasium.registry.pop(name)


def test_actions_are_scaled_to_a_box_that_is_not_centred(registered):
    lanes = Lanes(registered("Skewed-v0", entry_point=Skewed), (), 0)
    for act, expected in (([-1, -1], [0, -3]), ([1, 1], [1, 5]), ([0, 0], [0.5, 1])):
        assert lanes.step(torch.tensor([act], dtype=torch.float32))[0].next_obs[0].tolist() == expected


def play(lanes: Lanes, acts) -> list:
    out = []
    for act in acts:
        batch, truncated, ended = lanes.step(act)
        out.append((batch.obs, batch.next_obs, batch.rew, batch.done, truncated, ended))
    return out


def equal(a: list, b: list) -> bool:
    return all(
        all(torch.equal(p, q) for p, q in zip(x[:-1], y[:-1], strict=True)) and x[-1] == y[-1]
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize(
    ("env_id", "before", "after"), [(HOPPER, 33, 60), (CHEETAH, 40, 30), (PENDULUM, 130, 150), (POLE, 23, 40)]
)
def test_an_episode_in_flight_continues_bit_for_bit(env_id, before, after):
    lanes = Lanes(env_id, (2,), 3)
    acts = torch.rand(before + after, 2, 1, lanes.act_dim) * 2 - 1
    play(lanes, acts[:before])
    tensors, rngs = lanes.state()
    tensors = {name: x.clone() for name, x in tensors.items()}
    uninterrupted = play(lanes, acts[before:])
    resumed = Lanes(env_id, (2,), 99)
    play(resumed, acts[:7])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed.load(tensors, rngs)
    assert equal(uninterrupted, play(resumed, acts[before:]))
    if env_id != CHEETAH:  # in the others the next episode began, too
        assert any(step[-1] for step in uninterrupted)


def test_cheetah_continues_past_its_next_reset():
    lanes = Lanes(CHEETAH, (), 3)
    acts = torch.rand(1010, 1, lanes.act_dim) * 2 - 1
    play(lanes, acts[:990])
    state = lanes.state()
    uninterrupted = play(lanes, acts[990:])
    resumed = Lanes(CHEETAH, (), 99)
    resumed.load(*state)
    assert equal(uninterrupted, play(resumed, acts[990:]))
    assert uninterrupted[9][-1]
    assert uninterrupted[9][3] == 0  # a time limit is no termination
    assert uninterrupted[9][4] == 1


def test_actions_are_copied_before_they_are_kept_for_a_replay():
    lanes, act = Lanes(HOPPER, (), 3), torch.zeros(1, 3)
    for _ in range(5):
        act.uniform_(-1, 1)
        lanes.step(act)
    resumed = Lanes(HOPPER, (), 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed.load(*lanes.state())
    assert torch.equal(resumed.obs(), lanes.obs())


def test_double_precision_actions_replay_too():
    lane, rng = Lane(HOPPER, 3), np.random.default_rng(0)
    for _ in range(5):
        lane.step(rng.uniform(-1, 1, 3))
    resumed = Lane(HOPPER, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed.load(*lane.state())
    assert np.array_equal(resumed.obs, lane.obs)


def test_an_episode_that_does_not_replay_is_replaced_by_a_new_one():
    lanes = Lanes(HOPPER, (), 3)
    play(lanes, torch.rand(10, 1, 3))
    tensors, rngs = lanes.state()
    tensors["0.obs"][0] += 1e-6
    resumed = Lanes(HOPPER, (), 4)
    with pytest.warns(UserWarning, match="a new one is started"):
        resumed.load(tensors, rngs)
    assert len(resumed.state()[0]["0.actions"]) == 0
    assert not torch.equal(resumed.obs(), lanes.obs())
    resumed.step(torch.zeros(1, 3))


class Noisy(gymnasium.Env):
    """Randomness inside an episode, from a generator of another kind."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        return self.np_random.random(1), {}

    def step(self, act):
        return self.np_random.normal(size=1), 0.0, False, False, {}


def test_noise_inside_an_episode_continues(registered):
    name = registered("Noisy-v0", entry_point=Noisy, max_episode_steps=9)
    lanes, acts = Lanes(name, (2,), 0), torch.zeros(20, 2, 1, 1)
    for lane in lanes._lanes:
        lane.env.unwrapped.np_random = np.random.Generator(np.random.MT19937(1))  # its state holds an array
    play(lanes, acts[:13])
    state = lanes.state()
    uninterrupted = play(lanes, acts)
    resumed = Lanes(name, (2,), 5)
    for lane in resumed._lanes:
        lane.env.unwrapped.np_random = np.random.Generator(np.random.MT19937(2))
    resumed.load(*state)
    assert equal(uninterrupted, play(resumed, acts))


@pytest.mark.parametrize(
    "env_id",
    [
        "Hoper-v5",
        "Hopper-v99",
        "nonsense",
        "a b c",
        "no_such_module:Hopper-v5",
        "CartPole-v1",
        "Hopper-v2",
        "",
    ],
)
def test_an_environment_that_cannot_be_made_is_one_line(env_id):
    with pytest.raises(UserError) as e:
        make_env(env_id)
    assert "\n" not in str(e.value)
    assert repr(env_id) in str(e.value)


# ---- evaluation


def policy(obs):
    return torch.tanh(3 * obs[..., :1])


def no_value(obs, act):
    return torch.zeros(obs.shape[:-1])


def test_evaluation_is_deterministic_and_leaves_the_global_generator_alone():
    evaluator = Evaluator(PENDULUM, (2,), 3, seed=0, gamma=0.99)
    rng, np_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = evaluator(policy, no_value), evaluator(policy, no_value)
    assert torch.equal(rng, torch.get_rng_state())
    assert np.array_equal(np_state, np.random.get_state()[1])  # noqa: NPY002
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["returns"].shape == (2, 3)
    assert all(x.shape == (2,) for name, x in first.items() if name != "returns")
    assert first["return"][0] != first["return"][1]


def test_falling_episodes_are_deterministic_too():
    evaluator = Evaluator(HOPPER, (), 4, seed=0, gamma=0.99)
    act = torch.rand(4, 3) * 2 - 1
    first = evaluator(lambda obs: act, no_value)
    second = evaluator(lambda obs: act, no_value)
    assert all(torch.equal(x, second[name]) for name, x in first.items())
    assert first["returns"].shape == (4,)
    assert all(x.shape == () for name, x in first.items() if name != "returns")
    assert 5 < first["length"] < 200


@pytest.mark.parametrize(
    ("env_id", "gamma", "tail"),
    [(PENDULUM, 0.9, 30), (PENDULUM, 0.98, 150), (PENDULUM, 0.999, 0), (POLE, 0.9, 0)],
)
def test_evaluation_equals_a_loop(env_id, gamma, tail):
    """Three episodes for two seeds; what a time limit hides is left out of `q` and `mc_return` alike."""

    def value(obs, act):
        return obs[..., 0] + 10 * act[..., 0]

    seen = []

    def watched(obs):
        assert obs.shape[:2] == (2, 3)
        seen.append(obs.clone())
        return policy(obs)

    m = Evaluator(env_id, (2,), 3, seed=7, gamma=gamma)(watched, value)
    for k in range(2):
        returns, lengths, qs, mcs = [], [], [], []
        for e in range(3):
            env = by_hand(env_id, 10_000_019 + 7 + 1000 * k + e)
            obs, rews, values, over = env.reset()[0].astype(np.float32), [], [], False
            assert np.array_equal(seen[0][k, e].numpy(), obs)
            while not over:
                act = policy(torch.from_numpy(obs))
                values.append(value(torch.from_numpy(obs), act).item())
                obs, rew, term, trunc, _ = env.step(env.action_space.high * act.numpy())
                obs, over = obs.astype(np.float32), term or trunc
                rews.append(float(rew))
            n = len(rews) - tail
            mc = [sum(gamma**j * r for j, r in enumerate(rews[t:])) for t in range(n)]
            returns.append(sum(rews))
            lengths.append(len(rews))
            qs.append(np.mean(values[:n]))
            mcs.append(np.mean(mc))
        assert m["return"][k].item() == pytest.approx(np.mean(returns), rel=1e-5)
        assert m["return_std"][k].item() == pytest.approx(np.std(returns), rel=1e-3, abs=1e-4)
        assert m["length"][k].item() == pytest.approx(np.mean(lengths))
        assert m["q"][k].item() == pytest.approx(np.mean(qs), rel=1e-4, abs=1e-5)
        assert m["mc_return"][k].item() == pytest.approx(np.mean(mcs), rel=1e-4)


def test_gamma_of_one():
    m = Evaluator(POLE, (), 1, seed=0, gamma=1.0)(policy, no_value)
    total, n = m["return"].item(), m["length"].item()
    assert n > 5
    assert m["mc_return"].item() == pytest.approx(
        total * (total + 1) / 2 / n
    )  # reward 1 on each step but a last one
