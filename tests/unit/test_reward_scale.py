"""run.reward_scale: a number, or `auto`, which becomes one before anything is stored."""

import math

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mbo2o.agents.iql import IQLConfig
from mbo2o.data.dataset import TransitionDataset
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.recipes.finetune import FinetuneConfig
from mbo2o.recipes.scratch import ScratchConfig
from mbo2o.run.config import RunConfig
from mbo2o.store import datasets
from mbo2o.training import Config, _with_reward_scale, read_config, restore, train
from mbo2o.types import UserError

NET = MLPConfig(hidden=[8])


def dataset(episodes, ends):
    """Episodes of these rewards; `ends`: how each is over, T by termination, L by its limit, "" where the file stops."""  # noqa: E501
    rewards = np.concatenate([np.asarray(x, np.float32) for x in episodes])
    n = len(rewards)
    last = np.cumsum([len(x) for x in episodes]) - 1
    flags = {kind: np.zeros(n, bool) for kind in "TL"}
    for row, kind in zip(last, ends, strict=True):
        if kind:
            flags[kind][row] = True
    return TransitionDataset.from_arrays(
        observations=np.arange(3 * n, dtype=np.float32).reshape(n, 3),
        actions=np.zeros((n, 1), np.float32),
        rewards=rewards,
        terminals=flags["T"],
        timeouts=flags["L"],
        next_observations=np.arange(3, 3 * n + 3, dtype=np.float32).reshape(n, 3),
        attrs={"env_id": "Pendulum-v1"},
    )


def config(**run):
    agent = IQLConfig(actor=NET, critic=NET, value_net=NET)
    return Config(recipe=FinetuneConfig(offline=agent), run=RunConfig(**run))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=5), min_size=2, max_size=6),
    st.lists(st.floats(-1e6, 1e6, width=32), max_size=3),
    st.data(),
)
def test_auto_divides_by_a_thousandth_of_the_whole_episodes_spread(episodes, unfinished, draw):
    """An episode whose end the file does not hold does not count, whatever its rewards are."""
    ends = [draw.draw(st.sampled_from("TL")) for _ in episodes]
    data = dataset([*episodes, unfinished] if unfinished else episodes, [*ends, ""] if unfinished else ends)
    returns = [math.fsum(x) for x in episodes]
    cfg = config(reward_scale="auto")
    if max(returns) - min(returns) < 1e-3:
        return
    resolved, said = _with_reward_scale(cfg, data)
    assert resolved.run.reward_scale == pytest.approx(1000 / (max(returns) - min(returns)), rel=1e-3)
    assert f"{resolved.run.reward_scale:.6g}" in said
    assert cfg.run.reward_scale == "auto"  # the caller's config is not written to


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "needs a dataset"),
        (dataset([[1.0, 2.0], [3.0]], ["T", "L"]), "every whole episode of the dataset returns 3"),
        (dataset([[1.0, 2.0, 3.0]], [""]), "no whole episode"),
        (dataset([[1.0, 2.0], [5.0]], ["T", ""]), "every whole episode of the dataset returns 3"),
    ],
)
def test_what_auto_cannot_be_measured_on_is_refused(data, message):
    with pytest.raises(UserError, match=message):
        _with_reward_scale(config(reward_scale="auto"), data)


@pytest.mark.parametrize("value", ["automatic", "1.5", None, True, math.nan, math.inf, [1.0]])
def test_anything_but_a_finite_number_or_auto_is_refused(value):
    with pytest.raises(UserError, match=r"run\.reward_scale=.* must be a finite number, or auto"):
        RunConfig(reward_scale=value)


def test_an_integer_is_the_same_number():
    """A run's directory is named by its settings: 1 and 1.0 must not be two runs."""
    assert repr(RunConfig(reward_scale=1).reward_scale) == "1.0"


def test_a_recipe_without_a_dataset_refuses_auto_in_one_line(tmp_path):
    recipe = ScratchConfig(agent=IQLConfig(actor=NET, critic=NET, value_net=NET))
    cfg = Config(
        recipe=recipe, env="Pendulum-v1", dir=str(tmp_path / "run"), run=RunConfig(reward_scale="auto")
    )
    with pytest.raises(UserError, match="needs a dataset"):
        train(cfg)
    assert not (tmp_path / "run").exists()


def test_the_number_is_stored_said_and_used_again(pendulum, tmp_path, capsys):
    def small(directory, **more):
        settings = {
            "log_every": 10,
            "eval_every": 10,
            "eval_episodes": 1,
            "online_capacity": 100,
            "reward_scale": "auto",
        }
        recipe = config().recipe
        recipe.offline_steps, recipe.online_steps, recipe.batch, recipe.warmup = 20, 20, 8, 0
        where = {"dataset": str(pendulum), "dir": str(directory), "report": False}
        return Config(recipe=recipe, **where, run=RunConfig(**settings), **more)

    train(small(tmp_path / "run"))
    returns = datasets.read(pendulum).episode_returns()[0]
    scale = 1000 / (returns.max() - returns.min())
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["run"][
        "reward_scale"
    ] == pytest.approx(scale)
    assert read_config(tmp_path / "run")[0].run.reward_scale == pytest.approx(scale)
    assert "run.reward_scale=auto is " in capsys.readouterr().err
    run, _ = restore(tmp_path / "run")
    plain = datasets.read(pendulum)
    np.testing.assert_allclose(run.dataset.rew.numpy(), scale * plain.rew.numpy(), rtol=1e-5)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    train(small(tmp_path / "run"))  # the same command finds its run, which is finished
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    offline = small(tmp_path / "offline")
    offline.recipe.online_steps = 0
    train(offline)
    train(small(tmp_path / "arm", start_from=str(tmp_path / "offline")))
    other = small(tmp_path / "other", start_from=str(tmp_path / "offline"))
    other.run.reward_scale = 1.0
    with pytest.raises(UserError, match=r"run\.reward_scale="):
        train(other)
