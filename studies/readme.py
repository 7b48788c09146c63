"""The tables and verdicts of all pages, and the pages of methods, from code, `conf/` and data/results.

`python -m studies.readme` writes them; with `--check` it changes nothing, and its exit code is 1 if they are
stale. With `--recompute` it first computes the measures in the CSV files again from the stored curves. With
`--figures` it draws the figures of the studies again. With `--coverage` it simulates how often intervals
contain the true mean.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial

import numpy as np

import mbo2o.recipes  # noqa: F401  registers
from bench.table import tables
from mbo2o.envs.scores import sets
from mbo2o.registry import AGENTS, RECIPES, SOURCES
from mbo2o.report.statistics import FEWEST, KIND
from mbo2o.report.switch import DEFINITIONS
from studies import (
    again,
    aggregate,
    cloning,
    ledger,
    methods,
    moore,
    mopo,
    needs,
    offline,
    parity,
    protocol,
    sb3_in_model,
)
from studies.arms import read_rows, recompute
from studies.claims import Claim, Finding, figures
from studies.measured import RESULTS, ROOT, STUDIES, files_of, findings
from studies.methodpages import method_pages, page_of, quoted
from studies.methods import METHODS, declared, measured, measured_by, with_interval
from studies.offline import LEARNERS

DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    RESULTS / "README.md",
    *sorted(DOCS.glob("*.md")),
    *sorted((DOCS / "results").glob("*.md")),
    DOCS / "methods" / "index.md",
]
"""Pages written by hand, with generated blocks. The other pages of docs/methods are generated as a whole."""


def render(text: str) -> str:
    """A page's text with every generated block renewed."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}\n{BLOCKS[match[2]]()}\n{match[4]}"

    return re.sub(r"(<!-- generated: ([\w-]+) -->)\n(.*?)(<!-- end -->)", block, text, flags=re.S)


