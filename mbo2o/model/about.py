"""What a model's folder holds beside its network, so that it works with no dataset and no simulator."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mbo2o.dynamics import termination
from mbo2o.dynamics.learned_termination import LearnedTermination
from mbo2o.registry import trusting
from mbo2o.types import RewardFn, RewardView, TerminationFn, UserError

FILE, TENSORS = "task.json", "task.safetensors"
HEAD = "termination."
"""Tensors of a learned termination rule have names that begin with this."""


@dataclass(frozen=True, eq=False)
class About:
    """The task that a model is of: its box, what ends it, where it starts, and in which units it pays."""

    env_id: str | None
    """The Gymnasium id, for the user and for `mbo2o model check`; nothing is imported for it."""
    low: Tensor
    """`(A,)`: the lowest actions in the environment's own units, flat in C order."""
    high: Tensor
    """`(A,)`: the highest actions."""
    rule: str
    """The name of the termination rule: one of `TERMINATIONS`, `learned`, or `package.module:function`."""
    ends: TerminationFn
    """The rule itself."""
    starts: Tensor
    """`(n, D)`: states in which episodes begin, a sample; there may be none."""
    scale: Tensor
    """`(D,)`: standard deviations of the data's observations, the unit of errors; 1 if constant."""
    rewards: RewardView = field(default_factory=RewardView)
    """How the rewards that the network was fitted to differ from the task's own."""
    reward: RewardFn | None = None
    """The task's reward as a function; None: the network predicts it."""
    reward_path: str | None = None
    """The dotted path of `reward`."""
    time_limit: int | None = None
    """Steps after which the task cuts an episode, if that is known."""
    bounded: bool = True
    """Whether the box is the task's own; false for folders of earlier versions, whose box is [-1, 1]."""

    def save(self, folder: Path) -> None:
        """Write `task.json` and `task.safetensors` into `folder`. UserError for a rule that has no name."""
        values = {
            "env_id": self.env_id,
            "low": self.low.tolist(),
            "high": self.high.tolist(),
            "termination": self.rule,
            "reward": self.reward_path,
            "reward_scale": self.rewards.scale,
            "reward_shift": self.rewards.shift,
            "time_limit": self.time_limit,
        }
        if not self.bounded:
            del values["low"], values["high"]
        tensors = {"starts": self.starts, "scale": self.scale}
        if isinstance(self.ends, LearnedTermination):
            tensors |= {HEAD + name: x for name, x in self.ends.state_dict().items()}
        save_file({name: x.detach().cpu().contiguous() for name, x in tensors.items()}, folder / TENSORS)
        (folder / FILE).write_text(json.dumps(values, indent=2) + "\n")

    @classmethod
    def read(
        cls,
        folder: Path,
        info: Mapping[str, Any],
        sizes: tuple[int, int],
        scale: Tensor,
        rule: str | TerminationFn | None = None,
        reward: str | RewardFn | None = None,
    ) -> About:
        """Read what `save` wrote; a folder of an earlier version has `info` alone.

        Args:
            folder: The model's.
            info: The `info` of its network.
            sizes: The numbers of observations and of actions, (D, A).
            scale: `(D,)`, the unit of errors if the folder holds none.
            rule: Takes the place of the folder's termination rule; a name is trusted.
            reward: A function that takes the place of the predicted reward; a name is trusted.

        Raises:
            UserError: Something cannot be read, or the folder names code that the caller did not name.
        """
        values, tensors = _read(folder)
        obs_dim, act_dim = sizes
        box = [torch.tensor(values[x], dtype=torch.float32) for x in ("low", "high") if x in values]
        unit = torch.ones(act_dim)
        starts = tensors.get("starts", torch.zeros(0, obs_dim))
        scale = tensors.get("scale", scale)
        if any(len(x) != act_dim for x in box) or starts.shape[1:] != (obs_dim,) or len(scale) != obs_dim:
            text = f"{FILE} is not of this model, whose sizes are {obs_dim} and {act_dim}"
            raise UserError(f"{folder}: {text}; copy the whole folder again")
        head = {name.removeprefix(HEAD): x for name, x in tensors.items() if name.startswith(HEAD)}
        env_id = values.get("env_id", info.get("env_id"))
        own = values.get("termination", info.get("termination", "none"))
        low, high = box if len(box) == 2 else (-unit, unit)
        ends, name = _rule(folder, rule, str(own), env_id, head, sizes)
        pays, path = _reward(folder, reward, values.get("reward"))
        return cls(
            env_id,
            low,
            high,
            name,
            ends,
            starts,
            scale,
            rewards=RewardView(values.get("reward_scale", 1.0), values.get("reward_shift", 0.0)),
            reward=pays,
            reward_path=path,
            time_limit=values.get("time_limit"),
            bounded=len(box) == 2,
        )


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not (folder / FILE).is_file():
        return {}, {}
    try:
        values = json.loads((folder / FILE).read_text())
        tensors = load_file(folder / TENSORS)
        if not isinstance(values, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, SafetensorError) as e:
        raise UserError(f"{folder}: {FILE} or {TENSORS} cannot be read ({' '.join(str(e).split())})") from e
    return values, tensors


def _rule(
    folder: Path,
    asked: str | TerminationFn | None,
    own: str,
    env_id: str | None,
    head: dict[str, Tensor],
    sizes: tuple[int, int],
) -> tuple[TerminationFn, str]:
    """The rule that ends episodes, and its name; `own` is the folder's."""
    if asked is not None and not isinstance(asked, str):
        return asked, termination.name_of(asked) if _has_path(asked) else "a function of yours"
    if asked is not None:
        return termination.resolve(asked, env_id), asked
    if own == "learned":
        if not head:
            text = "its termination is learned and stays with its run; give the run, or termination=RULE"
            raise UserError(f"{folder}: {text}")
        learned = LearnedTermination(*sizes)
        learned.load_state_dict(head)
        return learned.requires_grad_(False), own
    try:
        with trusting(()):
            found = termination.resolve(own, env_id)
    except UserError as e:
        raise UserError(f"{folder}: {_once_more('termination', own) if ':' in own else e}") from e
    return found, next((key for key, f in termination.TERMINATIONS.items() if f is found), own)


def _reward(
    folder: Path, asked: str | RewardFn | None, own: str | None
) -> tuple[RewardFn | None, str | None]:
    if asked is not None:
        path = asked if isinstance(asked, str) else None
        return termination.resolve_reward(asked), path
    if own is None:
        return None, None
    try:
        with trusting(()):
            return termination.resolve_reward(own), own
    except UserError as e:
        raise UserError(f"{folder}: {_once_more('reward', own)}") from e


def _once_more(option: str, path: str) -> str:
    return f"{option} {path} is code that is not imported yet; if you trust it, give {option}={path!r}"


def _has_path(rule: TerminationFn) -> bool:
    try:
        termination.name_of(rule)
    except UserError:
        return False
    return True
