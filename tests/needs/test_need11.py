"""Need 11: speed on ordinary machines (ensembles, model training, rollouts, CQL, many seeds).

Ensembles and seeds are one batched product; a run takes one thread unless it is told otherwise, so that two
runs on two cores do not starve each other. Acceptance: `mbo2o bench update --against F` gives the rate of
each part, compares it with stored results, and fails where it is below half; two seeds in parallel on two
cores take less than 1.3 times as long as one.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import nets
import pytest

import mbo2o
from bench import update
from bench.floor import Net
from bench.works import Work
from mbo2o.cli.main import main
from mbo2o.settings import Config

REPO = Path(mbo2o.__file__).parents[1]
QUICK = ["--rounds", "1", "--seconds", "0.01", "--engine", "eager", "--precision", "fp32"]


def bench(*options):
    with pytest.raises(SystemExit) as end:
        main(["bench", "update", *QUICK, *map(str, options)])
    return end.value.code


@pytest.fixture
def one_work(monkeypatch):
    """A work that takes no time, instead of those of the tables."""
    monkeypatch.setattr(
        update, "WORKS", {"sac": Work("SAC", nets.small("sac"), (Net(2, 8, (23, 8, 1), "fwx"),))}
    )
    monkeypatch.setattr(update, "BATCH", 8)
    monkeypatch.setattr(update, "ROWS", 500)
    update.dataset.cache_clear()
    yield
    update.dataset.cache_clear()


def test_rates_are_compared_with_stored_ones_and_fail_below_half(one_work, tmp_path, capsys):
    now, then = tmp_path / "now.json", tmp_path / "then.json"
    assert bench("--json", now) == 0
    rate = statistics.median(json.loads(now.read_text())["sac"]["rows"][0]["rates"])
    stored = json.loads(now.read_text())
    for factor, code in ((0.01, 0), (100, 1)):  # far from half, so that a busy machine decides nothing
        stored["sac"]["rows"][0]["rates"] = [rate * factor]
        then.write_text(json.dumps(stored))
        capsys.readouterr()
        assert bench("--json", now, "--against", then) == code
    assert "sac: mbo2o eager fp32 does " in capsys.readouterr().out
    assert bench("--against", then) == 2
    assert "give --json F, too" in capsys.readouterr().err


def test_a_run_takes_one_thread_and_the_rest_is_set_before_torch_is_loaded():
    assert Config().threads == 1
    program = "import os, sys, mbo2o.cli.main; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    env = {key: x for key, x in os.environ.items() if not key.startswith("OMP_")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout == "passive False\n"  # threads that wait leave the core to others


@pytest.mark.slow
def test_two_runs_on_two_cores_take_hardly_longer_than_one(pendulum, tmp_path):
    """It needs two cores that nothing else uses, so that it is not among the usual tests."""
    if (os.cpu_count() or 1) < 2 or os.getloadavg()[0] > 0.5:
        pytest.skip("the cores are busy, or there is one alone: times would say nothing")

    def seconds(*seeds):
        begun = time.monotonic()
        args = ["train", "switch=td3bc", f"dataset={pendulum}", "recipe.offline_steps=3000", "engine=eager"]
        args += ["recipe.online_steps=0", "report=false", "run.eval_every=3000", "run.eval_episodes=1"]
        command = [sys.executable, "-m", "mbo2o", *args]
        where = tmp_path / str(len(seeds))
        running = [subprocess.Popen([*command, f"seed={k}", f"dir={where}-{k}"]) for k in seeds]
        assert [x.wait() for x in running] == [0] * len(seeds)
        return time.monotonic() - begun

    assert seconds(1, 2) < 1.3 * seconds(0)
