"""What the tests of needs share: tiny runs, each of which is trained once in a session."""

from pathlib import Path

import pytest

import mbo2o

NETS = {"actor.hidden": "[8]", "critic.hidden": "[8]"}
SIZES = {
    "finetune": {f"recipe.offline.{k}": v for k, v in NETS.items()} | {"recipe.warmup": 50},
    "scratch": {f"recipe.agent.{k}": v for k, v in NETS.items()} | {"recipe.random_steps": 20},
    "rlpd": {f"recipe.agent.{k}": v for k, v in NETS.items()} | {"recipe.warmup": 50},
}
SIZES["wsrl"] = SIZES["finetune"]
for _model in ("moore", "mopo", "mbpo"):
    SIZES[_model] = {f"recipe.agent.{k}": v for k, v in NETS.items()} | {
        "recipe.dynamics.net.hidden": "[16]",
        "recipe.dynamics.members": 3,
        "recipe.dynamics.elites": 2,
        "recipe.fit.max_updates": 60,
        "recipe.termination": "none",
        "recipe.rollouts": 40,
    }
SIZES["mbpo"]["recipe.random_steps"] = 20
del SIZES["mbpo"]["recipe.rollouts"]
for _model in ("moore", "mbpo"):
    SIZES[_model] |= {"recipe.refit.max_updates": 20, "recipe.model_every": 50, "recipe.online_rollouts": 40}
"""Settings that make a recipe tiny."""
RUN = {
    "recipe.batch": 16,
    "run.log_every": 50,
    "run.eval_every": 50,
    "run.eval_episodes": 2,
    "run.checkpoint_every": 100,
    "run.online_capacity": 1000,
    "run.reference": "[-1500,-150]",
    "engine": "eager",
    "report": "false",
}


@pytest.fixture(scope="session")
def tiny_run(pendulum, tmp_path_factory):
    """`tiny_run(recipe, **settings)`: the directory of a finished run of a few seconds.

    recipe: a recipe's name, or an override such as "switch=cql-sac" of a preset. settings: by dotted names,
    as `tiny_run("moore", **{"recipe.online_steps": 100})`. A recipe that needs data learns from 600 steps of
    Pendulum. The same call gives the same directory, which tests must not change.
    """
    made: dict[str, Path] = {}

    def run(recipe, **settings):
        chosen = recipe if "=" in recipe else f"recipe={recipe}"
        name = "finetune" if chosen.startswith("switch=") else chosen.partition("=")[2]
        online_alone = name in ("scratch", "mbpo")
        steps = {} if name == "mopo" else {"recipe.online_steps": 150}
        if name != "rlpd" and not online_alone:
            steps["recipe.offline_steps"] = 100
        subject = {"env": "Pendulum-v1"} if online_alone else {"dataset": pendulum}
        given = SIZES.get(name, {}) | RUN | steps | subject | settings
        texts = [chosen, *(f"{key}={value}" for key, value in given.items())]
        key = " ".join(texts)
        if key not in made:
            directory = tmp_path_factory.mktemp(name) / "run"
            made[key] = mbo2o.train(mbo2o.config(*texts, f"dir={directory}"))
        return made[key]

    return run
