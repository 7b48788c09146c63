"""The tables of README.md and data/results/README.md, from its CSV files: `python -m mbo2o.studies.readme` writes them."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

import mbo2o.recipes  # noqa: F401  registers
from mbo2o.registry import AGENTS, RECIPES
from mbo2o.report.statistics import bootstrap_interval
from mbo2o.run.scores import sets

from . import enoto, methods, moore, obac, wsrl
from .arms import read
from .claims import Claim, verdicts
from .methods import METHODS, declared, measured, measured_by
from .offline import LEARNERS

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "data" / "results"
PAGES = [ROOT / "README.md", RESULTS / "README.md"]


def render(text: str) -> str:
    """A page's text with every generated block renewed."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}\n{BLOCKS[match[2]]()}\n{match[4]}"

    return re.sub(r"(<!-- generated: ([\w-]+) -->)\n(.*?)(<!-- end -->)", block, text, flags=re.S)


def _moore() -> str:
    columns = ["data", "arm", "seeds", "behaviour", "at the switch", "drop", "mean online", "final"]
    columns += ["U3 online", "U5 online", "penalty / reward"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for path in _studies():
        for arm, mine in read(path).items():
            cells = [_interval([float(r[x]) for r in mine]) for x in ("j0", "drop", "auc", "final")]
            decay = [
                f"{_mean(mine, f'{u}_first'):.2f} → {_mean(mine, f'{u}_last'):.2f}" if f"{u}_first" in mine[0] else ""
                for u in ("u3", "u5", "penalty")
            ]
            behaviour = f"{float(mine[0]['behaviour']):.0f}" if mine[0]["behaviour"] else ""
            lines.append(" | ".join([f"| {path.stem[6:]}", arm, str(len(mine)), behaviour, *cells, *decay]) + " |")
    return "\n".join(lines)


def _moore_main() -> str:
    measures = {"drop": "drop", "auc": "mean online", "final": "final"}
    lines = [f"| data (seeds, behaviour) | MOPO, at the switch | | {' | '.join(moore.DEFAULT)} |", "|---|---|---|" + "---|" * 4]
    for path in _studies():
        by_arm = read(path)
        first = next(iter(by_arm.values()))
        behaviour = f", {float(first[0]['behaviour']):.0f}" if first[0]["behaviour"] else ""
        data = f"{path.stem[6:]} ({len(first)}{behaviour})"
        switch = _interval([float(r["j0"]) for r in first])
        for measure, text in measures.items():
            cells = [_interval([float(r[measure]) for r in by_arm[arm]]) if arm in by_arm else "" for arm in moore.DEFAULT]
            lines.append(" | ".join([f"| {data}", switch, text, *cells]) + " |")
            data = switch = ""
    return "\n".join(lines)


def _studies(kind: str = "moore") -> list[Path]:
    return sorted(p for p in RESULTS.glob(f"{kind}-*.csv") if not p.stem.endswith("-curves"))


def _offline() -> str:
    tables = {path.stem.removeprefix("offline-"): read(path) for path in _studies("offline")}
    first = {name: next(iter(arms.values()))[0] for name, arms in tables.items()}
    lines = ["| agent | " + " | ".join(tables) + " |", "|---|" + "---|" * len(tables)]
    behaviour = [f"{float(row['behaviour']):.0f}" for row in first.values()]
    lines.append("| *the data's behaviour* | " + " | ".join(behaviour) + " |")
    for agent in LEARNERS:
        cells = [_interval([float(r["final"]) for r in arms[agent]]) if agent in arms else "" for arms in tables.values()]
        lines.append(f"| `{agent}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


COLUMNS = {"j0": "at the switch", "drop": "drop", "auc": "mean online", "final": "final", "wobble": "wobble"}


def _arms(kind: str) -> str:
    tables = {path.stem.removeprefix(f"{kind}-"): read(path) for path in _studies(kind)}
    rows = [row for arms in tables.values() for found in arms.values() for row in found]
    columns = {
        x: "at the start" if (x, kind) == ("j0", "obac") else text for x, text in COLUMNS.items() if rows and x in rows[0]
    }
    lines = [" | ".join(["| data", "arm", "seeds", *columns.values()]) + " |", "|---|---|---|" + "---|" * len(columns)]
    for name, arms in tables.items():
        for arm, found in arms.items():
            cells = [_interval([float(r[x]) for r in found]) for x in columns]
            lines.append(" | ".join([f"| {name}", f"`{arm}`", str(len(found)), *cells]) + " |")
    return "\n".join(lines)


def _claims(kind: str, claims: Sequence[Claim]) -> str:
    found: dict[tuple[str, str], dict[str, str]] = {}
    for path in _studies(kind):
        measured = {
            arm: {k: np.array([float(r[k]) for r in rows]) for k in rows[0] if k not in ("arm", "behaviour")}
            for arm, rows in read(path).items()
        }
        for claim, mean, low, high, verdict in verdicts(claims, measured):
            digits = 2 if max(abs(low), abs(high)) < 10 else 0
            cell = f"{verdict}: {mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
            found.setdefault((claim.name, claim.text), {})[path.stem.removeprefix(f"{kind}-")] = cell
    columns = list(dict.fromkeys(name for cells in found.values() for name in cells))
    lines = ["| claim | measure, ours - theirs | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    lines += [f"| {a} | {b} | " + " | ".join(cells.get(x, "") for x in columns) + " |" for (a, b), cells in found.items()]
    return "\n".join(lines)


def _mean(rows: list[dict[str, str]], key: str) -> float:
    return float(np.mean([float(r[key]) for r in rows]))


def _interval(values: list[float]) -> str:
    if np.isnan(values).any():
        return "diverged"
    low, high = bootstrap_interval(values)
    digits = 2 if np.abs(values).max() < 10 else 0  # success rates, against returns
    return f"{np.mean(values):.{digits}f} [{float(low):.{digits}f}, {float(high):.{digits}f}]"


def _agents() -> str:
    lines = ["| agent | idea |", "|---|---|"]
    lines += [f"| `{e.name}` | {' '.join((e.cls.__doc__ or '').split(chr(10) * 2)[0].split())} |" for e in AGENTS.values()]
    return "\n".join(lines)


def _recipes() -> str:
    lines = ["| recipe | idea | paper | needs |", "|---|---|---|---|"]
    for e in RECIPES.values():
        idea = " ".join((e.cls.__doc__ or "").split("\n\n")[0].split())
        needs = "a dataset" if e.cls.needs_dataset else "an environment"  # type: ignore[attr-defined]
        lines.append(f"| `{e.name}` | {idea} | {e.cls.paper} | {needs} |")  # type: ignore[attr-defined]
    return "\n".join(lines)


def _methods() -> str:
    lines = [
        "| method | paper | the paper's numbers: `mbo2o train` | source | needs "
        "| measured, small: return at the switch → final [95 %] | measured by |",
        "|---|---|---|---|---|---|---|",
    ]
    for m in METHODS:
        figures, by = measured(m, RESULTS).replace("; ", "<br>"), measured_by(m, RESULTS)
        commands = "<br>".join(f"`{x.removeprefix('mbo2o ')}`" for x in by.split("; ")) if by else ""
        kind = declared(m.command).partition(": ")[0]
        lines.append(" | ".join([f"| {m.name}", m.paper, f"`{m.command}`", kind, m.needs, figures, commands]) + " |")
    return "\n".join(lines)


def _bench() -> str:
    results = [json.loads(x) for x in (RESULTS / "bench-dynamics.jsonl").read_text().splitlines()]
    lines = ["| work | mbo2o / mbrl 0.2.0 (median, range) | goal | matrix products alone / mbrl |", "|---|---|---|---|"]
    for r in results:
        ratio = f"{r['ratio']:.2f}× ({r['ratio_min']:.2f} to {r['ratio_max']:.2f})"
        lines.append(f"| {r['work']} | {ratio} | {r['goal']}× | {r['most']:.2f}× |")
    return "\n".join(lines)


def _references() -> str:
    lines = ["| task | random play | good policy | who that is |", "|---|---|---|---|"]
    for task, ends in sets()["mbo2o-v5"]["tasks"].items():
        if "interval" in ends["high"]:
            cells = ["{} [{}, {}]".format(*(f"{y:.0f}" for y in (x["return"], *x["interval"]))) for x in ends.values()]
            lines.append(" | ".join([f"| {task}", *cells, ends["high"]["policy"]]) + " |")
    return "\n".join(lines)


def _promises() -> str:
    with open(RESULTS / "promises.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    return "\n".join(["| promise | kept |", "|---|---|", *(f"| {r['promise']} | {int(r['kept']):,} |" for r in rows)])


def _updates() -> str:
    results = [json.loads(x) for x in (RESULTS / "bench-agents.jsonl").read_text().splitlines()]
    lines = ["| agent | updates per step | ms per critic update |", "|---|---|---|"]
    lines += [f"| {r['agent']} | {r['utd']} | {r['ms']:.0f} |" for r in results]
    return "\n".join(lines)


BLOCKS: dict[str, Callable[[], str]] = {
    "moore": _moore,
    "moore-main": _moore_main,
    "moore-claims": partial(_claims, "moore", moore.CLAIMS),
    "methods": _methods,
    "recipes": _recipes,
    "agents": _agents,
    "offline": _offline,
    "enoto": partial(_arms, "enoto"),
    "enoto-claims": partial(_claims, "enoto", enoto.CLAIMS),
    "wsrl": partial(_arms, "wsrl"),
    "wsrl-claims": partial(_claims, "wsrl", wsrl.CLAIMS),
    "finetuned": partial(_arms, "methods"),
    "finetuned-claims": partial(_claims, "methods", methods.CLAIMS),
    "obac": partial(_arms, "obac"),
    "obac-claims": partial(_claims, "obac", obac.CLAIMS),
    "bench": _bench,
    "promises": _promises,
    "references": _references,
    "updates": _updates,
}


if __name__ == "__main__":
    fresh = {page: render(page.read_text()) for page in PAGES}
    if "--check" in sys.argv:
        sys.exit(any(page.read_text() != text for page, text in fresh.items()))
    for page, text in fresh.items():
        page.write_text(text)
