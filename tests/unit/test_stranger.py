"""The path from a clone to a called policy, as `python -m bench.stranger` goes and times it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.stranger import write_log

ROOT = Path(__file__).parents[2]


def test_the_log_of_the_path_is_one_that_is_read_as_it_is(tmp_path):
    from mbo2o.store.datasets import read

    assert write_log(tmp_path / "my.csv") == 240
    data = read(tmp_path / "my.csv", bounds=(-2, 2))
    assert (data.n_rows, data.obs_dim, data.act_dim) == (240, 2, 1)


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the path begins with a clone")
def test_a_stranger_gets_from_a_clone_to_a_called_policy(tmp_path):
    pytest.importorskip("onnxruntime")
    command = [sys.executable, "-m", "bench.stranger", "--site", "--keep", str(tmp_path / "way")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pushes = re.search(r"place 0.8 -> force (\S+), place -0.8 -> force (\S+)", done.stdout)
    assert float(pushes[1]) < 0 < float(pushes[2]), "the policy pushes towards the origin, as its data do"
    trained = re.search(r"([\d.]+) s CPU +240 rows to a policy", done.stdout)
    assert float(trained[1]) < 60
