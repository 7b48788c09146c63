"""One training run from one config: what `mbo2o train` does, and all of it without Hydra."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import math
import warnings
from collections.abc import Collection
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from mbo2o import naming, policy, pretraining
from mbo2o.agents import Agent
from mbo2o.data.actions import Actions
from mbo2o.data.dataset import TransitionDataset
from mbo2o.dynamics import termination
from mbo2o.envs.absent import Absent
from mbo2o.envs.layouts import ANT, find_layout
from mbo2o.envs.make import EnvChoice
from mbo2o.errors import optional
from mbo2o.judge.judge import Judge
from mbo2o.judge.split import split
from mbo2o.model.runs import complete
from mbo2o.recipes import Recipe, make_recipe
from mbo2o.registry import AGENTS, NO_ENV, check_trust, entry_of, load_entry_points, load_plugins, trusting
from mbo2o.report.runs import noting_end
from mbo2o.report.switch import write_switch
from mbo2o.run.engine import EngineConfig
from mbo2o.run.memory import Restored
from mbo2o.run.turns import Run
from mbo2o.run.world import Task
from mbo2o.settings import Config, flat, kept, parts, plain, read_config, stored, stored_plugins, values_of
from mbo2o.store import datasets, remembered, whole
from mbo2o.store.datasets import Named, units_for
from mbo2o.store.hdf5 import imports_module
from mbo2o.store.remembered import Remembered
from mbo2o.types import Metrics, RewardView, UserError

LEAST_UPDATES = 2000
"""How many updates a policy gets from however small a log, if `updates_per_row` decides."""

__all__ = ["Config", "load_agent", "read_config", "restore", "train"]


def train(cfg: Config) -> Path:
    """Run the run that `cfg` names, or go on with it, and return its directory.

    One process at a time may run in a directory. The same config goes on where its run stopped.

    Raises:
        UserError: There is a mistake in what was asked; or, as an `EnvironmentFault`, the environment
            kept failing.
        Diverged: Training left the realm of numbers.
        Stopped: A signal asked the run to save and stop.
    """
    if not isinstance(cfg, Config):
        raise UserError(f"train takes a Config, and {cfg!r} is none; make one with mbo2o.config(...)")
    try:
        return _train(cfg)
    finally:
        # the parts of a run refer to each other, and its buffers may take gigabytes that others need
        gc.collect()


def _train(cfg: Config) -> Path:
    load_plugins(cfg.plugins)
    _check(cfg)
    torch.set_num_threads(cfg.threads)
    keep_memory()
    cfg, taken = pretraining.take(cfg) if cfg.pretrain_from else (cfg, [])
    if cfg.env == NO_ENV:
        cfg = _offline_alone(cfg)
    recipe = make_recipe(cfg.recipe)
    found = datasets.find(cfg.dataset, cfg.dataset_columns) if recipe.needs_dataset else None
    env_id = _environment(cfg, found)
    absent: Absent | None = None
    dataset: TransitionDataset | None
    content: str | None
    if found is not None and env_id == NO_ENV:
        dataset, content, absent, line = _log_alone(cfg, found, recipe.gamma)
        cfg, scaled = _with_reward_scale(cfg, dataset)
        cfg, ends = _with_termination(cfg, dataset)
        cfg, steps = _with_steps(cfg, dataset.n_rows)
        recipe, said = make_recipe(cfg.recipe), [line, scaled, ends, steps]
    else:
        cfg, dataset, content, said = _loaded(cfg, found, env_id)
    asked, (cfg, why) = cfg.engine, _engine(cfg)
    if cfg.start_from:
        naming.check_start(cfg, env_id, content)
    directory, moved = naming.directory_of(cfg, env_id, content)
    with whole.writing(directory), whole.occupy(directory):
        before = naming.claim(directory, cfg, env_id, content)
        if before and asked == "auto":
            cfg, why = _engine_of(before, cfg), ""
        facts = _facts(before, dataset, content)
        text = OmegaConf.to_yaml(OmegaConf.create(plain(cfg, env_id) | facts))
        whole.write_whole(directory / "config.yaml", text)
        run = _open(directory, cfg, recipe, env_id, dataset, absent)
        _write_facts(run, dataset)
        if taken and not before:
            pretraining.record(cfg, taken, directory)
            said += taken
        for line in [moved, *said, why, _new_engine(before, cfg)]:
            if line:
                run.say(line)
        where = "the log alone" if absent else env_id
        run.say(f"{naming.method(cfg)} on {where}, {cfg.seeds} seed(s) → {directory}")
        try:
            with noting_end(directory), run.signals.handled(), run.divergence.explained():
                recipe(run)
                run.finish()
        finally:
            run.close()
        _complete_models(run, cfg, recipe, dataset)
        with contextlib.suppress(UserError):  # a log that was damaged; `mbo2o report` says where
            write_switch(directory)
        if cfg.report:
            run.say(f"report: {_report(directory)}")
    return directory


def _complete_models(run: Run, cfg: Config, recipe: Recipe, dataset: TransitionDataset | None) -> None:
    """Make the models that the run has kept usable on their own, and measure the latest."""
    ends: Any = getattr(recipe, "termination", None)
    if ends is not None and (run.directory / "dynamics").is_dir():
        rule, reward = (getattr(cfg.recipe, x, None) for x in ("termination", "reward"))
        path = termination.name_of(reward, "reward") if reward else None
        task = (None if run.env.id == NO_ENV else run.env, run.world.lanes.box)
        complete(run.directory, cfg.seeds, dataset, task, (rule, ends), run.world.rewards, path)


def _report(directory: Path) -> str:
    """Draw the run; returns where, or why it could not be drawn, which harms nothing else."""
    try:
        optional("matplotlib", "it")
        from mbo2o.report.page import write_report
    except UserError as e:
        return f"not drawn, {e}"
    return str(write_report(directory))


def _engine(cfg: Config) -> tuple[Config, str]:
    """The config with `auto` decided, by the updates that the run makes, and a line that gives the reason."""
    steps = {x: getattr(cfg.recipe, x, 0) for x in ("offline_steps", "online_steps")}
    updates = steps["offline_steps"] + steps["online_steps"] * getattr(cfg.recipe, "utd", 1)
    engine, why = EngineConfig(cfg.engine, cfg.precision).chosen(cfg.device, updates)
    return replace(cfg, engine=engine.mode, precision=engine.precision), why


def _engine_of(before: dict[str, Any], cfg: Config) -> Config:
    """The config with the engine that a run began with, if it runs here: only then it goes on bit for bit."""
    then = EngineConfig(before.get("engine", "eager"), cfg.precision)
    return cfg if then.missing(cfg.device) else replace(cfg, engine=then.mode)


def _new_engine(before: dict[str, Any], cfg: Config) -> str:
    """What to say of a run that goes on with another engine than it began with; "" if there is nothing."""
    then = before.get("engine", "eager") if before else cfg.engine
    if then == cfg.engine:
        return ""
    return f"engine={cfg.engine} goes on where engine={then} stopped: the same run, but not bit for bit"


def _environment(cfg: Config, found: Named | None) -> str:
    """The environment that `cfg` names, or else the dataset; `UserError` for none, or an untrusted one."""
    if cfg.env == NO_ENV:
        return NO_ENV
    if cfg.env:
        if imports_module(cfg.env):
            check_trust("env", cfg.env)
        return cfg.env
    env_id = found and found.attrs().get("env_id")
    if not env_id:
        raise UserError(
            "no environment is named: give env=ID (the dataset does not say which it was collected in), "
            "or env=null to learn from the log alone"
        )
    if imports_module(env_id):
        raise UserError(
            f"the dataset names environment {env_id!r}, which imports a module; env={env_id} if you trust it"
        )
    return str(env_id)


def _offline_alone(cfg: Config) -> Config:
    """The config without an online phase; `UserError` for a method that has no other one."""
    recipe = make_recipe(cfg.recipe)
    if type(recipe).offline is Recipe.offline:
        text = f"{naming.method(cfg)} learns by acting, and env=null leaves it no environment"
        raise UserError(f"{text}; give env=ID, or an offline method, such as switch=td3bc, switch=iql, mopo")
    if not hasattr(cfg.recipe, "online_steps"):
        return cfg
    return replace(cfg, recipe=replace(cfg.recipe, online_steps=0))


def _log_alone(cfg: Config, found: Named, gamma: float) -> tuple[TransitionDataset, str, Absent, str]:
    """The rows to learn from, the sha256 of all, what stands for the environment, and a line to say."""
    units, (low, high), said = datasets.units_of_log(found, cfg.dataset_actions)
    dataset, content = found.read_with_sha256(cfg.storage, units)
    _check_returns(cfg, dataset)
    rows, held = split(dataset)
    made: list[Judge] = []

    def judge(agent: Agent, rewards: RewardView) -> Metrics:
        if not made:
            made.append(Judge(rows, held, gamma, cfg.seed))
        return made[0](agent, rewards)

    low, high = (np.broadcast_to(x, dataset.act_dim) for x in (low, high))
    about = (
        f"{dataset.obs_dim} observations, {dataset.act_dim} actions, {int(dataset.episode[-1]) + 1} episodes"
    )
    line = f"the log: {dataset.n_rows} rows, {about}; {held.n_rows} rows are held out"
    return rows, content, Absent(dataset.obs_dim, low, high, judge), "; ".join(x for x in (line, said) if x)


def _with_termination(cfg: Config, dataset: TransitionDataset) -> tuple[Config, str]:
    """The config with a rule in place of termination=auto, which an environment's name would decide."""
    if getattr(cfg.recipe, "termination", None) != "auto":
        return cfg, ""
    known = bool(dataset.terminated.any())
    rule = "learned" if known else "none"
    why = "from the log's terminal rows" if known else "the log has no terminal row"
    said = f"recipe.termination=auto is {rule} here: {why}"
    return replace(cfg, recipe=replace(cfg.recipe, termination=rule)), said


