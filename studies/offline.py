"""How far does each offline learner get on a dataset? Same nets, same updates, same evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mbo2o.recipes.enoto import ENOTOConfig
from mbo2o.report.read import RunLog
from mbo2o.report.statistics import late_evaluations
from mbo2o.training import Config
from studies.arms import QUICK_Q, Job, Row, draw, offline_alone, offline_job, publish, read_arms
from studies.presets import preset, published, resized

PANELS = {
    "Held to the data's actions": ["bc", "td3bc", "iql", "awac", "lapo"],
    "Pessimistic about others": ["cql", "calql", "sacn", "edac"],
}
LEARNERS = tuple(x for names in PANELS.values() for x in names)

SUBJECT = "dataset"
LARGER = {"mid": "experiment=enoto-mid", "paper": "switch=cql-enoto"}
EXPERIMENT, CONFIG = "qensemble-small", ENOTOConfig  # whose offline agent gives nets and rates
SMALLEST = QUICK_Q


def arms(base: Config) -> dict[str, Config]:
    """The offline phase of each learner: the agent of its preset with the nets and rates of the base's agent.

    CQL is the base's agent. IQL has no schedule: one over a million updates hardly moves within the budget of
    a study.
    """
    like = base.recipe.offline
    agents = {x: resized(preset(f"switch={x}").recipe.offline, like) for x in LEARNERS}
    agents["cql"] = like
    agents["iql"] = replace(agents["iql"], actor_decay_steps=None)
    return {
        name: replace(base, recipe=replace(offline_alone(base.recipe), offline=agent))
        for name, agent in agents.items()
    }


def papers(base: Config) -> dict[str, Config]:
    """The offline phase of each learner as its preset has it: the papers' nets, rates and budgets."""
    found = {x: published(f"switch={x}", base) for x in LEARNERS}
    return {name: replace(x, recipe=offline_alone(x.recipe)) for name, x in found.items()}


def jobs(known: dict[str, Config], name: str) -> list[Job]:
    """The learner's offline phase, which is the arm."""
    return [offline_job(name, known[name])]


def collect(known: dict[str, Config], out: Path, results: Path, name: str) -> None:
    """Write `results/NAME.csv` (one row per agent and seed), its curves, and the figure."""
    logs = read_arms(out, list(known), "offline")
    publish(results / f"{name}.csv", rows_of(logs), logs, "offline")
    figure(results / f"{name}.csv")


def rows_of(logs: dict[str, RunLog]) -> list[Row]:
    """A row for each arm and seed: where the offline phase ended, and the best it reached."""
    rows: list[Row] = []
    for arm, log in logs.items():
        curve = log.series("eval", "return", "offline")
        ret, end = curve.values, late_evaluations(curve.step)
        layout = {
            "env": log.config.get("env"),
            "steps": int(curve.step[-1]),
            "behaviour": log.behaviour_return,
        }
        layout |= {"eval_episodes": log.config["run"]["eval_episodes"]}
        rows += [
            {"arm": arm, "seed": k}
            | layout
            | {"final": ret[-end:, k].mean(), "best": ret[:, k].max(), "final_evals": end}
            for k in range(ret.shape[1])
        ]
    return rows


def figure(path: Path) -> None:
    """The figure of a results file."""
    draw(path, PANELS, "offline")
