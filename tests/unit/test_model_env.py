"""The model as an environment: Gymnasium's own checks, all autoreset modes, and Stable-Baselines3."""

import importlib
import sys
import warnings

import gymnasium
import models
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from mbo2o.model.env import ModelEnv, ModelVectorEnv
from mbo2o.types import UserError


def beyond(obs, act, next_obs):
    return next_obs[..., 0] > 1.0


@pytest.fixture(scope="module")
def noisy():
    return models.linear(None, beyond, "mine", low=-2.0, high=2.0, time_limit=20)


@pytest.fixture(scope="module")
def sure():
    """No noise, one start: what happens follows from the actions alone."""
    start = torch.tensor([[0.5, -0.5]])
    return models.linear(models.linear_net(noise=models.NOISE * 0), beyond, "mine", starts=start)


def test_the_single_environment_passes_gymnasium_s_check():
    """The only warnings are about observations without bounds, as with MuJoCo's tasks."""
    model = models.linear(None, beyond, "mine", time_limit=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*infinity. This is probably too")
        check_env(model.as_env(), skip_render_check=True)


def test_it_passes_the_check_of_stable_baselines3(noisy):
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    checker.check_env(noisy.as_env(), warn=False)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_a_vector_is_as_many_single_environments(sure, mode):
    """The same episodes, ends and infos as gymnasium's own vector of the single environment gives."""
    n, horizon = 4, 6
    ours = sure.as_vector_env(n, horizon=horizon, penalty=0.5, autoreset=mode.value)
    theirs = SyncVectorEnv([lambda: sure.as_env(horizon=horizon, penalty=0.5)] * n, autoreset_mode=mode)
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"] == mode
    for name in ("observation_space", "action_space", "single_observation_space", "single_action_space"):
        assert getattr(ours, name) == getattr(theirs, name)
    first = [env.reset(seed=3) for env in (ours, theirs)]
    np.testing.assert_array_equal(first[0][0], first[1][0])
    assert first[0][1] == first[1][1] == {}
    rng, ends = np.random.default_rng(0), np.zeros(2, int)
    for _ in range(30):
        acts = rng.uniform(-1, 1, (n, 2)).astype(np.float32)
        acts[0] = 1  # this one ends soon
        found, wanted = ours.step(acts), theirs.step(acts)
        for x, y in zip(found[:4], wanted[:4], strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6)
            assert x.shape == y.shape
        same_info(found[4], wanted[4])
        ends += [found[2].sum(), found[3].sum()]
        over = found[2] | found[3]
        if mode is AutoresetMode.DISABLED and over.any():
            with pytest.raises(UserError, match="are over"):
                ours.step(acts)
            resets = [env.reset(options={"reset_mask": over.copy()}) for env in (ours, theirs)]
            np.testing.assert_allclose(resets[0][0], resets[1][0], rtol=1e-6)
    assert bool((ends > 2).all())  # both kinds of ends were met


def same_info(found, wanted):
    assert set(found) == set(wanted)
    for key, x in wanted.items():
        if isinstance(x, dict):
            same_info(found[key], x)
        elif x.dtype == object:
            for a, b in zip(found[key], x, strict=True):
                assert (a is None) == (b is None)
                if b is not None:
                    np.testing.assert_allclose(a, b, rtol=1e-6)
        else:
            np.testing.assert_allclose(found[key], x, rtol=1e-6)


def test_a_seed_repeats_everything(noisy):
    def play(seed):
        env = noisy.as_vector_env(5)
        seen = [env.reset(seed=seed)[0]]
        for _ in range(40):
            seen.append(env.step(np.full((5, 2), 0.5, np.float32))[0])
        return np.stack(seen)

    np.testing.assert_array_equal(play(1), play(1))
    assert not np.array_equal(play(1), play(2))
    starts = noisy.about.starts.numpy()
    assert all(any(np.array_equal(x, s) for s in starts) for x in play(1)[0])


def test_the_penalty_is_the_uncertainty_s_share(noisy):
    paid = []
    for penalty in (0.0, 3.0):
        env = noisy.as_vector_env(6, penalty=penalty)
        env.reset(seed=0)
        _, reward, _, _, info = env.step(np.zeros((6, 2), np.float32))
        paid.append(reward)
    np.testing.assert_allclose(paid[0] - paid[1], 3 * info["uncertainty"], rtol=1e-4)
    assert (info["uncertainty"] > 0).all()


def test_wrappers_of_gymnasium_work(noisy):
    env = RecordEpisodeStatistics(noisy.as_vector_env(3, horizon=4))
    env.reset(seed=0)
    for _ in range(4):
        *_, info = env.step(np.zeros((3, 2), np.float32))
    assert info["episode"]["l"].tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"autoreset": "never"}, "choose one of NextStep, SameStep, Disabled"),
        ({"num_envs": 0}, "num_envs=0"),
        ({"horizon": 0}, "horizon=0"),
        ({"starts": np.zeros((0, 2))}, "at least one row"),
        ({"starts": np.zeros((4, 3))}, "expected"),
    ],
)
def test_mistakes_are_one_line(noisy, more, text):
    with pytest.raises(UserError, match=text):
        noisy.as_vector_env(**{"num_envs": 2, **more})


