"""Datasets at addresses of fsspec: the same bits as a file, copied once, one line for what goes wrong."""

import os
import sys
import types

import pytest
import torch

from mbo2o.data.dataset import COLUMNS
from mbo2o.store import addresses, datasets
from mbo2o.store.content import cache_folder
from mbo2o.types import UserError

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MBO2O_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def stored(pendulum):
    """A dataset in memory's file system, and its address."""
    address = "memory://bucket/pendulum-random.hdf5"
    fsspec.filesystem("memory").pipe_file("/bucket/pendulum-random.hdf5", pendulum.read_bytes())
    yield address
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def copies():
    return sorted(x for x in (cache_folder() / "addresses").rglob("*") if x.is_file() and x.name != ".lock")


@pytest.mark.parametrize("storage", ["ram", "memmap"])
@pytest.mark.parametrize("kind", ["memory", "file"])
def test_an_address_gives_the_bits_and_the_identity_of_the_file(stored, pendulum, storage, kind):
    address = stored if kind == "memory" else pendulum.as_uri()
    here, there = (datasets.read(x, storage=storage) for x in (pendulum, address))
    assert all(torch.equal(getattr(here, x), getattr(there, x)) for x in COLUMNS)
    assert here.attrs == there.attrs
    assert datasets.find(address).sha256() == datasets.find(pendulum).sha256()
    assert len(copies()) == (1 if kind == "memory" else 0)  # a file of this machine is not copied


def test_a_run_goes_on_from_the_address_and_from_the_file(stored, pendulum, monkeypatch, tmp_path):
    from mbo2o.cli.train import config
    from mbo2o.training import train

    monkeypatch.chdir(tmp_path)
    small = ["recipe.offline.actor.hidden=[4]", "recipe.offline.critic.hidden=[4]", "recipe.batch=8"]
    sizes = ["recipe.offline_steps=10", "recipe.online_steps=0", "run.eval_episodes=1", "report=false"]
    given = ["switch=td3bc", *small, *sizes]
    first = train(config(f"dataset={stored}", *given))
    assert first.name.startswith("finetune-pendulum-random-")
    log = (first / "metrics.jsonl").read_bytes()
    assert train(config(f"dataset={pendulum}", *given)) == first
    assert (first / "metrics.jsonl").read_bytes() == log


def test_a_copy_is_made_once_and_again_when_the_file_changes(stored, pendulum, monkeypatch):
    first = addresses.local_copy(stored)
    with monkeypatch.context() as m:
        m.setattr(addresses, "_copy", None)
        assert addresses.local_copy(stored) == first
    left = first.with_name(".left.tmp")
    fsspec.filesystem("memory").pipe_file("/bucket/pendulum-random.hdf5", b"new")
    left.write_bytes(b"torn")
    second = addresses.local_copy(stored)
    assert second.read_bytes() == b"new"
    assert copies() == [second]


def test_a_file_that_changes_while_it_is_copied_is_refused(stored, monkeypatch):
    states = iter([("a", 3), ("b", 3)])
    monkeypatch.setattr(addresses, "_state", lambda fs, path: next(states))
    with pytest.raises(UserError, match="was changed while it was read"):
        addresses.local_copy(stored)
    assert copies() == []


def test_a_size_alone_tells_a_change_where_the_backend_knows_no_more():
    """HTTP's `ukey` depends on the address alone."""
    info = {"type": "file", "size": 1}
    fs = types.SimpleNamespace(
        invalidate_cache=lambda: None, info=lambda path: info, ukey=lambda path: "same"
    )
    before = addresses._state(fs, "x")
    for change in ({"size": 2}, {"ETag": "x"}, {"mtime": 1.0}):
        info = {"type": "file", "size": 1} | change
        assert addresses._state(fs, "x")[0] != before[0]


def test_without_a_network_the_copy_is_used(stored, monkeypatch):
    monkeypatch.setenv("MBO2O_OFFLINE", "1")
    with pytest.raises(UserError, match="no copy of it is in the cache"):
        addresses.local_copy(stored)
    monkeypatch.delenv("MBO2O_OFFLINE")
    copy = addresses.local_copy(stored)
    monkeypatch.setenv("MBO2O_OFFLINE", "1")
    monkeypatch.setattr(addresses, "_opened", None)
    assert addresses.local_copy(stored) == copy


def test_a_connection_that_is_lost_leaves_nothing(stored, monkeypatch):
    class Lost:
        def __init__(self, *args):
            self.answers = iter([b"x" * 100])

        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

        def read(self, n):
            try:
                return next(self.answers)
            except StopIteration:
                raise ConnectionError("reset by peer") from None

    monkeypatch.setattr(fsspec.filesystem("memory"), "open", Lost, raising=False)
    with pytest.raises(UserError, match="cannot be read \\(reset by peer\\)"):
        addresses.local_copy(stored)
    assert copies() == []


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("memory://bucket/nothing.hdf5", "no such file; check the address"),
        ("memory://bucket", "is no file"),
        ("nonsense://x.hdf5", "Protocol not known: nonsense"),
        ("file:///nowhere/x.hdf5", "no such file"),
        ("memory://bucket/a\nb.hdf5", "a\\nb.hdf5: no such file"),
    ],
)
def test_what_is_wrong_with_an_address_is_one_line(address, said, stored):
    with pytest.raises(UserError) as e:
        datasets.find(address)
    assert said in str(e.value)
    assert "\n" not in str(e.value)


def test_a_missing_package_is_named(monkeypatch):
    for module in ("s3fs", "fsspec.implementations.arrow"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"s3://b/x.hdf5: fsspec needs another package for s3://.*s3fs"):
        datasets.find("s3://b/x.hdf5")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(UserError, match=r"needs fsspec; pip install 'mbo2o\[remote\]'"):
        datasets.find("s3://b/x.hdf5")


def test_a_full_disk_is_one_line(stored, monkeypatch):
    def full(*args):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(addresses, "whole_file", full)
    with pytest.raises(UserError, match=r"cannot be written .*MBO2O_CACHE"):
        addresses.local_copy(stored)


@pytest.mark.parametrize("name", ["hopper-medium-v5", "a/b.hdf5", "minari:x/y-v0", "d4rl/x-v2", "C:\\x.hdf5"])
def test_other_names_are_no_addresses(name):
    assert not addresses.is_address(name)
