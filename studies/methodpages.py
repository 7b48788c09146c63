"""A page for each recipe and agent in docs/methods, from docstrings, comments of settings, and `conf/`."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

import mbo2o.recipes  # noqa: F401  registers
from mbo2o.registry import AGENTS, RECIPES, SOURCES, Entry, conf_folder
from studies.methods import METHODS, Method, measured, measured_by

OWN_PAGES = ("enoto", "moore", "mopo", "mbpo", "wsrl", "rlpd")
"""Recipes whose presets stand on the recipe's page. Other presets stand on the page of their name."""


FALLS = re.compile(r"(?P<data>\S+) (?P<before>\S+) → \S+ \[(?P<low>\S+), (?P<high>\S+)\]")
"""What `measured` says of one dataset where there are seeds enough for an interval."""


@dataclass(frozen=True)
class Preset:
    """A file of `conf/switch` or `conf/experiment`: its comment, the source of its numbers, its settings."""

    name: str
    """As `mbo2o train` takes it, such as `switch=wsrl`."""
    comment: str
    provenance: str
    settings: str
    page: str


def presets() -> list[Preset]:
    """All published and small presets, by name."""
    paths = [p for group in ("switch", "experiment") for p in sorted((conf_folder() / group).glob("*.yaml"))]
    return [_preset(path) for path in paths]


def _preset(path: Path) -> Preset:
    text = path.read_text()
    comment = [x.removeprefix("#").strip() for x in text.splitlines()[1:] if x.startswith("#")]
    read = yaml.safe_load(text)
    body = text.partition("provenance:")[2].partition("\n")[2].strip()
    return Preset(
        f"{path.parent.name}={path.stem}",
        " ".join(comment),
        str(read.get("provenance", "")),
        body,
        _page_of(path),
    )


def _page_of(path: Path) -> str:
    recipe = _recipe_of(path)
    return recipe if recipe in OWN_PAGES else _page_named(path.stem)


def _page_named(stem: str) -> str:
    """The longest name of a page that the preset's name begins with: `calql` for `calql-dense`."""
    name = stem.replace("-", "_")
    known = [*RECIPES, *AGENTS, *SOURCES]
    return max((x for x in known if f"{name}_".startswith(f"{x}_")), key=len)


def _recipe_of(path: Path) -> str:
    """The recipe that a preset chooses, or that the preset chooses which it builds on."""
    for line in yaml.safe_load(path.read_text())["defaults"]:
        if isinstance(line, str) and line != "_self_":
            return _recipe_of(path.with_name(f"{line}.yaml"))
        if isinstance(line, dict):
            key, value = next(iter(line.items()))
            group = key.removeprefix("override ").strip("/")
            if group == "recipe":
                return str(value)
            if group == "switch":
                return _recipe_of(conf_folder() / "switch" / f"{value}.yaml")
    return "moore"  # the recipe of conf/config.yaml


def method_pages() -> dict[str, str]:
    """The text of docs/methods/NAME.md by NAME."""
    names = dict.fromkeys([*RECIPES, *AGENTS, *(x.page for x in presets())])
    return {name: _page(name) for name in names}


def page_of(method: Method) -> str:
    """The name of a published method's page."""
    group, _, stem = method.command.partition("=")
    return _page_of(conf_folder() / group / f"{stem}.yaml")


def _page(name: str) -> str:
    methods = [m for m in METHODS if page_of(m) == name]
    parts = [f"# {methods[0].name if methods else name}", *(_header(m) for m in methods)]
    for table, kind in ((RECIPES, "recipe"), (AGENTS, "agent"), (SOURCES, "source")):
        if name in table:
            parts += _entry(table[name], kind)
    if found := [x for x in presets() if x.page == name]:
        parts.append("## Presets")
        parts.append("What a preset does not name has the default. Days on a CPU, except for `small` ones.")
        parts += [_shown_preset(x) for x in sorted(found, key=lambda x: (x.name.endswith("-small"), x.name))]
    return "\n\n".join(parts) + "\n"


