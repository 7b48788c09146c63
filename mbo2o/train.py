"""One training run from one config: what `mbo2o train` does, and all of it without Hydra."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import gc
import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]  # what OmegaConf reads with
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mbo2o.data.actions import Actions
from mbo2o.data.dataset import TransitionDataset
from mbo2o.dynamics.termination import name_of
from mbo2o.envs.layouts import ANT, find_layout
from mbo2o.envs.make import EnvChoice, make_env
from mbo2o.recipes import Recipe, make_recipe, older
from mbo2o.registry import AGENTS, RECIPES, SOURCES, find
from mbo2o.report.page import write_report
from mbo2o.run.run import Restored, Run, RunConfig
from mbo2o.store import datasets, hdf5, whole
from mbo2o.store.datasets import Named
from mbo2o.types import UserError, at_least_one

KINDS = {
    "official": "the numbers of the authors' paper or code, or of the named reproduction",
    "adapted": "those, except for what the source says beside them",
    "small": "sized for a CPU",
}
"""What a preset's provenance begins with."""


@dataclass
class Config:
    """A run. The dataclasses beside the classes hold all defaults; YAML chooses and overrides."""

    recipe: Any = MISSING  # the config of one of `mbo2o methods`
    dataset: str | None = None  # a file, a name of `mbo2o data list`, or minari:ID
    storage: str = (
        "ram"  # of the dataset; memmap: one larger than memory, converted once into files that runs share
    )
    dataset_actions: str | None = (
        None  # its units; unit: [-1, 1]; env: the environment's box, which is mapped to [-1, 1];
    )
    # clip, env-clip: a policy's outputs in these units, clipped; None: unit, but refused if they look like the box's units
    env: str | None = None  # gymnasium id; None: the dataset's
    env_kwargs: Any = (
        None  # a dict: what gymnasium.make is given beside the id, wherever the run makes its environment
    )
    env_layout: str | None = (
        None  # how observations are laid out: None: the environment's own, or d4rl or d4rl-no-forces
    )
    # where the dataset's width says so (run/layouts.py)
    seeds: int = 1  # trained side by side; each has its own initial networks and starts, and shares the stream of later draws
    seed: int = 0  # of the first; the whole run follows from it
    device: str = "cpu"
    threads: int = 1  # torch threads: two on two busy cores can be far slower than one for nets this small
    dir: str | None = None  # None: runs/RECIPE-DATASET-HASH, so that the same command finds its run again
    start_from: str | None = (
        None  # a run that ended after its offline phase (online_steps=0): go on from there
    )
    resume: bool = True  # go on where the directory's checkpoint is; false: refuse a directory that has one
    report: bool = True  # write DIR/report at the end
    provenance: str | None = (
        None  # where the preset's numbers come from, KIND: SOURCE (see KINDS); None without a preset
    )
    run: RunConfig = field(default_factory=RunConfig)


def train(cfg: Config) -> Path:
    """Run, or go on with, the run that `cfg` names; returns its directory. UserError, Diverged or Stopped otherwise.

    One process at a time may run in a directory; an `EnvironmentFault`, a kind of UserError, says that the environment kept
    failing.
    """
    try:
        return _train(cfg)
    finally:
        gc.collect()  # the parts of a run know each other, and its buffers may be gigabytes; others in this process need them


