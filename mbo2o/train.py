"""One training run from one config: what `mbo2o train` does, and all of it without Hydra."""

from __future__ import annotations

import contextlib
import ctypes
import difflib
import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]  # what OmegaConf reads with
from omegaconf import MISSING, OmegaConf

import mbo2o

from .data import remote, schema
from .data.dataset import TransitionDataset
from .dynamics.termination import name_of
from .recipes import Recipe, make_recipe
from .registry import AGENTS, RECIPES, find
from .report.page import write_report
from .run import disk
from .run.run import Restored, Run, RunConfig
from .types import UserError, at_least_one

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
    storage: str = "ram"  # of the dataset; memmap: one larger than memory, converted once into files that runs share
    env: str | None = None  # gymnasium id; None: the dataset's
    seeds: int = 1  # trained side by side in one process
    seed: int = 0  # of the first; the whole run follows from it
    device: str = "cpu"
    threads: int = 1  # torch threads: two on two busy cores can be far slower than one for nets this small
    dir: str | None = None  # None: runs/RECIPE-DATASET-HASH, so that the same command finds its run again
    start_from: str | None = None  # a run that ended after its offline phase (online_steps=0): go on from there
    resume: bool = True  # go on where the directory's checkpoint is; false: refuse a directory that has one
    report: bool = True  # write DIR/report at the end
    provenance: str | None = None  # where the preset's numbers come from, KIND: SOURCE (see KINDS); None without a preset
    run: RunConfig = field(default_factory=RunConfig)


def train(cfg: Config) -> Path:
    """Run, or go on with, the run that `cfg` names; returns its directory. UserError, Diverged or Stopped otherwise.

    One process at a time may run in a directory; an `EnvironmentFault`, a kind of UserError, says that the environment kept
    failing.
    """
    _check(cfg)
    torch.set_num_threads(cfg.threads)
    _keep_memory()
    recipe = make_recipe(cfg.recipe)
    dataset = find_dataset(cfg.dataset, cfg.storage) if recipe.needs_dataset else None
    env_id = cfg.env or (dataset and dataset.attrs.get("env_id"))
    if not env_id:
        raise UserError("no environment is named: give env=ID (the dataset does not say which it was collected in)")
    if not cfg.env and schema.imports(env_id):
        raise UserError(f"the dataset names environment {env_id!r}, which imports a module; env={env_id} if you trust it")
    cfg, said = _with_reward_scale(cfg, dataset)
    if cfg.start_from:
        _check_start(cfg, str(env_id))
    resolved = _resolve(cfg, str(env_id))
    directory = Path(cfg.dir) if cfg.dir else Path("runs") / _name(resolved)
    with disk.writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with disk.hold(directory):
            _claim(directory, resolved, cfg.resume)
            if dataset is not None:
                returns = dataset.episode_returns()[0]
                resolved["behaviour_return"] = float(returns.mean()) if len(returns) else None  # not one episode is whole
            disk.write_whole(directory / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(resolved)))
            run = _open(directory, cfg, recipe, str(env_id), dataset)
            if said:
                run.say(said)
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


def _with_reward_scale(cfg: Config, dataset: TransitionDataset | None) -> tuple[Config, str]:
    """The config with run.reward_scale=auto resolved to its number, and a line that says so ("" if it was a number).

    The number is stored with the run, so that a resumed run and `mbo2o eval` use the same one.
    """
    if cfg.run.reward_scale != "auto":
        return cfg, ""
    if dataset is None:
        raise UserError("run.reward_scale=auto needs a dataset, whose returns it looks at; give a number for this recipe")
    returns = dataset.episode_returns()[0]
    if len(returns) == 0:
        raise UserError("run.reward_scale=auto: the dataset holds no whole episode to take a return from; give a number")
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


def _check(cfg: Config) -> None:
    """Refuse numbers that would fail only later, and a device that is not there."""
    counts = {"seeds": cfg.seeds, "threads": cfg.threads}
    of_run = ("log_every", "eval_every", "eval_episodes", "checkpoint_every", "online_capacity")
    counts |= {f"run.{x}": getattr(cfg.run, x) for x in of_run}
    of_recipe = ["rollout_every", "model_every", "batch", "epoch", "rollouts", "online_rollouts", "utd", "critics"]
    of_recipe += ["probe_every"]
    counts |= {f"recipe.{x}": getattr(cfg.recipe, x) for x in of_recipe if hasattr(cfg.recipe, x)}
    at_least_one("settings", **counts)
    for name in ("offline_steps", "online_steps", "start", "distill_rows", "anneal_steps"):
        if getattr(cfg.recipe, name, 0) < 0:
            raise UserError(f"recipe.{name}={getattr(cfg.recipe, name)} must not be negative")
    fit, refit = (getattr(cfg.recipe, x, None) for x in ("fit", "refit"))
    if fit and refit and fit.holdout != refit.holdout:
        both = f"recipe.fit.holdout={fit.holdout} and recipe.refit.holdout={refit.holdout}"
        raise UserError(f"{both} must be the same: what was held out once is never trained on")
    for share in ("real", "offline_share", "distill_share"):
        if not 0 <= getattr(cfg.recipe, share, 0) <= 1:
            raise UserError(f"recipe.{share}={getattr(cfg.recipe, share)} is a share: it must lie in [0, 1]")
    try:
        torch.zeros(1, device=cfg.device)
    except (RuntimeError, AssertionError) as e:
        raise UserError(f"device={cfg.device} is not to be had here ({str(e).splitlines()[0]})") from e


