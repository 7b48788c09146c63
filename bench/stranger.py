"""The path of a user who has never seen this repository, timed: clone, install, CSV, policy, ONNX, call.

`python -m bench.stranger` prints the seconds of each stage, by the clock and of CPU, and its command. It
works in one new folder, which `--keep` leaves there. `--site` makes environments that see the packages of the
Python that runs this, so that PyTorch is not installed again; what a stranger waits for is then left out, and
the output says so.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
CALL = """
import importlib.util, json
import numpy as np
import onnxruntime
there = [name for name in ("torch", "mbo2o", "gymnasium") if importlib.util.find_spec(name)]
assert not there or {site}, there
about = json.load(open("io.json"))
session = onnxruntime.InferenceSession("policy.onnx")
obs = np.array([[0.8, 0.0], [-0.8, 0.0]], np.float32)
act = session.run(["action"], {{"obs": obs}})[0]
assert act.shape == (2, 1) and np.isfinite(act).all()
assert (act >= about["action"]["low"]).all() and (act <= about["action"]["high"]).all()
print(f"place 0.8 -> force {{act[0, 0]:.2f}}, place -0.8 -> force {{act[1, 0]:.2f}}")
"""
"""What a robot's program would do with the exported file."""


def write_log(path: Path, episodes: int = 8, steps: int = 30) -> int:
    """A CSV of a mass that a noisy controller pushes to the origin; returns its rows."""
    rng = random.Random(0)
    with open(path, "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["episode", "step", "obs_place", "obs_speed", "act_force", "reward", "terminal"])
        for episode in range(episodes):
            place, speed = rng.uniform(-1, 1), 0.0
            for step in range(steps):
                force = max(-2.0, min(2.0, -1.5 * place - speed + rng.gauss(0, 0.6)))
                cost = place**2 + 0.1 * speed**2
                out.writerow(
                    [episode, step, f"{place:.5f}", f"{speed:.5f}", f"{force:.5f}", f"{-cost:.5f}", 0]
                )
                speed += 0.1 * force
                place += 0.1 * speed
    return episodes * steps


class Walk:
    """One folder in which commands run one after the other, each timed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.seconds: dict[str, float] = {}

    def run(self, stage: str, command: Sequence[str | Path]) -> str:
        """Run a command, note and print how long it took; returns what it printed. Ends at a failure."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MBO2O"))}
        begin, before = time.monotonic(), _cpu()
        done = subprocess.run(
            [str(x) for x in command], cwd=self.folder, env=clean, capture_output=True, text=True, check=False
        )
        self.seconds[stage] = time.monotonic() - begin
        shown = " ".join(str(x).replace(f"{self.folder}/", "") for x in command)
        shown = shown if len(shown) < 90 else f"{shown[:87]}..."
        print(f"{self.seconds[stage]:8.1f} s {_cpu() - before:8.1f} s CPU  {stage:<30} {shown}", flush=True)
        if done.returncode:
            sys.exit(
                f"{stage} failed with code {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
            )
        return done.stdout


def _cpu() -> float:
    """CPU seconds of all commands so far; on a busy machine they say more than the clock."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def walk(folder: Path, site: bool = False) -> dict[str, float]:
    """Go the whole way in `folder`; returns the seconds of each stage."""
    way = Walk(folder)
    flag = ["--system-site-packages"] if site else []
    way.run("clone", ["git", "clone", "-q", ROOT, "mbo2o"])
    way.run("new environment", [sys.executable, "-m", "venv", *flag, "env"])
    python, tool = (str(folder / "env/bin" / name) for name in ("python", "mbo2o"))
    if site:
        _see_packages(folder)
    way.run("pip install ./mbo2o", [python, "-m", "pip", "install", "-q", "./mbo2o[export]"])
    rows = write_log(folder / "my.csv")
    print(f"{'':>25}my.csv has {rows} rows")
    print(way.run("look at the log", [tool, "data", "check", "my.csv"]).splitlines()[0])
    train = [tool, "train", "switch=td3bc", "dataset=my.csv", "env=null", "dir=run"]
    print(way.run(f"{rows} rows to a policy", train).rstrip())
    way.run("export", [tool, "export", "run", "--to", "onnx", "--out", "robot/policy.onnx"])
    way.run("an environment for the robot", [sys.executable, "-m", "venv", *flag, "robot/env"])
    robot = str(folder / "robot/env/bin/python")
    if not site:
        way.run(
            "pip install onnxruntime numpy", [robot, "-m", "pip", "install", "-q", "onnxruntime", "numpy"]
        )
    else:
        _see_packages(folder / "robot", "env")
    (folder / "robot/call.py").write_text(CALL.format(site=site))
    print(way.run("call the policy", ["sh", "-c", "cd robot && env/bin/python call.py"]).rstrip())
    return way.seconds


def _see_packages(folder: Path, name: str = "env") -> None:
    """Let an environment see the packages of the Python that runs this, itself one of an environment."""
    inside = next((folder / name / "lib").glob("python*")) / "site-packages" / "outside.pth"
    inside.write_text("\n".join(x for x in sys.path if x.endswith("site-packages")) + "\n")


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `python -m bench.stranger`."""
    parser = argparse.ArgumentParser("python -m bench.stranger", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--site", action="store_true", help="let the new environments see this one's packages"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a new folder for it, which stays")
    options = parser.parse_args(args)
    folder = options.keep or Path(tempfile.mkdtemp(prefix="stranger-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if options.site:
            print("--site: PyTorch and the rest are taken from this environment, not installed")
        seconds = walk(folder.resolve(), options.site)
        print(f"{sum(seconds.values()):8.1f} s  in all")
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
