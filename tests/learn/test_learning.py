"""Code that runs is not code that learns. Minutes each: ./dev test -m slow"""

import numpy as np
import pytest

from mbo2o.agents.sac import SACConfig
from mbo2o.cli.main import compose_config
from mbo2o.collect.sac import train as train_sac
from mbo2o.dynamics.model import DynamicsConfig
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.recipes.mbpo import MBPOConfig
from mbo2o.report.read import read_run
from mbo2o.run.config import RunConfig
from mbo2o.training import Config, train
from studies import offline
from studies.arms import run_job

NET = MLPConfig(hidden=[64, 64])
AGENT = SACConfig(actor=NET, critic=NET, actor_lr=1e-3, critic_lr=1e-3, alpha_lr=1e-3, tau=0.01)
DYNAMICS = DynamicsConfig(members=5, elites=4, net=MLPConfig(hidden=[64, 64], activation="silu"))

pytestmark = pytest.mark.slow


def test_sac_swings_the_pendulum_up(tmp_path):
    """Random play returns about -1200; a solved Pendulum about -150."""
    train_sac(
        "Pendulum-v1",
        tmp_path,
        steps=6000,
        seed=0,
        hidden=[64, 64],
        lr=1e-3,
        start=500,
        eval_every=1000,
        episodes=5,
    )
    returns = np.loadtxt(tmp_path / "evals.csv", delimiter=",", skiprows=1)[:, 1]
    assert returns[0] < -700
    assert returns[-2:].mean() > -300


SCRATCH = {
    "redq": ["recipe.online_steps=3000", "recipe.utd=5", "recipe.agent.critics=5"],
    "sacn": ["recipe.online_steps=6000", "recipe.agent.critics=3"],
    "td3bc": ["recipe.online_steps=6000", "recipe.agent.bc_weight=0"],
    "obac": ["recipe.online_steps=6000", "recipe.agent.constraint_weight=0.01"],
}


@pytest.mark.parametrize("agent", SCRATCH)
def test_others_swing_it_up_from_scratch(agent, tmp_path):
    small = ["critic_lr=1e-3", "actor_lr=1e-3", "tau=0.01", "critic.hidden=[64,64]", "actor.hidden=[64,64]"]
    settings = [
        "recipe.random_steps=500",
        "run.eval_every=500",
        "report=false",
        *(f"recipe.agent.{x}" for x in small),
    ]
    chosen = ["recipe=scratch", f"agent@recipe.agent={agent}", "env=Pendulum-v1", f"dir={tmp_path / 'run'}"]
    train(compose_config([*chosen, *settings, *SCRATCH[agent]]))
    assert read_run(tmp_path / "run").series("eval", "return").values[-3:].mean() > -300


@pytest.mark.parametrize("agent", ["bc", "td3bc", "cql", "lapo"])
def test_offline_learners_keep_up_with_their_data(agent, tmp_path):
    """On Hopper's medium file, which ships: its behaviour returns 951."""
    changes = ["run.eval_every=1000", "recipe.offline.normalize=true"]
    base = compose_config(["experiment=qensemble-small", "dataset=hopper-medium-v5", *changes])
    for job in offline.jobs(offline.arms(base), agent):
        run_job(job, tmp_path)
    log = read_run(tmp_path / agent)
    assert log.series("eval", "return").values[-3:].mean() > log.behaviour_return


def test_mbpo_swings_it_up_sooner(tmp_path):
    recipe = MBPOConfig(
        agent=AGENT,
        dynamics=DYNAMICS,
        random_steps=500,
        online_steps=2000,
        model_every=250,
        online_rollouts=400,
        horizon=3,
        utd=5,
    )
    recipe.refit.max_updates = 1000
    train(
        Config(
            recipe=recipe,
            env="Pendulum-v1",
            seeds=2,
            dir=str(tmp_path / "run"),
            run=RunConfig(eval_every=500),
        )
    )
    final = read_run(tmp_path / "run").series("eval", "return").values[-2:].mean()
    assert final > -400


def test_mopo_beats_the_behaviour_on_hopper(tmp_path):
    """The main job's offline phase, a third of it."""
    sizes = ["recipe.offline_steps=20000", "recipe.online_steps=0", "seeds=2", "report=false"]
    train(compose_config(["experiment=hopper-small", *sizes, f"dir={tmp_path / 'run'}"]))
    log = read_run(tmp_path / "run")
    assert log.series("eval", "return", "offline").values[-3:].mean() > log.behaviour_return
