"""The ledger of claims: what came out for every statement of the papers, at each size, or that it is not run.

`data/results/claims.csv` has a row for each claim, comparison, size and file. It follows from the tables in
data/results and from the claims that the studies declare.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from mbo2o.store.whole import write_whole
from studies.arms import read_rows
from studies.claims import Finding, verdicts
from studies.measured import RESULTS, SIZES, STUDIES, studied
from studies.methods import MEASURED_BY, OLDER, TODAYS
from studies.protocol import SANITY, STATED

Row = dict[str, str]
FILE = "claims.csv"
MADE = "-made.json"
"""What the name of a file that says how a table was made ends with."""
NOT_RUN = "not run"
FIGURES = {
    **dict.fromkeys(("A1", "A2", "A3", "A5"), "figures 1a, 2"),
    **{"A4": "text on figure 1a", "A6": "figure 1b", "A7": "figure 1c"},
    **dict.fromkeys(("B1", "B2", "B3"), "figure 3"),
    **{"B4": "section on targets", "C1": "figure 4", "C2": "figure 4"},
    **{f"D{k}": "figure 5" for k in range(1, 9)},
    **{"E1": "figure 6", "E2": "figure 6, appendix", "F1": "limitations"},
    **dict.fromkeys(("M1", "M2"), "ablation of sampling"),
    **{"M3": "main comparison", "M4": "ablation of the penalty", "M5": "ablation of the penalty"},
    **{"M6": "ablation of alpha", "M7": "uncertainty value error", "M8": "main comparison, random data"},
    **{"O1": "three agents", "O2": "three agents", "O3": "three agents", "O4": "main comparison"},
    **{"O5": "adaptive and fixed constraint", "O6": "noise and sparse rewards"},
    **{"W1": "sections 3.1, 5.2", "W2": "section 3.1", "W3": "section 3.1", "W4": "sections 3.2, 5.3"},
    **{"W5": "section 5.5", "W6": "section 5.6", "W7": "section 4", "W8": "section 5.4"},
}
"""Where a paper makes its claim."""
ON = {
    "enoto": "hopper-medium-v5",
    "moore": "hopper-medium-replay-v5",
    "methods": "hopper-medium-v5",
    "wsrl": "hopper-medium-v5",
    "obac": "Hopper-v5",
}
"""What a study that has not run would run on."""
_MAZE = {"small": "lapo-small", "mid": "lapo-mid", "paper": "switch=lapo-enoto"}
_TD3BC = {"small": "td3bc-small", "mid": "td3bc-mid", "paper": "switch=td3bc-enoto"}
OTHERS = {
    "E1": ("enoto pointmaze-umaze.hdf5 --name lapo-pointmaze-umaze", _MAZE),
    "E2": ("enoto pointmaze-umaze.hdf5 --name lapo-pointmaze-umaze", _MAZE),
    "F1": ("enoto hopper-medium-v5 --name td3bc-hopper-medium-v5", _TD3BC),
    "D7": ("methods hopper-medium-expert.hdf5", {}),
    "M8": ("moore hopper-random.hdf5", {}),
}
"""Claims about other data or another learner: what would run them, and the experiment by size."""
LEARNERS = {"E1": "lapo", "E2": "lapo", "F1": "td3bc"}
"""Claims about one offline learner, which the names of their files have."""


def rows() -> list[Row]:
    """Every row of the ledger: the comparisons that were measured, and the claims that were not run."""
    found = {size: _measured(size) for size in SIZES}
    out = []
    for paper, claims in (STATED | SANITY).items():
        for name, text in claims.items():
            source = ", ".join(x for x in (paper, FIGURES.get(name, "")) if x)
            start = {"claim": name, "text": text, "source": source}
            for size in SIZES:
                mine = found[size].get(name) or [_not_run(name, size)]
                out += [{**dict.fromkeys(COLUMNS, ""), **start, **row, "size": size} for row in mine]
    return out


COLUMNS = (
    *("claim", "text", "source", "measure", "size", "file", "seeds", "steps", "compared"),
    *("difference", "low", "high", "p", "q", "raw", "verdict", "command", "commit", "hours"),
)


def _measured(size: str) -> dict[str, list[Row]]:
    """By claim, the rows of its comparisons at one size."""
    out: dict[str, list[Row]] = {}
    for kind, study in STUDIES.items():
        for finding in verdicts(study.CLAIMS, studied(kind, size)):
            stem = f"{kind}-{finding.data}"
            for name in filter(None, finding.claim.name.split(", ")):
                if LEARNERS.get(name, "") in finding.data:
                    out.setdefault(name, []).append(_row(finding, stem))
    return out


def _row(f: Finding, stem: str) -> Row:
    e, made = f.estimate, made_of(RESULTS / f"{stem}.csv")
    first = next(iter(read_rows(RESULTS / f"{stem}.csv").values()))[0]
    return {
        "measure": f.claim.text,
        "file": stem,
        "seeds": str(e.seeds),
        "steps": first["steps"],
        "compared": "paired" if f.paired else "unpaired",
        **{k: _number(x) for k, x in (("difference", e.mean), ("low", e.low), ("high", e.high))},
        **{k: _number(x) for k, x in (("p", e.p), ("q", f.q))},
        "raw": f.verdict.removesuffix(" before correction"),
        "verdict": f.verdict,
        **made,
    }


def _number(x: float) -> str:
    return "" if x != x else f"{x:.4g}"


def made_of(path: Path) -> Row:
    """The command, the commit and the hours behind a table; "" for what is not known."""
    beside = path.with_name(f"{path.stem}{MADE}")
    if beside.is_file():
        made = json.loads(beside.read_text())
        hours = sum(x["hours"] for x in made["runs"].values())
        commits = sorted({x["commit"] for x in made["runs"].values()})
        return {"command": made["command"], "commit": " ".join(commits), "hours": f"{hours:.2f}"}
    command = MEASURED_BY.get(path.stem)
    return {
        "command": f"mbo2o study {command}" if command else "",
        "commit": TODAYS.get(path.stem, OLDER) if command else "",
        "hours": "",
    }


def _not_run(name: str, size: str) -> Row:
    return {"verdict": NOT_RUN, "raw": NOT_RUN, "command": command_for(name, size)}


def command_for(name: str, size: str) -> str:
    """What would measure a claim at a size; "" where no study declares a comparison for it."""
    study = next((k for k, x in STUDIES.items() if any(name in c.name.split(", ") for c in x.CLAIMS)), None)
    if study is None:
        return ""
    what, experiments = OTHERS.get(name, (f"{study} {ON[study]}", {}))
    experiment = f" --experiment {experiments[size]}" if experiments else ""
    return f"mbo2o study {what} --seeds 5 --size {size}{experiment}"


# ------------------------------------------------------------------------------------------------- the file


def text_of(table: Sequence[Row]) -> str:
    """The ledger as the text of a CSV file."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue()


