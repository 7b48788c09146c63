"""Environments as people make them: any box of actions, any place for randomness, no time limit, arguments
of their own.
"""

import json
import random
import warnings
from dataclasses import replace

import gymnasium
import h5py
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from mbo2o import naming
from mbo2o.agents.sac import SACConfig
from mbo2o.cli.main import compose_config, main
from mbo2o.dynamics.termination import HARMLESS, TERMINATIONS, resolve
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.envs import streams
from mbo2o.envs.disturb import DisturbConfig
from mbo2o.envs.lanes import Lane, Lanes
from mbo2o.envs.make import ActionBox, EnvChoice, make_env
from mbo2o.recipes.scratch import ScratchConfig
from mbo2o.run.config import RunConfig
from mbo2o.run.evaluate import Evaluator
from mbo2o.run.turns import Run
from mbo2o.run.watch import Stopped
from mbo2o.run.world import Task
from mbo2o.settings import kept, plain
from mbo2o.training import Config, read_config, restore, train
from mbo2o.types import UserError

NET = MLPConfig(hidden=[8])


class Own(gymnasium.Env):
    """A point in the plane that is drawn at each reset from a generator of its own, made in `reset`; it pays
    -|x|.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Box(-1, 1, (1,))
    rng = None

    def __init__(self, rule="default"):
        self.rule = rule

    def draw(self, seed):
        if seed is not None or self.rng is None:
            self.rng = np.random.default_rng(seed)
        return self.rng.uniform(-1, 1, 2)

    def reset(self, *, seed=None, options=None):
        self.x = self.draw(seed)
        return self.x.copy(), {}

    def step(self, act):
        self.x = self.x + 0.1 * np.ravel(act)[0]
        return self.x.copy(), -float(np.abs(self.x).sum()), False, False, {}


class Needs(Own):
    """It has a generator only once a seed comes."""

    def draw(self, seed):
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        return self.rng.uniform(-1, 1, 2)


class OfProcess(Own):
    def draw(self, seed):
        return np.random.uniform(-1, 1, 2)  # noqa: NPY002


class OfPython(Own):
    def draw(self, seed):
        return np.array([random.uniform(-1, 1), random.uniform(-1, 1)])


class OfSpace(Own):
    """The template that many begin with."""

    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Box(-1, 1, (2,), np.float64)

    def draw(self, seed):
        return self.observation_space.sample()


class Legacy(Own):
    def draw(self, seed):
        if seed is not None:
            self.rng = np.random.RandomState(seed)
        return self.rng.uniform(-1, 1, 2)


class Proper(Own):
    def draw(self, seed):
        gymnasium.Env.reset(self, seed=seed)
        return self.np_random.uniform(-1, 1, 2)


class Deaf(Own):
    """It draws from `np_random` and ignores the seed."""

    def draw(self, seed):
        return self.np_random.uniform(-1, 1, 2)


class Hidden(Own):
    """Nothing reaches its generator but a seed."""

    def draw(self, seed):
        if seed is not None:
            self.rng = {"hidden": np.random.default_rng(seed)}
        return self.rng["hidden"].uniform(-1, 1, 2)


class Entropy(Own):
    def draw(self, seed):
        return np.random.default_rng().uniform(-1, 1, 2)


KINDS = [Own, Needs, OfProcess, OfPython, OfSpace, Legacy, Proper, Deaf]


@pytest.fixture
def made():
    ids = []

    def register(cls, limit=20, **kwargs):
        name = f"{cls.__name__}People-v0"
        gymnasium.register(name, entry_point=cls, max_episode_steps=limit, **kwargs)
        ids.append(name)
        return name

    yield register
    for name in ids:
        gymnasium.registry.pop(name)


def small(directory, env, steps=60, **more):
    agent = SACConfig(actor=NET, critic=NET)
    run = {
        "log_every": 20,
        "eval_every": 20,
        "eval_episodes": 2,
        "checkpoint_every": 15,
        "online_capacity": 100,
    }
    run |= {k: more.pop(k) for k in list(more) if k in vars(RunConfig())}
    recipe = ScratchConfig(agent=agent, online_steps=steps, random_steps=20, batch=8)
    settings = {"seeds": 2, "report": False} | more
    return Config(recipe=recipe, env=env, dir=str(directory), run=RunConfig(**run), **settings)


def log(directory):
    lines = [json.loads(x) for x in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in x.items() if k != "time"} for x in lines]


# ---- actions


def floats(kind):
    width = 32 if kind == np.float32 else 64
    return st.floats(allow_nan=False, allow_infinity=False, width=width)


@st.composite
def boxes(draw, wide=True):
    """A box of float32 or float64 whose width is finite, of one to three axes; and actions in [-1, 1] with
    both ends.
    """
    kind = draw(st.sampled_from([np.float32, np.float64]))
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    n = int(np.prod(shape))
    numbers = floats(kind) if wide else st.floats(-100, 100, width=32)
    ends = draw(st.lists(st.tuples(numbers, numbers), min_size=n, max_size=n))
    low, high = (np.array([f(x) for x in ends], kind).reshape(shape) for f in (min, max))
    with np.errstate(over="ignore"):
        wide = ~np.isfinite(high - low)
    low[wide], high[wide] = -1, 1
    inner = st.one_of(
        st.floats(-1, 1, width=32),
        st.sampled_from([-1.0, 1.0, 0.0, np.nextafter(np.float32(1), np.float32(0))]),
    )
    acts = draw(st.lists(st.lists(inner, min_size=n, max_size=n), min_size=1, max_size=5))
    return spaces.Box(low, high, shape, kind), np.array(acts, np.float32)


@settings(max_examples=300, deadline=None)
@given(boxes())
def test_no_action_leaves_its_box_and_the_ends_are_the_bounds(case):
    space, acts = case
    stretch = ActionBox(space)
    for act in acts:
        for x in (act, act.astype(np.float64), 1.5 * act):
            sent = stretch(x)
            assert sent.dtype == space.dtype
            assert sent.shape == space.shape
            assert (sent >= space.low).all()
            assert (sent <= space.high).all()
            assert np.array_equal(sent.ravel()[x >= 1], space.high.ravel()[x >= 1])
            assert np.array_equal(sent.ravel()[x <= -1], space.low.ravel()[x <= -1])


@settings(max_examples=200, deadline=None)
@given(boxes(wide=False))
def test_actions_between_the_bounds_are_mapped_affinely(case):
    space, acts = case
    low, high = space.low.ravel().astype(float), space.high.ravel().astype(float)
    for act in acts:
        expected = low + (act.astype(float) + 1) / 2 * (high - low)
        np.testing.assert_allclose(ActionBox(space)(act).ravel(), expected, atol=2e-5, rtol=1e-5)


class Box(Own):
    """It remembers what reached it."""

    def __init__(self, space=None):
        self.action_space = space or spaces.Box(
            np.array([[-1, 0, -3], [-2, -0.3, 1]], np.float32), np.array([[1, 1, 5], [2, 0.1, 7]], np.float32)
        )
        self.sent = []

    def step(self, act):
        self.sent.append(np.array(act))
        return np.zeros(2), 0.0, False, False, {}


@settings(max_examples=60, deadline=None)
@given(boxes(), st.floats(0, 3), st.integers(0, 1000))
def test_noise_on_actions_does_not_leave_the_box_either(case, noise, seed):
    space, acts = case
    if "BoxPeople-v0" in gymnasium.registry:
        gymnasium.registry.pop("BoxPeople-v0")
    gymnasium.register("BoxPeople-v0", entry_point=Box, max_episode_steps=50, kwargs={"space": space})
    lane = Lane("BoxPeople-v0", seed, DisturbConfig(action_noise=noise))
    with np.errstate(over="ignore"):  # noise on bounds near the largest number
        for act in acts:
            lane.step(act)
    for sent in lane.env.unwrapped.sent:
        assert sent.dtype == space.dtype
        assert sent.shape == space.shape
        assert (sent >= space.low).all()
        assert (sent <= space.high).all()
    gymnasium.registry.pop("BoxPeople-v0")


def test_several_axes_are_one_row_in_c_order(made):
    lane = Lane(made(Box), 0)
    assert lane.act_dim == 6
    lane.step(np.array([-1, -1, 1, 0, 1, -1]))
    assert lane.env.unwrapped.sent[0].tolist() == [[-1, 0, 5], [0, np.float32(0.1), 1]]


def test_an_episode_of_several_axes_resumes(made):
    lanes, acts = Lanes(made(Box), (2,), 3), torch.rand(7, 2, 1, 6) * 2 - 1
    for act in acts:
        lanes.step(act)
    resumed = Lanes("BoxPeople-v0", (2,), 9)
    resumed.load(*lanes.state())
    for one, other in zip(lanes._lanes, resumed._lanes, strict=True):
        assert np.array_equal(one.env.unwrapped.sent, other.env.unwrapped.sent[-7:])


def test_training_sends_four_independent_numbers(made, tmp_path):
    """A 2x2 action whose best value, 0, no two equal rows can reach."""

    class Square(Own):
        action_space = spaces.Box(-1, 1, (2, 2))

        def step(self, act):
            sent.append(np.array(act))
            return super().step(act)

    sent = []
    train(small(tmp_path / "run", made(Square), steps=30))
    rows = np.array(sent)
    assert rows.shape[1:] == (2, 2)
    assert (rows[:, 0] != rows[:, 1]).any()


REFUSED = {
    "infinite": (spaces.Box(-np.inf, 1, (2,)), r"action\[0\] lies in \[-inf, 1.0\]"),
    "wide": (spaces.Box(-3e38, 3e38, (1, 2)), r"action\[0, 0\] lies in .*finite float32"),
    "wide in double": (spaces.Box(-1.7e308, 1.7e308, (2,), np.float64), "finite float64"),
    "whole numbers": (spaces.Box(0, 5, (2,), np.int64), "dtype int64"),
    "no axis": (spaces.Box(-1, 1, ()), "one axis"),
    "no number": (spaces.Box(-1, 1, (2, 0)), "one number"),
    "a choice": (spaces.Discrete(3), "found Discrete"),
    "many": (spaces.Box(-np.arange(1000.0), np.inf, (1000,), np.float64), "action"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_box_that_cannot_be_served_is_refused_in_one_line(name, made):
    space, says = REFUSED[name]
    with pytest.raises(UserError, match=says) as e:
        make_env(made(Box, kwargs={"space": space}))
    assert "\n" not in str(e.value)
    assert "BoxPeople-v0" in str(e.value)
    assert len(str(e.value)) < 300


def test_a_box_without_width_is_served(made):
    lane = Lane(made(Box, kwargs={"space": spaces.Box(np.float32([0.1, -1]), np.float32([0.1, 1]))}), 0)
    lane.step(np.array([0.3, 1.0]))
    assert lane.env.unwrapped.sent[0].tolist() == [np.float32(0.1), 1]


def test_observations_of_several_axes_are_refused_with_the_cure(made):
    class Image(Own):
        observation_space = spaces.Box(-1, 1, (2, 3))

    with pytest.raises(UserError, match="FlattenObservation"):
        make_env(made(Image))


# ---- randomness


def zero(obs):
    return obs[..., :1] * 0


def no_value(obs, act):
    return torch.zeros(obs.shape[:-1])


@pytest.mark.parametrize("cls", KINDS)
def test_the_same_seed_gives_the_same_run_and_an_unchanged_policy_the_same_evaluations(cls, made, tmp_path):
    name, logs = made(cls), []
    for k in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message="no reference set knows")
            train(small(tmp_path / f"run{k}", name))
        logs.append(log(tmp_path / f"run{k}"))
        np.random.random(10)  # noqa: NPY002  what else the process draws does not matter
        random.random()
    assert logs[0] == logs[1]
    first, second = [x for x in logs[0] if x["kind"] == "eval"][:2]  # before any learning
    assert first["return"] == second["return"]
    assert len(set(first["return"])) == 2


@pytest.mark.parametrize("cls", KINDS)
def test_starts_differ_between_lanes_and_episodes_and_evaluations_do_not(cls, made):
    streams.seed_globals(0)
    lane, starts = Lane(made(cls), 3), []
    for _ in range(4):
        starts.append(lane.obs)
        lane.reset()
    assert len({x.tobytes() for x in starts}) == 4
    seen = []
    evaluate = Evaluator(lane.env_id, (2,), 3, 0, 0.9)
    before = streams.globals_state()
    for _ in range(2):
        evaluate(lambda obs: seen.append(obs.clone()) or zero(obs), no_value)
    assert streams.globals_stand_at(before)
    assert torch.equal(seen[0], seen[20])
    assert len({tuple(x) for x in seen[0].reshape(-1, 2).tolist()}) == 6
    assert evaluate.unrepeatable() is None


@pytest.mark.parametrize("cls", KINDS)
@pytest.mark.parametrize("steps", [7, 33])
def test_an_episode_in_flight_continues_bit_for_bit_and_into_the_next(cls, steps, made):
    """In the episode that the seed began, and in a later one."""
    streams.seed_globals(0)
    lanes, acts = Lanes(made(cls), (2,), 3), torch.rand(60, 2, 1, 1) * 2 - 1
    for act in acts[:steps]:
        lanes.step(act)
    tensors, rngs = lanes.state()
    saved = streams.dumps(streams.globals_state())
    whole = [lanes.step(act)[0] for act in acts[steps:]]
    streams.seed_globals(99)
    resumed = Lanes(f"{cls.__name__}People-v0", (2,), 99)
    streams.set_globals(streams.loads(saved))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed.load(tensors, rngs)
    streams.set_globals(streams.loads(saved))
    for a, b in zip(whole, (resumed.step(act)[0] for act in acts[steps:]), strict=True):
        assert torch.equal(a.obs, b.obs)
        assert torch.equal(a.next_obs, b.next_obs)


@pytest.mark.parametrize("cls", [Own, Needs, OfProcess, Proper])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(cls, made, tmp_path, monkeypatch):
    name = made(cls)
    train(small(tmp_path / "whole", name))
    after = Run._after_turn

    def stopping(self, last):
        self.signals.stop = self.phase == "online" and self.turn == 33
        after(self, last)

    monkeypatch.setattr(Run, "_after_turn", stopping)
    with pytest.raises(Stopped):
        train(small(tmp_path / "run", name))
    monkeypatch.undo()
    streams.seed_globals(12345)
    train(small(tmp_path / "run", name))
    assert log(tmp_path / "run") == log(tmp_path / "whole")


@pytest.mark.parametrize(
    ("cls", "says"), [(Hidden, "do not follow a saved random state"), (Entropy, "other starts each time")]
)
def test_an_episode_that_cannot_be_repeated_is_one_line(cls, says, made, tmp_path):
    with pytest.warns(UserWarning, match=says) as caught:
        train(small(tmp_path / "run", made(cls)))
    told = [str(x.message) for x in caught if says in str(x.message)]
    assert len(told) == 1
    assert "\n" not in told[0]


@pytest.mark.parametrize("cls", [Own, Needs, OfProcess, Legacy, Proper])
def test_an_environment_that_replaces_one_that_failed_draws_where_it_left_off(cls, made, monkeypatch):
    name, starts = made(cls), []
    for fails in (False, True):
        streams.seed_globals(0)
        lane = Lane(name, 5)
        lane._broken = fails
        lane.reset()
        starts.append(lane.obs)
    assert np.array_equal(*starts)


# ---- tasks that never end


class Endless(Proper):
    pass


def test_an_endless_task_is_cut_and_says_so(made, tmp_path, capsys):
    name = made(Endless, None)
    train(small(tmp_path / "run", name, max_episode_steps=30))
    said = [x for x in capsys.readouterr().err.splitlines() if "without max_episode_steps" in x]
    assert len(said) == 1
    assert "episodes are truncated after 30 steps (run.max_episode_steps)" in said[0]
    assert {x["length"][0] for x in log(tmp_path / "run") if x["kind"] == "eval"} == {30}
    assert [x["length"] for x in log(tmp_path / "run") if x["kind"] == "episode"] == [[30, 30]] * 2


def test_a_cut_is_a_truncation_and_frees_the_memory(made):
    lanes = Lanes(EnvChoice(made(Endless, None), cap=10), (), 0)
    for t in range(1, 31):
        batch, truncated, ended = lanes.step(torch.zeros(1, 1))
        assert batch.done.item() == 0
        assert truncated.item() == (t % 10 == 0) == len(ended)
        assert len(lanes._lanes[0]._actions) == t % 10


@pytest.mark.parametrize(("limit", "cap", "capped"), [(20, 10, False), (None, None, False), (None, 10, True)])
def test_a_task_with_a_limit_keeps_it_and_null_lifts_the_cap(limit, cap, capped, made):
    lane = Lane(EnvChoice(made(Endless, limit), cap=cap), 0)
    assert lane.capped == capped
    over = [any(lane.step(np.zeros(1))[2:]) for _ in range(30)]
    assert (over.index(True) + 1 if any(over) else None) == (limit or cap)


def test_collecting_in_an_endless_task_says_it_too_and_repeats(made, tmp_path, capsys):
    collect, files = (
        ["data", "collect", "--policy", "random", "--env", made(OfProcess, None), "--rows", "30"],
        [],
    )
    for k in range(2):
        files.append(tmp_path / f"{k}.hdf5")
        with pytest.raises(SystemExit) as e:
            main([*collect, "--out", str(files[-1])])
        assert e.value.code == 0
        assert "episodes are truncated after 1000 steps" in capsys.readouterr().err
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_cap_is_a_setting():
    with pytest.raises(UserError, match="max_episode_steps=0"):
        RunConfig(max_episode_steps=0)


# ---- arguments of an environment

ANT = "Ant-v5"


def pendulum(directory, *overrides):
    """The config of a small run, as the command line makes it."""
    sizes = [
        "recipe.agent.actor.hidden=[8]",
        "recipe.agent.critic.hidden=[8]",
        "recipe.batch=8",
        "recipe.random_steps=10",
        "report=false",
    ]
    steps = ["recipe.online_steps=10", "run.eval_episodes=1", "run.eval_every=10", f"dir={directory}"]
    return compose_config(["recipe=scratch", "env=Pendulum-v1", "report=false", *sizes, *steps, *overrides])


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        (["+env_kwargs.g=5.0", "+env_kwargs.max_episode_steps=30"], {"g": 5.0, "max_episode_steps": 30}),
        (["env_kwargs={g: 5.0, max_episode_steps: 30}"], {"g": 5.0, "max_episode_steps": 30}),
        (
            ["+env_kwargs.healthy_z_range=[0.3,1.0]", "+env_kwargs.flag=false"],
            {"healthy_z_range": [0.3, 1.0], "flag": False},
        ),
        (["++env_kwargs.g=5.0"], {"g": 5.0}),
        ([], None),
    ],
)
def test_arguments_come_from_the_command_line(overrides, found, tmp_path):
    assert pendulum(tmp_path, *overrides).env_kwargs == found


def test_an_argument_without_a_plus_gets_a_hint(tmp_path):
    with pytest.raises(UserError, match=r"with a plus, \+env_kwargs\.g=VALUE"):
        pendulum(tmp_path, "env_kwargs.g=5.0")


def test_an_offline_phase_of_another_task_is_refused(tmp_path):
    train(pendulum(tmp_path / "run", "+env_kwargs.g=5.0"))
    for more, says in (([], "None"), (["+env_kwargs.g=6.0"], r"6\.0")):
        with pytest.raises(UserError, match=rf"was run with env_kwargs\.g=5\.0, not {says}"):
            train(pendulum(tmp_path / "other", f"start_from={tmp_path / 'run'}", *more))


def test_arguments_reach_every_environment_and_are_kept(tmp_path, monkeypatch, capsys):
    given, make = [], gymnasium.make
    monkeypatch.setattr(gymnasium, "make", lambda *a, **k: given.append(k) or make(*a, **k))
    arguments = {"g": 5.0, "max_episode_steps": 30}
    directory = train(pendulum(tmp_path / "run", "env_kwargs={g: 5.0, max_episode_steps: 30}"))
    assert {x["length"][0] for x in log(directory) if x["kind"] == "eval"} == {30}
    run, _ = restore(directory)
    assert run.env.kwargs == read_config(directory)[0].env_kwargs == arguments
    with pytest.raises(SystemExit) as e:
        main(["eval", str(directory), "--episodes", "2"])
    assert e.value.code == 0
    assert "length 30" in capsys.readouterr().out
    assert len(given) > 6
    assert all({k: x[k] for k in arguments} == arguments for x in given)


def test_arguments_are_part_of_a_runs_identity(tmp_path):
    directory = train(pendulum(tmp_path / "run", "+env_kwargs.g=5.0"))
    with pytest.raises(UserError, match=r"holds a run with env_kwargs\.g=5\.0, not None"):
        train(pendulum(directory))
    with pytest.raises(UserError, match=r"holds a run with env_kwargs\.g=5\.0, not 6\.0"):
        train(pendulum(directory, "+env_kwargs.g=6.0"))
    train(pendulum(directory, "+env_kwargs.g=5.0"))


def test_directories_of_runs_with_other_arguments_have_other_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    usual, changed = (train(replace(pendulum("x", *more), dir=None)) for more in ([], ["+env_kwargs.g=5.0"]))
    assert usual != changed
    assert naming.name(*read_config(usual)) == usual.name
    assert naming.name(*read_config(changed)) == changed.name


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"gg": 1}, "takes no argument 'gg', which env_kwargs gives"),
        ({"g": [1], "render_mode": "x" * 5}, "env_kwargs {g"),
        ({"id": "Hopper-v5"}, "env_kwargs"),
        (["g"], "expected names and values"),
        ({"g": np.float64(1)}, r"env_kwargs\.g is a float64"),
        ({"g": {1: 2}}, r"env_kwargs\.g is a dict"),
        ({"g": [print]}, r"env_kwargs\.g\[0\] is a builtin"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bad_arguments_are_refused_in_one_line(arguments, says, made, tmp_path):
    cfg = pendulum(tmp_path / "run")
    cfg.env_kwargs = arguments
    if says == "env_kwargs {g":
        cfg.env = made(Picky)
    with pytest.raises(UserError, match=says) as e:
        train(cfg)
    assert "\n" not in str(e.value)


class Picky(Own):
    def __init__(self, g, render_mode=None):
        raise ValueError("g has to be\na number")


def test_an_unknown_argument_of_a_mujoco_task_is_named():
    with pytest.raises(UserError, match="takes no argument 'helthy_z_range'"):
        make_env(EnvChoice("Hopper-v5", {"helthy_z_range": [0.3, 1.0]}))


@pytest.mark.parametrize(
    "name", ["terminate_when_unhealthy", "healthy_z_range", "exclude_current_positions_from_observation"]
)
def test_the_rule_of_a_changed_task_is_not_guessed(name):
    with pytest.raises(UserError, match=rf"env_kwargs gives {name}; .*learned"):
        resolve("auto", "Hopper-v5", {name: 0, "ctrl_cost_weight": 0.1})
    assert resolve("none", "Hopper-v5", {name: 0}) is TERMINATIONS["none"]
    assert resolve("auto", "Hopper-v5", {"ctrl_cost_weight": 0.1}) is TERMINATIONS["hopper"]


def test_harmless_arguments_are_arguments_of_the_tasks_and_leave_the_rules_right():
    """The same steps end, whatever these are set to: the rule is certified in the environment that has them."""  # noqa: E501
    arguments = {
        "ctrl_cost_weight": 0.0,
        "reset_noise_scale": 0.2,
        "healthy_reward": 3.0,
        "include_cfrc_ext_in_observation": False,
    }
    assert set(arguments) <= HARMLESS
    lane, rule, ends = Lane(EnvChoice(ANT, arguments), 0), resolve("auto", ANT, arguments), []
    rng = np.random.default_rng(0)
    for _ in range(300):
        _, after, terminated, truncated = lane.step(rng.uniform(-1, 1, 8))
        x = torch.from_numpy(after)
        assert bool(rule(x, x, x)) == terminated
        ends.append(terminated)
        if terminated or truncated:
            lane.reset()
    assert any(ends)


def test_scores_are_for_default_arguments(tmp_path):
    def scored(**chosen):
        task = Task("Hopper-v5", seed=0, seeds=1, gamma=0.9, env_kwargs={"healthy_reward": 0.0})
        run = Run(tmp_path, RunConfig(**chosen), task)
        run.close()
        return run.reference.known

    with pytest.warns(UserWarning, match="no scores"):
        assert not scored()
    assert scored(allow_mismatch=True)
    assert scored(reference=[0.0, 1.0])


def test_data_check_makes_the_task_that_it_is_told_of(tmp_path, capsys):
    n = 40
    obs = np.random.default_rng(0).normal(size=(n, 27)).astype(np.float32)
    act, ends = np.zeros((n, 8), np.float32), np.arange(n) % 20 == 19
    fields = {
        "observations": obs,
        "actions": act,
        "rewards": obs[:, 0],
        "terminals": ends & False,
        "timeouts": ends,
    }
    with h5py.File(tmp_path / "a.hdf5", "w") as f:
        for key, x in fields.items():
            f[key] = x
    told = []
    for more in ([], ["--env-kwargs", '{"include_cfrc_ext_in_observation": false}'], ["--env-kwargs", "{x"]):
        with pytest.raises(SystemExit):
            main(["data", "check", str(tmp_path / "a.hdf5"), "--env", ANT, *more])
        told.append("".join(capsys.readouterr()))
    assert "105" in told[0]
    assert "105" not in told[1]
    assert "is not JSON" in told[2]


def test_a_setting_given_as_another_one_is_read_back_from_the_config(tmp_path):
    cfg = compose_config(
        ["switch=td3bc", "dataset=x.hdf5", "env=Pendulum-v1", "run.log_every=${recipe.batch}"]
    )
    cfg.env_kwargs = {"text": "${recipe.batch}"}
    stored = OmegaConf.create(plain(cfg, "Pendulum-v1"))
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(stored))
    found, _ = read_config(tmp_path)
    assert "run.log_every=${recipe.batch}" in str(found.provenance)
    assert (found.provenance, found.env_kwargs) == (cfg.provenance, cfg.env_kwargs)


def test_an_argument_whose_name_is_no_text_is_named():
    with pytest.raises(UserError, match="env_kwargs is a dict with the name 1, which is not text"):
        kept("env_kwargs", {1: 2})
