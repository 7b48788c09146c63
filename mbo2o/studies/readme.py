"""The README's tables, from the files under data/results: `python -m mbo2o.studies.readme` writes them in place."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

import mbo2o.recipes  # noqa: F401  registers
from mbo2o.registry import RECIPES
from mbo2o.report.statistics import bootstrap_interval, paired_difference

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "data" / "results"


def render(text: str) -> str:
    """README's text with every generated block renewed."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}\n{BLOCKS[match[2]]()}\n{match[4]}"

    return re.sub(r"(<!-- generated: ([\w-]+) -->)\n(.*?)(<!-- end -->)", block, text, flags=re.S)


def _moore() -> str:
    lines = ["| data | arm | seeds | behaviour | at the switch | drop | mean online | final | U3 online | U5 online |"]
    lines.append("|---|---|---|---|---|---|---|---|---|---|")
    for path in _studies():
        with open(path, newline="") as f:
            rows = list(csv.DictReader(f))
        for arm in dict.fromkeys(r["arm"] for r in rows):
            mine = [r for r in rows if r["arm"] == arm]
            cells = [_interval([float(r[x]) for r in mine]) for x in ("j0", "drop", "auc", "final")]
            decay = [f"{_mean(mine, f'{u}_first'):.2f} → {_mean(mine, f'{u}_last'):.2f}" for u in ("u3", "u5")]
            behaviour = f"{float(mine[0]['behaviour']):.0f}"
            lines.append(" | ".join([f"| {path.stem[6:]}", arm, str(len(mine)), behaviour, *cells, *decay]) + " |")
    return "\n".join(lines)


def _moore_claims() -> str:
    lines = ["| data | priority minus | drop | mean online | final |", "|---|---|---|---|---|"]
    for path in _studies():
        with open(path, newline="") as f:
            rows = list(csv.DictReader(f))
        by_arm = {arm: [r for r in rows if r["arm"] == arm] for arm in dict.fromkeys(r["arm"] for r in rows)}
        for arm in ("uniform", "half", "online"):
            if arm not in by_arm:
                continue
            cells = []
            for x in ("drop", "auc", "final"):
                ours, theirs = ([float(r[x]) for r in by_arm[a]] for a in ("priority", arm))
                mean, low, high = paired_difference(ours, theirs)
                cells.append(f"{mean:+.0f} [{low:+.0f}, {high:+.0f}]")
            lines.append(f"| {path.stem[6:]} | {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _studies() -> list[Path]:
    return sorted(p for p in RESULTS.glob("moore-*.csv") if not p.stem.endswith("-curves"))


def _mean(rows: list[dict[str, str]], key: str) -> float:
    return float(np.mean([float(r[key]) for r in rows]))


def _interval(values: list[float]) -> str:
    low, high = bootstrap_interval(values)
    return f"{np.mean(values):.0f} [{float(low):.0f}, {float(high):.0f}]"


def _methods() -> str:
    lines = ["| recipe | idea | paper | needs |", "|---|---|---|---|"]
    for e in RECIPES.values():
        idea = " ".join((e.cls.__doc__ or "").split("\n\n")[0].split())
        needs = "a dataset" if e.cls.needs_dataset else "an environment"  # type: ignore[attr-defined]
        lines.append(f"| `{e.name}` | {idea} | {e.cls.paper} | {needs} |")  # type: ignore[attr-defined]
    return "\n".join(lines)


def _bench() -> str:
    results = [json.loads(x) for x in (RESULTS / "bench-dynamics.jsonl").read_text().splitlines()]
    lines = ["| work | mbo2o / mbrl 0.2.0 (median, range) | goal |", "|---|---|---|"]
    lines += [
        f"| {r['work']} | {r['ratio']:.2f}× ({r['ratio_min']:.2f} to {r['ratio_max']:.2f}) | {r['goal']}× |" for r in results
    ]
    return "\n".join(lines)


BLOCKS: dict[str, Callable[[], str]] = {
    "moore": _moore,
    "moore-claims": _moore_claims,
    "methods": _methods,
    "bench": _bench,
}


if __name__ == "__main__":
    readme = ROOT / "README.md"
    new = render(readme.read_text())
    if "--check" in sys.argv:
        sys.exit(new != readme.read_text())
    readme.write_text(new)
