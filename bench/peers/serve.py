"""A driver's side of the conversation, and what all drivers share."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

OBS, ACT, BATCH, ROWS = 17, 6, 256, 100_000


def serve(step: Callable[[], object], units: float = 1, warm: int = 3) -> None:
    """Answer each line of seconds by the units of work done for each second of CPU time.

    step: does `units` of work. It is called `warm` times first, so that what compiles has compiled.
    """
    for _ in range(warm):
        step()
    print("ready", flush=True)
    for line in sys.stdin:
        seconds, done, start = float(line), 0, time.process_time()
        while (took := time.process_time() - start) < seconds or not done:
            step()
            done += 1
        print(units * done / took, flush=True)


def one_thread() -> None:
    """Let torch use one thread, and products in bf16 if that is asked for: by the line a user would write."""
    import torch

    torch.set_num_threads(1)
    if os.environ.get("PRECISION") == "bf16":
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]


def data() -> dict[str, Any]:
    """Transitions of a smooth made-up task, float32."""
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((ROWS, OBS), dtype=np.float32)
    act = rng.uniform(-1, 1, (ROWS, ACT)).astype(np.float32)
    next_obs = obs + 0.1 * np.tanh(np.roll(obs, 1, axis=1) + act.mean(1, keepdims=True))
    return {"obs": obs, "act": act, "rew": next_obs[:, 0], "next_obs": next_obs}


def fill(buffer: Any) -> None:
    """Put the transitions into a replay buffer of Stable-Baselines3's kind."""
    rows = data()
    buffer.observations[:, 0], buffer.next_observations[:, 0] = rows["obs"], rows["next_obs"]
    buffer.actions[:, 0], buffer.rewards[:, 0] = rows["act"], rows["rew"]
    buffer.full, buffer.pos = True, 0


def task() -> Any:
    """An environment of HalfCheetah's shapes, which learners ask for their sizes only."""
    import gymnasium

    class Task(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
        action_space = gymnasium.spaces.Box(-1, 1, (ACT,), np.float32)

    return Task()
