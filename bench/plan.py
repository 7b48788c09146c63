"""How well and how fast planning in a learned model works: a point mass, Pendulum, runs of MOPO or MOORe."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.floor import Net, floor
from bench.measure import Options, keep, one_core, read, repeated, result, show
from bench.pets import Pets
from bench.update import chosen
from mbo2o.collect import planned
from mbo2o.collect.play import roll
from mbo2o.data.dataset import TransitionDataset
from mbo2o.dynamics.fit import FitConfig
from mbo2o.dynamics.model import DynamicsConfig, GaussianDynamics
from mbo2o.dynamics.termination import exploded
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.envs.make import EnvChoice
from mbo2o.model.about import About
from mbo2o.model.dynamics import Dynamics, load_dynamics
from mbo2o.model.fitting import ModelConfig, fit_dynamics
from mbo2o.planning.objective import Step
from mbo2o.planning.planner import Planner
from mbo2o.report.statistics import mean_over_seeds, paired_difference
from mbo2o.run.engine import Engine, EngineConfig
from mbo2o.types import Spec, UserError

ROOT = Path(__file__).parent.parent
SEARCHES = ("cem", "icem", "mppi")
STARTS, DATA = 5, 10_000
"""Episodes of Pendulum that are played, and random steps that its model is fitted to."""
EPISODE: int | None = None
"""At most so many steps of each episode are played; tests cut them."""
PENDULUM: dict[str, Any] = {"horizon": 20, "population": 100, "iterations": 4, "elites": 10, "gamma": 1.0}
BUDGET: dict[str, Any] = {"population": 128, "iterations": 4, "elites": 16}
"""Settings of planning in runs: what a core plans 50 times a second at a horizon of 8."""
NET = MLPConfig(hidden=[64, 64, 64], activation="silu")


def main(options: Options) -> None:
    """Measure the works of `options.only`, or all, and with `options.runs` these runs instead."""
    torch.set_num_threads(1)
    if options.runs:
        for run in options.runs:
            _run(run, options)
        return
    for work in chosen(options, WORKS).values():
        work(options)


# -------------------------------------------------------------------------------------------- the point mass

GOAL = np.array([0.5, -0.5], np.float32)
PETS = "PETS of mbrl 0.2.0, its own model"
WAY = 30
"""Steps that lead to the goal."""
NEAR = 0.1
"""How near the goal counts as reached, in a box of width 2 whose longest step is 0.1."""


def point_mass(options: Options) -> None:
    """A model of s' = s + 0.1 a, r = -|s' - goal|² from random steps leads to the goal from five starts."""
    rng = np.random.default_rng(0)
    n = 3000
    obs, act = (rng.uniform(-1, 1, (n, 2)).astype(np.float32) for _ in range(2))
    after = obs + 0.1 * act
    never, cut = np.zeros(n, bool), np.ones(n, bool)
    rewards = -((after - GOAL) ** 2).sum(1)
    dataset = TransitionDataset.from_arrays(obs, act, rewards, never, cut, after)
    cfg = ModelConfig(
        termination="none", dynamics=DynamicsConfig(members=4, elites=3, net=NET), fit=_fit(2000), seed=0
    )
    model, rows = fit_dynamics(dataset, cfg), []
    starts = np.array([[-0.9, 0.9], [0.9, 0.9], [-0.9, -0.9], [0.0, 0.8], [-0.7, 0.1]], np.float32)
    budget: dict[str, Any] = {"horizon": 8, "population": 64, "iterations": 4, "elites": 8}
    planners = {x: partial(_reach, Planner(model, x, **budget)) for x in SEARCHES}
    for who, reach in {**planners, PETS: partial(_reach_one_by_one, Pets(model, budget, own=True))}.items():
        begin = time.process_time()
        away = np.linalg.norm(reach(starts.astype(np.float64)) - GOAL, axis=1).tolist()
        seconds = time.process_time() - begin
        rows.append({"who": who, "values": away, "cpu": seconds, "plans": len(starts) * WAY})
    _keep("point", rows, options, unit="distance from the goal", goals=f"≤ {NEAR}")


def _reach(planner: Planner, states: np.ndarray) -> np.ndarray:
    """Where `WAY` steps lead from `states` `(B, 2)`."""
    for _ in range(WAY):
        states = states + 0.1 * planner.act(states)
    return states


def _reach_one_by_one(pets: Pets, states: np.ndarray) -> np.ndarray:
    found = []
    for s in states:
        pets.reset()
        for _ in range(WAY):
            s = s + 0.1 * pets.act(s.astype(np.float32))
        found.append(s)
    return np.array(found)


def _fit(updates: int) -> FitConfig:
    return FitConfig(lr=2e-3, batch=256, min_updates=updates, max_updates=updates)


# -------------------------------------------------------------------------------------------------- Pendulum


def pendulum(options: Options) -> None:
    """A model of Pendulum from random steps, beside its true dynamics, from the same starts."""
    fields = roll("Pendulum-v1", None, DATA, 0)
    columns: dict[str, Any] = dict(fields)
    dataset = TransitionDataset.from_arrays(**columns)
    cfg = ModelConfig(
        env="Pendulum-v1", dynamics=DynamicsConfig(members=5, elites=5, net=NET), fit=_fit(4000), seed=0
    )
    model = fit_dynamics(dataset, cfg)
    env, starts = EnvChoice("Pendulum-v1"), planned.starts_of(STARTS)
    rows: list[dict[str, Any]] = []

    def add(who: str, play: Callable[[], planned.Played], than: str = "") -> None:
        """than: the row whose return a tenth may be missing of."""
        begin = time.process_time()
        played = play()
        seconds, plans = time.process_time() - begin, sum(played.lengths)
        rows.append({"who": who, "values": played.returns, "than": than, "cpu": seconds, "plans": plans})
        print(f"  {who}: {statistics.mean(played.returns):.1f}", flush=True)
        _keep("pendulum", rows, options, unit="return", goals="within 10 % of the true dynamics")

    def planner(what: Dynamics | Step, search: str, members: str = "ts1") -> Callable[[], planned.Played]:
        made = Planner(what, search, box=([-2.0], [2.0]), members=members, **PENDULUM)
        return partial(planned.play_planner, env, made, starts, EPISODE)

    for search in reversed(SEARCHES):
        add(f"true dynamics, {search}", planner(swing, search))
    best = max(rows, key=lambda row: statistics.mean(row["values"]))["who"]
    for search in reversed(SEARCHES):
        add(f"model, {search}", planner(model, search), best)
    add("model, mppi, mean of the members", planner(model, "mppi", "mean"), best)
    for who, own in ((PETS, True), ("our model, CEM of mbrl 0.2.0", False)):
        add(who, partial(_play_pets, env, Pets(model, PENDULUM, own), starts, EPISODE), best)


def swing(obs: Tensor, act: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pendulum-v1 (gymnasium/envs/classic_control/pendulum.py), with actions in [-1, 1]."""
    angle, speed, torque = torch.atan2(obs[:, 1], obs[:, 0]), obs[:, 2], 2 * act[:, 0]
    reward = -(angle.square() + 0.1 * speed.square() + 0.001 * torque.square())
    speed = (speed + (15 * torch.sin(angle) + 3 * torque) * 0.05).clamp(-8, 8)
    angle = angle + speed * 0.05
    after = torch.stack([torch.cos(angle), torch.sin(angle), speed], -1)
    return after, reward, torch.zeros_like(reward, dtype=torch.bool), torch.zeros_like(reward)


