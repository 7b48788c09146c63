"""The settings of a run: the dataclass, its plain values in config.yaml, and the way back from there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # OmegaConf reads with it
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mbo2o import loggers
from mbo2o.dynamics.termination import name_of
from mbo2o.recipes import older
from mbo2o.registry import AGENTS, RECIPES, SOURCES, WORDS, Entry, entry_of, find
from mbo2o.run.config import RunConfig
from mbo2o.run.engine import EngineConfig
from mbo2o.types import UserError, at_least_one

KINDS = {
    "official": "the numbers of the authors' paper or code, or of the named reproduction",
    "adapted": "those, except for what the source says beside them",
    "small": "sized for a CPU",
}
"""What a preset's provenance begins with."""
AS_STORED = (*WORDS, "provenance", "env_kwargs", "dataset_actions", "dataset_columns", "plugins")
"""Settings that are read from config.yaml as they stand there: `${KEY}` in them is text."""
MAX_THREADS = 1024


@dataclass
class Config:
    """A run. The dataclasses beside the classes hold all defaults; YAML chooses and overrides."""

    # the config of a recipe; `mbo2o methods` lists them
    recipe: Any = MISSING
    # a file, an address such as s3://bucket/my.hdf5, a name of `mbo2o data list`, or minari:ID
    dataset: str | None = None
    # where the dataset is held; memmap: one larger than memory is converted once into files that runs share
    storage: str = "ram"
    # units of the dataset's actions. unit: [-1, 1]; env: the environment's box, which is mapped to [-1, 1];
    # clip, env-clip: a policy's outputs in these units, clipped; [LOW, HIGH]: these bounds, each a number or
    # a list, are mapped; None: unit, but refused if they look like the box's units
    dataset_actions: Any = None
    # which column of a table (CSV, Parquet) holds what: {observations: [x, y], actions: [u], rewards: r,
    # terminals: done}; None: the columns' names say so (store/columns.py)
    dataset_columns: Any = None
    # gymnasium id; None: the dataset's. none (on the command line env=null): there is no environment, so that
    # the offline phase alone learns from the log, and what the log says of the policy is measured
    env: str | None = None
    # a dict: arguments for gymnasium.make beside the id, wherever the run makes its environment
    env_kwargs: Any = None
    # env=null alone: the offline phase makes this many updates for each row of the log, at least 2000 and at
    # most recipe.offline_steps; None: recipe.offline_steps. It is 10 if env=null is given and neither is set
    updates_per_row: float | None = None
    # how observations are laid out: d4rl or d4rl-no-forces; None: the environment's own, or one of these
    # where the dataset's width says so (envs/layouts.py)
    env_layout: str | None = None
    # trained side by side; each has its own initial networks and starts, and shares the stream of later draws
    seeds: int = 1
    # seed of the first one; the whole run follows from it
    seed: int = 0
    device: str = "cpu"
    # how learning steps are run: eager; compiled, to one program that a C++ compiler makes at the start;
    # graph, which a GPU replays; auto: graph on a GPU, compiled where a long run repays it, else eager
    engine: str = "auto"
    # how products of matrices in learning steps are rounded: fp32, tf32 (GPUs), bf16, or auto: the lowest
    # that was shown to learn as well on this device (run/engine.py)
    precision: str = "auto"
    # torch threads: two on two busy cores can be far slower than one for networks this small
    threads: int = 1
    # None: runs/RECIPE-DATASET-HASH, so that the same command finds its run again
    dir: str | None = None
    # a run that ended after its offline phase (online_steps=0): go on from there
    start_from: str | None = None
    # such a run of any method: take its networks as far as they fit, and its settings of the offline phase
    pretrain_from: str | None = None
    # go on where the directory's checkpoint is; false: refuse a directory that has one
    resume: bool = True
    # write DIR/report at the end
    report: bool = True
    # what follows metrics.jsonl, which is always written: csv, tensorboard, wandb, trackio (loggers.py)
    log: list[str] = field(default_factory=lambda: ["jsonl"])
    # where the preset's numbers come from, as KIND: SOURCE (see KINDS); None without a preset
    provenance: str | None = None
    # modules that are imported first, because they register agents, recipes, sources, penalties or rules
    plugins: list[str] = field(default_factory=list)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        EngineConfig(self.engine, self.precision)
        loggers.check(self.log)
        at_least_one("settings", seeds=self.seeds, threads=self.threads)
        if self.threads > MAX_THREADS:
            raise UserError(f"threads={self.threads} must be at most {MAX_THREADS}")
        if not 0 <= self.seed < 2**64 - self.seeds:
            raise UserError(f"seed={self.seed} must lie in [0, 2^64 - seeds)")
        for name in WORDS:
            if "${" in str(getattr(self, name)):
                text = "a name that holds ${ cannot be kept in config.yaml; rename it"
                raise UserError(f"{name}={getattr(self, name)}: {text}")