def quoted(command: str) -> str:
    """A command of `measured_by` as code, and the commit that it belongs to."""
    words, at, commit = command.removeprefix("mbo2o ").partition(" at ")
    return f"`{words}`{at}{commit}"


def _header(m: Method) -> str:
    """A published method in a few lines: paper, command, needs, and what was measured."""
    paper = f"[{m.paper}](https://arxiv.org/abs/{m.paper.split()[1]})" if m.paper else "no paper of its own"
    study = m.measured[0].partition("-")[0]
    lines = [
        f"**{m.name}**: {paper}",
        f"- Command with the paper's numbers: `mbo2o train {m.command}`",
        f"- Needs: {m.needs}",
    ]
    results = Path(__file__).parent.parent / "data" / "results"
    if by := measured_by(m, results):
        figures = zip(measured(m, results).split("; "), by.split("; "), strict=True)
        lines.append(f"- Measured at small sizes, see [results](../results/{study}.md):")
        lines += [f"  - {text}, by {quoted(command)}" for text, command in figures]
    else:
        lines.append("- Measured: not yet")
    lines.insert(3, _departures(m))
    lines.append(_failures(m, results))
    return "\n".join([lines[0], "", *lines[1:]])


def _departures(m: Method) -> str:
    """Where the numbers of its preset come from, and in what they differ from the paper."""
    preset = next(x for x in presets() if x.name == m.command)
    kind, _, source = preset.provenance.partition(": ")
    known = "what differs is said here and below" if kind == "adapted" else "no departure is known"
    return f"- Source of these numbers, and departures: {kind}, {known}: {source}"


def _failures(m: Method, results: Path) -> str:
    """Where it does worse than doing nothing: online than the policy it began with, offline than a clone."""
    told = []
    clones = dict(_offline(next(x for x in METHODS if x.measured[:2] == ("offline", "bc")), results))
    for text in filter(None, measured(m, results).split("; ")):
        if (fell := FALLS.match(text)) and float(fell["high"]) < float(fell["before"]):
            told.append(f"on {fell['data']} it loses what the offline phase taught ({text.split(' ', 1)[1]})")
    for data, value in _offline(m, results):
        if value < clones.get(data, value):
            told.append(f"on {data} a clone of the data (BC) is better ({clones[data]:g} against {value:g})")
    found = "; ".join(told) if told else "none is in these measurements"
    return f"- Known failures at these sizes: {found}"


def _offline(m: Method, results: Path) -> list[tuple[str, float]]:
    """Its returns without an online phase, by dataset."""
    if m.measured[0] != "offline":
        return []
    pairs = (text.split()[:2] for text in filter(None, measured(m, results).split("; ")))
    return [(data, float(value)) for data, value in pairs]


def _entry(entry: Entry, kind: str) -> list[str]:
    """A registered class: the idea, its equations, and its settings."""
    how = {"recipe": f"recipe={entry.name}", "agent": f"agent@recipe.offline={entry.name}"}
    how["source"] = f"source@recipe.source={entry.name}"
    module = inspect.getmodule(entry.cls)
    parts = [f"## The {kind}", f"`{how[kind]}`, in `{_file(entry.cls)}`"]
    parts += [inspect.cleandoc(x) for x in (module.__doc__ if module else "", entry.cls.__doc__) if x]
    if kind == "recipe":
        parts += [f"Paper: {entry.cls.paper}."]  # type: ignore[attr-defined]
    if equations := list(_equations(entry.cls)):
        parts += ["Equations and steps, as the code has them:", "\n".join(equations)]
    parts.append("### Settings")
    parts += _settings(entry.config, entry.name)
    return parts


def _file(cls: type) -> str:
    return f"{cls.__module__.replace('.', '/')}.py"


