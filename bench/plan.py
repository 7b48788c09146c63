"""How well and how fast planning in a learned model works: a point mass, Pendulum, runs of MOPO or MOORe."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.measure import Options, keep, one_core, read, repeated, result, show
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
from mbo2o.planning.mbrl import MbrlModel
from mbo2o.planning.objective import Step
from mbo2o.planning.planner import Planner
from mbo2o.report.statistics import mean_over_seeds, paired_difference
from mbo2o.run.engine import Engine
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
    for search in SEARCHES:
        planner = Planner(model, search, horizon=8, population=64, elites=8)
        s = starts.astype(np.float64)
        for _ in range(30):
            s = s + 0.1 * planner.act(s)
        rows.append({"who": search, "values": np.linalg.norm(s - GOAL, axis=1).tolist()})
    _keep("point", rows, options, unit="distance from the goal", goals=f"≤ {NEAR}")


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
    env, starts, rows = EnvChoice("Pendulum-v1"), planned.starts_of(STARTS), []

    def add(who: str, play: Callable[[], planned.Played]) -> None:
        begin = time.process_time()
        returns = play().returns
        rows.append({"who": who, "values": returns, "cpu": time.process_time() - begin})
        print(f"  {who}: {statistics.mean(returns):.1f}", flush=True)
        _keep("pendulum", rows, options, unit="return", goals="within 10 % of the true dynamics")

    ours: list[tuple[str, Dynamics | Step, str, str]] = [("true dynamics, mppi", swing, "mppi", "ts1")]
    ours += [(f"model, {search}", model, search, "ts1") for search in reversed(SEARCHES)]
    ours += [("model, mppi, mean of the members", model, "mppi", "mean")]
    for who, what, search, members in ours:
        box = ([-2.0], [2.0])
        planner = Planner(what, search, box=box, members=members, **PENDULUM)
        add(who, partial(planned.play_planner, env, planner, starts, EPISODE))
    add("model, CEM of mbrl 0.2.0", partial(_mbrl, env, model, starts, PENDULUM, EPISODE))


def swing(obs: Tensor, act: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pendulum-v1 (gymnasium/envs/classic_control/pendulum.py), with actions in [-1, 1]."""
    angle, speed, torque = torch.atan2(obs[:, 1], obs[:, 0]), obs[:, 2], 2 * act[:, 0]
    reward = -(angle.square() + 0.1 * speed.square() + 0.001 * torque.square())
    speed = (speed + (15 * torch.sin(angle) + 3 * torque) * 0.05).clamp(-8, 8)
    angle = angle + speed * 0.05
    after = torch.stack([torch.cos(angle), torch.sin(angle), speed], -1)
    return after, reward, torch.zeros_like(reward, dtype=torch.bool), torch.zeros_like(reward)


def _mbrl(
    env: EnvChoice, model: Dynamics, starts: Sequence[int], settings: dict[str, Any], steps: int | None = None
) -> planned.Played:
    """Play with mbrl's ModelEnv and CEM, in our model, at the same budget; one episode after another."""
    from mbrl.models import ModelEnv
    from mbrl.planning import TrajectoryOptimizerAgent
    from omegaconf import OmegaConf

    ensemble = MbrlModel(model.net)
    spaces: Any = type("Spaces", (), {"observation_space": None, "action_space": None})
    generator = torch.Generator().manual_seed(0)
    world = ModelEnv(spaces, ensemble, ensemble.ends(model.about.ends), generator=generator)
    optimizer = {"_target_": "mbrl.planning.CEMOptimizer", "alpha": 0.1, "device": "cpu"}
    optimizer |= {"num_iterations": settings["iterations"], "population_size": settings["population"]}
    optimizer |= {"elite_ratio": settings["elites"] / settings["population"], "clipped_normal": False}
    unit = [1.0] * model.act_dim
    node = OmegaConf.create(optimizer | {"lower_bound": "???", "upper_bound": "???"})
    agent = TrajectoryOptimizerAgent(node, [-x for x in unit], unit, planning_horizon=settings["horizon"])
    particles = len(model.net.elites)
    agent.set_trajectory_eval_fn(lambda obs, plans: world.evaluate_action_sequences(plans, obs, particles))
    torch.manual_seed(0)

    def act(obs: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(agent.act(obs[0].numpy()), np.float32))[None]

    found = []
    for start in starts:
        agent.reset()
        found.append(planned.play_policy(env, act, [start], steps))
    return planned.Played([x.returns[0] for x in found], [x.lengths[0] for x in found])


