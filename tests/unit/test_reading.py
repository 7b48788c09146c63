"""What bench/reading.py counts: on a package of two files whose counts are known, and in a run."""

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "bench" / "reading.py"

RECIPES = """
import functools
from {package}.store import keep

def decorate(f):
    return f

class Recipe:
    unused = staticmethod(lambda: 3)

    @functools.cache
    def learn(self, n):
        '''Words count: they are read.'''
        total = sum(x for x in range(n))
        if n > 100:
            total = 0

            total += 1
        return keep(total)

    def never(self):
        return 0
"""
STORE = """
double = lambda x: 2 * x

def keep(x):
    def inner():
        return double(x)
    return inner()
"""


@pytest.fixture(scope="module")
def reading():
    spec = importlib.util.spec_from_file_location("reading", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["reading"] = module
    spec.loader.exec_module(module)
    return module


def test_functions_are_counted_whole_and_once_and_their_lines_that_ran(reading, tmp_path, monkeypatch):
    package = tmp_path / "read_here"
    package.mkdir()
    for name, text in {"recipes": RECIPES, "store": STORE}.items():
        (package / f"{name}.py").write_text(text.lstrip().format(package="read_here"))
    monkeypatch.syspath_prepend(tmp_path)
    with reading.Reading(package) as seen:  # what runs while modules are imported is no function
        import read_here.recipes

        assert seen.entered() == set()
        for _ in range(2):
            assert read_here.recipes.Recipe().learn(4) == 12
    recipe, store = {("recipes.py", k) for k in range(10, 19)}, {("store.py", k) for k in (1, 3, 4, 5, 6)}
    assert seen.entered() == recipe | store
    unrun = {("recipes.py", k) for k in (10, 11, 12, 15, 16, 17)} | {("store.py", 3)}
    assert seen.ran() == (recipe | store) - unrun
    assert reading.counts(seen) == {"files": 2, "lines_entered": 14, "lines_run": 7, "wing1": 9, "wing2": 5}


@pytest.mark.parametrize(("path", "wing"), [
    ("types.py", 1), ("run/run.py", 1), ("run/evaluate.py", 1), ("data/buffer.py", 1), ("sources/mix.py", 1),
    ("train.py", 2), ("envs/lanes.py", 2), ("store/checkpoint.py", 2), ("run/lanes.py", 2), ("data/io/minari.py", 2),  # noqa: E501
])  # fmt: skip
def test_a_file_belongs_to_the_wing_of_its_folder(reading, path, wing):
    assert reading.wing(path) == wing


def test_rows_of_a_commit_replace_those_it_had(reading, tmp_path):
    row = {"files": 1, "lines_entered": 3, "lines_run": 2, "wing1": 2, "wing2": 1}
    for name, files in [("aaa", 1), ("bbb", 2), ("aaa", 3)]:
        reading.write_csv(tmp_path / "reading.csv", name, {"iql": row | {"files": files}})
    rows = list(csv.DictReader((tmp_path / "reading.csv").open()))
    assert [(x["commit"], x["method"], x["files"]) for x in rows] == [
        ("bbb", "iql", "2"),
        ("aaa", "iql", "3"),
    ]


def test_a_run_is_read(tmp_path):
    command = [sys.executable, str(SCRIPT), "--methods", "iql", "--json", str(tmp_path / "reading.json")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = json.loads((tmp_path / "reading.json").read_text())["iql"]
    assert found["wing1"] + found["wing2"] == found["lines_entered"]
    assert 500 < found["lines_run"] < found["lines_entered"] < 5000
    assert found["files"] > 20
    assert str(found["lines_entered"]) in out
