"""PointMaze and AntMaze against gymnasium-robotics: observations, endings, the controller, files, scores."""

import functools
import re
import sys
import tempfile
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from mbo2o.cli.main import main
from mbo2o.collect.waypoint import Waypoint, play
from mbo2o.dynamics.termination import TERMINATIONS, resolve
from mbo2o.envs import goals
from mbo2o.envs.lanes import Lane, make_env
from mbo2o.run.evaluate import Evaluator
from mbo2o.store import datasets
from mbo2o.types import UserError

pytest.importorskip("gymnasium_robotics")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")

UMAZE, MEDIUM, ANT = "PointMaze_UMaze-v3", "PointMaze_Medium-v3", "AntMaze_UMaze-v5"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # gymnasium-robotics leaves its models there


@functools.cache
def played(env_id=UMAZE, rows=8000, noise=0.0, wander=0.0):
    """Columns of the controller's steps."""
    return [np.array(x) for x in zip(*play(env_id, rows, 0, noise, wander), strict=True)]


def success(env_id, rows, noise, wander):
    _, _, rew, _, terminated, truncated = played(env_id, rows, noise, wander)
    assert np.array_equal(rew == 1, terminated)
    return terminated.sum() / (terminated | truncated).sum()


# ---- environments


def parts(env):
    """The Dict observation behind the flat one, and whether the task was told to end at the goal."""
    task = env.unwrapped
    inner = task.point_env if hasattr(task, "point_env") else task.ant_env
    obs = inner._get_obs()
    return task._get_obs(obs[0] if isinstance(obs, tuple) else obs), task.continuing_task


@pytest.mark.parametrize(
    ("env_id", "dims", "limit"),
    [
        (UMAZE, 6, 300),
        ("gymnasium_robotics:PointMaze_Medium_Diverse_GR-v3", 6, 600),
        ("PointMaze_Large-v3", 6, 800),
        ("PointMaze_OpenDense-v3", 6, 300),
        (ANT, 109, 700),
        ("AntMaze_UMaze-v4", 31, 700),
        ("AntMaze_Large_Diverse_G-v5", 109, 1000),
    ],
)
def test_observations_are_flat_with_the_place_first_and_the_goal_last(env_id, dims, limit, capfd):
    env = make_env(env_id)
    flat, _ = env.reset(seed=3)
    assert env.observation_space.shape == flat.shape == (dims,)
    for _ in range(3):
        flat, *_ = env.step(env.action_space.sample())
    obs, continuing = parts(env)
    assert continuing == ("Dense" in env_id)
    assert np.array_equal(flat[:2], obs["achieved_goal"])
    assert np.array_equal(flat[-2:], obs["desired_goal"])
    assert np.array_equal(flat[-2 - len(obs["observation"]) : -2], obs["observation"])
    assert env.spec.max_episode_steps == limit
    assert not Path(env.unwrapped.tmp_xml_file_path).exists()  # nothing is left behind
    assert "Adroit" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("env_id", ["PointMaze_Nowhere-v3", "PointMaze_UMaze-v2", "AntMaze_UMaze-v99"])
def test_mazes_that_do_not_exist_are_one_line(env_id):
    with pytest.raises(UserError) as e:
        make_env(env_id)
    assert "\n" not in str(e.value)
    assert repr(env_id) in str(e.value)


@pytest.mark.parametrize("env_id", [UMAZE, ANT])
def test_without_gymnasium_robotics_the_error_names_the_extra(env_id, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"pip install 'mbo2o\[mazes\]'") as e:
        make_env(env_id)
    assert "\n" not in str(e.value)
    assert make_env("Pendulum-v1")


@pytest.mark.parametrize("env_id", [UMAZE, ANT])
def test_an_episode_in_flight_continues_bit_for_bit(env_id):
    """This includes the next episode, whose goal and start are drawn."""
    lane, other = Lane(env_id, 3), Lane(env_id, 99)
    acts = np.random.default_rng(0).uniform(-1, 1, (40, lane.act_dim))
    for act in acts[:30]:
        lane.step(act)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.load(*lane.state())
    for act in acts[30:]:
        assert all(np.array_equal(x, y) for x, y in zip(lane.step(act), other.step(act), strict=True))
    before = lane.obs
    for x in (lane, other):
        x.reset()
    assert np.array_equal(lane.obs, other.obs)
    assert not np.array_equal(lane.obs[-2:], before[-2:])


