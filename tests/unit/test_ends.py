"""Where episodes end: inferred ends are reported, unknown ends stay unknown, and objects may be episodes."""

import dataclasses
import math
import types
import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbo2o.agents.bc import BCConfig
from mbo2o.agents.calql import CalQLConfig
from mbo2o.data.dataset import TransitionDataset, returns_to_go
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.envs import goals
from mbo2o.recipes.finetune import FinetuneConfig
from mbo2o.run.config import RunConfig
from mbo2o.store import datasets
from mbo2o.store.episodes import read_episodes
from mbo2o.training import Config, train
from mbo2o.types import UserError

LENGTHS = [4, 2, 5, 4]
TERMINATES = [False, True, False, False]


def record(*drop):
    """Four episodes, of which the second terminates; observations say which and which step."""
    rows = [(e, t) for e, n in enumerate(LENGTHS) for t in range(n)]
    obs = np.array(rows, np.float32)
    last = np.array([t == LENGTHS[e] - 1 for e, t in rows])
    done = last & np.array([TERMINATES[e] for e, _ in rows])
    x = {
        "observations": obs,
        "actions": np.zeros((len(rows), 1), np.float32),
        "rewards": np.arange(len(rows), dtype=np.float32),
        "terminals": done,
        "timeouts": last & ~done,
        "next_observations": obs + np.float32([0, 1]),
    }
    return {key: v for key, v in x.items() if key not in drop}


def said(f, *args, **kwargs):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = f(*args, **kwargs)
    return made, [str(w.message) for w in caught]


# ---- what is concluded is said


def test_ends_that_next_observations_show_are_counted(tmp_path):
    x = record()
    datasets.write(TransitionDataset.from_arrays(**x), tmp_path / "x.hdf5")
    made, texts = said(TransitionDataset.from_arrays, **record("timeouts"))
    assert texts == [
        "arrays: no timeouts: 2 episode ends follow from next_observations, beside the terminations"
    ]
    np.testing.assert_array_equal(made.truncated[:-1], x["timeouts"][:-1])
    assert made.ends_known
    _, texts = said(datasets.read, tmp_path / "x.hdf5")
    assert texts == []


def test_ends_that_a_limit_sets_are_counted():
    made, texts = said(
        TransitionDataset.from_arrays,
        **record("timeouts", "next_observations"),
        attrs={"max_episode_steps": 4},
    )
    assert texts == [
        "arrays: no timeouts: 3 episode ends follow from max_episode_steps=4, beside the terminations"
    ]
    assert made.ends_known


# ---- unknown ends


@pytest.fixture
def blind():
    made, texts = said(TransitionDataset.from_arrays, **record("timeouts", "next_observations"))
    assert len(texts) == 1
    assert (
        "no return is known (1 rows terminate); give one of them (timeouts of 0 if nothing was cut)"
        in texts[0]
    )
    return made


def test_no_return_is_known_where_ends_are_unknown(blind):
    assert not blind.ends_known
    assert returns_to_go(blind, 0.9).isnan().all()
    assert [len(x) for x in blind.episode_returns()] == [0, 0]
    summary = datasets.summary(blind)
    assert summary["complete_episodes"] == 0
    assert np.isnan(
        [summary[key] for key in ("return_mean", "return_std", "return_min", "return_max", "length_mean")]
    ).all()
    drawn = blind.with_reward(2, 1).with_returns(0.9).with_seeds((2,)).sample(5)
    assert drawn.mc_return.eq(-math.inf).all()


def test_the_return_of_failures_only_is_known_without_ends():
    """Every part of an episode of failures alone is one, too; an episode in which another reward may hide is
    unknown.
    """
    x = record("timeouts", "next_observations")
    x["rewards"] = np.where(
        np.arange(len(x["rewards"])) < 6, np.float32(-1), x["rewards"]
    )  # up to the termination
    made, _ = said(TransitionDataset.from_arrays, **x)
    found = made.with_returns(0.5, failure=-1.0).returns
    np.testing.assert_array_equal(found, [-2.0] * 6 + [-math.inf] * 9)


def test_timeouts_of_zero_say_that_nothing_was_cut():
    x = record("next_observations")
    x["timeouts"] = np.zeros_like(x["timeouts"])
    made, texts = said(TransitionDataset.from_arrays, **x)
    assert (made.ends_known, texts) == (True, [])
    assert made.episode_returns()[0].tolist() == [15.0]
    assert returns_to_go(made, 1.0)[0] == 15


def test_a_map_keeps_what_is_unknown(tmp_path, monkeypatch):
    import h5py

    monkeypatch.setenv("MBO2O_CACHE", str(tmp_path / "cache"))
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        for key, v in record("timeouts", "next_observations").items():
            file[key] = v
    for _ in range(2):
        made, texts = said(datasets.read, tmp_path / "x.hdf5", "memmap")
        assert not made.ends_known
        assert made.with_returns(0.9).returns.eq(-math.inf).all()
        assert [x for x in texts if "no return is known" in x]


def config(agent, path, directory):
    recipe = FinetuneConfig(offline=agent, offline_steps=4, online_steps=0, batch=4)
    often = RunConfig(log_every=4, eval_every=4, eval_episodes=1, checkpoint_every=4, online_capacity=50)
    return Config(recipe=recipe, dataset=str(path), dir=str(directory), report=False, run=often)