def write_ledger() -> None:
    """Write data/results/claims.csv from what was measured."""
    write_whole(RESULTS / FILE, text_of(rows()))


def read_ledger() -> list[Row]:
    """The rows of data/results/claims.csv; none if there is no such file."""
    path = RESULTS / FILE
    return list(csv.DictReader(io.StringIO(path.read_text()))) if path.is_file() else []


def disagreements() -> list[str]:
    """A line for each row in which claims.csv and the measured tables differ."""
    stored, now = ({_key(r): r for r in table} for table in (read_ledger(), rows()))
    return [line for key in dict.fromkeys([*stored, *now]) for line in _differ(key, stored, now)]


def _key(row: Row) -> tuple[str, ...]:
    return tuple(row.get(x, "") for x in ("claim", "size", "file", "measure"))


def _differ(
    key: tuple[str, ...], stored: dict[tuple[str, ...], Row], now: dict[tuple[str, ...], Row]
) -> Iterator[str]:
    name = " ".join(x for x in key if x)
    if key not in stored:
        yield f"{name}: is not in {FILE}, and the tables say {now[key]['verdict']}"
    elif key not in now:
        yield f"{name}: is in {FILE}, and no table has it"
    else:
        for column in COLUMNS:
            then, here = stored[key].get(column, ""), now[key][column]
            if then != here:
                yield f"{name}: {column} is {then or 'empty'} in {FILE}, and {here or 'empty'} by the tables"


# ------------------------------------------------------------------------------------------------- in short

OVERALL = (
    "holds",
    "holds in part",
    "mixed",
    "contrary",
    "direction only",
    "not reproduced",
    "sanity check only",
    NOT_RUN,
)
"""What a claim comes to at one size, over all its comparisons and files."""


def overall(table: Sequence[Row]) -> str:
    """What the rows of one claim at one size come to.

    It holds if all comparisons hold after correction, and in part if one does. It is contrary if one is
    contrary after correction and none holds, and mixed if there are both. Otherwise it has the direction of
    most of its comparisons.
    """
    words = [r["verdict"] for r in table]
    if words == [NOT_RUN]:
        return NOT_RUN
    if all(x.startswith("sanity") for x in words):
        return "sanity check only"
    judged = [x for x in words if not x.startswith("sanity")]
    if "contrary" in judged:
        return "mixed" if "holds" in judged else "contrary"
    if "holds" in judged:
        return "holds" if set(judged) == {"holds"} else "holds in part"
    positive = sum(x in ("holds before correction", "direction only") for x in judged)
    return "direction only" if 2 * positive > len(judged) else "not reproduced"


def claims_at(table: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """The rows by claim and by size."""
    out: dict[str, dict[str, list[Row]]] = {}
    for row in table:
        out.setdefault(row["claim"], {}).setdefault(row["size"], []).append(row)
    return out


def counts_table() -> str:
    """How many claims come to what, at each size, and how many comparisons there are."""
    table = rows()
    found, names = claims_at(table), ("claims", *OVERALL, "comparisons")
    lines = ["| size | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for size in SIZES:
        results = [overall(claims[size]) for claims in found.values()]
        measured = sum(r["size"] == size and r["verdict"] != NOT_RUN for r in table)
        cells = [str(len(results)), *(str(results.count(x)) for x in OVERALL), str(measured)]
        lines.append(f"| {size} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table() -> str:
    """Every claim with its source, and at each size what it comes to and how its comparisons ended."""
    lines = [f"| claim | the paper says | source | {' | '.join(SIZES)} |", "|---" * (3 + len(SIZES)) + "|"]
    for name, sizes in claims_at(rows()).items():
        first = next(iter(sizes.values()))[0]
        cells = [_cell(sizes[size]) for size in SIZES]
        lines.append(f"| {name} | {first['text']} | {first['source']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(found: Sequence[Row]) -> str:
    result = overall(found)
    if result == NOT_RUN:
        return result
    words = [r["verdict"] for r in found]
    counts = ", ".join(f"{words.count(x)} {x}" for x in dict.fromkeys(words))
    return f"**{result}**: {counts}"


def line(row: Row) -> str:
    """A row in one line: its verdict, file, measure, and difference with interval; or the command for it."""
    if row["verdict"] == NOT_RUN:
        return row["command"] or "no command measures it"
    interval = f" [{row['low']}, {row['high']}]" if row["low"] else ""
    return f"{row['verdict']}: {row['measure']}, {row['file']}: {row['difference']}{interval}"
