"""Does an offline learner help the online one on the same buffer? OBAC's claims (arXiv 2405.18520)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mbo2o.agents.obac import OBACConfig
from mbo2o.envs.disturb import DisturbConfig
from mbo2o.recipes.scratch import ScratchConfig
from mbo2o.report.read import RunLog
from mbo2o.training import Config
from studies.arms import QUICK, Job, Row, draw, online_rows, publish, read_arms
from studies.claims import Apart, Claim, Measured, apart, difference
from studies.presets import RATES, at_size, changed, preset, resized

WEIGHTS = (0.1, 1.0)
"""Weights of the constraint beside the base's: the paper's 0.001 moves little at this scale."""
DISTURBED = {
    "action": DisturbConfig(action_noise=0.1),
    "transition": DisturbConfig(transition_noise=0.01),
    "reward": DisturbConfig(reward_noise=1.0),
    "sparse": DisturbConfig(reward_every=50),
}
WATCHER = "iql-watching"
DERIVED = {WATCHER: "sac"}
"""Rows of the table that come from the run of another arm."""

SUBJECT = "env"
EXPERIMENT, CONFIG = "obac-small", ScratchConfig
LARGER = {"mid": "experiment=obac-mid", "paper": "experiment=obac-paper"}
SMALLEST = [*QUICK, "recipe.batch=16", "recipe.random_steps=20"]


def arms(base: Config) -> dict[str, Config]:
    """Arms by name. SAC and REDQ are their presets with OBAC's nets and rates.

    In `sac` an IQL that never acts learns from SAC's batches; in `iql` it acts for itself. `redq` makes as
    many updates in a quarter of the steps. `obac-W` and `fixed-W` have another weight. `X-NOISE` is SAC, or
    OBAC at the first of WEIGHTS, on a disturbed task.
    """
    obac: OBACConfig = base.recipe.agent
    rates = (*RATES, "actor_lr")
    iql = _watching_iql(obac)
    sac = at_size("experiment=sac-paper", base, obac, rates=rates)
    redq = at_size("experiment=redq-paper", base, obac, rates=rates)
    found = {
        "sac": changed(sac, {"recipe.watcher": iql}),
        "iql": changed(base, {"recipe.agent": iql}),
        "obac": base,
        "fixed": changed(base, {"recipe.agent.constraint": "fixed"}),
        "batch-gate": changed(base, {"recipe.agent.gate": "batch"}),
    }
    for w in WEIGHTS:
        weighted = changed(base, {"recipe.agent.constraint_weight": w})
        found[f"obac-{w:g}"] = weighted
        found[f"fixed-{w:g}"] = changed(weighted, {"recipe.agent.constraint": "fixed"})
    # half the paper's critics and a fifth of its updates per step; the preset's entropy target is Hopper's
    few = {"critics": 5, "policy_delay": 4, "target_entropy": None}
    quarter = {"recipe.utd": 4, "recipe.online_steps": base.recipe.online_steps // 4}
    found["redq"] = changed(redq, {f"recipe.agent.{x}": v for x, v in few.items()} | quarter)
    for noise, disturb in DISTURBED.items():
        found[f"sac-{noise}"] = changed(sac, {"run.disturb": disturb})
        found[f"obac-{noise}"] = changed(found[f"obac-{WEIGHTS[0]:g}"], {"run.disturb": disturb})
    return found


def _watching_iql(obac: OBACConfig) -> Any:
    """IQL's preset with OBAC's nets and rates, and with the expectile of OBAC's offline learner.

    Without a dataset, observations have no known scale, and a schedule has no offline phase to end with.
    """
    iql = resized(preset("switch=iql").recipe.offline, obac, rates=(*RATES, "actor_lr"))
    return replace(
        iql, critics=obac.critics, expectile=obac.expectile, actor_decay_steps=None, normalize=False
    )


PANELS = {
    "Three agents": ["sac", WATCHER, "iql"],
    "Who holds the policy": ["sac", "obac", *(f"{x}-{w:g}" for w in WEIGHTS for x in ("obac", "fixed"))],
}


def jobs(known: dict[str, Config], name: str) -> list[Job]:
    """The arm, which starts from nothing."""
    return [Job(name, known[name])]


def collect(known: dict[str, Config], out: Path, results: Path, name: str) -> None:
    """Write `results/NAME.csv` (one row per arm and seed), its curves, and the figure."""
    logs = read_arms(out, list(known))
    if "sac" in logs:
        logs[WATCHER] = _of_watcher(logs["sac"])
    wins = {WATCHER: _wins(logs["sac"], logs[WATCHER])} if "sac" in logs else {}
    measured = online_rows(logs)
    publish(
        results / f"{name}.csv",
        [row for arm, log in logs.items() for row in _obac_rows(measured[arm], log, wins.get(arm))],
        logs,
    )
    figure(results / f"{name}.csv")


def figure(path: Path) -> None:
    """The figure of a results file."""
    draw(path, PANELS)


def _of_watcher(log: RunLog) -> RunLog:
    """The run with the evaluations of the watching agent in place of the acting agent's."""
    return RunLog(log.config, [{**x, "kind": "eval"} for x in log.lines if x["kind"] == "eval-watcher"])