def _train(cfg: Config) -> Path:
    _check(cfg)
    torch.set_num_threads(cfg.threads)
    _keep_memory()
    recipe = make_recipe(cfg.recipe)
    found = datasets.find(cfg.dataset) if recipe.needs_dataset else None
    env_id = cfg.env or (found and found.attrs().get("env_id"))
    if not env_id:
        raise UserError(
            "no environment is named: give env=ID (the dataset does not say which it was collected in)"
        )
    if not cfg.env and hdf5.imports(env_id):
        raise UserError(
            f"the dataset names environment {env_id!r}, which imports a module; env={env_id} if you trust it"
        )
    cfg, dataset, content, said = _loaded(cfg, found, str(env_id))
    resolved = _resolve(cfg, str(env_id)) | ({} if content is None else {SUM: content})
    if cfg.start_from:
        _check_start(cfg, resolved)
    directory = Path(cfg.dir) if cfg.dir else Path("runs") / _name(resolved)
    with whole.writing(directory), whole.occupy(directory):
        resumed = _claim(directory, resolved, cfg.resume)
        if resumed:  # what was found out of its dataset when it began stays as it was
            began = {k: resumed[k] for k in FACTS if k in resumed}
            resolved = {k: v for k, v in resolved.items() if k not in FACTS} | began
        elif dataset is not None:
            returns = dataset.episode_returns()[0]
            resolved["behaviour_return"] = (
                float(returns.mean()) if len(returns) else None
            )  # not one episode is whole
        whole.write_whole(directory / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(resolved)))
        run = _open(directory, cfg, recipe, str(env_id), dataset)
        for line in said:
            run.say(line)
        run.say(f"{resolved['recipe']['name']} on {env_id}, {cfg.seeds} seed(s) → {directory}")
        try:
            with run.stopping_on_signals(), run.diverging():
                recipe(run)
                run.finish()
        finally:
            run.close()
        if cfg.report:
            run.say(f"report: {write_report(directory)}")
    return directory


def _loaded(
    cfg: Config, found: Named | None, env_id: str
) -> tuple[Config, TransitionDataset | None, str | None, list[str]]:
    """`cfg` with what only the dataset and the environment tell; the dataset, the sum of its content, and lines to say."""
    if not isinstance(cfg.env_kwargs, dict | None):
        raise UserError(
            f"env_kwargs={cfg.env_kwargs}: expected names and values, such as env_kwargs={{frame_skip: 4}}"
        )
    cfg = replace(cfg, env_kwargs=_kept("env_kwargs", cfg.env_kwargs or None))
    if found is None:
        return _with_reward_scale(cfg, None)[0], None, None, []
    choice = EnvChoice(env_id, cfg.env_kwargs or {})
    dataset, content = found.load_known(cfg.storage, _units(found, cfg.dataset_actions, choice))
    _check_returns(cfg, dataset)
    if cfg.env_layout is None:
        has_forces = lambda: any(bool((b.obs[..., ANT:] != 0).any()) for b in dataset.blocks())  # noqa: E731
        cfg = replace(cfg, env_layout=find_layout(env_id, dataset.obs_dim, has_forces))
    cfg, said = _with_reward_scale(cfg, dataset)
    return cfg, dataset, content, [said] if said else []


