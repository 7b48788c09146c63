"""What makes an offline model-based policy good: MOPO, other penalties, longer branches, other starts."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mbo2o.recipes.moore import MOOReConfig
from mbo2o.store import datasets
from mbo2o.training import Config
from studies import moore, offline
from studies.arms import BESIDE, Job, draw, publish, read_arms, read_rows
from studies.methods import with_interval
from studies.moore import as_mopo
from studies.presets import changed

SUBJECT = "dataset"
EXPERIMENT, CONFIG = "hopper-small", MOOReConfig
LARGER, SMALLEST = moore.LARGER, moore.SMALLEST
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mopo": ("MOPO, as the size's preset has it", {}),
    "mobile": (
        "MOBILE's Bellman inconsistency with its published weight, 0.1, in the place of U1",
        {"recipe.penalty": "bellman", "recipe.coef": 0.1},
    ),
    "mixture": ("U5, the total standard deviation", {"recipe.penalty": "mixture_std"}),
    "pairwise": ("U3, the largest disagreement of two members", {"recipe.penalty": "max_pairwise"}),
    "long": (
        "branches of 50 steps, which end where u passes the 0.99 quantile of the data's",
        {"recipe.horizon": 50, "recipe.truncate": 0.99, "recipe.imagined_rows": 500_000},
    ),
    "from-data": ("all branches begin in states of the data", {"recipe.starts": "data"}),
    "constant": ("the actor's rate is constant", {"recipe.agent.actor_decay_steps": None}),
}
DEFAULT = ("mopo",)
PUBLISHED = {"hopper-medium-replay": (6.4, 0.94), "halfcheetah-medium-replay": (2.8, 1.74)}
"""MOPO's published return on D4RL's file of that name, over the file's mean return and over its best episode
(OfflineRL-Kit's table, and the statistics of D4RL's files)."""
PANELS = {"": list(VARIANTS)}


def arms(base: Config) -> dict[str, Config]:
    """Offline phases by name; `mopo` is the base's own, from which MOORe's arms start."""
    phase = changed(base, {"recipe": as_mopo(base.recipe)})
    return {name: changed(phase, changes) for name, (_, changes) in VARIANTS.items()}


def jobs(known: dict[str, Config], name: str) -> list[Job]:
    """The phase, which is the arm."""
    return [Job(name, known[name])]


def collect(known: dict[str, Config], out: Path, results: Path, name: str) -> None:
    """Write `results/NAME.csv` (one row per variant and seed), its curves, and the figure."""
    logs = read_arms(out, list(known), "offline")
    rows = offline.rows_of(logs)
    for row in rows:
        row["data_best"] = best_episode(known[row["arm"]].dataset or "")
    publish(results / f"{name}.csv", rows, logs, "offline")
    figure(results / f"{name}.csv")


def figure(path: Path) -> None:
    """The figure of a results file."""
    draw(path, PANELS, "offline")


@cache
def best_episode(dataset: str) -> float:
    """The highest return of an episode of a dataset."""
    return float(datasets.read(dataset).episode_returns()[0].max())


def table(results: Path) -> str:
    """All files in Markdown: returns beside those of the data, and their spread over seeds."""
    lines = [
        "| data | mean of the data | best episode | variant | seeds | updates | return | × the mean "
        "| of the best | spread over seeds |",
        "|---" * 10 + "|",
    ]
    for path in sorted(results.glob("mopo-*.csv")):
        if path.stem.endswith(BESIDE):
            continue
        for arm, rows in read_rows(path).items():
            lines.append(_line(path.stem.removeprefix("mopo-"), arm, rows))
        lines += [
            f"| *D4RL's {name}, published* | | | `mopo` | | | | {times} | {share} | |"
            for name, (times, share) in PUBLISHED.items()
            if path.stem.removeprefix("mopo-").startswith(name)
        ]
    return "\n".join(lines)


def _line(data: str, arm: str, rows: list[dict[str, str]]) -> str:
    final = np.array([float(r["final"]) for r in rows])
    mean, best = float(rows[0]["behaviour"]), float(rows[0]["data_best"])
    cells = [data, f"{mean:.0f}", f"{best:.0f}", f"`{arm}`", str(len(rows)), f"{int(rows[0]['steps']):,}"]
    cells += [with_interval(final, 0), f"{final.mean() / mean:.1f}", f"{final.mean() / best:.2f}"]
    spread = f"{final.std(ddof=1) / final.mean():.0%}" if len(final) > 1 else ""
    return f"| {' | '.join([*cells, spread])} |"


def variants() -> str:
    """What the variants are, in Markdown."""
    return "\n".join(f"- `{name}`: {text}." for name, (text, _) in VARIANTS.items())