def test_calql_refuses_data_without_returns_and_cloning_does_not(pendulum, tmp_path):
    import h5py
    import yaml

    with h5py.File(pendulum) as old, h5py.File(tmp_path / "blind.hdf5", "w") as file:
        for key in ("observations", "actions", "rewards", "terminals"):
            file[key] = old[key][()]
        file.attrs["env_id"] = "Pendulum-v1"
    net = MLPConfig(hidden=[8])
    calql = CalQLConfig(actor=net, critic=net)
    with pytest.raises(
        UserError,
        match=r"blind.hdf5: no return is known, .*; store timeouts, .*, or take an agent that does not need them$",  # noqa: E501
    ):
        train(config(calql, tmp_path / "blind.hdf5", tmp_path / "calql"))
    assert not (tmp_path / "calql").exists()
    directory = train(config(BCConfig(actor=net), tmp_path / "blind.hdf5", tmp_path / "bc"))
    assert yaml.safe_load((directory / "config.yaml").read_text())["behaviour_return"] is None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=6),
    st.sampled_from(["flags", "next", "both"]),
)
def test_returns_are_those_of_the_true_episodes_wherever_the_ends_are_told(kinds, told):
    lengths = [n for n, _ in kinds]
    rows = [(e, t) for e, n in enumerate(lengths) for t in range(n)]
    obs = np.array(rows, np.float32)
    last = np.array([t == lengths[e] - 1 for e, t in rows])
    done = last & np.array([kinds[e][1] for e, _ in rows])
    x = {
        "observations": obs,
        "actions": np.zeros((len(rows), 1)),
        "rewards": np.arange(1.0, len(rows) + 1),
        "terminals": done,
    }
    x |= {"timeouts": last & ~done} if told != "next" else {}
    x |= {"next_observations": obs + np.float32([0, 1])} if told != "flags" or max(lengths) == 1 else {}
    made, _ = said(TransitionDataset.from_arrays, **x)
    sums = np.bincount(obs[:, 0].astype(int), weights=x["rewards"])
    open_end = told == "next" and not kinds[-1][1]  # the end of the file shows no end of an episode
    np.testing.assert_allclose(made.episode_returns()[0], sums[: len(sums) - open_end])


# ---- objects are episodes


class Named(NamedTuple):
    """An episode as a named tuple, which has methods such as `index` and `count` besides."""

    observations: Any
    actions: Any
    rewards: Any
    terminations: Any
    truncations: Any


@dataclasses.dataclass
class Classed:
    """An episode as a dataclass with fields of its own."""

    observations: Any
    actions: Any
    rewards: Any
    terminations: Any
    truncations: Any
    id: int = 3
    infos: Any = None


def minari_s(**columns):
    from minari import EpisodeData

    return EpisodeData(id=0, infos={"success": np.zeros(3)}, **columns)


KINDS = {
    "dict": dict,
    "named tuple": Named,
    "dataclass": Classed,
    "namespace": types.SimpleNamespace,
    "Minari's EpisodeData": minari_s,
}


def as_episodes(kind, observations):
    """T + 1 observations per episode, as Minari has them."""
    x, out, start = record(), [], 0
    for n in LENGTHS:
        part = slice(start, start + n)
        obs = np.append(x["observations"][part], x["next_observations"][part][-1:], 0)
        columns = {
            "observations": observations(obs),
            "actions": x["actions"][part],
            "rewards": x["rewards"][part],
        }
        out.append(KINDS[kind](**columns, terminations=x["terminals"][part], truncations=x["timeouts"][part]))
        start += n
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_with_the_attributes_is_an_episode(kind):
    made = read_episodes(as_episodes(kind, lambda obs: obs))
    assert torch.equal(made.packed, TransitionDataset.from_arrays(**record()).packed)
    np.testing.assert_array_equal(made.truncated, record()["timeouts"])


@pytest.mark.parametrize("kind", KINDS)
def test_goal_observations_of_episodes_become_vectors(kind):
    def goal(obs):
        return {"observation": obs, "achieved_goal": obs[:, :1] + 7, "desired_goal": obs[:, 1:] * 0 + 9}

    made = read_episodes(as_episodes(kind, goal))
    np.testing.assert_array_equal(made.obs, goals.flatten(goal(record()["observations"])))
    np.testing.assert_array_equal(made.next_obs, goals.flatten(goal(record()["next_observations"])))


def test_an_object_that_is_not_an_episode_is_refused_in_one_line():
    broken = as_episodes("namespace", lambda obs: obs)
    del broken[1].rewards
    with pytest.raises(
        UserError, match=r"^episodes\[1\]: 'rewards' is missing \(found observations, actions"
    ):
        read_episodes(broken)
    with pytest.raises(UserError, match=r"^episodes\[0\]: 'observations' is missing \(found \)"):
        read_episodes([3])
    with pytest.raises(
        UserError,
        match=r"^episodes\[0\]: 'observations' is a dict of pixels, expected an array, or a dict of",
    ):
        read_episodes(as_episodes("dict", lambda obs: {"pixels": obs}))
