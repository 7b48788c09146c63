"""The page on methods of one's own: its files train and evaluate as it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
SMALL = (
    "recipe.offline_steps=5 recipe.online_steps=20 recipe.warmup=5 recipe.batch=8 recipe.offline.samples=2 "
    "run.eval_episodes=1 run.online_capacity=50 recipe.offline.actor.hidden=[4] "
    "recipe.offline.critic.hidden=[4] dir=run report=false"
)


def test_the_source_of_the_page_trains_and_evaluates(pendulum):
    text = PAGE.read_text()
    for folder, name, kind in (("code", "cold.py", "python"), ("yaml/source", "cold.yaml", "yaml")):
        Path(folder).mkdir(parents=True)
        (Path(folder) / name).write_text(re.search(rf"```{kind}\n(.*?)```", text, re.S)[1])
    commands = re.search(r"```\n(PYTHONPATH.*?)```", text, re.S)[1].splitlines()
    for line in commands:
        words = line.replace("my.hdf5", f"{pendulum} {SMALL}").replace("runs/finetune-...", "run").split()
        path = os.pathsep.join(["code", *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        assert words[:2] == ["PYTHONPATH=code", "mbo2o"]
        done = subprocess.run(
            [sys.executable, "-m", *words[1:]],
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
