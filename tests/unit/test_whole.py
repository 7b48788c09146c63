"""Files and folders are whole or not there; locks and sums mean the same wherever they are used."""

import ast
import errno
import hashlib
import os
import signal
from pathlib import Path

import pytest

import mbo2o
from mbo2o.store import whole
from mbo2o.types import UserError


def killed_while(work):
    """Run `work` in a child process, which is expected to be killed."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def die(*_args, **_kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def names(folder):
    return sorted(x.name for x in folder.iterdir())


def test_a_file_that_is_written_replaces_the_old_one(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    whole.write_whole(path, "new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["x"]


def write_half(path):
    with whole.whole_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(RuntimeError):
        write_half(path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("point", ["fsync", "replace"])
def test_a_process_that_is_killed_leaves_the_old_file(tmp_path, point):
    path = tmp_path / "x"
    path.write_text("old")

    def work():
        setattr(os, point, die)
        whole.write_whole(path, "new")

    assert killed_while(work)
    assert path.read_text() == "old"


def fill(folder, text):
    (folder / "a").write_text(text)


@pytest.mark.parametrize("replace", [True, False])
def test_a_folder_replaces_the_old_one_or_leaves_it(tmp_path, replace):
    path = tmp_path / "f"
    for text in ("first", "second"):
        with whole.whole_folder(path, replace) as made:
            assert made.parent == tmp_path
            fill(made, text)
    assert (path / "a").read_text() == ("second" if replace else "first")
    assert names(tmp_path) == ["f"]


def fill_half(path):
    with whole.whole_folder(path, replace=True) as made:
        fill(made, "half")
        raise RuntimeError


def test_an_error_leaves_no_folder(tmp_path):
    with pytest.raises(RuntimeError):
        fill_half(tmp_path / "f")
    assert names(tmp_path) == []


def test_a_folder_that_was_being_written_has_another_name(tmp_path):
    def work():
        with whole.whole_folder(tmp_path / "f", replace=True) as made:
            fill(made, "half")
            die()

    assert killed_while(work)
    (left,) = names(tmp_path)
    assert left.startswith(".f.")
    assert left.endswith(".tmp")


@pytest.mark.parametrize(
    ("number", "is_the_disks"), [(errno.ENOSPC, True), (errno.EROFS, True), (errno.ECHILD, False)]
)
def test_only_what_the_disk_refuses_becomes_one_line(tmp_path, number, is_the_disks):
    path = tmp_path / "x"
    with (
        pytest.raises(UserError if is_the_disks else OSError) as caught,
        whole.writing(path, "buy another disk"),
    ):
        raise OSError(number, os.strerror(number))
    if is_the_disks:
        assert str(caught.value) == f"{path}: cannot be written ({os.strerror(number)}); buy another disk"


def test_a_lock_excludes_other_holders_until_its_handle_is_closed(tmp_path):
    with whole.lock_file(tmp_path / "lock") as first, whole.lock_file(tmp_path / "lock") as second:
        assert whole.take_lock(first) is True
        assert whole.take_lock(second) is False
    with whole.lock_file(tmp_path / "lock") as third:
        assert whole.take_lock(third) is True


def test_a_file_system_without_locks_is_told_apart(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(whole.fcntl, "flock", none)
    with whole.lock_file(tmp_path / "lock") as handle:
        assert whole.take_lock(handle) is None


def test_sums_and_keys_follow_the_content(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"one")
    assert whole.file_sha256(path) == hashlib.sha256(b"one").hexdigest()
    before = whole.stat_key(path)
    assert whole.stat_key(path) == before
    path.write_bytes(b"longer")
    assert whole.stat_key(path) != before


def test_texts_of_errors_fit_one_line():
    assert whole.one_line(OSError("a\n  b")) == "a b"
    assert whole.one_line(TimeoutError()) == "TimeoutError"
    assert whole.shown("a\nb") == "a\\nb"


ONCE = {"os.fsync", "fcntl.flock", "hashlib.file_digest"}
ELSEWHERE = {("os.fsync", "run/log.py")}
"""A log grows, so that it is not written as a whole."""


def test_temporary_names_syncs_locks_and_sums_are_said_once():
    root, found = Path(mbo2o.__file__).parent, set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ONCE:
                found.add((ast.unparse(node.func), path.relative_to(root).as_posix()))
    assert found - ELSEWHERE == {(call, "store/whole.py") for call in ONCE}
