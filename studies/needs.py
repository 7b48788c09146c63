"""The table of the acceptance tests of users' needs, from the docstrings of tests/needs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

NEEDS = 25
"""How many needs were collected; a number without a file has no test."""


def table(folder: Path) -> str:
    """A row for each need: its number, what it is, its file, and what the tests there are."""
    lines = ["| need | what users ask for | tests | status |", "|---|---|---|---|"]
    found = {int(path.stem[-2:]): path for path in sorted(folder.glob("test_need[0-9][0-9].py"))}
    for number in range(1, NEEDS + 1):
        if (path := found.get(number)) is None:
            lines.append(f"| {number} | | | no test of its own |")
            continue
        tree = ast.parse(path.read_text())
        first = " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split())
        need = re.sub(r"^Need \d+: ", "", first)
        tests = sum(isinstance(x, ast.FunctionDef) and x.name.startswith("test_") for x in ast.walk(tree))
        link = f"[{path.name}](../tests/needs/{path.name})"
        lines.append(f"| {number} | {need} | {link}: {tests} | {_status(tree)} |")
    return "\n".join([*lines, "", f"{len(found)} of {NEEDS} needs have tests of their own."])


def _status(tree: ast.Module) -> str:
    """`tested`, and the reasons of those tests that are expected to fail or are left out."""
    reasons = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            given = {x.arg: x.value for x in node.keywords}
            reason = given.get("reason")
            if not (isinstance(reason, ast.Constant) and isinstance(reason.value, str)):
                continue
            if node.func.attr in ("xfail", "skip", "skipif"):
                word = "expected to fail" if node.func.attr == "xfail" else "left out where"
                reasons.append(f"{word}: {reason.value}")
    return "; ".join(["tested", *reasons])
