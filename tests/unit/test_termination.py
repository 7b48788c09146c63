import functools
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from mbo2o.collect import play
from mbo2o.collect.actor import Actor
from mbo2o.dynamics.learned_termination import LearnedTermination
from mbo2o.dynamics.termination import TERMINATIONS, exploded, hopper, none, resolve, resolve_reward
from mbo2o.types import UserError

ACTORS = Path(__file__).parents[2] / "data" / "actors"
STEPS = 700
FALLS = [
    "Hopper-v5",
    "Walker2d-v5",
    "Ant-v5",
    "Humanoid-v5",
    "InvertedPendulum-v5",
    "MountainCarContinuous-v0",
]
NEVER = ["HalfCheetah-v5", "HumanoidStandup-v5", "Swimmer-v5", "Reacher-v5", "Pusher-v5", "Pendulum-v1"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.getbasetemp())  # MuJoCo writes its log into the working directory


def action(kind: str, t: int, obs, rate, phase, rng) -> np.ndarray:
    """In [-1, 1]: noise, sinusoids, bang-bang, or bang-bang along a velocity (which climbs the mountain)."""
    match kind:
        case "random":
            return rng.uniform(-1, 1, rate.shape)
        case "sinusoid":
            return np.sin(rate * t + phase)
        case "bang":
            return np.sign(np.sin(rate * t + phase))
        case _:
            return np.full(rate.shape, np.sign(obs[1]) or 1.0)


