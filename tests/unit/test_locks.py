"""Two runs in one directory: the second is refused, and looking is allowed."""

import fcntl
import json
import os
import shutil
import signal
import time

import pytest
from survival import ended, files, fork, small

from mbo2o.report.page import write_report
from mbo2o.store import checkpoint, whole
from mbo2o.training import restore, train
from mbo2o.types import UserError


def held_by_a_child(directory):
    """The pid of a process that has the directory's lock, and keeps it."""
    ready, told = os.pipe()

    def keep():
        with whole.hold(directory):
            os.write(told, b"x")
            time.sleep(60)

    pid = fork(keep)
    os.read(ready, 1)
    return pid


def test_a_second_run_names_the_first_and_touches_nothing(finished, tmp_path):
    directory = shutil.copytree(finished, tmp_path / "run")
    (directory / ".lock").write_text('{"pid": 1, "host": "of a dead run", "since": "long"}')
    pid = held_by_a_child(directory)
    try:
        before, start = files(directory), time.monotonic()
        with pytest.raises(UserError, match=f"in use by pid {pid} on .* since 20") as e:
            train(small(directory))
        assert "\n" not in str(e.value)
        assert time.monotonic() - start < 5
        assert files(directory) == before
        restore(directory)  # looking is allowed
        write_report(directory)
    finally:
        os.kill(pid, signal.SIGKILL)
    assert ended(pid) == -signal.SIGKILL
    train(small(directory))  # a dead process holds nothing


def test_of_many_runs_that_start_at_once_one_gets_the_directory(tmp_path):
    for _ in range(5):
        gate, opened = os.pipe()
        told, tell = os.pipe()

        def attempt(gate=gate, opened=opened, tell=tell):
            os.close(opened)
            os.read(gate, 1)  # returns when the parent closes the other end
            try:
                with whole.hold(tmp_path):
                    os.write(tell, b"w")
                    time.sleep(0.4)
            except UserError as e:
                os.write(tell, b"l" if "in use by pid" in str(e) else b"?")

        pids = [fork(attempt) for _ in range(6)]
        os.close(gate)
        os.close(opened)
        assert [ended(pid) for pid in pids] == [0] * 6
        os.close(tell)
        assert sorted(os.read(told, 100)) == sorted(b"wlllll")
        os.close(told)


def test_a_process_that_is_slow_to_write_its_pid_is_still_named(tmp_path):
    """A busy machine may stop it between taking the lock and writing its pid."""
    told, tell = os.pipe()

    def holder():
        handle = os.open(tmp_path / ".lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(handle, fcntl.LOCK_EX)
        os.write(tell, b"x")
        time.sleep(0.4)
        os.pwrite(handle, json.dumps({"pid": 7, "host": "h", "since": "then"}).encode(), 0)
        time.sleep(2)

    pid = fork(holder)
    os.read(told, 1)
    with pytest.raises(UserError, match="in use by pid 7 on h since then"), whole.hold(tmp_path):
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(told)
    os.close(tell)


def test_a_run_that_removes_old_checkpoints_can_be_looked_at_meanwhile(
    finished, tmp_path, monkeypatch, recwarn
):
    directory = shutil.copytree(finished, tmp_path / "run")
    read = checkpoint._read

    def overtaken(path, device, wanted):
        monkeypatch.setattr(checkpoint, "_read", read)
        for old in (directory / "checkpoints").iterdir():
            old.rename(old.with_name(f"{int(old.name) + 1000:09d}"))
            manifest = old.with_name(f"{int(old.name) + 1000:09d}") / "manifest.json"
            manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"turn": int(old.name) + 1000}))
        return read(path, device, wanted)

    monkeypatch.setattr(checkpoint, "_read", overtaken)
    assert checkpoint.latest(directory / "checkpoints", "cpu") is not None
    assert not recwarn.list