def test_success_pays_one_and_ends_the_episode():
    obs, _, rew, next_obs, terminated, truncated = played(rows=3000)
    at_goal = np.linalg.norm(next_obs[:, :2] - next_obs[:, 4:], axis=1) <= 0.45
    assert at_goal.sum() > 20
    assert np.array_equal(at_goal, terminated)
    assert np.array_equal(at_goal, rew == 1)
    assert set(rew) == {0.0, 1.0}
    assert not truncated.any()
    goal_moves = (next_obs[:-1, 4:] != obs[1:, 4:]).any(1)
    assert np.array_equal(goal_moves, terminated[:-1])


# ---- imagined endings


@pytest.mark.parametrize("env_id", [UMAZE, MEDIUM])
def test_rule_equals_the_environment(env_id):
    obs, act, _, next_obs, terminated, _ = (torch.from_numpy(x) for x in played(env_id, 3000, 0.5, 0.5))
    assert terminated.sum() > 5
    rule = resolve("auto", env_id)
    assert rule is TERMINATIONS["point_maze_goal"]
    assert torch.equal(rule(obs, act, next_obs), terminated)


def test_rule_equals_the_environment_of_the_ant():
    """Put down at random distances from the goal, upright or not."""
    env, rng, rows = make_env(ANT), np.random.default_rng(0), []
    env.reset(seed=0)
    task = env.unwrapped
    for _ in range(60):
        qpos, qvel = task.ant_env.init_qpos.copy(), task.ant_env.init_qvel.copy()
        qpos[:2] = task.goal + rng.uniform(0, 0.9) * np.array([1.0, 0.0])
        qpos[2] = rng.choice([0.3, 0.75, 1.5])
        task.ant_env.set_state(qpos, qvel)
        obs, rew, terminated, *_ = env.step(rng.uniform(-1, 1, 8).astype(np.float32))
        assert rew == terminated
        rows.append((obs, terminated))
    obs, terminated = (torch.from_numpy(np.array(x)) for x in zip(*rows, strict=True))
    assert 10 < terminated.sum() < 50
    for env_id in (ANT, "AntMaze_Large_Diverse_GR-v4"):
        assert torch.equal(resolve("auto", env_id)(obs, obs, obs), terminated)
    assert not resolve("auto", "AntMaze_UMazeDense-v5")(obs, obs, obs).any()


# ---- the controller


@pytest.mark.parametrize("env_id", [UMAZE, MEDIUM])
def test_the_controller_reaches_the_goal_unless_it_wanders(env_id):
    rows = 6000
    assert success(env_id, rows, 0.0, 0.0) == 1
    assert success(env_id, rows, 0.5, 0.0) > 0.95
    assert 0.05 < success(env_id, rows, 0.5, 1.0) < 0.5
    driver = Waypoint(make_env(env_id).unwrapped.maze)
    visited = {driver.cell(xy) for xy in played(env_id, rows, 0.5, 1.0)[0][:, :2]}
    assert visited == set(driver.cells)


def test_noise_makes_it_slower_and_wandering_is_cut_on_arrival():
    assert success(UMAZE, 6000, 0.0, 0.0) > success(UMAZE, 6000, 0.0, 0.5) > success(UMAZE, 6000, 0.0, 1.0)

    def length(noise):
        return 6000 / played(UMAZE, 6000, noise, 0.0)[4].sum()

    assert length(2.0) > length(0.0)
    _, act, _, next_obs, terminated, truncated = played(UMAZE, 6000, 0.0, 1.0)
    assert np.abs(act).max() <= 1
    assert not (terminated & truncated).any()
    driver = Waypoint(make_env(UMAZE).unwrapped.maze)
    centres = np.array([driver.centre(cell) for cell in driver.cells])
    ends = next_obs[truncated, :2]
    assert np.linalg.norm(ends[:, None] - centres, axis=-1).min(-1).max() <= 0.45
    assert len({driver.cell(xy) for xy in ends}) > 1


def test_paths_are_shortest():
    driver = Waypoint(make_env(UMAZE).unwrapped.maze)
    way, at, steps = driver.way((3, 1)), (1, 1), 0
    while at != (3, 1):
        at, steps = way[at], steps + 1
    assert steps == 6  # round the U
    assert set(way) == set(driver.cells)


