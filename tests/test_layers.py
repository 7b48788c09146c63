"""Imports point down: design by test."""

import ast
from pathlib import Path

import pytest

import mbo2o

ROOT = Path(mbo2o.__file__).parent
BELOW = {  # what a package may import of this project
    "errors": set(),
    "types": {"errors"},
    "registry": {"errors", "types"},
    "ensemble": {"registry", "types"},
    "nn": {"ensemble", "types"},
    "agents": {"nn", "ensemble", "registry", "types"},
    "data": {"types"},
    "sources": {"data", "nn", "ensemble", "registry", "types"},
    "dynamics": {"ensemble", "nn", "data", "registry", "types"},
    "envs": {"errors", "types"},
    "loggers": {"registry", "errors"},
    "store": {"data", "envs", "registry", "errors", "types"},
    "quiet": set(),
    "progress": {"quiet", "types"},
    "verify": {"envs", "store", "registry", "errors", "types"},
    "run": {"progress", "verify", "agents", "data", "envs", "loggers", "store", "types"},
    "recipes": {"run", "sources", "agents", "dynamics", "ensemble", "nn", "data", "registry", "types"},
    "report": {"store", "types"},
    "judge": {"agents", "dynamics", "data", "ensemble", "types"},
    "model": {"dynamics", "ensemble", "nn", "data", "doctor", "envs", "store", "registry", "errors", "types"},
    "planning": {"model", "dynamics", "ensemble", "registry", "types"},
    "doctor": {"store", "envs", "dynamics", "data", "types"},
    "collect": {"planning", "progress", "run", "envs", "store", "agents", "data", "ensemble", "nn", "types"},
    "settings": {"recipes", "run", "dynamics", "loggers", "registry", "types"},
    "naming": {"settings", "registry", "types"},
    "policy": {"settings", "recipes", "envs", "store", "agents", "registry", "types"},
    "pretraining": {"naming", "policy", "settings", "recipes", "agents", "nn", "store", "types"},
    "training": {
        *("pretraining", "policy", "naming", "settings", "recipes", "run", "agents", "dynamics", "data"),
        *("envs", "store", "report", "judge", "model", "registry", "errors", "types"),
    },
    "cli": {
        *("training", "policy", "settings", "recipes", "run", "envs", "store", "doctor", "collect", "report"),
        *("agents", "ensemble", "model", "planning", "verify", "registry", "errors", "types"),
    },
    "handle": {"cli", "training", "settings", "quiet", "run", "report", "registry", "errors", "types"},
}
FREE_OF = {
    "agents": {"gymnasium", "hydra", "omegaconf"},
    "ensemble": {"gymnasium", "hydra", "numpy"},
    "dynamics": {"gymnasium"},
}


def imports(path):
    """(top-level module, package of this project or None) of each import."""
    here = ("mbo2o", *path.relative_to(ROOT).with_suffix("").parts)[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [module] if node.module else [f"{module}.{a.name}" for a in node.names]
        else:
            continue
        for name in names:
            if name == "mbo2o":
                continue
            parts = name.split(".")
            yield parts[0], parts[1] if parts[0] == "mbo2o" and len(parts) > 1 else None


@pytest.mark.parametrize("package", BELOW)
def test_imports_point_down(package):
    files = (
        [ROOT / f"{package}.py"]
        if (ROOT / f"{package}.py").exists()
        else sorted((ROOT / package).rglob("*.py"))
    )
    assert files
    for path in files:
        for top, inner in imports(path):
            assert inner in (None, package) or inner in BELOW[package], f"{path} imports mbo2o.{inner}"
            assert top not in FREE_OF.get(package, set()), f"{path} imports {top}"


def test_nothing_runs_code_from_files():
    """No pickle, torch.load, eval: loading a file executes nothing. envs/worker.py talks to its own child."""
    banned = ("import pickle", "torch.load(", "allow_pickle=True", "eval(", "exec(")
    for path in ROOT.rglob("*.py"):
        text = path.read_text().replace("_eval(", "").replace(".eval(", "")
        found = [b for b in banned if b in text]
        assert found == (["import pickle"] if path == ROOT / "envs" / "worker.py" else []), path


def test_every_room_has_a_row():
    rooms = {
        p.stem for p in ROOT.iterdir() if (p.is_dir() and (p / "__init__.py").exists()) or p.suffix == ".py"
    }
    assert rooms - {"__init__", "__main__"} == set(BELOW)
