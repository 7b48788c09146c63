"""Is offline data needed online? WSRL's claims (arXiv 2412.07762), all arms from the same checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from mbo2o.recipes.wsrl import WSRLConfig
from mbo2o.report.compare import CRITICS, Curve, compare_critics, save
from mbo2o.report.read import RunLog
from mbo2o.training import Config
from studies import methods
from studies.arms import (
    QUICK_Q,
    Job,
    Row,
    draw,
    offline_alone,
    offline_job,
    online_rows,
    publish,
    read_arms,
    read_rows,
)
from studies.claims import Claim, Measured, difference
from studies.presets import changed, drawing, warmup

SUBJECT = "dataset"
EXPERIMENT, CONFIG = "wsrl-small", WSRLConfig
LARGER = {"mid": "experiment=wsrl-mid", "paper": "switch=wsrl"}
SMALLEST = QUICK_Q


RETAINED = (0, 5, 10, 25, 50)
"""Per cent of each batch that stay offline."""


def arms(base: Config) -> dict[str, Config]:
    """Online variants by name; `warm` is WSRL, the base, and `cold` the same without its warm-up.

    `seeded` has as many rows of the dataset in its buffer instead of a warm-up. `mix-X` and `kept-mix` keep
    the dataset. `kept` and `kept-mix` go on with the offline agent, at one update per step. So do
    `iql-keep-X` and `calql-keep-X`, which keep X per cent of each batch offline (the paper's figure on
    retention).
    """
    variants = _variants(base)
    others = methods.arms(base)
    steps = getattr(base.recipe, warmup(base.recipe))
    for agent in ("iql", "calql"):
        arm = others[agent]
        plain = {"recipe.keep": True, "recipe.online": None, "recipe.utd": 1}
        plain |= {f"recipe.{warmup(arm.recipe)}": steps}
        for share in RETAINED:
            source = drawing("mix", offline_share=share / 100) if share else drawing("online")
            variants[f"{agent}-keep-{share}"] = changed(arm, plain | source)
    return variants


def _variants(warm: Config) -> dict[str, Config]:
    """Arms that start from the base's own offline phase."""
    steps = f"recipe.{warmup(warm.recipe)}"
    cold = changed(warm, {steps: 0})
    kept = changed(warm, {"recipe.online": None, "recipe.keep": True, "recipe.utd": 1})
    return {
        "warm": warm,
        "cold": cold,
        "seeded": changed(cold, drawing("distilled", share=0.0, rows=warm.recipe.warmup)),
        "mix-5": changed(warm, drawing("mix", offline_share=0.05)),
        "mix-50": changed(warm, drawing("mix", offline_share=0.5)),
        "kept": kept,
        "kept-mix": changed(kept, drawing("mix", offline_share=0.5)),
        "policy": changed(warm, {"recipe.inherit": "policy"}),
        "critics": changed(warm, {"recipe.inherit": "critics"}),
        "none": changed(warm, {"recipe.inherit": "none"}),
        "utd-1": changed(warm, {"recipe.utd": 1, "recipe.online.policy_delay": 1}),
    }


DEFAULT = (
    *("warm", "cold", "seeded", "mix-5", "mix-50", "kept", "kept-mix"),
    *("policy", "critics", "none", "utd-1"),
)
"""What runs without --arms: those that start from one offline phase."""
PANELS = {
    "Warm-up": ["warm", "cold", "seeded"],
    "Offline data": ["warm", "mix-5", "mix-50", "kept", "kept-mix"],
    "What crosses the switch": ["warm", "policy", "critics", "none"],
}
RETENTION = {
    "IQL, share kept": [f"iql-keep-{x}" for x in RETAINED],
    "Cal-QL, share kept": [f"calql-keep-{x}" for x in RETAINED],
}
"""A figure of its own, NAME-retention."""
WATCHED = ["warm", "cold", "seeded", "mix-5", "mix-50", "kept"]
"""Arms whose critics are looked at."""


def jobs(known: dict[str, Config], name: str) -> list[Job]:
    """The arm, after the offline phase that it needs."""
    agent, retained, _ = name.partition("-keep-")
    offline = f"offline-{agent}" if retained else "offline"
    phase = replace(known[name], recipe=offline_alone(known[name].recipe))
    return [offline_job(offline, phase), Job(name, known[name], offline)]


