"""Disks that refuse: one line, and what was saved before stays intact."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import survival
from survival import FULL, assert_intact, assert_same, ended, fork, outcome, small, stop_at

from mbo2o import progress
from mbo2o.cli.command import guarded
from mbo2o.run.log import MetricsFile
from mbo2o.store import checkpoint
from mbo2o.training import train
from mbo2o.types import UserError


def test_a_file_in_place_of_the_directory_is_one_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"file.*: cannot be written") as e:
            train(small(path))
        assert "\n" not in str(e.value)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_read_only_directory_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        train(small(tmp_path / "run"))
    tmp_path.chmod(0o700)


def test_a_size_limit_ends_a_real_process_in_one_line(tmp_path):
    """The limit, the message, the exit code, and an interpreter that shuts down without another message."""
    stop_at(tmp_path / "run", 20)
    saved = checkpoint.latest(tmp_path / "run" / "checkpoints", "cpu")
    size = max(p.stat().st_size for p in (tmp_path / "run").rglob("*.safetensors"))
    code = f"""
import resource, sys
sys.path.insert(0, {str(Path(survival.__file__).parent)!r})
from survival import small, train
from mbo2o.cli.command import guarded
resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 100}, {size + 100}))
sys.exit(guarded(lambda: train(small({str(tmp_path / "run")!r})) and 0))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    said = [x for x in done.stderr.splitlines() if "turn" not in x and "return" not in x and "→" not in x]
    assert done.returncode == 2, done.stderr
    assert len(said) == 1, done.stderr
    assert "checkpoints/0000" in said[0]
    assert "cannot be written (File too large)" in said[0]
    assert_intact(tmp_path / "run", saved)


@pytest.mark.parametrize("where", ["save_file", "write_text", "fsync", "rename", "mkdir"])
def test_a_disk_that_fills_up_while_saving_leaves_the_last_checkpoint(
    where, finished, tmp_path, monkeypatch, capsys, promise
):
    directory = tmp_path / "run"
    stop_at(directory, 20)
    saved = checkpoint.latest(directory / "checkpoints", "cpu")
    with monkeypatch.context() as m:

        def full(*args, **kwargs):
            raise FULL

        with_disk = {"save_file": checkpoint, "fsync": os, "write_text": Path, "rename": Path, "mkdir": Path}
        save = checkpoint.save

        def saving(*args):
            m.setattr(with_disk[where], where, full)
            save(*args)

        m.setattr(checkpoint, "save", saving)
        if where == "fsync":
            m.setattr(MetricsFile, "size", lambda self: self._file.seek(0, 2))
        assert guarded(lambda: train(small(directory)) and 0) == 2
    said = [x for x in capsys.readouterr().err.splitlines() if x.startswith("mbo2o: ")]
    assert len(said) == 1
    assert "cannot be written (No space left on device)" in said[0]
    assert_intact(directory, saved)
    train(small(directory))
    assert_same(outcome(directory), outcome(finished))
    promise("places where the disk fills up in a save: one line, last checkpoint intact")


def limited(size, work):
    """Do `work` in a child whose files cannot grow beyond `size`."""

    def child():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        return work()

    return ended(fork(child))


def test_a_log_line_is_written_whole_or_not(tmp_path):
    path = tmp_path / "metrics.jsonl"

    def fill():
        file = MetricsFile(path)
        for _ in range(10):
            try:
                file.write({"kind": "x" * 300}, {})
            except UserError as e:
                file.close()
                return 7 if "metrics.jsonl: cannot be written (File too large)" in str(e) else 8
        return 9

    assert limited(1000, fill) == 7
    assert [json.loads(x)["kind"] for x in path.read_text().splitlines()] == ["x" * 300] * 3


@pytest.mark.parametrize("left", [0.0, 0.5])
def test_a_log_that_lost_its_end_goes_on_with_a_gap_and_without_zeros(left, finished, tmp_path):
    directory = tmp_path / "run"
    stop_at(directory, 20)
    path = directory / "metrics.jsonl"
    before = path.read_bytes()
    path.write_bytes(before[: int(left * len(before))])
    whole = len(path.read_bytes().splitlines(keepends=True)) - (left > 0)
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: \d+ bytes less than its checkpoint counts"):
        train(small(directory))
    lines = path.read_bytes().splitlines(keepends=True)
    assert lines[:whole] == before.splitlines(keepends=True)[:whole]
    assert all(json.loads(x)["step"] >= 20 for x in lines[whole:])
    assert_same(outcome(directory)[:2], outcome(finished)[:2])


def test_a_config_that_cannot_be_written_leaves_the_old_one(finished, tmp_path):
    directory = shutil.copytree(finished, tmp_path / "run")
    before = (directory / "config.yaml").read_bytes()
    assert limited(500, lambda: guarded(lambda: train(small(directory)) and 0)) == 2
    assert (directory / "config.yaml").read_bytes() == before
    assert not list(directory.glob(".config*"))


def test_a_closed_terminal_does_not_stop_a_run(finished, tmp_path, monkeypatch):
    class Gone:
        def write(self, text):
            raise BrokenPipeError

        def isatty(self):
            return False

        def flush(self):
            raise FULL

    monkeypatch.setattr(progress.sys, "stderr", Gone())
    train(small(tmp_path / "run"))
    monkeypatch.undo()
    assert_same(outcome(tmp_path / "run"), outcome(finished))
