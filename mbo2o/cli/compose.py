"""Configs from names and settings, without Hydra: what Python and YAML files ask for.

The tree of YAML is the one that the command line composes from. Of Hydra's language of defaults it reads what
that tree uses: a choice by name (`recipe: moore`, `/agent@offline: cql`), another file of the same group,
`override`, `_self_` and the header `# @package _global_`. Tests compare the results of both ways.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mbo2o.cli.overrides import Tree, no_place, no_setting, one_line
from mbo2o.errors import UserError
from mbo2o.registry import NO_ENV, WORDS, did_you_mean

if TYPE_CHECKING:
    from mbo2o.settings import Config

PRESETS = ("experiment", "switch", "recipe")
"""Where a name is looked up, in this order: a preset comes before the bare recipe of the same name."""


@dataclass(frozen=True)
class Setting:
    """One thing that was asked for."""

    key: str
    value: Any
    added: bool = False
    """Whether the key may be one that is not there yet (`+KEY=VALUE`)."""

    def __str__(self) -> str:
        return f"{self.key}={'null' if self.value is None else self.value}"


def settings_of(overrides: Sequence[str], named: Mapping[str, Any]) -> list[Setting]:
    """What was asked for as text (`KEY=VALUE`), and as names with values, which may be nested dicts.

    Raises:
        UserError: A text is not KEY=VALUE, or its value cannot be read.
    """
    return [*map(_from_text, overrides), *(Setting(str(k), _plain(k, v)) for k, v in named.items())]


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a YAML file, by name. Raises `UserError` if it cannot be read or holds none."""
    try:
        found = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError as e:
        raise UserError(f"--config {path}: no such file; check the path") from e
    except (OSError, ValueError, OmegaConfBaseException) as e:
        raise UserError(f"--config {path}: cannot be read ({' '.join(str(e).split())})") from e
    except Exception as e:  # YAML's errors, whose package is OmegaConf's business
        raise UserError(f"--config {path}: is not YAML ({' '.join(str(e).split())})") from e
    if not isinstance(found, dict):
        raise UserError(f"--config {path}: expected settings by name, such as 'recipe: moore'")
    return {str(k): v for k, v in found.items()}


def find_preset(name: str, tree: Tree) -> Setting:
    """The choice that a method's name stands for; `UserError` with the nearest name if there is none."""
    for group in PRESETS:
        if name in tree.choices(group):
            return Setting(group, name)
    known = [x for group in PRESETS for x in tree.choices(group)]
    text = (
        f"no method is called {name!r}; {did_you_mean(name, known)}choices: {', '.join(sorted(set(known)))}"
    )
    raise UserError(f"{text}; settings are given as KEY=VALUE")


def compose(settings: Sequence[Setting], tree: Tree) -> Config:
    """The config that these settings choose; where two set the same thing, the later one counts.

    Raises:
        UserError: There is a mistake in them.
    """
    from mbo2o.cli.train import declare, to_config

    chosen, others = _sorted(settings, tree)
    node, choices = Composer(tree, chosen).compose()
    rest = [leaf for x in others for leaf in _leaves(x, node)]
    functions = [x for x in rest if callable(x.value)]
    for x in rest:
        if x not in functions:
            _apply(node, x, choices)
    cfg: Any = to_config(node)
    for x in functions:  # a typed tree holds no functions; the dataclasses take them
        holder, _, name = x.key.rpartition(".")
        setattr(_at(cfg, holder), name, x.value)
    return declare(cfg, [str(x) for x in (*(Setting(*x) for x in chosen.items()), *rest)])


def load_asked(settings: Sequence[Setting], tree: Tree, trust: bool) -> None:
    """Import the plugins that the settings name, or else those of the presets that they choose.

    Raises:
        UserError: A plugin cannot be imported, or a preset names one that is not trusted.
    """
    from mbo2o.cli.train import load_named

    named = [x for x in settings if x.key == "plugins"]
    for x in named:
        if not isinstance(x.value, list) or not all(isinstance(name, str) for name in x.value):
            raise UserError(f"{x}: expected a list of modules, as plugins=[my.module]")
    names = [str(name) for x in named for name in x.value] if named else None
    load_named(names, [str(x) for x in settings if isinstance(x.value, str)], tree, trust)