def _with_steps(cfg: Config, rows: int) -> tuple[Config, str]:
    """The config with the number of updates that a log of so many rows repays, and a line that says so.

    Schedules that end with the offline phase end with the shorter one.
    """
    per_row, usual = cfg.updates_per_row, getattr(cfg.recipe, "offline_steps", None)
    cfg = replace(cfg, updates_per_row=None)
    if per_row is None or usual is None:
        return cfg, ""
    steps = min(usual, max(LEAST_UPDATES, math.ceil(per_row * rows)))
    if steps == usual:
        return cfg, ""

    def shortened(part: Any) -> Any:
        changed = {}
        for f in fields(part):
            value = getattr(part, f.name)
            if is_dataclass(value):
                changed[f.name] = shortened(value)
            elif f.name == "offline_steps" or (f.name.endswith("_decay_steps") and value == usual):
                changed[f.name] = steps
        return replace(part, **changed)

    how = f"{per_row:g} updates for each of {rows} rows to learn from, at least {LEAST_UPDATES}"
    said = f"recipe.offline_steps is {steps} here ({how}); recipe.offline_steps={usual} is the usual number"
    source = cfg.provenance and f"{cfg.provenance}; with {steps} updates, for a log of {rows} rows"
    return replace(cfg, recipe=shortened(cfg.recipe), provenance=source), said


