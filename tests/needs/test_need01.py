"""Need 1: one-line install on today's stack; no gym, mujoco-py, d4rl.

The core needs six packages; everything else is an extra, and is named in one line where it is missing (the
run without extras is in unit/test_log_alone.py). A wheel builds, and its commands run from an empty folder.
Not here: a fresh environment for each Python, and the lowest versions, which need a network.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from logs import write_log

import mbo2o

REPO = Path(mbo2o.__file__).parents[1]
CORE = {"torch", "numpy", "h5py", "omegaconf", "safetensors", "tqdm"}


def python(*args, cwd=None, **env):
    return subprocess.run(
        [sys.executable, *args],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **env},
        check=False,
    )


def test_the_core_needs_six_packages_and_all_brings_the_rest():
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    assert {re.split(r"[<>=\[]", x)[0] for x in project["dependencies"]} == CORE
    extras = project["optional-dependencies"]
    brought = {re.split(r"[<>=\[]", x)[0] for x in extras["all"]}
    assert {"gymnasium", "mujoco", "minari", "hydra-core", "matplotlib", "imageio", "pillow"} <= brought
    assert "mbo2o[all," in extras["dev"][0]
    assert not any("==" in x for names in (project["dependencies"], *extras.values()) for x in names)


def test_importing_warns_of_nothing_and_loads_nothing_old():
    program = "import mbo2o, sys; mbo2o.Config, mbo2o.train; print(*sys.modules)"
    done = python("-W", "error", "-c", program)
    assert done.returncode == 0, done.stderr
    assert not {"gym", "mujoco_py", "d4rl", "mbrl", "hydra", "mujoco", "matplotlib"} & set(
        done.stdout.split()
    )


def test_doctor_says_what_is_here():
    done = python("-m", "mbo2o", "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    for what in (*CORE, "python", "devices", "threads", "C++ compiler", "cache folder"):
        assert re.search(rf"^{re.escape(what)} +\S", done.stdout, re.MULTILINE), what
    assert done.stdout.endswith("all that training needs is here\n")


def test_doctor_fails_where_something_is_broken(tmp_path):
    (tmp_path / "safetensors.py").write_text("raise RuntimeError('half installed')")
    done = python("-m", "mbo2o", "doctor", PYTHONPATH=f"{tmp_path}:{REPO}")
    assert done.returncode == 1
    assert "training" in done.stdout
    assert "BROKEN: RuntimeError: half installed" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The content of a wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("mbo2o", "conf"):
        shutil.copytree(REPO / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, source)
    build = "from setuptools import build_meta; print(build_meta.build_wheel('..'))"
    done = python("-c", build, cwd=source, PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    shutil.unpack_archive(built, folder / "site", "zip")
    return folder / "site"


def test_the_commands_of_a_wheel_run_from_an_empty_folder(wheel, tmp_path):
    write_log(tmp_path / "my.csv")
    small = ["recipe.offline_steps=3", "dir=run", "engine=eager", "run.online_capacity=50"]
    for args in (
        ["doctor"],
        ["train", "switch=bc", "dataset=my.csv", "env=null", *small],
        ["train", "--help"],
    ):
        done = python("-m", "mbo2o", *args, cwd=tmp_path, PYTHONPATH=str(wheel))
        assert done.returncode == 0, done.stdout + done.stderr
        if args == ["doctor"]:
            assert str(wheel) in done.stdout
    assert (tmp_path / "run" / "report" / "index.html").is_file()