def collect(known: dict[str, Config], out: Path, results: Path, name: str) -> None:
    """Write `results/NAME.csv` (one row per arm and seed), its curves, and the figure."""
    logs = read_arms(out, list(known))
    measured = online_rows(logs)
    rows = [row for arm, log in logs.items() for row in _wsrl_rows(measured[arm], log)]
    publish(results / f"{name}.csv", rows, logs)
    figure(results / f"{name}.csv")
    critics = {x: {arm: _watched(logs[arm], x) for arm in WATCHED if arm in logs} for x in CRITICS}
    if any(critics.values()):
        subject = f"{rows[0]['env']} · {name.removeprefix('wsrl-')} · study wsrl"
        save(compare_critics(critics, subject), results / f"{name}-critics.png")


def figure(path: Path) -> None:
    """The figures of a results file: its arms, and the shares of data that IQL and Cal-QL keep."""
    found = read_rows(path)
    if any(arm in found for names in PANELS.values() for arm in names):
        draw(path, PANELS)
    if any(arm in found for names in RETENTION.values() for arm in names):
        draw(path, RETENTION, suffix="-retention")


def _watched(log: RunLog, metric: str) -> Curve:
    """A metric of a run's critics over its online phase; a loss is divided by the number of critics."""
    series = log.series("probe" if metric == "td_error" else "train", metric, "online")
    critics = log.config["recipe"]["offline"]["critics"] if metric == "critic_loss" else 1
    return Curve(series.step.astype(float), series.values / critics, frozen=log.frozen_steps)


def _wsrl_rows(rows: list[Row], log: RunLog) -> list[Row]:
    curve, td = log.series("eval", "return", "online"), log.series("probe", "td_error", "online").values
    q, true = log.series("eval", "q", "online").values, log.series("eval", "mc_return", "online").values
    batch_q, loss = (log.series("train", x, "online").values for x in ("q", "critic_loss"))
    critics = log.config["recipe"]["offline"]["critics"]
    for k, row in enumerate(rows):
        # the first turn at which nine tenths of the return at the switch are there for good
        below = np.flatnonzero(curve.values[:, k] < 0.9 * curve.values[0, k])
        back = 0 if len(below) == 0 else below[-1] + 1
        row |= {
            "t90": float(curve.step[back])
            if back < len(curve.step)
            else float(2 * curve.step[-1]),  # never: twice the budget
            "td_error": td[-1, k],  # on the dataset's rows
            "q_low": float((q[:, k] - true[:, k]).min()),  # how far values fall below what then comes of them
            "batch_q_low": float(batch_q[:, k].min()),  # in online batches, as td_online
            "td_online": float(loss[-1, k]) / critics,
        }
    return rows


def _td_decades(m: Measured, where: str = "td_error") -> np.ndarray:
    return np.log10(m["warm"][where] / m["mix-5"][where])


CLAIMS = [
    Claim("W1", "drop: cold > warm", difference("drop", "cold", "warm")),
    Claim("W1", "steps until 90 % of J0 are back: cold > warm", difference("t90", "cold", "warm")),
    Claim("W2", "Q - return at its lowest: warm > cold", difference("q_low", "warm", "cold")),
    Claim("W2", "Q of online batches at its lowest: warm > cold", difference("batch_q_low", "warm", "cold")),
    Claim("W3", "log10 of TD error on the dataset: none kept > 5 % kept", _td_decades),
    Claim(
        "W3",
        "TD error of online batches: none kept and 5 % kept differ by less than a factor of 2",
        lambda m: np.log10(2) - abs(_td_decades(m, "td_online")),
    ),
    Claim("W4", "final: warm > CQL with half offline", difference("final", "warm", "kept-mix")),
    Claim("W4", "final: warm > SAC with half offline", difference("final", "warm", "mix-50")),
    Claim("W5", "final: SAC > CQL, nothing kept", difference("final", "warm", "kept")),
    Claim("W6", "AUC: all > policy alone", difference("auc", "warm", "policy")),
    Claim("W6", "AUC: all > critics alone", difference("auc", "warm", "critics")),
    Claim("W6", "AUC: policy alone > none", difference("auc", "policy", "none")),
    Claim("W6", "AUC: critics alone > none", difference("auc", "critics", "none")),
    Claim("W7", "AUC: more updates per step > one", difference("auc", "warm", "utd-1")),
    Claim("W8", "AUC: warm > seeded with offline rows", difference("auc", "warm", "seeded")),
]
