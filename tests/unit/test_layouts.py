"""D4RL's layouts: observations, starts, goals and actions of the environment are those of its files."""

import json
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest
import torch
from gymnasium.envs import mujoco

from mbo2o.agents.sac import SACConfig
from mbo2o.agents.td3bc import TD3BCConfig
from mbo2o.dynamics.termination import TERMINATIONS, resolve
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.envs import antmaze
from mbo2o.envs.lanes import Lane
from mbo2o.envs.make import EnvChoice, make_env
from mbo2o.recipes.finetune import FinetuneConfig
from mbo2o.recipes.scratch import ScratchConfig
from mbo2o.run.config import RunConfig
from mbo2o.training import Config, read_config, restore, train
from mbo2o.types import UserError

NET = MLPConfig(hidden=[8])
ANT = "Ant-v5"
MAZES = {"UMaze": ((0, 8), 700), "Medium": ((20, 20), 1000), "Large": ((32, 24), 1000)}
"""Centre of the goal's cell in D4RL's metres, and the time limit."""


@pytest.fixture
def mazes(tmp_path, monkeypatch):
    pytest.importorskip("gymnasium_robotics")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # gymnasium-robotics leaves its models there
    return tmp_path


def maze(name, **kwargs):
    return EnvChoice(f"AntMaze_{name}-v5", kwargs, "d4rl")


# ---- antmaze


@pytest.mark.parametrize("name", MAZES)
def test_antmaze_starts_and_goals_lie_where_d4rl_has_them(name, mazes):
    env, (centre, limit) = make_env(maze(name)), MAZES[name]
    assert env.observation_space.shape == (29,)
    assert env.spec.max_episode_steps == limit
    starts, goals = [], []
    for seed in range(30):
        obs, info = env.reset(seed=seed)
        assert obs.shape == (29,)
        assert not info["success"]
        starts.append(obs[:3])
        goals.append(env.goal)
    starts, goals = np.array(starts), np.array(goals) - centre
    assert np.abs(starts[:, :2]).max() <= 0.1
    assert 0.65 <= starts[:, 2].min() <= starts[:, 2].max() <= 0.85
    assert (goals >= 0).all()
    assert (goals <= 1.5).all()
    assert goals.max() > 1  # two uniform numbers, up to 1 and up to 0.5
    assert len(np.unique(goals)) == 60
    assert not list(mazes.glob("*.xml"))


def walls(name):
    """Cells (row, column) of walls, and of free places, from the geoms of the model in D4RL's metres."""
    env = make_env(maze(name))
    task = env.unwrapped
    model = task.ant_env.model
    found = set()
    for i in range(model.ngeom):
        if model.geom(i).name.startswith("block"):
            x, y = (model.geom(i).pos[:2] - env._origin) / 4
            found.add((round(y) + 1, round(x) + 1))
    return found, np.array(task.maze.maze_map)[::-1]


@pytest.mark.parametrize("name", MAZES)
def test_rows_of_the_map_count_along_y(name, mazes):
    import gymnasium_robotics

    found, _ = walls(name)
    own = gymnasium.spec(f"AntMaze_{name}-v5").kwargs["maze_map"]
    assert found == {(i, j) for i, row in enumerate(own) for j, x in enumerate(row) if x == 1}
    assert (1, 1) not in found
    assert antmaze.GOAL_CELLS[name] not in found
    if name == "UMaze":  # D4RL's U opens towards +x: from the start one cannot go up
        assert (2, 1) in found
        assert (1, 2) not in found
    assert gymnasium_robotics


def put(env, xy):
    """Put the ant at a place in D4RL's metres."""
    ant = env.unwrapped.ant_env
    qpos = ant.init_qpos.copy()
    qpos[:2] = np.asarray(xy) + env._origin
    ant.set_state(qpos, np.zeros_like(ant.init_qvel))


def test_within_half_a_metre_of_the_goal_it_pays_one_and_ends(mazes):
    env, rng, seen = make_env(maze("UMaze")), np.random.default_rng(0), []
    env.reset(seed=0)
    for _ in range(60):
        put(env, env.goal + np.array([rng.uniform(0.3, 0.7), 0]))
        obs, rew, terminated, truncated, info = env.step(np.zeros(8, np.float32))
        assert (np.linalg.norm(obs[:2] - env.goal) <= 0.5) == terminated == (rew == 1) == info["success"]
        assert rew in (0, 1)
        assert not truncated
        seen.append(terminated)
    assert 10 < sum(seen) < 50
    x = torch.from_numpy(obs)
    with pytest.raises(UserError, match="ends at the goal, which observations do not show"):
        resolve("auto", "AntMaze_UMaze-v5", {}, "d4rl")
    assert not resolve("none", "AntMaze_UMaze-v5", {}, "d4rl")(x, x, x)