def _play_pets(env: EnvChoice, pets: Pets, starts: Sequence[int], steps: int | None = None) -> planned.Played:
    """One episode after another, since mbrl plans for one state."""

    def act(obs: Tensor) -> Tensor:
        return torch.from_numpy(pets.act(obs[0].numpy()))[None]

    found = []
    for start in starts:
        pets.reset()
        found.append(planned.play_policy(env, act, [start], steps))
    return planned.Played([x.returns[0] for x in found], [x.lengths[0] for x in found])


# ------------------------------------------------------------------------------------------------------ runs


ARMS = ("policy", "planning", "both", "mbrl's CEM")


def _run(path: Path, options: Options) -> None:
    """Policy, planning alone and both, for each seed of a run; those in the file are not repeated."""
    from mbo2o.training import restore

    run, recipe = restore(path)
    if getattr(recipe, "agent", None) is None:
        raise UserError(f"bench plan: {path} keeps no agent")
    name, seeds = f"run-{path.name}", recipe.agent.spec.seeds[0]
    before = read(options.json) if options.json and options.json.exists() else {}
    rows = list(before.get(name, {}).get("rows", []))
    rows = rows or [{"who": who, "values": [], "cpu": 0.0, "plans": 0} for who in ARMS]
    horizons = list(before.get(name, {}).get("horizons", []))
    engine = options.engines()[-1] if options.engine else EngineConfig()
    for k in range(len(rows[-1]["values"]), seeds):
        model, env = load_dynamics(path, k), run.world.env
        policy, value = planned.of_agent(recipe.agent, k)
        starts = planned.starts_of(options.episodes, 0, k)
        how: dict[str, Any] = {"gamma": recipe.gamma, "seed": k, **BUDGET}
        trust = planned.trust_of(env, Planner(model, **how), policy, model.about.rewards, seed=k)
        how["horizon"] = trust.horizon
        print(f"{path.name}, seed {k}: rank correlations {trust.text()}; horizon {trust.horizon}", flush=True)
        own: dict[str, Any] = {
            "precision": engine.precision,
            "prepare": Engine(replace(engine, precision="fp32")).prepare,
        }

        def plan(**more: Any) -> Callable[[], planned.Played]:
            made, drop = Planner(model, **how, **own, **more), engine.mode == "eager"  # noqa: B023
            return partial(planned.play_planner, env, made, starts, EPISODE, drop=drop)  # noqa: B023

        plays: list[Callable[[], planned.Played]] = [
            partial(planned.play_policy, env, policy, starts, EPISODE),
            plan(),
            plan(policy=policy, value=value),
            partial(_play_pets, env, Pets(model, how, own=False), starts, EPISODE),
        ]
        for row, play in zip(rows, plays, strict=True):
            begin, played = time.process_time(), play()
            row["cpu"] += time.process_time() - begin
            row["plans"] += sum(played.lengths)
            row["values"].append(played.returns)
            print(f"  {row['who']}: {statistics.mean(played.returns):.1f}", flush=True)
        horizons.append(trust.horizon)
        about = {"env": env.id, "episodes": options.episodes, "horizons": horizons}
        _keep(name, rows, options, unit="return", goals="", **about)


