"""How studies are measured and judged, as tables of docs/protocol.md; and the simulation behind its choice of intervals."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mbo2o.report.statistics import bootstrap_interval, t_quantile
from studies.arms import Row, read_rows, write
from studies.claims import Apart, Claim, Measured
from studies.methods import OLDER, TODAYS

COVERAGE = "coverage.csv"
SAMPLES = {
    "normal": (lambda rng, size: rng.normal(size=size), 0.0),
    "skewed (lognormal)": (lambda rng, size: rng.lognormal(size=size), float(np.exp(0.5))),
}
"""How seeds may be spread, and the mean that an interval has to hold."""
SEEDS = (3, 5, 10, 20)
MEASURES = {
    "J0, at the switch": "the first evaluation of the online phase, before any update of it.",
    "drop": "max(0, J0 minus the lowest evaluation of the window). The window starts at the first learning turn: recipes with "
    "`start=K` act for K steps with the frozen policy first, and the window does not include these "
    "steps. It is the same number of updates for all "
    "arms of a study on one dataset: 20 % of the shortest learning phase among them, in updates, rounded to whole "
    "spacings of the arm that is evaluated most seldom, at least two. Each arm is looked at once per such spacing, at the "
    "first evaluation that has as many updates, so that every arm has the same number of distinct evaluations. (A minimum "
    "over more evaluations is lower by their noise alone.) Balanced replay makes its many first updates in its first "
    "learning turn; the window counts those that follow.",
    "mean online, AUC": "the area under the curve of evaluations over the online phase, divided by its length, frozen steps "
    "included.",
    "final": "the mean of the last evaluations: a tenth of them, at least three, and none from the first half of the phase. "
    "The protocol asks for at least three evaluations of at least ten episodes; a table that was measured with fewer says so.",
    "best": "the highest evaluation. It is chosen with hindsight, and no claim uses it.",
    "gain": "AUC minus J0.",
    "wobble": "the standard deviation of the differences of successive evaluations, divided by √2: the noise around a "
    "straight line, however steep.",
    "swing of Q": "the range of mean Q on fixed rows of the dataset over the online phase, divided by its first value's size.",
    "distance to the data": "the median of ‖π(s) - a‖ over fixed rows of the dataset, at the end; for chance with a uniform "
    "action in the policy's place.",
    "over-estimation": "the critics' Q where the last tenth of the evaluations went, minus the discounted return that came of "
    "it.",
    "steps until 90 % of J0 are back": "the first evaluation from which on no evaluation is below 0.9 J0, in steps from the "
    "switch; twice the budget if there is none.",
    "Q - return at its lowest": "the lowest value, over evaluations, of Q minus the discounted return that followed.",
    "Q of online batches at its lowest": "the lowest logged mean of Q on training batches.",
    "TD error": "on fixed rows of the dataset, or on online batches for each critic, at the end; compared as a logarithm to "
    "base ten.",
    "bias of Q": "(Q minus the discounted return that followed), divided by the larger of that return's size and 10; mean "
    "over the second half of the evaluations.",
    "U3, U5": "the model's largest pairwise disagreement, and its total standard deviation, on imagined states. Their fall is "
    "Spearman's rank correlation with time over refits.",
    "penalty / reward": "λ·mean(u) / mean|r| on imagined states.",
    "watching IQL ahead": "the share of evaluations at which it returns more than SAC by over one pooled standard error; two "
    "equal policies pass this at 16 % of them.",
}
STATED = {
    "ENOTO (arXiv 2306.06871)": {
        "A1": "going on with CQL is stable, and slow",
        "A2": "CQL → SAC drops at the switch, or is unstable",
        "A3": "CQL-N → SAC-N does not drop",
        "A4": "offline, N critics are no worse than two",
        "A5": "CQL-N → SAC-N ends above CQL kept and above CQL → SAC",
        "A6": "Q swings less with N critics",
        "A7": "SAC-N's actions are farther from the data than CQL's, and nearer than chance",
        "B1": "the weighted and the random pair beat the minimum",
        "B2": "the minimum beats the mean and REM, which over-estimate",
        "B3": "the weighted pair is steadier than the random pair",
        "B4": "both pairs have the same mean pessimism",
        "C1": "of three explorations SUNRISE is best",
        "C2": "SUNRISE adds to the weighted pair",
        "D1": "ENOTO-CQL ends highest of all methods on most datasets",
        "D2": "PEX drops at once",
        "D3": "IQL improves little online",
        "D4": "AWAC is slow",
        "D5": "balanced replay is second, and unstable",
        "D6": "Cal-QL is stable, slow on MuJoCo and strong in mazes",
        "D7": "on hopper-medium-expert nearly all drop, and Cal-QL does not",
        "D8": "pre-training helps the same online algorithm",
        "E1": "ENOTO on LAPO beats IQL, PEX and Cal-QL in sparse mazes",
        "E2": "N critics help LAPO offline and online",
        "F1": "ENOTO also helps TD3+BC",
    },
    "MOORe (arXiv 2201.10070)": {
        "M1": "the priority keeps the start smooth; half-and-half and online data alone drop",
        "M2": "uniform sampling is smooth, and slow",
        "M3": "late, MOORe is as MBPO",
        "M4": "uncertainty, and with it the penalty, falls online by itself",
        "M5": "the penalty does little harm online",
        "M6": "the pace of fading matters little",
        "M7": "the penalty changes values little from epoch to epoch",
        "M8": "from random data the offline policy may fail, and online it recovers",
    },
    "OBAC (arXiv 2405.18520)": {
        "O1": "an IQL that learns beside SAC is ahead of it at times",
        "O2": "an IQL that acts for itself underestimates Q and stagnates",
        "O3": "which of both is ahead changes",
        "O4": "OBAC beats SAC",
        "O5": "the adaptive constraint beats a fixed one",
        "O6": "OBAC's gain stays under noise and sparse rewards",
    },
    "WSRL (arXiv 2412.07762)": {
        "W1": "without warm-up and data the return collapses",
        "W2": "Q falls too low at the start, and warm-up prevents it",
        "W3": "without data the fit to the dataset is lost, the one to online data is not",
        "W4": "keeping data costs the end, where WSRL is above Cal-QL with half offline",
        "W5": "going on with SAC beats going on with the offline agent",
        "W6": "policy and critics both help when they cross the switch",
        "W7": "more updates per step help",
        "W8": "own steps warm up better than rows of the dataset",
    },
}
"""What the papers state, in our words, by the number that claims have here."""


def stated_table(studies: dict[str, Sequence[Claim]]) -> str:
    """Every statement of the papers, and the studies with a comparison for it; some have none."""
    tested: dict[str, list[str]] = {}
    for study, claims in studies.items():
        for c in claims:
            for name in ("E1", "F1") if c.name == "E/F" else (c.name,):
                tested.setdefault(name, []).append(study)
    lines = ["| claim | the paper says | study with a comparison |", "|---|---|---|"]
    for paper, statements in STATED.items():
        lines.append(f"| *{paper}* | | |")
        for name, text in statements.items():
            where = ", ".join(f"`{x}`" for x in dict.fromkeys(tested.get(name, ()))) or "none: not measured"
            lines.append(f"| {name} | {text} | {where} |")
    return "\n".join(lines)


def measures() -> str:
    """A line for each measure of the tables."""
    return "\n".join(f"- **{name}**: {text}" for name, text in MEASURES.items())


def simulate_coverage(repeats: int, seed: int = 0) -> list[Row]:
    """How often a 95 % interval for the mean holds the true one, for both kinds, by number of seeds and their spread."""
    rows = []
    for spread, (draw, truth) in SAMPLES.items():
        for seeds in SEEDS:
            x = draw(np.random.default_rng(seed), (repeats, seeds))
            half = t_quantile(0.975, seeds - 1) * x.std(-1, ddof=1) / seeds**0.5
            low, high = bootstrap_interval(x)
            rows.append(
                {"spread": spread, "seeds": seeds, "repeats": repeats}
                | {"student": float((abs(x.mean(-1) - truth) <= half).mean())}
                | {"bootstrap": float(((low <= truth) & (truth <= high)).mean())}
            )
    return rows


def write_coverage(path: Path, repeats: int = 20_000) -> None:
    """Simulate and store what `coverage_table` shows."""
    write(path, simulate_coverage(repeats))


def coverage_table(path: Path) -> str:
    """Simulated coverage of both kinds of interval."""
    with open(path, newline="") as f:
        rows = list(csv.DictReader(f))
    lines = ["| seeds | their spread | Student's t | percentile bootstrap |", "|---|---|---|---|"]
    for r in sorted(rows, key=lambda r: (int(r["seeds"]), r["spread"])):
        lines.append(
            f"| {r['seeds']} | {r['spread']} | {float(r['student']):.0%} | {float(r['bootstrap']):.0%} |"
        )
    return "\n".join([*lines, "", f"({_spaced(rows[0]['repeats'])} simulated samples in each row.)"])


def claims_table(studies: dict[str, Sequence[Claim]]) -> str:
    """Every claim that is tested: what should be positive, how seeds are compared, and whether it is in the family."""
    lines = ["| study | claim | what should be positive | seeds | family |", "|---|---|---|---|---|"]
    for study, claims in studies.items():
        for c in claims:
            how = "unpaired" if is_unpaired(c.value) else "paired"
            cells = [study.split(":")[0], c.name, c.text, how, "sanity check" if c.sanity else "corrected"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


class _Anything(dict[str, np.ndarray]):
    """Arms that have every measure: enough to see which kind of value a claim makes."""

    def __missing__(self, key: str) -> np.ndarray:
        return np.ones(2)


class _Everyone(dict[str, dict[str, np.ndarray]]):
    def __missing__(self, key: str) -> dict[str, np.ndarray]:
        return _Anything()


def is_unpaired(value: Callable[[Measured], object]) -> bool:
    """Whether a claim compares samples that share nothing."""
    return isinstance(value(_Everyone()), Apart)


def studies_table(results: Path) -> str:
    """What each results file was measured with."""
    columns = ["file", "task", "seeds", "steps", "episodes per evaluation", "evaluations in final"]
    columns += ["drop: updates, evaluations", "settings of"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for path in sorted(results.glob("*-curves.csv")):
        path = path.with_name(path.name.replace("-curves", ""))
        rows = [r for found in read_rows(path).values() for r in found]
        seeds = {r["seed"] for r in rows}
        steps = sorted({int(r["steps"]) for r in rows})
        window = (
            f"{_spaced(rows[0]['drop_updates'])}, {rows[0]['drop_evals']}"
            if "drop_updates" in rows[0]
            else ""
        )
        cells = [f"`{path.stem}`", rows[0]["env"], str(len(seeds)), " or ".join(_spaced(x) for x in steps)]
        evals = " or ".join(sorted({r["final_evals"] for r in rows}))
        settings = "this version" if path.stem in TODAYS else OLDER
        lines.append("| " + " | ".join([*cells, rows[0]["eval_episodes"], evals, window, settings]) + " |")
    return "\n".join(lines)


def _spaced(x: str | int) -> str:
    return f"{int(x):,}".replace(",", " ")
