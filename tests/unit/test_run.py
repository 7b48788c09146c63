"""What a log line holds, TensorBoard, divergence, and the limit on |Q|."""

import inspect
import json
import math
import re
import weakref
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from mbo2o.agents.sac import SAC, SACConfig
from mbo2o.data.dataset import TransitionDataset
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.envs.disturb import DisturbConfig
from mbo2o.envs.faults import Faults
from mbo2o.envs.lanes import Lane, Lanes
from mbo2o.progress import Progress, describe
from mbo2o.recipes.scratch import ScratchConfig
from mbo2o.run.config import RunConfig
from mbo2o.run.evaluate import Evaluator
from mbo2o.run.log import Means
from mbo2o.run.memory import Memory
from mbo2o.run.turns import Run
from mbo2o.run.watch import Divergence, Signals
from mbo2o.run.world import Task, World
from mbo2o.store import checkpoint
from mbo2o.training import Config, train
from mbo2o.types import Diverged, RewardView, UserError, duration

NET = MLPConfig(hidden=[8])


def make(path, env_id="Pendulum-v1", gamma=0.9, dataset=None, log=(), **cfg):
    path.mkdir(exist_ok=True)
    settings = RunConfig(
        **{"log_every": 5, "eval_every": 100, "eval_episodes": 1, "online_capacity": 500, **cfg}
    )
    run = Run(path, settings, Task(env_id, seed=0, seeds=2, gamma=gamma), dataset, loggers=log)
    run.enter("online")
    agent = SAC(run.spec, SACConfig(actor=NET, critic=NET))
    run.track(agent=agent)
    return run, agent


def lines(path, kind):
    return [
        x for x in map(json.loads, (path / "metrics.jsonl").read_text().splitlines()) if x["kind"] == kind
    ]


def test_means_cover_what_was_logged_since_the_last_line(tmp_path):
    run, _ = make(tmp_path)
    for t in run.steps(12):
        run.log(
            {"x": torch.tensor([float(t), 0.0])}, {"y": torch.tensor([1.0, torch.inf if t > 99 else 2.0])}
        )
    found = [(x["step"], x["x"][0]) for x in lines(tmp_path, "train")]
    assert found == [(5, 2.0), (10, 7.0), (12, 10.5)]


def test_episodes_are_logged_for_the_lanes_that_ended(tmp_path):
    run, agent = make(tmp_path)
    for _ in run.interact(agent, 201):
        pass
    (episode,) = lines(tmp_path, "episode")
    assert episode["step"] == 199
    assert episode["length"] == [200.0, 200.0]
    total = run.online.rows(torch.arange(200).expand(2, -1)).rew.sum(-1)
    assert episode["return"] == pytest.approx(total.tolist(), rel=1e-4)


def test_interact_stores_one_transition_per_seed_and_turn_before_the_body(tmp_path):
    run, agent = make(tmp_path)
    for t in run.interact(agent, 5):
        assert len(run.online) == t + 1
    b = run.online.latest(5)
    assert torch.equal(b.obs[:, 1:], b.next_obs[:, :-1])


@pytest.mark.parametrize(("value", "text"), [(float("nan"), "q is not finite"), (2e6, r"reached 2e\+06")])
def test_divergence_names_the_metric_and_the_turn(tmp_path, value, text):
    run, _ = make(tmp_path)

    def turns():
        for t in run.steps(20):
            run.log({"q": torch.tensor([0.0, value if t >= 5 else 0.0])})

    with pytest.raises(Diverged, match=f"{text}.*online turn 10"):
        turns()
    assert list((tmp_path / "checkpoints").iterdir())


def test_tensorboard_is_written_when_asked_for(tmp_path, monkeypatch):
    run, _ = make(tmp_path, log=["tensorboard"])
    for _ in run.steps(5):
        run.log({"x": torch.zeros(2)})
    run.close()
    assert list(Path(tmp_path, "tensorboard").glob("events.*"))
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"mbo2o\[tensorboard\]"):
        make(tmp_path / "other", log=["tensorboard"])


def test_means_survive_a_checkpoint():
    a, b = Means(), Means()
    a.add({"x": torch.tensor([1.0])})
    b.load(*a.state())
    for m in (a, b):
        m.add({"x": torch.tensor([4.0])})
    assert a.pop()["x"].tolist() == b.pop()["x"].tolist() == [2.5]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0104321, "0.0104"),
        (3.14159, "3.14"),
        (0.0, "0.0"),
        (-1206.94, "-1206.9"),
        (85.26, "85.3"),
        (1.5e-9, "1.5e-09"),
        (None, "nan"),
    ],
)
def test_progress_shows_three_digits_of_small_numbers(value, text):
    assert describe({"x": [value]}, ("x", "y")) == f"x {text}"
    assert describe({"x": [value, value]}, ("x",)).startswith(f"x {text} ± ")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (42, "42 s"), (99.7, "1.7 min"), (3000, "50.0 min"), (7200, "2.0 h")]
)
def test_durations_have_a_unit_that_suits_them(seconds, text, capsys, monkeypatch):
    assert duration(seconds) == text
    now = [0.0]
    monkeypatch.setattr("mbo2o.progress.time.monotonic", lambda: now[0])
    progress = Progress("online", 0, 2)
    progress.step()
    now[0] = seconds
    progress.say("holds")
    assert capsys.readouterr().err.endswith(f"1/2  holds  {text} left\n")