OFFLINE = [
    *("agent", "dynamics", "offline", "offline_steps", "batch", "critics", "offline_target"),
    *("fit", "penalty", "coef", "horizon", "rollouts", "rollout_every", "retain", "real", "termination", "reward"),
]
"""Settings of recipes that an offline phase was learned with."""


def _check_start(cfg: Config, env_id: str) -> None:
    """An offline phase is taken over whole: task, data, seeds, networks and what it was learned with have to be the same."""
    other, other_env = read_config(Path(str(cfg.start_from)))
    pairs = {x: (getattr(other, x), getattr(cfg, x)) for x in ("seed", "seeds")}
    pairs["env"] = (other_env, env_id)
    pairs["dataset"] = (Path(str(other.dataset)).stem, Path(str(cfg.dataset)).stem)
    rewards = ("reward_scale", "reward_shift", "failure_reward")
    pairs |= {f"run.{x}": (getattr(other.run, x), getattr(cfg.run, x)) for x in rewards}
    # callables were stored by name
    pairs |= {f"recipe.{x}": (_plain(getattr(other.recipe, x, None)), _plain(getattr(cfg.recipe, x, None))) for x in OFFLINE}
    for name, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise UserError(f"start_from={cfg.start_from}: was run with {name}={theirs}, not {ours}")


def restore(directory: Path) -> tuple[Run, Any]:
    """A run as its last checkpoint has it, and its recipe, to be looked at: networks restored, no turn taken."""
    cfg, env_id = read_config(directory)
    cfg.device = "cpu"
    recipe = make_recipe(cfg.recipe)
    dataset = find_dataset(cfg.dataset, cfg.storage) if recipe.needs_dataset else None
    run = _open(directory, cfg, recipe, env_id, dataset, look_only=True)
    with contextlib.suppress(Restored):
        recipe(run)
    return run, recipe


def read_config(directory: Path) -> tuple[Config, str]:
    """The config that `directory` was run with, and its environment."""
    path = directory / "config.yaml"
    if not path.is_file():
        raise UserError(f"{directory}: not a run (it has no config.yaml); give a directory that `mbo2o train` wrote")
    try:
        stored = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as e:
        raise UserError(f"{path}: cannot be read ({' '.join(str(e).split())})") from e
    if not isinstance(stored, dict) or not {"recipe", "run"} <= set(stored):
        raise UserError(f"{path}: is not the config of a run; give a directory that `mbo2o train` wrote")
    recipe, settings = _modern(stored.pop("recipe")), {"allow_mismatch": True} | stored.pop("run")  # older runs were allowed it
    entry = find(RECIPES, recipe.pop("name"), "recipe")
    for key, value in recipe.items():
        if isinstance(value, dict) and (agent := AGENTS.get(value.get("name", ""))):
            recipe[key] = _typed(agent.config, {k: v for k, v in value.items() if k != "name"})
    known = {f.name for f in fields(Config)}
    plain = {str(k): v for k, v in stored.items() if k in known} | {"dir": str(directory)}
    cfg = Config(**plain, recipe=_typed(entry.config, recipe), run=_typed(RunConfig, settings))
    return cfg, str(cfg.env)


ADDED: dict[str, Any] = {"recipe.online_horizon": None}
"""Settings that older versions did not have, by their dotted names: at these defaults directories are not named by them."""

REMOVED = {"finetune": {"carry_rates": True}, "enoto": {"carry_rates": True}}
"""Settings that recipes no longer have, by recipe, with the value that directories are still named by."""


def _modern(recipe: dict[str, Any]) -> dict[str, Any]:
    """A stored recipe without the settings that no longer exist, which says in today's words what they meant.

    With carry_rates a named online agent learned at the offline agent's rates, whatever its own config said.
    """
    offline, online = recipe.get("offline"), recipe.get("online")
    if recipe.pop("carry_rates", False) and isinstance(offline, dict) and isinstance(online, dict):
        online |= {key: offline[key] for key in online if key.endswith("_lr") and key in offline}
    return recipe


def _typed(schema: type, values: dict[str, Any]) -> Any:
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))


