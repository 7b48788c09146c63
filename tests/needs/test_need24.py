"""Need 24: code and docs one can read in an afternoon.

Every public name is documented, no file of an agent or a recipe is longer than 400 lines, the Python of the
guide's pages runs, and the tutorial "add a method" is short (unit/test_extending.py runs it). ruff's D rules
ask for a docstring of every public class and function.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from logs import write_log

import mbo2o

REPO = Path(mbo2o.__file__).parents[1]
SNIPPET = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
RUN = ("own-data", "own-environment")
"""Pages whose Python runs from top to bottom, as a reader would type it."""


@pytest.mark.parametrize("name", mbo2o.__all__)
def test_every_public_name_is_documented(name):
    found = getattr(mbo2o, name)
    assert (found.__doc__ or "").strip()
    assert not re.fullmatch(r"\w+\(.*\)", found.__doc__.strip()), "a dataclass without words of its own"


@pytest.mark.parametrize("room", ["agents", "recipes", "sources"])
def test_a_method_is_one_short_file(room):
    for path in (REPO / "mbo2o" / room).glob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path


def test_the_tutorial_is_short():
    snippets = SNIPPET.findall((REPO / "docs" / "extending.md").read_text())
    assert snippets
    assert all(len(x.splitlines()) <= 60 for x in snippets)


@pytest.mark.parametrize("page", sorted((REPO / "docs").rglob("*.md")), ids=lambda x: x.stem)
def test_the_python_of_every_page_can_be_read(page):
    for snippet in SNIPPET.findall(page.read_text()):
        compile(snippet, str(page), "exec")


@pytest.mark.parametrize("page", RUN)
def test_the_python_of_the_guide_runs(page, tmp_path):
    write_log(tmp_path / "my.csv")
    text = (REPO / "docs" / f"{page}.md").read_text()
    for name, content in re.findall(r"^`(\w+\.py)`:\n\n```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(content)
        text = text.replace(content, "")
    program = "\n".join(SNIPPET.findall(text))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