def _equations(cls: type) -> Iterator[str]:
    """The docstrings of the class's own methods that hold a formula."""
    for name, member in vars(cls).items():
        doc = inspect.cleandoc(getattr(member, "__doc__", None) or "")
        if inspect.isfunction(member) and doc and re.search(r"[=←∝Σ²]|log π", doc):
            lines, first = inspect.getsourcelines(member)
            yield f"- `{name}`, lines {first} to {first + len(lines) - 1}: {' '.join(doc.split())}"


def _settings(config: type, name: str) -> list[str]:
    """Tables of a config's own settings and of shared ones; a parent that has a page is linked."""
    pages = {e.config: e.name for e in [*RECIPES.values(), *AGENTS.values()] if e.name != name}
    known = {f.name for f in fields(config)}
    parts: list[str] = []
    seen: set[str] = set()
    for cls in config.__mro__:
        if not is_dataclass(cls):
            continue
        if cls in pages:
            parts.append(
                f"Its other settings are those of [{pages[cls]}](../methods/{pages[cls]}.md).".replace(
                    "../methods/", ""
                )
            )
            break
        own = [x for x in vars(cls).get("__annotations__", {}) if x in known - seen]
        seen |= set(own)
        if own:
            parts += [" ".join((cls.__doc__ or "").split()), _table_of(config, cls, own)]
    return parts


def _table_of(config: type, cls: type, names: list[str]) -> str:
    said = comments(cls)
    defaults = {f.name: f for f in fields(config)}
    rows = [f"| `{x}` | {_default(defaults[x])} | {_cell(said.get(x, ''))} |" for x in names]
    return "\n".join(["| setting | default | meaning and source |", "|---|---|---|", *rows])


def _default(f: Any) -> str:
    if f.default is not MISSING:
        return "must be given" if f.default == "???" else f"`{f.default!r}`"
    return f"`{_brief(f.default_factory())}`"


def _brief(value: Any) -> str:
    """A nested config by its class and the settings that differ from that class's defaults."""
    if not is_dataclass(value) or isinstance(value, type):
        return repr(value)
    plain = type(value)()
    differ = [
        f"{f.name}={getattr(value, f.name)!r}"
        for f in fields(value)
        if getattr(value, f.name) != getattr(plain, f.name)
    ]
    return f"{type(value).__name__}({', '.join(differ)})"


def comments(cls: type) -> dict[str, str]:
    """The comment of each field of a dataclass: at its end, above it, or as a string below it."""
    source = textwrap.dedent(inspect.getsource(cls))
    tokens = tokenize.generate_tokens(StringIO(source).readline)
    at = {
        t.start[0]: (t.string.lstrip("# "), t.line.lstrip().startswith("#"))
        for t in tokens
        if t.type == tokenize.COMMENT
    }
    body = ast.parse(source).body[0].body  # type: ignore[attr-defined]
    found: dict[str, list[str]] = {}
    last, end = "", 0
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
            inside = [at[i][0] for i in range(node.lineno, (node.end_lineno or 0) + 1) if i in at]
            between = [at[i][0] for i in range(end + 1, node.lineno) if i in at]
            # a comment between two fields belongs to the first one if the second one has a comment of its own
            if between and inside and last:
                found[last] += between
                between = []
            found[name] = between + inside
            last = name
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and last:
            found[last].append(" ".join(str(node.value.value).split()))
        elif last and isinstance(node, ast.FunctionDef):
            found[last] += [at[i][0] for i in range(end + 1, node.lineno) if i in at]
            last = ""
        end = node.end_lineno or end
    return {name: " ".join(texts) for name, texts in found.items()}


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _shown_preset(x: Preset) -> str:
    said = f"*{x.provenance}*" if x.provenance else ""
    settings = f"```yaml\n{x.settings}\n```" if x.settings else ""
    return "\n\n".join(p for p in (f"### `{x.name}`", x.comment, said, settings) if p)
