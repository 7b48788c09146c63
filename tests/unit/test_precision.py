"""Observations that float32 cannot tell apart are counted and named when they are read; small numbers never
are.
"""

import json
import warnings

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbo2o.cli import main as cli
from mbo2o.data.dataset import TransitionDataset
from mbo2o.data.precision import LostPrecision
from mbo2o.doctor.audit import audit
from mbo2o.store import datasets
from mbo2o.store.d4rl import read_dict
from mbo2o.store.episodes import read_episodes
from mbo2o.store.table import read_table

N = 600


def walk(offset=0.0, clock=0.0, tick=0.05, n=N):
    """Steps of 0.1 in three dimensions, the first of which has an offset, and a clock."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n + 1, 3)).cumsum(0) * 0.1
    x[:, 0] += offset
    obs = np.column_stack([x, clock + np.arange(n + 1) * tick])
    return {
        "observations": obs[:-1],
        "actions": rng.uniform(-1, 1, (n, 2)),
        "rewards": rng.standard_normal(n),
        "terminals": np.zeros(n, bool),
        "timeouts": np.arange(n) % 100 == 99,
        "next_observations": obs[1:],
    }


def lost(f, *args, **kwargs):
    """What is said of precision."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        f(*args, **kwargs)
    return [str(w.message) for w in caught if isinstance(w.message, LostPrecision)]


def without(x, *keys):
    return {key: v for key, v in x.items() if key not in keys}


def h5_file(path, x):
    with h5py.File(path, "w") as file:
        for key, value in x.items():
            file[key] = value
    return path


def table(path, x):
    header = "a,b,c,t,u,v,r,d,e"
    rows = np.column_stack([x[k] for k in ("observations", "actions", "rewards", "terminals", "timeouts")])
    np.savetxt(path, rows, "%.17g", ",", header=header, comments="")
    names = {
        "observations": list("abct"),
        "actions": ["u", "v"],
        "rewards": "r",
        "terminals": "d",
        "timeouts": "e",
    }
    return path, names


def episodes(x):
    return [{key: v[i : i + 100] for key, v in x.items()} for i in range(0, N, 100)]


