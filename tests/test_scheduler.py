"""A study in processes: after any kill the same command ends with the table of an undisturbed one."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mbo2o.cli.main import main
from mbo2o.cli.study import _without_course as without_course
from mbo2o.report.read import read_run
from studies.apart import side_by_side
from studies.arms import Job, read_rows
from studies.found import DONE
from studies.scheduler import Scheduler, seconds_left

ARMS = ["kept", "freed", "freed-n"]


def command(data, out, *more):
    where = ["--out", out / "runs", "--results", out / "results", "--quick", "--seeds", 2]
    return ["study", "enoto", *map(str, [data, *where]), "--arms", *more]


def study(*words):
    with pytest.raises(SystemExit) as done:
        main(list(words))
    assert done.value.code == 0


def process(*words):
    return subprocess.Popen([sys.executable, "-m", "mbo2o", *words], stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def undisturbed(pendulum, tmp_path_factory):
    """The files of a study that ran in one process."""
    out = tmp_path_factory.mktemp("whole")
    study(*command(pendulum, out, *ARMS))
    return out


def texts(out):
    return {p.name: p.read_text() for p in (out / "results").glob("*.csv")}


def killed_when(out, found, started):
    """Wait until a file is there; then kill -9 the process."""
    until = time.monotonic() + 120
    while not list(out.rglob(found)) and time.monotonic() < until:
        assert started.poll() is None, started.stderr.read()
        time.sleep(0.05)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()


def test_after_kills_of_parent_and_child_the_same_command_ends_with_the_same_table(
    pendulum, tmp_path, undisturbed
):
    words = command(pendulum, tmp_path, *ARMS, "--jobs", "2")
    killed_when(tmp_path, "offline-2/metrics.jsonl", process(*words))  # its children go on without it
    second = process(*words)
    runs = tmp_path / "runs" / f"enoto-{pendulum.stem}"
    child = None
    while second.poll() is None and child is None:  # kill the first child that runs an arm
        for lock in [x for x in runs.glob("*/.lock") if not x.parent.name.startswith("offline")]:
            try:
                child = json.loads(lock.read_text())["pid"]
            except ValueError:
                continue
            if (lock.parent / DONE).exists():
                child = None
                continue
            os.kill(child, signal.SIGKILL)
            break
        time.sleep(0.02)
    said = second.communicate()[1]
    assert second.returncode == 0, said
    assert texts(tmp_path) == texts(undisturbed)
    assert all((runs / arm / DONE).exists() for arm in (*ARMS, "offline-2", "offline-3"))
    made = json.loads((tmp_path / "results" / f"enoto-{pendulum.stem}-made.json").read_text())
    assert set(made["runs"]) == {*ARMS, "offline-2", "offline-3"}
    assert "--jobs" not in made["command"]


def test_calls_and_folders_merge_by_content(pendulum, tmp_path, undisturbed, capsys):
    """What another folder has run is not run again, whatever files and folders are called."""
    moved = tmp_path / "other.hdf5"
    shutil.copy(pendulum, moved)
    name = ["--name", pendulum.stem, "--look", str(undisturbed / "runs")]
    study(*command(moved, tmp_path, "freed-n", *name))
    said = capsys.readouterr().err
    assert "freed-n: the same run is at" in said
    assert "offline-3: the same run is at" in said
    one = tmp_path / "results" / f"enoto-{pendulum.stem}.csv"
    assert list(read_rows(one)) == ["freed-n"]
    shutil.rmtree(tmp_path / "runs")  # the next call knows the first by its results alone
    study(*command(moved, tmp_path, "kept", "freed", *name))
    assert list(read_rows(one)) == ARMS
    whole = read_rows(undisturbed / "results" / one.name)
    apart = ("ks", "ks_p")  # compares two runs, and needs both at once
    for arm, rows in read_rows(one).items():
        strip = [{k: v for k, v in r.items() if k not in apart} for r in rows]
        assert strip == [{k: v for k, v in r.items() if k not in apart} for r in whole[arm]]
    other = ["--set", "recipe.offline.weight=1"]
    with pytest.raises(SystemExit) as done:
        main(command(moved, tmp_path, "kept", *name, *other))
    assert done.value.code == 2
    assert "holds a run of other settings" in capsys.readouterr().err
    # another setting is another run: nothing of the table stays
    words = command(moved, tmp_path, "kept", *name, *other)
    study(*[str(tmp_path / "more") if x == str(tmp_path / "runs") else x for x in words])
    assert list(read_rows(one)) == ["kept"]
    with open(tmp_path / "results" / f"{one.stem}-drops.csv") as f:
        drops = {r["run"]: r["reason"] for r in csv.DictReader(f)}
    assert drops["freed"] == drops["wmp"] == "was not asked for"


def test_seeds_apart_make_a_table_like_that_of_seeds_side_by_side(pendulum, tmp_path, capsys):
    """Each seed is a run of its own, whose log is that of the command it names; the table has them all."""
    out, arms = tmp_path, ["warm", "kept"]
    words = [pendulum, "--out", out / "runs", "--results", out / "results", "--quick", "--seeds", 2]
    study("study", "wsrl", *map(str, words), "--arms", *arms, "--apart")
    runs, table = out / "runs" / f"wsrl-{pendulum.stem}", out / "results" / f"wsrl-{pendulum.stem}.csv"
    rows = read_rows(table)
    assert {arm: [r["seed"] for r in found] for arm, found in rows.items()} == {x: ["0", "1"] for x in arms}
    for k in range(2):
        alone = read_run(runs / "warm" / f"seed-{k}")
        assert (alone.config["seed"], alone.config["seeds"]) == (k, 1)
        returns = alone.series("eval", "return", "online").values[:, 0]
        assert float(rows["warm"][k]["j0"]) == pytest.approx(returns[0], abs=0.01)
        np.testing.assert_array_equal(
            read_run(runs / "warm").series("eval", "return", "online").values[:, k], returns
        )
    made = json.loads(table.with_name(f"{table.stem}-made.json").read_text())
    assert made["runs"]["warm"]["hours"] > 0
    with pytest.raises(SystemExit) as done:
        main(["study", "wsrl", *map(str, words), "--arms", "kept"])
    assert done.value.code == 2
    assert "holds a run of other settings" in capsys.readouterr().err
    with pytest.raises(SystemExit) as done:
        main(command(pendulum, tmp_path, "kept", "--apart"))
    assert done.value.code == 2
    assert "leave --apart out" in capsys.readouterr().err


def test_a_line_that_a_seed_lacks_is_null_there():
    place = {"phase": "online", "step": 3, "total": 9}
    a = [{"kind": "episode", **place, "return": [4.0]}, {"kind": "model", **place, "k": [[1, 2]]}]
    b = [{"kind": "eval", **place, "time": 2.0, "return": [5.0]}, {"kind": "model", **place, "k": [[3, 4]]}]
    lines = {x["kind"]: x for x in side_by_side([a, b])}
    assert lines["episode"]["return"] == [4.0, None]
    assert lines["eval"]["return"] == [None, 5.0]
    assert lines["model"]["k"] == [[1, 2], [3, 4]]


class Steps:
    """A config whose jobs are only counted."""

    class recipe:
        offline_steps, online_steps = 100, 60


def log(directory, turns, seconds):
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text("seeds: 1\n")
    lines = [
        {"kind": "eval", "phase": "offline", "step": t, "total": t, "time": s}
        for t, s in turns_of(turns, seconds)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))


def turns_of(turns, seconds):
    return [(0, 1.0), (turns, 1.0 + seconds)]


def test_the_time_left_follows_from_the_pace(tmp_path):
    jobs = {x: Job(x, Steps, start) for x, start in (("off", None), ("a", "off"), ("b", "off"))}
    assert seconds_left(jobs, tmp_path, set()) is None
    log(tmp_path / "off", 50, 100.0)  # 50 of its 160 turns, 2 seconds for each
    assert seconds_left(jobs, tmp_path, set()) == 2 * (110 + 60 + 60)
    log(tmp_path / "a", 20, 100.0)
    assert seconds_left(jobs, tmp_path, set()) == 2 * 110 + 5 * (40 + 60)
    assert seconds_left(jobs, tmp_path, {"b"}) == 2 * 110 + 5 * 40


def fake(tmp_path, script, jobs, **options):
    """A scheduler whose jobs are lines of shell, with the job's name as $1."""
    made = {x: Job(x, Steps, start) for x, start in jobs.items()}
    scheduler = Scheduler(made, tmp_path, ["bash", "-c", script, "-"], 2, **options)
    scheduler.run()
    return scheduler


