"""Where a run's log also goes: no logger stops a run, and each continues its curves where the run goes on."""

import csv
import json
import os
import random
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from mbo2o.loggers import KNOWN, Loggers, flattened
from mbo2o.naming import name
from mbo2o.run.log import MetricsFile
from mbo2o.settings import Config, read_config
from mbo2o.training import train
from mbo2o.types import UserError


def place(step, kind="eval"):
    return {"kind": kind, "phase": "online", "step": step, "total": 10 + step, "time": 1.0}


def values(x):
    return {"return": torch.tensor([x, x + 2]), "returns": torch.tensor([[x, x], [x + 2, x + 2]])}


class FakeWandb(types.ModuleType):
    """wandb's calls, with the signatures of its own functions; `fail` names one that raises."""

    def __init__(self, fail=""):
        super().__init__("wandb")
        self.fail, self.calls = fail, []

    def init(
        self, entity=None, project=None, dir=None, id=None, name=None, notes=None, tags=None, config=None,
        config_exclude_keys=None, config_include_keys=None, allow_val_change=None, group=None, job_type=None,
        mode=None, force=None, reinit=None, resume=None, resume_from=None, fork_from=None, save_code=None,
        tensorboard=None, sync_tensorboard=None, monitor_gym=None, settings=None,
    ):  # fmt: skip
        self._call("init", id=id, project=project, name=name, config=config, resume=resume, reinit=reinit)
        return self

    def log(self, data, step=None, commit=None):
        self._call("log", data=data, step=step)

    def finish(self, exit_code=None, quiet=None):
        self._call("finish")

    def _call(self, what, **given):
        self.calls.append((what, given))
        if what == self.fail:
            raise RuntimeError(f"{what} is out\nof order")


def test_numbers_are_named_by_kind_and_metric():
    line = {
        **place(3),
        "return": [1.0, 3.0],
        "q": [None, 2.0],
        "one": [5.0],
        "returns": [[1], [2]],
        "what": "x",
    }
    assert flattened(line) == {
        "eval/return": 2.0, "eval/return/seed0": 1.0, "eval/return/seed1": 3.0,
        "eval/q/seed1": 2.0, "eval/one": 5.0,
    }  # fmt: skip


def test_the_wandb_shaped_adapter_makes_wandb_s_calls(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    (tmp_path / "config.yaml").write_text("seed: 4\n")
    file = MetricsFile(tmp_path / "metrics.jsonl", ["wandb"])
    assert fake.calls == [], "nothing is opened before the first line"
    file.write(place(0), values(1.0))
    file.close()
    (_, start), (_, logged), (last, _) = fake.calls
    assert (start["project"], start["name"], start["config"]) == ("mbo2o", tmp_path.name, {"seed": 4})
    assert (start["resume"], start["reinit"]) == ("allow", "create_new")
    assert start["id"].startswith(tmp_path.name)
    assert logged["step"] == 10
    assert logged["data"]["eval/return"] == 2
    assert last == "finish"
    again = MetricsFile(tmp_path / "metrics.jsonl", ["wandb"])
    again.write(place(1), {})
    assert fake.calls[3][1]["id"] == start["id"], "a run that goes on has its id again"


@pytest.mark.parametrize("fail", ["init", "log", "finish"])
def test_a_logger_that_raises_is_told_once_and_left_out(fail, tmp_path, monkeypatch, recwarn):
    fake = FakeWandb(fail)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    file = MetricsFile(tmp_path / "metrics.jsonl", ["wandb", "csv"])
    for t in range(3):
        file.write(place(t), values(float(t)))
    file.close()
    said = [str(w.message) for w in recwarn if "log=[wandb]" in str(w.message)]
    assert len(said) == 1
    assert f"({fail} is out of order)" in said[0]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + 3 * 6


@pytest.mark.parametrize("missing", ["wandb", "trackio", "tensorboard"])
def test_a_package_that_is_missing_is_one_line(missing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, KNOWN[missing][1], None)
    with pytest.raises(UserError, match=rf"pip install 'mbo2o\[{missing}\]'"):
        Loggers([missing], tmp_path / "metrics.jsonl")


def test_a_package_that_breaks_while_it_is_imported_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "wandb.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.warns(UserWarning, match="cannot be imported"):
        Loggers(["wandb"], tmp_path / "metrics.jsonl").log(place(0))


@pytest.mark.parametrize(
    ("given", "said"), [(["tensorbord"], "did you mean 'tensorboard'"), ("csv", "a list")]
)
def test_mistakes_in_the_setting_are_one_line(given, said):
    with pytest.raises(UserError, match=said):
        Config(recipe=None, log=given)


def test_a_csv_of_a_run_that_goes_on_has_no_line_twice(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, ["csv"])
    sizes = []
    for t in range(4):
        file.write(place(t), values(float(t)))
        sizes.append(file.size())
    file.close()
    file = MetricsFile(path, ["csv"])
    file.truncate(sizes[1])  # the checkpoint that it goes on from
    for t in range(2, 5):
        file.write(place(t), values(float(t)))
    file.close()
    table = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    rows = [x for x in table if x["metric"] == "return"]
    places = [(int(x["total"]), int(x["seed"])) for x in rows]
    assert places == [(10 + t, k) for t in range(5) for k in (0, 1)]
    assert [float(x["value"]) for x in rows][:4] == [0, 2, 1, 3]
    episodes = [x for x in table if x["metric"] == "returns"]
    assert {(x["seed"], x["index"]) for x in episodes} == {("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")}


def test_tensorboard_hides_what_is_repeated(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, ["tensorboard"])
    file.write(place(0), values(0.0))
    size = file.size()
    file.write(place(1), values(-50.0))
    file.close()
    file = MetricsFile(path, ["tensorboard"])
    file.truncate(size)
    file.write(place(1), values(1.0))
    file.write(place(2), values(2.0))
    file.close()
    board = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(x.step, x.value) for x in board.Scalars("eval/return")] == [(10, 1), (11, 2), (12, 3)]