def test_observations_are_position_and_velocity_of_the_ant(mazes):
    env = make_env(maze("Medium"))
    env.reset(seed=0)
    for _ in range(3):
        obs, *_ = env.step(env.action_space.sample())
    data = env.unwrapped.ant_env.data
    np.testing.assert_array_equal(obs[2:15], data.qpos[2:])
    np.testing.assert_array_equal(obs[15:], data.qvel)
    np.testing.assert_allclose(obs[:2], data.qpos[:2] - env._origin)


def test_the_ant_has_the_motors_and_contacts_of_d4rl(mazes):
    """D4RL's assets/ant.xml: 5 steps of 0.02 s for an action, at most 30 Nm, softer contacts."""
    env = make_env(maze("UMaze"))
    ant = env.unwrapped.ant_env
    plain = gymnasium.make(ANT).unwrapped.model
    assert ant.dt == pytest.approx(0.1)
    assert env.action_space == gymnasium.spaces.Box(-1, 1, (8,), np.float32)
    np.testing.assert_array_equal(
        ant.model.actuator_gear[:, 0] * ant.model.actuator_ctrlrange[:, 1], np.full(8, 30.0)
    )
    np.testing.assert_allclose(ant.model.geom("torso_geom").solimp[:3], [0.8, 0.8, 0.01])
    for name in ("jnt_range", "dof_damping", "dof_armature", "body_mass", "actuator_trnid", "jnt_axis"):
        np.testing.assert_array_equal(getattr(ant.model, name), getattr(plain, name))
    gears = {
        x.get("gear")
        for x in ET.parse(Path(mujoco.__file__).parent / "assets" / "ant.xml").findall("actuator/motor")
    }
    assert gears == {"150"}  # gymnasium's own file is untouched


def test_an_antmaze_episode_in_flight_continues_bit_for_bit(mazes):
    lane, other = Lane(maze("UMaze"), 3), Lane(maze("UMaze"), 99)
    acts = np.random.default_rng(0).uniform(-1, 1, (40, 8))
    for episode in range(2):
        for act in acts[:30]:
            lane.step(act)
        assert other.load(*lane.state())
        for act in acts[30:]:
            assert all(np.array_equal(x, y) for x, y in zip(lane.step(act), other.step(act), strict=True))
        for x in (lane, other):
            x.reset()
        assert np.array_equal(lane.obs, other.obs)
        assert np.array_equal(lane.env.goal, other.env.goal), episode
    assert lane.follows(5) == (True, True)


# ---- ant


def test_ant_shows_the_forces_of_14_bodies_of_which_the_world_has_none():
    lane, plain = Lane(EnvChoice(ANT, layout="d4rl"), 0), Lane(ANT, 0)
    seen = []
    for act in np.random.default_rng(0).uniform(-1, 1, (40, 8)):
        assert lane.step(act)[0] == plain.step(act)[0]
        np.testing.assert_array_equal(lane.obs[:27], plain.obs[:27])
        np.testing.assert_array_equal(lane.obs[33:], plain.obs[27:])
        np.testing.assert_array_equal(
            lane.obs[27:], lane.env.unwrapped.contact_forces.astype(np.float32).ravel()
        )
        seen.append(lane.obs)
    seen = np.array(seen)
    assert seen.shape == (40, 111)
    assert not seen[:, 27:33].any()
    assert seen[:, 33:].any()
    assert np.abs(seen[:, 27:]).max() <= 1


