"""Peers of `mbo2o bench`: the talk with their processes, how they are installed, and like with like."""

import subprocess
import sys

import pytest
import torch

from bench import data
from bench.peers import processes, serve
from bench.peers.processes import PACKAGES, Peer, environment, opened
from bench.works import ACT, BATCH, HORIZON, OBS, STARTS, WORKS
from mbo2o.cli.main import main
from mbo2o.dynamics.model import GaussianDynamics
from mbo2o.types import Spec, UserError

STAND_IN = """
import sys, os
print("a greeting")
print("ready", flush=True)
for line in sys.stdin:
    print(float(line) * 10 + (os.environ["PRECISION"] == "bf16"), flush=True)
"""


def peer(script, **more):
    return Peer("a stand-in", "work", command=[sys.executable, "-c", script], **more)


def test_a_peer_answers_seconds_by_a_rate():
    mine = peer(STAND_IN).ready()
    assert [mine.rate(2), mine.rate(0.5)] == [20, 5]
    mine.close()


def test_the_driver_s_side_speaks_the_same_language():
    script = "from bench.peers.serve import serve\nserve(lambda: sum(range(100)), units=2, warm=1)"
    mine = peer(script).ready()
    assert mine.rate(0.05) > 1000
    mine.close()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("raise ImportError('no jax')", "a stand-in ended .ImportError: no jax."),
        ("print('ready'); raise SystemExit(3)", "a stand-in ended .exit code 3."),
    ],
)
def test_a_peer_that_ends_is_one_line(script, said):
    mine = peer(script)
    with pytest.raises(UserError, match=said):
        mine.ready().rate(1)
    mine.close()


def test_peers_of_torch_come_in_bf16_too_and_all_are_ended(monkeypatch):
    made = []

    class Spy(Peer):
        def __init__(self, name, work, precision):
            super().__init__(name, work, precision, [sys.executable, "-c", STAND_IN])
            made.append(self)

    monkeypatch.setattr(processes, "Peer", Spy)
    with opened(("sbx", "sb3"), "sac-2") as found:
        assert [(x.who, x.precision, x.rate(1)) for x in found] == [
            ("sbx-rl 0.28.0", "fp32", 10),
            ("stable-baselines3 2.9.2", "fp32", 10),
            ("stable-baselines3 2.9.2", "bf16", 11),
        ]
    assert all(x._process.poll() is not None for x in made)


def test_a_work_is_stored_with_its_peers(monkeypatch, tmp_path):
    from bench.measure import Options, read

    class Spy(Peer):
        def __init__(self, name, work, precision):
            super().__init__(name, work, precision, [sys.executable, "-c", STAND_IN])

    monkeypatch.setattr(processes, "Peer", Spy)
    monkeypatch.setattr(processes, "environment", lambda: None)
    options = Options(rounds=2, seconds=0.01, json=tmp_path / "x.json", only=["dataset"], peers=True)
    data.main(options)
    rows = read(tmp_path / "x.json")["dataset"]["rows"]
    assert [r["who"] for r in rows] == ["mbo2o", "stable-baselines3 2.9.2", "d3rlpy 2.8.1"]
    assert rows[1]["rates"] == [0.1, 0.1]


# ---- the environment


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """What would be run to install the peers, and where."""
    monkeypatch.setenv("MBO2O_CACHE", str(tmp_path))
    run, seen = subprocess.run, []

    def noted(command, **how):
        if "import pip" in command[-1]:
            return run(command, **how)
        seen.append(command)
        (tmp_path / "peers").mkdir(exist_ok=True)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(processes.subprocess, "run", noted)
    return seen


def test_the_environment_is_made_once_and_again_if_its_packages_change(commands, monkeypatch, tmp_path):
    assert environment() == tmp_path / "peers" / "bin" / "python"
    assert commands[0][1:4] == ["-m", "venv", "--without-pip"]
    assert commands[1][1:3] == ["-m", "pip"]
    assert set(PACKAGES) <= set(commands[1])
    environment()
    assert len(commands) == 2
    monkeypatch.setattr(processes, "PACKAGES", ("sbx-rl==1",))
    environment()
    assert len(commands) == 4


def test_an_environment_that_was_not_finished_is_made_again(commands, tmp_path):
    environment()
    (tmp_path / "peers" / ".ready").unlink()
    (tmp_path / "peers" / "half").touch()
    environment()
    assert len(commands) == 4
    assert not (tmp_path / "peers" / "half").exists()


def test_a_package_that_cannot_be_installed_is_one_line_and_exit_code_2(commands, monkeypatch, capsys):
    noted = processes.subprocess.run

    def fails(command, **how):
        if "install" in command:
            return subprocess.CompletedProcess(
                command, 1, "", "a warning\nERROR: No matching sbx-rl==0.28.0\n"
            )
        return noted(command, **how)

    monkeypatch.setattr(processes.subprocess, "run", fails)
    with pytest.raises(SystemExit) as e:
        main(["bench", "data", "--peers", "--rounds", "1", "--seconds", "0.01", "--only", "dataset"])
    err = [x for x in capsys.readouterr().err.splitlines() if x.startswith("mbo2o: ")]
    assert e.value.code == 2
    assert len(err) == 1
    assert "the peers cannot be installed (ERROR: No matching sbx-rl==0.28.0); leave --peers out" in err[0]
    assert not (environment_folder() / ".ready").exists()


def environment_folder():
    from mbo2o.store.content import cache_folder

    return cache_folder() / "peers"


def test_only_peers_of_other_environments_are_installed_for(monkeypatch):
    made = []
    monkeypatch.setattr(processes, "environment", lambda: made.append(1))
    processes.make_ready(["mbrl"])
    assert made == []
    processes.make_ready(["mbrl", "sbx"])
    assert made == [1]


def test_without_a_python_that_has_pip_it_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("MBO2O_CACHE", str(tmp_path))
    monkeypatch.setattr(processes.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="no Python with pip is here"):
        environment()


# ---- like with like


def test_drivers_and_works_agree_on_sizes():
    from bench.peers import mbrl

    assert (serve.OBS, serve.ACT, serve.BATCH) == (OBS, ACT, BATCH)
    assert (mbrl.STARTS, mbrl.HORIZON) == (STARTS, HORIZON)


def test_mbrl_has_our_network_and_does_our_works():
    from bench.peers import mbrl

    model, batch = mbrl.made()
    ours = GaussianDynamics(Spec(OBS, ACT), WORKS["dynamics"].cfg)
    layers = [layer[0] for layer in model.model.hidden_layers] + [model.model.mean_and_logvar]
    mine = [p.shape for name, p in ours.net.named_parameters() if name.endswith("weight")]
    assert [layer.weight.shape for layer in layers] == mine
    assert len(model.model.elite_models) == ours.elites.shape[-1]
    before = layers[0].weight.clone()
    mbrl.learning(model, batch)()
    assert not torch.equal(before, layers[0].weight)


@pytest.mark.parametrize("step", ["one_member", "all_members"])
def test_mbrl_rolls_out_with_one_member_and_with_all(monkeypatch, step):
    from bench.peers import mbrl

    monkeypatch.setattr(mbrl, "STARTS", 10)
    monkeypatch.setattr(mbrl, "PIECE", 4)
    model, batch = mbrl.made()
    shapes = []

    def noted(env, state, obs, act):
        found = getattr(mbrl, step)(env, state, obs, act)
        shapes.append([tuple(x.shape) for x in found[:3]])
        return found

    mbrl.rolling(model, batch.obs, noted)()
    assert shapes == [[(10, OBS), (10, 1), (10, 1)]] * HORIZON
