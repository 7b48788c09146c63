"""Runs of half a second, for tests of what is left when a run has ended."""

import json
from dataclasses import replace

from mbo2o.agents.cql import CQLConfig
from mbo2o.agents.sac import SACConfig
from mbo2o.dynamics.fit import FitConfig
from mbo2o.dynamics.model import DynamicsConfig
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.recipes.enoto import ENOTOConfig
from mbo2o.recipes.finetune import FinetuneConfig
from mbo2o.recipes.moore import MOOReConfig
from mbo2o.recipes.wsrl import WSRLConfig
from mbo2o.run.config import RunConfig
from mbo2o.settings import Config
from mbo2o.store import checkpoint

NET = MLPConfig(hidden=[8])
CQL = CQLConfig(actor=NET, critic=NET, samples=2)
FINETUNE = {"offline": CQL, "offline_steps": 20, "online_steps": 40, "warmup": 10, "batch": 16}
FIT = FitConfig(min_updates=5, max_updates=10, epoch_updates=5)
MODEL = {
    **{"agent": SACConfig(actor=NET, critic=NET), "dynamics": DynamicsConfig(members=3, elites=2, net=NET)},
    **{"fit": FIT, "refit": FIT, "batch": 16, "horizon": 2, "offline_steps": 20, "rollouts": 10},
    **{"rollout_every": 10, "online_steps": 40, "epoch": 20, "model_every": 20, "online_rollouts": 10},
}
RECIPES = {"finetune": (FinetuneConfig, FINETUNE), "wsrl": (WSRLConfig, FINETUNE)}
RECIPES |= {"enoto": (ENOTOConfig, FINETUNE | {"critics": 3}), "moore": (MOOReConfig, MODEL)}


def tiny(name, dataset, directory, recipe=None, **settings):
    """The config of a tiny run on Pendulum; `recipe` holds settings of the recipe, `settings` the others."""
    cls, usual = RECIPES[name]
    often = RunConfig(log_every=10, eval_every=20, eval_episodes=1, checkpoint_every=15, online_capacity=200)
    values = {"dataset": str(dataset), "dir": str(directory), "run": often, "report": False}
    return Config(recipe=cls(**usual | (recipe or {})), **values | settings)


def longer(cfg, directory=None, **steps):
    """The same config with more steps, in the same directory or in another one."""
    return replace(cfg, recipe=replace(cfg.recipe, **steps), dir=str(directory or cfg.dir))


def tensors_of(directory):
    """The tensors of a run's newest checkpoint."""
    return checkpoint.latest(directory / "checkpoints", "cpu")[0]


def log_of(directory):
    """A run's log without clock times."""
    lines = [json.loads(x) for x in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in x.items() if k != "time"} for x in lines]
