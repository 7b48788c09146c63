"""The command `doctor`: what is installed here, and what is missing."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mbo2o.cli.command import add

CORE = ("torch", "numpy", "h5py", "safetensors", "omegaconf", "tqdm")
OPTIONAL = {
    "gymnasium": ("all", "environments, online learning, evaluations by playing"),
    "mujoco": ("all", "environments of MuJoCo"),
    "minari": ("all", "Minari datasets"),
    "hydra": ("all", "sweeps (-m), --cfg, --info"),
    "matplotlib": ("all", "reports"),
    "PIL": ("all", "Minari's files"),
    "imageio": ("all", "gymnasium's MuJoCo tasks"),
    "termcolor": ("all", "planners of mbrl"),
    "pandas": ("pandas", "run.metrics() as a DataFrame"),
    "pyarrow": ("parquet", "Parquet tables"),
    "gymnasium_robotics": ("mazes", "mazes"),
    "fsspec": ("remote", "datasets at addresses such as s3://"),
    "tensorboard": ("tensorboard", "TensorBoard files"),
}
"""Packages that some uses need, with the extra that installs each and what it is for."""
PACKAGES = {"hydra": "hydra-core", "PIL": "pillow", "gymnasium_robotics": "gymnasium-robotics"}
"""Names of distributions that differ from the module's."""


def _version(module: str) -> str | None:
    """The installed version; None if the module cannot be found."""
    try:
        if find_spec(module) is None:
            return None
        return metadata.version(PACKAGES.get(module, module))
    except (ImportError, ValueError):
        return None
    except metadata.PackageNotFoundError:  # on the path without a distribution
        return "?"


def _doctor(options: argparse.Namespace) -> int:
    import mbo2o

    wrong: list[str] = []

    def show(what: str, found: str) -> None:
        print(f"{what:<20} {found}")

    show("mbo2o", f"{mbo2o.__version__}, {Path(mbo2o.__file__).parent}")
    show("python", f"{platform.python_version()}, {sys.executable}")
    show("system", platform.platform(terse=True))
    for name in CORE:
        found = _version(name)
        show(name, found or "MISSING")
        if found is None:
            wrong.append(f"{name} is missing: pip install {name}")
    for name, (extra, use) in OPTIONAL.items():
        show(name, _version(name) or f"not installed: pip install 'mbo2o[{extra}]' for {use}")
    for what, look in LOOKS:
        try:
            show(what, look())
        except Exception as e:  # whatever a broken installation raises is what this command is for
            reason = " ".join(f"{type(e).__name__}: {e}".split())[:200]
            show(what, f"BROKEN: {reason}")
            wrong.append(f"{what}: {reason}")
    print("\n".join(f"mbo2o: {x}" for x in wrong) if wrong else "all that training needs is here")
    return 1 if wrong else 0


def _devices() -> str:
    import torch

    found = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    return ", ".join(["cpu", *found])


def _threads() -> str:
    import torch

    return f"{torch.get_num_threads()} of torch, {os.cpu_count()} cores; a run takes threads=1 unless told"


def _compiler() -> str:
    chosen = os.environ.get("CXX")
    found = next((x for x in (chosen, "g++", "clang++") if x and shutil.which(x)), None)
    if found is None:
        return "none, so that engine=auto stays eager (g++ or clang++ makes long runs faster)"
    line = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
    return line.splitlines()[0] if line else found


def _writable(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder):
        return str(folder)


def _cache() -> str:
    from mbo2o.store.content import cache_folder

    try:
        return _writable(cache_folder())
    except OSError as e:  # it is not needed
        return f"{cache_folder()} cannot be written ({e.strerror}): nothing is kept for later runs"


def _settings() -> str:
    from mbo2o.cli.train import config
    from mbo2o.registry import conf_folder

    config("recipe=moore")
    return str(conf_folder())


def _update() -> str:
    import torch

    from mbo2o.agents import make_agent
    from mbo2o.agents.td3bc import TD3BCConfig
    from mbo2o.ensemble.mlp import MLPConfig
    from mbo2o.run.engine import Engine
    from mbo2o.types import Batch, Spec

    net = MLPConfig(hidden=[8])
    with torch.random.fork_rng(devices=[]):
        agent = make_agent(TD3BCConfig(actor=net, critic=net), Spec(3, 2))
        obs, act, zeros = torch.randn(2, 8, 3), torch.rand(8, 2), torch.zeros(8)
        metrics = Engine().update(agent, Batch(obs[0], act, zeros, obs[1], zeros))
    if not all(bool(x.isfinite().all()) for x in metrics.values()):
        raise RuntimeError("the numbers of an update are not finite")
    return "one update of an agent works"


LOOKS: list[tuple[str, Callable[[], str]]] = [
    ("devices", _devices),
    ("threads", _threads),
    ("C++ compiler", _compiler),
    ("settings", _settings),
    ("cache folder", _cache),
    ("training", _update),
]
"""What is tried, in this order; what raises is broken."""


def add_to(commands: Any) -> None:
    """Declare `doctor`."""
    add(
        commands,
        "doctor",
        _doctor,
        "Show versions, devices, threads, the C++ compiler, and what is missing with the extra that installs "
        "it. The exit code is 1 if something is broken that training needs.",
        "mbo2o doctor",
    )