def test_what_the_folder_lacks_is_asked_for():
    model = models.linear(starts=torch.zeros(0, 2))
    with pytest.raises(UserError, match="no time limit; give horizon="):
        model.as_env()
    with pytest.raises(UserError, match="no start states; give starts="):
        model.as_env(horizon=3)
    env = model.as_vector_env(2, starts=torch.ones(1, 2), horizon=3)
    with pytest.raises(UserError, match="lies outside"):
        env.step(np.full((2, 2), 7, np.float32))
    with pytest.raises(UserError, match="reset_mask"):
        env.reset(options={"reset_mask": [True, False]})


def test_an_episode_ends_where_trust_ends(noisy, monkeypatch):
    monkeypatch.setattr(noisy, "trusted_depth", lambda: 3, raising=False)
    env = noisy.as_env(horizon="trusted")
    env.reset(seed=0)
    assert [env.step(env.action_space.sample() * 0)[3] for _ in range(3)] == [False, False, True]


def test_the_environments_are_gymnasium_s():
    assert issubclass(ModelVectorEnv, gymnasium.vector.VectorEnv)
    assert issubclass(ModelEnv, gymnasium.Env)


# ---- Stable-Baselines3


def test_without_stable_baselines3_a_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3.common.vec_env", None)
    monkeypatch.delitem(sys.modules, "mbo2o.model.sb3", raising=False)
    with pytest.raises(UserError, match=r"pip install 'mbo2o\[sb3\]'"):
        importlib.import_module("mbo2o.model.sb3")


def test_stable_baselines3_sees_ends_and_their_last_observations(sure):
    pytest.importorskip("stable_baselines3")
    from mbo2o.model.sb3 import SB3VecEnv

    env = SB3VecEnv(sure.as_vector_env(2, horizon=3, autoreset="SameStep"))
    env.seed(0)
    start = env.reset()
    for _ in range(3):
        obs, reward, done, infos = env.step(np.full((2, 2), -0.5, np.float32))
    assert (done.tolist(), reward.shape) == ([True, True], (2,))
    np.testing.assert_array_equal(obs, start)
    r = sure.rollout(start, np.full((2, 3, 2), -0.5))
    for i, info in enumerate(infos):
        assert info["TimeLimit.truncated"]
        assert info["uncertainty"] >= 0
        np.testing.assert_allclose(info["terminal_observation"], r.obs[i, -1], rtol=1e-5)
    with pytest.raises(UserError, match="SameStep"):
        SB3VecEnv(sure.as_vector_env(2, horizon=3))


def test_sac_of_stable_baselines3_learns_in_it(noisy):
    sb3 = pytest.importorskip("stable_baselines3")
    from mbo2o.model.sb3 import SB3VecEnv

    env = SB3VecEnv(noisy.as_vector_env(4, autoreset="SameStep"))
    small = {"policy_kwargs": {"net_arch": [16]}, "learning_starts": 40, "batch_size": 16, "buffer_size": 500}
    sac = sb3.SAC("MlpPolicy", env, seed=0, device="cpu", **small).learn(160)
    assert sac.num_timesteps == 160
    assert sac._n_updates > 0
    act, _ = sac.predict(noisy.about.starts.numpy())
    assert np.isfinite(noisy.rollout(noisy.about.starts.numpy(), sac, 5).reward).all()
    assert act.shape == (2, 2)


@pytest.mark.slow
def test_sac_of_stable_baselines3_improves_in_the_model():
    """It pays to push both dimensions up; a random policy earns about 0."""
    sb3 = pytest.importorskip("stable_baselines3")
    from mbo2o.model.sb3 import SB3VecEnv

    model = models.linear(time_limit=25, reward=lambda obs, act, next_obs: next_obs.sum(-1))
    env = SB3VecEnv(model.as_vector_env(8, autoreset="SameStep"))
    sac = sb3.SAC("MlpPolicy", env, seed=0, learning_starts=400, gradient_steps=4, device="cpu").learn(8000)
    starts = model.about.starts.numpy()
    learned = model.rollout(starts, sac, 25).reward.sum(-1).mean()
    best = model.rollout(starts, lambda obs: np.ones_like(obs), 25).reward.sum(-1).mean()
    assert learned > 0.9 * best
