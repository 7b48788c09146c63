"""Making datasets here: train SAC in the real environment, keep what it saw and what it became.

Tiers as D4RL means them (arXiv 2004.07219): `random` acts uniformly; `medium` is a policy at a fraction of its final return,
sampled (not its mean action); `medium-replay` is the true replay buffer up to that point; `expert` is the best policy, sampled.
In a PointMaze `waypoint` needs no training: a controller that knows the maze, as in D4RL's maze2d.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from mbo2o.agents.sac import SAC, SACConfig
from mbo2o.collect.waypoint import play
from mbo2o.data.buffer import ReplayBuffer
from mbo2o.data.fields import Attrs, Fields
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.envs.lanes import Lane, Lanes
from mbo2o.envs.make import EnvChoice
from mbo2o.envs.streams import seed_all
from mbo2o.nn.policy import TanhGaussian
from mbo2o.run.engine import Engine
from mbo2o.run.evaluate import Evaluator
from mbo2o.run.log import tell
from mbo2o.store.datasets import read, summary
from mbo2o.store.hdf5 import read_hdf5, write_hdf5
from mbo2o.types import Spec, UserError, uniform_actions


@dataclass
class Actor:
    """A policy on its own, with where it came from."""

    policy: TanhGaussian
    info: dict[str, str]

    def save(self, path: Path) -> None:
        """Write a safetensors file whose metadata is all that `load` needs."""
        path.parent.mkdir(parents=True, exist_ok=True)
        # an actor trained in one lane loses its seed axis here, so the file is one policy
        tensors = {k: v.detach().reshape(v.shape[-2:]).clone() for k, v in self.policy.state_dict().items()}
        save_file(tensors, path, self.info)

    @classmethod
    def load(cls, path: Path) -> Actor:
        """Read a file of `save`; UserError when it is missing or something else."""
        try:
            with safe_open(path, "pt") as f:
                info, tensors = f.metadata() or {}, {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as e:
            raise UserError(
                f"{path}: no actor can be read from it ({e}); expected a safetensors file of `data collect`"
            ) from e
        if missing := {"env_id", "obs_dim", "act_dim", "hidden"} - set(info):
            raise UserError(
                f"{path}: not an actor of `data collect`, its metadata lacks {', '.join(sorted(missing))}"
            )
        cfg = MLPConfig(hidden=json.loads(info["hidden"]))
        policy = TanhGaussian((), int(info["obs_dim"]), int(info["act_dim"]), cfg)
        policy.load_state_dict(tensors)
        return cls(policy, info)


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
) -> None:
    """Train SAC for `steps` in `env_id`; writes `out/actors/STEP.safetensors`, `out/evals.csv` and `out/replay.hdf5`.

    The first `start` actions are uniform. One update per step.
    """
    seed_all(seed)
    lanes = Lanes(env_id, (1,), seed)
    _say_cut(env_id, lanes)
    obs_dim, act_dim = lanes.obs_dim, lanes.act_dim
    spec = Spec(obs_dim, act_dim, (1,))
    net = MLPConfig(hidden=hidden)
    cfg = SACConfig(actor_lr=lr, critic_lr=lr, alpha_lr=lr, actor=net, critic=net)
    agent, buffer = SAC(spec, cfg), ReplayBuffer(spec, steps)
    engine = Engine()
    evaluate = Evaluator(env_id, (1,), episodes, seed, cfg.gamma)
    info = {
        "env_id": env_id,
        "obs_dim": str(obs_dim),
        "act_dim": str(act_dim),
        "hidden": json.dumps(cfg.actor.hidden),
    }
    evals: list[tuple[int, float, float]] = []
    bar = tqdm(range(1, steps + 1), desc=f"SAC on {env_id}", unit="step", mininterval=5)
    for t in bar:
        act = uniform_actions(1, 1, act_dim) if t <= start else agent.act(lanes.obs(), explore=True)
        transition, truncated, _ = lanes.step(act)
        buffer.add(transition, truncated)
        if t >= start:
            engine.update(agent, buffer.sample(batch))
        if t % eval_every == 0:
            result = evaluate(agent.act, agent.value)
            evals.append((t, float(result["return"]), float(result["return_std"])))
            bar.set_postfix(evaluation=f"{evals[-1][1]:.0f}")
            about = {
                "seed": str(seed),
                "step": str(t),
                "return": f"{evals[-1][1]:.1f}",
                "episodes": str(episodes),
            }
            Actor(agent.actor, info | about).save(out / "actors" / f"{t}.safetensors")
            with open(out / "evals.csv", "w", newline="") as f:
                csv.writer(f).writerows([("step", "return_mean", "return_std"), *evals])
    behaviour = f"SAC seed {seed}, {steps} steps"
    about_replay: Attrs = {"env_id": env_id, "tier": "replay", "behaviour": behaviour}
    write_hdf5(out / "replay.hdf5", buffer.record(0), about_replay)


def collect_with_training(options: argparse.Namespace) -> None:
    """`data collect --env`: train, then write actors and one file per tier into `options.out`."""
    if not options.env:
        raise UserError("data collect: give --env ID, or --policy FILE")
    _check_waypoint_options(options)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    if (out / "evals.csv").exists():
        raise UserError(f"{out}: holds a collection already; choose another --out")
    start = min(5000, options.steps // 5)
    eval_every = max(1, min(5000, options.steps // 10))
    train(
        options.env,
        out,
        steps=options.steps,
        seed=options.seed,
        hidden=[options.hidden, options.hidden],
        lr=options.lr,
        batch=options.batch,
        start=start,
        eval_every=eval_every,
    )
    write_tiers(
        out, rows=options.rows, seed=options.seed, medium=options.medium, medium_step=options.medium_step
    )


def write_tiers(
    out: Path, *, rows: int, seed: int, medium: float = 0.5, medium_step: int | None = None
) -> None:
    """Write the four tiers from a folder of `train`, and name its medium and best actors.

    `medium` is the first policy whose evaluation reached that share of the way from the first to the best one, unless
    `medium_step` names it.
    """
    with open(out / "evals.csv", newline="") as f:
        evals = [(int(r["step"]), float(r["return_mean"])) for r in csv.DictReader(f)]
    best = max(evals, key=lambda x: x[1])
    bar = evals[0][1] + medium * (best[1] - evals[0][1])
    medium_step = medium_step or next(step for step, ret in evals if ret >= bar)
    if medium_step not in dict(evals):
        raise UserError(
            f"--medium-step {medium_step}: evaluated were {', '.join(str(step) for step, _ in evals)}"
        )
    actors = {"medium": medium_step, "expert": best[0]}
    task = ""
    for tier, step in actors.items():
        actor = Actor.load(out / "actors" / f"{step}.safetensors")
        task = actor.info["env_id"].lower().replace("-", f"-{tier}-", 1)
        Actor(actor.policy, actor.info | {"tier": tier}).save(out / f"{task}.safetensors")
        _write(
            out / f"{task}.hdf5",
            actor.info["env_id"],
            actor.policy,
            rows,
            seed,
            f"{tier}: SAC step {step}, sampled",
        )
    env_id = actor.info["env_id"]
    name = env_id.lower().replace("-", "-{}-", 1)
    _write(out / f"{name.format('random')}.hdf5", env_id, None, rows, seed, "random: uniform actions")
    fields, attrs = read_hdf5(out / "replay.hdf5")
    head = {key: x[:medium_step].copy() for key, x in fields.items()}
    head["timeouts"][-1] |= not head["terminals"][-1]
    about = {
        "behaviour": f"medium-replay: SAC's replay buffer up to step {medium_step}",
        "tier": "medium-replay",
    }
    write_hdf5(out / f"{name.format('medium-replay')}.hdf5", head, attrs | about)


def collect_with_policy(options: argparse.Namespace) -> None:
    """`data collect --policy`: play a kept actor, `random`, or `waypoint`, into one file."""
    _check_waypoint_options(options)
    if options.policy in ("random", "waypoint") and not options.env:
        raise UserError(f"data collect: --policy {options.policy} needs --env ID")
    if options.policy == "random":
        _write(options.out, options.env, None, options.rows, options.seed, "random: uniform actions")
        return
    if options.policy == "waypoint":
        noise, wander = options.noise, options.wander
        fields = _fields(play(options.env, options.rows, options.seed, noise, wander), options.rows)
        more = {"noise": noise, "wander": wander, "gymnasium_robotics_version": version("gymnasium-robotics")}
        about = f"waypoint: to the goal with noise {noise}, elsewhere in {wander:.0%} of the episodes"
        _store(options.out, options.env, fields, options.seed, about, more)
        return
    actor = Actor.load(Path(options.policy))
    policy, env_id = actor.policy, options.env or actor.info["env_id"]
    how = "mean action" if options.deterministic else "sampled"
    about = f"{actor.info.get('tier', 'actor')}: SAC step {actor.info.get('step')}, {how}"
    _write(options.out, env_id, policy, options.rows, options.seed, about, options.deterministic)


def _check_waypoint_options(options: argparse.Namespace) -> None:
    if options.policy != "waypoint" and (options.noise or options.wander):
        raise UserError("data collect: --noise and --wander are for --policy waypoint")


def _write(
    path: Path,
    env_id: str,
    policy: TanhGaussian | None,
    rows: int,
    seed: int,
    about: str,
    deterministic: bool = False,
) -> None:
    act: Callable[[Tensor], Tensor] | None = None
    if policy is not None:
        act = torch.no_grad()(policy.mode if deterministic else lambda obs: policy.sample(obs)[0])
    _store(path, env_id, roll(env_id, act, rows, seed), seed, about, {})


def _store(path: Path, env_id: str, fields: Fields, seed: int, about: str, more: Attrs) -> None:
    versions = {f"{m.__name__}_version": str(m.__version__) for m in (gymnasium, mujoco, torch)}
    attrs = {
        "env_id": env_id,
        "behaviour": about,
        "tier": about.split(":")[0],
        "seed": seed,
        **versions,
        **more,
    }
    write_hdf5(path, fields, attrs)
    found = summary(read(path))
    returns = f"return {found['return_mean']:.2f} ± {found['return_std']:.2f}"
    print(f"{path}: {found['transitions']} rows, {found['complete_episodes']} episodes, {returns}")


def roll(
    env_id: str, policy: Callable[[Tensor], Tensor] | None, rows: int, seed: int
) -> dict[str, np.ndarray]:
    """Play `rows` transitions with a policy `(B, D)` → `(B, A)` in [-1, 1], or uniformly at random; fields of a dataset."""
    seed_all(seed)
    lane = Lane(env_id, seed)
    _say_cut(env_id, lane)
    return _fields(_steps(lane, policy, rows), rows)


def _say_cut(env_id: str, lane: Lane | Lanes) -> None:
    if lane.capped:
        tell(EnvChoice(env_id).cut)


def _fields(steps: Iterator[tuple[Any, ...]], rows: int) -> Fields:
    if rows < 1:
        raise UserError(f"--rows {rows} must be at least 1")
    columns = zip(*tqdm(steps, desc="collect", total=rows, unit="step", mininterval=2), strict=True)
    names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
    fields = {name: np.asarray(x) for name, x in zip(names, columns, strict=True)}
    fields["timeouts"][-1] |= not fields["terminals"][-1]
    return fields


def _steps(lane: Lane, policy: Callable[[Tensor], Tensor] | None, rows: int) -> Iterator[tuple[object, ...]]:
    for _ in range(rows):
        obs = lane.obs
        act = uniform_actions(lane.act_dim) if policy is None else policy(torch.from_numpy(obs)[None])[0]
        rew, next_obs, terminated, truncated = lane.step(act.numpy())
        yield obs, act.numpy(), np.float32(rew), next_obs, terminated, truncated
        if terminated or truncated:
            lane.reset()