# ---- the limit on |Q|


class Jackpot(gymnasium.Env):
    """Pays nothing for 7 steps, then 100 a step."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2), {}

    def step(self, action):
        self.steps += 1
        return np.full(2, 0.01 * self.steps), 100.0 if self.steps > 7 else 0.0, False, False, {}


gymnasium.register("Jackpot-v0", entry_point=Jackpot, max_episode_steps=40)


def poor(reward=0.0):
    """Five steps with this reward each."""
    flags = np.zeros(5, bool)
    return TransitionDataset.from_arrays(
        np.zeros((5, 2)),
        np.zeros((5, 1)),
        np.full(5, reward),
        flags,
        flags | (np.arange(5) == 4),
        np.zeros((5, 2)),
    )


def claim(run, agent, q, turns=10):
    """Take turns in the environment whose critics say `q`."""
    for _ in run.interact(agent, turns):
        run.log({"q": torch.tensor([0.0, q])})


def said(path, agent_says, **options):
    """What the run says when its critics say so, in the first ten turns."""
    run, agent = make(path, **options)
    with pytest.raises(Diverged) as caught:
        claim(run, agent, agent_says)
    run.close()
    return str(caught.value)


def test_the_limit_follows_the_rewards_met_online(tmp_path):
    """Rewards in the dataset are 0, so |Q| may not exceed 100, and 10 000 once 100 has been paid."""
    late = {"env_id": "Jackpot-v0", "dataset": poor(), "log_every": 10}
    run, agent = make(tmp_path / "a", **late)
    claim(run, agent, 9_000.0)
    run.close()
    guess = (
        r"beyond run\.q_limit=1e\+04 \(guessed from the largest \|reward\| met so far, 100 at online turn 8; "
    )
    text = said(tmp_path / "b", 11_000.0, **late)
    assert re.search(guess + r"set run\.q_limit=NUMBER to choose\)", text), text
    early = said(tmp_path / "c", 9_000.0, **late | {"log_every": 5})
    assert "at online turn 5, beyond run.q_limit=100 " in early
    assert "met so far, 0, counted as 1; set run.q_limit" in early


def test_the_limit_starts_with_the_rewards_of_the_dataset(tmp_path):
    text = said(tmp_path, 3_001.0, env_id="Jackpot-v0", dataset=poor(-30.0), log_every=5)
    assert (
        "beyond run.q_limit=3e+03 (guessed from the largest |reward| met so far, 30 in the dataset; set"
        in text
    )


def test_the_limit_counts_rewards_as_the_agent_learns_from_them(tmp_path):
    shaped = {"reward_scale": 0.5, "reward_shift": 1.0, "log_every": 10}
    assert "met so far, 51 at online turn 8;" in said(
        tmp_path, 1e6, env_id="Jackpot-v0", dataset=poor(), **shaped
    )


def test_the_limit_follows_imagined_rewards_and_never_falls(tmp_path):
    run, _ = make(tmp_path)

    def turns():
        for t in run.steps(20):
            run.imagined(torch.tensor([3.0, 700.0 if t == 2 else 2.0]))
            run.log({"q": torch.tensor([0.0, 60_000.0 if t < 10 else 80_000.0])})

    with pytest.raises(
        Diverged, match=r"turn 15, beyond run.q_limit=7e\+04 .*met so far, 700 imagined at online turn 3;"
    ):
        turns()


def test_a_configured_limit_is_kept(tmp_path):
    text = said(tmp_path, 60.0, env_id="Jackpot-v0", q_limit=50.0, log_every=10)
    assert text == "|Q| reached 60 at online turn 10, beyond run.q_limit=50; the last checkpoint is kept"
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(UserError, match=r"run\.q_limit=.* must be above 0"):
            RunConfig(q_limit=wrong)


@pytest.mark.parametrize("dataset", [None, poor(1.0)])
def test_without_a_discount_the_limit_follows_the_rewards_too(tmp_path, dataset):
    options = {"env_id": "Jackpot-v0", "gamma": 1.0, "dataset": dataset}
    assert "turn 5, beyond run.q_limit=1e+06 " in said(tmp_path / "a", 1.1e6, **options, log_every=5)
    run, agent = make(tmp_path / "b", **options, log_every=10)
    claim(run, agent, 9e7)


def interact(path, stop, says, **options):
    """Take up to 30 turns, but leave before turn `stop`; `says` maps a turn to what a critic says."""
    run, agent = make(path, **options)
    for t in run.interact(agent, 30):
        if t == stop:
            break
        run.log({"q": torch.tensor([0.0, says(t)])})
    run.close()


def test_a_resumed_run_has_the_limit_that_it_had(tmp_path, monkeypatch):
    """A run remembers rewards that the buffer has dropped; an older checkpoint knows only the buffer's."""
    options = {
        "env_id": "Jackpot-v0",
        "dataset": poor(),
        "log_every": 10,
        "online_capacity": 12,
        "checkpoint_every": 10,
    }

    def says(t):
        return 9_000.0 if t < 20 else 11_000.0

    texts = []
    for path, stops in ((tmp_path / "whole", (None,)), (tmp_path / "broken", (15, None))):
        for stop in stops[:-1]:
            interact(path, stop, says, **options)
        with pytest.raises(Diverged) as caught:
            interact(path, None, says, **options)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    assert "turn 30, beyond run.q_limit=1e+04 " in texts[0]
    assert "100 at online turn 8;" in texts[0]
    latest = checkpoint.latest

    def older(folder, device):
        tensors, state = latest(folder, device)
        return tensors, {k: v for k, v in state.items() if k != "largest"}

    monkeypatch.setattr(checkpoint, "latest", older)
    with pytest.raises(Diverged, match=r"run\.q_limit=1e\+04 .*met so far, 100 online; "):
        interact(tmp_path / "broken", None, says, **options)


