"""Names to classes: what a config may choose. Adding a method is one file that registers itself, and one YAML file."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mbo2o.types import UserError

T = TypeVar("T", bound=type)


@dataclass(frozen=True)
class Entry:
    """A registered class with the dataclass that configures it."""

    name: str
    cls: type
    config: type


AGENTS: dict[str, Entry] = {}
RECIPES: dict[str, Entry] = {}
SOURCES: dict[str, Entry] = {}


def agent(name: str, config: type) -> Callable[[T], T]:
    """Class decorator: register an agent under `name`, configured by dataclass `config`."""
    return _register(AGENTS, name, config)


def recipe(name: str, config: type) -> Callable[[T], T]:
    """Class decorator: register a recipe under `name`, configured by dataclass `config`."""
    return _register(RECIPES, name, config)


def source(name: str, config: type) -> Callable[[T], T]:
    """Class decorator: register a source of online batches under `name`, configured by dataclass `config`."""
    return _register(SOURCES, name, config)


def _register(table: dict[str, Entry], name: str, config: type) -> Callable[[T], T]:
    def add(cls: T) -> T:
        if name in table:
            raise ValueError(f"{name!r} is registered twice: {table[name].cls} and {cls}")
        table[name] = Entry(name, cls, config)
        return cls

    return add


def conf_folder() -> Path:
    """The YAML tree, where presets have their names: in the repository, or inside an installed package."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


def find(table: dict[str, Any], name: str, what: str) -> Any:
    """The entry called `name`; a misspelt name gets a UserError that suggests the nearest."""
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"no {what} is called {name!r}; {hint}choices: {', '.join(sorted(table))}")
