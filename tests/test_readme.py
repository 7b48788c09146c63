"""Every number in the README comes from files in the repo."""

import re
from pathlib import Path

import pytest

from studies.readme import BLOCKS, PAGES, RESULTS, ROOT, WORDS, render

MEASURED = {
    "README.md": "## What was measured",
    "data/results/README.md": "# What was measured",
    "docs/protocol.md": "# How",
}
"""Where each page begins to speak of measurements; it does so up to the next heading of that level."""
SETTINGS = {
    "95": "docs/protocol.md: the level of every interval",
    "0.05": "mbo2o/studies/claims.py: LEVEL, and as wide for p",
    "0": "docs/protocol.md: what an interval leaves out",
    "1": "docs/protocol.md: the largest success rate",
    "2": "data/results/README.md: sizes are for two CPU cores",
    "0.2.0": "pyproject.toml and ./dev: mbrl's version",
    "256": "mbo2o/bench/agents.py: nets and batch",
}
"""Numbers that prose about measurements may use although no table has them, and where each comes from."""
NUMBER = re.compile(r"(?<![\w.†])[-+]?\d[\d ,]*(?:\.\d+)*(?: ?%)?")


def prose(text: str) -> str:
    """What a person wrote: without generated blocks, code and addresses."""
    text = re.sub(r"<!-- generated: ([\w-]+) -->.*?<!-- end -->", "", text, flags=re.S)
    text = re.sub(r"```.*?```|^    .*?$", "", text, flags=re.S | re.M)
    return re.sub(r"`[^`]*`|\]\([^)]*\)", "", text)


def numbers_in(text: str) -> set[str]:
    return {re.sub(r"[ ,%]", "", x).lstrip("+") for x in NUMBER.findall(text)}


def measured_part(page: Path) -> str:
    text, start = page.read_text(), MEASURED[str(page.relative_to(ROOT))]
    level = start.split(" ")[0]
    body = text[text.index(start) :]
    later = re.search(rf"^{level} ", body[len(start) :], re.M)
    return body[: len(start) + later.start()] if later else body


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
    """Without the SVGs that studies write beside their PNGs, which git ignores."""
    assert "/data/results/*.svg" in (ROOT / ".gitignore").read_text().splitlines()
    files = [
        p
        for folder in ("data", "docs")
        for p in (ROOT / folder).rglob("*")
        if p.is_file() and p.suffix != ".svg"
    ]
    assert sum(p.stat().st_size for p in files) < 15_000_000


def unsupported(text: str, known: set[str]) -> set[str]:
    return numbers_in(prose(text)) - known - set(SETTINGS)


def known_numbers(text: str) -> set[str]:
    """Numbers that the generated blocks of a text show, and those of the pilots' files."""
    shown = " ".join(re.findall(r"<!-- generated: [\w-]+ -->.*?<!-- end -->", text, flags=re.S))
    pilots = " ".join(
        (RESULTS / name).read_text().replace(",", " , ") for name in ("pilots.csv", "pilots-q.csv")
    )
    return numbers_in(shown) | numbers_in(pilots)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_each_number_in_a_sentence_about_measurements_is_a_table_s(page):
    text = measured_part(page)
    assert unsupported(text, known_numbers(text)) == set()


def test_a_number_that_no_table_has_is_noticed():
    text = "It ends at 1964 of 2 134 (95 %), `945` in code.\n<!-- generated: x -->\n| 2134 |\n<!-- end -->\n"
    assert unsupported(text, known_numbers(text)) == {"1964"}


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda p: str(p.relative_to(ROOT)))
def test_what_came_out_is_said_by_verdict_rows_alone(page):
    """No sentence of ours ranks what was measured: the generated rows do, in the protocol's words."""
    ours = " ".join(prose(measured_part(page)).lower().split())
    ranking = r"\b(best|worst|highest|lowest|most|least|better|worse|beats?|loses?|wins?|ahead|behind|above|below|faster|slower|"
    ranking += r"outperforms?|helps?|hurts?|reproduced?|contrary|holds?|confirms?|shows?|costs?|ends? at|falls?|rises?)\b"
    said = (
        "no implementation of these layers can be faster",
        "*holds* and *contrary* are corrected",
        "learner help the online",
    )
    for sentence in said:  # two that say no result, and a question
        assert sentence in ours or page != PAGES[0 if "contrary" in sentence else 1]
        ours = ours.replace(sentence, "")
    assert re.findall(ranking, ours) == []


def test_every_verdict_word_is_defined():
    protocol = (ROOT / "docs" / "protocol.md").read_text()
    assert [word for word in WORDS if f"*{word}*" not in protocol] == []


def test_settings_that_prose_may_name_are_named():
    ours = set().union(*(numbers_in(prose(measured_part(page))) for page in PAGES))
    assert set(SETTINGS) - ours == set()
