"""A policy of every registered agent: called, saved, exported; and what it refuses, in one line each."""

import json
import runpy
import subprocess
import sys
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from nets import DEMANDING, make
from safetensors.torch import load_file, save_file
from tiny import tiny

import mbo2o
from mbo2o.cli.main import main
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.errors import UserError
from mbo2o.policy import Policy, facts_of, load
from mbo2o.policy.export import Acting
from mbo2o.registry import AGENTS
from mbo2o.training import train

LOW, HIGH = np.array([-2, -1], np.float32), np.array([2, 3], np.float32)
OBS = np.random.default_rng(0).normal(size=(256, 3)).astype(np.float32)
RULES = {
    "pex": "The better of both modes",
    "lapo": "The decoded latent action",
    "td3bc": "The tanh of the actor's output",
    "sac": "The tanh of the Gaussian's mean",
    "bc": "The Gaussian's mean, or a sample of it, clamped",
}

OF_THEIR_OWN = ("awac", "bc", "iql", "lapo", "pex", "sac", "td3bc")
"""Agents whose acting rules differ; the others have one of these."""


def policy_of(name, box=None, seed=0, **change):
    """A policy of a new agent with settings that are hard to trace, and with scales that are not 1."""
    torch.manual_seed(seed)
    agent = make(name, (1,), **DEMANDING.get(name, {}) | change).eval()
    agent.observe.mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    agent.observe.std.copy_(torch.tensor([1.0, 0.5, 2.0]))
    space = box or SimpleNamespace(low=LOW, high=HIGH)
    return Policy(agent, facts_of("Two-v0", 3, space, {"action_names": '["left", "right"]'}))


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_acts_is_saved_and_runs_in_numpy_alone(name, tmp_path):
    policy = policy_of(name)
    before = torch.get_rng_state()
    act, state = policy.predict(OBS, state="mine")
    assert (act.shape, act.dtype, state) == ((256, 2), np.float32, "mine")
    assert ((act >= LOW) & (act <= HIGH)).all()
    with torch.no_grad():
        unit = policy.agent.act(torch.from_numpy(OBS[None]))[0].numpy()
    np.testing.assert_allclose(act, [0, 1] + 2 * unit, atol=1e-6)
    assert np.ptp(act, axis=0).min() > 0
    np.testing.assert_allclose(policy.predict(OBS[3])[0], act[3], atol=1e-6)
    again = load(policy.save(tmp_path / "saved"))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(again.predict(OBS)[0], act)
    assert again.facts == policy.facts
    if name in OF_THEIR_OWN:
        policy.export(tmp_path / "p.npz")
        np.testing.assert_allclose(runpy.run_path(tmp_path / "p.py")["predict"](OBS), act, atol=1e-5)
    explored = policy.predict(OBS, deterministic=False)[0]
    assert explored.shape == act.shape
    assert not np.array_equal(explored, act)


def test_what_deterministic_means_is_said_in_a_line():
    for name, text in RULES.items():
        assert policy_of(name).facts["deterministic"] == text


@pytest.mark.parametrize("name", ["pex", "td3bc"])
def test_onnx_and_pt2_act_alike(name, tmp_path):
    """A policy that chooses among two actors by its critics, and a deterministic actor."""
    runtime = pytest.importorskip("onnxruntime")
    policy = policy_of(name)
    act = policy.predict(OBS)[0]
    policy.export(tmp_path / "p.onnx")
    session = runtime.InferenceSession(tmp_path / "p.onnx")
    for n in (1, 7, 256):
        np.testing.assert_allclose(
            session.run(None, {"obs": OBS[:n]})[0], policy.predict(OBS[:n])[0], atol=1e-5
        )
    policy.export(tmp_path / "p.pt2")
    module = torch.export.load(tmp_path / "p.pt2").module()
    np.testing.assert_allclose(module(torch.from_numpy(OBS)).detach(), act, atol=1e-5)
    assert json.loads((tmp_path / "io.json").read_text())["action"]["names"] == ["left", "right"]


NETS = ({"layer_norm": True, "dropout": 0.3}, {"activation": "silu"}, {"activation": "elu"})


@pytest.mark.parametrize("change", NETS)
def test_all_networks_can_be_written_for_numpy(tmp_path, change):
    policy = policy_of("sac", actor=MLPConfig(**{"hidden": [8], **change}))
    policy.export(tmp_path / "p.npz")
    found = runpy.run_path(tmp_path / "p.py")["predict"](OBS)
    np.testing.assert_allclose(found, policy.predict(OBS)[0], atol=1e-5)


def test_an_action_of_several_axes_keeps_its_shape(tmp_path):
    box = gymnasium.spaces.Box(-2, 2, (2, 1), np.float64)
    policy = policy_of("sac", box)
    act = policy.predict(OBS)[0]
    assert (act.shape, act.dtype) == ((256, 2, 1), np.float64)
    assert policy.predict(OBS[0])[0].shape == (2, 1)
    policy.export(tmp_path / "p.npz")
    np.testing.assert_allclose(runpy.run_path(tmp_path / "p.py")["predict"](OBS), act, atol=1e-5)


