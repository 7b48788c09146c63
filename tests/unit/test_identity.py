"""A run knows its dataset by content: another file of that name is refused, a renamed copy is not."""

import hashlib
import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from mbo2o import naming
from mbo2o.agents.bc import BCConfig
from mbo2o.cli import main as cli
from mbo2o.data.dataset import TransitionDataset
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.recipes.finetune import FinetuneConfig
from mbo2o.report.page import write_report
from mbo2o.run.config import RunConfig
from mbo2o.store import content, datasets
from mbo2o.training import Config, restore, train
from mbo2o.types import UserError


def refusal(f, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        f(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- the sums


@pytest.fixture
def digests(monkeypatch, tmp_path):
    """The files that were read for a sum."""
    monkeypatch.setenv("MBO2O_CACHE", str(tmp_path / "cache"))
    read, digest = [], content.file_sha256
    monkeypatch.setattr(content, "file_sha256", lambda file: read.append(file) or digest(file))
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


def test_the_sum_of_a_file_written_just_now_is_not_cached(tmp_path, digests):
    """Another change within the clock's resolution would have the same times."""
    path = tmp_path / "x"
    path.write_bytes(b"one")
    content.sha256(path)
    content.sha256(path)
    assert digests == [path, path]


def test_a_folder_is_known_by_its_files_wherever_it_lies(tmp_path, digests, monkeypatch):
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
def test_a_damaged_cache_is_ignored_and_rewritten(entry, tmp_path, digests, monkeypatch):
    settle(monkeypatch)
    path = tmp_path / "x"
    path.write_bytes(b"one")
    content.sha256(path)
    (kept,) = (tmp_path / "cache" / "sums").iterdir()
    kept.write_bytes(entry)
    assert content.sha256(path) == content.sha256(path) == hashlib.sha256(b"one").hexdigest()
    assert len(digests) == 2


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, digests, monkeypatch):
    settle(monkeypatch)
    (tmp_path / "cache").write_text("a file where the folder would be")
    path = tmp_path / "x"
    path.write_bytes(b"one")
    assert content.sha256(path) == content.sha256(path) == hashlib.sha256(b"one").hexdigest()
    assert len(digests) == 2


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path, digest = tmp_path / "x", content.file_sha256
    path.write_bytes(b"one")
    monkeypatch.setattr(content, "file_sha256", lambda file: (digest(file), path.write_bytes(b"longer"))[0])
    assert "was changed while it was read" in refusal(content.sha256, path)
    assert "cannot be read (No such file or directory)" in refusal(content.sha256, tmp_path / "none")


# ---- the runs


@pytest.fixture
def mine(pendulum, tmp_path):
    """A file of the user's."""
    return shutil.copy(pendulum, tmp_path / "mine.hdf5")


def rewrite(path):
    """Another content at the same path, as its owner's second try would be: actions and rewards changed."""
    with h5py.File(path, "r+") as file:
        fields = {key: file[key][()] for key in file} | {"actions": -file["actions"][()]}
    fields["rewards"] = np.full_like(fields["rewards"], -5)
    datasets.write(TransitionDataset.from_arrays(**fields, attrs={"env_id": "Pendulum-v1"}), path)


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

    def dies(self, batch, step):
        turns.append(batch)
        if len(turns) > 15:
            raise Killed
        return update(self, batch, step)

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
    write_report(directory)  # a report needs only the run


def test_the_same_content_goes_on(mine, tmp_path, monkeypatch):
    interrupted(mine, tmp_path / "run", monkeypatch)
    written = (tmp_path / "run" / "config.yaml").read_bytes()
    os.replace(shutil.copy(mine, tmp_path / "copy"), mine)  # another file, the same bytes
    train(config(mine, tmp_path / "run"))
    assert (tmp_path / "run" / "config.yaml").read_bytes() == written
    os.remove(mine)
    write_report(tmp_path / "run")  # a report needs no dataset


def test_an_older_run_without_a_sum_goes_on(mine, tmp_path, monkeypatch):
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


def test_start_from_compares_content_and_not_names(mine, tmp_path):
    train(config(mine, tmp_path / "offline"))
    renamed = shutil.copy(mine, tmp_path / "other-name.hdf5")
    on = config(renamed, tmp_path / "a", start_from=str(tmp_path / "offline"))
    train(on)
    then = sum_of(mine)
    rewrite(mine)
    said = refusal(train, config(mine, tmp_path / "b", start_from=str(tmp_path / "offline")))
    assert said == (
        f"start_from={tmp_path / 'offline'}: was run with dataset={mine} (sha256 {then}), "
        f"not {mine} (sha256 {sum_of(mine)}) (1 setting differs)"
    )


def test_the_same_data_at_another_path_are_the_runs_own(mine, tmp_path, monkeypatch):
    """In the same directory the content decides, and the config keeps the new path."""
    directory = tmp_path / "run"
    interrupted(mine, directory, monkeypatch)
    moved = shutil.move(mine, tmp_path / "moved.hdf5")
    train(config(moved, directory))
    stored = yaml.safe_load((directory / "config.yaml").read_text())
    assert stored["dataset"] == str(moved)
    restore(directory)
    rewrite(moved)
    then = stored["dataset_sha256"]
    said = refusal(train, config(moved, directory))
    assert said == (
        f"{directory}: the dataset at {moved} is not the one this run learned from "
        f"(sha256 {then} then, {sum_of(moved)} now); choose another dir="
    )


def test_a_run_under_the_name_of_an_older_version_goes_on_there(mine, tmp_path, monkeypatch, capsys):
    """The same command makes no second run, whatever rule named the first."""
    unnamed = replace(config(mine, "unused"), dir=None)
    here = train(unnamed)
    assert here == Path("runs") / naming.name(unnamed, "Pendulum-v1")
    old = here.rename(here.with_name("finetune-mine-00000000"))
    stored = yaml.safe_load((old / "config.yaml").read_text())
    for later in ("plugins", "env_kwargs", "env_layout"):
        del stored[later]
    (old / "config.yaml").write_text(yaml.safe_dump(stored))
    lines = (old / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert train(unnamed) == old
    assert (
        f"{old} holds this run, under another name than {here.name}: going on there"
        in capsys.readouterr().err
    )
    assert (old / "metrics.jsonl").read_bytes() == lines
    assert os.listdir("runs") == [old.name]
    assert "holds a run already" in refusal(train, replace(unnamed, resume=False))
    # other settings, a directory that holds nothing, and a damaged one are passed by
    (Path("runs") / "finetune-mine-11111111" / "checkpoints" / "000000001").mkdir(parents=True)
    (Path("runs") / "finetune-mine-11111111" / "config.yaml").write_text("recipe: [")
    other = train(replace(unnamed, seed=3))
    assert other not in (old, here)


def test_a_run_whose_dataset_has_moved_is_found_again(mine, tmp_path):
    here = train(replace(config(mine, "unused"), dir=None))
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(mine, tmp_path / "elsewhere")
    assert train(replace(config(moved, "unused"), dir=None)) == here
    rewrite(moved)
    assert train(replace(config(moved, "unused"), dir=None)) != here


def test_a_run_directory_is_named_by_what_was_chosen(mine):
    """A setting at its default does not enter, so that a version with more settings finds the same names."""
    cfg = config(mine, None)
    assert naming.name(cfg, "Pendulum-v1") == naming.name(replace(cfg, threads=2), "Pendulum-v1")
    assert naming.name(cfg, "Pendulum-v1") != naming.name(replace(cfg, dataset_actions="env"), "Pendulum-v1")
    chosen = {
        "recipe.name": "finetune",
        "recipe.offline.name": "bc",
        "recipe.source.name": "online",
        "recipe.offline.actor.hidden": [8],
        "recipe.offline_steps": 20,
        "recipe.online_steps": 0,
        "recipe.batch": 8,
        "recipe.probe_every": 10,
        "dataset": str(mine),
        "env": "Pendulum-v1",
    }
    chosen |= {f"run.{x}": 10 for x in ("log_every", "eval_every", "checkpoint_every")}
    chosen |= {"run.eval_episodes": 1, "run.online_capacity": 50}
    text = json.dumps({"version": naming.VERSION, "settings": chosen}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    assert naming.name(cfg, "Pendulum-v1") == f"finetune-mine-{digest}"