LOADERS = {
    "arrays": lambda x, tmp: TransitionDataset.from_arrays(**x),
    "dict": lambda x, tmp: read_dict(x),
    "hdf5": lambda x, tmp: datasets.read(h5_file(tmp / "x.hdf5", x)),
    "table": lambda x, tmp: read_table(*table(tmp / "x.csv", x)),
    "episodes": lambda x, tmp: read_episodes(episodes(x)),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_every_loader_names_the_dimensions_with_counts(loader, tmp_path):
    """Case: a map coordinate (4.5e6 m, moves of 0.1 m) and a unix time of 20 Hz."""
    (said,) = lost(LOADERS[loader], walk(4.5e6, 1.76e9), tmp_path)
    assert "dimension 0 changes in " in said
    assert "; dimension 3 changes in " in said
    assert said.endswith(" in float32 in 0: subtract an offset from them")


def test_the_counts_equal_those_of_a_loop():
    x = walk(4.5e6, 1.76e9)
    narrow = {key: x[key].astype(np.float32) for key in ("observations", "next_observations")}
    moves = (narrow["observations"] != narrow["next_observations"]).sum(0)
    (said,) = lost(TransitionDataset.from_arrays, **x)
    assert (
        f"dimension 0 changes in {N} rows, in float32 in {moves[0]}; dimension 3 changes in {N} rows, in float32 in 0"  # noqa: E501
        in said
    )
    assert 0 < moves[0] < 0.2 * N


def test_without_next_observations_rows_are_compared_with_those_below(monkeypatch):
    x = without(walk(clock=1.76e9), "next_observations")
    whole = lost(TransitionDataset.from_arrays, **x)
    assert f"dimension 3 changes in {N - 1} rows, in float32 in 0" in whole[0]
    # Ten rows at a time, as when a file is larger than memory.
    monkeypatch.setattr("mbo2o.data.fields.BLOCK", 40)
    assert lost(TransitionDataset.from_arrays, **x) == whole


def test_a_map_warns_each_time_it_is_opened(tmp_path, monkeypatch):
    monkeypatch.setenv("MBO2O_CACHE", str(tmp_path / "cache"))
    path = h5_file(tmp_path / "x.hdf5", walk(clock=1.76e9))
    for _ in range(2):
        with pytest.warns(UserWarning, match="float32 cannot tell observations apart: dimension 3"):
            datasets.read(path, "memmap")


def trembling():
    """A body at rest at 1.25 that trembles by 1e-9 for nine steps out of ten, and moves in the tenth."""
    x = walk()
    rng = np.random.default_rng(1)
    steps = np.where(np.arange(N + 1) % 10 == 0, 0.05, 1e-9) * rng.standard_normal(N + 1)
    at = 1.25 + steps.cumsum()
    for key, rows in (("observations", slice(0, N)), ("next_observations", slice(1, N + 1))):
        x[key][:, 1] = at[rows]
    return x


def rounded_constant():
    """A column that is 1 but for what float64 rounds, as sin² + cos² is."""
    x = walk()
    angle = np.arange(N + 1) * 0.1
    for key, rows in (("observations", slice(0, N)), ("next_observations", slice(1, N + 1))):
        x[key][:, 2] = (np.sin(angle) ** 2 + np.cos(angle) ** 2)[rows]
    return x


SOUND = {
    "ordinary numbers": walk,
    "trembling": trembling,
    "a constant": rounded_constant,
    "an episode's clock": lambda: walk(clock=100.0),
    "large whole numbers": lambda: {
        key: (1000 * v).astype(np.int64) if "obs" in key else v for key, v in walk(offset=100.0).items()
    },
    "unknown next ones": lambda: (
        walk()
        | {"next_observations": np.where(np.arange(N)[:, None] % 2, np.nan, walk()["next_observations"])}
    ),
}


@pytest.mark.parametrize("case", SOUND)
def test_observations_that_float32_holds_give_no_warning(case):
    assert lost(TransitionDataset.from_arrays, **SOUND[case]()) == []


def test_a_float32_file_gives_no_warning():
    x = {key: v.astype(np.float32) if "obs" in key else v for key, v in walk(4.5e6, 1.76e9).items()}
    assert lost(TransitionDataset.from_arrays, **x) == []


def test_resets_far_apart_do_not_hide_lost_steps():
    """Episodes begin a kilometre apart, so that the steps within are a small part of all there is."""
    x = without(walk(4.5e6), "next_observations")
    x["observations"][:, 0] += 1000 * (np.arange(N) // 100)
    (said,) = lost(TransitionDataset.from_arrays, **x)
    assert "dimension 0 " in said


def test_whole_numbers_are_checked_too():
    x = walk()
    clock = 1_760_000_000_000 + 50 * np.arange(N + 1)  # milliseconds
    x |= {"observations": clock[:-1, None], "next_observations": clock[1:, None]}
    (said,) = lost(TransitionDataset.from_arrays, **x)
    assert f"dimension 0 changes in {N} rows" in said


@settings(max_examples=60, deadline=None)
@given(st.floats(-1e10, 1e10), st.floats(1e-3, 1e3), st.integers(0, 2**32 - 1))
def test_the_warning_depends_on_the_spacing_of_float32_against_the_steps(offset, step, seed):
    steps = step * (1 + np.random.default_rng(seed).random(100))
    at = offset + np.append(0, steps.cumsum())
    x = walk(n=100) | {"observations": at[:-1, None], "next_observations": at[1:, None]}
    spacing = float(np.spacing(np.float32(np.abs(at).max())))
    said = lost(TransitionDataset.from_arrays, **x)
    if spacing > 20 * step:
        assert said
    if spacing < step / 20:
        assert not said


def test_the_doctor_rules_lost_precision_out_for_dynamics(tmp_path, capsys):
    path = h5_file(tmp_path / "utm.hdf5", walk(4.5e6, 1.76e9))
    with pytest.raises(SystemExit) as e:
        cli.main(["data", "check", str(path), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert e.value.code == 1
    found = {f["name"]: f for f in report["findings"]}["observations_lose_precision"]
    assert "dimension 3 changes in 600 rows, in float32 in 0: subtract an offset" in found["message"]
    assert report["verdicts"]["dynamics"]["verdict"] == "no"
    assert report["verdicts"]["cloning"]["verdict"] == "yes"
    assert "observations_lose_precision" in {f.name for f in audit(walk(clock=1.76e9)).findings}
    assert "observations_lose_precision" not in {f.name for f in audit(walk()).findings}
