"""`mbo2o model check`: a model's rollouts beside the real task, from the same starts and with its actions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbo2o.envs.make import ActionBox, EnvChoice, make_env
from mbo2o.model.dynamics import Dynamics
from mbo2o.model.page import depth_table
from mbo2o.model.trust import CRITERION, DEPTHS, Trust, Windows, by_depth
from mbo2o.types import UserError

Policy = Callable[[np.ndarray], np.ndarray]
"""From an observation `(D,)` to an action `(A,)` in the environment's units."""


@dataclass(frozen=True)
class Checked:
    """What a comparison with the real task found."""

    env_id: str
    trust: Trust
    """Errors and coverage by depth; its table is empty."""
    returns: tuple[float, float]
    """The mean return over the windows, of the real task and of the model, with the same actions."""

    def text(self, error: float, coverage: float) -> str:
        """The comparison in Markdown."""
        depth, t = self.trust.depth(error, coverage), self.trust
        lines = [
            f"{int(t.windows[0])} episodes of {self.env_id}, with the same starts and actions:",
            "",
            *depth_table(t),
            "",
            f"return with these actions: task {self.returns[0]:.5g}, model {self.returns[1]:.5g}",
            f"trusted depth: {depth} steps. {CRITERION.format(error=error, coverage=coverage)}",
        ]
        return "\n".join(lines)


def check_model(
    dynamics: Dynamics,
    env: str | EnvChoice | None = None,
    *,
    episodes: int = 20,
    steps: int = DEPTHS[-1],
    policy: Policy | None = None,
    seed: int = 0,
) -> Checked:
    """Compare rollouts of a model with the real task.

    Args:
        dynamics: The model.
        env: The environment; None: the model's own.
        episodes: How many episodes of the task are played, from its own starts.
        steps: At most so many steps of each.
        policy: What acts in the task; None: uniformly random actions, each held for a random number of steps
            from 1 to 8, which leads farther than independent ones.
        seed: Starts, actions and the model's draws follow from it.

    Raises:
        UserError: The environment cannot be made or has other sizes or another box.
    """
    name = env or dynamics.about.env_id
    if name is None:
        raise UserError("the model's folder names no environment; give one: --env ID")
    choice = EnvChoice.of(name)
    made = make_env(choice)
    box: Any = made.action_space
    _compare_sizes(dynamics, choice.id, made)
    rng = np.random.default_rng(seed)
    act = policy or _held(dynamics, rng)
    box.seed(seed)
    plays = [_play(made, ActionBox(box), dynamics, act, steps, seed + k) for k in range(episodes)]
    made.close()
    windows, paid = _windows(plays)
    curves: dict[str, Any] = by_depth(dynamics, windows, seed)
    own = dynamics.rollout(windows.obs[:, 0], dynamics.from_unit(windows.act.to(dynamics.device)), seed=seed)
    there = torch.arange(windows.act.shape[1]) < windows.length[:, None]
    model = float((own.reward.cpu() * there).sum(1).mean())
    return Checked(choice.id, Trust(**curves, held_out=True), (paid, model))


Play = tuple[list[np.ndarray], list[np.ndarray], float]
"""The observations, the actions in [-1, 1] and the return of an episode."""


def _play(env: Any, box: ActionBox, dynamics: Dynamics, act: Policy, steps: int, seed: int) -> Play:
    obs, _ = env.reset(seed=seed)
    seen, acts, paid = [np.asarray(obs, np.float32)], [], 0.0
    for _ in range(steps):
        unit = dynamics.to_unit(np.asarray(act(seen[-1]), np.float32).ravel()).cpu().numpy()
        obs, reward, terminated, truncated, _ = env.step(box(unit))
        seen.append(np.asarray(obs, np.float32))
        acts.append(unit)
        paid += float(reward)
        if terminated or truncated:
            break
    return seen, acts, paid


def _windows(plays: list[Play]) -> tuple[Windows, float]:
    """Episodes as windows, padded with their last row, and their mean return."""
    lengths = [len(acts) for _, acts, _ in plays]
    longest = max(lengths)

    def padded(rows: list[np.ndarray], n: int) -> Tensor:
        return torch.from_numpy(np.stack([*rows, *[rows[-1]] * (n - len(rows))]))

    obs = torch.stack([padded(seen, longest + 1) for seen, _, _ in plays])
    act = torch.stack([padded(acts, longest) for _, acts, _ in plays])
    return Windows(obs, act, torch.tensor(lengths)), float(np.mean([paid for *_, paid in plays]))


def _held(dynamics: Dynamics, rng: np.random.Generator) -> Policy:
    """Random actions that are each held for some steps."""
    state: dict[str, Any] = {"left": 0, "act": dynamics.low}

    def act(obs: np.ndarray) -> np.ndarray:
        if state["left"] == 0:
            state["left"], state["act"] = int(rng.integers(1, 9)), rng.uniform(dynamics.low, dynamics.high)
        state["left"] -= 1
        found: np.ndarray = state["act"]
        return found

    return act


def _compare_sizes(dynamics: Dynamics, env_id: str, env: Any) -> None:
    sizes = ((env.observation_space.shape or (0,))[0], int(np.prod(env.action_space.shape or ())))
    if sizes != (dynamics.obs_dim, dynamics.act_dim):
        own = f"{dynamics.obs_dim} observations and {dynamics.act_dim} actions"
        raise UserError(f"the model has {own}, {env_id} has {sizes[0]} and {sizes[1]}; give --env ID")
    box = env.action_space
    same = [np.allclose(np.ravel(a), b) for a, b in ((box.low, dynamics.low), (box.high, dynamics.high))]
    if dynamics.about.bounded and not all(same):
        raise UserError(f"the box of {env_id} is not the model's; give --env ID of the model's task")