# ----------------------------------------------------------------------------------------------------- speed


NETS = {"4 x 200": [200] * 4, "3 x 128": [128] * 3}
"""Hidden layers: MOPO's network, and one of the size that small studies fit to HalfCheetah."""
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "4 x 200, one of five members for each step": ("4 x 200", {"members": "ts1", "particles": 1}),
    "4 x 200, all five members": ("4 x 200", {"members": "tsinf"}),
    "3 x 128, all five members": ("3 x 128", {"members": "tsinf"}),
}
"""Who predicts: the network, and settings of `Planner`."""
HORIZON = 8


def speed(options: Options) -> None:
    """Plans per second of one state, beside the products of matrices that a plan consists of."""
    obs, rows = np.random.default_rng(0).normal(0, 0.1, 17), []
    # an eager plan is measured if it is asked for; it takes about a third longer than a compiled one
    engines = options.engines() if options.engine else replace(options, engine=("compiled",)).engines()
    for kind, (name, settings) in KINDS.items():
        model = _untrained(NETS[name])
        net = Net(settings.get("particles", 5), BUDGET["population"], (23, *NETS[name], 36), "f")
        for cfg in engines:
            prepare = Engine(replace(cfg, precision="fp32")).prepare
            how = {**BUDGET, **settings, "horizon": HORIZON, "precision": cfg.precision}
            planner = Planner(model, "mppi", prepare=prepare, **how)
            begin = time.monotonic()
            planner.act(obs)  # a compiler takes its seconds here, on any core
            start, rate = round(time.monotonic() - begin, 2), repeated(partial(planner.act, obs))
            with one_core():
                rates = [float(f"{rate(options.seconds):.5g}") for _ in range(options.rounds)]
                most = 1 / (HORIZON * BUDGET["iterations"] * floor([net], cfg.precision))
            engine = {"engine": cfg.mode, "precision": cfg.precision}
            rows.append({"who": kind, **engine, "start": start, "rates": rates, "products": round(most, 1)})
            print(f"  {kind}, {cfg.mode} {cfg.precision}: {statistics.median(rates):.1f}/s", flush=True)
            keep(options.json, "speed", result(rows, options, "plans/s", goals="≥ 50"))