# ------------------------------------------------------------------------------------------------------ runs


def _run(path: Path, options: Options) -> None:
    """Policy, planning alone and both, for each seed of a run; those in the file are not repeated."""
    from mbo2o.training import restore

    run, recipe = restore(path)
    if getattr(recipe, "agent", None) is None:
        raise UserError(f"bench plan: {path} keeps no agent")
    name, seeds = f"run-{path.name}", recipe.agent.spec.seeds[0]
    before = read(options.json) if options.json and options.json.exists() else {}
    rows = list(before.get(name, {}).get("rows", []))
    arms = ("policy", "planning", "both", "mbrl's CEM")
    rows = rows or [{"who": who, "values": []} for who in arms]
    horizons = list(before.get(name, {}).get("horizons", []))
    for k in range(len(rows[-1]["values"]), seeds):
        model, env = load_dynamics(path, k), run.world.env
        policy, value = planned.of_agent(recipe.agent, k)
        starts = planned.starts_of(options.episodes, 0, k)
        how: dict[str, Any] = {"gamma": recipe.gamma, "seed": k, **BUDGET}
        trust = planned.trust_of(env, Planner(model, **how), policy, model.about.rewards, seed=k)
        how["horizon"] = trust.horizon
        print(f"{path.name}, seed {k}: rank correlations {trust.text()}; horizon {trust.horizon}", flush=True)
        plays: list[Callable[[], planned.Played]] = [
            partial(planned.play_policy, env, policy, starts, EPISODE),
            partial(planned.play_planner, env, Planner(model, **how), starts, EPISODE),
            partial(
                planned.play_planner, env, Planner(model, policy=policy, value=value, **how), starts, EPISODE
            ),
            partial(_mbrl, env, model, starts, how, EPISODE),
        ]
        for row, play in zip(rows, plays, strict=True):
            row["values"].append(statistics.mean(play().returns))
            print(f"  {row['who']}: {row['values'][-1]:.1f}", flush=True)
        horizons.append(trust.horizon)
        about = {"env": env.id, "episodes": options.episodes, "horizons": horizons}
        _keep(name, rows, options, unit="return", goals="", **about)


# ----------------------------------------------------------------------------------------------------- speed


def speed(options: Options) -> None:
    """Plans per second of one state: 128 plans, 4 iterations, a horizon of 8, a model of 4x200."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = GaussianDynamics(Spec(17, 6), DynamicsConfig(members=5, elites=5)).eval().requires_grad_(False)
    unit = torch.ones(6)
    about = About(None, -unit, unit, "exploded", exploded, torch.zeros(0, 17), torch.ones(17))
    model, obs = Dynamics(net, about), np.random.default_rng(0).normal(0, 0.1, 17)
    kinds: dict[str, dict[str, Any]] = {
        "a random one of five members for each step": {"members": "ts1", "particles": 1},
        "five members, their mean": {"members": "mean"},
        "five members, a particle each": {"members": "tsinf"},
        "five members, their mean and penalty": {"members": "mean", "coef": 1.0},
    }
    rows = []
    with one_core():
        for kind, settings in kinds.items():
            for cfg in options.engines():
                planner = Planner(
                    model, "mppi", horizon=8, prepare=Engine(cfg).prepare, **{**BUDGET, **settings}
                )
                begin = time.monotonic()
                planner.act(obs)
                start = round(time.monotonic() - begin, 2)
                rate = repeated(partial(planner.act, obs))
                rates = [float(f"{rate(options.seconds):.5g}") for _ in range(options.rounds)]
                engine = {"engine": cfg.mode, "precision": cfg.precision}
                rows.append({"who": kind, **engine, "start": start, "rates": rates})
    found = result(rows, options, "plans/s", goals="≥ 50")
    show("128 plans, 4 iterations, horizon 8", found)
    keep(options.json, "speed", found)


SCRIPT = """
import sys
for name in ("gymnasium", "mujoco", "hydra", "omegaconf", "h5py", "minari"):
    sys.modules[name] = None
import numpy as np
import mbo2o

