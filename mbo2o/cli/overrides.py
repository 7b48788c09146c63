"""KEY=VALUE on the command line: paths are taken as typed, and a mistake is one line that says what works."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mbo2o.errors import UserError
from mbo2o.registry import AGENTS, NO_ENV, RECIPES, SOURCES, WORDS, conf_folder, did_you_mean

HYDRA_FLAGS = "--multirun -m --cfg -c --info -i --resolve --package -p --hydra-help --shell-completion -sc"
LOOKS = {"--cfg", "-c", "--info", "-i", "--hydra-help", "--shell-completion", "-sc"}
"""Flags with which nothing is run."""
WITH_VALUE = {"--cfg", "-c", "--info", "-i", "--package", "-p"}
WANTED = {
    r"Value '(.*)' of type '\w+' could not be converted to Integer": "a whole number",
    r"Value '(.*)' of type '\w+' could not be converted to Float": "a number",
    r"Value '(.*)' is not a valid bool \(type \w+\)": "true or false",
    r"Invalid value assigned: \w+ is not a ListConfig, list or tuple\.": "a list, such as [256,256]",
    r"Invalid type assigned: \w+ is not a subclass of \w+\. value: (.*)": "a group; set one of its settings",
    r"field '[\w.]+' is not Optional": "a value, not null",
}
"""What OmegaConf says of a value that does not fit, and what was expected instead."""

LAUNCHERS = {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit"}
"""Launchers of sweeps beside Hydra's own, and the extra of this package that installs each."""

HINTS = {
    "buffer": "the source of online batches is chosen by name, as source@recipe.source=mix",
    "offline_share": "it is recipe.source.offline_share, for source@recipe.source=mix or anneal",
    "anneal_steps": "it is recipe.source.steps, for source@recipe.source=anneal",
    "distill_share": "it is recipe.source.share, for source@recipe.source=distilled",
    "distill_rows": "it is recipe.source.rows, for source@recipe.source=distilled",
    "balanced": "it is recipe.source, for source@recipe.source=balanced",
    "start": "it is recipe.warmup where the agent acts, and recipe.random_steps where chance does",
    "real": "it is recipe.real_share",
    "tensorboard": "it is log=[tensorboard]",
}
"""What to say where a setting is given by a name that older versions had."""


@dataclass(frozen=True)
class Tree:
    """The YAML that configs are composed from: mbo2o's own, and a folder of the user's beside it."""

    extra: Path | None = None

    def __post_init__(self) -> None:
        for path in self.extra.rglob("*.yaml") if self.extra else ():
            name = path.relative_to(str(self.extra))
            if (self.own / name).exists():
                raise UserError(
                    f"--config-dir {self.extra}: {name} has the name of one of mbo2o's own; rename it"
                )

    @property
    def own(self) -> Path:
        """The folder that comes with mbo2o."""
        return conf_folder()

    @property
    def search(self) -> list[str]:
        """The override that tells Hydra of the user's folder."""
        return [f"hydra.searchpath=[{_quoted(f'file://{self.extra.resolve()}')}]"] if self.extra else []

    def compose(self, overrides: Sequence[str], **more: Any) -> Any:
        """What Hydra makes of the overrides; its errors for a mistake in them."""
        from hydra import compose, initialize_config_dir

        with initialize_config_dir(str(self.own), version_base="1.3"):
            return compose("config", overrides=[*overrides, *self.search], **more)

    def folders(self, group: str) -> list[Path]:
        """The folders that hold choices of a group; none if there is no such group."""
        return [x / group for x in (self.own, self.extra) if x and (x / group).is_dir()]

    def choices(self, group: str) -> list[str]:
        """The names that a group may be set to."""
        return sorted(path.stem for folder in self.folders(group) for path in folder.glob("*.yaml"))

    def plugins(self, overrides: Sequence[str]) -> list[str]:
        """The plugins that presets name which the overrides choose, as switch=NAME or experiment=NAME."""
        return list(dict.fromkeys(self._plugins(overrides)))

    def _plugins(self, overrides: Sequence[str]) -> Iterator[str]:
        for group, _, name in (o.lstrip("+").partition("=") for o in overrides):
            for folder in self.folders(group) if re.fullmatch(r"\w+", group) else ():
                if (path := folder / f"{name}.yaml").is_file():
                    yield from self._named(path)

    def _named(self, path: Path) -> list[str]:
        try:
            names = OmegaConf.select(OmegaConf.load(path), "plugins") or []
            return [str(x) for x in names]
        except (OSError, ValueError, TypeError, OmegaConfBaseException) as e:
            raise UserError(f"{path}: cannot be read ({' '.join(str(e).split())})") from e


