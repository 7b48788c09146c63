"""The dataset doctor on sound files: rolled out in every MuJoCo environment of gymnasium, by many kinds of policy.

A file here is what an environment really did, so a fault in it is the doctor's mistake. Run as a script, this file prints which
findings sound files get and what share of planted faults is found:

    python tests/unit/test_audit_rolled.py SUITE FILES
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import torch

from mbo2o.collect import Actor
from mbo2o.data import schema
from mbo2o.data.audit import audit
from mbo2o.data.findings import Report
from mbo2o.data.record import Task
from mbo2o.dynamics.termination import resolve
from mbo2o.types import UserError

ACTORS = Path(__file__).parents[2] / "data" / "actors"
BODIES = (
    "Ant HalfCheetah Hopper Humanoid HumanoidStandup InvertedDoublePendulum InvertedPendulum Pusher Reacher Swimmer Walker2d"
).split()
TRAINED = ("Hopper", "Walker2d", "HalfCheetah")
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
        return f"{self.suite}-{self.index}: {self.env_id}, {self.policy}, {self.episodes} x {self.limit}, {self.layout}"


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
    return Recipe(suite, index, f"{body}-v5", str(rng.choice(kinds)), episodes, limit, str(rng.choice(LAYOUTS)))


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
                action = (actor.sample(seen)[0] if noise == "sampled" else actor.mode(seen))[0].double().numpy()
        return (action + (0.2 * rng.normal(size=act_dim) if noise == "and noise" else 0)).clip(-1, 1)

    return act


@cache
def rolled(made: Recipe) -> schema.Fields:
    """All six fields, float32, with a timeout at the limit."""
    rng = np.random.default_rng([made.suite, made.index, 1])
    torch.manual_seed(1000 * made.suite + made.index)
    env = gymnasium.make(made.env_id, max_episode_steps=made.limit, disable_env_checker=True)
    low, high = env.action_space.low, env.action_space.high
    policy = behaviour(made.policy, made.env_id, env.observation_space.shape[0], len(low), rng)
    rows = []
    for episode in range(made.episodes):
        obs, _ = env.reset(seed=int(rng.integers(2**31)))
        done = False
        while not done:
            action = policy(obs).astype(np.float32)
            after, reward, terminal, timeout, _ = env.step(low + (action + 1) / 2 * (high - low))
            rows.append((obs, action, reward, after, terminal, timeout and not terminal))
            obs, done = after, terminal or timeout
    env.close()
    names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
    columns = dict(zip(names, map(np.array, zip(*rows, strict=True)), strict=True))
    return {key: x if x.dtype == bool else x.astype(np.float32) for key, x in columns.items()}


def laid_out(x: schema.Fields, made: Recipe) -> tuple[schema.Fields, schema.Attrs]:
    """The columns that such a file has, and its attributes."""
    if made.layout.endswith("cut"):
        x = {key: v[: -max(1, made.limit // 3)] if len(v) > made.limit else v for key, v in x.items()}
    gone = {"no next": ["next_observations"], "no next, cut": ["next_observations"], "no timeouts": ["timeouts"]}
    gone["limit alone"] = ["next_observations", "timeouts"]
    attrs: schema.Attrs = {"env_id": made.env_id, "max_episode_steps": made.limit}
    return {key: v for key, v in x.items() if key not in gone.get(made.layout, [])}, attrs


@cache
def task(env_id: str) -> Task:
    env = gymnasium.make(env_id, disable_env_checker=True)
    obs_dim, act_dim = env.observation_space.shape[0], env.action_space.shape[0]
    env.close()
    return Task(env_id, obs_dim, act_dim, 1000, env_id)


def examined(x: schema.Fields, made: Recipe) -> Report:
    fields, attrs = laid_out(x, made)
    try:
        rule = resolve("auto", made.env_id)
    except UserError:
        rule = None
    return audit(fields, attrs, dataset=str(made), task=task(made.env_id), termination=rule, rule="auto")


def shown(report: Report) -> str:
    worst = [f"    {f.severity} {f.name} {f.harms}: {f.message}" for f in report.findings if f.severity != "note"]
    return "\n".join([f"  {report.dataset} ({report.rows} rows)", *worst])


# -------------------------------------------------------------------------------------------------------- planted faults


def shifted(key: str, rows: int) -> Callable[[schema.Fields], schema.Fields]:
    """A column that stands some rows below where it belongs."""
    return lambda x: x | {key: np.roll(x[key], rows, 0)}


def without(x: schema.Fields, *keys: str) -> schema.Fields:
    return {key: v for key, v in x.items() if key not in keys}


def no_flags(x: schema.Fields) -> schema.Fields:
    return without(x, "next_observations") | {key: np.zeros_like(x[key]) for key in ("terminals", "timeouts")}


def next_below(x: schema.Fields) -> schema.Fields:
    return x | {"next_observations": np.concatenate([x["observations"][1:], x["next_observations"][-1:]])}


def no_timeouts_and_next_below(x: schema.Fields) -> schema.Fields:
    return without(next_below(x), "timeouts")


def zero_next(x: schema.Fields) -> schema.Fields:
    return x | {"next_observations": np.where(x["terminals"][:, None], 0, x["next_observations"])}


def stale_next(x: schema.Fields) -> schema.Fields:
    end = x["terminals"] | x["timeouts"]
    return x | {"next_observations": np.where(end[:, None], x["observations"], x["next_observations"])}


def limit_as_terminal(x: schema.Fields) -> schema.Fields:
    return x | {"terminals": x["terminals"] | x["timeouts"], "timeouts": np.zeros_like(x["timeouts"])}


def out_of_step(x: schema.Fields) -> schema.Fields:
    blind = without(x, "next_observations") | {"terminals": np.zeros_like(x["terminals"])}
    return blind | {"timeouts": np.roll(x["timeouts"] | x["terminals"], -1)}


def extra_observations(x: schema.Fields) -> schema.Fields:
    end = x["terminals"] | x["timeouts"]
    pieces = np.split(np.arange(len(end)), np.flatnonzero(end)[:-1] + 1)
    obs = np.concatenate([np.concatenate([x["observations"][p], x["next_observations"][p[-1:]]]) for p in pieces])
    return without(x, "next_observations") | {"observations": obs[: len(end)]}


def told(x: schema.Fields) -> schema.Fields:
    return x | {"timeouts": np.zeros_like(x["timeouts"])}


def stray(x: schema.Fields) -> schema.Fields:
    after = x["next_observations"].copy()
    after[len(after) // 2] = after[len(after) // 2] + 30
    return x | {"next_observations": after}


FAULTS: dict[str, tuple[Callable[[schema.Fields], schema.Fields], set[str]]] = {
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


def is_real(fault: str, x: schema.Fields, made: Recipe) -> bool:
    """Whether it makes this file wrong, in a way that its rows can show."""
    ends, timeouts, terminals = (x["terminals"] | x["timeouts"]).sum(), x["timeouts"].sum(), x["terminals"].sum()
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


if __name__ == "__main__":
    import time

    suite, n = int(sys.argv[1]), int(sys.argv[2])
    counts, faulty, t0 = Counter(), 0, time.time()
    tr = ta = 0
    real, found = Counter(), Counter()
    for index in range(n):
        made = recipe(suite, index)
        t = time.time()
        x = rolled(made)
        rolled.cache_clear()
        tr += time.time() - t
        t = time.time()
        report = examined(x, made)
        ta += time.time() - t
        counts.update({(f.severity, f.name) for f in report.findings})
        faulty += any(f.severity == "fault" for f in report.findings)
        if any(
            f.severity != "note" and f.name not in ("few_episodes", "terminals_unused", "constant_actions")
            for f in report.findings
        ):
            print(shown(report))
        if len(sys.argv) > 3 and index % int(sys.argv[3]) == 0:
            full = Recipe(made.suite, made.index, made.env_id, made.policy, made.episodes, made.limit, "full")
            for fault, (plant, names) in FAULTS.items():
                if is_real(fault, x, full):
                    report = examined(plant(x), full)
                    real[fault] += 1
                    ok = any(f.name in names for f in report.findings)
                    found[fault] += ok
                    if not ok:
                        print(
                            "MISSED",
                            fault,
                            "|",
                            report.dataset,
                            len(x["rewards"]),
                            {f.name for f in report.findings if f.severity != "note"},
                            file=sys.stderr,
                        )
    for (severity, name), k in sorted(counts.items()):
        print(f"{severity:<8} {name:<28} {k}")
    for fault in FAULTS:
        print(f"{fault:<36} {found[fault]:>4} of {real[fault]}")
    print(f"{faulty} of {n} faulty; {tr:.0f} s rolling, {ta:.0f} s auditing")
