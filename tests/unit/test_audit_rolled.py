"""The dataset doctor on sound files, rolled out in every MuJoCo environment of gymnasium by many policies.

A file here is what an environment really did, so a fault in it is the doctor's mistake. Suite 0 is what the
doctor was mended by, suite 1 confirms it. Run as a script, this file prints which findings sound files get
and which share of the faults that are planted in every third file is found:

    python tests/unit/test_audit_rolled.py SUITE FILES

A fault is only planted where it makes the file untrue and its columns can show it. Actions or rewards that
are shifted in a short file are mostly missed, since the doctor says nothing without enough rows.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest
import torch

from mbo2o.collect.actor import Actor
from mbo2o.data.fields import Attrs, Fields
from mbo2o.doctor.audit import audit
from mbo2o.doctor.evidence import Task
from mbo2o.doctor.findings import Report
from mbo2o.dynamics.termination import resolve
from mbo2o.types import UserError

ACTORS = Path(__file__).parents[2] / "data" / "actors"
BODIES = [
    *(
        "Ant",
        "HalfCheetah",
        "Hopper",
        "Humanoid",
        "HumanoidStandup",
        "InvertedDoublePendulum",
        "InvertedPendulum",
    ),
    *("Pusher", "Reacher", "Swimmer", "Walker2d"),
]
TRAINED = ("Hopper", "Walker2d", "HalfCheetah")
REASONS = {
    "few_episodes": "a few episodes are few",
    "terminals_unused": "without next observations nobody sees what ended an episode",
    "next_unknown": "the last rows of very short episodes are many",
    "constant_actions": "one of the policies never changes its action",
    "saturated_actions": "one of the policies stands at the edge",
    "constant_rewards": "a pole that never falls is paid alike in each step",
}
"""Warnings that a sound file may get, and why it deserves them."""
ROWS = (1000, 3000, 10_000)
"""About how long files are."""

mujoco.set_mju_user_warning(lambda message: None)  # it prints what gymnasium's models deprecate

Policy = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Recipe:
    """How one file is made."""

    suite: int
    index: int
    env_id: str
    policy: str
    episodes: int
    limit: int
    layout: str

    def __str__(self) -> str:
        return f"{self.suite}-{self.index}: {self.env_id}, {self.policy}, {self.episodes} x {self.limit}, {self.layout}"  # noqa: E501


LAYOUTS = ("full", "cut", "no next", "no next, cut", "no timeouts", "limit alone")
"""Which columns a file has; `cut`: its last episode stops at the file's end without a flag."""


