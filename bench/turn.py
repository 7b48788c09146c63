"""What a turn of a run costs that learns nothing, beside the environment's own step, on Hopper."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from bench.measure import Options, in_turns, keep, one_core, repeated, result, show
from bench.update import chosen
from mbo2o.agents import Agent, make_agent
from mbo2o.agents.sac import SACConfig
from mbo2o.data.buffer import ReplayBuffer
from mbo2o.envs.make import make_env
from mbo2o.run.config import RunConfig
from mbo2o.run.turns import Run
from mbo2o.run.world import Task
from mbo2o.types import Batch, Spec, uniform_actions

ENV, MANY = "Hopper-v5", 10**9
TITLES = {
    "step": "`env.step`, with a reset where an episode ends",
    "turn": "a turn of `Run.interact` with uniform actions",
    "acting": "a turn with the actions of SAC, 2x256",
    "add": "`ReplayBuffer.add` of one transition",
}


def main(options: Options) -> None:
    """Measure what `options.only` names, or all, in turns."""
    names = list(chosen(options, TITLES))
    with one_core(), tempfile.TemporaryDirectory() as folder:
        makers = {
            "step": stepping,
            "turn": lambda: turning(options, Path(folder) / "turn", acts=False),
            "acting": lambda: turning(options, Path(folder) / "acting", acts=True),
            "add": lambda: adding(options),
        }
        rates = [repeated(makers[name](), 1, options.device) for name in names]
        for name, found in zip(names, in_turns(rates, options.rounds, options.seconds), strict=True):
            measured = result([{"who": "mbo2o", "rates": found}], options, "times/s")
            show(TITLES[name], measured)
            keep(options.json, name, measured)


def stepping() -> Callable[[], None]:
    """A step of the environment as runs make it, with uniform actions."""
    env = make_env(ENV)
    env.reset(seed=0)
    env.action_space.seed(0)
    acts = [env.action_space.sample() for _ in range(1000)]
    count = 0

    def step() -> None:
        nonlocal count
        _, _, terminated, truncated, _ = env.step(acts[count % len(acts)])
        count += 1
        if terminated or truncated:
            env.reset()

    return step


def turning(options: Options, folder: Path, acts: bool) -> Callable[[], object]:
    """A turn of a run that neither learns nor evaluates."""
    cfg = RunConfig(log_every=MANY, eval_every=MANY, checkpoint_every=MANY, online_capacity=100_000)
    folder.mkdir()
    # as runs of all agents but Cal-QL, which reads the return that followed each row
    task = Task(ENV, 0, options.seeds, 0.99, options.device, returns=False)
    run = Run(folder, cfg, task)
    run.enter("online")
    agent: Agent | None = make_agent(SACConfig(), run.spec) if acts else None
    turns = run.interact(agent, MANY)
    next(turns)
    return lambda: next(turns)


def adding(options: Options) -> Callable[[], None]:
    """A transition per seed into the buffer of a run."""
    spec = Spec(11, 3, (options.seeds,), options.device)
    buffer = ReplayBuffer(spec, 100_000)
    obs, act = (uniform_actions(*spec.seeds, 1, n, device=spec.device) for n in (spec.obs_dim, spec.act_dim))
    zero = torch.zeros(*spec.seeds, 1, device=spec.device)
    batch = Batch(obs, act, zero, obs, zero)
    return lambda: buffer.add(batch, truncated=zero)