def test_trackio_takes_a_run_and_the_rest_of_it(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    code = """
import sys, pathlib, torch
from mbo2o.run.log import MetricsFile
path = pathlib.Path(sys.argv[1]) / "metrics.jsonl"
for steps in ((0, 1), (2,)):
    file = MetricsFile(path, ["trackio"])
    for t in steps:
        place = {"kind": "eval", "phase": "online", "step": t, "total": t, "time": 0.0}
        file.write(place, {"return": torch.tensor([float(t)])})
    file.close()
from trackio.sqlite_storage import SQLiteStorage
rows = SQLiteStorage.get_logs("mbo2o", path.parent.name)
print([(x["step"], x["eval/return"]) for x in rows])
"""
    (tmp_path / "run").mkdir()
    env = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:mbo2o", "-c", code, str(tmp_path / "run")],
        env=env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert "[(0, 0.0), (1, 1.0), (2, 2.0)]" in lines, done.stdout + done.stderr
    assert "Created new run" in done.stderr, "what a package prints is not mixed with results"


def test_loggers_change_neither_the_name_nor_the_bits_of_a_run(pendulum, tmp_path, monkeypatch):
    import mbo2o

    fake = FakeWandb()
    fake._call = lambda what, **given: (random.random(), np.random.rand())  # noqa: NPY002
    monkeypatch.setitem(sys.modules, "wandb", fake)
    given = ["recipe=scratch", "env=Pendulum-v1", "report=false", "recipe.agent.actor.hidden=[4]"]
    given += ["recipe.agent.critic.hidden=[4]", "recipe.batch=8", "recipe.random_steps=10", "engine=eager"]
    given += ["recipe.online_steps=40", "run.eval_every=20", "run.eval_episodes=1", "run.online_capacity=99"]
    found = []
    for log in ("[jsonl]", "[csv,wandb]"):
        cfg = mbo2o.config(*given, f"log={log}", f"dir={tmp_path / log}")
        train(cfg)
        lines = [json.loads(x) for x in (tmp_path / log / "metrics.jsonl").read_text().splitlines()]
        found.append((name(cfg, "Pendulum-v1"), [{k: v for k, v in x.items() if k != "time"} for x in lines]))
    assert found[0] == found[1]
    assert read_config(tmp_path / "[csv,wandb]")[0].log == ["csv", "wandb"]


def test_a_run_of_an_older_version_with_tensorboard_is_read(tmp_path):
    text = (Path(__file__).parents[1] / "golden" / "v1" / "config.yaml").read_text()
    assert "  tensorboard: false\n" in text
    for value, log in (("false", ["jsonl"]), ("true", ["tensorboard"])):
        (tmp_path / "config.yaml").write_text(text.replace("tensorboard: false", f"tensorboard: {value}"))
        assert read_config(tmp_path)[0].log == log