def _kept(name: str, x: Any) -> Any:
    """`x` as config.yaml gives it back; UserError for what it cannot keep."""
    if isinstance(x, dict):
        if odd := [key for key in x if not isinstance(key, str)]:
            raise UserError(f"{name} is a dict with the name {odd[0]!r}, which is not text; put it in quotes")
        return {key: _kept(f"{name}.{key}", value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [_kept(f"{name}[{i}]", value) for i, value in enumerate(x)]
    if x is None or type(x) in (bool, int, float, str):
        return x
    raise UserError(
        f"{name} is a {type(x).__name__}; config.yaml keeps numbers, text, true, false, null, lists and dicts of them"
    )


def _with_reward_scale(cfg: Config, dataset: TransitionDataset | None) -> tuple[Config, str]:
    """The config with run.reward_scale=auto resolved to its number, and a line that says so ("" if it was a number).

    The number is stored with the run, so that a resumed run and `mbo2o eval` use the same one.
    """
    if cfg.run.reward_scale != "auto":
        return cfg, ""
    if dataset is None:
        raise UserError(
            "run.reward_scale=auto needs a dataset, whose returns it looks at; give a number for this recipe"
        )
    returns = dataset.episode_returns()[0]
    if len(returns) == 0:
        raise UserError(
            "run.reward_scale=auto: the dataset holds no whole episode to take a return from; give a number"
        )
    worst, best = float(returns.min()), float(returns.max())
    if not best > worst:
        raise UserError(
            f"run.reward_scale=auto: every whole episode of the dataset returns {best:g}, so there is no spread to divide by; "
            "give a number"
        )
    scale = 1000 / (best - worst)
    said = f"run.reward_scale=auto is {scale:.6g}: 1000 / ({best:.6g} - {worst:.6g}), the best and the worst return of the data"
    return replace(cfg, run=replace(cfg.run, reward_scale=scale)), said


def _keep_memory() -> None:
    """Have glibc keep freed blocks: it would unmap large ones and fault them in again each update (CQL: 1.5 times the time)."""
    mmap_max, trim_threshold, top_pad = -4, -1, -2  # malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 64 * 2**20)):
            mallopt(option, value)


MAX_THREADS = 1024
WORDS = ("dataset", "dir", "start_from", "env")
"""Settings whose values are names and paths of the user's."""
AS_STORED = (*WORDS, "provenance", "env_kwargs")
"""Settings that are read from config.yaml as they stand there: a `${KEY}` in them is text, and stands for no other setting."""


def _check(cfg: Config) -> None:
    """Refuse numbers and words that would fail only later, and a device that is not there."""
    Actions(cfg.dataset_actions, option="dataset_actions=")
    counts = {"seeds": cfg.seeds, "threads": cfg.threads}
    of_run = ("log_every", "eval_every", "eval_episodes", "checkpoint_every", "online_capacity")
    counts |= {f"run.{x}": getattr(cfg.run, x) for x in of_run}
    at_least_one("settings", **counts)
    if not 0 <= cfg.seed < 2**64 - cfg.seeds:
        raise UserError(f"seed={cfg.seed} must lie in [0, 2^64 - seeds)")
    for name in WORDS:
        if "${" in str(getattr(cfg, name)):
            raise UserError(
                f"{name}={getattr(cfg, name)}: a name that holds ${{ cannot be kept in config.yaml; rename it"
            )
    if cfg.threads > MAX_THREADS:
        raise UserError(f"threads={cfg.threads} must be at most {MAX_THREADS}")
    for key, value in _flat(_plain(asdict(cfg))).items():
        if isinstance(value, float):
            _check_number(key, value)
    try:
        torch.zeros(1, device=cfg.device).item()
    except (RuntimeError, AssertionError) as e:
        raise UserError(f"device={cfg.device} is not to be had here ({str(e).splitlines()[0]})") from e


def _check_number(key: str, value: float) -> None:
    """Refuse what is not a number, infinities that nothing could learn under, and rates and discounts out of their range."""
    name = key.rpartition(".")[2]
    if math.isnan(value) or (math.isinf(value) and key.startswith("run.") and name != "q_limit"):
        raise UserError(f"{key}={value} is not a finite number")
    if name in ("gamma", "tau") and not 0 <= value <= 1:
        raise UserError(f"{key}={value} must lie in [0, 1]")
    if (name == "lr" or name.endswith("_lr")) and value < 0:
        raise UserError(f"{key}={value} must not be negative")


SUM = "dataset_sha256"
FACTS = (SUM, "behaviour_return")
"""Entries of config.yaml that are no settings: what a run found out of its dataset when it began."""


def _units(
    found: Named, mode: str | None, env: EnvChoice | None, option: str = "dataset_actions="
) -> Actions:
    """The units of a dataset's actions, with the environment's box where the mode needs it, or a doubt does.

    A Minari set names its own box. Raises `UserError` if the environment is needed and cannot be made.
    """
    how = Actions(mode, option=option)
    doubted = mode is None and found.dataset_id is None
    if env is None or not (how.maps or doubted):
        return how
    made = make_env(env)
    box: Any = made.action_space
    made.close()
    return Actions(mode, (box.low, box.high), option)


def _check_returns(cfg: Config, dataset: TransitionDataset) -> None:
    """Refuse what bounds values by returns where none is known."""
    if not dataset.ends_known and any(getattr(x, "calibrate", False) for x in vars(cfg.recipe).values()):
        raise UserError(
            f"{cfg.dataset}: no return is known, because nobody says where episodes were cut, and calql bounds values by them; "
            "store timeouts, or the attribute max_episode_steps, or take cql"
        )


def _check_start(cfg: Config, resolved: dict[str, Any]) -> None:
    """An offline phase is taken over whole: task, data, seeds, networks and what it was learned with have to be the same.

    The data are the same if their content is, whatever the files are called; older runs know nothing but the name.
    """
    other, other_env = read_config(Path(str(cfg.start_from)))
    start = Path(str(cfg.start_from))
    other, other_env = read_config(start)
    theirs, ours = _offline_part(other, other_env), _offline_part(cfg, resolved["env"])
    then, now = _stored(start).get(SUM), resolved.get(SUM)
    if then and now:
        same = then == now
        theirs["dataset"] = "" if same else f"{other.dataset} (sha256 {then})"
        ours["dataset"] = "" if same else f"{cfg.dataset} (sha256 {now})"
    if theirs != ours:
        raise UserError(f"start_from={cfg.start_from}: was run with {_differences(theirs, ours)}")


def _offline_part(cfg: Config, env_id: str) -> dict[str, Any]:
    """The settings that decide what an offline phase learns, by dotted name."""
    plain = _resolve(cfg, env_id)
    rewards = {x: plain["run"][x] for x in ("reward_scale", "reward_shift", "failure_reward")}
    recipe = {x: plain["recipe"].get(x) for x in cfg.recipe.offline_part()}
    task = {x: plain[x] for x in ("seed", "seeds", "env", "dataset_actions", "env_kwargs", "env_layout")}
    return _flat(task | {"dataset": Path(str(cfg.dataset)).stem, "run": rewards, "recipe": recipe})


def restore(directory: Path) -> tuple[Run, Any]:
    """A run as its last checkpoint has it, and its recipe, to be looked at: networks restored, no turn taken."""
    cfg, env_id = read_config(directory)
    cfg.device = "cpu"
    recipe = make_recipe(cfg.recipe)
    dataset = None
    if recipe.needs_dataset:
        found = datasets.find(cfg.dataset)
        how = Actions(cfg.dataset_actions)  # without a box: what was trained on is no longer doubted
        how = _units(found, cfg.dataset_actions, EnvChoice(env_id, cfg.env_kwargs or {})) if how.maps else how
        dataset, content = found.load_known(cfg.storage, how)
        _check_content(directory, cfg.dataset, _stored(directory).get(SUM), content)
    run = _open(directory, cfg, recipe, env_id, dataset, look_only=True)
    with contextlib.suppress(Restored):
        recipe(run)
    return run, recipe


def read_config(directory: Path) -> tuple[Config, str]:
    """The config that `directory` was run with, and its environment."""
    stored = _stored(directory)
    settings = {"allow_mismatch": True} | stored.pop("run")  # older runs were allowed it
    recipe = stored.pop("recipe")
    name, recipe = older.modern(recipe.pop("name"), recipe)
    entry = find(RECIPES, name, "recipe")
    for key, value in recipe.items():
        table = SOURCES if key == "source" else AGENTS
        if isinstance(value, dict) and (part := table.get(value.get("name", ""))):
            recipe[key] = _typed(part.config, {k: v for k, v in value.items() if k != "name"})
    known = {f.name for f in fields(Config)}
    plain = {str(k): v for k, v in stored.items() if k in known} | {"dir": str(directory)}
    try:
        as_stored = {k: v for k, v in plain.items() if k in AS_STORED}
        typed = _typed(Config, {k: v for k, v in plain.items() if k not in AS_STORED} | {"recipe": {}})
        cfg = replace(
            typed, **as_stored, recipe=_typed(entry.config, recipe), run=_typed(RunConfig, settings)
        )
    except OmegaConfBaseException as e:
        path = directory / "config.yaml"
        raise UserError(
            f"{path}: does not fit this version, or was changed by hand ({' '.join(str(e).split())})"
        ) from e
    return cfg, str(cfg.env)


def _stored(directory: Path) -> dict[str, Any]:
    """What the config.yaml of a run holds."""
    path = directory / "config.yaml"
    if not path.is_file():
        raise UserError(
            f"{directory}: not a run (it has no config.yaml); give a directory that `mbo2o train` wrote"
        )
    try:
        stored = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as e:
        raise UserError(f"{path}: cannot be read ({' '.join(str(e).split())})") from e
    parts = [stored.get(x) for x in ("recipe", "run")] if isinstance(stored, dict) else []
    if (
        not isinstance(stored, dict)
        or not all(isinstance(x, dict) for x in parts)
        or "name" not in stored["recipe"]
    ):
        raise UserError(f"{path}: is not the config of a run; give a directory that `mbo2o train` wrote")
    return {str(k): v for k, v in stored.items()}


def _typed(schema: type, values: dict[str, Any]) -> Any:
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))


