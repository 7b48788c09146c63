"""A run knows its dataset by its content: another file of the same name is refused, a copy under another name is not."""

import hashlib
import os
import shutil
import time

import h5py
import numpy as np
import pytest
import yaml

from mbo2o.agents.bc import BCConfig
from mbo2o.cli import main as cli
from mbo2o.data.dataset import TransitionDataset
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.recipes.finetune import FinetuneConfig
from mbo2o.report.page import write_report
from mbo2o.run.run import RunConfig
from mbo2o.store import content
from mbo2o.train import Config, restore, train
from mbo2o.types import UserError


def refusal(f, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        f(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------------- the sums


@pytest.fixture
def digests(monkeypatch, tmp_path):
    """The files that were read for a sum."""
    monkeypatch.setenv("MBO2O_CACHE", str(tmp_path / "cache"))
    read, digest = [], content.digest
    monkeypatch.setattr(content, "digest", lambda file: read.append(file) or digest(file))
    return read


def settle(monkeypatch):
    """As if the files had been written some time ago."""
    now = time.time_ns
    monkeypatch.setattr(content.time, "time_ns", lambda: now() + 10**10)


def test_a_file_is_read_once_while_it_is_unchanged(tmp_path, digests, monkeypatch):
    settle(monkeypatch)
    path = tmp_path / "x"
    path.write_bytes(b"one")
    assert content.sha256(path) == content.sha256(path) == hashlib.sha256(b"one").hexdigest()
    assert digests == [path]
    before = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # size and time of change are the old ones
    assert content.sha256(path) == hashlib.sha256(b"two").hexdigest()


def test_what_was_written_a_moment_ago_is_not_kept(tmp_path, digests):
    """Another change within the clock's resolution would have the same times."""
    path = tmp_path / "x"
    path.write_bytes(b"one")
    content.sha256(path)
    content.sha256(path)
    assert digests == [path, path]


def test_a_folder_is_its_files_wherever_it_lies(tmp_path, digests, monkeypatch):
    settle(monkeypatch)
    for name in ("a", "b"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "x").write_bytes(b"one")
        (tmp_path / name / "y").write_bytes(b"two")
    found = content.sha256(tmp_path / "a")
    assert content.sha256(tmp_path / "b") == found
    assert len(digests) == 4
    content.sha256(tmp_path / "b")
    assert len(digests) == 4
    (tmp_path / "b" / "y").rename(tmp_path / "b" / "z")
    assert content.sha256(tmp_path / "b") != found


@pytest.mark.parametrize("entry", [b"", b"{", b"[]", b"null", b'{"identity": 1}', b"\xff", b"[" * 100_000])
def test_a_damaged_cache_is_ignored_and_mended(entry, tmp_path, digests, monkeypatch):
    settle(monkeypatch)
    path = tmp_path / "x"
    path.write_bytes(b"one")
    content.sha256(path)
    (kept,) = (tmp_path / "cache" / "sums").iterdir()
    kept.write_bytes(entry)
    assert content.sha256(path) == content.sha256(path) == hashlib.sha256(b"one").hexdigest()
    assert len(digests) == 2


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, digests, monkeypatch):
    settle(monkeypatch)
    (tmp_path / "cache").write_text("a file where the folder would be")
    path = tmp_path / "x"
    path.write_bytes(b"one")
    assert content.sha256(path) == content.sha256(path) == hashlib.sha256(b"one").hexdigest()
    assert len(digests) == 2


def test_what_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path, digest = tmp_path / "x", content.digest
    path.write_bytes(b"one")
    monkeypatch.setattr(content, "digest", lambda file: (digest(file), path.write_bytes(b"longer"))[0])
    assert "was changed while it was read" in refusal(content.sha256, path)
    assert "cannot be read (No such file or directory)" in refusal(content.sha256, tmp_path / "none")


# ------------------------------------------------------------------------------------------------------------- the runs


@pytest.fixture
def mine(pendulum, tmp_path):
    """A file of one's own."""
    return shutil.copy(pendulum, tmp_path / "mine.hdf5")


def rewrite(path):
    """Another content at the same path, as its owner's second try would be: actions and rewards changed."""
    with h5py.File(path, "r+") as file:
        fields = {key: file[key][()] for key in file} | {"actions": -file["actions"][()]}
    fields["rewards"] = np.full_like(fields["rewards"], -5)
    TransitionDataset.from_arrays(**fields, attrs={"env_id": "Pendulum-v1"}).save(path)


def sum_of(path):
    return hashlib.sha256(open(path, "rb").read()).hexdigest()


def config(path, directory, steps=20, **more):
    recipe = FinetuneConfig(
        offline=BCConfig(actor=MLPConfig(hidden=[8])),
        offline_steps=steps,
        online_steps=0,
        batch=8,
        probe_every=10,
    )
    often = RunConfig(log_every=10, eval_every=10, eval_episodes=1, checkpoint_every=10, online_capacity=50)
    return Config(recipe=recipe, dataset=str(path), dir=str(directory), report=False, run=often, **more)


def interrupted(path, directory, monkeypatch):
    """A run that was killed after its checkpoint at turn 10."""

    class Killed(BaseException):
        pass

    from mbo2o.agents.bc import BC

    update, turns = BC.update, []

    def dies(self, batch):
        turns.append(batch)
        if len(turns) > 15:
            raise Killed
        return update(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(BC, "update", dies)
        with pytest.raises(Killed):
            train(config(path, directory))


@pytest.mark.parametrize(("state", "storage"), [("at the end", "ram"), ("in the middle", "memmap")])
def test_another_file_under_the_same_name_is_refused(state, storage, mine, tmp_path, monkeypatch, capsys):
    directory = tmp_path / "run"
    if state == "in the middle":
        interrupted(mine, directory, monkeypatch)
    else:
        train(config(mine, directory))
    written, then = (directory / "config.yaml").read_bytes(), sum_of(mine)
    assert yaml.safe_load(written)["dataset_sha256"] == then
    rewrite(mine)
    said = refusal(train, config(mine, directory, storage=storage))
    assert said == (
        f"{directory}: the dataset at {mine} is not the one this run learned from "
        f"(sha256 {then} then, {sum_of(mine)} now); choose another dir="
    )
    assert refusal(restore, directory) == said
    with pytest.raises(SystemExit) as e:
        cli.main(["eval", str(directory)])
    assert e.value.code == 2
    assert said in capsys.readouterr().err
    assert (directory / "config.yaml").read_bytes() == written
    write_report(directory)  # which looks at the run alone


def test_the_same_content_goes_on(mine, tmp_path, monkeypatch):
    interrupted(mine, tmp_path / "run", monkeypatch)
    written = (tmp_path / "run" / "config.yaml").read_bytes()
    os.replace(shutil.copy(mine, tmp_path / "copy"), mine)  # another file, the same bytes
    train(config(mine, tmp_path / "run"))
    assert (tmp_path / "run" / "config.yaml").read_bytes() == written
    os.remove(mine)
    write_report(tmp_path / "run")  # which does without the dataset


def test_a_run_that_knows_no_sum_goes_on_as_it_did(mine, tmp_path, monkeypatch):
    """Runs of older versions; what their config.yaml says of the data stays."""
    directory = tmp_path / "run"
    interrupted(mine, directory, monkeypatch)
    stored = yaml.safe_load((directory / "config.yaml").read_text())
    del stored["dataset_sha256"], stored["dataset_actions"]
    (directory / "config.yaml").write_text(yaml.safe_dump(stored))
    rewrite(mine)
    train(config(mine, directory))
    now = yaml.safe_load((directory / "config.yaml").read_text())
    assert "dataset_sha256" not in now
    assert now["behaviour_return"] == stored["behaviour_return"]
    restore(directory)


def test_start_from_asks_for_the_content_and_not_for_the_name(mine, tmp_path):
    train(config(mine, tmp_path / "offline"))
    renamed = shutil.copy(mine, tmp_path / "other-name.hdf5")
    on = config(renamed, tmp_path / "a", start_from=str(tmp_path / "offline"))
    train(on)
    then = sum_of(mine)
    rewrite(mine)
    said = refusal(train, config(mine, tmp_path / "b", start_from=str(tmp_path / "offline")))
    assert said == (
        f"start_from={tmp_path / 'offline'}: was run with dataset={mine} (sha256 {then}), not {mine} (sha256 {sum_of(mine)}) "
        "(1 setting differs)"
    )


def test_names_of_run_directories_are_what_they_were(mine):
    """The sum and the settings that came later do not enter."""
    from mbo2o.train import _name, _resolve

    resolved = _resolve(config(mine, None), "Pendulum-v1")
    old = {k: v for k, v in resolved.items() if k != "dataset_actions"}
    assert (
        _name(resolved)
        == _name(resolved | {"dataset_sha256": "0" * 64, "behaviour_return": 1.0})
        == _name(old)
    )
    assert _name(resolved | {"dataset_actions": "env"}) != _name(old)