def _facts(
    resumed: dict[str, Any], dataset: TransitionDataset | None, content: str | None
) -> dict[str, str | float | None]:
    """Entries of config.yaml that are no settings. A resumed run keeps those that it found when it began."""
    if resumed:
        return {key: resumed[key] for key in naming.FACTS if key in resumed}
    if dataset is None:
        return {}
    returns = dataset.episode_returns()[0]
    # None: no episode is whole
    behaviour = float(returns.mean()) if len(returns) else None
    return dict(zip(naming.FACTS, (content, behaviour), strict=True))


# -------------------------------------------------------------------------------------- what the config needs


def _loaded(
    cfg: Config, found: Named | None, env_id: str
) -> tuple[Config, TransitionDataset | None, str | None, list[str]]:
    """The config with what only dataset and environment tell, the dataset, its sha256, and lines to say."""
    if not isinstance(cfg.env_kwargs, dict | None):
        raise UserError(
            f"env_kwargs={cfg.env_kwargs}: expected names and values, such as env_kwargs={{frame_skip: 4}}"
        )
    cfg = replace(cfg, env_kwargs=kept("env_kwargs", cfg.env_kwargs or None))
    if found is None:
        return _with_reward_scale(cfg, None)[0], None, None, []
    choice = EnvChoice(env_id, cfg.env_kwargs or {})
    dataset, content = found.read_with_sha256(cfg.storage, units_for(found, cfg.dataset_actions, choice))
    _check_returns(cfg, dataset)
    if cfg.env_layout is None:

        def has_forces() -> bool:
            return any(bool((b.obs[..., ANT:] != 0).any()) for b in dataset.blocks())

        cfg = replace(cfg, env_layout=find_layout(env_id, dataset.obs_dim, has_forces))
    cfg, said = _with_reward_scale(cfg, dataset)
    return cfg, dataset, content, [said]