def _wins(sac: RunLog, watcher: RunLog) -> np.ndarray:
    """Share of evaluations, by seed, at which the watcher leads by over one pooled standard error (O1)."""
    episodes = sac.config["run"]["eval_episodes"]
    (a, a_std), (b, b_std) = (
        [log.series("eval", x, "online").values for x in ("return", "return_std")] for log in (sac, watcher)
    )
    return (b - a > np.sqrt((a_std**2 + b_std**2) / episodes)).mean(0)


def _obac_rows(rows: list[Row], log: RunLog, wins: np.ndarray | None) -> list[Row]:
    q, true = (log.series("eval", x, "online").values for x in ("q", "mc_return"))
    late = len(q) // 2
    bias = ((q - true) / np.maximum(np.abs(true), 10))[late:].mean(0)  # REDQ's, over the second half
    ahead = log.series("train", "ahead", "online").values
    for k, row in enumerate(rows):
        row |= {"bias": bias[k], "wins": float("nan") if wins is None else wins[k]}
        row |= {"ahead": ahead[:, k].mean() if len(ahead) else float("nan")}
        row |= {"ahead_std": ahead[:, k].std() if len(ahead) else float("nan")}
    return rows


def _gain_under(noise: str) -> Claim:
    def value(m: Measured) -> np.ndarray:
        quiet = m[f"obac-{WEIGHTS[0]:g}"]["auc"] - m["sac"]["auc"]
        return m[f"obac-{noise}"]["auc"] - m[f"sac-{noise}"]["auc"] - quiet

    return Claim("O6", f"gain over SAC, AUC: {noise} disturbed > not", value)


def _best_fixed_hurt(m: Measured) -> np.ndarray:
    """Adaptive minus fixed, at the weight where fixed has the lowest AUC."""
    worst = min(WEIGHTS, key=lambda w: m[f"fixed-{w:g}"]["auc"].mean())
    return m[f"obac-{worst:g}"]["auc"] - m[f"fixed-{worst:g}"]["auc"]


CLAIMS = [
    Claim("O1", "watching IQL ahead at more than 0.15 of evaluations", lambda m: m[WATCHER]["wins"] - 0.15),
    Claim(
        "O1",
        "watching IQL ahead at less than 0.95 of evaluations",
        lambda m: 0.95 - m[WATCHER]["wins"],
        sanity=True,
    ),
    Claim("O1", "AUC: watching IQL > SAC", difference("auc", WATCHER, "sac")),
    Claim(
        "O2", "bias of Q: SAC - 0.1 > acting IQL", lambda m: Apart(m["sac"]["bias"] - 0.1, m["iql"]["bias"])
    ),
    Claim("O2", "AUC: watching IQL > acting IQL", apart("auc", WATCHER, "iql")),
    Claim(
        "O3",
        "share of states where offline is ahead: spread over time > 0.05",
        lambda m: m["obac"]["ahead_std"] - 0.05,
        sanity=True,
    ),
    Claim("O4", "AUC: OBAC > SAC", difference("auc", "obac", "sac")),
    Claim("O4", "final: OBAC > SAC", difference("final", "obac", "sac")),
    *(Claim("O4", f"AUC: OBAC at {w:g} > SAC", difference("auc", f"obac-{w:g}", "sac")) for w in WEIGHTS),
    *(
        Claim("O5", f"AUC: adaptive > fixed at {w:g}", difference("auc", f"obac-{w:g}", f"fixed-{w:g}"))
        for w in WEIGHTS
    ),
    Claim("O5", "AUC: adaptive > fixed, where fixed is worst", _best_fixed_hurt),
    *(_gain_under(noise) for noise in DISTURBED),
]
