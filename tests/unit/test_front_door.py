"""`import mbo2o` is quick and offers what a script needs; `mbo2o --help` imports nothing heavy."""

import importlib
import pkgutil
import subprocess
import sys

import pytest
import torch

import mbo2o
from mbo2o.agents.bc import BCConfig
from mbo2o.dynamics.model import DynamicsConfig, GaussianDynamics
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.recipes.finetune import FinetuneConfig
from mbo2o.run.config import RunConfig
from mbo2o.types import Spec, UserError

NAMES = {
    *("train", "load", "load_dynamics", "fit_dynamics", "config", "Dataset", "Dynamics", "Config", "Spec"),
    *("Batch", "Source", "planner", "Planner"),
    *("agent", "read_dataset", "recipe", "source", "penalty", "termination", "UserError"),
    *("Policy", "load_agent", "restore", "RunHandle", "Planner", "planner"),
}

FRESH = """
import sys, time
before = time.process_time()
{what}
took = time.process_time() - before
heavy = [x for x in ("torch", "hydra", "omegaconf", "numpy", "gymnasium", "h5py") if x in sys.modules]
print(took, *heavy)
"""


def fresh(what):
    """Seconds of processor time that this takes in a new process, and the heavy packages that it imports."""
    done = subprocess.run([sys.executable, "-c", FRESH.format(what=what)], capture_output=True, text=True)
    took, *heavy = done.stdout.splitlines()[-1].split()
    return float(took), heavy


def test_the_package_is_imported_at_once():
    took, heavy = fresh("import mbo2o")
    assert heavy == []
    assert took < 0.1


def test_help_answers_at_once():
    took, heavy = fresh(
        "from mbo2o.cli.main import main\ntry: main(['--help'])\nexcept SystemExit as e: assert e.code == 0"
    )
    assert heavy == []
    assert took < 0.3


def test_the_door_offers_its_names_and_no_module_hides_one():
    assert set(mbo2o.__all__) == NAMES
    assert set(dir(mbo2o)) >= NAMES
    assert not NAMES & {module.name for module in pkgutil.iter_modules(mbo2o.__path__)}
    for name in NAMES:
        assert getattr(mbo2o, name) is not None
    for module in pkgutil.iter_modules(mbo2o.__path__):
        if module.name != "__main__":
            importlib.import_module(f"mbo2o.{module.name}")
    assert callable(mbo2o.train)
    assert mbo2o.recipes.__name__ == "mbo2o.recipes"
    with pytest.raises(AttributeError, match="no attribute 'trane'"):
        getattr(mbo2o, "trane")  # noqa: B009


def test_a_run_through_the_door(pendulum, tmp_path):
    recipe = FinetuneConfig(
        offline=BCConfig(actor=MLPConfig(hidden=[4])), offline_steps=2, online_steps=0, batch=8
    )
    often = RunConfig(eval_episodes=1, online_capacity=50)
    directory = mbo2o.train(
        mbo2o.Config(recipe=recipe, dataset=str(pendulum), dir=str(tmp_path / "run"), report=False, run=often)
    )
    assert directory.directory == tmp_path / "run"
    act = mbo2o.load_agent(directory).act(torch.randn(1, 5, 3))
    assert act.shape == (1, 5, 1)
    assert bool((act.abs() <= 1).all())
    assert mbo2o.load(directory).predict(torch.randn(5, 3))[0].shape == (5, 1)
    with pytest.raises(mbo2o.UserError, match="not a run"):
        mbo2o.load_agent(tmp_path)


def test_a_config_through_the_door():
    cfg = mbo2o.config("experiment=hopper-small", "seeds=3")
    assert (type(cfg), cfg.seeds, cfg.recipe.alpha) == (mbo2o.Config, 3, 0.65)
    with pytest.raises(mbo2o.UserError, match=r"did you mean 'recipe\.alpha'"):
        mbo2o.config("recipe.alpah=1")


def test_dynamics_are_loaded_from_a_run_and_from_a_folder(tmp_path):
    cfg = DynamicsConfig(members=2, elites=1, net=MLPConfig(hidden=[4]))
    for phase in ("offline", "online"):
        GaussianDynamics(Spec(3, 1), cfg).save(tmp_path / "run" / "dynamics" / phase, {"phase": phase})
    model = mbo2o.load_dynamics(tmp_path / "run")
    assert model.net.info == {"phase": "online"}
    assert model.step(torch.randn(5, 3), torch.zeros(5, 1)).obs.shape == (5, 3)
    assert mbo2o.load_dynamics(tmp_path / "run" / "dynamics" / "offline").net.info == {"phase": "offline"}
    with pytest.raises(UserError, match="holds no dynamics model"):
        mbo2o.load_dynamics(tmp_path)