def parts(config: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The dataclass `config` and all dataclasses in its fields, each with its dotted name."""
    yield name, config
    for f in fields(config):
        if is_dataclass(value := getattr(config, f.name)):
            yield from parts(value, f"{name}.{f.name}" if name else f.name)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted names."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


# ------------------------------------------------------------------------------------------- to config.yaml


def plain(cfg: Config, env_id: str) -> dict[str, Any]:
    """The config as config.yaml holds it, with the environment that was found.

    Recipe, agents and sources have their registered names, functions their dotted paths, and `plugins` also
    names the modules that these were defined in, so that another process finds them again.

    Raises:
        UserError: No path leads to a function, or the recipe is not registered.
    """
    if entry_of(cfg.recipe, RECIPES) is None:
        raise UserError(f"recipe: no recipe is registered with the config {type(cfg.recipe).__name__}")
    used = [entry_of(part, RECIPES, AGENTS, SOURCES) for _, part in parts(cfg)]
    modules = [entry.cls.__module__ for entry in used if entry]
    foreign = [x for x in modules if x != "__main__" and x.partition(".")[0] != __name__.partition(".")[0]]
    here = os.path.abspath(cfg.dataset) if cfg.dataset and os.path.exists(cfg.dataset) else cfg.dataset
    # a path stays true when the report or `eval` is called from elsewhere
    return {
        **values_of(cfg),
        "dataset": here,
        "env": env_id,
        "plugins": list(dict.fromkeys([*cfg.plugins, *foreign])),
    }


def values_of(x: Any, option: str = "") -> Any:
    """A config, or a part of one, as dicts, lists, numbers and text; `option` is the setting that has it."""
    if is_dataclass(x) and not isinstance(x, type):
        entry = entry_of(x, RECIPES, AGENTS, SOURCES)
        own = {f.name: values_of(getattr(x, f.name), f.name) for f in fields(x)}
        return {"name": entry.name, **own} if entry else own
    if isinstance(x, dict):
        return {key: values_of(value, key) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [values_of(value, option) for value in x]
    return name_of(x, option) if callable(x) else x


def kept(name: str, x: Any) -> Any:
    """`x` as config.yaml gives it back; `UserError` for a value that config.yaml cannot keep."""
    if isinstance(x, dict):
        if odd := [key for key in x if not isinstance(key, str)]:
            raise UserError(f"{name} is a dict with the name {odd[0]!r}, which is not text; put it in quotes")
        return {key: kept(f"{name}.{key}", value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [kept(f"{name}[{i}]", value) for i, value in enumerate(x)]
    if x is None or type(x) in (bool, int, float, str):
        return x
    text = "config.yaml keeps numbers, text, true, false, null, lists and dicts of them"
    raise UserError(f"{name} is a {type(x).__name__}; {text}")


# ----------------------------------------------------------------------------------------- from config.yaml


def stored(directory: Path) -> dict[str, Any]:
    """The content of a run's config.yaml. Raises `UserError` if there is none, or none of a run."""
    path = directory / "config.yaml"
    if not path.is_file():
        raise UserError(
            f"{directory}: not a run (it has no config.yaml); give a directory that `mbo2o train` wrote"
        )
    try:
        found = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as e:
        raise UserError(f"{path}: cannot be read ({' '.join(str(e).split())})") from e
    groups = [found.get(x) for x in ("recipe", "run")] if isinstance(found, dict) else [None]
    if not isinstance(found, dict) or not all(isinstance(x, dict) and x for x in groups):
        raise UserError(f"{path}: is not the config of a run; give a directory that `mbo2o train` wrote")
    if "name" not in found["recipe"]:
        raise UserError(f"{path}: is not the config of a run; give a directory that `mbo2o train` wrote")
    return {str(k): v for k, v in found.items()}


def stored_plugins(directory: Path) -> list[str]:
    """The plugins that a run's config.yaml names; `UserError` if that is not a list of names."""
    names = stored(directory).get("plugins") or []
    if not isinstance(names, list) or not all(isinstance(x, str) for x in names):
        raise UserError(f"{directory / 'config.yaml'}: plugins is {names!r}, expected a list of module names")
    return names


def read_config(directory: Path) -> tuple[Config, str]:
    """The config that `directory` was run with, and its environment. Imports nothing that the config names.

    Raises:
        UserError: There is no config of a run, or it does not fit this version or the loaded plugins.
    """
    values = stored(directory)
    recipe = values.pop("recipe")
    settings = BEFORE | values.pop("run")
    if settings.pop("tensorboard", False):  # what older versions had in place of `log`
        values.setdefault("log", ["tensorboard"])
    name, recipe = older.modern(recipe.pop("name"), recipe)
    entry: Entry = _found(directory, RECIPES, name, "recipe")
    known = {f.name for f in fields(Config)}
    own = {k: v for k, v in values.items() if k in known} | {"dir": str(directory)}
    as_stored = {k: v for k, v in own.items() if k in AS_STORED}
    if "plugins" in as_stored:
        as_stored["plugins"] = stored_plugins(directory)
    try:
        rest = {k: v for k, v in own.items() if k not in AS_STORED}
        typed = _typed(Config, rest | {"recipe": {}})
        cfg = replace(
            typed,
            **as_stored,
            recipe=_build(directory, entry.config, recipe),
            run=_typed(RunConfig, settings),
        )
    except OmegaConfBaseException as e:
        reason = " ".join(str(e).split())
        path = directory / "config.yaml"
        raise UserError(f"{path}: does not fit this version, or was changed by hand ({reason})") from e
    return cfg, str(cfg.env)


BEFORE = {"allow_mismatch": True}
"""Settings of `run` that older runs do not have, with the value that they had the effect of."""


def _build(directory: Path, config: type, values: dict[str, Any]) -> Any:
    """An instance of the dataclass `config` from stored values, with agents and sources by their names."""
    values = dict(values)
    usual = config()
    for key, value in values.items():
        if not isinstance(value, dict) or "name" not in value or hasattr(getattr(usual, key, None), "name"):
            continue
        rest = {k: v for k, v in value.items() if k != "name"}
        values[key] = _build(directory, _slot(directory, value["name"], set(rest)).config, rest)
    return _typed(config, values)


def _slot(directory: Path, name: str, settings: set[str]) -> Entry:
    """The agent or the source called `name`; of two, the one that has these settings."""
    found = [table[name] for table in (AGENTS, SOURCES) if name in table]
    fitting = [entry for entry in found if settings <= {f.name for f in fields(entry.config)}]
    return (fitting or found or [_found(directory, AGENTS | SOURCES, name, "agent or source")])[0]


def _found(directory: Path, table: dict[str, Entry], name: str, what: str) -> Entry:
    try:
        entry: Entry = find(table, name, what)
    except UserError as e:
        plugins = ", ".join(stored_plugins(directory))
        more = f"; its config names plugins=[{plugins}], give that if you trust it" if plugins else ""
        raise UserError(f"{directory}: {e}{more}") from e
    return entry


def _typed(schema: type, values: dict[str, Any]) -> Any:
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
