"""The command `plan`: act by planning in a learned model, and compare with the policy of its run."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbo2o.cli.command import add
from mbo2o.cli.train import TRUST

if TYPE_CHECKING:
    from mbo2o.collect.planned import Played
    from mbo2o.envs.make import EnvChoice
    from mbo2o.model.dynamics import Dynamics
    from mbo2o.planning.planner import Planner


def _plan(options: argparse.Namespace) -> None:
    import torch

    from mbo2o.collect import planned
    from mbo2o.errors import UserError, at_least_one
    from mbo2o.model.dynamics import load_dynamics
    from mbo2o.planning.planner import configs
    from mbo2o.registry import load_entry_points
    from mbo2o.run.engine import Engine, EngineConfig

    at_least_one("plan", episodes=options.episodes, **({"steps": options.steps} if options.steps else {}))
    if min(options.seed, options.run_seed) < 0:
        raise UserError("plan: --seed and --run-seed must not be negative")
    torch.set_num_threads(1)
    load_entry_points()
    settings = _settings(options.settings)
    auto = settings.pop("horizon", None) if settings.get("horizon") == "auto" else None
    known = {**settings, "horizon": 1} if settings.get("horizon") == "trusted" else settings
    configs(options.planner, known)  # a mistake is told before a run is opened
    dynamics = load_dynamics(options.path, options.run_seed)
    env, policy, value, gamma = _world(options, dynamics)
    prepare = Engine(EngineConfig(options.engine), str(dynamics.device)).prepare
    used = {} if options.alone else {"policy": policy, "value": value}
    how = {"seed": options.seed, "prepare": prepare, **used}

    def made(**more: Any) -> Planner:
        from mbo2o.planning.planner import Planner

        return Planner(dynamics, options.planner, **how, **{"gamma": gamma, **settings, **more})

    found: dict[str, Any] = {"env": env.id, "planner": options.planner, "settings": settings}
    print(f"{env.id}: {options.planner} in {options.path}{_uses(used)}")
    if auto:
        trust = planned.trust_of(env, made(), policy, dynamics.about.rewards, seed=options.seed)
        settings["horizon"] = trust.horizon
        found["correlation"] = dict(zip(trust.depths, trust.correlation, strict=True))
        print(f"rank correlation of returns by depth: {trust.text()}\nhorizon={trust.horizon}")
    starts, planner = planned.starts_of(options.episodes, options.seed, options.run_seed), made()
    arms: dict[str, Played] = {}
    if policy is not None:
        arms["policy"] = planned.play_policy(env, policy, starts, options.steps)
        _show("policy", arms["policy"])
    begin = time.perf_counter()
    arms["planner"] = planned.play_planner(
        env, planner, starts, options.steps, drop=options.engine == "eager"
    )
    seconds = (time.perf_counter() - begin) / sum(arms["planner"].lengths)
    _show("planner", arms["planner"], f"  {1e3 * seconds:.1f} ms for each step")
    for name, played in arms.items():
        found[name] = {"returns": played.returns, "lengths": played.lengths}
    found["seconds_per_step"] = seconds
    if len(arms) == 2:
        _compare(arms, found)
    if options.json:
        from mbo2o.store.whole import write_whole

        write_whole(options.json, json.dumps(found, indent=1) + "\n")


def _settings(words: list[str]) -> dict[str, Any]:
    """Settings as KEY=VALUE. UserError for another word."""
    from mbo2o.errors import UserError

    if wrong := [x for x in words if "=" not in x]:
        raise UserError(f"plan: {wrong[0]!r} is not a setting; give KEY=VALUE, such as horizon=12")
    return dict(x.split("=", 1) for x in words)


def _world(options: argparse.Namespace, dynamics: Dynamics) -> tuple[EnvChoice, Any, Any, float]:
    """The environment, and of a run its policy, its critics' value and its discount."""
    from mbo2o.cli.train import repeated
    from mbo2o.collect.planned import of_agent
    from mbo2o.envs.make import EnvChoice
    from mbo2o.errors import UserError
    from mbo2o.store.hdf5 import imports_module

    env_id = options.env or dynamics.about.env_id
    if not env_id:
        raise UserError("plan: the model names no environment; give --env ID")
    if not options.env and imports_module(env_id) and not options.trust:
        raise UserError(f"plan: the model names {env_id!r}, which imports a module; --env it if you trust it")
    if not (options.path / "config.yaml").is_file():
        return EnvChoice(env_id), None, None, 0.99
    from mbo2o.training import restore

    run, recipe = restore(options.path, options.trust or repeated([], options.path))
    agent = getattr(recipe, "agent", None)
    env = EnvChoice(env_id) if options.env and options.env != run.env_id else run.world.env
    if agent is None:
        return env, None, None, recipe.gamma
    return env, *of_agent(agent, options.run_seed), recipe.gamma


