"""`mbo2o slurm`: a script whose tasks stop in time, go on, and end as an undisturbed sweep does."""

import os
import signal
import subprocess
import sys

import pytest
from survival import assert_same, eventually
from sweeps import TINY, run_dirs, sweep, table, turns

from mbo2o.cli.main import main
from mbo2o.cli.overrides import literals
from mbo2o.cli.slurm import runs_of

TASK = {"SLURM_ARRAY_JOB_ID": "7"}


def slurm(capsys, *args):
    with pytest.raises(SystemExit) as e:
        main(["slurm", *args])
    out = capsys.readouterr()
    assert "Traceback" not in out.err
    return e.value.code, out.out, out.err


def task(script, number, path=None):
    """A process that runs one task as SLURM would; `path` is searched for commands first."""
    paths = {"PATH": f"{path}:{os.environ['PATH']}"} if path else {}
    env = os.environ | TASK | paths | {"SLURM_ARRAY_TASK_ID": str(number)}
    return subprocess.Popen(["bash", script], cwd="/", env=env, stderr=subprocess.PIPE, text=True)


def options(text):
    return [x.removeprefix("#SBATCH ") for x in text.splitlines() if x.startswith("#SBATCH ")]


def test_a_stopped_task_goes_back_and_all_tasks_end_as_the_sweep_does(tmp_path, capsys, monkeypatch):
    here, commands = tmp_path / "with a ' and a space", tmp_path / "bin"
    here.mkdir()
    commands.mkdir()
    queue = tmp_path / "queue"
    (commands / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> "{queue}"\n')
    (commands / "scontrol").chmod(0o755)
    given = ["seed=0,10", *TINY, "recipe.online_steps=1500", "run.checkpoint_every=100"]
    process = sweep(tmp_path / "undisturbed", "basic", *given)
    monkeypatch.chdir(here)
    code, out, err = slurm(capsys, *given, "--time", "1:00:00")
    assert (code, err) == (0, "")
    assert out == "mbo2o.sbatch: 2 runs; submit with: sbatch mbo2o.sbatch\n"
    script = here / "mbo2o.sbatch"
    subprocess.run(["bash", "-n", script], check=True)
    assert process.wait() == 0, process.stderr.read()

    for number, (name, code) in enumerate([(signal.SIGUSR1, 0), (signal.SIGTERM, 143)]):
        earlier = run_dirs(here)
        stopped = task(script, number, commands)
        eventually(lambda old=earlier: any(turns(x) for x in run_dirs(here) if x not in old), 300)
        stopped.send_signal(name)
        _, err = stopped.communicate(timeout=300)
        assert stopped.returncode == code, err
        assert "stopping after this turn" in err
    assert queue.read_text() == "requeue 7_0\n"  # a task that is cancelled does not come back
    assert all(0 < turns(x) < 1500 for x in run_dirs(here))

    for number in range(2):
        done = task(script, number)
        _, err = done.communicate(timeout=300)
        assert done.returncode == 0, err
    after, undisturbed = table(here), table(tmp_path / "undisturbed")
    assert after.keys() == undisturbed.keys()
    for name in after:
        assert_same(after[name], undisturbed[name])
    logs = {x: (x / "metrics.jsonl").read_bytes() for x in run_dirs(here)}
    assert task(script, 0).wait() == 0  # a finished run is left alone
    assert {x: (x / "metrics.jsonl").read_bytes() for x in run_dirs(here)} == logs
    assert task(script, 2).wait() == 2


def test_the_options_stand_in_the_script(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    resources = ["--time", "4:00:00", "--mem", "4G", "--cpus", "2", "--gpus", "1", "--partition", "short"]
    more = ["--concurrent", "2", "--name", "mine", "--sbatch=--account=x", "--out", "a/b.sh"]
    code, _, err = slurm(capsys, "recipe=mopo", "dataset=my data.hdf5", "seed=0,1,2", *resources, *more)
    assert (code, err) == (0, "")
    text = (tmp_path / "a" / "b.sh").read_text()
    assert options(text) == [
        *("--job-name=mine", "--array=0-2%2", "--time=4:00:00", "--mem=4G", "--cpus-per-task=2"),
        *("--gres=gpu:1", "--partition=short", "--signal=B:USR1@120", "--requeue", "--open-mode=append"),
        "--account=x",
    ]
    assert "  1) set -- recipe=mopo 'dataset=my data.hdf5' seed=1 ;;\n" in text
    assert "#   mbo2o slurm recipe=mopo 'dataset=my data.hdf5' seed=0,1,2 --time 4:00:00" in text
    assert sys.executable in text
    assert slurm(capsys, "recipe=mopo", "--out", "a/b.sh")[0] == 0  # its own script is replaced


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["recipe.alpah=1,2"], "did you mean 'recipe.alpha'?"),
        (["recipe=mbpo", "seed=0,-1"], "seed=-1"),
        (["seed=0,0"], "stands there twice"),
        (["seed=0,1", "--concurrent", "0"], "concurrent=0 must be at least 1"),
        (["seed=interval(0,1)"], "name them one by one"),
        (["seed=0,1", "--sbatch=account=x"], "is no option of sbatch"),
        (["seed=0,1", "--time=1\nrm -r x"], "is no option of sbatch"),
        (["seed=0,1", "--out", "mine.sh"], "this command has not written it"),
        (["seed=0,1", "--out", "mine.sh/x"], "mine.sh"),
    ],
)
def test_a_mistake_is_told_before_anything_is_queued(args, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.sh").write_text("#!/bin/bash\n")
    code, out, err = slurm(capsys, *args)
    assert (code, out) == (2, "")
    assert said in err
    assert (tmp_path / "mine.sh").read_text() == "#!/bin/bash\n"
    assert not (tmp_path / "mbo2o.sbatch").exists()


def test_a_line_break_in_a_name_runs_nothing(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "x\ntouch ran\n"
    folder.mkdir()
    monkeypatch.chdir(folder)
    slurm(capsys, "env=Pendulum-v1\ntouch ran\n", "recipe=mbpo", "--out", "a\ntouch ran\n.sh")
    task(folder / "a\ntouch ran\n.sh", 1).wait()
    assert not list(tmp_path.rglob("ran"))


@pytest.mark.parametrize(
    "given",
    [
        ["recipe=mopo"],
        ["seed=0,1", "recipe.agent.actor.hidden=[8,8],[4]", "recipe.utd=choice(1,2)"],
        ["dataset=a b.hdf5,c.hdf5", "seed=range(0,3)"],
        ["dataset='a,b.hdf5'", "env=Pendulum-v1"],
    ],
)
def test_the_runs_are_those_of_hydra_in_its_order(given):
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(literals(["-m", *given])[1:])
    (theirs,) = BasicSweeper.split_arguments(parsed, None)
    assert [literals(run) for run in runs_of(given)] == [literals(run) for run in theirs]