def find_dataset(
    name: str | None,
    storage: str = "ram",
    actions: str | None = None,
    env_id: str | None = None,
    option: str = "actions=",
) -> TransitionDataset:
    """A dataset by path, by name (its file's stem in a data folder, or of one that was fetched) or by Minari id.

    Args:
        name: What it is called.
        storage: See `TransitionDataset.load`.
        actions: Their units, see `Actions.mode`; `env` and `env-clip` take the box of `env_id`, or of the file's own.
        env_id: The environment that the data are for.
        option: How the user gives `actions`, for errors.

    Raises:
        UserError: There is none, it cannot be read, or its environment is needed and cannot be made.
    """
    found = datasets.find(name)
    if actions not in ("env", "env-clip"):
        return found.load(storage, Actions(actions, option=option))
    own = found.attrs().get("env_id")
    if env_id is None and own is not None and hdf5.imports(own):
        raise UserError(
            f"the dataset names environment {own!r}, which imports a module; give it as env if you trust it"
        )
    named_env = env_id or own
    return found.load(
        storage, _units(found, actions, EnvChoice(str(named_env)) if named_env else None, option)
    )


def _open(
    directory: Path,
    cfg: Config,
    recipe: Recipe,
    env_id: str,
    dataset: TransitionDataset | None,
    look_only: bool = False,
) -> Run:
    return Run(
        directory,
        cfg.run,
        env_id=env_id,
        seed=cfg.seed,
        seeds=cfg.seeds,
        gamma=recipe.gamma,
        dataset=dataset,
        device=cfg.device,
        start_from=Path(cfg.start_from) if cfg.start_from else None,
        look_only=look_only,
        env_kwargs=cfg.env_kwargs,
        env_layout=cfg.env_layout,
    )