def _uses(used: dict[str, Any]) -> str:
    parts = [
        x for x, f in (("plans of its policy", "policy"), ("its critics' value", "value")) if used.get(f)
    ]
    return f", with {' and '.join(parts)}" if parts else ", alone"


def _show(name: str, played: Played, more: str = "") -> None:
    from mbo2o.report.statistics import KIND, mean_over_seeds

    e = mean_over_seeds(played.returns)
    shown = f" [{e.low:.1f}, {e.high:.1f}] ({KIND})" if e.low == e.low else ""
    steps = sum(played.lengths) / len(played.lengths)
    print(
        f"  {name:<8} return {e.mean:8.1f}{shown}  {e.seeds} episodes of {steps:.0f} steps{more}", flush=True
    )


def _compare(arms: dict[str, Played], found: dict[str, Any]) -> None:
    from mbo2o.report.statistics import paired_difference

    e = paired_difference(arms["planner"].returns, arms["policy"].returns)
    shown = f" [{e.low:+.1f}, {e.high:+.1f}]" if e.low == e.low else " (fewer than 5 episodes: no interval)"
    print(f"  planner - policy {e.mean:+.1f}{shown}, from the same starts")
    found["difference"] = (
        {"mean": e.mean, "low": e.low, "high": e.high} if e.low == e.low else {"mean": e.mean}
    )


def add_to(commands: Any) -> None:
    """Declare `plan`."""
    p = add(
        commands,
        "plan",
        _plan,
        "Act in the real environment by planning in a learned model, and show the return beside the "
        "policy's.",
        "mbo2o plan my-model --env Pendulum-v1 --planner icem horizon=20\n"
        "  mbo2o plan runs/moore-... --planner mppi horizon=auto coef=0.5 --episodes 10",
        "Settings are those of `mbo2o.planning.planner.PlanConfig` and of the planner. horizon=auto plans as "
        "far as the model ranks random plans as the environment does: Spearman's rank correlation of at "
        "least 0.5, over 8 states and 32 plans from each, which takes some 20 000 steps of the environment. "
        "horizon=trusted plans to the depth that the model's folder names, without the environment. "
        "With a run, plans of its policy join the candidates and its critics value the state at the end.",
    )
    p.add_argument("path", type=Path, metavar="RUN_OR_MODEL", help="a run, or a folder of `model fit`")
    p.add_argument("settings", nargs="*", default=[], metavar="KEY=VALUE")
    p.add_argument("--env", metavar="ID", help="gymnasium id (the model's own if not given)")
    p.add_argument("--planner", default="mppi", help="cem, icem or mppi (default), or one of a plugin")
    p.add_argument("--episodes", type=int, default=5)
    p.add_argument("--seed", type=int, default=0, help="of the episodes' starts and of the planner")
    p.add_argument("--run-seed", type=int, default=0, metavar="K", help="which seed of the run")
    p.add_argument("--steps", type=int, help="at most, of each episode")
    p.add_argument("--alone", action="store_true", help="without the run's policy and critics")
    p.add_argument("--engine", default="eager", choices=("eager", "compiled"), help="of the model's steps")
    p.add_argument("--json", type=Path, metavar="F", help="put the figures into this file")
    p.add_argument("--trust", action="store_true", help=TRUST)
