"""What makes a model better, and what it costs: fits of one dataset with one setting changed at a time.

    python -m studies.fits my.hdf5 --name mine            # what is in the file already is not fitted again

Every fit holds out the same episodes, which it is measured on: one step, and rollouts of up to 200 steps. It
writes data/results/fits-NAME.csv, a row for each variant and seed.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mbo2o.dynamics.model import GaussianDynamics
from mbo2o.model.dynamics import Dynamics
from mbo2o.model.fitting import ModelConfig, fit_dynamics
from mbo2o.model.trust import DEPTHS
from mbo2o.run.engine import Engine, EngineConfig
from mbo2o.store import datasets
from studies.arms import write
from studies.methods import with_interval
from studies.presets import changed

RESULTS = Path(__file__).parent.parent / "data" / "results"
UPDATES, LONG = 5_000, 15_000
"""The updates of a fit, which no patience ends earlier, and those of the longer one."""
LARGE = {"dynamics.members": 128, "dynamics.elites": 100, "dynamics.net.layer_norm": True}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("seven members, normalised targets", {}),
    "raw": ("targets in raw units, as MOPO has them", {"dynamics.normalize_targets": False}),
    "norm": ("LayerNorm in the hidden layers", {"dynamics.net.layer_norm": True}),
    "bounds": ("bounds of the log-variance pulled together ten times as much", {"fit.bound_weight": 0.1}),
    "free": ("bounds of the log-variance left alone", {"fit.bound_weight": 0.0}),
    "long": ("three times the updates", {"fit.max_updates": LONG, "fit.min_updates": LONG}),
    "large": ("128 members, 100 of them elites, LayerNorm, a thirtieth of the updates", LARGE),
}
ROWS = 2048
"""Rows of the measured predictions."""


def setting(variant: str, seed: int) -> ModelConfig:
    """The settings of a fit."""
    updates = UPDATES // 30 if variant == "large" else UPDATES
    same = {"fit.max_updates": updates, "fit.min_updates": updates, "seed": seed}
    config: ModelConfig = changed(ModelConfig(), same | VARIANTS[variant][1])
    return config


def measure(data: Any, variant: str, seed: int, mode: str = "compiled") -> dict[str, Any]:
    """Fit once, with the engine in `mode`; the numbers of its row."""
    config = setting(variant, seed)
    seconds: list[float] = []
    engine = Engine(EngineConfig(mode))
    found = fit_dynamics(data, config, prepare=lambda step: _timed(engine.prepare(step), seconds))
    trust = found.trust
    assert trust is not None
    table = {k: np.asarray(x) for k, x in trust.table.items()}
    row: dict[str, Any] = {"variant": variant, "seed": seed, "updates": len(seconds)}
    row |= {"update_ms": 1e3 * float(np.median(seconds)), "predict_us": 1e6 * _price(found)}
    row |= {"holdout_mse": found.net.info["holdout_mse"]}
    row |= {"unexplained": float(table["unexplained"][:-1].mean())}
    row |= {"unexplained_reward": float(table["unexplained"][-1])}
    row |= {"inside50": float(table["inside50"].mean()), "inside90": float(table["inside90"].mean())}
    for depth in DEPTHS:
        deep = depth <= len(trust.error)
        row[f"error_{depth}"] = float(trust.error[depth - 1]) if deep else None
        row[f"inside90_{depth}"] = float(trust.inside90[depth - 1]) if deep else None
    return row | {"trusted": trust.depth()}


def _timed(step: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        since = time.process_time()
        out = step(*args)
        seconds.append(time.process_time() - since)
        return out

    return run


def _price(found: Dynamics) -> float:
    """Seconds of the processor that a prediction by all members takes for each row, the median of nine."""
    net: GaussianDynamics = found.net
    obs, act = torch.zeros(ROWS, found.obs_dim), torch.zeros(ROWS, found.act_dim)
    spent = []
    with torch.no_grad():
        for _ in range(9):
            since = time.process_time()
            net.predict(obs, act)
            spent.append((time.process_time() - since) / ROWS)
    return float(np.median(spent))


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; none if there is no file."""
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def run(
    dataset: str, name: str, seeds: int, variants: list[str], results: Path, mode: str = "compiled"
) -> Path:
    """Fit what the file lacks, and write it after every fit."""
    torch.set_num_threads(1)
    path = results / f"fits-{name}.csv"
    rows = read(path)
    data = datasets.read(dataset)
    for seed in range(seeds):
        for variant in variants:
            if any((r["variant"], int(r["seed"])) == (variant, seed) for r in rows):
                continue
            rows.append(measure(data, variant, seed, mode))
            print(f"{variant} seed {seed}: trusted for {rows[-1]['trusted']} steps", flush=True)
            write(path, sorted(rows, key=lambda r: (list(VARIANTS).index(r["variant"]), int(r["seed"]))))
    return path


def table(results: Path) -> str:
    """The tables of all files in Markdown: means and intervals over seeds, medians of times."""
    parts = []
    for path in sorted(results.glob("fits-*.csv")):
        rows = read(path)
        head = ["variant", "seeds", "ms per update", "µs per prediction"]
        head += ["% of variance left", "of the reward's", "% in 50 %", "% in 90 %"]
        head += [*(f"error at step {x}" for x in SHOWN), "trusted steps"]
        lines = [f"**{path.stem.removeprefix('fits-')}**", "", f"| {' | '.join(head)} |"]
        lines.append("|---" * len(head) + "|")
        for variant in VARIANTS:
            if mine := [r for r in rows if r["variant"] == variant]:
                lines.append(_line(variant, mine))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


SHOWN = (1, 20, 200)
"""The depths of the table."""


def _line(variant: str, rows: list[dict[str, Any]]) -> str:
    def mean(name: str, digits: int, scale: float = 1.0) -> str:
        values = np.array([scale * float(r[name]) for r in rows if r[name] not in ("", None)])
        return with_interval(values, digits) if len(values) else ""

    cells = [f"`{variant}`: {VARIANTS[variant][0]}", str(len(rows))]
    cells += [f"{np.median([float(r[x]) for r in rows]):.2g}" for x in ("update_ms", "predict_us")]
    cells += [mean(x, 1, 100) for x in ("unexplained", "unexplained_reward")]
    cells += [mean(x, 0, 100) for x in ("inside50", "inside90")]
    cells += [mean(f"error_{x}", 2) for x in SHOWN]
    return f"| {' | '.join([*cells, mean('trusted', 0)])} |"


def main() -> None:
    """Run it as a command."""
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    p.add_argument("dataset")
    p.add_argument("--name", required=True)
    p.add_argument("--seeds", type=int, default=5)
    p.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    p.add_argument("--results", type=Path, default=RESULTS)
    given = p.parse_args()
    print(run(given.dataset, given.name, given.seeds, given.variants, given.results))


if __name__ == "__main__":
    main()