def test_ant_without_forces_shows_zeros():
    lane, plain = Lane(EnvChoice(ANT, layout="d4rl-no-forces"), 0), Lane(ANT, 0)
    for act in np.random.default_rng(0).uniform(-1, 1, (40, 8)):
        lane.step(act)
        plain.step(act)
        np.testing.assert_array_equal(lane.obs, np.append(plain.obs[:27], np.zeros(84, np.float32)))
    assert resolve("auto", ANT, {}, "d4rl-no-forces") is TERMINATIONS["ant"]


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        (EnvChoice(ANT, layout="d5rl"), "no such layout; choose one of d4rl, d4rl-no-forces"),
        (EnvChoice("Hopper-v5", layout="d4rl"), "Hopper-v5 has no such layout"),
        (EnvChoice("Ant-v4", layout="d4rl"), "Ant-v5 has d4rl and"),
        (
            EnvChoice(ANT, {"include_cfrc_ext_in_observation": False}, "d4rl"),
            "needs Ant-v5 with its 105 observations",
        ),
        (maze("Medium_Diverse_G"), "AntMaze_UMaze-v5, AntMaze_Medium-v5, AntMaze_Large-v5 have d4rl"),
        (EnvChoice("AntMaze_UMaze-v4", layout="d4rl"), "AntMaze_UMaze-v4 has no such layout"),
        (EnvChoice("AntMaze_UMaze-v5", layout="d4rl-no-forces"), "has no such layout"),
    ],
)
def test_a_layout_that_does_not_exist_is_one_line(choice, says, mazes):
    with pytest.raises(UserError, match=says) as e:
        make_env(choice)
    assert "\n" not in str(e.value)


# ---- runs


def data(path, width, forces=False, x=()):
    """A file as D4RL writes: flags, no next observations in mazes."""
    n, rng = 60, np.random.default_rng(0)
    obs = rng.normal(size=(n, width)).astype(np.float32) * 0.1
    obs[:, 0 if width == 111 else 2] = 0.6
    if width == 111 and not forces:
        obs[:, 27:] = 0
    ends = np.arange(n) % 20 == 19
    fields = {
        "observations": obs,
        "actions": rng.uniform(-1, 1, (n, 8)),
        "rewards": ends * 0.0,
        "terminals": ends & False,
    }
    with h5py.File(path, "w") as f:
        for key, value in (fields | {"timeouts": ends}).items():
            f[key] = value
    return str(path)


def finetuned(directory, dataset, env, **more):
    recipe = FinetuneConfig(
        offline=TD3BCConfig(actor=NET, critic=NET),
        online=SACConfig(actor=NET, critic=NET),
        **{"offline_steps": 5, "online_steps": 25, "batch": 8},
    )
    run = RunConfig(eval_every=100, eval_episodes=1, online_capacity=100)
    settings = {
        "recipe": recipe,
        "dataset": dataset,
        "env": env,
        "dir": str(directory),
        "report": False,
        "run": run,
    }
    return Config(**settings | more)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("env", "width", "forces", "layout", "says"),
    [
        ("AntMaze_UMaze-v5", 29, False, "d4rl", "x, y and the ant's 27 numbers, no goal"),
        (ANT, 111, True, "d4rl", "the 6 contact forces of the world are 0"),
        (ANT, 111, False, "d4rl-no-forces", "the 84 contact forces are 0, as in the data"),
    ],
)
def test_a_d4rl_file_is_fine_tuned_in_its_layout(env, width, forces, layout, says, mazes, capsys):
    file = data(mazes / "a.hdf5", width, forces)
    cfg = finetuned(mazes / "run", file, env)
    train(cfg)
    said = [x for x in capsys.readouterr().err.splitlines() if "env_layout" in x]
    assert len(said) == 1
    assert says in said[0]
    assert f"env_layout={layout}" in said[0]
    assert cfg.env_layout is None  # the caller's config is unchanged
    assert read_config(mazes / "run")[0].env_layout == layout
    assert restore(mazes / "run")[0].spec.obs_dim == width
    assert [
        x
        for x in map(json.loads, (mazes / "run" / "metrics.jsonl").read_text().splitlines())
        if x["kind"] == "eval"
    ]
    train(finetuned(mazes / "run", file, env))  # the same command goes on


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_layout_can_be_asked_for_without_data_and_is_part_of_the_run(tmp_path):
    agent = SACConfig(actor=NET, critic=NET)
    recipe = ScratchConfig(agent=agent, online_steps=5, batch=8, random_steps=5)
    cfg = Config(
        recipe=recipe,
        env=ANT,
        env_layout="d4rl",
        dir=str(tmp_path),
        report=False,
        run=RunConfig(eval_episodes=1),
    )
    train(cfg)
    assert restore(tmp_path)[0].spec.obs_dim == 111
    cfg.env_layout = None
    with pytest.raises(UserError, match="holds a run with env_layout=d4rl, not None"):
        train(cfg)
