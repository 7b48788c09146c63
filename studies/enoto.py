"""What makes the switch smooth? ENOTO's claims (arXiv 2306.06871, figures 1 to 4)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mbo2o.ensemble.explore import ExploreConfig
from mbo2o.ensemble.targets import SunriseConfig
from mbo2o.recipes.enoto import ENOTOConfig
from mbo2o.report.read import RunLog
from mbo2o.report.statistics import ks_two_sample
from mbo2o.store import datasets
from mbo2o.training import Config, restore
from studies.arms import (
    QUICK_Q,
    Job,
    Row,
    draw,
    offline_job,
    online_rows,
    publish,
    read_arms,
    read_rows,
    wobble,
    write,
)
from studies.claims import Apart, Claim, apart, difference
from studies.presets import changed, drawing

SUBJECT = "dataset"
EXPERIMENT, CONFIG = "qensemble-small", ENOTOConfig
LARGER = {"mid": "experiment=enoto-mid", "paper": "switch=cql-enoto"}
SMALLEST = [*QUICK_Q, "recipe.critics=3"]
RESTORES = True
"""It asks the networks of all seeds at once, beside the logs."""


def arms(base: Config) -> dict[str, Config]:
    """Online variants by name; with CQL offline, `freed` is CQL → SAC and `freed-n` CQL-N → SAC-N.

    The base is ENOTO's preset at a small size. `sunrise` is ENOTO itself; the others are without parts of it.
    Arms with 2 critics start from an offline phase with 2, the others from one with N.
    """
    enoto: ENOTOConfig = base.recipe
    n = replace(enoto, target="min_q", explore=ExploreConfig(), sunrise=SunriseConfig())
    two = replace(n, critics=2)
    wmp = replace(n, target="weighted_min_pair")
    ucb = replace(enoto.explore, name="ucb")
    recipes = {
        "kept": replace(two, keep=True),
        "kept-data": replace(two, keep=True),  # and its data, below
        "freed": two,
        "kept-n": replace(n, keep=True),
        "freed-n": n,
        "wmp": wmp,
        "rmp": replace(n, target="random_min_pair"),
        "rem": replace(n, target="rem"),
        "mean": replace(n, target="mean_q"),
        "ucb": replace(wmp, explore=ucb),
        "ucb-10": replace(wmp, explore=replace(ucb, ucb_coef=10.0)),
        "oac": replace(wmp, explore=replace(enoto.explore, name="oac")),
        "bootstrapped": replace(wmp, explore=replace(enoto.explore, name="bootstrapped"), mask=0.5),
        "weight": replace(wmp, sunrise=enoto.sunrise),
        "weight-scalar": replace(wmp, sunrise=SunriseConfig("scalar_batch")),
        "sunrise": replace(wmp, explore=ucb, sunrise=enoto.sunrise),
    }
    found = {name: replace(base, recipe=recipe) for name, recipe in recipes.items()}
    return found | {"kept-data": changed(found["kept"], drawing("append"))}


ROWS = 5000
"""How many rows of the dataset the distribution of distances is taken over."""
PANELS = {
    "Pairs (the paper's figures 1, 2)": ["kept", "kept-data", "freed", "freed-n"],
    "Targets on N critics (its figure 3)": ["freed-n", "wmp", "rmp", "rem", "mean"],
    "Explorations on the weighted pair (its figure 4)": ["wmp", "oac", "bootstrapped", "sunrise"],
}
UNSHOWN = ("kept-n", "ucb", "ucb-10", "weight", "weight-scalar")
"""Arms without a panel."""


def jobs(known: dict[str, Config], name: str) -> list[Job]:
    """The arm, after the offline phase that it needs."""
    arm = known[name]
    offline = f"offline-{arm.recipe.critics}"
    phase = changed(known["freed"], {"recipe.critics": arm.recipe.critics})
    return [offline_job(offline, phase), Job(name, arm, offline)]


def collect(known: dict[str, Config], out: Path, results: Path, name: str) -> None:
    """Write `results/NAME.csv` (one row per arm and seed), its curves, and the figure."""
    others = sorted(
        p.name for p in out.iterdir() if p.name not in known and not p.name.startswith("offline-")
    )
    logs = read_arms(out, [*known, *others])  # others: runs of other methods, put here to be compared
    random = {"random_distance": _random_distance(datasets.read(str(known["freed"].dataset)).act)}
    spread = _distance_gaps(out) if {"kept", "freed-n"} <= set(logs) else {}
    measured = online_rows(logs)
    rows = [row | random for arm, log in logs.items() for row in _enoto_rows(measured[arm], log)]
    for row in rows:  # A7: how differently they act from the data, as distributions
        row["ks"], row["ks_p"] = spread.get((row["arm"], row["seed"]), (float("nan"), float("nan")))
    publish(results / f"{name}.csv", rows, logs)
    write(results / f"{name}-q.csv", _values_kept(logs))
    if histograms := _histograms(out, [x for x in PAIR if x in logs]):
        write(results / f"{name}-distances.csv", histograms)
    figure(results / f"{name}.csv")


def figure(path: Path) -> None:
    """The figure of a results file; runs of other methods stand in a panel of their own."""
    shown = {arm for names in PANELS.values() for arm in names}
    others = [arm for arm in read_rows(path) if arm not in shown and arm not in UNSHOWN]
    draw(path, PANELS | ({"Beside other methods": ["kept", "kept-n", "sunrise", *others]} if others else {}))


PAIR = ("kept", "freed-n")
"""Arms whose distances to the data are compared as distributions."""
BINS = 60


def _values_kept(logs: dict[str, RunLog]) -> list[Row]:
    """Mean Q over fixed rows of the dataset, by arm, seed and step of the online phase."""
    return [
        {"arm": arm, "seed": k, "step": int(step), "q": float(value)}
        for arm, log in logs.items()
        for series in [log.series("probe", "q", "online")]
        for step, values in zip(series.step, series.values, strict=True)
        for k, value in enumerate(values)
    ]


def _histograms(out: Path, names: list[str]) -> list[Row]:
    """Shares of rows by distance to the data's action, over all seeds; random actions are among the arms."""
    found = {name: _distances(out / name).ravel() for name in names}
    if not found:
        return []
    run, _ = restore(out / names[0])
    act = run.dataset.act[torch.linspace(0, len(run.dataset) - 1, ROWS).long()]
    chance = torch.rand(act.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found["random"] = (chance - act).norm(dim=-1).numpy()
    edges = np.linspace(0, max(float(x.max()) for x in found.values()), BINS + 1)
    return [
        {"arm": name, "from": low, "to": high, "share": share}
        for name, x in found.items()
        for low, high, share in zip(edges, edges[1:], np.histogram(x, edges)[0] / len(x), strict=False)
    ]


def _distance_gaps(out: Path) -> dict[tuple[str, int], tuple[float, float]]:
    """Gap and p-value (KS), by seed, between the final distances to the data of `freed-n` and `kept`."""
    ours, theirs = _distances(out / "freed-n"), _distances(out / "kept")
    return {("freed-n", k): ks_two_sample(a, b) for k, (a, b) in enumerate(zip(ours, theirs, strict=True))}


def _distances(directory: Path) -> np.ndarray:
    """‖π(s) - a‖ over ROWS rows of the dataset, of a run's policies in the end: `(S, ROWS)`."""
    run, recipe = restore(directory)
    rows = run.dataset.index[torch.linspace(0, len(run.dataset) - 1, ROWS).long()]
    b = run.dataset.rows(rows.expand(*run.spec.seeds, -1))
    return (recipe.agent.act(b.obs) - b.act).norm(dim=-1).numpy()


def _random_distance(act: Tensor) -> float:
    """Median over rows of ‖a - a'‖ with a' uniform: the distance of random actions (see `Finetune.probe`)."""
    chance = torch.rand(act.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return float((chance - act).norm(dim=-1).median())


def _enoto_rows(rows: list[Row], log: RunLog) -> list[Row]:
    ret = log.series("eval", "return", "online").values
    # Q is measured on rows of the dataset
    q, distance = log.series("probe", "q", "online").values, log.series("probe", "distance", "online").values
    end, wobbles = max(1, round(0.1 * len(ret))), wobble(log)
    believed, true = (log.series("eval", x, "online").values[-end:].mean(0) for x in ("q", "mc_return"))
    for k, row in enumerate(rows):
        row |= {
            "wobble": wobbles[k],
            "q_range": np.ptp(q[:, k]) / max(abs(q[0, k]), 1e-8) if len(q) else np.nan,
            "distance": distance[-1, k] if len(distance) else np.nan,
            "q_end": believed[k],
            "mc_end": true[k],
        }
    return rows


def _auc_gain(arm: dict[str, np.ndarray]) -> np.ndarray:
    """AUC minus J0: what compares arms that start from different checkpoints."""
    return arm["auc"] - arm["j0"]


def _excess(arm: dict[str, np.ndarray]) -> np.ndarray:
    """The critics' value minus the discounted return that followed."""
    return arm["q_end"] - arm["mc_end"]


CLAIMS = [
    Claim(
        "A1", "kept: drop below a tenth of J0", lambda m: 0.1 * np.abs(m["kept"]["j0"]) - m["kept"]["drop"]
    ),
    Claim("A1", "kept gains: AUC - J0", lambda m: m["kept"]["auc"] - m["kept"]["j0"]),
    Claim("A2", "drop: freed > kept", difference("drop", "freed", "kept")),
    Claim("A2", "wobble: freed > kept", difference("wobble", "freed", "kept")),
    Claim("A3", "drop: freed > freed-n", apart("drop", "freed", "freed-n")),
    Claim("A4", "J0: N critics > 2", apart("j0", "freed-n", "freed")),
    Claim("A5", "final: freed-n > kept", apart("final", "freed-n", "kept")),
    Claim("A5", "final: freed-n > freed", apart("final", "freed-n", "freed")),
    Claim("A5", "AUC: freed-n > kept", apart("auc", "freed-n", "kept")),
    Claim("A5", "AUC: freed-n > freed", apart("auc", "freed-n", "freed")),
    Claim(
        "A5", "gain, AUC - J0: freed-n > kept", lambda m: Apart(_auc_gain(m["freed-n"]), _auc_gain(m["kept"]))
    ),
    Claim(
        "A5",
        "gain, AUC - J0: freed-n > freed",
        lambda m: Apart(_auc_gain(m["freed-n"]), _auc_gain(m["freed"])),
    ),
    Claim("A6", "swing of Q: freed > freed-n", apart("q_range", "freed", "freed-n")),
    Claim("A7", "distance to the data: freed-n > kept", apart("distance", "freed-n", "kept")),
    Claim(
        "A7",
        "distances of freed-n and kept have different distributions (KS, p < 0.01)",
        lambda m: 0.01 - m["freed-n"]["ks_p"],
        sanity=True,
    ),
    Claim(
        "A7",
        "distance to the data: random > freed-n",
        lambda m: m["freed-n"]["random_distance"] - m["freed-n"]["distance"],
        sanity=True,
    ),
    Claim("B1", "AUC: wmp > min", difference("auc", "wmp", "freed-n")),
    Claim("B1", "AUC: rmp > min", difference("auc", "rmp", "freed-n")),
    Claim("B1", "final: wmp > min", difference("final", "wmp", "freed-n")),
    Claim("B1", "final: rmp > min", difference("final", "rmp", "freed-n")),
    Claim("B2", "AUC: min > mean", difference("auc", "freed-n", "mean")),
    Claim("B2", "AUC: min > rem", difference("auc", "freed-n", "rem")),
    Claim("B2", "over-estimation: mean > min", lambda m: _excess(m["mean"]) - _excess(m["freed-n"])),
    Claim("B3", "wobble: rmp > wmp", difference("wobble", "rmp", "wmp")),
    Claim("C1", "AUC: sunrise > oac", difference("auc", "sunrise", "oac")),
    Claim("C1", "AUC: sunrise > bootstrapped", difference("auc", "sunrise", "bootstrapped")),
    Claim("C2", "AUC: sunrise > wmp", difference("auc", "sunrise", "wmp")),
    Claim("C2", "AUC: ucb-10 > wmp", difference("auc", "ucb-10", "wmp")),
    Claim("C2", "AUC: weight > wmp", difference("auc", "weight", "wmp")),
    Claim(
        "C2", "AUC: weight-scalar > wmp (Adam should cancel it)", difference("auc", "weight-scalar", "wmp")
    ),
    Claim("E1", "AUC: sunrise > iql", apart("auc", "sunrise", "iql")),
    Claim("E1", "final: sunrise > iql", apart("final", "sunrise", "iql")),
    Claim("E2", "J0: kept-n > kept", apart("j0", "kept-n", "kept")),
    Claim("E2", "AUC: kept-n > kept", apart("auc", "kept-n", "kept")),
    Claim("E1, F1", "AUC: sunrise > kept", apart("auc", "sunrise", "kept")),
    Claim("E1, F1", "final: sunrise > kept", apart("final", "sunrise", "kept")),
]
