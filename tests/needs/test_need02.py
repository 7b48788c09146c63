"""Need 2: episode boundaries and next observations that are true.

A counter environment, whose observation holds episode and step, as D4RL's HDF5 with and without
`next_observations` and `timeouts`, as Minari, as NumPy arrays and as CSV: all loaders give the same rows, and
none pairs two episodes. `mbo2o data check` exits with 1 on the shift that a reader made of Minari data.
"""

import csv
import warnings

import numpy as np
import pytest

from mbo2o.cli.main import main
from mbo2o.data.dataset import TransitionDataset
from mbo2o.store import datasets
from mbo2o.store.hdf5 import write_hdf5
from mbo2o.store.minari import write_minari

LENGTHS = [6, 4, 3, 7, 3]
"""23 rows; the first episode and every second one after it terminates, the others are cut."""


def counter():
    rows = [(e, t, n) for e, n in enumerate(LENGTHS) for t in range(n)]
    obs = np.array([[e, t, 10 * e + t] for e, t, _ in rows], np.float32)
    last = np.array([t == n - 1 for _, t, n in rows])
    ends = last & np.array([e % 2 == 0 for e, *_ in rows])
    return {
        "observations": obs,
        "actions": np.linspace(-0.9, 0.9, len(rows), dtype=np.float32)[:, None],
        "rewards": np.arange(len(rows), dtype=np.float32),
        "terminals": ends,
        "timeouts": last & ~ends,
        "next_observations": obs + np.array([0, 1, 1], np.float32),
    }


def without(*names):
    return {k: v for k, v in counter().items() if k not in names}


def hdf5(fields, tmp_path):
    write_hdf5(tmp_path / "x.hdf5", fields, {})
    return datasets.read(tmp_path / "x.hdf5")


def table(fields, tmp_path):
    with open(tmp_path / "x.csv", "w", newline="") as file:
        out = csv.writer(file)
        names = {"observations": "obs", "next_observations": "next_obs"}
        columns = {}
        for key, x in fields.items():
            for i, column in enumerate(x.reshape(len(x), -1).T):
                columns[f"{names[key]}_{i}" if key in names else key.rstrip("s")] = column
        out.writerow(columns)
        out.writerows(zip(*(x.astype(float) for x in columns.values()), strict=True))
    return datasets.read(tmp_path / "x.csv")


def minari(fields, tmp_path):
    write_minari(TransitionDataset.from_arrays(**fields), "counter/need-v0")
    return datasets.read("minari:counter/need-v0")


LOADERS = {
    "arrays": (lambda fields, tmp_path: TransitionDataset.from_arrays(**fields), ()),
    "hdf5": (hdf5, ()),
    "hdf5 without timeouts": (hdf5, ("timeouts",)),
    "hdf5 without next observations": (hdf5, ("next_observations",)),
    "csv": (table, ()),
    "minari": (minari, ()),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_all_loaders_give_the_same_rows_and_pair_no_two_episodes(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    load, left_out = LOADERS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ends that were inferred are counted in one
        found = load(without(*left_out), tmp_path)
    whole = counter()
    assert np.array_equal(found.obs, whole["observations"])
    assert np.array_equal(found.rew, whole["rewards"])
    assert np.array_equal(found.terminated, whole["terminals"])
    assert np.array_equal(found.terminated | found.truncated, whole["terminals"] | whole["timeouts"])
    assert found.episode.tolist() == [e for e, n in enumerate(LENGTHS) for _ in range(n)]
    known = found.valid_next.numpy()
    assert np.array_equal(found.next_obs.numpy()[known], whole["next_observations"][known])
    assert known.sum() == (18 if "next_observations" in left_out else 23)


def test_rows_across_a_hidden_cut_are_not_used():
    with pytest.warns(UserWarning, match="ends"):
        found = TransitionDataset.from_arrays(**without("timeouts"))
    crossing = (found.next_obs[:, 0] != found.obs[:, 0])[found.index]
    assert not bool(crossing.any())


def test_check_exits_with_1_where_next_observations_are_the_next_episode_s(tmp_path, capsys):
    full = np.array([[e, t, 10 * e + t] for e, n in enumerate(LENGTHS) for t in range(n + 1)], np.float32)
    n = sum(LENGTHS)
    shifted = counter() | {"observations": full[:n], "next_observations": full[1 : n + 1]}
    write_hdf5(tmp_path / "x.hdf5", shifted, {})
    with pytest.raises(SystemExit) as e:
        main(["data", "check", str(tmp_path / "x.hdf5")])
    assert e.value.code == 1
    assert "of next observations are the next episode's start" in capsys.readouterr().out