def _resolve(cfg: Config, env_id: str) -> dict[str, Any]:
    """The config as plain values; the recipe with its name, and the environment that was found."""
    plain = _plain(asdict(cfg))
    if cfg.dataset and os.path.exists(cfg.dataset):
        plain["dataset"] = os.path.abspath(
            cfg.dataset
        )  # still there when the report or `eval` is called from elsewhere
    name = next(entry.name for entry in RECIPES.values() if entry.config is type(cfg.recipe))
    parts = {entry.config: entry.name for entry in (*AGENTS.values(), *SOURCES.values())}
    for key, value in plain["recipe"].items():
        if kind := parts.get(type(getattr(cfg.recipe, key))):
            plain["recipe"][key] = {"name": kind, **value}
    return {**plain, "env": env_id, "recipe": {"name": name, **plain["recipe"]}}


def _plain(x: Any, option: str = "") -> Any:
    """Callables by the dotted path that finds them again; UserError for one that nothing finds."""
    if isinstance(x, dict):
        return {k: _plain(v, k) for k, v in x.items()}
    return name_of(x, option) if callable(x) else x


ADDED: dict[str, Any] = {
    "dataset_actions": None,
    "env_kwargs": None,
    "env_layout": None,
    "recipe.online_horizon": None,
    "run.max_episode_steps": 1000,
}
"""Settings that came after directories had been named, and the value that all older runs have: with it they are left out."""


