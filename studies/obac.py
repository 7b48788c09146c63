"""Does an offline learner help the online one on the same buffer? OBAC's claims (arXiv 2405.18520), every arm from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from mbo2o.agents.iql import IQLConfig
from mbo2o.agents.obac import OBACConfig
from mbo2o.agents.sac import SACConfig
from mbo2o.envs.disturb import DisturbConfig
from mbo2o.recipes.scratch import ScratchConfig
from mbo2o.report.read import RunLog
from mbo2o.training import Config
from studies.arms import QUICK, Row, draw, online_rows, publish, read_arms, run_arm
from studies.claims import Apart, Claim, Measured, apart, difference
from studies.offline import sized

WEIGHTS = (0.1, 1.0)
"""Of the constraint, beside the base's: the paper's 0.001 moves little at this scale."""
DISTURBED = {
    "action": DisturbConfig(action_noise=0.1),
    "transition": DisturbConfig(transition_noise=0.01),
    "reward": DisturbConfig(reward_noise=1.0),
    "sparse": DisturbConfig(reward_every=50),
}
WATCHER = "iql-watching"

EXPERIMENT, CONFIG = "obac-small", ScratchConfig
SUBJECT = "env"
"""The setting that `mbo2o study` sets to what is studied."""
SMALLEST = [*QUICK, "recipe.batch=16", "recipe.start=20"]


def arms(base: Config) -> dict[str, Config]:
    """Arms by name. `sac` has OBAC's nets, and an IQL that learns from its batches and never acts; `iql` acts for itself.

    `redq` makes as many updates in a quarter of the steps. `obac-W` and `fixed-W` have another weight; `X-NOISE` is SAC, or
    OBAC at the first of WEIGHTS, on a disturbed task.
    """
    recipe: ScratchConfig = base.recipe
    obac: OBACConfig = recipe.agent
    sac = SACConfig(**{f.name: getattr(obac, f.name) for f in fields(SACConfig)})
    rates = {"critic_lr": obac.critic_lr, "value_lr": obac.critic_lr, "actor_lr": obac.actor_lr}
    iql = replace(sized("iql", obac), critics=obac.critics, expectile=obac.expectile, **rates)
    iql.normalize = False  # without a dataset there is no scale to take
    agents: dict[str, OBACConfig | SACConfig | IQLConfig] = {
        "sac": sac,
        "iql": iql,
        "obac": obac,
        "fixed": replace(obac, constraint="fixed"),
        "batch-gate": replace(obac, gate="batch"),
    }
    redq = replace(
        sized("redq", obac), critics=5, policy_delay=4, critic_lr=obac.critic_lr, actor_lr=obac.actor_lr
    )
    for w in WEIGHTS:
        agents |= {f"obac-{w:g}": replace(obac, constraint_weight=w)}
        agents |= {f"fixed-{w:g}": replace(obac, constraint_weight=w, constraint="fixed")}
    recipes = {name: replace(recipe, agent=agent) for name, agent in agents.items()}
    recipes["sac"].watcher = iql
    recipes["redq"] = replace(
        recipe, agent=replace(redq, alpha_lr=obac.alpha_lr), utd=4, online_steps=recipe.online_steps // 4
    )
    out = {name: replace(base, recipe=x) for name, x in recipes.items()}
    for noise, disturb in DISTURBED.items():
        run = replace(base.run, disturb=disturb)
        for name in ("sac", f"obac-{WEIGHTS[0]:g}"):
            out[f"{name.split('-')[0]}-{noise}"] = replace(
                base, recipe=replace(recipe, agent=agents[name]), run=run
            )
    return out


PANELS = {
    "Three agents": ["sac", WATCHER, "iql"],
    "Who holds the policy": ["sac", "obac", *(f"{x}-{w:g}" for w in WEIGHTS for x in ("obac", "fixed"))],
}


def run(base: Config, out: Path, chosen: Sequence[str]) -> None:
    """The chosen arms under `out`; what is finished is not run again."""
    for name in chosen:
        run_arm(arms(base)[name], out / name)


def collect(base: Config, out: Path, results: Path, name: str) -> None:
    """Write `results/NAME.csv` (one row per arm and seed), its curves, and the figure."""
    logs = read_arms(out, list(arms(base)))
    if "sac" in logs:
        logs[WATCHER] = _of_watcher(logs["sac"])
    wins = {WATCHER: _wins(logs["sac"], logs[WATCHER])} if "sac" in logs else {}
    measured = online_rows(logs)
    publish(
        results / f"{name}.csv",
        [row for arm, log in logs.items() for row in _rows(measured[arm], log, wins.get(arm))],
        logs,
    )
    figure(results / f"{name}.csv")


def figure(path: Path) -> None:
    """The figure of a results file."""
    draw(path, PANELS)


def _of_watcher(log: RunLog) -> RunLog:
    """The same run, seen by who watched it: its evaluations in place of the acting agent's."""
    return RunLog(log.config, [{**x, "kind": "eval"} for x in log.lines if x["kind"] == "eval-watcher"])


def _wins(sac: RunLog, watcher: RunLog) -> np.ndarray:
    """Share of each seed's evaluations at which the watcher is ahead by more than their pooled standard error (O1)."""
    episodes = sac.config["run"]["eval_episodes"]
    (a, a_std), (b, b_std) = (
        [log.series("eval", x, "online").values for x in ("return", "return_std")] for log in (sac, watcher)
    )
    return (b - a > np.sqrt((a_std**2 + b_std**2) / episodes)).mean(0)


def _rows(rows: list[Row], log: RunLog, wins: np.ndarray | None) -> list[Row]:
    q, true = (log.series("eval", x, "online").values for x in ("q", "mc_return"))
    late = len(q) // 2
    bias = ((q - true) / np.maximum(np.abs(true), 10))[late:].mean(0)  # REDQ's, over the second half
    ahead = log.series("train", "ahead", "online").values
    for k, row in enumerate(rows):
        row |= {"bias": bias[k], "wins": float("nan") if wins is None else wins[k]}
        row |= {"ahead": ahead[:, k].mean() if len(ahead) else float("nan")}
        row |= {"ahead_std": ahead[:, k].std() if len(ahead) else float("nan")}
    return rows


def _gain(noise: str) -> Claim:
    def value(m: Measured) -> np.ndarray:
        quiet = m[f"obac-{WEIGHTS[0]:g}"]["auc"] - m["sac"]["auc"]
        return m[f"obac-{noise}"]["auc"] - m[f"sac-{noise}"]["auc"] - quiet

    return Claim("O6", f"gain over SAC, AUC: {noise} disturbed > not", value)


def _best_fixed_hurt(m: Measured) -> np.ndarray:
    """Adaptive minus fixed at the weight where fixed is worst."""
    worst = min(WEIGHTS, key=lambda w: m[f"fixed-{w:g}"]["auc"].mean())
    return m[f"obac-{worst:g}"]["auc"] - m[f"fixed-{worst:g}"]["auc"]


CLAIMS = [
    Claim("O1", "watching IQL ahead at more than 0.15 of evaluations", lambda m: m[WATCHER]["wins"] - 0.15),
    Claim("O1", "and at less than 0.95", lambda m: 0.95 - m[WATCHER]["wins"], sanity=True),
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
    *(_gain(noise) for noise in DISTURBED),
]
