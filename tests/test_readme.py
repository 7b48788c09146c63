"""Every number in README and docs comes from files in the repository, and every link leads somewhere."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from mbo2o.registry import AGENTS, RECIPES
from studies import methodpages
from studies.methods import METHODS
from studies.readme import BLOCKS, BULLETS, DOCS, PAGES, RESULTS, ROOT, STUDIES, WORDS, main, render

WRITTEN = [*PAGES, ROOT / "data" / "README.md", *sorted((DOCS / "methods").glob("*.md"))]
"""All pages."""
COMPARING = [p for p in PAGES if p.parent.name == "results" or p.parent == ROOT]
"""Pages that show what was measured: README, and those of results."""
SETTINGS = {
    "95": "docs/protocol.md: the level of every interval",
    "0.05": "studies/claims.py: LEVEL, and as wide for p",
    "0": "docs/protocol.md: what an interval leaves out; the score of random play",
    "1": "docs/protocol.md: the largest success rate; what a step in the maze costs",
    "100": "mbo2o/envs/scores.py: the score of a good policy",
    "2": "bench/works.py: layers of the nets",
    "0.2.0": "pyproject.toml and ./dev: mbrl's version",
    "256": "bench/works.py: nets and batch",
    "120": "mbo2o/cli/slurm.py: seconds in which a run saves",
    "20000": "mbo2o/run/engine.py: REPAID",
    "3.11": "pyproject.toml: requires-python",
    "3.13": "pyproject.toml: requires-python",
}
"""Numbers that prose may use although no table has them, and where each comes from."""
NUMBER = re.compile(r"(?<![\w.†])[-+]?\d[\d ,]*(?:\.\d+)*(?: ?%)?")


def prose(text: str) -> str:
    """What a person wrote: without generated blocks, code and addresses."""
    text = re.sub(r"<!-- generated: ([\w-]+) -->.*?<!-- end -->", "", text, flags=re.S)
    text = re.sub(r"```.*?```|^    .*?$", "", text, flags=re.S | re.M)
    return re.sub(r"`[^`]*`|\]\([^)]*\)", "", text)


def numbers_in(text: str) -> set[str]:
    return {re.sub(r"[ ,%]", "", x).lstrip("+") for x in NUMBER.findall(text)}


def name_of(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tables_are_what_the_files_say(page):
    assert render(page.read_text()) == page.read_text()


def test_every_table_has_one_place():
    named = [name for page in PAGES for name in re.findall(r"<!-- generated: ([\w-]+) -->", page.read_text())]
    assert sorted(named) == sorted(BLOCKS)


def test_pages_of_methods_are_what_code_and_presets_say():
    """Run `python -m studies.readme` after a change of a docstring, of a setting or of `conf/`."""
    pages = methodpages.method_pages()
    stored = {p.stem: p.read_text() for p in (DOCS / "methods").glob("*.md") if p.stem != "index"}
    assert sorted(stored) == sorted(pages)
    assert [name for name, text in pages.items() if stored[name] != text] == []
    assert set(pages) >= {*RECIPES, *AGENTS}


def test_each_preset_stands_on_one_page_with_its_source():
    pages = methodpages.method_pages()
    for preset in methodpages.presets():
        where = [name for name, text in pages.items() if f"### `{preset.name}`\n" in text]
        assert where == [preset.page]
        assert preset.comment
        assert preset.comment in pages[preset.page]
        assert preset.provenance in pages[preset.page]
    assert {methodpages.page_of(m) for m in METHODS} <= set(pages)


def test_comments_of_settings_are_found_wherever_they_stand():
    assert methodpages.comments(Example) == {
        "end": "at the end",
        "folded": "in the parentheses and on the next line",
        "other_end": "x",
        "above": "above the field",
        "below": "Below it.",
        "none": "",
    }


class Example:
    end: int = 1  # at the end
    folded: str = "long"  # in the parentheses
    # and on the next line
    other_end: int = 2  # x
    # above the field
    above: int = 3
    below: int = 4
    """Below it."""
    none: int = 5


def test_stale_pages_are_noticed(tmp_path, monkeypatch):
    assert main(["--check"]) == 0
    page = tmp_path / "page.md"
    page.write_text("<!-- generated: times -->\nold\n<!-- end -->\n")
    monkeypatch.setattr("studies.readme.PAGES", [page])
    assert main(["--check"]) == 1


def test_the_readme_is_short():
    assert (ROOT / "README.md").stat().st_size <= 6144
    assert len(re.findall(r"^- \[", (ROOT / "README.md").read_text(), re.M)) == 5


@pytest.mark.parametrize("kind", STUDIES)
def test_a_study_s_page_has_its_question_a_figure_and_at_most_five_bullets(kind):
    text = (DOCS / "results" / f"{kind}.md").read_text()
    assert "?" in text.partition("![")[0]
    bullets = re.search(rf"<!-- generated: {kind}-bullets -->\n(.*?)<!-- end -->", text, re.S)[1]
    assert 1 <= len(bullets.splitlines()) <= BULLETS == 5
    rows = BLOCKS[f"{kind}-claims"]()
    for bullet in bullets.splitlines()[1:]:
        words, verdict, figures = re.fullmatch(r"- (.*): \*\*(.*)\*\* \((.*)\)\.[ †\d]*", bullet).groups()
        assert f"{verdict}: {figures}" in rows, words


def test_the_program_in_the_readme_runs(pendulum, monkeypatch, capsys):
    """With less data and fewer steps."""
    import mbo2o
    from mbo2o.training import train

    def shrunk(cfg):
        assert (cfg.recipe.penalty, cfg.seeds) == ("mixture_std", 3)
        small = mbo2o.config("experiment=hopper-small", f"dataset={pendulum}", *SMALL)
        return train(replace(small, dir=str(Path.cwd() / "run"), seeds=cfg.seeds))

    monkeypatch.setattr(mbo2o, "train", shrunk, raising=False)
    program = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    assert len(program.splitlines()) <= 10
    exec(program, {})
    assert '"kind"' in capsys.readouterr().out


SMALL = [
    *(
        "recipe.offline_steps=20",
        "recipe.online_steps=40",
        "recipe.model_every=20",
        "recipe.fit.max_updates=10",
    ),
    *("recipe.refit.max_updates=5", "recipe.rollouts=16", "recipe.online_rollouts=16", "recipe.batch=8"),
    *("run.eval_episodes=1", "report=false"),
]


def test_render_renews_a_block():
    stale = "a\n<!-- generated: methods -->\nold\n<!-- end -->\nb"
    assert "old" not in render(stale)
    assert render(stale).startswith("a\n<!-- generated: methods -->\n| method")
    assert render(stale).endswith("<!-- end -->\nb")


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_links_lead_somewhere(page):
    targets = [x for x in re.findall(r"\]\(([^)#]+)\)", page.read_text()) if "://" not in x]
    assert [x for x in targets if not Path(page.parent, x).exists()] == []
    assert targets or page.parent.name == "methods"


def test_every_page_is_reached_from_the_readme():
    found, new = set(), {ROOT / "README.md"}
    while new:
        page = new.pop()
        found.add(page)
        links = re.findall(r"\]\(([^)#]+\.md)\)", page.read_text())
        new |= {Path(page.parent, x).resolve() for x in links if "://" not in x} - found
    assert {p.resolve() for p in WRITTEN} <= {p.resolve() for p in found}


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


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_each_number_in_a_sentence_is_a_table_s(page):
    text = page.read_text()
    assert unsupported(text, known_numbers(text)) == set()


def test_a_number_that_no_table_has_is_noticed():
    text = "It ends at 1964 of 2 134 (95 %), `945` in code.\n<!-- generated: x -->\n| 2134 |\n<!-- end -->\n"
    assert unsupported(text, known_numbers(text)) == {"1964"}


@pytest.mark.parametrize("page", COMPARING, ids=name_of)
def test_what_came_out_is_said_by_verdict_rows_alone(page):
    """No sentence of ours ranks what was measured: the generated rows do, in the protocol's words."""
    ours = " ".join(prose(page.read_text()).lower().split())
    ranking = (
        r"\b(best|worst|highest|lowest|most|least|better|worse|beats?|loses?|wins?|ahead|behind|above|below|"
    )
    ranking += (
        r"faster|slower|outperforms?|helps?|hurts?|reproduced?|contrary|holds?|confirms?|shows?|costs?|"
    )
    ranking += r"ends? at|falls?|rises?)\b"
    for sentence in NO_RANKING.get(name_of(page), ()):
        assert sentence in ours, sentence
        ours = ours.replace(sentence, "")
    assert re.findall(ranking, ours) == []


NO_RANKING = {
    "data/results/README.md": ("what it holds", "how often intervals hold the true mean"),
    "docs/results/index.md": ("*holds* and *contrary* are corrected",),
    "docs/results/obac.md": (
        "does an offline learner help the online one? does an offline learner help the online one on",
        "behind the gate and always on",
    ),
    "docs/results/methods.md": ("in the mazes a step costs 1 until the goal",),
}
"""Sentences with such a word that say no result."""


def test_every_verdict_word_is_defined():
    protocol = (ROOT / "docs" / "protocol.md").read_text()
    assert [word for word in WORDS if f"*{word}*" not in protocol] == []


def test_settings_that_prose_may_name_are_named():
    ours = set().union(*(numbers_in(prose(page.read_text())) for page in PAGES))
    assert set(SETTINGS) - ours == set()