# ------------------------------------------------------------------------------------------------- settings


def _from_text(text: str) -> Setting:
    m = re.fullmatch(r"(\+{0,2})([^=\s+~]+)=(.*)", text, re.DOTALL)
    if not m:
        example = "settings are given as KEY=VALUE, e.g. recipe.horizon=1"
        raise UserError(f"{text!r} is not a setting; {example}")
    key, value = m[2], m[3]
    if key in WORDS and value.lower() != "null" and not re.fullmatch(r"""(['"]).*\1""", value, re.DOTALL):
        known = key == "env" or os.path.lexists(value)
        return Setting(key, value if known else os.path.expanduser(value), bool(m[1]))
    spaced = re.sub(r"([{,]\s*[\w.]+):(?=\S)", r"\1: ", value) if value.startswith("{") else value
    try:
        return Setting(key, _of_yaml(spaced), bool(m[1]))
    except Exception as e:  # YAML's errors, whose package is OmegaConf's business
        raise UserError(f"{key}={value}: cannot be read as a value; put a text between quotes") from e


def _of_yaml(text: str) -> Any:
    found = OmegaConf.to_container(OmegaConf.from_dotlist([f"x={text}"])) if text else {"x": ""}
    return found["x"]  # type: ignore[index,call-overload]


def _plain(key: str, value: Any) -> Any:
    """A Python value as YAML could hold it; functions stay."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(f"{key}.{k}", v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(key, x) for x in value]
    if hasattr(value, "item") and not getattr(value, "shape", ()):  # a number of NumPy's
        return value.item()
    if value is None or callable(value) or type(value) in (bool, int, float, str):
        return value
    raise UserError(f"{key} is a {type(value).__name__}; give numbers, text, lists, or dicts of them")


def _sorted(settings: Sequence[Setting], tree: Tree) -> tuple[dict[str, str | None], list[Setting]]:
    """The choices of files by name, and the other settings."""
    chosen: dict[str, str | None] = {}
    rest: list[Setting] = []
    for x in settings:
        if "@" in x.key or (tree.folders(x.key) and not isinstance(x.value, dict)):
            if not isinstance(x.value, str) and not (x.value is None and x.key != "recipe"):
                choices = ", ".join(tree.choices(x.key.partition("@")[0]))
                raise UserError(f"{x}: expected a name; choices: {choices}")
            chosen[x.key] = x.value
        else:
            rest.append(x)
    return chosen, rest


def _leaves(x: Setting, node: Any) -> list[Setting]:
    """The settings in a nested dict, each with its dotted name; a dict that is a value stays whole."""
    if x.key == "env" and x.value is None:  # said, and not left out
        return [Setting("env", NO_ENV)]
    if not isinstance(x.value, dict) or not OmegaConf.is_dict(OmegaConf.select(node, x.key)):
        return [x]
    return [y for k, v in x.value.items() for y in _leaves(Setting(f"{x.key}.{k}", v, x.added), node)]


def _apply(node: Any, x: Setting, choices: Mapping[str, Any]) -> None:
    path = x.key.split(".")
    free = path[0] == "env_kwargs" and len(path) > 1
    if not (free and x.added) and (text := no_setting(path, node, choices)):
        add = f"{x.key!r} is an argument that is not there yet: add it with a plus, +{x.key}=VALUE"
        raise UserError(add if free else text)
    try:
        OmegaConf.update(node, x.key, x.value, merge=True, force_add=x.added)
    except OmegaConfBaseException as e:
        if f"source@{x.key}" in choices and isinstance(x.value, str):
            raise UserError(f"{x.key} is chosen by name: source@{x.key}={x.value}") from e
        raise UserError(one_line(str(e))) from e


def _at(cfg: Any, path: str) -> Any:
    for name in path.split(".") if path else ():
        cfg = getattr(cfg, name)
    return cfg


# ------------------------------------------------------------------------------------------------- the tree

Place = tuple[str, str, str]
"""A group ("" for the whole config), a name in it, and the dotted place where its content goes."""


class Composer:
    """Follows the defaults of the files from `config.yaml` on, and merges what it finds."""

    def __init__(self, tree: Tree, chosen: Mapping[str, str | None]):
        """`chosen`: names by group, or by `group@place`, which count before those of any file."""
        self._tree, self._chosen = tree, dict(chosen)
        self._by: dict[str, str] = {}  # the file that overrides a choice
        self._choices: dict[str, str | None] = {}

    def compose(self) -> tuple[Any, dict[str, str | None]]:
        """The merged tree, and the choice that was made for each group and place."""
        places = self._visit("", "config", "")
        for key in self._chosen:
            if key not in self._choices:
                raise UserError(no_place(key, self._by.get(key), self._choices))
        node: Any = OmegaConf.create()
        for group, name, package in places:
            content = self._content(group, name)
            at = OmegaConf.create()
            if package:
                OmegaConf.update(at, package, content, merge=False)
            try:
                node.merge_with(at if package else content)
            except OmegaConfBaseException as e:
                raise UserError(self._misfit(e, group, name)) from e
        OmegaConf.set_struct(node, True)
        return node, self._choices

    def _visit(self, group: str, name: str, package: str) -> list[Place]:
        """The files that this one stands for, in the order in which they are merged."""
        text, defaults = self._read(group, name)
        package = "" if re.match(r"\s*# @package _global_", text) else package
        for entry in defaults:
            for key, value in entry.items() if isinstance(entry, dict) else ():
                word, _, place = str(key).partition(" ")
                if word == "override" and not place.startswith("hydra/"):
                    place = place.lstrip("/")
                    if place not in self._chosen:  # the outer file counts, and the later one of two
                        self._chosen[place], self._by[place] = value, f"{group}={name}"
        found: list[list[Place]] = []
        for entry in reversed(defaults):  # so that the later of two files chooses first
            if entry == "_self_":
                found.append([(group, name, package)])
            elif isinstance(entry, str):
                base = entry.endswith("_base")
                found.append([(group, entry, package)] if base else self._visit(group, entry, package))
            elif not str(next(iter(entry))).startswith("override "):
                found += [self._choose(key, value, package) for key, value in entry.items()]
        return [place for places in reversed(found) for place in places]

    def _choose(self, key: str, value: str | None, package: str) -> list[Place]:
        inner, _, at = key.lstrip("/").partition("@")
        place = ".".join(x for x in (package, at or inner) if x)
        key = f"{inner}@{place}" if at else inner
        name = self._choices[key] = self._chosen.get(key, value)
        return [] if name is None else self._visit(inner, name, place)

    def _read(self, group: str, name: str) -> tuple[str, list[Any]]:
        """The text of a file, and its defaults. Raises `UserError` if there is no such file."""
        for folder in self._tree.folders(group) if group else [self._tree.own]:
            path = folder / f"{name}.yaml"
            if path.is_file():
                found: Any = OmegaConf.to_container(OmegaConf.create(path.read_text()), resolve=False) or {}
                return path.read_text(), found.get("defaults", ["_self_"])
        choices = self._tree.choices(group)
        hint = did_you_mean(name, choices)
        raise UserError(f"no {group} is called {name!r}; {hint}choices: {', '.join(choices)}")

    def _content(self, group: str, name: str) -> Any:
        if name.endswith("_base"):
            return OmegaConf.structured(_schema(group, name.removesuffix("_base")))
        node: Any = OmegaConf.create(self._read(group, name)[0])
        for key in {"defaults", "hydra"} & set(node):
            del node[key]
        return node

    def _misfit(self, error: Exception, group: str, name: str) -> str:
        text = " ".join(str(error).split())
        if m := re.search(r"Key '\w+' not in .*?full_key: ([\w.]+)", text):
            recipe = self._choices.get("recipe")
            return (
                f"{group}={name} sets {m[1]}, which recipe={recipe} does not have; leave one of the two out"
            )
        if m := re.search(r"(\w+)Config is not a subclass of (\w+)Config", text):
            fits = f"this recipe takes {m[2].lower()} and its variants"
            return f"{m[1].lower()} does not fit there: {fits}"
        return one_line(str(error))


def _schema(group: str, name: str) -> Any:
    """The dataclass behind a file."""
    from mbo2o import recipes  # noqa: F401  registers
    from mbo2o.registry import AGENTS, RECIPES, SOURCES, find
    from mbo2o.settings import Config

    if not group:
        return Config
    return find({"agent": AGENTS, "recipe": RECIPES, "source": SOURCES}[group], name, group).config