# ---- files


def collect(capsys, *args):
    with pytest.raises(SystemExit) as e:
        main(["data", "collect", *args])
    out, err = capsys.readouterr()
    return e.value.code, out, err


def test_collect_writes_what_was_played(capsys):
    args = ["--policy", "waypoint", "--env", UMAZE, "--rows", "2000", "--noise", "0.5", "--wander", "0.9"]
    for name in ("a", "b"):
        code, _, err = collect(capsys, *args, "--out", f"{name}.hdf5")
        assert code == 0, err
    assert Path("a.hdf5").read_bytes() == Path("b.hdf5").read_bytes()
    data = datasets.read("a.hdf5")
    obs, act, rew, next_obs, terminated, truncated = played(UMAZE, 2000, 0.5, 0.9)
    truncated[-1] |= not terminated[-1]
    columns = ((data.obs, obs), (data.act, act), (data.rew, rew), (data.next_obs, next_obs))
    for mine, theirs in (*columns, (data.terminated, terminated), (data.truncated, truncated)):
        assert np.array_equal(mine.numpy(), theirs)
    assert len(data) == data.n_rows == 2000
    attrs = data.attrs
    assert (attrs["env_id"], attrs["tier"], attrs["seed"]) == (UMAZE, "waypoint", 0)
    assert (attrs["noise"], attrs["wander"]) == (0.5, 0.9)
    assert data.episode_returns()[0].mean() == pytest.approx(
        terminated.sum() / (terminated | truncated).sum()
    )


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--policy", "waypoint"], "needs --env"),
        (["--policy", "waypoint", "--env", ANT], "PointMaze"),
        (["--policy", "waypoint", "--env", "Hopper-v5"], "PointMaze"),
        (["--policy", "waypoint", "--env", UMAZE, "--wander", "1.5"], r"in \[0, 1\]"),
        (["--policy", "waypoint", "--env", UMAZE, "--noise", "-1"], "at least 0"),
        (["--policy", "waypoint", "--env", UMAZE, "--rows", "0"], "rows=0 must be at least 1"),
        (["--policy", "random", "--env", UMAZE, "--noise", "0.5"], "waypoint"),
        (["--env", UMAZE, "--wander", "0.5"], "waypoint"),
    ],
)
def test_mistakes_are_one_line(args, says, capsys):
    code, _, err = collect(capsys, *args, "--out", "x.hdf5")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert re.search(says, err)


def minari_set(episodes, env_id=UMAZE, name="maze/test-v0"):
    """Episodes of (Dict observations, actions, rewards, terminations, truncations) in the task's spaces."""
    import gymnasium
    import minari
    from minari.data_collector import EpisodeBuffer

    keys = ("observations", "actions", "rewards", "terminations", "truncations")
    dataset = minari.create_dataset_from_buffers(
        name, [EpisodeBuffer(**dict(zip(keys, x, strict=True))) for x in episodes], env=gymnasium.make(env_id)
    )
    assert dataset.total_episodes == len(episodes)
    return name


def recorded(env_id, n, rewards):
    """An episode of `n` random steps of the continuing task, as Minari stores it, with these rewards."""
    import gymnasium

    env, rng = gymnasium.make(env_id), np.random.default_rng(0)
    obs, acts = [env.reset(seed=0)[0]], []
    for _ in range(n):
        acts.append(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
        obs.append(env.step(acts[-1])[0])
    columns = {key: np.array([o[key] for o in obs]) for key in obs[0]}
    return columns, np.array(acts), np.array(rewards, float), np.zeros(n, bool), np.arange(n) == n - 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("env_id", "dims"), [(UMAZE, 6), ("AntMaze_UMaze-v4", 31), (ANT, 109)])