def literal(override: str, sweep: bool = False) -> str:
    """The override in Hydra's grammar that has the meaning of this one as it was typed.

    Values of `WORDS` are quoted, so that commas, blanks, brackets and backslashes in a path are characters
    like others; a leading `~/` is the home directory. A value that is quoted already stays as it is, as do
    `null` and, with `sweep`, a value that Hydra reads as several ones. `${...}` is an interpolation.
    `env=null` is no environment, and not the one that is taken if `env` is left out.
    """
    if re.fullmatch(r"\+{0,2}env=null", override, re.IGNORECASE):
        return f"env={NO_ENV}"
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
    sweep = bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(args))
    return [a if a.startswith("-") else literal(a, sweep) for a in args]


def check_overrides(args: Sequence[str], tree: Tree) -> None:
    """Compose once, so that a mistake becomes one line that names the nearest key, instead of Hydra's page.

    Raises:
        UserError: There is a mistake in the arguments.
    """
    from hydra.errors import HydraException

    for a in args:
        if a.startswith("-") and a not in HYDRA_FLAGS.split():
            raise UserError(
                f"train: unknown option {a!r}; settings are given as KEY=VALUE, e.g. recipe.horizon=1"
            )
    given = [
        a for i, a in enumerate(args) if not a.startswith("-") and (i == 0 or args[i - 1] not in WITH_VALUE)
    ]
    parsed = [_parse(a) for a in given]
    for p in parsed:
        _check_one(p, given, tree)
    try:
        tree.compose([_first(p) for p in parsed])
    except (HydraException, OmegaConfBaseException) as e:
        raise UserError(_explain(e, given, tree)) from e


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
    """The text between quotes in Hydra's grammar, where a backslash is special only in front of a quote."""

    def escape(m: re.Match[str]) -> str:
        return m[1] + m[1] + ("\\'" if m[2] else "")

    return "'" + re.sub(r"(\\*)('|\Z)", escape, text) + "'"


def _check_one(parsed: Any, given: Sequence[str], tree: Tree) -> None:
    """Refuse a choice that is not a name, and a setting that is added by force though nothing reads it."""
    key, one = parsed.key_or_group, not parsed.is_delete() and not parsed.is_sweep_override()
    if one and tree.folders(key) and not isinstance(parsed.value(), str):
        choices = ", ".join(tree.choices(key))
        raise UserError(f"{parsed.input_line}: expected a name; choices: {choices}")
    anything = key.startswith(("hydra.", "env_kwargs."))  # the environment says what it takes
    forced = (parsed.is_add() or parsed.is_force_add()) and "@" not in key and not anything
    if forced and (text := _missing(key, given, tree)):
        raise UserError(text)


def _first(override: Any) -> str:
    """An override as it was given; the first choice of a sweep a=1,2 stands for all of them."""
    line = str(override.input_line)
    if not override.is_sweep_override():
        return line
    if not override.is_discrete_sweep():
        raise UserError(f"{line}: is no list of values; name them one by one, as seed=0,10,20")
    return f"{line.split('=')[0]}={next(iter(override.sweep_string_iterator()))}"


def _explain(error: Exception, given: Sequence[str], tree: Tree) -> str:
    """A mistake that Hydra or OmegaConf found, as one line that says what there is instead."""
    causes = [error, error.__cause__, error.__cause__ and error.__cause__.__cause__]
    texts = [str(e) for e in causes if e]
    text = " ".join(texts)
    if m := re.search(r"Could not find 'hydra/launcher/(\w+)'", text):
        extra = LAUNCHERS.get(m[1])
        if extra:
            return f"hydra/launcher={m[1]} is not installed here; pip install 'mbo2o[{extra}]'"
        names = ", ".join(["basic", *LAUNCHERS])
        return f"no launcher is called {m[1]!r}; {did_you_mean(m[1], LAUNCHERS)}choices: {names}"
    if m := re.search(r"Could not find '([\w-]+)/([\w-]+)'", text):
        choices = tree.choices(m[1])
        if m[2] in {"agent": AGENTS, "recipe": RECIPES, "source": SOURCES}.get(m[1], {}):
            return f"the {m[1]} {m[2]!r} has no YAML: write DIR/{m[1]}/{m[2]}.yaml and give --config-dir DIR"
        return f"no {m[1]} is called {m[2]!r}; {did_you_mean(m[2], choices)}choices: {', '.join(choices)}"
    if m := re.search(r"(\w+)Config is not a subclass of (\w+)Config", text):
        return f"{m[1].lower()} does not fit there: this recipe takes {m[2].lower()} and its variants"
    if m := re.search(r"str is not a subclass of SourceConfig\. value: ([\w-]+)", text):
        return f"recipe.source is chosen by name: source@recipe.source={m[1]}"
    preset = r"In '(switch|experiment)/([\w-]+)': ConfigKeyError.*?Key '\w+' not in .*?full_key: ([\w.]+)"
    if m := re.search(preset, text, re.DOTALL):
        recipe = _chosen(given, tree).hydra.runtime.choices["recipe"]
        return f"{m[1]}={m[2]} sets {m[3]}, which recipe={recipe} does not have; leave one of the two out"
    if m := re.search(r"(?:In '([\w/-]+)': )?Could not override '([\w.@/]+)'", text):
        if m[2].startswith("env_kwargs."):
            return f"{m[2]!r} is an argument that is not there yet: add it with a plus, +{m[2]}=VALUE"
        base = _chosen(given, tree)
        if "@" in m[2] or tree.folders(m[2]):
            return no_place(m[2], m[1], base.hydra.runtime.choices)
        return no_setting(m[2].split("."), base, base.hydra.runtime.choices) or one_line(texts[-1])
    return one_line(texts[-1])