def _with_reward_scale(cfg: Config, dataset: TransitionDataset | None) -> tuple[Config, str]:
    """The config with run.reward_scale=auto as its number, and a line that says so ("" for a number).

    The number is stored with the run, so that a resumed run and `mbo2o eval` use the same one.
    """
    if cfg.run.reward_scale != "auto":
        return cfg, ""
    auto = "run.reward_scale=auto"
    if dataset is None:
        raise UserError(
            f"{auto} needs a dataset, because it is taken from returns; give a number for this recipe"
        )
    returns = dataset.episode_returns()[0]
    if len(returns) == 0:
        raise UserError(f"{auto}: the dataset holds no whole episode to take a return from; give a number")
    worst, best = float(returns.min()), float(returns.max())
    if not best > worst:
        raise UserError(
            f"{auto}: every whole episode of the dataset returns {best:g}, so there is no spread to divide "
            "by; give a number"
        )
    scale = 1000 / (best - worst)
    said = (
        f"{auto} is {scale:.6g}: 1000 / ({best:.6g} - {worst:.6g}), the best and the worst return of the data"
    )
    return replace(cfg, run=replace(cfg.run, reward_scale=scale)), said


def keep_memory() -> None:
    """Make glibc keep freed memory for the next update; without it CQL takes half as long again."""
    mmap_max, trim_threshold, top_pad = -4, -1, -2  # malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 64 * 2**20)):
            mallopt(option, value)


def _check(cfg: Config) -> None:
    """Have every part of the config check itself, and refuse a device that is not there.

    The parts check themselves when they are made; a program may have changed them since.
    """
    for _, part in parts(cfg):
        if hasattr(part, "__post_init__"):
            part.__post_init__()
    if cfg.updates_per_row is not None and (cfg.updates_per_row <= 0 or cfg.env != NO_ENV):
        text = "expected a number above 0, and env=null; elsewhere recipe.offline_steps says it"
        raise UserError(f"updates_per_row={cfg.updates_per_row}: {text}")
    if isinstance(cfg.dataset_actions, list | tuple):
        datasets.given_bounds(cfg.dataset_actions, "dataset_actions=")
    else:
        Actions(cfg.dataset_actions, option="dataset_actions=")
    for key, value in flat(values_of(cfg)).items():
        if isinstance(value, float):
            _check_number(key, value)
    try:
        torch.zeros(1, device=cfg.device).item()
    except (RuntimeError, AssertionError) as e:
        raise UserError(f"device={cfg.device} is not available here ({str(e).splitlines()[0]})") from e


def _check_number(key: str, value: float) -> None:
    """Refuse NaN, infinite settings of `run`, and rates and discounts out of their range."""
    name = key.rpartition(".")[2]
    if math.isnan(value) or (math.isinf(value) and key.startswith("run.") and name != "q_limit"):
        raise UserError(f"{key}={value} is not a finite number")
    # rates and discounts stand in many configs, under the same names
    if name in ("gamma", "tau") and not 0 <= value <= 1:
        raise UserError(f"{key}={value} must lie in [0, 1]")
    if (name == "lr" or name.endswith("_lr")) and value < 0:
        raise UserError(f"{key}={value} must not be negative")


def _check_returns(cfg: Config, dataset: TransitionDataset) -> None:
    """Refuse an agent that needs the returns of the data where no return is known."""
    if dataset.ends_known:
        return
    for part in _readers(cfg):
        entry = entry_of(part, AGENTS)
        raise UserError(
            f"{cfg.dataset}: no return is known, because the file does not say where episodes were cut, "
            f"and {entry.name if entry else 'the agent'} needs returns; store timeouts, or the attribute "
            "max_episode_steps, or take an agent that does not need them"
        )


def _readers(cfg: Config) -> list[Any]:
    """The configs of those agents that read the returns of the data."""
    return [part for part in vars(cfg.recipe).values() if getattr(part, "needs_returns", False)]


# ------------------------------------------------------------------------------------------- runs to look at


def restore(directory: Path, trust: bool | Collection[str] = ()) -> tuple[Run, Recipe]:
    """A run as its last checkpoint has it, and its recipe, to be looked at: networks restored, no turn taken.

    Args:
        directory: The run's.
        trust: The names in the run's config whose code may be imported: plugins, functions as
            `package.module:function`, environments as `module:ID`. True: all of them. Modules that this
            process has imported already need no trust.

    Raises:
        UserError: It is no run, has no checkpoint, names code that is not trusted, or its dataset has
            changed since. Where the dataset is gone, an old run (see `Remembered`), and later a call that
            asks for its rows.
    """
    with trusting(trust):
        load_entry_points()
        load_plugins(stored_plugins(directory))
        cfg, env_id = read_config(directory)
        if imports_module(env_id):
            check_trust("env", env_id)
        cfg.device, cfg.engine, cfg.precision = "cpu", "eager", "fp32"  # no step is learned
        recipe = make_recipe(cfg.recipe)
        dataset, absent = None, None
        if recipe.needs_dataset:
            dataset, absent = _dataset_of(directory, cfg, env_id, recipe.gamma)
        run = _open(directory, cfg, recipe, env_id, dataset, absent, look_only=True)
        with contextlib.ExitStack() as inside:
            if isinstance(dataset, Remembered):
                run.say(f"{dataset.why}: restored by what the run kept of it")
                inside.enter_context(dataset.while_restoring())
                inside.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")  # rules that are compared with its rows
            inside.enter_context(contextlib.suppress(Restored))
            recipe(run)
    return run, recipe


