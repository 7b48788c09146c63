"""Fitting a model to a dataset without an agent: what `mbo2o model fit` and `fit_dynamics` do."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbo2o.data.dataset import TransitionDataset, fields_of
from mbo2o.doctor.audit import audit
from mbo2o.doctor.check import check, find_task
from mbo2o.doctor.findings import Report
from mbo2o.dynamics import termination
from mbo2o.dynamics.fit import FitConfig, Learner, fit
from mbo2o.dynamics.learned_termination import LearnedTermination
from mbo2o.dynamics.model import DynamicsConfig, GaussianDynamics
from mbo2o.envs.layouts import ANT, find_layout
from mbo2o.envs.make import EnvChoice
from mbo2o.model.dynamics import Dynamics
from mbo2o.model.page import page
from mbo2o.model.task import about_of, environment
from mbo2o.model.trust import measure
from mbo2o.registry import did_you_mean
from mbo2o.store import datasets, whole
from mbo2o.store.hdf5 import imports_module
from mbo2o.types import Prepare, Spec, TerminationFn, UserError

PARTS = 20
"""An episode that is longer than this part of the data is cut, so that some of it can be held out."""


@dataclass
class ModelConfig:
    """The settings of a fit without an agent."""

    env: str | None = None  # gymnasium id; None: the one that the dataset names
    actions: Any = None  # units of the data's actions: unit, env, clip, env-clip, [LOW,HIGH] (docs/data.md)
    # which column of a table holds what, as the setting dataset_columns of a run; None: their names say so
    columns: Any = None
    termination: Any = "auto"  # by the environment's name; or a rule's, `learned`, `none`, `module:function`
    reward: Any = None  # `module:function` instead of a learned reward
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    holdout: float = 0.1  # share of the episodes that the fit never sees, by which the model is measured
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    fit: FitConfig = field(default_factory=FitConfig)

    def __post_init__(self) -> None:
        if not 0 < self.holdout < 1:
            raise UserError(f"holdout={self.holdout} is a share: it must lie between 0 and 1")


def fit_dynamics(
    dataset: TransitionDataset | str | os.PathLike[str],
    cfg: ModelConfig | None = None,
    out: str | Path | None = None,
    say: Callable[[str], None] = lambda text: None,
    prepare: Prepare = lambda step: step,
) -> Dynamics:
    """Fit a model to a dataset, and measure it on episodes that the fit never saw.

    Args:
        dataset: A dataset, or the name of one, as `mbo2o.read_dataset` takes it.
        cfg: The settings.
        out: A folder to write: the model, and `README.md` with its tables. It must not hold a model yet.
        say: Is told what is done.
        prepare: Turns a learning step into the one that is run, such as a compiled one.

    The global random state is neither read nor moved. The same data, settings and number of threads give the
    same model.

    Raises:
        UserError: The dataset cannot be read or is too small, no termination rule is known for its
            environment, or `out` holds a model already.
        Diverged: The fit left the realm of numbers.
    """
    cfg = cfg or ModelConfig()
    folder = None if out is None else Path(out)
    if folder is not None and (folder / "model.json").exists():
        raise UserError(f"{folder}: holds a model already; give another folder, or remove it")
    name = "the dataset" if isinstance(dataset, TransitionDataset) else os.fspath(dataset)
    found = _read(dataset, cfg)
    choice = _environment(cfg, found)
    kept, seen = hold_out(found, cfg.holdout, cfg.seed)
    say(f"fitting to {len(seen)} transitions of {name}; {len(kept)} rows of other episodes are held out")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        net = GaussianDynamics(Spec(found.obs_dim, found.act_dim, (), cfg.device), cfg.dynamics)
        part = replace(found, index=seen).to(cfg.device)
        metrics = fit(net, [(part, 1.0)], cfg.fit, Learner(net, cfg.fit, prepare))
        rule, ends = _rule(cfg, choice, part)
    about = about_of(found, choice, rule, ends)
    if isinstance(cfg.actions, list | tuple):  # the box in whose units the data's actions are
        bounds = (torch.as_tensor(x).float() for x in datasets.given_bounds(cfg.actions, "actions="))
        low, high = (x.expand(found.act_dim).clone() for x in bounds)
        about = replace(about, low=low, high=high, bounded=True)
    if cfg.reward is not None:
        path = termination.name_of(cfg.reward, "reward") if folder or isinstance(cfg.reward, str) else None
        about = replace(about, reward=termination.resolve_reward(cfg.reward), reward_path=path)
    net.info = {"env_id": about.env_id, "dataset": name, "holdout_mse": float(metrics["holdout_mse"])}
    dynamics = Dynamics(net.eval().requires_grad_(False), about)
    say("comparing it with the held-out episodes")
    dynamics.trust = measure(dynamics, found.to(cfg.device), kept, held_out=True, seed=cfg.seed)
    if folder is not None:
        report = _doctor(dataset, found, cfg, rule, ends, choice)
        with whole.writing(folder):
            dynamics.save(folder)
            (folder / "README.md").write_text(page(dynamics, report))
    return dynamics


def hold_out(dataset: TransitionDataset, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers of the usable rows that a fit must not see, and of those that it may: whole episodes.

    Episodes that are longer than a twentieth of the data are cut into parts of that size, so that a record of
    few long episodes can be split, too. At least one part is held out, and one is not.
    """
    episode = dataset.episode.cpu()
    first = torch.zeros(int(episode[-1]) + 1, dtype=torch.int64)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), (episode.diff() != 0).nonzero().flatten() + 1])
    first[episode[starts]] = starts
    size = -(-dataset.n_rows // PARTS)
    within = (torch.arange(len(episode)) - first[episode]) // size
    _, part = torch.unique(torch.stack([episode, within]), dim=1, return_inverse=True)
    n = int(part.max()) + 1
    if n < 2:
        raise UserError("the dataset has one row only; give at least a few hundred transitions")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    out = torch.zeros(n, dtype=torch.bool)
    out[order[: min(max(1, round(share * n)), n - 1)]] = True
    index = dataset.index.cpu()
    held = out[part[index]]
    return index[held], index[~held]


def _read(dataset: TransitionDataset | str | os.PathLike[str], cfg: ModelConfig) -> TransitionDataset:
    if isinstance(dataset, TransitionDataset):
        return dataset
    if cfg.actions is None or isinstance(cfg.actions, list | tuple):
        found = datasets.find(dataset, cfg.columns)
        return found.read("ram", datasets.units_for(found, cfg.actions, None, "actions="))
    return datasets.read(dataset, actions=cfg.actions, env_id=cfg.env, columns=cfg.columns)


def _environment(cfg: ModelConfig, dataset: TransitionDataset) -> EnvChoice | None:
    """The environment that the data are of, with their layout of observations; None if none is named."""
    env_id = cfg.env or dataset.attrs.get("env_id")
    if env_id is None:
        return None
    if cfg.env is None and imports_module(env_id):
        raise UserError(
            f"the dataset names environment {env_id!r}, which imports a module; env={env_id} if you trust it"
        )
    layout = find_layout(str(env_id), dataset.obs_dim, lambda: bool((dataset.obs[:, ANT:] != 0).any()))
    choice = EnvChoice(str(env_id), layout=layout)
    env = environment(choice)
    if env is None:
        return choice
    sizes = ((env.observation_space.shape or (0,))[0], int(np.prod(env.action_space.shape or ())))
    env.close()
    if sizes != (dataset.obs_dim, dataset.act_dim):
        data = f"the dataset has {dataset.obs_dim} observations and {dataset.act_dim} actions per step"
        raise UserError(f"{data}, {env_id} has {sizes[0]} and {sizes[1]}; give env=ID of the right one")
    return choice


def _rule(cfg: ModelConfig, choice: EnvChoice | None, part: TransitionDataset) -> tuple[str, TerminationFn]:
    """The termination rule and its name; `learned` is fitted to the rows that the model may see."""
    if cfg.termination == "learned":
        b = part.rows(part.index)
        return "learned", LearnedTermination.fit(b.obs, b.act, b.next_obs, b.done, seed=cfg.seed)
    own = choice or EnvChoice("")
    ends = termination.resolve(cfg.termination, own.id or None, own.kwargs, own.layout)
    known = next((key for key, f in termination.TERMINATIONS.items() if f is ends), None)
    return known or termination.name_of(cfg.termination), ends


def _doctor(
    dataset: Any,
    found: TransitionDataset,
    cfg: ModelConfig,
    rule: str,
    ends: TerminationFn,
    choice: EnvChoice | None,
) -> Report:
    """The doctor's report on the data, with the certificate of the rule."""
    if not isinstance(dataset, TransitionDataset) and not isinstance(cfg.actions, list | tuple):
        name = os.fspath(dataset)
        return check(name, cfg.env, "auto" if rule == "learned" else rule, cfg.actions)
    task = find_task(choice, False) if choice else None
    return audit(fields_of(found), found.attrs, task=task, termination=ends, rule=rule, units_known=True)


def settings(words: list[str]) -> ModelConfig:
    """`key=value` words, such as `fit.lr=1e-3`, as settings. UserError for one that there is not."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    base = OmegaConf.structured(ModelConfig)
    for word in words:
        key, _, _ = word.partition("=")
        if "=" not in word or OmegaConf.select(base, key, default=...) is ...:
            known = [*_names(OmegaConf.to_container(base))]
            hint = f"{did_you_mean(key, known)}settings are {', '.join(known)}"
            raise UserError(f"{word}: no such setting; {hint}")
    try:
        made = OmegaConf.to_object(OmegaConf.merge(base, OmegaConf.from_dotlist(words)))
    except OmegaConfBaseException as e:
        raise UserError(f"{' '.join(words)}: {' '.join(str(e).split())}") from e
    assert isinstance(made, ModelConfig)
    return made


def _names(values: Any, prefix: str = "") -> list[str]:
    out: list[str] = []
    for key, x in values.items():
        out += _names(x, f"{prefix}{key}.") if isinstance(x, dict) else [f"{prefix}{key}"]
    return out
