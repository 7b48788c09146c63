"""Every number in the README comes from files in the repo."""

import re
from pathlib import Path

import pytest

from mbo2o.studies.readme import BLOCKS, PAGES, ROOT, render


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_tables_are_what_the_files_say(page):
    assert render(page.read_text()) == page.read_text()


def test_every_table_has_one_place():
    named = [name for page in PAGES for name in re.findall(r"<!-- generated: ([\w-]+) -->", page.read_text())]
    assert sorted(named) == sorted(BLOCKS)


def test_render_renews_a_block():
    stale = "a\n<!-- generated: methods -->\nold\n<!-- end -->\nb"
    assert "old" not in render(stale)
    assert render(stale).startswith("a\n<!-- generated: methods -->\n| method")
    assert render(stale).endswith("<!-- end -->\nb")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    targets = [x for x in re.findall(r"\]\(([^)#]+)\)", page.read_text()) if "://" not in x]
    assert targets
    assert [x for x in targets if not Path(page.parent, x).exists()] == []


def test_what_ships_is_small():
    shipped = sum(p.stat().st_size for p in (ROOT / "data").rglob("*") if p.is_file())
    assert shipped < 15_000_000