def _relevant(resolved: dict[str, Any]) -> dict[str, Any]:
    """What makes two runs the same run."""
    leave = {"dir", "resume", "report", "threads", "storage", "provenance", *FACTS}
    names = {x["name"] for x in resolved["recipe"].values() if isinstance(x, dict) and "name" in x}
    run = {
        k: v for k, v in resolved["run"].items() if k not in ("env_faults", "env_seconds", "allow_mismatch")
    }
    if "adaptive_bc" not in names:  # which acts on scores; to the others they are words
        run["reference"] = "d4rl-v2"  # whatever it is: directories were named when this was the default
    recipe = older.original(resolved["recipe"]["name"], resolved["recipe"])
    out = copy.deepcopy(
        {k: v for k, v in resolved.items() if k not in leave} | {"recipe": recipe, "run": run}
    )
    for name, default in ADDED.items():
        *path, leaf = name.split(".")
        node = out
        for key in path:
            node = node.get(key, {})
        if leaf in node and node[leaf] == default:
            del node[leaf]
    return out


def _name(resolved: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(_relevant(resolved), sort_keys=True).encode()).hexdigest()[:8]
    data = Path(resolved["dataset"]).stem if resolved["dataset"] else resolved["env"]
    return f"{resolved['recipe']['name']}-{data.replace('/', '-').replace(':', '-')}-{digest}"


def _claim(directory: Path, resolved: dict[str, Any], resume: bool) -> dict[str, Any]:
    """Refuse a directory that holds another run; what the config.yaml of this run holds, empty if it begins now."""
    path = directory / "config.yaml"
    if not path.is_file() or not any((directory / "checkpoints").glob("[0-9]*")):
        return {}  # nothing there, or a run that failed before it got anywhere
    if not resume:
        raise UserError(
            f"{directory}: holds a run already; choose another dir=, or resume=true to go on with it"
        )
    # read as a config: settings that an older version did not have yet are as they were then, at their defaults
    old, new = _flat(_relevant(_resolve(*read_config(directory)))), _flat(_relevant(resolved))
    if changed := _changed(old, new):
        back = f"give run.reference={old.get('run.reference')} run.allow_mismatch=true to go on with it, or "
        same = back if changed == ["run.reference"] else ""
        raise UserError(f"{directory}: holds a run with {_differences(old, new)}; {same}choose another dir=")
    stored = _stored(directory)
    _check_content(directory, resolved["dataset"], stored.get(SUM), resolved.get(SUM))
    return stored


def _changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Keys of the settings that differ, sorted; one that is missing counts as null."""
    return [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What differs between two sets of settings: the first five, and how many there are."""
    changed = _changed(old, new)
    shown = "; ".join(f"{key}={old.get(key)}, not {new.get(key)}" for key in changed[:5])
    rest = f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
    return f"{shown}{rest} ({len(changed)} setting{'s' if len(changed) > 1 else ''} differ{'' if len(changed) > 1 else 's'})"


def _check_content(directory: Path, path: object, then: str | None, now: str | None) -> None:
    """Refuse a dataset that is another one than the run's, though it has its name; runs before this was stored do not know."""
    if then and now and then != now:
        sums = f"sha256 {then} then, {now} now"
        raise UserError(
            f"{directory}: the dataset at {path} is not the one this run learned from ({sums}); choose another dir="
        )


def _flat(x: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in x.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out