def test_a_run_that_has_ended_is_freed(tmp_path, monkeypatch):
    """Studies make many runs in one process; each holds a buffer of gigabytes at the papers' sizes."""
    made, init = [], Run.__init__
    monkeypatch.setattr(
        Run, "__init__", lambda self, *a, **k: made.append(weakref.ref(self)) or init(self, *a, **k)
    )
    small = SACConfig(actor=MLPConfig(hidden=[4]), critic=MLPConfig(hidden=[4]))
    recipe = ScratchConfig(agent=small, online_steps=2, random_steps=1, batch=2)
    run = RunConfig(eval_episodes=1, online_capacity=10)
    train(Config(recipe=recipe, env="Pendulum-v1", dir=str(tmp_path / "run"), run=run, report=False))
    assert len(made) == 1
    assert made[0]() is None


# ---- settings


COUNTS = ("log_every", "eval_every", "eval_episodes", "checkpoint_every", "online_capacity")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        *(({name: 0}, rf"run\.{name}=0 must be at least 1") for name in COUNTS),
        ({"max_episode_steps": 0}, "max_episode_steps=0 must be at least 1"),
        ({"reward_scale": 0}, r"run\.reward_scale=0 .*nothing could be learned"),
        ({"reward_scale": 0.0}, r"run\.reward_scale=0 .*nothing could be learned"),
        ({"reward_scale": math.inf}, r"run\.reward_scale=inf must be a finite number, or auto"),
        ({"reward_shift": math.nan}, r"run\.reward_shift=nan is not a finite number"),
        ({"failure_reward": -math.inf}, r"run\.failure_reward=-inf is not a finite number"),
        ({"env_seconds": math.inf}, r"run\.env_seconds=inf is not a finite number"),
        ({"env_seconds": math.nan}, r"run\.env_seconds=nan must be above 0"),
    ],
)
def test_settings_that_cannot_work_are_one_line(change, says):
    with pytest.raises(UserError, match=says) as caught:
        RunConfig(**change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["action_noise", "transition_noise", "reward_noise", "reward_above"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_disturbances_are_finite(name, value):
    with pytest.raises(UserError, match=rf"run\.disturb\.{name}={value} is not a finite number"):
        DisturbConfig(**{name: value})


def test_a_limit_on_q_may_be_infinite():
    assert RunConfig(q_limit=math.inf).q_limit == math.inf


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.1, 1.0), (10.0, -5.0)])
def test_a_reward_view_is_the_same_for_tensors_and_numbers(scale, shift):
    rewards = torch.tensor([[-3.0, 0.0, 0.7]])
    shown = RewardView(scale, shift)(rewards)
    torch.testing.assert_close(shown, rewards * scale + shift)
    assert RewardView(scale, shift)(-3.0) == pytest.approx(float(shown[0, 0]))


@pytest.mark.parametrize("cls", [Run, World, Memory, Signals, Divergence, Evaluator, Lane, Lanes, Faults])
def test_classes_stay_small(cls):
    """At most 15 public methods, and 7 arguments to make one."""
    assert len([name for name in vars(cls) if not name.startswith("_")]) <= 15
    assert len(inspect.signature(cls).parameters) <= 7
