"""How studies are measured and judged: tables of docs/protocol.md, and the simulation of its intervals."""

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
    "drop": (
        "max(0, J0 minus the lowest evaluation of a window). The window starts at the first environment "
        "step after which the agent learns: the warm-up, in which the frozen policy acts, is not part of "
        "it. The window has the same number of updates for all arms of a study on one dataset: 20 % of "
        "the shortest learning phase among them. This number is rounded to a multiple of the largest "
        "distance, in updates, between two evaluations of an arm, and is at least two such distances. The"
        " minimum of an arm is taken over one evaluation for each distance, the first one that has as "
        "many updates, so that every arm has the same number of evaluations in its window. (Noise alone "
        "makes a minimum over more evaluations lower.) Balanced replay makes its many first updates at "
        "its first learning step; the window counts the updates after these."
    ),
    "mean online, AUC": (
        "the area under the curve of evaluations over the online phase, divided by its length. The steps "
        "of a warm-up are part of it."
    ),
    "final": (
        "the mean of the last evaluations: a tenth of them, at least three, and none from the first half "
        "of the phase. The protocol asks for at least three evaluations of at least ten episodes; a table"
        " that was measured with fewer says so."
    ),
    "best": "the highest evaluation. It is chosen with hindsight, and no claim uses it.",
    "gain": "AUC minus J0.",
    "wobble": (
        "the standard deviation of the differences of successive evaluations, divided by √2. This is the "
        "noise around a straight line, whatever its slope."
    ),
    "swing of Q": (
        "the range of mean Q on fixed rows of the dataset over the online phase, divided by the size of "
        "its first value."
    ),
    "distance to the data": (
        "the median of ‖π(s) - a‖ over fixed rows of the dataset, at the end of the run. The value for "
        "*random* replaces π(s) by an action that is drawn uniformly."
    ),
    "over-estimation": (
        "the critics' Q at the states and actions of the last tenth of the evaluations, minus the "
        "discounted return that followed."
    ),
    "steps until 90 % of J0 are back": (
        "environment steps from the switch to the first evaluation after which no evaluation is below 0.9"
        " J0; twice the budget if there is no such evaluation."
    ),
    "Q - return at its lowest": (
        "the lowest value, over evaluations, of Q minus the discounted return that followed."
    ),
    "Q of online batches at its lowest": "the lowest logged mean of Q on training batches.",
    "TD error": (
        "the mean squared TD error at the end, on fixed rows of the dataset, or on online batches for "
        "each critic. Two arms are compared by the logarithm to base ten of their ratio."
    ),
    "bias of Q": (
        "(Q minus the discounted return that followed), divided by the larger of that return's size and "
        "10. It is averaged over the second half of the evaluations."
    ),
    "U3, U5": (
        "the model's largest disagreement between two members, and its total standard deviation, on "
        "imagined states. Their fall is measured by Spearman's rank correlation with time, over refits."
    ),
    "penalty / reward": "λ·mean(u) / mean|r| on imagined states.",
    "watching IQL ahead": (
        "the share of evaluations at which IQL, which learns from SAC's batches, returns more than SAC by"
        " over one pooled standard error. Between two equal policies the expected share is 16 %."
    ),
}
STATED = {
    "ENOTO (arXiv 2306.06871)": {
        "A1": "CQL that goes on online is stable, and improves slowly",
        "A2": "the return of CQL → SAC drops at the switch, or is unstable",
        "A3": "the return of CQL-N → SAC-N does not drop",
        "A4": "offline, N critics are no worse than two",
        "A5": "CQL-N → SAC-N ends above CQL kept and above CQL → SAC",
        "A6": "Q swings less with N critics",
        "A7": "SAC-N's actions are farther from the data than CQL's, and nearer than chance",
        "B1": "the weighted and the random pair beat the minimum",
        "B2": "the minimum beats the mean and REM, which over-estimate",
        "B3": "the return varies less with the weighted pair than with the random pair",
        "B4": "both pairs have the same mean pessimism",
        "C1": "of three explorations SUNRISE is best",
        "C2": "SUNRISE adds to the weighted pair",
        "D1": "ENOTO-CQL ends highest of all methods on most datasets",
        "D2": "the return of PEX drops at the switch",
        "D3": "IQL improves little online",
        "D4": "AWAC improves slowly",
        "D5": "balanced replay ends second, and is unstable",
        "D6": "Cal-QL is stable; it improves slowly on MuJoCo and does well in mazes",
        "D7": "on hopper-medium-expert nearly all methods drop at the switch, and Cal-QL does not",
        "D8": "pre-training helps the same online algorithm",
        "E1": "ENOTO on LAPO beats IQL, PEX and Cal-QL in sparse mazes",
        "E2": "N critics help LAPO offline and online",
        "F1": "ENOTO also helps TD3+BC",
    },
    "MOORe (arXiv 2201.10070)": {
        "M1": "with the priority the return does not drop; with half-and-half or online data alone it does",
        "M2": "with uniform sampling the return does not drop, and it improves slowly",
        "M3": "late in training MOORe performs as well as MBPO",
        "M4": "online the uncertainty falls by itself, and so does the penalty",
        "M5": "online the penalty does little harm",
        "M6": "how fast the offline data fade matters little",
        "M7": "the penalty changes values little from epoch to epoch",
        "M8": "on random data the offline policy may fail, and it recovers online",
    },
    "OBAC (arXiv 2405.18520)": {
        "O1": "an IQL that learns from SAC's batches is at times better than SAC",
        "O2": "an IQL that acts for itself underestimates Q and stagnates",
        "O3": "which of the two learners is ahead, the offline or the online one, changes during training",
        "O4": "OBAC beats SAC",
        "O5": "the adaptive constraint beats a fixed one",
        "O6": "OBAC keeps its gain over SAC under noise and sparse rewards",
    },
    "WSRL (arXiv 2412.07762)": {
        "W1": "without warm-up and data the return collapses",
        "W2": "Q falls too low at the start, and warm-up prevents it",
        "W3": "without offline data the critics lose their fit to the dataset, not to online data",
        "W4": "keeping offline data lowers the end: WSRL ends above Cal-QL with half of its batch offline",
        "W5": "going on with SAC beats going on with the offline agent",
        "W6": "policy and critics both help when they cross the switch",
        "W7": "more updates per step help",
        "W8": "a warm-up by steps of the policy is better than one by rows of the dataset",
    },
}
"""What the papers state, in our words, by the number that claims have here."""
SANITY = {
    "the model, our own": {
        "ME1": "the penalty ranks the model's true errors, and the disagreement of members does so best",
        "ME2": "the aleatoric penalty levels off far from the data, and the disagreement of members does not",
        "ME3": "errors grow with the length of a rollout",
        "ME4": "planning with the model beats random actions over a short horizon",
        "ME5": "on a small dataset a method with a model beats one without",
    }
}
"""What a model has to do if the methods that use it shall work."""


def stated_table(studies: dict[str, Sequence[Claim]]) -> str:
    """Every statement of the papers, and the studies with a comparison for it; some have none."""
    tested: dict[str, list[str]] = {}
    for study, claims in studies.items():
        for c in claims:
            for name in c.name.split(", "):
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
    """How often a 95 % interval contains the true mean, by kind, number of seeds and their spread."""
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
    """Every tested claim: what should be positive, how seeds are compared, and if it is corrected."""
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
