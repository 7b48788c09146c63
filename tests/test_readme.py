"""Every number in the README comes from files in the repo."""

import re
from pathlib import Path

from mbo2o.studies.readme import BLOCKS, ROOT, render

README = (ROOT / "README.md").read_text()


def test_tables_are_what_the_files_say():
    assert render(README) == README
    assert set(re.findall(r"<!-- generated: ([\w-]+) -->", README)) == set(BLOCKS)


def test_render_renews_a_block():
    stale = "a\n<!-- generated: methods -->\nold\n<!-- end -->\nb"
    assert "old" not in render(stale)
    assert render(stale).startswith("a\n<!-- generated: methods -->\n| recipe")
    assert render(stale).endswith("<!-- end -->\nb")


def test_links_lead_somewhere():
    targets = [x for x in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in x]
    assert targets
    assert [x for x in targets if not Path(ROOT, x).exists()] == []


def test_what_ships_is_small():
    shipped = sum(p.stat().st_size for p in (ROOT / "data").rglob("*") if p.is_file())
    assert shipped < 15_000_000