END = f"mkdir -p $1 && echo '{{}}' > $1/{DONE}"


def test_jobs_wait_for_their_start_and_no_more_run_than_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = f"ls > $1.seen; sleep 0.4; {END}"
    fake(tmp_path, script, {"off": None, "a": "off", "b": "off", "c": "off"})
    assert all((tmp_path / x / DONE).exists() for x in "abc")
    assert "off\n" in (tmp_path / "a.seen").read_text()
    assert not {"a", "b"} <= set((tmp_path / "c.seen").read_text().split()) ^ {"a", "b"}


def test_failures_are_told_and_what_starts_from_them_is_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = f"case $1 in bad) echo no such file; exit 2;; killed) kill -9 $$;; *) {END};; esac"
    done = fake(tmp_path, script, {"bad": None, "after": "bad", "killed": None, "good": None})
    assert done.failed["bad"] == "exit code 2: no such file"
    assert done.failed["after"] == "is left out, because bad did not end well"
    assert "was killed 4 times" in done.failed["killed"]
    assert "good" not in done.failed


def test_jobs_of_single_seeds_stand_in_the_folder_of_their_arm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = {"off/seed-0": None, "off/seed-1": None, "a/seed-0": "off/seed-0", "a/seed-1": "off/seed-1"}
    done = fake(tmp_path, END, jobs)
    assert not done.failed
    assert all((tmp_path / x / DONE).exists() for x in jobs)


def test_it_stops_when_the_minutes_are_over(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    script = "trap 'echo saved > $1.saved; exit 143' TERM; sleep 60 & wait"
    since = time.monotonic()
    done = fake(tmp_path, script, {"a": None, "b": None, "c": None}, minutes=0.02)
    assert time.monotonic() - since < 30
    assert not done.failed
    assert (tmp_path / "a.saved").exists()
    assert "3 jobs are left: the same command goes on" in capsys.readouterr().err


def test_what_decides_the_course_is_no_part_of_the_command():
    typed = ["study", "obac", "Hopper-v5", "--jobs", "2", "--seeds", "5", "--minutes=30", "--size", "mid"]
    assert without_course(typed) == ["study", "obac", "Hopper-v5", "--seeds", "5", "--size", "mid"]
