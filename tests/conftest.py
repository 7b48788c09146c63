import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

from mbo2o.collect import roll
from mbo2o.data.dataset import TransitionDataset


@pytest.fixture(autouse=True)
def _one_thread_and_a_clean_folder(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)  # runs and MuJoCo's log go here


@pytest.fixture(scope="session")
def pendulum(tmp_path_factory):
    """A file of 600 random transitions of Pendulum-v1."""
    path = tmp_path_factory.mktemp("data") / "pendulum-random.hdf5"
    fields = roll("Pendulum-v1", None, 600, seed=0)
    TransitionDataset.from_arrays(**fields, attrs={"env_id": "Pendulum-v1"}).save(path)
    assert np.isfinite(fields["rewards"]).all()
    return path
