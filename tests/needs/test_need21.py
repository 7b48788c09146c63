"""Need 21: export a policy, with normaliser and action scaling in the graph, and a dynamic batch.

`mbo2o export RUN --to onnx|pt2|npz` writes io.json beside it. onnxruntime and torch differ by less than 1e-5
on 256 observations, also in batches of 1 and 7; the numpy export runs where torch cannot be imported.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny import tiny

import mbo2o
from mbo2o.cli.main import main
from mbo2o.training import train

ALONE = """
import sys
sys.modules["torch"] = sys.modules["mbo2o"] = None  # importing one would be an error
import numpy as np
sys.path.insert(0, sys.argv[1])
from p import predict
obs = np.load(sys.argv[2])
np.save(sys.argv[3], predict(obs))
assert predict(obs[0]).shape == (1,)
"""


@pytest.fixture(scope="module")
def exported(pendulum, tmp_path_factory):
    """The folder of a run of two seeds, and the policy of the second one, exported in all three ways."""
    folder = tmp_path_factory.mktemp("need21")
    cfg = tiny("finetune", pendulum, folder / "run", seeds=2)
    train(cfg)
    for kind in ("onnx", "pt2", "npz"):
        command = ["export", str(folder / "run"), "--to", kind, "--seed", "1", "--out", str(folder / "p")]
        with pytest.raises(SystemExit) as done:
            main(command)
        assert done.value.code == 0
    return folder, mbo2o.load(folder / "run", seed=1)


@pytest.fixture(scope="module")
def asked(exported):
    """256 observations, and what the policy does there."""
    obs = np.random.default_rng(0).normal(size=(256, 3)).astype(np.float32)
    return obs, exported[1].predict(obs)[0]


def test_onnx_acts_alike_in_batches_of_any_size(exported, asked):
    runtime = pytest.importorskip("onnxruntime")
    obs, act = asked
    session = runtime.InferenceSession(exported[0] / "p.onnx")
    for n in (1, 7, 256):
        (found,) = session.run(["action"], {"obs": obs[:n]})
        np.testing.assert_allclose(found, act[:n], atol=1e-5)


def test_pt2_acts_alike_in_batches_of_any_size(exported, asked):
    obs, act = asked
    module = torch.export.load(exported[0] / "p.pt2").module()
    for n in (1, 7, 256):
        np.testing.assert_allclose(module(torch.from_numpy(obs[:n])).detach(), act[:n], atol=1e-5)


def test_the_numpy_export_acts_alike_without_torch(exported, asked, tmp_path):
    obs, act = asked
    np.save(tmp_path / "obs.npy", obs)
    paths = [str(exported[0]), str(tmp_path / "obs.npy"), str(tmp_path / "act.npy")]
    subprocess.run([sys.executable, "-c", ALONE, *paths], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "act.npy"), act, atol=1e-5)


def test_io_json_says_what_goes_in_and_out(exported):
    about = json.loads((exported[0] / "io.json").read_text())
    assert about["observation"]["size"] == len(about["observation"]["names"]) == 3
    assert (about["action"]["low"], about["action"]["high"]) == ([-2.0], [2.0])
    assert about["deterministic"] == "The tanh of the Gaussian's mean"
