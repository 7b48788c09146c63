"""Train SAC in the real environment and write four datasets from it: `data collect --env`.

The tiers follow D4RL (arXiv 2004.07219). `random`: uniform actions. `medium`: the policy that first reached a
share of the best return, with sampled actions. `medium-replay`: the replay buffer up to that policy.
`expert`: the best policy, with sampled actions.

Training has one seed and cannot be resumed, so it is a plain loop and not a recipe.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

from tqdm import tqdm

from mbo2o.agents.sac import SAC, SACConfig
from mbo2o.collect.actor import Actor
from mbo2o.collect.play import (
    check_waypoint_options,
    sampled_action,
    warn_of_episode_cap,
    write_played,
    write_random,
)
from mbo2o.data.buffer import ReplayBuffer
from mbo2o.data.fields import Attrs
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.envs.lanes import Lanes
from mbo2o.envs.streams import seed_all
from mbo2o.run.engine import Engine, EngineConfig
from mbo2o.run.evaluate import Evaluator
from mbo2o.store.hdf5 import read_hdf5, write_hdf5
from mbo2o.types import Spec, UserError, uniform_actions


def collect_with_training(options: argparse.Namespace) -> None:
    """`data collect --env`: train, then write the actors and one file per tier into `options.out`."""
    if not options.env:
        raise UserError("data collect: give --env ID, or --policy FILE")
    check_waypoint_options(options)
    engine = EngineConfig(options.engine, options.precision)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    if (out / "evals.csv").exists():
        raise UserError(f"{out}: holds a collection already; choose another --out")
    train(
        options.env,
        out,
        steps=options.steps,
        seed=options.seed,
        hidden=[options.hidden, options.hidden],
        lr=options.lr,
        batch=options.batch,
        start=min(5000, options.steps // 5),
        eval_every=max(1, min(5000, options.steps // 10)),
        engine=engine,
    )
    write_tiers(
        out, rows=options.rows, seed=options.seed, medium=options.medium, medium_step=options.medium_step
    )


def train(
    env_id: str,
    out: Path,
    *,
    steps: int,
    seed: int,
    hidden: list[int],
    lr: float = 3e-4,
    batch: int = 256,
    start: int = 5000,
    eval_every: int = 5000,
    episodes: int = 10,
    engine: EngineConfig | None = None,
) -> None:
    """Train SAC for `steps` steps: uniform actions for `start` steps, and then one update for each step.

    Every `eval_every` steps the mean action plays `episodes` episodes; `out/evals.csv` gains a line and
    `out/actors/STEP.safetensors` keeps the policy. At the end `out/replay.hdf5` holds all steps.
    """
    seed_all(seed)
    lanes = Lanes(env_id, (1,), seed)
    warn_of_episode_cap(env_id, lanes)
    spec = Spec(lanes.obs_dim, lanes.act_dim, (1,))
    net = MLPConfig(hidden=hidden)
    cfg = SACConfig(actor_lr=lr, critic_lr=lr, alpha_lr=lr, actor=net, critic=net)
    agent, run = SAC(spec, cfg), Engine(engine)
    buffer = ReplayBuffer(spec, steps)
    evaluate = Evaluator(env_id, (1,), episodes, seed, cfg.gamma)
    evals: list[tuple[int, float, float]] = []
    bar = tqdm(range(1, steps + 1), desc=f"SAC on {env_id}", unit="step", mininterval=5)
    for t in bar:
        act = uniform_actions(1, 1, spec.act_dim) if t <= start else agent.act(lanes.obs(), explore=True)
        transition, truncated, _ = lanes.step(act)
        buffer.add(transition, truncated)
        if t >= start:
            run.update(agent, buffer.sample(batch))
        if t % eval_every == 0:
            result = evaluate(agent.act, agent.value)
            evals.append((t, float(result["return"]), float(result["return_std"])))
            bar.set_postfix(evaluation=f"{evals[-1][1]:.0f}")
            info = {
                "env_id": env_id,
                "obs_dim": str(spec.obs_dim),
                "act_dim": str(spec.act_dim),
                "hidden": json.dumps(hidden),
                "seed": str(seed),
                "step": str(t),
                "return": f"{evals[-1][1]:.1f}",
                "episodes": str(episodes),
            }
            Actor(agent.actor, info).save(out / "actors" / f"{t}.safetensors")
            with open(out / "evals.csv", "w", newline="") as f:
                csv.writer(f).writerows([("step", "return_mean", "return_std"), *evals])
    about: Attrs = {"env_id": env_id, "tier": "replay", "behaviour": f"SAC seed {seed}, {steps} steps"}
    write_hdf5(out / "replay.hdf5", buffer.record(0), about)


def write_tiers(
    out: Path, *, rows: int, seed: int, medium: float = 0.5, medium_step: int | None = None
) -> None:
    """Write the four tiers from a folder of `train`, and copy the medium and the expert actor beside them.

    `medium_step` names the medium policy; without it, it is the first one whose evaluation reached the share
    `medium` of the way from the first return to the best one.
    """
    with open(out / "evals.csv", newline="") as f:
        returns = {int(row["step"]): float(row["return_mean"]) for row in csv.DictReader(f)}
    best_step = max(returns, key=lambda step: returns[step])
    if medium_step is None:
        first = next(iter(returns.values()))
        wanted = first + medium * (returns[best_step] - first)
        medium_step = next(step for step, ret in returns.items() if ret >= wanted)
    if medium_step not in returns:
        raise UserError(
            f"--medium-step {medium_step}: no policy was evaluated then; choose one of "
            f"{', '.join(map(str, returns))}"
        )
    env_id = Actor.load(out / "actors" / f"{best_step}.safetensors").info["env_id"]

    def named(tier: str) -> str:
        return env_id.lower().replace("-", f"-{tier}-", 1)

    for tier, step in {"medium": medium_step, "expert": best_step}.items():
        actor = Actor.load(out / "actors" / f"{step}.safetensors")
        Actor(actor.policy, actor.info | {"tier": tier}).save(out / f"{named(tier)}.safetensors")
        about = f"{tier}: SAC step {step}, sampled"
        write_played(out / f"{named(tier)}.hdf5", env_id, sampled_action(actor.policy), rows, seed, about)
    write_random(out / f"{named('random')}.hdf5", env_id, rows, seed)
    fields, attrs = read_hdf5(out / "replay.hdf5")
    head = {key: x[:medium_step].copy() for key, x in fields.items()}
    head["timeouts"][-1] |= not head["terminals"][-1]
    own = {
        "behaviour": f"medium-replay: SAC's replay buffer up to step {medium_step}",
        "tier": "medium-replay",
    }
    write_hdf5(out / f"{named('medium-replay')}.hdf5", head, attrs | own)