def test_only_what_acting_reads_is_kept(tmp_path):
    policy = policy_of("td3bc")
    assert [name for name, _ in policy.agent.named_children()] == ["observe", "actor"]
    assert {key.split(".")[0] for key in policy_of("pex").kept} == {"observe", "critic", "actor", "second"}
    inside = {name.split(".")[0] for name in Acting(policy.trimmed(), policy.box).agent.state_dict()}
    assert inside == {"observe", "actor", "updates", "head", "salt"}


@pytest.mark.parametrize(("obs", "said"), [
    ([1.0, 2.0], r"shape \(2,\): the policy takes \(3,\), or \(n, 3\)"),
    (np.zeros((1, 1, 3)), r"shape \(1, 1, 3\)"),
    ([1.0, np.nan, 0.0], "not finite"),
])  # fmt: skip
def test_observations_that_do_not_fit_are_refused(obs, said):
    with pytest.raises(UserError, match=said):
        policy_of("sac").predict(obs)


def test_what_cannot_be_exported_is_refused_in_a_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"exported to \.onnx, \.pt2, \.npz; end the name"):
        policy_of("sac").export(tmp_path / "p.txt")
    gelu = policy_of("sac", actor=MLPConfig(hidden=[8], activation="gelu"))
    with pytest.raises(UserError, match=r"for NumPy, because it uses aten\.gelu.*\.onnx or \.pt2 instead"):
        gelu.export(tmp_path / "p.npz")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"pip install 'mbo2o\[export\]'"):
        policy_of("sac").export(tmp_path / "p.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="neither a run nor a saved policy"):
        load(tmp_path)
    folder = policy_of("sac").save(tmp_path / "a")
    (folder / "io.json").unlink()  # it is for others
    load(folder)
    path = folder / "policy.safetensors"
    tensors, whole = load_file(path), path.read_bytes()
    for text, said in (
        ('{"format": 99, "observation": {"size": 3}, "action": {"low": 0}}', r"a newer mbo2o \(format 99"),
        ("{", "does not describe a policy"),
        ('{"format": 1, "observation": {"size": 3}, "action": {"low": 0}}', "does not say whose policy"),
    ):
        save_file(tensors, path, {"io": text})
        with pytest.raises(UserError, match=said):
            load(folder)
    path.write_bytes(whole[:100])
    with pytest.raises(UserError, match="cannot be read"):
        load(folder)


def test_a_saved_policy_survives_an_export_into_its_folder(tmp_path):
    policy = policy_of("sac")
    policy.export(policy.save(tmp_path) / "p.npz")
    np.testing.assert_array_equal(load(tmp_path).predict(OBS)[0], policy.predict(OBS)[0])


@pytest.fixture(scope="module")
def run(pendulum, tmp_path_factory):
    directory = tmp_path_factory.mktemp("policy") / "run"
    train(tiny("wsrl", pendulum, directory, {"online_steps": 10}, seeds=2))
    return directory


def test_each_seed_has_its_policy(run):
    acts = [load(run, seed).predict(OBS)[0] for seed in (0, 1)]
    assert not np.array_equal(*acts)
    agent = mbo2o.load_agent(run)
    with torch.no_grad():
        both = agent.act(torch.from_numpy(OBS).expand(2, -1, -1)).numpy()
    np.testing.assert_allclose(acts, 2 * both, atol=1e-5)
    with pytest.raises(UserError, match=r"has 2 seed\(s\), counted from 0, so there is no seed=2"):
        load(run, 2)


def test_the_bounds_of_another_environment_can_be_given(run):
    env = SimpleNamespace(
        observation_space=gymnasium.spaces.Box(-1, 1, (3,)), action_space=gymnasium.spaces.Box(0, 10, (1,))
    )
    act = load(run, env=env).predict(OBS)[0]
    np.testing.assert_allclose(act, 5 + 2.5 * load(run).predict(OBS)[0], atol=1e-5)
    wide = SimpleNamespace(observation_space=gymnasium.spaces.Box(-1, 1, (4,)), action_space=env.action_space)
    with pytest.raises(UserError, match="the stored policy does not fit its task"):
        load(run, env=wide)


def test_the_command_names_what_it_wrote(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as done:
        main(["export", str(run), "--to", "npz"])
    assert done.value.code == 0
    names = [line.rsplit("/", 1)[1] for line in capsys.readouterr().out.split()]
    assert names == ["policy_seed0.npz", "policy_seed0.py", "io.json"]
    with pytest.raises(SystemExit) as done:
        main(["export", "nowhere"])
    assert done.value.code == 2
    assert "nowhere: neither a run nor a saved policy" in capsys.readouterr().err


def test_nothing_but_torch_and_numpy_is_imported():
    code = (
        "import sys, mbo2o.policy.export; print([x for x in ('mujoco', 'hydra', 'matplotlib', 'gymnasium', "
    )
    code += "'omegaconf', 'h5py', 'onnx') if x in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