def one_line(text: str) -> str:
    """A message of OmegaConf's, which has several lines, as one that begins with the setting."""
    line = " ".join(text.split())
    if m := re.fullmatch(r"(.*?) full_key: (\S+)( reference_type=\S+)?( object_type=\S+)?", line):
        line = f"{m[2]}: {m[1]}"
    for pattern, wanted in WANTED.items():
        if m := re.fullmatch(rf"([\w.]+): {pattern}", line):
            value = f"={m[2]}" if m.re.groups > 1 else ""
            return f"{m[1]}{value}: expected {wanted}"
    interpolated = "${" in line or "nterpolation" in line
    return f"{line}; ${{KEY}} stands for another setting's value" if interpolated else line


def _chosen(given: Sequence[str], tree: Tree) -> Any:
    """The config with as many of the choices by name as fit together, and Hydra's record of the choices."""
    from hydra.errors import HydraException

    names = [o for o in given if re.fullmatch(r"(recipe|\w+@[\w.]+|switch|experiment)=[\w-]+", o)]
    for kept in (names, [o for o in names if "@" not in o], [o for o in names if o.startswith("recipe=")]):
        try:
            return tree.compose(kept, return_hydra_config=True)
        except HydraException:
            continue
    return tree.compose([], return_hydra_config=True)


def _missing(key: str, given: Sequence[str], tree: Tree) -> str:
    base = _chosen(given, tree)
    return no_setting(key.split("."), base, base.hydra.runtime.choices)


def no_place(key: str, chosen_in: str | None, choices: Mapping[str, Any]) -> str:
    """Why the recipe has no such place for an agent or a source, and which places it has.

    chosen_in: the file that chooses it, as GROUP/NAME or GROUP=NAME. choices: by group, or `group@place`.
    """
    group = key.partition("@")[0]
    recipe, places = choices["recipe"], sorted(k for k in choices if k.startswith(f"{group}@"))
    if chosen_in and chosen_in != "config":
        preset = chosen_in.replace("/", "=")
        return f"{preset} sets {key}, for which recipe={recipe} has no place; leave one of the two out"
    named = ", ".join(f"{p}=NAME" for p in places)
    if key in (group, f"{group}@") and places:
        return f"{key!r} does not say which {group}; recipe={recipe} has {named}"
    has = f"has {named}" if places else f"chooses no {group} by name"
    return f"recipe={recipe} has no place {key!r}; it {has}"


def no_setting(path: Sequence[str], base: Any, choices: Mapping[str, Any]) -> str:
    """Which part of a dotted key is not there, and what is there instead; empty if all of it is there."""
    node: Any = base
    for i, part in enumerate(path):
        here, full = ".".join(path[:i]), ".".join(path)
        if not OmegaConf.is_dict(node):
            places = [k for k in choices if k.endswith(f"@{here}")]
            if node is None and places:
                text = f"{here} is null, as long as none is chosen by name"
                return f"{text}; give {places[0]}=NAME before you set {full!r}"
            value = "null" if node is None else f"the value {node}"
            return f"{full!r} is not a setting: {here} is {value}, not a group"
        if part not in node:
            if path[0] in ("recipe", "run") and i == 1 and part in HINTS:
                return f"'{here}.{part}' is not a setting any more; {HINTS[part]}"
            known = [str(k) for k in node if i or k != "hydra"]
            hint = did_you_mean(part, known, 0.5, before=f"{here}." if here else "")
            has = f"{here or 'the config'} has: {', '.join(known)}" if known else f"{here} has no settings"
            return f"{'.'.join(path[: i + 1])!r} is not a setting; {hint}{has}"
        node = None if OmegaConf.is_missing(node, part) else node[part]
    return ""