def test_minari_is_flattened_as_the_environment_is(env_id, dims, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    episode = recorded(env_id, 5, [0] * 5)
    data = datasets.read(minari_set([episode], env_id))
    env = make_env(env_id)
    obs = [env.reset(seed=0)[0]] + [env.step(act)[0] for act in episode[1]]
    assert data.obs_dim == dims
    np.testing.assert_array_equal(data.obs.numpy(), np.float32(obs[:-1]))
    np.testing.assert_array_equal(data.next_obs.numpy(), np.float32(obs[1:]))
    assert data.attrs["env_id"] == env_id
    assert data.truncated.tolist() == [False] * 4 + [True]


def test_minari_episodes_end_at_the_goal(tmp_path, monkeypatch):
    """Reached twice and gone on; reached in the step that the collector cut; never reached."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    episodes = [recorded(UMAZE, len(r), r) for r in ([0, 0, 1, 1, 0], [0, 1], [0, 0, 0])]
    data = datasets.read(minari_set(episodes))
    assert data.rew.tolist() == [0, 0, 1, 0, 1, 0, 0, 0]
    assert data.terminated.tolist() == [False, False, True, False, True, False, False, False]
    assert data.truncated.tolist() == [False] * 7 + [True]
    assert data.episode.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert len(data) == 8
    np.testing.assert_array_equal(data.next_obs[2].numpy(), np.float32(goals.flatten(episodes[0][0])[3]))


def antmaze_file(path, x, terminals, timeouts, **more):
    """As D4RL writes: 29 observations, flags as floats, gzip, `infos/`, no next observations."""
    n = len(x)
    obs = np.random.default_rng(0).normal(size=(n, 29)).astype(np.float32)
    obs[:, 0], obs[:, 1] = x, 0
    fields = {
        "observations": obs,
        "actions": obs[:, :8].clip(-1, 1),
        "rewards": terminals,
        "terminals": terminals,
    }
    with h5py.File(path, "w") as f:
        for key, value in (fields | {"timeouts": timeouts, "infos/goal": obs[:, :2] + 3} | more).items():
            f.create_dataset(key, data=np.array(value, dtype=np.float32), compression="gzip")
    return obs


def test_d4rl_antmaze_keeps_the_steps_at_the_goal(tmp_path):
    """Two steps at the goal, more to the time limit; a reset without a flag (row 5 to 6); a file's end."""
    x = [0, 0.5, 1.0, 1.2, 1.1, 1.0, 9.0, 9.3, 9.5]

    def flags(*rows):
        return np.isin(np.arange(9), rows).astype(np.float32)

    obs = antmaze_file(tmp_path / "antmaze.hdf5", x, flags(2, 3), flags(7))
    data = datasets.read(tmp_path / "antmaze.hdf5")
    assert data.obs_dim == 29  # the file's; the goal of its rewards is not in it
    assert data.valid_next.tolist() == [True] * 5 + [False, True, False, False]
    assert data.terminated.nonzero().flatten().tolist() == [2, 3]
    assert data.truncated.nonzero().flatten().tolist() == [5, 7]
    assert data.rew[data.index].sum() == 2
    np.testing.assert_array_equal(data.next_obs[:5].numpy(), obs[1:6])


def test_d4rl_antmaze_that_resets_at_the_goal_warns(tmp_path):
    antmaze_file(tmp_path / "antmaze.hdf5", [0, 1, 9, 8], [0, 1, 0, 0], [0, 0, 0, 1])
    with pytest.warns(UserWarning, match="no known next observation"):
        datasets.read(tmp_path / "antmaze.hdf5")


# ---- evaluation


def test_evaluation_is_the_success_rate():
    driver = Waypoint(make_env(UMAZE).unwrapped.maze)

    def drive(o):
        return torch.from_numpy(np.array([[driver.act(x, x[4:]) for x in row] for row in o.numpy()]))

    def stay(o):
        return torch.zeros(*o.shape[:-1], 2)

    def no_value(o, a):
        return torch.zeros(o.shape[:-1])

    evaluate = Evaluator(UMAZE, (2,), 3, seed=0, gamma=0.99)
    there, nowhere = evaluate(drive, no_value), evaluate(stay, no_value)
    assert there["return"].tolist() == [1, 1]
    assert nowhere["return"].tolist() == [0, 0]
    assert nowhere["length"].tolist() == [300, 300]
    assert there["success"].tolist() == [1, 1]
    assert nowhere["success"].tolist() == [0, 0]

    def half(obs):
        """Seed 0 drives, seed 1 stays."""
        return torch.stack([drive(obs)[0], stay(obs)[1]])

    assert evaluate(half, no_value)["return"].tolist() == [1, 0]
