"""The rules of the house that no tool checks: sizes, what each wing may use, and words to avoid.

Wing 1 decides the numbers of a result; wing 2 keeps a run alive. `test_layers` checks imports between rooms.
"""

import ast
import io
import re
import tokenize
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
PACKAGE = REPO / "mbo2o"
WING_1 = ("types", "registry", "ensemble", "nn", "dynamics", "agents", "data", "sources", "recipes", "run")
SOURCES = sorted(x for folder in ("mbo2o", "studies", "bench") for x in (REPO / folder).rglob("*.py"))
FRONT = {"__init__", "__main__"}
"""Files of the package that belong to no room."""

BANNED = {
    "a fragment that begins with Of": r'"""Of |# [Oo]f ',
    "a formula with a capital letter": r'"""(Y =|Z =|C \[|Log π)',
    "which are none, for: invalid, missing": r"\b(which|that|who) (is|are) none\b",
    **{
        word: rf"\b{word}\b"
        for word in (
            "likewise",
            "anew",
            "afresh",
            "whoever",
            "somebody",
            "nobody",
            "whence",
            "thereof",
            "hereby",
        )
    },
}
"""What is wrong with a text, and the pattern that finds it; patterns of single words ignore case."""


def room(path):
    """The room of a file of the package: its folder, or its name if it stands in none."""
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


@cache
def tree(path):
    return ast.parse(path.read_text())


@cache
def lines_of_rooms():
    """Lines of each room."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        if room(path) not in FRONT:
            found[room(path)] = found.get(room(path), 0) + len(path.read_text().splitlines())
    return found


def imported(path):
    """Modules that a file imports anywhere, with absolute names; `from a import b` gives `a.b` too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def defined(kind):
    """(file, definition) of every class or function of the package, the studies and the benchmarks."""
    return [(path, node) for path in SOURCES for node in ast.walk(tree(path)) if isinstance(node, kind)]


def where(path, node):
    return f"{path.relative_to(REPO)}:{node.lineno} {node.name}"


def test_wing_1_does_not_grow():
    """The design wants 5,900 lines; lower this number when the wing gets smaller."""
    found = {name: n for name, n in lines_of_rooms().items() if name in WING_1}
    assert sum(found.values()) <= 9948, found


def test_no_room_has_much_more_than_15_percent_of_the_lines():
    found = lines_of_rooms()
    name = max(found, key=found.get)
    assert found[name] <= 0.155 * sum(found.values()), f"{name}: {found[name]} of {sum(found.values())}"


@pytest.mark.parametrize("name", WING_1)
def test_wing_1_uses_no_files_signals_locks_and_no_gymnasium_below_run(name):
    banned = {"h5py", "fcntl", "signal"} | (set() if name == "run" else {"gymnasium"})
    for path in PACKAGE.rglob("*.py"):
        if room(path) == name:
            allowed = {"signal"} if path == PACKAGE / "run" / "watch.py" else set()
            used = {module.split(".")[0] for module in imported(path)} & (banned - allowed)
            assert not used, f"{path.relative_to(REPO)} imports {', '.join(used)}"


def test_rooms_import_each_other_in_no_circle():
    graph = {}
    for path in PACKAGE.rglob("*.py"):
        if room(path) not in FRONT:
            targets = {m.split(".")[1] for m in imported(path) if m.startswith("mbo2o.")}
            graph.setdefault(room(path), set()).update(targets - {room(path), *FRONT})
    assert set(WING_1) <= set(
        TopologicalSorter(graph).static_order()
    )  # raises CycleError, which names a circle


def test_no_class_has_more_than_15_public_methods():
    """Properties count."""
    found = {}
    for path, cls in defined(ast.ClassDef):
        names = {x.name for x in cls.body if isinstance(x, ast.FunctionDef) and not x.name.startswith("_")}
        found[where(path, cls)] = len(names)
    assert not {cls: n for cls, n in found.items() if n > 15}


def test_no_constructor_takes_more_than_7_arguments():
    """The fields of a dataclass are settings and do not count."""
    found = {}
    for path, function in defined(ast.FunctionDef):
        if function.name == "__init__":
            a = function.args
            found[where(path, function)] = len(a.posonlyargs + a.args + a.kwonlyargs) - 1
    assert not {function: n for function, n in found.items() if n > 7}


def test_no_function_is_longer_than_70_lines():
    found = {where(path, x): x.end_lineno - x.lineno + 1 for path, x in defined(ast.FunctionDef)}
    assert not {function: n for function, n in found.items() if n > 70}


def test_no_line_is_longer_than_110_columns():
    found = {path.relative_to(REPO).as_posix(): path.read_text().splitlines() for path in SOURCES}
    assert not [
        f"{path}:{i}" for path, lines in found.items() for i, x in enumerate(lines, 1) if len(x) > 110
    ]


def words(path):
    """The text of a file for readers: strings and comments of Python, comments of YAML, all of the rest.

    A comment of several lines comes as one line, so that "# of" is found only where a comment begins with it.
    """
    text = path.read_text()
    if path.suffix == ".py":
        kinds = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", -1)}
        tokens = [x for x in tokenize.generate_tokens(io.StringIO(text).readline) if x.type in kinds]
        text = "\n".join(
            (" " * x.start[1] if x.line.lstrip().startswith("#") else "x ") + x.string for x in tokens
        )
    return re.sub(r"(?m)(^ *#.*)(\n *# ?(.*))+", lambda block: re.sub(r"\n *# ?", " ", block.group()), text)


@pytest.mark.parametrize("wrong", BANNED)
def test_texts_are_in_plain_english(wrong):
    pattern = re.compile(BANNED[wrong], re.IGNORECASE if wrong.isalpha() else 0)
    others = [x for kind in ("conf/**/*.yaml", "docs/**/*.md", "README.md") for x in REPO.glob(kind)]
    found = {
        f"{path.relative_to(REPO)}: {hit.group()}"
        for path in [*SOURCES, *others]
        for hit in pattern.finditer(words(path))
    }
    assert not found


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("x = 1  # of two\n", True),
        ('"""Of what was seen."""\n', True),
        ('"""Y = r + γ v."""\n', True),
        ('"""y = r + γ v."""\n', False),
        ("# the mean\n# of two\nx = 1\n", False),
        ("x = 1  # the mean\n# of two\n", True),
        ('raise ValueError("Nobody knows")\n', True),
        ("anew = 1\n", False),
        ('"""Numbers that are none."""\n', True),
    ],
)
def test_the_patterns_find_what_they_are_for(tmp_path, text, wrong):
    (tmp_path / "x.py").write_text(text)
    read = words(tmp_path / "x.py")
    hits = [re.search(p, read, re.IGNORECASE if name.isalpha() else 0) for name, p in BANNED.items()]
    assert any(hits) == wrong