def recipe(suite: int, index: int) -> Recipe:
    """The file of this number; the same number gives the same file."""
    rng = np.random.default_rng([suite, index])
    body = BODIES[index % len(BODIES)]
    kinds = ["uniform", "constant", "smooth", "sticky", "linear", "linear and noise"]
    if body in TRAINED:
        kinds += ["medium", "medium sampled", "expert", "expert and noise"]
    episodes = int(rng.choice([2, 3, 5, 10, 20, 50, 100]))
    limit = int(min(rng.choice([20, 50, 100, 200, 1000]), rng.choice(ROWS) // episodes))
    return Recipe(
        suite, index, f"{body}-v5", str(rng.choice(kinds)), episodes, limit, str(rng.choice(LAYOUTS))
    )


def behaviour(kind: str, env_id: str, obs_dim: int, act_dim: int, rng: np.random.Generator) -> Policy:
    """A policy of this kind, over the unit box."""
    held, weights = rng.uniform(-1, 1, act_dim), rng.normal(size=(act_dim, obs_dim)) / np.sqrt(obs_dim)
    name, _, noise = kind.partition(" ")
    if name in ("medium", "expert"):
        actor = Actor.load(ACTORS / f"{env_id.removesuffix('-v5').lower()}-{name}-v5.safetensors").policy

    def act(obs: np.ndarray) -> np.ndarray:
        if kind == "uniform":
            return rng.uniform(-1, 1, act_dim)
        if kind == "constant":
            return held
        if kind == "smooth":
            held[:] = 0.9 * held + 0.3 * rng.normal(size=act_dim)
            return held.clip(-1, 1)
        if kind == "sticky":
            if rng.uniform() < 0.25:
                held[:] = rng.uniform(-1, 1, act_dim)
            return held.copy()
        if name == "linear":
            action = np.tanh(weights @ np.asarray(obs).clip(-10, 10))
        else:
            with torch.no_grad():
                seen = torch.as_tensor(obs, dtype=torch.float32)[None]
                action = (
                    (actor.sample(seen)[0] if noise == "sampled" else actor.mode(seen))[0].double().numpy()
                )
        return (action + (0.2 * rng.normal(size=act_dim) if noise == "and noise" else 0)).clip(-1, 1)

    return act


def rolled(made: Recipe) -> Fields:
    """All six fields, float32, with a timeout at the limit."""
    rng = np.random.default_rng([made.suite, made.index, 1])
    torch.manual_seed(1000 * made.suite + made.index)
    env = gymnasium.make(made.env_id, max_episode_steps=made.limit, disable_env_checker=True)
    low, high = env.action_space.low, env.action_space.high
    policy = behaviour(made.policy, made.env_id, env.observation_space.shape[0], len(low), rng)
    rows = []
    for _ in range(made.episodes):
        obs, _ = env.reset(seed=int(rng.integers(2**31)))
        done = False
        while not done:
            action = policy(obs).astype(np.float32)
            after, reward, terminal, timeout, _info = env.step(low + (action + 1) / 2 * (high - low))
            rows.append((obs, action, reward, after, terminal, timeout and not terminal))
            obs, done = after, terminal or timeout
    env.close()
    names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
    columns = dict(zip(names, map(np.array, zip(*rows, strict=True)), strict=True))
    return {key: x if x.dtype == bool else x.astype(np.float32) for key, x in columns.items()}


def laid_out(x: Fields, made: Recipe) -> tuple[Fields, Attrs]:
    """The columns that such a file has, and its attributes."""
    if made.layout.endswith("cut"):
        x = {key: v[: -max(1, made.limit // 3)] if len(v) > made.limit else v for key, v in x.items()}
    gone = {
        "no next": ["next_observations"],
        "no next, cut": ["next_observations"],
        "no timeouts": ["timeouts"],
    }
    gone["limit alone"] = ["next_observations", "timeouts"]
    attrs: Attrs = {"env_id": made.env_id, "max_episode_steps": made.limit}
    return {key: v for key, v in x.items() if key not in gone.get(made.layout, [])}, attrs


@cache
def task(env_id: str) -> Task:
    env = gymnasium.make(env_id, disable_env_checker=True)
    obs_dim, act_dim = env.observation_space.shape[0], env.action_space.shape[0]
    env.close()
    return Task(env_id, obs_dim, act_dim, 1000, env_id)


def examined(x: Fields, made: Recipe) -> Report:
    fields, attrs = laid_out(x, made)
    try:
        rule = resolve("auto", made.env_id)
    except UserError:
        rule = None
    return audit(fields, attrs, dataset=str(made), task=task(made.env_id), termination=rule, rule="auto")


def shown(report: Report) -> str:
    worst = [
        f"    {f.severity} {f.name} {f.harms}: {f.message}" for f in report.findings if f.severity != "note"
    ]
    return "\n".join([f"  {report.dataset} ({report.rows} rows)", *worst])


@dataclass
class Tally:
    """What came out over many files."""

    findings: Counter[tuple[str, str]]
    """(severity, name) → in how many sound files."""
    odd: list[str]
    """Sound files with a fault, or with a warning that has no reason."""
    planted: Counter[str]
    found: Counter[str]


def tally(suite: int, files: range, plant_every: int = 0) -> Tally:
    """Examine files of a suite, and plant every fault into each `plant_every`-th one."""
    out = Tally(Counter(), [], Counter(), Counter())
    for index in files:
        made = recipe(suite, index)
        x = rolled(made)
        report = examined(x, made)
        out.findings.update({(f.severity, f.name) for f in report.findings})
        if any(
            f.severity == "fault" or (f.severity == "warning" and f.name not in REASONS)
            for f in report.findings
        ):
            out.odd.append(shown(report))
        if plant_every and index % plant_every == 0:
            full = replace(made, layout="full")
            for fault, (plant, wanted) in FAULTS.items():
                if is_real(fault, x, full):
                    out.planted[fault] += 1
                    out.found[fault] += any(f.name in wanted for f in examined(plant(x), full).findings)
    return out


# ---- planted faults


def shifted(key: str, rows: int) -> Callable[[Fields], Fields]:
    """A column that stands some rows below where it belongs."""
    return lambda x: x | {key: np.roll(x[key], rows, 0)}


def without(x: Fields, *keys: str) -> Fields:
    return {key: v for key, v in x.items() if key not in keys}


def no_flags(x: Fields) -> Fields:
    return without(x, "next_observations") | {key: np.zeros_like(x[key]) for key in ("terminals", "timeouts")}


def next_below(x: Fields) -> Fields:
    return x | {"next_observations": np.concatenate([x["observations"][1:], x["next_observations"][-1:]])}


def no_timeouts_and_next_below(x: Fields) -> Fields:
    return without(next_below(x), "timeouts")


def zero_next(x: Fields) -> Fields:
    return x | {"next_observations": np.where(x["terminals"][:, None], 0, x["next_observations"])}


def stale_next(x: Fields) -> Fields:
    end = x["terminals"] | x["timeouts"]
    return x | {"next_observations": np.where(end[:, None], x["observations"], x["next_observations"])}


def limit_as_terminal(x: Fields) -> Fields:
    return x | {"terminals": x["terminals"] | x["timeouts"], "timeouts": np.zeros_like(x["timeouts"])}


def out_of_step(x: Fields) -> Fields:
    blind = without(x, "next_observations") | {"terminals": np.zeros_like(x["terminals"])}
    return blind | {"timeouts": np.roll(x["timeouts"] | x["terminals"], -1)}


def extra_observations(x: Fields) -> Fields:
    end = x["terminals"] | x["timeouts"]
    pieces = np.split(np.arange(len(end)), np.flatnonzero(end)[:-1] + 1)
    obs = np.concatenate(
        [np.concatenate([x["observations"][p], x["next_observations"][p[-1:]]]) for p in pieces]
    )
    return without(x, "next_observations") | {"observations": obs[: len(end)]}


def told(x: Fields) -> Fields:
    return x | {"timeouts": np.zeros_like(x["timeouts"])}


def stray(x: Fields) -> Fields:
    after = x["next_observations"].copy()
    after[len(after) // 2] = after[len(after) // 2] + 30
    return x | {"next_observations": after}


FAULTS: dict[str, tuple[Callable[[Fields], Fields], set[str]]] = {
    # what: (how, findings of which one must be there)
    "actions one row up": (shifted("actions", -1), {"actions_shifted"}),
    "actions one row down": (shifted("actions", 1), {"actions_shifted"}),
    "rewards one row up": (shifted("rewards", -1), {"rewards_shifted"}),
    "rewards one row down": (shifted("rewards", 1), {"rewards_shifted"}),
    "next observations one row up": (shifted("next_observations", -1), {"next_observations_shifted"}),
    "no flags": (no_flags, {"hidden_cuts"}),
    "no timeouts, next told": (told, {"hidden_cuts"}),
    "next is the row below": (next_below, {"next_is_next_start"}),
    "no timeouts, next is the row below": (no_timeouts_and_next_below, {"next_is_next_start"}),
    "zero next": (zero_next, {"zero_next"}),
    "stale next": (stale_next, {"stale_next"}),
    "limit as terminal": (limit_as_terminal, {"limit_as_terminal"}),
    "timeouts one row up": (out_of_step, {"timeouts_out_of_step"}),
    "extra observations": (extra_observations, {"extra_observations"}),
    "a stray next observation": (stray, {"next_strays"}),
}


def is_real(fault: str, x: Fields, made: Recipe) -> bool:
    """Whether it makes this file wrong, in a way that its rows can show."""
    ends, timeouts, terminals = (
        (x["terminals"] | x["timeouts"]).sum(),
        x["timeouts"].sum(),
        x["terminals"].sum(),
    )
    if fault.startswith("actions"):
        return made.policy != "constant"
    if fault.startswith("rewards"):
        return made.policy != "constant" and float(np.ptp(x["rewards"])) > 1e-3
    if fault in ("limit as terminal", "no timeouts, next told"):
        return timeouts > 2
    if fault == "zero next":
        return terminals > 0
    if fault.startswith("no timeouts"):
        return timeouts > 2
    return len(x["rewards"]) > 10 * ends and ends > 2


# ---- tests


def test_no_fault_is_found_in_sound_files_and_no_warning_without_a_reason():
    """Every environment twice and more; `slow` has the rest."""
    assert tally(0, range(25)).odd == []


@pytest.mark.slow
@pytest.mark.parametrize("suite", [0, 1])
def test_no_fault_is_found_in_two_hundred_sound_files(suite):
    assert tally(suite, range(200)).odd == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_is_planted_in_a_sound_file_is_found(hopper, fault):
    made, x = hopper
    plant, wanted = FAULTS[fault]
    assert is_real(fault, x, made)
    assert wanted & {f.name for f in examined(plant(x), made).findings}


@pytest.fixture(scope="module")
def hopper():
    """Thirty episodes of a noisy hopper, some of which fall before the limit."""
    made = Recipe(0, 1000, "Hopper-v5", "medium sampled", 30, 250, "full")
    x = rolled(made)
    assert x["terminals"].any()
    assert x["timeouts"].any()
    assert examined(x, made).findings == []
    return made, x


if __name__ == "__main__":
    result = tally(int(sys.argv[1]), range(int(sys.argv[2])), plant_every=3)
    print("\n".join(result.odd))
    for (severity, name), files in sorted(result.findings.items()):
        print(f"{severity:<8} {name:<28} in {files} sound files")
    for fault, planted in result.planted.items():
        print(f"{fault:<36} found in {result.found[fault]:>3} of {planted}")
    print(f"{len(result.odd)} of {sys.argv[2]} sound files have a fault, or a warning without a reason")
