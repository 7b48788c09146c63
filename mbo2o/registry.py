"""Names to classes: what a config may choose, how plugins come in, and whose code may be imported.

A method is one Python file that registers itself and one YAML file. Both may belong to another package,
which is then a plugin.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from mbo2o.errors import UserError

T = TypeVar("T", bound=type)
ENTRY_POINTS = "mbo2o.plugins"
"""Group of entry points: the module that each one names is imported before any name is looked up."""
WORDS = ("dataset", "dir", "start_from", "pretrain_from", "env")
"""Settings whose values are names and paths of the user's."""
NO_ENV = "none"  # the `env` of a run that learns from a log alone; `env=null` on the command line


@dataclasses.dataclass(frozen=True)
class Entry:
    """A registered class with the dataclass that configures it."""

    name: str
    cls: type
    config: type


AGENTS: dict[str, Entry] = {}
RECIPES: dict[str, Entry] = {}
SOURCES: dict[str, Entry] = {}
PLANNERS: dict[str, Entry] = {}
REGISTERED: list[Any] = []
"""Every class and function that was registered under a name, also penalties and termination rules."""


def agent(name: str, config: type) -> Callable[[T], T]:
    """Class decorator: register an agent under `name`, configured by dataclass `config`."""
    return _register(AGENTS, name, config)


def recipe(name: str, config: type) -> Callable[[T], T]:
    """Class decorator: register a recipe under `name`, with a dataclass derived from `RecipeConfig`."""
    if not hasattr(config, "offline_part"):
        raise UserError(
            f"{name!r}: its config {config.__name__} has to derive from mbo2o.recipes.RecipeConfig"
        )
    return _register(RECIPES, name, config)


def source(name: str, config: type) -> Callable[[T], T]:
    """Class decorator: register a source of batches under `name`, with a dataclass from `SourceConfig`."""
    if "SourceConfig" not in {x.__name__ for x in config.__mro__}:
        raise UserError(
            f"{name!r}: its config {config.__name__} has to derive from mbo2o.sources.SourceConfig"
        )
    return _register(SOURCES, name, config)


def planner(name: str, config: type) -> Callable[[T], T]:
    """Class decorator: register a planner under `name`, configured by a dataclass from `SearchConfig`."""
    return _register(PLANNERS, name, config)


def _register(table: dict[str, Entry], name: str, config: type) -> Callable[[T], T]:
    if not dataclasses.is_dataclass(config):
        raise UserError(
            f"{name!r}: its config {config.__name__} is no dataclass; decorate it with @dataclass"
        )

    def add(cls: T) -> T:
        if name in table:
            check_same(name, table[name].cls, cls)
        table[name] = Entry(name, cls, config)
        REGISTERED.append(cls)
        return cls

    return add


def check_same(name: str, old: Any, new: Any) -> None:
    """Raise a `UserError` unless `new` defines `old` again, as when a notebook's cell runs twice."""
    where = [f"{x.__module__}.{getattr(x, '__qualname__', type(x).__qualname__)}" for x in (old, new)]
    if where[0] != where[1]:
        raise UserError(f"the name {name!r} is registered twice, by {where[0]} and by {where[1]}; rename one")


def entry_of(config: Any, *tables: dict[str, Entry]) -> Entry | None:
    """The entry whose dataclass is the type of `config`; None if no table has one."""
    return next((e for table in tables for e in table.values() if e.config is type(config)), None)


def find(table: dict[str, Any], name: str, what: str) -> Any:
    """The entry called `name`; a misspelt name gets a `UserError` that suggests the nearest."""
    if name in table:
        return table[name]
    choices = ", ".join(sorted(table))
    raise UserError(f"no {what} is called {name!r}; {did_you_mean(name, table)}choices: {choices}")


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6, before: str = "") -> str:
    """The part of a message that suggests the known name nearest to `name`; empty if none is near.

    cutoff: how alike the two have to be, from 0 to 1; capitals count as small letters. before: what the
    suggestion shows in front of the name.
    """
    small = {x.casefold(): x for x in known}
    near = difflib.get_close_matches(name.casefold(), small, 1, cutoff)
    return f"did you mean {before + small[near[0]]!r}? " if near else ""


def conf_folder() -> Path:
    """The YAML tree, where presets have their names: in the repository, or inside an installed package."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


# ---------------------------------------------------------------------------------------------------- plugins


def load_plugins(names: Sequence[str]) -> None:
    """Import the modules of a config's `plugins`, which register what they bring.

    Raises:
        UserError: A name stands there twice, is not trusted (see `trusting`), or names no module, or one
            that raises.
    """
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UserError(f"plugins=[{', '.join(names)}]: {name} stands there twice; name it once")
    for name in names:
        if name not in sys.modules:
            check_trust("plugins", name, f"[{name}]")
        _import(name, f"plugins=[{name}]")


@functools.cache
def load_entry_points() -> None:
    """Import the plugins that installed packages declare; a second call does nothing."""
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        package = f" of the installed package {point.dist.name}" if point.dist else ""
        _import(point.module, f"the plugin {point.module}{package}")


def _import(module: str, what: str) -> None:
    try:
        importlib.import_module(module)
    except UserError as e:
        raise UserError(f"{what}: {e}") from e
    except ModuleNotFoundError as e:
        if e.name is None or not f"{module}.".startswith(f"{e.name}."):
            raise UserError(f"{what}: importing it needs the module {e.name}, which is not installed") from e
        raise UserError(f"{what}: no module is called {e.name}; is its folder on PYTHONPATH?") from e
    except (Exception, SystemExit) as e:
        reason = " ".join(f"{type(e).__name__}: {e}".split())
        raise UserError(f"{what}: importing it raises {reason}") from e


# ------------------------------------------------------------------------------------------------------ trust

_TRUSTED: ContextVar[frozenset[str] | None] = ContextVar("trusted", default=None)


@contextlib.contextmanager
def trusting(names: bool | Collection[str]) -> Iterator[None]:
    """Inside, code is imported by name only if the name is one of `names`; True: by any name, as outside.

    A config that comes from elsewhere may name plugins, functions and environments of any module. To import a
    module is to run it, so the caller has to repeat the name, or to trust the whole config.
    """
    allowed = None if names is True else frozenset(names or ())
    token = _TRUSTED.set(allowed)
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def check_trust(option: str, name: str, shown: str | None = None) -> None:
    """Raise a `UserError` if the code that `name` stands for may not be imported; `option` is its setting.

    shown: the setting's value, if that is more than the name.
    """
    allowed = _TRUSTED.get()
    if allowed is not None and name not in allowed:
        raise UserError(
            f"{option}={shown or name} is named by a config and would import code; if you trust it, "
            "give the same name on the command line, or --trust (in Python: trust=True)"
        )
