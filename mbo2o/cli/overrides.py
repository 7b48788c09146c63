"""KEY=VALUE on the command line: paths are taken as they were typed, and a mistake is one line that says what would work."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from mbo2o.registry import conf_folder
from mbo2o.types import UserError

WORDS = ("dataset", "dir", "start_from", "env")
"""Settings whose values are names and paths of the user's."""
HYDRA_FLAGS = "--multirun -m --cfg -c --info -i --resolve --package -p --hydra-help --shell-completion -sc"
WITH_VALUE = {"--cfg", "-c", "--info", "-i", "--package", "-p"}


def literal(override: str, sweep: bool = False) -> str:
    """The override in Hydra's grammar that has the meaning of this one as it was typed.

    Values of `WORDS` are quoted, so that commas, blanks, brackets and backslashes in a path are characters like others; a
    leading `~/` is the home directory. What is quoted already, `null`, and with `sweep` what Hydra reads as several values stay
    as they are, and `${...}` is an interpolation.
    """
    m = re.fullmatch(rf"(\+{{0,2}}({'|'.join(WORDS)})=)(.+)", override, re.DOTALL)
    if not m or m[3].lower() == "null" or _stays(override, sweep):
        return override
    value = m[3]
    if m[2] != "env" and not os.path.lexists(value):
        value = os.path.expanduser(value)
    return m[1] + _quoted(value)


def _stays(override: str, sweep: bool) -> bool:
    """Whether an override of `WORDS` is quoted, or several values."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import QuotedString
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return isinstance(parsed._value, QuotedString) or (sweep and parsed.is_sweep_override())


def literals(args: Sequence[str]) -> list[str]:
    """Arguments of `mbo2o train` with their overrides as `literal` has them."""
    sweep = bool({"-m", "--multirun"} & set(args))
    return [a if a.startswith("-") else literal(a, sweep) for a in args]


def check_overrides(args: Sequence[str]) -> None:
    """Compose once, so that a mistake is a `UserError` of one line that names the nearest key, instead of Hydra's page."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    for a in args:
        if a.startswith("-") and a not in HYDRA_FLAGS.split():
            raise UserError(
                f"train: unknown option {a!r}; settings are given as KEY=VALUE, e.g. recipe.horizon=1"
            )
    given = [
        a for i, a in enumerate(args) if not a.startswith("-") and (i == 0 or args[i - 1] not in WITH_VALUE)
    ]
    parsed = [_parse(a) for a in given]
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        for p in parsed:
            _check_one(p, given)
        try:
            compose("config", overrides=[_first(p) for p in parsed])
        except (HydraException, OmegaConfBaseException) as e:
            raise UserError(_explain(e, given)) from e


