"""The pages of docs/ build to a site without a warning, with all of them in its contents."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("sphinx", reason="the site needs mbo2o[docs]")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-d", out / "trees", DOCS, out / "html"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / "html"


def test_every_page_is_there_and_in_the_contents(site):
    pages = {x.relative_to(DOCS).with_suffix(".html") for x in DOCS.rglob("*.md")}
    assert {x.relative_to(site) for x in site.rglob("*.html")} >= pages
    contents = (site / "index.html").read_text()
    listed = set(re.findall(r'class="reference internal" href="([^"#]+\.html)"', contents))
    assert {str(x) for x in pages} - listed == {"index.html"}


def test_a_file_outside_the_folder_comes_with_the_site(site):
    (copy,) = (site / "_downloads").rglob("01_uncertainty_decay.ipynb")
    assert copy.read_bytes() == (DOCS.parent / "notebooks" / copy.name).read_bytes()


def test_the_reference_names_everything_that_can_be_imported(site):
    import mbo2o

    text = (site / "api.html").read_text()
    assert [name for name in mbo2o.__all__ if f'id="mbo2o.{name}"' not in text] == []
