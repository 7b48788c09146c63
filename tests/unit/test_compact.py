"""The compact layout says the same as the full one in fewer bytes; a thinned file keeps whole episodes."""

import h5py
import numpy as np
import pytest

from mbo2o.cli.main import main
from mbo2o.errors import UserError
from mbo2o.store import compact, datasets
from mbo2o.store.hdf5 import read_hdf5, write_hdf5


def log(lengths, seed=0, cut=0):
    """Episodes of these lengths that end by turns in a terminal and a timeout; the last `cut` rows miss."""
    rng, rows = np.random.default_rng(seed), []
    for i, n in enumerate(lengths):
        states = rng.normal(size=(n + 1, 3)).astype(np.float32)
        end = np.arange(n) == n - 1
        rows.append((states[:-1], states[1:], end & (i % 2 == 0), end & (i % 2 == 1)))
    obs, after, done, cuts = (np.concatenate(x)[: sum(lengths) - cut] for x in zip(*rows, strict=True))
    act = rng.uniform(-1, 1, (len(obs), 2)).astype(np.float32)
    rew = rng.normal(size=len(obs)).astype(np.float32)
    names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
    return dict(zip(names, (obs, act, rew, after, done, cuts), strict=True))


@pytest.mark.parametrize("cut", [0, 2])
@pytest.mark.parametrize("storage", ["ram", "memmap"])
def test_a_compact_file_reads_as_the_full_one_bit_for_bit(tmp_path, cut, storage):
    fields = log([4, 7, 1, 5], cut=cut)
    for layout in ("full", "compact"):
        write_hdf5(tmp_path / f"{layout}.hdf5", fields, {"env_id": "Hopper-v5"}, layout)
    full, small = (datasets.read(tmp_path / f"{x}.hdf5", storage) for x in ("full", "compact"))
    assert small.packed.equal(full.packed)
    assert small.index.equal(full.index)
    assert small.attrs == full.attrs


def test_a_compact_file_leaves_out_what_the_next_row_says(tmp_path):
    write_hdf5(tmp_path / "c.hdf5", log([4, 7, 1]), {}, "compact")
    with h5py.File(tmp_path / "c.hdf5") as file:
        assert "next_observations" not in file
        assert file[compact.FINAL].shape == (3, 3)


def test_a_next_observation_that_the_row_below_does_not_hold_is_refused_with_its_row(tmp_path):
    fields = log([4, 7])
    fields["next_observations"][5] += 1
    with pytest.raises(UserError, match=r"row 5 is not the observation of row 6.*full layout"):
        write_hdf5(tmp_path / "c.hdf5", fields, {}, "compact")
    assert not (tmp_path / "c.hdf5").exists()


def test_final_observations_of_another_number_of_episodes_are_refused(tmp_path):
    write_hdf5(tmp_path / "c.hdf5", log([4, 7, 1]), {}, "compact")
    with h5py.File(tmp_path / "c.hdf5", "a") as file:
        final = file[compact.FINAL][:2]
        del file[compact.FINAL]
        file[compact.FINAL] = final
    with pytest.raises(UserError, match=r"final_observations.*\(2, 3\), expected \(3, 3\)"):
        read_hdf5(tmp_path / "c.hdf5")


@pytest.mark.parametrize("every", [2, 3])
def test_a_thinned_file_holds_each_kth_whole_episode_and_the_best_one(every):
    lengths = [4, 7, 1, 5, 3, 6, 2]
    fields = log(lengths, cut=1)  # the last episode has no end
    number = np.repeat(np.arange(7), lengths)[:-1]
    best = max(range(6), key=lambda i: fields["rewards"][number == i].sum())
    kept = [i for i in range(6) if i % every == best % every]
    thin = compact.thin(fields, every, "x")
    for key, x in fields.items():
        np.testing.assert_array_equal(thin[key], np.concatenate([x[number == i] for i in kept]))


def test_a_log_without_a_whole_episode_cannot_be_thinned():
    with pytest.raises(UserError, match="no whole episode"):
        compact.thin(log([4], cut=1), 2, "x")


def run(*args):
    with pytest.raises(SystemExit) as stopped:
        main(["data", "copy", *map(str, args)])
    return stopped.value.code


def test_data_copy_writes_both_layouts_and_says_how_large_they_are(tmp_path, capsys):
    write_hdf5(tmp_path / "a.hdf5", log([4, 7, 2, 5]), {"env_id": "Hopper-v5"})
    a, b, c = (tmp_path / f"{x}.hdf5" for x in "abc")
    assert run(a, b, "--every", 2, "--layout", "compact") == 0
    assert "rows in the compact layout" in capsys.readouterr().out
    assert run(b, c) == 0
    assert datasets.read(b).packed.equal(datasets.read(c).packed)
    with h5py.File(c) as file:
        assert "next_observations" in file
    assert run(a, b, "--every", 0) == 2
