"""Play a fixed policy and write the steps as a dataset: `data collect --policy`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mbo2o.collect import waypoint
from mbo2o.collect.actor import Actor
from mbo2o.data.fields import Attrs, Fields
from mbo2o.envs.lanes import Lane, Lanes
from mbo2o.envs.make import EnvChoice
from mbo2o.envs.streams import seed_all
from mbo2o.nn.policy import TanhGaussian
from mbo2o.progress import tell
from mbo2o.store import datasets
from mbo2o.store.hdf5 import write_hdf5
from mbo2o.types import UserError, uniform_actions

COLUMNS = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
Policy = Callable[[Tensor], Tensor]
"""Observations `(B, D)` → actions `(B, A)` in [-1, 1]."""


def collect_with_policy(options: argparse.Namespace) -> None:
    """`data collect --policy`: write one file that a stored actor, `random` or `waypoint` plays."""
    check_waypoint_options(options)
    out, rows, seed = options.out, options.rows, options.seed
    if options.policy in ("random", "waypoint") and not options.env:
        raise UserError(f"data collect: --policy {options.policy} needs --env ID")
    if options.policy == "random":
        write_random(out, options.env, rows, seed)
    elif options.policy == "waypoint":
        write_waypoint(out, options.env, rows, seed, options.noise, options.wander)
    else:
        actor = Actor.load(Path(options.policy))
        how = "mean action" if options.deterministic else "sampled"
        about = f"{actor.info.get('tier', 'actor')}: SAC step {actor.info.get('step')}, {how}"
        policy = mean_action(actor.policy) if options.deterministic else sampled_action(actor.policy)
        write_played(out, options.env or actor.info["env_id"], policy, rows, seed, about)


def check_waypoint_options(options: argparse.Namespace) -> None:
    """Raise `UserError` if --noise or --wander is given without --policy waypoint."""
    if options.policy != "waypoint" and (options.noise or options.wander):
        raise UserError("data collect: --noise and --wander are for --policy waypoint")


def sampled_action(policy: TanhGaussian) -> Policy:
    """A policy that draws its actions."""
    return torch.no_grad()(lambda obs: policy.sample(obs)[0])


def mean_action(policy: TanhGaussian) -> Policy:
    """A policy that acts without noise: tanh of the Gaussian's mean."""
    return torch.no_grad()(policy.mode)


def write_random(path: Path, env_id: str, rows: int, seed: int) -> None:
    """Write a dataset of uniform actions."""
    write_played(path, env_id, None, rows, seed, "random: uniform actions")


def write_waypoint(path: Path, env_id: str, rows: int, seed: int, noise: float, wander: float) -> None:
    """Write a dataset of the waypoint controller in a PointMaze; see `waypoint.play`."""
    fields = _fields(waypoint.play(env_id, rows, seed, noise, wander), rows)
    about = f"waypoint: to the goal with noise {noise}, elsewhere in {wander:.0%} of the episodes"
    more: Attrs = {
        "noise": noise,
        "wander": wander,
        "gymnasium_robotics_version": version("gymnasium-robotics"),
    }
    _write(path, env_id, fields, seed, about, more)


def write_played(path: Path, env_id: str, policy: Policy | None, rows: int, seed: int, about: str) -> None:
    """Write a dataset of `rows` steps of a policy; `about` describes the policy, and starts with its tier."""
    _write(path, env_id, roll(env_id, policy, rows, seed), seed, about, {})


def roll(env_id: str, policy: Policy | None, rows: int, seed: int) -> Fields:
    """Play `rows` steps (uniform if `policy` is None) and return a dataset's fields, in time order."""
    seed_all(seed)
    lane = Lane(env_id, seed)
    warn_of_episode_cap(env_id, lane)
    return _fields(_steps(lane, policy, rows), rows)


def warn_of_episode_cap(env_id: str, lane: Lane | Lanes) -> None:
    """Tell the user if this task has no time limit, so that episodes are cut at one of our own."""
    if lane.capped:
        tell(EnvChoice(env_id).cut)


def _steps(lane: Lane, policy: Policy | None, rows: int) -> Iterator[tuple[object, ...]]:
    for _ in range(rows):
        obs = lane.obs
        act = uniform_actions(lane.act_dim) if policy is None else policy(torch.from_numpy(obs)[None])[0]
        rew, next_obs, terminated, truncated = lane.step(act.numpy())
        yield obs, act.numpy(), np.float32(rew), next_obs, terminated, truncated
        if terminated or truncated:
            lane.reset()


def _fields(steps: Iterator[tuple[Any, ...]], rows: int) -> Fields:
    if rows < 1:
        raise UserError(f"--rows {rows} must be at least 1")
    columns = zip(*tqdm(steps, desc="collect", total=rows, unit="step", mininterval=2), strict=True)
    fields = {name: np.asarray(x) for name, x in zip(COLUMNS, columns, strict=True)}
    fields["timeouts"][-1] |= not fields["terminals"][-1]  # the file's end cuts the last episode
    return fields


def _write(path: Path, env_id: str, fields: Fields, seed: int, about: str, more: Attrs) -> None:
    versions = {f"{x}_version": version(x) for x in ("gymnasium", "mujoco")}
    versions["torch_version"] = str(torch.__version__)
    own: Attrs = {"env_id": env_id, "behaviour": about, "tier": about.split(":")[0], "seed": seed}
    write_hdf5(path, fields, {**own, **versions, **more})
    summary = datasets.summary(datasets.read(path))
    returns = f"return {summary['return_mean']:.2f} ± {summary['return_std']:.2f}"
    print(f"{path}: {summary['transitions']} rows, {summary['complete_episodes']} episodes, {returns}")