def _untrained(hidden: list[int]) -> Dynamics:
    """A model with the shapes of HalfCheetah."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cfg = DynamicsConfig(members=5, elites=5, net=MLPConfig(hidden=hidden, activation="silu"))
        net = GaussianDynamics(Spec(17, 6), cfg).eval().requires_grad_(False)
    unit = torch.ones(6)
    about = About(None, -unit, unit, "exploded", exploded, torch.zeros(0, 17), torch.ones(17))
    return Dynamics(net, about)


SCRIPT = """
import sys
import time
for name in ("gymnasium", "mujoco", "hydra", "omegaconf", "h5py", "minari"):
    sys.modules[name] = None
import numpy as np
import mbo2o

planner = mbo2o.Planner(mbo2o.load_dynamics(sys.argv[1]), "icem", horizon=12)
planner.act(np.zeros(17))
print(time.process_time(), flush=True)
"""


def start(options: Options) -> None:
    """Seconds from the start of a script, with numpy and this package alone, to its first action."""
    with tempfile.TemporaryDirectory() as folder:
        _untrained([200] * 4).save(folder)
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        cpu, wall = [], []
        for _ in range(options.rounds + 1):
            begin = time.perf_counter()
            how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            with subprocess.Popen([sys.executable, "-c", SCRIPT, folder], text=True, env=env, **how) as p:
                assert p.stdout
                line = p.stdout.readline()
                wall.append(round(time.perf_counter() - begin, 3))
                said = p.communicate()[1]
            if p.returncode:
                raise UserError(f"bench plan: the script failed: {said.splitlines()[-1]}")
            cpu.append(round(float(line), 3))
    rows = [{"who": "CPU", "rates": cpu[1:]}, {"who": "wall", "rates": wall[1:]}]  # the first reads the disk
    found = result(rows, options, "seconds", goals="≤ 2 s")
    show("from start to first action", found)
    keep(options.json, "start", found)


def _keep(name: str, rows: Sequence[dict[str, Any]], options: Options, **more: Any) -> None:
    found = result(rows, options, more.pop("unit"), **more)
    if options.only and name not in (*options.only, *WORKS):
        return
    keep(options.json, name, found)


WORKS: dict[str, Callable[[Options], None]] = {
    "point": point_mass,
    "pendulum": pendulum,
    "speed": speed,
    "start": start,
}


# ---------------------------------------------------------------------------------------------------- tables


def bars(results: dict[str, Any]) -> str:
    """What was wanted and what was measured."""
    lines = ["| bar | who | measured | wanted | met | plans per CPU second |", "|---|---|---|---|---|---|"]
    for row in results.get("point", {}).get("rows", ()):
        near = sum(x <= NEAR for x in row["values"])
        cells = [f"{near} of {len(row['values'])} starts", "all", _yes(near == len(row["values"]))]
        lines.append(_line("point mass: the goal is reached", row["who"], *cells, _plans(row)))
    rows = results.get("pendulum", {}).get("rows", ())
    for row in rows:
        than = next((x["values"] for x in rows if x["who"] == row.get("than")), None)
        lines.append(_line("Pendulum: return", row["who"], *_beside(row["values"], than), _plans(row)))
    for row in results.get("start", {}).get("rows", ()):
        x = statistics.median(row["rates"])
        cells = [f"{x:.2f} s", "≤ 2 s", _yes(x <= 2)]
        lines.append(_line("start to first action", row["who"], *cells, ""))
    return "\n".join([*lines, *_machines({k: results[k] for k in ("pendulum", "start") if k in results})])


def _beside(values: list[float], than: list[float] | None) -> list[str]:
    """The return with its interval, what is wanted, and whether it is met."""
    e = mean_over_seeds(values)
    text = f"{e.mean:.1f} [{e.low:.1f}, {e.high:.1f}]"
    if than is None:
        return [text, "", ""]
    d, most = paired_difference(values, than), 0.1 * abs(statistics.mean(than))
    text += f"; less the true dynamics': {d.mean:+.1f} [{d.low:+.1f}, {d.high:+.1f}]"
    return [text, f"≥ {-most:.1f}", _yes(d.mean >= -most)]


def _plans(row: Mapping[str, Any]) -> str:
    return f"{row['plans'] / row['cpu']:.1f}" if row.get("plans") else ""


def speeds(results: dict[str, Any]) -> str:
    """Plans per second."""
    rows = results.get("speed", {}).get("rows", ())
    lines = [
        "| who predicts | engine | plans per second | wanted | met | products alone | first plan |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        x, spread = statistics.median(row["rates"]), f"{min(row['rates']):.1f} to {max(row['rates']):.1f}"
        engine = f"{row['engine']} {row['precision']}"
        cells = [f"{x:.1f} ({spread})", "≥ 50", _yes(x >= 50), str(row.get("products", ""))]
        lines.append(_line(row["who"], engine, *cells, f"{row['start']} s"))
    return "\n".join([*lines, *_machines({k: results[k] for k in ("speed",) if k in results})])


def runs(results: dict[str, Any]) -> str:
    """Returns of runs: their policy, planning, both, and the differences from the policy.

    With at least five seeds the interval is over seeds, each by the mean of its episodes; with fewer it is
    over all episodes.
    """
    found = {name: x for name, x in results.items() if name.startswith("run-")}
    if not found:
        return "Not measured yet."
    heads = ["run", "task", "who", "seeds x starts", "return", "less the policy's", "horizons"]
    heads.append("plans per CPU second")
    lines = [_line(*heads), "|---" * len(heads) + "|"]
    for name, work in found.items():
        policy = _one_each(work["rows"][0]["values"])
        for row in work["rows"]:
            values = _one_each(row["values"])
            e, d = mean_over_seeds(values), paired_difference(values, policy)
            sizes = f"{len(row['values'])} x {len(row['values'][0])}"
            cells = [f"{e.mean:.0f} [{e.low:.0f}, {e.high:.0f}]"]
            cells += [f"{d.mean:+.0f} [{d.low:+.0f}, {d.high:+.0f}]", ", ".join(map(str, work["horizons"]))]
            if row is work["rows"][0]:
                cells[1:] = ["", "", ""]
            else:
                cells.append(_plans(row))
            lines.append(_line(name.removeprefix("run-"), work["env"], row["who"], sizes, *cells))
    return "\n".join([*lines, *_machines(found)])


def _one_each(values: list[list[float]]) -> list[float]:
    """A number for each seed, or with fewer than five of them for each episode."""
    return [statistics.mean(x) for x in values] if len(values) >= 5 else [y for x in values for y in x]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _yes(met: bool) -> str:
    return "yes" if met else "no"


def _machines(found: dict[str, Any]) -> list[str]:
    if not found:
        return []
    loads = [x["load"] for x in found.values()]
    machines = "; ".join(dict.fromkeys(x["machine"] for x in found.values()))
    return ["", f"{machines}; load {min(loads)} to {max(loads)}."]