def _moore() -> str:
    columns = ["data", "arm", "seeds", "behaviour", "at the switch", "drop", "mean online", "final"]
    columns += ["U3 online", "U5 online", "penalty / reward"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for path in files_of():
        for arm, mine in read_rows(path).items():
            cells = [_interval([float(r[x]) for r in mine]) for x in ("j0", "drop", "auc", "final")]
            decay = [
                f"{_mean(mine, f'{u}_first'):.2f} → {_mean(mine, f'{u}_last'):.2f}"
                if f"{u}_first" in mine[0]
                else ""
                for u in ("u3", "u5", "penalty")
            ]
            behaviour = f"{float(mine[0]['behaviour']):.0f}" if mine[0]["behaviour"] else ""
            lines.append(
                " | ".join([f"| {path.stem[6:]}", arm, str(len(mine)), behaviour, *cells, *decay]) + " |"
            )
    return "\n".join([*lines, "", _layout("moore")])


def _moore_main() -> str:
    measures = {"drop": "drop", "auc": "mean online", "final": "final"}
    lines = [
        f"| data (seeds, behaviour) | MOPO, at the switch | | {' | '.join(moore.DEFAULT)} |",
        "|---|---|---|" + "---|" * 4,
    ]
    for path in files_of():
        by_arm = read_rows(path)
        first = next(iter(by_arm.values()))
        behaviour = f", {float(first[0]['behaviour']):.0f}" if first[0]["behaviour"] else ""
        data = f"{path.stem[6:]} ({len(first)}{behaviour})"
        switch = _interval([float(r["j0"]) for r in first])
        for measure, text in measures.items():
            cells = [
                _interval([float(r[measure]) for r in by_arm[arm]]) if arm in by_arm else ""
                for arm in moore.DEFAULT
            ]
            lines.append(" | ".join([f"| {data}", switch, text, *cells]) + " |")
            data = switch = ""
    return "\n".join([*lines, "", _layout("moore")])


def _offline() -> str:
    tables = {path.stem.removeprefix("offline-"): read_rows(path) for path in files_of("offline")}
    first = {name: next(iter(arms.values()))[0] for name, arms in tables.items()}
    lines = ["| agent | " + " | ".join(tables) + " |", "|---|" + "---|" * len(tables)]
    behaviour = [f"{float(row['behaviour']):.0f}" for row in first.values()]
    lines.append("| *the data's behaviour* | " + " | ".join(behaviour) + " |")
    for agent in LEARNERS:
        cells = [_final(arms[agent]) if agent in arms else "" for arms in tables.values()]
        lines.append(f"| `{agent}` | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _layout("offline")])


def _final(rows: list[dict[str, str]]) -> str:
    few = " (one evaluation)" if rows[0]["final_evals"] == "1" else ""
    return _interval([float(r["final"]) for r in rows]) + few


COLUMNS = {"j0": "at the switch", "drop": "drop", "auc": "mean online", "final": "final", "wobble": "wobble"}


def _arms(kind: str) -> str:
    tables = {path.stem.removeprefix(f"{kind}-"): read_rows(path) for path in files_of(kind)}
    rows = [row for arms in tables.values() for found in arms.values() for row in found]
    columns = {
        x: "at the start" if (x, kind) == ("j0", "obac") else text
        for x, text in COLUMNS.items()
        if rows and x in rows[0]
    }
    lines = [
        " | ".join(["| data", "arm", "seeds", *columns.values()]) + " |",
        "|---|---|---|" + "---|" * len(columns),
    ]
    for name, arms in tables.items():
        for arm, found in arms.items():
            cells = [_interval([float(r[x]) for r in found]) for x in columns]
            lines.append(" | ".join([f"| {name}", f"`{arm}`", str(len(found)), *cells]) + " |")
    return "\n".join([*lines, "", _layout(kind)])


def _claims(kind: str, claims: Sequence[Claim]) -> str:
    """A row for each claim, a column for each data; a dagger marks what was tuned on the study's seeds."""
    found = findings(kind, claims)
    notes = list(dict.fromkeys(note for _, note in _tuned(kind)))
    columns = list(dict.fromkeys(f.data for f in found))
    heads = [data + _dagger(kind, data, ("*",), notes) for data in columns]
    lines = [
        "| claim | what should be positive | seeds | " + " | ".join(heads) + " |",
        "|---|---|---|" + "---|" * len(columns),
    ]
    for claim in dict.fromkeys((f.claim.name, f.claim.text) for f in found):
        cells = {f.data: f for f in found if (f.claim.name, f.claim.text) == claim}
        how = "paired" if next(iter(cells.values())).paired else "unpaired"
        texts = {
            x: f"{f.verdict}: {figures(f)}{_dagger(kind, x, (claim[0],), notes)}" for x, f in cells.items()
        }
        lines.append(
            " | ".join([f"| {claim[0]}", claim[1], how, *(texts.get(x, "") for x in columns)]) + " |"
        )
    lines += [f"\n†{i + 1}: {note}." for i, note in enumerate(notes)]
    return "\n".join(lines)


def _tuned(kind: str) -> list[tuple[tuple[str, str], str]]:
    """What was tuned on a study's own seeds: the data and the claim that it touches (`*`: all), and how."""
    with open(RESULTS / "tuned.csv", newline="") as f:
        return [((r["data"], r["claim"]), r["note"]) for r in csv.DictReader(f) if r["study"] == kind]


def _dagger(kind: str, data: str, claims: Sequence[str], notes: list[str]) -> str:
    """A mark for each note on these claims of this data."""
    return "".join(
        f" †{notes.index(note) + 1}"
        for (where, claim), note in _tuned(kind)
        if where == data and claim in claims
    )


BULLETS = 5
"""The most bullets of a study's page."""


def _bullets(kind: str, claims: Sequence[Claim]) -> str:
    """The counts of all verdicts, and the claims that hold or are contrary after correction, sorted by q."""
    found = [f for f in findings(kind, claims) if not f.claim.sanity]
    notes = list(dict.fromkeys(note for _, note in _tuned(kind)))
    sure = sorted((f for f in found if f.verdict in ("holds", "contrary")), key=lambda f: f.q)
    lines = [f"- {len(found)} comparisons: {_counts(found)}."]
    lines += [f"- {_sentence(f, _dagger(kind, f.data, (f.claim.name, '*'), notes))}" for f in sure]
    return "\n".join(lines[:BULLETS])


def _counts(found: Sequence[Finding]) -> str:
    return ", ".join(f"{n} {word}" for word in WORDS if (n := sum(f.verdict == word for f in found)))


def _statements(claims: Sequence[Claim]) -> str:
    """What the papers state, for the numbers that a study's claims have."""
    said = {name: text for found in protocol.STATED.values() for name, text in found.items()}
    names = dict.fromkeys(x for c in claims for x in c.name.split(", ") if x)
    return "\n".join(f"- **{name}**: {said[name]}" for name in names)


def _sentence(f: Finding, dagger: str = "") -> str:
    return f"{f.claim.name} {f.claim.text} ({f.data}): **{f.verdict}** ({figures(f)}).{dagger}".strip()


def _short() -> str:
    """By study the counts of its verdicts, and the claims that hold or are contrary after correction."""
    lines = []
    for kind, study in STUDIES.items():
        found = [f for f in findings(kind, study.CLAIMS) if not f.claim.sanity]
        notes = list(dict.fromkeys(note for _, note in _tuned(kind)))
        lines.append(
            f"- **{TITLES[kind]}** ([results]({kind}.md); {len(found)} comparisons: {_counts(found)})."
        )
        for f in found:
            if f.verdict in ("holds", "contrary"):
                tuned = " †" if _dagger(kind, f.data, (f.claim.name, "*"), notes) else ""
                lines.append(f"  - {_sentence(f, tuned)}")
    lines.append("\n†: settings were tuned with seeds of this study; the study's table says which.")
    return "\n".join(lines)


WORDS = (
    *("holds", "holds before correction", "direction only", "no difference", "not reproduced"),
    *("contrary before correction", "contrary", "undefined"),
)
TITLES = {
    "moore": "MOORe: how should offline data fade?",
    "enoto": "ENOTO: what makes the switch smooth?",
    "wsrl": "WSRL: is offline data needed online?",
    "methods": "Methods side by side",
    "obac": "OBAC: does an offline learner help the online one?",
}


def _layout(kind: str) -> str:
    """How a study's numbers were taken, by data; that it is less than the protocol asks for is said."""
    parts: dict[str, list[str]] = {}
    for path in files_of(kind):
        rows = [r for found in read_rows(path).values() for r in found]
        evals, episodes, seeds = ({int(r[x]) for r in rows} for x in ("final_evals", "eval_episodes", "seed"))
        text = (
            f"{max(seeds) + 1} seeds, finals of {_span(evals, 'evaluation')} of {_span(episodes, 'episode')}"
        )
        text += " (fewer than the protocol's three of ten)" if min(evals) < 3 or min(episodes) < 10 else ""
        if "drop_evals" in rows[0]:
            window = f"{int(rows[0]['drop_updates']):,}".replace(",", " ")
            text += f", drop over {window} updates and {rows[0]['drop_evals']} evaluations"
        parts.setdefault(text, []).append(path.stem.removeprefix(f"{kind}-"))
    said = "; ".join(f"{', '.join(names)}: {text}" for text, names in parts.items())
    return f'Cells: mean and {KIND}; "–": fewer than {FEWEST} seeds, no interval. {said}.'


def _span(values: set[int], what: str) -> str:
    most = max(values)
    return (f"{min(values)} to " if len(values) > 1 else "") + f"{most} {what}{'' if most == 1 else 's'}"


def _mean(rows: list[dict[str, str]], key: str) -> float:
    return float(np.mean([float(r[key]) for r in rows]))


def _interval(values: list[float]) -> str:
    if np.isnan(values).any():
        return "diverged"
    return with_interval(
        np.array(values), 2 if np.abs(values).max() < 10 else 0
    )  # success rates, against returns


def _agents() -> str:
    lines = ["| agent | idea |", "|---|---|"]
    lines += [
        f"| [`{e.name}`]({e.name}.md) | {' '.join((e.cls.__doc__ or '').split(chr(10) * 2)[0].split())} |"
        for e in AGENTS.values()
    ]
    return "\n".join(lines)


def _sources() -> str:
    lines = ["| `source@recipe.source=` | rows of a batch | settings |", "|---|---|---|"]
    for e in SOURCES.values():
        settings = ", ".join(f"`{f.name}`" for f in fields(e.config))
        idea = " ".join((e.cls.__doc__ or "").split("\n\n")[0].split())
        lines.append(f"| `{e.name}` | {idea} | {settings} |")
    return "\n".join(lines)


def _recipes() -> str:
    lines = ["| recipe | idea | paper | needs |", "|---|---|---|---|"]
    for e in RECIPES.values():
        idea = " ".join((e.cls.__doc__ or "").split("\n\n")[0].split())
        needs = "a dataset" if e.cls.needs_dataset else "an environment"  # type: ignore[attr-defined]
        paper = e.cls.paper  # type: ignore[attr-defined]
        lines.append(f"| [`{e.name}`]({e.name}.md) | {idea} | {paper} | {needs} |")
    return "\n".join(lines)


def _methods() -> str:
    """Each method with where its numbers are from and what was measured, for docs/methods."""
    lines = [
        "| method | the paper's numbers: `mbo2o train` | source "
        f"| measured, small: return at the switch → final [{KIND}] | measured by |",
        "|---|---|---|---|---|",
    ]
    for m in METHODS:
        figures, by = measured(m, RESULTS).replace("; ", "<br>"), measured_by(m, RESULTS)
        commands = "<br>".join(quoted(x) for x in by.split("; ")) if by else ""
        kind = declared(m.command).partition(": ")[0]
        cells = [f"| [{m.name}]({page_of(m)}.md)", f"`{m.command}`", kind, figures, commands]
        lines.append(" | ".join(cells) + " |")
    return "\n".join(lines)


def _methods_short() -> str:
    """The README's table."""
    lines = ["| method | arXiv | `mbo2o train` | needs | result |", "|---|---|---|---|---|"]
    for m in METHODS:
        study = m.measured[0].partition("-")[0]
        result = f"[{study}](docs/results/{study}.md)" if measured(m, RESULTS) else ""
        name = f"[{m.name}](docs/methods/{page_of(m)}.md)"
        cells = [name, m.paper.removeprefix("arXiv "), f"`{m.command}`", NEEDS[m.needs], result]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


NEEDS = {methods.BOTH: "data, task", methods.DATA: "data", methods.TASK: "task"}


def _switch_numbers() -> str:
    """What the numbers of a run's `switch.json` mean."""
    rows = [f"| `{name}` | {meaning} |" for name, meaning in DEFINITIONS.items()]
    return "\n".join(["| number | meaning |", "|---|---|", *rows])


def _costs(table: str) -> str:
    """A table of data/results/costs.csv, what one run or the tests take."""
    with open(RESULTS / "costs.csv", newline="") as f:
        rows = [r for r in csv.DictReader(f) if r["table"] == table]
    return "\n".join(["| what | measured |", "|---|---|", *(f"| {r['what']} | {r['value']} |" for r in rows)])


def _references() -> str:
    lines = ["| task | random play | good policy | who that is |", "|---|---|---|---|"]
    for task, ends in sets()["mbo2o-v5"]["tasks"].items():
        if "interval" in ends["high"]:
            cells = [
                "{} [{}, {}]".format(*(f"{y:.0f}" for y in (x["return"], *x["interval"])))
                for x in ends.values()
            ]
            lines.append(" | ".join([f"| {task}", *cells, ends["high"]["policy"]]) + " |")
    return "\n".join(lines)


def _promises() -> str:
    with open(RESULTS / "promises.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    return "\n".join(
        ["| promise | kept |", "|---|---|", *(f"| {r['promise']} | {int(r['kept']):,} |" for r in rows)]
    )


BLOCKS: dict[str, Callable[[], str]] = {
    "moore": _moore,
    "moore-main": _moore_main,
    "short": _short,
    "methods": _methods,
    "recipes": _recipes,
    "agents": _agents,
    "sources": _sources,
    "offline": _offline,
    "enoto": partial(_arms, "enoto"),
    "wsrl": partial(_arms, "wsrl"),
    "finetuned": partial(_arms, "methods"),
    "obac": partial(_arms, "obac"),
    "parity": partial(parity.table, RESULTS),
    "mopo": partial(mopo.table, RESULTS),
    "mopo-variants": mopo.variants,
    "sb3-in-model": partial(sb3_in_model.table, RESULTS),
    **{f"{kind}-claims": partial(_claims, kind, study.CLAIMS) for kind, study in STUDIES.items()},
    **{f"{kind}-bullets": partial(_bullets, kind, study.CLAIMS) for kind, study in STUDIES.items()},
    "aggregates": aggregate.table,
    "cloning": partial(cloning.table, RESULTS),
    "claims-drops": again.drops_table,
    "claims-counts": ledger.counts_table,
    "claims-ledger": ledger.table,
    **{f"{kind}-statements": partial(_statements, study.CLAIMS) for kind, study in STUDIES.items()},
    "methods-short": _methods_short,
    "times": partial(_costs, "times"),
    "memory": partial(_costs, "memory"),
    "promises": _promises,
    "needs": partial(needs.table, ROOT / "tests" / "needs"),
    "switch-numbers": _switch_numbers,
    "references": _references,
    **tables(RESULTS),
    "protocol-measures": protocol.measures,
    "protocol-coverage": partial(protocol.coverage_table, RESULTS / protocol.COVERAGE),
    "protocol-claims": partial(
        protocol.claims_table, {TITLES[kind]: study.CLAIMS for kind, study in STUDIES.items()}
    ),
    "protocol-stated": partial(
        protocol.stated_table, {kind: study.CLAIMS for kind, study in STUDIES.items()}
    ),
    "protocol-studies": partial(protocol.studies_table, RESULTS),
}


def main(options: Sequence[str]) -> int:
    """What the module's docstring says; the exit code."""
    measured_files = [(kind, path) for kind in (*STUDIES, "offline") for path in files_of(kind)]
    if "--recompute" in options:
        for _, path in measured_files:
            recompute(path)
    if "--figures" in options:
        for kind, path in measured_files:
            if not path.with_suffix(".png").exists():
                continue  # no page shows this study's figure
            (STUDIES | {"offline": offline})[kind].figure(path)
    if "--coverage" in options:
        protocol.write_coverage(RESULTS / protocol.COVERAGE)
    if "--check" not in options:
        ledger.write_ledger()
    fresh = {page: render(page.read_text()) for page in PAGES}
    fresh |= {DOCS / "methods" / f"{name}.md": text for name, text in method_pages().items()}
    if "--check" in options:
        return int(
            bool(ledger.disagreements())
            or any(not page.exists() or page.read_text() != text for page, text in fresh.items())
        )
    for page, text in fresh.items():
        page.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
