"""Need 17: logging without an account.

metrics.jsonl is always written; CSV, TensorBoard, wandb and trackio follow it if `log` names them; none is
imported unless asked for; all have the same names and the same axis of steps; what fails stops nothing.
Acceptance: with the network blocked and wandb absent all metrics are in the CSV; a logger that raises on
every call is told of once; the CSV of a run that goes on never goes back.
"""

import csv
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

import mbo2o
from mbo2o.run.world import World

GIVEN = [
    *("recipe=scratch", "env=Pendulum-v1", "report=false", "recipe.agent.actor.hidden=[4]", "engine=eager"),
    *("recipe.agent.critic.hidden=[4]", "recipe.batch=8", "recipe.random_steps=10", "recipe.online_steps=60"),
    *("run.eval_episodes=2", "run.eval_every=20", "run.checkpoint_every=20", "run.log_every=10", "dir=run"),
]
BLOCKED = """
import socket, sys
def refuse(*args, **more): raise OSError("no network here")
socket.socket.connect = socket.getaddrinfo = refuse
sys.modules["wandb"] = None
import mbo2o
mbo2o.train(mbo2o.config(*sys.argv[1:]))
print(sorted({"tensorboard", "trackio", "torch.utils.tensorboard"} & set(sys.modules)))
"""


def table():
    return list(csv.DictReader(open("run/metrics.csv", newline="")))


def test_without_a_network_and_without_wandb_every_metric_is_in_the_csv():
    command = [sys.executable, "-c", BLOCKED, *GIVEN, "log=[csv]"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == "[]\n", done.stderr  # none is imported unless asked for
    rows = table()
    for line in map(json.loads, Path("run/metrics.jsonl").read_text().splitlines()):
        place = {"kind": line["kind"], "phase": line["phase"], "total": str(line["total"])}
        mine = [x for x in rows if place.items() <= x.items()]
        assert {x["metric"] for x in mine} >= set(line) - {"kind", "phase", "step", "total", "time"}
        if "return" in line:
            assert [float(x["value"]) for x in mine if x["metric"] == "return"] == line["return"]


def test_a_logger_that_raises_is_told_of_once(monkeypatch, recwarn):
    broken = types.ModuleType("wandb")

    class Run:
        def log(self, data, step=None, commit=None):
            raise ConnectionError("no account")

        finish = log

    broken.init = lambda **settings: Run()
    monkeypatch.setitem(sys.modules, "wandb", broken)
    mbo2o.train(mbo2o.config(*GIVEN, "log=[wandb]"))
    assert len([w for w in recwarn if "no account" in str(w.message)]) == 1
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) > 8


def test_the_csv_of_a_run_that_goes_on_never_goes_back(monkeypatch):
    step, taken = World.step, []

    def killed(self, *args):
        taken.append(1)
        if len(taken) == 45:
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as m:
        m.setattr(World, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            mbo2o.train(mbo2o.config(*GIVEN, "log=[csv]"))
    mbo2o.train(mbo2o.config(*GIVEN, "log=[csv]"))
    for kind, metric in (("eval", "return"), ("train", "critic_loss")):
        rows = [x for x in table() if (x["kind"], x["metric"], x["seed"]) == (kind, metric, "0")]
        places = [(x["phase"], int(x["step"])) for x in rows]
        assert len(places) == len(set(places)), kind
        totals = [int(x["total"]) for x in rows]
        assert totals == sorted(totals)
        assert places[-1] == ("online", 60)
