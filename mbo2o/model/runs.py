"""What a run leaves beside its model, so that the model works without the run, its data and a simulator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mbo2o.data.dataset import TransitionDataset
from mbo2o.dynamics import termination
from mbo2o.envs.box import ActionBox
from mbo2o.envs.make import EnvChoice
from mbo2o.model.dynamics import load_dynamics
from mbo2o.model.task import about_of
from mbo2o.model.trust import measure, save_trust
from mbo2o.types import RewardView, TerminationFn

PHASES = ("online", "offline")


def complete(
    run: Path,
    seeds: int,
    dataset: TransitionDataset | None,
    task: tuple[EnvChoice | None, ActionBox],
    rule: tuple[Any, TerminationFn],
    rewards: RewardView,
    reward: str | None,
) -> None:
    """Add the task, and for the latest model its errors by depth, to the models that a run has kept.

    Args:
        run: The run's directory.
        seeds: How many models each of them is.
        dataset: Its data, with the task's own rewards; without them no errors are measured.
        task: Its environment, and the box of actions that its agent acts in.
        rule: The setting `termination` of its recipe, and the function that it stands for.
        rewards: How the rewards that the network was fitted to differ from the task's.
        reward: The setting `reward` of its recipe.

    The episodes of the data were not kept from the fit, which the measurement says.
    """
    folders = [run / "dynamics" / phase for phase in PHASES]
    kept = [folder for folder in folders if (folder / "model.json").is_file()]
    name, ends = rule
    if not isinstance(name, str) or name == "auto":
        known = (key for key, f in termination.TERMINATIONS.items() if f is ends)
        name = next(known, None) or termination.name_of(ends)
    pays = termination.resolve_reward(reward)
    choice, box = task
    about = about_of(dataset, choice, name, ends, rewards, (pays, reward) if pays and reward else None)
    low, high = (torch.from_numpy(np.array(x, np.float32).ravel()) for x in (box.low, box.high))
    about = replace(about, low=low, high=high, bounded=True)
    for folder in kept:
        about.save(folder)
    if kept and dataset is not None:
        save_trust(kept[0], [measure(load_dynamics(kept[0], k), dataset) for k in range(seeds)])