planner = mbo2o.Planner(mbo2o.load_dynamics(sys.argv[1]), "icem", horizon=12)
print(planner.act(np.zeros(17)))
"""


def start(options: Options) -> None:
    """Seconds from the start of a script, with numpy and this package alone, to its first action."""
    with tempfile.TemporaryDirectory() as folder:
        net = GaussianDynamics(Spec(17, 6), DynamicsConfig())
        unit = torch.ones(6)
        about = About(None, -unit, unit, "exploded", exploded, torch.zeros(0, 17), torch.ones(17))
        Dynamics(net, about).save(folder)
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        cpu, wall = [], []
        for _ in range(options.rounds + 1):
            before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            done = subprocess.run([sys.executable, "-c", SCRIPT, folder], capture_output=True, env=env)
            if done.returncode:
                raise UserError(f"bench plan: the script failed: {done.stderr.decode().splitlines()[-1]}")
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            wall.append(round(time.perf_counter() - begin, 3))
            cpu.append(round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 3))
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
    lines = ["| bar | who | measured | wanted | met |", "|---|---|---|---|---|"]
    for row in results.get("point", {}).get("rows", ()):
        near = sum(x <= NEAR for x in row["values"])
        cells = [f"{near} of {len(row['values'])} starts", "all", _yes(near == len(row["values"]))]
        lines.append(_line("point mass: the goal is reached", row["who"], *cells))
    rows = results.get("pendulum", {}).get("rows", ())
    for row in rows:
        e = mean_over_seeds(row["values"])
        text = f"{e.mean:.1f} [{e.low:.1f}, {e.high:.1f}]"
        if row is rows[0]:
            lines.append(_line("Pendulum: return", row["who"], text, "", ""))
            continue
        d, most = (
            paired_difference(row["values"], rows[0]["values"]),
            0.1 * abs(statistics.mean(rows[0]["values"])),
        )
        text += f"; less the true dynamics': {d.mean:+.1f} [{d.low:+.1f}, {d.high:+.1f}]"
        lines.append(_line("Pendulum: return", row["who"], text, f"≥ {-most:.1f}", _yes(d.mean >= -most)))
    for row in results.get("start", {}).get("rows", ()):
        x = statistics.median(row["rates"])
        lines.append(_line("start to first action", row["who"], f"{x:.2f} s", "≤ 2 s", _yes(x <= 2)))
    return "\n".join([*lines, *_machines({k: results[k] for k in ("pendulum", "start") if k in results})])


def speeds(results: dict[str, Any]) -> str:
    """Plans per second."""
    rows = results.get("speed", {}).get("rows", ())
    lines = [
        "| who predicts | engine | plans per second | wanted | met | first plan |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        x, spread = statistics.median(row["rates"]), f"{min(row['rates']):.1f} to {max(row['rates']):.1f}"
        engine = f"{row['engine']} {row['precision']}"
        lines.append(
            _line(row["who"], engine, f"{x:.1f} ({spread})", "≥ 50", _yes(x >= 50), f"{row['start']} s")
        )
    return "\n".join([*lines, *_machines({k: results[k] for k in ("speed",) if k in results})])


def runs(results: dict[str, Any]) -> str:
    """Returns of runs: their policy, planning, both, and the differences from the policy."""
    found = {name: x for name, x in results.items() if name.startswith("run-")}
    if not found:
        return "Not measured yet."
    lines = [
        "| run | task | who | seeds | return | less the policy's | horizons |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, work in found.items():
        policy = work["rows"][0]["values"]
        for row in work["rows"]:
            e, d = mean_over_seeds(row["values"]), paired_difference(row["values"], policy)
            cells = [
                f"{e.mean:.0f} [{e.low:.0f}, {e.high:.0f}]",
                f"{d.mean:+.0f} [{d.low:+.0f}, {d.high:+.0f}]",
            ]
            if e.seeds < 5:
                cells = [f"{e.mean:.0f}", f"{d.mean:+.0f}"]
            first = row is work["rows"][0]
            h = "" if first else ", ".join(map(str, work["horizons"]))
            lines.append(
                _line(
                    name.removeprefix("run-"),
                    work["env"],
                    row["who"],
                    str(e.seeds),
                    cells[0],
                    "" if first else cells[1],
                    h,
                )
            )
    return "\n".join([*lines, *_machines(found)])


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