def _dataset_of(
    directory: Path, cfg: Config, env_id: str, gamma: float
) -> tuple[TransitionDataset, Absent | None]:
    """The dataset that a run learned from; what the run remembers of it, if it is not there any more.

    The second one stands for the environment, if the run has none.
    """
    alone = env_id == NO_ENV
    try:
        found = datasets.find(cfg.dataset, cfg.dataset_columns)
        if not found.source.exists():
            raise UserError(f"{found.where}: no such file")
    except UserError as e:
        kept = Remembered.read(directory, str(e))
        return kept, _without_rows(directory, kept) if alone else None
    absent = None
    if alone:
        dataset, content, absent, _ = _log_alone(cfg, found, gamma)
    else:
        dataset, content = found.read_with_sha256(cfg.storage, _settled_units(cfg, found, env_id))
    naming.check_content(directory, cfg.dataset, stored(directory).get(naming.SUM), content)
    return dataset, absent


def _without_rows(directory: Path, kept: Remembered) -> Absent:
    """What stands for the environment where the log is gone: nothing can be measured any more."""
    path = directory / policy.FILE
    box = policy.facts.box_of(policy.facts.check_facts(path, path.read_text()))

    def judge(agent: Agent, rewards: RewardView) -> Metrics:
        raise UserError(f"{kept.why}; without the log nothing can be said of the policy")

    return Absent(kept.obs_dim, box.low.ravel(), box.high.ravel(), judge)


def _settled_units(cfg: Config, found: Named, env_id: str) -> Actions:
    """The units that were trained on, which are no longer in doubt; a box is needed only to map."""
    mode = cfg.dataset_actions
    if isinstance(mode, list | tuple) or Actions(mode).maps:
        return units_for(found, mode, EnvChoice(env_id, cfg.env_kwargs or {}))
    return Actions(mode)


def load_agent(directory: str | Path, trust: bool | Collection[str] = ()) -> Agent:
    """The agent of a run as its last checkpoint has it; `trust` and the errors are those of `restore`.

    `agent.act(obs)` takes observations `(S, B, D)` in raw units, with S seeds, and returns actions
    `(S, B, A)` in [-1, 1]. It also has critics and optimisers, for research; `mbo2o.load` gives a policy that
    acts in the environment's own units.
    """
    _, recipe = restore(Path(directory), trust)
    agent: Agent | None = getattr(recipe, "agent", None)
    if agent is None:
        raise UserError(f"{directory}: its recipe keeps no agent; `restore` gives the recipe itself")
    return agent


def _write_facts(run: Run, dataset: TransitionDataset | None) -> None:
    """Write what the run needs without its environment and its dataset: io.json and data.json.

    The first says what a policy takes and gives.
    """
    said = None if dataset is None else dataset.attrs
    said_of = policy.facts_of(run.env_id, run.spec.obs_dim, run.world.lanes.box, said, run.env.layout)
    whole.write_whole(run.directory / policy.FILE, json.dumps(said_of, indent=1))
    if dataset is not None:
        remembered.write(dataset, run.directory)


def _open(
    directory: Path,
    cfg: Config,
    recipe: Recipe,
    env_id: str,
    dataset: TransitionDataset | None,
    absent: Absent | None = None,
    look_only: bool = False,
) -> Run:
    engine = EngineConfig(cfg.engine, cfg.precision)
    task = Task(
        *(env_id, cfg.seed, cfg.seeds, recipe.gamma, cfg.device, cfg.env_kwargs, cfg.env_layout, engine),
        returns=bool(_readers(cfg)),
        absent=absent,
    )
    phase = cfg.start_from or cfg.pretrain_from
    start_from = Path(phase) if phase else None
    return Run(
        *(directory, cfg.run, task, dataset), start_from=start_from, look_only=look_only, loggers=cfg.log
    )