@functools.cache
def roll(env_id: str, kind: str, n: int = STEPS, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`n` transitions (obs, act, next_obs, terminated) in the environment's own precision."""
    env, rng, rows, over = gym.make(env_id), np.random.default_rng(seed), [], True
    low, high = env.action_space.low, env.action_space.high
    env.reset(seed=seed)
    for _ in range(n):
        if over:
            obs, t = env.reset()[0], 0
            rate, phase = rng.uniform(0.05, 0.6, low.shape), rng.uniform(0, 2 * np.pi, low.shape)
        unit = action(kind, t, obs, rate, phase, rng)
        act = (low + (unit + 1) / 2 * (high - low)).astype(np.float32)
        next_obs, _, terminated, truncated, _ = env.step(act)
        rows.append((obs, act, next_obs, terminated))
        obs, t, over = next_obs, t + 1, terminated or truncated
    env.close()
    obs, act, next_obs, terminated = (torch.as_tensor(np.array(x)) for x in zip(*rows, strict=True))
    return obs, act, next_obs, terminated


@pytest.mark.parametrize("env_id", [*FALLS, *NEVER])
def test_named_rules_agree_with_their_environment(env_id):
    ended = 0
    for kind in ("random", "sinusoid", "bang", "velocity"):
        obs, act, next_obs, terminated = roll(env_id, kind)
        rule = resolve("auto", env_id)
        assert torch.equal(rule(obs, act, next_obs), terminated), kind
        assert torch.equal(rule(obs.float(), act, next_obs.float()), terminated), (
            f"{kind} in single precision"
        )
        ended += int(terminated.sum())
    assert (ended > 0) == (env_id in FALLS)


@pytest.mark.parametrize("tier", ["medium", "expert"])
@pytest.mark.parametrize("env", ["hopper", "halfcheetah", "walker2d"])
def test_named_rules_agree_where_trained_policies_go(env, tier):
    """States in single precision, as datasets and models have them; falls of agents that run, not of ones
    that stumble.
    """
    kept = Actor.load(ACTORS / f"{env}-{tier}-v5.safetensors")
    with torch.no_grad():
        fields = play.roll(kept.info["env_id"], lambda obs: kept.policy.sample(obs)[0], 2500, seed=1)
    obs, act, next_obs = (
        torch.from_numpy(fields[x]) for x in ("observations", "actions", "next_observations")
    )
    ended = torch.from_numpy(fields["terminals"])
    assert torch.equal(resolve("auto", kept.info["env_id"])(obs, act, next_obs), ended)
    assert ended.any() == (env != "halfcheetah")
    assert fields["rewards"].mean() > 1  # it does run


@pytest.mark.parametrize(
    ("env_id", "root"), [("Hopper-v5", 1), ("Walker2d-v5", 1), ("Ant-v5", 2), ("Humanoid-v5", 2)]
)
def test_rules_agree_on_states_set_across_every_threshold(env_id, root):
    env, rng = gym.make(env_id).unwrapped, np.random.default_rng(0)
    env.reset(seed=0)
    rows, ends = [], []
    # One decimal only, so that the thresholds themselves are among the values.
    for z, angle in np.round(rng.uniform([0, -1.2], [2.2, 1.2], (600, 2)), 1):
        qpos, qvel = env.init_qpos.copy(), env.init_qvel.copy()
        qpos[root] = z
        if root == 1:
            qpos[2] = angle / rng.choice([1, 5])
        env.set_state(qpos, qvel)
        rows.append(env._get_obs())
        ends.append(not env.is_healthy)
    env.close()
    next_obs, ended = torch.as_tensor(np.array(rows)), torch.as_tensor(np.array(ends))
    assert torch.equal(resolve("auto", env_id)(next_obs, next_obs, next_obs), ended)
    assert 50 < ended.sum() < 550


def test_double_pendulum_differs_at_the_threshold_alone():
    rule = resolve("auto", "InvertedDoublePendulum-v5")
    for kind in ("random", "sinusoid", "bang"):
        obs, act, next_obs, terminated = roll("InvertedDoublePendulum-v5", kind, 3000)
        assert terminated.sum() > 100
        assert (rule(obs, act, next_obs) != terminated).sum() <= 1


@pytest.mark.parametrize("name", ["hopper", "walker2d", "exploded"])
@pytest.mark.parametrize("far", [-1e6, -101.0, 101.0, 1e6])
def test_guard_is_two_sided(name, far):
    healthy = torch.tensor([1.2, 0.0, 0.1, 0.0])
    bad = healthy.clone()
    bad[2] = far
    act = torch.zeros(2, 1)
    assert TERMINATIONS[name](act, act, torch.stack([healthy, bad])).tolist() == [False, True]


def test_hopper_thresholds():
    z_angle = torch.tensor(
        [[0.71, 0.19], [0.69, 0.0], [1.2, 0.21], [1.2, -0.21], [-1e6, 0.0], [99.0, 0.0], [1e6, 0.0]]
    )
    next_obs = torch.cat([z_angle, torch.zeros(7, 9)], -1)
    # No upper bound on z, as in the simulator, whose state range leaves the height out.
    assert hopper(next_obs, next_obs, next_obs).tolist() == [False, True, True, True, True, False, False]


@pytest.mark.parametrize("name", sorted(TERMINATIONS))
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_rows_end(name, bad):
    for column in (0, 1, 5):
        next_obs = torch.full((1, 6), 0.0)
        next_obs[0, column] = bad
        assert TERMINATIONS[name](next_obs, next_obs, next_obs).item() == (name != "none")


@pytest.mark.parametrize("name", sorted(TERMINATIONS))
def test_leading_axes(name):
    next_obs = torch.randn(2, 3, 64, 11, generator=torch.Generator().manual_seed(0))
    rule = TERMINATIONS[name]
    ends = rule(next_obs, next_obs, next_obs)
    assert ends.shape == (2, 3, 64)
    assert ends.dtype == torch.bool
    assert torch.equal(ends, torch.stack([torch.stack([rule(x, x, x) for x in s]) for s in next_obs]))


def test_auto_matches_the_base_name_exactly():
    assert resolve("auto", "Hopper-v4") is resolve("auto", "Hopper") is resolve("hopper") is hopper
    assert resolve("auto", "gymnasium_robotics:PointMaze_Medium_Diverse_GRDense-v3") is exploded
    assert resolve("none", "Hopper-v5") is none
    assert resolve(hopper, None) is hopper
    for other in (
        "AntMaze_Nowhere-v5",
        "mine/Ant-v5",
        "Ant-very-long",
        "HopperTall-v0",
        "hopper-medium-v2",
        "",
        None,
    ):
        with pytest.raises(UserError, match=r"walker2d.*learned.*module:function") as e:
            resolve("auto", other)
        assert "\n" not in str(e.value)


def test_learned_needs_data():
    with pytest.raises(ValueError, match=r"LearnedTermination\.fit"):
        resolve("learned")


def test_own_functions(tmp_path, monkeypatch):
    (tmp_path / "my_rules.py").write_text(
        "class Rules:\n    def ends(o, a, n): return n[..., 0] > 3\nlimit = 3\n"
    )
    (tmp_path / "my_broken.py").write_text("import no_such_thing_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    x = torch.tensor([[2.0], [4.0]])
    assert resolve("my_rules:Rules.ends")(x, x, x).tolist() == [False, True]
    assert resolve_reward("my_rules:Rules.ends")(x, x, x).tolist() == [False, True]
    assert resolve_reward(None) is None
    assert resolve_reward(hopper) is hopper
    for path, says in {
        "my_missing:f": "cannot import my_missing",
        "my_broken:f": "no_such_thing_at_all",
        "my_rules:g": "has no g",
        "my_rules:limit": "int, not a function",
        "my_rules:": "expected package.module:function",
        ".my_rules:f": "expected package.module:function",
    }.items():
        for lookup in (resolve, resolve_reward):
            with pytest.raises(UserError, match=says) as e:
                lookup(path)
            assert "\n" not in str(e.value)
    with pytest.raises(UserError, match=r"no such rule.*hopper"):
        resolve("hoper")
    with pytest.raises(UserError, match="reward=mine: expected"):
        resolve_reward("mine")
    sys.modules.pop("my_rules")


def hopper_data(n: int, seed: int) -> list[Tensor]:
    """Rows of three behaviours, single precision."""
    parts = [roll("Hopper-v5", kind, n // 3, seed) for kind in ("random", "sinusoid", "bang")]
    return [torch.cat(field).float() for field in zip(*parts, strict=True)]


@functools.cache
def fitted() -> LearnedTermination:
    return LearnedTermination.fit(*hopper_data(15_000, seed=1), steps=1000)


def test_learned_head_on_unseen_hopper_data():
    obs, act, next_obs, done = hopper_data(6000, seed=2)
    head, dead = fitted(), done > 0.5
    assert dead.sum() > 100
    ends = head(obs, act, next_obs)
    assert (~ends[dead]).float().mean() < 0.15
    assert ends[~dead].float().mean() < 0.015
    p = head.logit(obs, act, next_obs).sigmoid()
    # Without the correction for balanced sampling, the mean is too high by a multiple.
    assert p.mean().item() == pytest.approx(done.mean().item(), rel=0.2)
    bins = (p * 10).long().clamp(max=9)
    error = sum(abs(float((done - p)[bins == k].sum())) for k in range(10)) / len(p)
    assert error < 0.015
    assert head.report["calibration_error"] < 0.015
    assert head.report["false_alive"] < 0.15
    assert head.report["false_dead"] < 0.015


def test_learned_head_shapes_and_bad_rows():
    head = fitted()
    obs, act, next_obs, _ = (x[:120] for x in hopper_data(6000, seed=2))
    flat = head(obs, act, next_obs)
    fold = lambda x: x.unflatten(0, (2, 3, 20))  # noqa: E731
    folded = head(fold(obs), fold(act), fold(next_obs))
    assert folded.dtype == torch.bool
    assert torch.equal(folded, flat.unflatten(0, (2, 3, 20)))
    one = [head(o[None], a[None], n[None]) for o, a, n in zip(obs, act, next_obs, strict=True)]
    assert torch.equal(torch.cat(one), flat)
    assert head(obs, act, next_obs.expand(4, -1, -1)).shape == (4, 120)
    assert head(obs, act, torch.full_like(next_obs, torch.nan)).all()


def test_learned_head_is_reproducible_and_complete():
    data = hopper_data(3000, seed=3)
    before = torch.get_rng_state()
    with torch.no_grad():  # a caller's no_grad must not reach the training
        a = LearnedTermination.fit(*data, seed=5, steps=50)
    b = LearnedTermination.fit(*data, seed=5, steps=50)
    c = LearnedTermination.fit(*data, seed=6, steps=50)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.logit(*data[:3]), b.logit(*data[:3]))
    assert not torch.equal(a.logit(*data[:3]), c.logit(*data[:3]))
    copy = LearnedTermination(11, 3)
    copy.load_state_dict(a.state_dict())
    assert torch.equal(copy.logit(*data[:3]), a.logit(*data[:3]))
    assert copy.report == a.report


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_learned_head_with_one_class(value):
    obs, act, next_obs, done = hopper_data(3000, seed=3)
    with pytest.warns(UserWarning, match="one class"):
        head = LearnedTermination.fit(obs, act, next_obs, torch.full_like(done, value))
    assert (head(obs, act, next_obs) == bool(value)).all()


@pytest.mark.parametrize("endings", [1, 2])
def test_learned_head_with_hardly_an_ending(endings):
    obs, act, next_obs, done = hopper_data(3000, seed=3)
    done = done * (done.cumsum(0) <= endings)
    head = LearnedTermination.fit(obs, act, next_obs, done, steps=50)
    assert torch.isfinite(head.logit(obs, act, next_obs)).all()
    assert head(obs, act, next_obs).float().mean() < 0.05


def test_learned_head_refuses_rows_that_are_not_finite():
    obs, act, next_obs, done = (x.clone() for x in hopper_data(3000, seed=3))
    next_obs[7, 2] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        LearnedTermination.fit(obs, act, next_obs, done)


@pytest.mark.parametrize("continuing", [False, True])
def test_point_maze_rules_equal_the_environment(continuing):
    """Pushed to the goal in a straight line, with noise: ends within 0.45 of it, or never in the continuing
    task.
    """
    robotics = pytest.importorskip("gymnasium_robotics")
    gym.register_envs(robotics)
    env = gym.make(
        "PointMaze_Open-v3", continuing_task=continuing, reset_target=False, disable_env_checker=True
    )
    rule = TERMINATIONS["point_maze" if continuing else "point_maze_goal"]
    rng, flat = np.random.default_rng(0), lambda o: np.concatenate([o["observation"], o["desired_goal"]])
    rows = []
    for episode in range(6):
        obs = flat(env.reset(seed=episode)[0])
        for _ in range(150):
            act = np.clip(3 * (obs[4:] - obs[:2]) - obs[2:4] + rng.normal(0, 0.5, 2), -1, 1).astype(
                np.float32
            )
            o, _, terminated, truncated, _ = env.step(act)
            rows.append((obs, act, flat(o), terminated))
            obs = flat(o)
            if terminated or truncated:
                break
    obs, act, next_obs, ended = (torch.as_tensor(np.array(x)) for x in zip(*rows, strict=True))
    assert int(ended.sum()) == (0 if continuing else 6)
    assert torch.equal(rule(obs, act, next_obs), ended)
