"""The dataclasses behind the YAML, told to Hydra; for a look at settings, without importing torch.

The dataclasses stand beside the classes that they configure, which import torch. Their names, fields, types
and defaults are therefore kept as JSON in the folder `schemas` of the cache. From that, dataclasses are made
that compose in the same way but check no numbers and configure nothing. The file counts as long as no source
file of the package has changed; it may be deleted, and whatever is wrong with it makes it count as missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import MISSING, Field, field, fields, is_dataclass, make_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from mbo2o.registry import AGENTS, RECIPES, SOURCES

PLAIN: dict[str, Any] = {x.__name__: x for x in (bool, int, float, str)} | {"Any": Any}
Node = tuple[str | None, str, Any]
"""A group of choices (None for the whole config), a name in it, and the dataclass behind that."""


def tell_hydra(look: bool = False) -> bool:
    """Store all dataclasses with Hydra. With `look`, kept ones if there are any; true if it did so.

    Dataclasses of plugins are not kept, so a process that has loaded plugins takes what is registered.
    """
    from hydra.core.config_store import ConfigStore

    found = _kept() if look and not (AGENTS or RECIPES or SOURCES) else None
    for group, name, config in found or _registered():
        ConfigStore.instance().store(name=f"{name}_base", node=config, group=group)
    return found is not None


def _registered() -> list[Node]:
    before = bool(AGENTS or RECIPES or SOURCES)
    from mbo2o import recipes  # noqa: F401  registers
    from mbo2o.settings import Config

    nodes: list[Node] = [(None, "config", Config)]
    for group, table in (("recipe", RECIPES), ("agent", AGENTS), ("source", SOURCES)):
        nodes += [(group, entry.name, entry.config) for entry in table.values()]
    if not before:
        _keep(nodes)
    return nodes


# ------------------------------------------------------------------------------------------------- the file


def _state() -> str:
    """A key that changes when a source file of the package does."""
    root = Path(__file__).parent.parent
    stats = [(str(x.relative_to(root)), x.stat()) for x in sorted(root.rglob("*.py"))]
    facts = [str(root), *(f"{name} {s.st_size} {s.st_mtime_ns}" for name, s in stats)]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _file() -> Path:
    from mbo2o.store.content import cache_folder

    folder = hashlib.sha256(str(Path(__file__).parent).encode()).hexdigest()[:16]
    return cache_folder() / "schemas" / f"{folder}.json"


def _kept() -> list[Node] | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        found = json.loads(_file().read_text())
        if found["state"] == _state():
            return rebuilt(found)
    return None


def _keep(nodes: list[Node]) -> None:
    from mbo2o.store.whole import write_whole

    with contextlib.suppress(OSError, Unkeepable):
        text = json.dumps({"state": _state(), **described(nodes)})
        _file().parent.mkdir(parents=True, exist_ok=True)
        write_whole(_file(), text)


# ------------------------------------------------------------------------------------ to JSON, and from there


class Unkeepable(Exception):
    """A dataclass has a type or a default that is not kept."""


def described(nodes: list[Node]) -> dict[str, Any]:
    """The nodes and all dataclasses that they need, each after those that it needs, as JSON holds them."""
    classes: dict[str, Any] = {}
    return {"nodes": [(g, n, _class(config, classes)) for g, n, config in nodes], "classes": classes}


def _class(cls: type, classes: dict[str, Any]) -> str:
    """The key of a dataclass in `classes`, where it is added with all that it needs."""
    key = f"{cls.__module__}:{cls.__qualname__}"
    if key not in classes:
        bases = [_class(x, classes) for x in cls.__bases__ if is_dataclass(x)]
        types = get_type_hints(cls)
        own = [(x.name, _type(types[x.name], classes), _default(x, classes)) for x in fields(cls)]
        classes[key] = {"name": cls.__name__, "bases": bases, "fields": own}
    return key


def _type(found: Any, classes: dict[str, Any]) -> Any:
    """Text for a type of `PLAIN`, and a dict with one entry for any other."""
    name = "Any" if found is Any else getattr(found, "__name__", "")
    if name in PLAIN and PLAIN[name] is found:
        return name
    if is_dataclass(found) and isinstance(found, type):
        return {"class": _class(found, classes)}
    of = [x for x in get_args(found) if x is not NoneType]
    if get_origin(found) in (Union, UnionType) and len(of) == 1 and len(get_args(found)) == 2:
        return {"optional": _type(of[0], classes)}
    if get_origin(found) is list:
        return {"list": _type(of[0], classes)}
    raise Unkeepable(str(found))


def _default(x: Field[Any], classes: dict[str, Any]) -> Any:
    if x.default is MISSING and x.default_factory is MISSING:
        raise Unkeepable(f"{x.name} has no default")
    return _value(x.default if x.default_factory is MISSING else x.default_factory(), classes)


def _value(value: Any, classes: dict[str, Any]) -> Any:
    """A value as JSON: a dict for an instance of a dataclass, which no other value is."""
    if is_dataclass(value) and not isinstance(value, type):
        own = {x.name: _value(getattr(value, x.name), classes) for x in fields(value)}
        return {"class": _class(type(value), classes), "values": own}
    if isinstance(value, list):
        return [_value(x, classes) for x in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise Unkeepable(repr(value))


def rebuilt(found: dict[str, Any]) -> list[Node]:
    """The nodes that `described` was given, over dataclasses that have no methods."""
    classes: dict[str, Any] = {}
    for key, x in found["classes"].items():
        own = [(name, _typed(of, classes), _given(default, classes)) for name, of, default in x["fields"]]
        bases = tuple(classes[base] for base in x["bases"])
        classes[key] = made = make_dataclass(x["name"], own, bases=bases, repr=False, eq=False)
        made.__module__ = key.partition(":")[0]
    return [(group, name, classes[key]) for group, name, key in found["nodes"]]


def _typed(of: Any, classes: dict[str, Any]) -> Any:
    if isinstance(of, str):
        return PLAIN[of]
    ((kind, inner),) = of.items()
    if kind == "class":
        return classes[inner]
    of_inner: Any = _typed(inner, classes)
    return of_inner | None if kind == "optional" else list[of_inner]


def _given(default: Any, classes: dict[str, Any]) -> Any:
    if isinstance(default, dict | list):
        return field(default_factory=lambda: _made(default, classes))
    return field(default=default)


def _made(value: Any, classes: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return classes[value["class"]](**{k: _made(v, classes) for k, v in value["values"].items()})
    return [_made(x, classes) for x in value] if isinstance(value, list) else value