def _parse(override: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, equals, value = override.partition("=")
    if not override.startswith("~") and not (equals and key.strip("+ ")):
        raise UserError(
            f"{override!r} is not a setting; settings are given as KEY=VALUE, e.g. recipe.horizon=1"
        )
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException as e:
        text = f"{key}={value}: cannot be read as a value"
        raise UserError(f'{text}; if it is meant as a text, quote it twice: "{key}={_quoted(value)}"') from e


def _quoted(text: str) -> str:
    """The text between quotes in Hydra's grammar, where backslashes count as such in front of a quote alone."""

    def escape(m: re.Match[str]) -> str:
        return m[1] + m[1] + ("\\'" if m[2] else "")

    return "'" + re.sub(r"(\\*)('|\Z)", escape, text) + "'"


def _check_one(parsed: Any, given: Sequence[str]) -> None:
    """Refuse a choice by what is not a name, and a setting that is added by force and that nothing reads."""
    key, one = parsed.key_or_group, not parsed.is_delete() and not parsed.is_sweep_override()
    if one and (conf_folder() / key).is_dir() and not isinstance(parsed.value(), str):
        raise UserError(f"{parsed.input_line}: expected a name; choices: {', '.join(_choices(key))}")
    anything = key.startswith(("hydra.", "env_kwargs."))  # the environment says what it takes
    forced = (parsed.is_add() or parsed.is_force_add()) and "@" not in key and not anything
    if forced and (text := _no_setting(key.split("."), _chosen(given))):
        raise UserError(text)


def _choices(group: str) -> list[str]:
    return sorted(p.stem for p in (conf_folder() / group).glob("*.yaml"))


def _first(override: Any) -> str:
    """An override as it was given; of a sweep a=1,2 the first choice stands for all."""
    line = str(override.input_line)
    return (
        f"{line.split('=')[0]}={next(iter(override.sweep_string_iterator()))}"
        if override.is_sweep_override()
        else line
    )


def _explain(error: Exception, given: Sequence[str]) -> str:
    """A mistake that Hydra or OmegaConf found, as one line that says what there is instead."""
    causes = [str(e) for e in (error, error.__cause__, error.__cause__ and error.__cause__.__cause__) if e]
    text = " ".join(causes)
    if m := re.search(r"Could not find '([\w-]+)/([\w-]+)'", text):
        choices = _choices(m[1])
        near = difflib.get_close_matches(m[2], choices, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"no {m[1]} is called {m[2]!r}; {hint}choices: {', '.join(choices)}"
    if m := re.search(r"(\w+)Config is not a subclass of (\w+)Config", text):
        return f"{m[1].lower()} does not fit there: this recipe takes {m[2].lower()} and its variants"
    if m := re.search(r"str is not a subclass of SourceConfig\. value: ([\w-]+)", text):
        return f"recipe.source is chosen by name: source@recipe.source={m[1]}"
    preset = r"In '(switch|experiment)/([\w-]+)': ConfigKeyError.*?Key '\w+' not in .*?full_key: ([\w.]+)"
    if m := re.search(preset, text, re.DOTALL):
        recipe = _chosen(given).hydra.runtime.choices["recipe"]
        return f"{m[1]}={m[2]} sets {m[3]}, which recipe={recipe} does not have; leave one of the two out"
    if m := re.search(r"(?:In '([\w/-]+)': )?Could not override '([\w.@/]+)'", text):
        if m[2].startswith("env_kwargs."):
            return f"{m[2]!r} is an argument that is not there yet: add it with a plus, +{m[2]}=VALUE"
        base = _chosen(given)
        if "@" in m[2] or (conf_folder() / m[2]).is_dir():
            return _no_place(m[2], m[1], base)
        return _no_setting(m[2].split("."), base) or one_line(causes[-1])
    return one_line(causes[-1])


def one_line(text: str) -> str:
    """What OmegaConf says over several lines, the setting first."""
    line = " ".join(text.split())
    if m := re.fullmatch(r"(.*?) full_key: (\S+)( reference_type=\S+)?( object_type=\S+)?", line):
        line = f"{m[2]}: {m[1]}"
    return (
        f"{line}; ${{KEY}} stands for another setting's value"
        if "${" in line or "nterpolation" in line
        else line
    )


def _chosen(given: Sequence[str]) -> Any:
    """The config with as much of what was chosen by name as goes together, and Hydra's record of the choices."""
    from hydra import compose
    from hydra.errors import HydraException

    names = [
        o for o in given if re.fullmatch(r"(recipe|(?:agent|source)@[\w.]+|switch|experiment)=[\w-]+", o)
    ]
    for kept in (names, [o for o in names if "@" not in o], [o for o in names if o.startswith("recipe=")]):
        try:
            return compose("config", overrides=kept, return_hydra_config=True)
        except HydraException:
            continue
    return compose("config", return_hydra_config=True)


def _no_place(key: str, chosen_in: str | None, base: Any) -> str:
    """Why there is no such place for an agent: the recipe has others, or none."""
    recipe = base.hydra.runtime.choices["recipe"]
    places = sorted(k for k in base.hydra.runtime.choices if "@" in k and not k.startswith("hydra"))
    if chosen_in and chosen_in != "config":
        return f"{chosen_in.replace('/', '=')} sets {key}, for which recipe={recipe} has no place; leave one of the two out"
    group = key.removesuffix("@")
    if group in ("agent", "source") and (fitting := [p for p in places if p.startswith(f"{group}@")]):
        return f"{key!r} does not say which {group}; recipe={recipe} has {', '.join(f'{p}=NAME' for p in fitting)}"
    has = (
        f"has {', '.join(f'{p}=NAME' for p in places)}"
        if places
        else "chooses no agent by name; set recipe.agent.KEY=VALUE"
    )
    return f"recipe={recipe} has no place {key!r}; it {has}"


def _no_setting(path: Sequence[str], base: Any) -> str:
    """The first part of a dotted key that is not there, and what is there instead; empty if all of it is there."""
    from mbo2o.recipes.older import HINTS

    node: Any = base
    for i, part in enumerate(path):
        here, full = ".".join(path[:i]), ".".join(path)
        if not OmegaConf.is_dict(node):
            place = f"agent@{here}"
            if node is None and place in base.hydra.runtime.choices:
                origin = ": the agent there is derived from recipe.offline" if here == "recipe.online" else ""
                return f"{here} is null{origin}; choose one by name, as {place}=sac, before you set {full!r}"
            return f"{full!r} is not a setting: {here} is {'null' if node is None else f'the value {node}'}, not a group"
        if part not in node:
            if path[0] == "recipe" and i == 1 and part in HINTS:
                return f"'{here}.{part}' is not a setting any more; {HINTS[part]}"
            known = [str(k) for k in node if i or k != "hydra"]
            near = difflib.get_close_matches(part, known, 1, 0.5)
            hint = f"did you mean {'.'.join([*path[:i], near[0]])!r}? " if near else ""
            has = f"{here or 'the config'} has: {', '.join(known)}" if known else f"{here} has no settings"
            return f"{'.'.join(path[: i + 1])!r} is not a setting; {hint}{has}"
        node = None if OmegaConf.is_missing(node, part) else node[part]
    return ""