def data_folders() -> list[Path]:
    """Where datasets are looked for by name: ./data, and the data folder beside the package."""
    folders = [p for p in (Path("data"), Path(mbo2o.__file__).parent.parent / "data") if p.is_dir()]
    return folders[:1] if len(folders) == 2 and folders[0].samefile(folders[1]) else folders


def find_dataset(name: str | None, storage: str = "ram") -> TransitionDataset:
    """A dataset by path, by name (its file's stem in a data folder, or of one that was fetched) or by Minari id.

    storage: see `TransitionDataset.load`.
    """
    if name is None:
        raise UserError("no dataset is named: give dataset=FILE, a name of `mbo2o data list`, or minari:ID")
    shipped = {p.stem: p for folder in reversed(data_folders()) for p in folder.glob("*.hdf5")}
    if name in shipped and not os.path.exists(name):
        return TransitionDataset.load(shipped[name], storage)
    if not os.path.exists(name) and (entry := remote.lookup(name)):
        return entry.describe(TransitionDataset.load(entry.ready(), storage))
    if not os.path.exists(name) and not name.startswith("minari:") and "/" not in name:
        near = [x for x in remote.registry() if x.endswith(f"/{name}")] or difflib.get_close_matches(name, shipped, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"no dataset is called {name!r}; {hint}known by name: {', '.join(sorted(shipped)) or 'none'}")
    return TransitionDataset.load(name, storage)


def _open(
    directory: Path, cfg: Config, recipe: Recipe, env_id: str, dataset: TransitionDataset | None, look_only: bool = False
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
    )


def _resolve(cfg: Config, env_id: str) -> dict[str, Any]:
    """The config as plain values; the recipe with its name, and the environment that was found."""
    plain = _plain(asdict(cfg))
    if cfg.dataset and os.path.exists(cfg.dataset):
        plain["dataset"] = os.path.abspath(cfg.dataset)  # still there when the report or `eval` is called from elsewhere
    name = next(entry.name for entry in RECIPES.values() if entry.config is type(cfg.recipe))
    agents = {entry.config: entry.name for entry in AGENTS.values()}
    for key, value in plain["recipe"].items():
        if kind := agents.get(type(getattr(cfg.recipe, key))):
            plain["recipe"][key] = {"name": kind, **value}
    return {**plain, "env": env_id, "recipe": {"name": name, **plain["recipe"]}}


def _plain(x: Any) -> Any:
    """Callables by the dotted path that finds them again."""
    if isinstance(x, dict):
        return {k: _plain(v) for k, v in x.items()}
    return name_of(x) if callable(x) else x


def _relevant(resolved: dict[str, Any]) -> dict[str, Any]:
    """What makes two runs the same run."""
    leave = {"dir", "resume", "report", "threads", "storage", "behaviour_return", "provenance"}
    names = {x["name"] for x in resolved["recipe"].values() if isinstance(x, dict) and "name" in x}
    run = {k: v for k, v in resolved["run"].items() if k not in ("env_faults", "env_seconds", "allow_mismatch")}
    if "adaptive_bc" not in names:  # which acts on scores; to the others they are words
        run["reference"] = "d4rl-v2"  # whatever it is: directories were named when this was the default
    recipe = resolved["recipe"] | REMOVED.get(resolved["recipe"]["name"], {})
    recipe = {k: v for k, v in recipe.items() if (f"recipe.{k}", v) not in ADDED.items()}
    return {k: v for k, v in resolved.items() if k not in leave} | {"recipe": recipe, "run": run}


def _name(resolved: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(_relevant(resolved), sort_keys=True).encode()).hexdigest()[:8]
    data = Path(resolved["dataset"]).stem if resolved["dataset"] else resolved["env"]
    return f"{resolved['recipe']['name']}-{data.replace('/', '-').replace(':', '-')}-{digest}"


def _claim(directory: Path, resolved: dict[str, Any], resume: bool) -> None:
    """Refuse a directory that holds another run."""
    path = directory / "config.yaml"
    if not path.is_file() or not any((directory / "checkpoints").glob("[0-9]*")):
        return  # nothing there, or a run that failed before it got anywhere
    if not resume:
        raise UserError(f"{directory}: holds a run already; choose another dir=, or resume=true to go on with it")
    # read as a config: settings that an older version did not have yet are as they were then, at their defaults
    old, new = _flat(_relevant(_resolve(*read_config(directory)))), _flat(_relevant(resolved))
    if changed := [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]:
        key = changed[0]
        text = f"{directory}: holds a run with {key}={old.get(key)}, not {new.get(key)}"
        same = (
            f"give {key}={old.get(key)} run.allow_mismatch=true to go on with it, or " if changed == ["run.reference"] else ""
        )
        raise UserError(f"{text} ({len(changed)} settings differ); {same}choose another dir=")


def _flat(x: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in x.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out
