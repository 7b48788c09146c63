"""Loading runs no code: no source that could, hostile files with a marker, an audit hook while files load."""

import ast
import json
import os
import pickle
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import mbo2o
from mbo2o.cli.main import main
from mbo2o.data.dataset import TransitionDataset
from mbo2o.dynamics.model import DynamicsConfig, GaussianDynamics
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.store import checkpoint, datasets, firstlook
from mbo2o.store.minari import write_minari
from mbo2o.types import Spec, UserError

ROOT = Path(mbo2o.__file__).parent

# ---- source

MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "shelve",
    "marshal",
    "imp",
    "runpy",
    "code",
}
BUILTINS = {"eval", "exec", "compile", "__import__", "execfile"}
METHODS = {  # what may not be called on a module of that name
    "torch": {"load", "save"},
    "np": {"save", "savez"},
    "os": {"system", "popen", "execv", "execvp", "execve", "spawnl", "spawnv", "posix_spawn"},
    "yaml": {"load", "load_all", "unsafe_load", "full_load", "unsafe_load_all", "full_load_all"},
    "builtins": BUILTINS,
    "pandas": {"read_pickle"},
    "pd": {"read_pickle"},
}


def offences(source: str) -> list[str]:
    """What in a module could run code that a file brings."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [f"import {a.name}" for a in node.names if a.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [f"from {node.module}"] if node.module.split(".")[0] in MODULES else []
            banned = METHODS.get(node.module, set())
            found += [f"from {node.module} import {a.name}" for a in node.names if a.name in banned]
        elif isinstance(node, ast.Name) and node.id in BUILTINS:
            found.append(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found += (
                [f"{node.value.id}.{node.attr}"] if node.attr in METHODS.get(node.value.id, set()) else []
            )
        elif isinstance(node, ast.Call):
            found += [_keyword(k) for k in node.keywords if _is_unsafe(k)]
    return found


def _is_unsafe(k: ast.keyword) -> bool:
    value = k.value.value if isinstance(k.value, ast.Constant) else True
    return (k.arg in ("allow_pickle", "shell") and value is not False) or (
        k.arg == "weights_only" and value is not True
    )


def _keyword(k: ast.keyword) -> str:
    return f"{k.arg}={ast.unparse(k.value)}"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_source_can_run_what_a_file_brings(path):
    """A worker unpickles what its own parent sends; an export writes numbers alone with savez."""
    known = {"envs/worker.py": ["import pickle"], "policy/export.py": ["np.savez"]}
    assert offences(path.read_text()) == known.get(path.relative_to(ROOT).as_posix(), [])


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import joblib.memory",
        "from dill import load",
        "from cloudpickle import loads as f",
        "x = eval(y)",
        "f = eval",
        "exec('1')",
        "builtins.exec('x')",
        "__import__(name)",
        "torch.load(p)",
        "torch.load(p, weights_only=True)",
        "from torch import load",
        "f(p, weights_only=False)",
        "np.load(p, allow_pickle=True)",
        "np.load(p, allow_pickle=flag)",
        "yaml.load(f)",
        "os.system('x')",
        "subprocess.run(c, shell=True)",
    ],
)
def test_the_search_of_sources_finds_what_runs_files(source):
    assert offences(source)


@pytest.mark.parametrize(
    "source", ["model.eval()", "np.load(p, allow_pickle=False)", "re.compile('x')", "self.load(x)"]
)
def test_the_search_of_sources_finds_nothing_else(source):
    assert offences(source) == []


# ---- hostile files


class Payload:
    """Unpickled, it leaves a marker."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


DEEP = "[" * 200_000


def a_dataset(make):
    """`make(path, marker)`, loaded as a dataset."""

    def attack(folder, marker):
        make(folder / "x.hdf5", marker)
        datasets.read(folder / "x.hdf5")

    return attack


def content():
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(8, 3)).astype(np.float32)
    flags = {"terminals": np.zeros(8, bool), "timeouts": np.zeros(8, bool)}
    return {
        "observations": obs,
        "actions": np.zeros((8, 1), np.float32),
        "rewards": np.zeros(8, np.float32),
        **flags,
    }


def of_objects(path, marker):
    with open(path, "wb") as file:
        np.save(file, np.array([Payload(marker)], object), allow_pickle=True)


def opaque(path, marker):
    """A pickle in a dataset, as an opaque value and as bytes."""
    with h5py.File(path, "w") as file:
        for key, x in content().items():
            file[key] = x
        del file["rewards"]
        file["rewards"] = np.void(pickle.dumps(Payload(marker)))
        file.attrs["config"] = np.void(pickle.dumps(Payload(marker)))


def a_model(make):
    """A saved dynamics model in which `make(folder, marker)` put something else, loaded."""

    def attack(folder, marker):
        GaussianDynamics(Spec(3, 1), DynamicsConfig(members=2, elites=1, net=MLPConfig(hidden=[4]))).save(
            folder
        )
        make(folder, marker)
        return GaussianDynamics.load(folder)

    return attack


def a_checkpoint(make):
    """A checkpoint in which `make(folder, marker)` put something else, loaded."""

    def attack(folder, marker):
        checkpoint.save(folder, 7, {"x": torch.zeros(3)}, {"done": {}})
        make(folder / "000000007", marker)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return checkpoint.latest(folder, "cpu")

    return attack


def file_in(name, data):
    """The bytes, or what a function makes of the marker, in a file of that name."""
    return lambda folder, marker: (folder / name).write_bytes(data(marker) if callable(data) else data)


def manifest(change):
    def make(folder, marker):
        path = folder / "manifest.json"
        content = json.loads(path.read_text())
        secret = folder.parent.parent / "secret"
        secret.write_text("secret")
        change(content, secret)
        path.write_text(json.dumps(content))

    return make


def names(of):
    """A manifest that lists another file than those of a checkpoint."""
    return manifest(lambda content, secret: content["sha256"].__setitem__(of(secret), "0" * 64))


def header(length, text=b"{}"):
    return length.to_bytes(8, "little") + text


def tensor_header(**fields):
    text = json.dumps({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]} | fields}).encode()
    return header(len(text), text) + bytes(12)


def torch_zip(marker):
    path = Path(marker).with_name("zip.pt")
    torch.save({"x": Payload(marker)}, path)
    return path.read_bytes()


def a_config(text, command="report"):
    """A run's directory with this `config.yaml`, which `mbo2o` is asked to look at."""

    def attack(folder, marker):
        (folder / "config.yaml").write_text(textwrap.dedent(text).replace("MARKER", str(marker)))
        (folder / "metrics.jsonl").write_text("")
        with pytest.raises(SystemExit) as caught:
            main([command, str(folder)])
        if caught.value.code:
            raise UserError("refused")

    return attack


PICKLED = {  # a pickle, in the place of each file that is loaded
    "a pickle as dataset": a_dataset(lambda path, marker: path.write_bytes(pickle.dumps(Payload(marker)))),
    "a torch file as dataset": a_dataset(lambda path, marker: torch.save(Payload(marker), path)),
    "an array of objects as dataset": a_dataset(of_objects),
    "a pickle in a dataset": a_dataset(opaque),
    "a pickle as model": a_model(file_in("model.safetensors", lambda marker: pickle.dumps(Payload(marker)))),
    "a torch file as model": a_model(file_in("model.safetensors", torch_zip)),
    "a pickle as model.json": a_model(file_in("model.json", lambda marker: pickle.dumps(Payload(marker)))),
    "a pickle as checkpoint": a_checkpoint(
        file_in("state.safetensors", lambda marker: pickle.dumps(Payload(marker)))
    ),
    "a pickle as manifest": a_checkpoint(
        file_in("manifest.json", lambda marker: pickle.dumps(Payload(marker)))
    ),
}
SAFETENSORS = {
    "header of 2^63": header(1 << 63),
    "header of 2^40": header(1 << 40),
    "header beyond the file": header(100),
    "no header": b"\0" * 4,
    "no json": header(4, b"abcd"),
    "deep json": header(len(DEEP), DEEP.encode()),
    "offsets beyond": tensor_header(data_offsets=[0, 1 << 40]),
    "offsets backward": tensor_header(data_offsets=[12, 0]),
    "shape of 2^60": tensor_header(shape=[1 << 60]),
    "shape that overflows": tensor_header(shape=[1 << 32, 1 << 32]),
    "unknown dtype": tensor_header(dtype="PYOBJ"),
    "other tensors": tensor_header(),
}
HOSTILE = {
    **PICKLED,
    **{
        f"safetensors, {name}": a_model(file_in("model.safetensors", data))
        for name, data in SAFETENSORS.items()
    },
    "model.json of another format": a_model(file_in("model.json", b'{"format": "__import__(\'os\')"}')),
    "model.json, a list": a_model(file_in("model.json", b"[1, 2]")),
    "model.json, deep": a_model(file_in("model.json", DEEP.encode())),
    "model.json, a long number": a_model(file_in("model.json", b"9" * 100_000)),
    "manifest of ../": a_checkpoint(names(lambda secret: "../../secret")),
    "manifest of an absolute name": a_checkpoint(names(str)),
    "manifest of a device": a_checkpoint(names(lambda secret: "/dev/zero")),
    "manifest of nothing": a_checkpoint(manifest(lambda content, secret: content["sha256"].clear())),
    "manifest, a list": a_checkpoint(file_in("manifest.json", b"[]")),
    "manifest, deep": a_checkpoint(file_in("manifest.json", DEEP.encode())),
    "manifest with a text for schema": a_checkpoint(
        manifest(lambda content, secret: content.update(schema="1; import os"))
    ),
    "manifest with a list of hashes": a_checkpoint(
        manifest(lambda content, secret: content.update(sha256=["state.json"]))
    ),
}
YAML = {
    "apply": "!!python/object/apply:os.system ['touch MARKER']",
    "new": "!!python/object/new:os.system ['touch MARKER']",
    "apply inside": "recipe: {name: mopo, alpha: !!python/object/apply:os.system ['touch MARKER']}",
    "module": "x: !!python/module:antigravity",
    "name": "x: !!python/name:os.system",
    "tuple": "x: !!python/tuple [1, 2]",
}


@pytest.fixture
def marker(tmp_path):
    path = tmp_path / "MARKER"
    yield path
    assert not path.exists(), "it ran"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_and_nothing_runs(tmp_path, marker, name, promise):
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(UserError) as caught:
        HOSTILE[name](folder, marker)
    assert "\n" not in str(caught.value)
    promise("hostile files and configs: refused, nothing of theirs run")


@pytest.mark.parametrize("text", YAML)
def test_a_config_cannot_make_objects(tmp_path, marker, text, promise):
    """`report` and `train.read_config`, behind `eval` and `resume`, both read it."""
    from mbo2o.training import read_config

    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(UserError):
        a_config(YAML[text])(folder, marker)
    with pytest.raises(UserError) as caught:
        read_config(folder)
    assert "\n" not in str(caught.value)
    promise("hostile files and configs: refused, nothing of theirs run")


def test_the_payloads_do_run_when_unpickled(tmp_path):
    marker = tmp_path / "MARKER"
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()


def test_a_good_safetensors_file_loads(tmp_path):
    """So what is refused above is refused for what is bad in it."""
    folder = tmp_path / "model"
    assert a_model(lambda folder, marker: None)(folder, None).spec == Spec(3, 1)
    checkpoints = tmp_path / "checkpoints"
    tensors, state = a_checkpoint(lambda folder, marker: None)(checkpoints, None)
    assert torch.equal(tensors["x"], torch.zeros(3))
    assert state["done"] == {}


# ---- audit hook

WATCH = """
import importlib, json, os, sys
from pathlib import Path
import mbo2o.cli.main, mbo2o.training, mbo2o.report.page
from mbo2o.store import datasets, firstlook, hdf5
from mbo2o.dynamics.model import GaussianDynamics
from mbo2o.store import checkpoint

folder, run = Path(sys.argv[1]), Path(sys.argv[2])
IMPORTING = ("import", "exec", "compile", "marshal.loads", "ctypes.dlopen", "code.__new__")
STARTING = ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.spawn", "os.posix_spawn",
            "os.startfile", "pickle.find_class", "socket.connect")
INSTALLED = (sys.prefix, sys.base_prefix, str(Path(mbo2o.__file__).parent))
seen, watching = [], False

def hook(event, args):
    if watching and event in IMPORTING + STARTING:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        arguments = [str(a) for a in args[1]] if event == "subprocess.Popen" else []
        seen.append((event, str(args[0])[:60], arguments, caller))

def watch(what, load):
    global watching
    watching = True
    load()
    names, first = {e[1] for e in seen if e[0] == "import"}, list(seen)
    files = [getattr(sys.modules.get(name), "__file__", None) or "" for name in names]
    imported = [file for file in files if file and not file.startswith(INSTALLED)]
    hdf5._sound.clear()
    seen.clear()
    load()  # what is imported when first used is imported by now
    watching = False
    print(json.dumps([what, imported, [e for e in first if e[0] not in IMPORTING], seen]))
    seen.clear()

sys.addaudithook(hook)
watch("control", lambda: exec("1"))
watch("dataset", lambda: datasets.read(folder / "x.hdf5"))
watch("model", lambda: GaussianDynamics.load(folder / "model"))
watch("checkpoint", lambda: checkpoint.latest(run / "checkpoints", "cpu"))
watch("config", lambda: mbo2o.training.read_config(run))
watch("run", lambda: mbo2o.training.restore(run))
"""
"""Loads each thing twice; prints what the first imports from elsewhere and starts, and all that the second
does.
"""


@pytest.fixture
def loadable(tmp_path, pendulum):
    from mbo2o.agents.cql import CQLConfig
    from mbo2o.recipes.finetune import FinetuneConfig
    from mbo2o.run.config import RunConfig
    from mbo2o.training import Config, train

    net = MLPConfig(hidden=[4])
    GaussianDynamics(Spec(3, 1), DynamicsConfig(members=2, elites=1, net=net)).save(tmp_path / "model")
    os.symlink(pendulum, tmp_path / "x.hdf5")
    agent = CQLConfig(actor=net, critic=net, samples=2)
    recipe = FinetuneConfig(offline=agent, offline_steps=4, online_steps=0, batch=4)
    cfg = Config(
        recipe=recipe, dataset=str(pendulum), env="Pendulum-v1", dir=str(tmp_path / "run"), report=False
    )
    cfg.run = RunConfig(eval_every=100, eval_episodes=1)
    train(cfg)
    return tmp_path


def test_an_audit_hook_sees_nothing_run_while_loading(loadable):
    command = [sys.executable, "-c", WATCH, str(loadable), str(loadable / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    seen = {what: rest for what, *rest in map(json.loads, done.stdout.splitlines())}
    assert [event for event, *_ in seen.pop("control")[2]] == ["compile", "exec"]  # so the hook does see
    assert seen.keys() == {"dataset", "model", "checkpoint", "config", "run"}
    for what, (imported, first, second) in seen.items():
        assert imported == [], what  # from anywhere but where packages are installed
        assert [e for e in first + second if not legitimate(*e)] == [], what
    looks = [e for e in seen["dataset"][2] if e[0] == "subprocess.Popen"]
    assert len(looks) == 1


def legitimate(event, target, arguments, caller) -> bool:
    """Loading may do that: the first look at an HDF5 file, and `typing` reading our annotations.

    glfw, which MuJoCo's tasks import, asks for the version of its library in a process of its own.
    """
    if event == "subprocess.Popen" and arguments[1] == "-c" and "get_version(library_handle)" in arguments[2]:
        return True
    if event == "subprocess.Popen":
        return target == sys.executable and arguments[1:5] == ["-P", "-W", "ignore", firstlook.__file__]
    return event in ("compile", "exec") and caller == "typing"


def test_an_environment_that_a_file_names_imports_no_module(tmp_path, marker, monkeypatch, promise):
    """gymnasium imports what stands before the colon; only who gives `env=` himself may ask for that."""
    from mbo2o.agents.bc import BCConfig
    from mbo2o.doctor.check import check
    from mbo2o.recipes.finetune import FinetuneConfig
    from mbo2o.training import Config, train

    (tmp_path / "lurking.py").write_text(f"open({str(marker)!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    n = 12
    rng = np.random.default_rng(0)
    flags = np.zeros(n, bool)
    obs = rng.normal(size=(n + 1, 3))
    attrs = {"env_id": "lurking:X-v0"}
    data = TransitionDataset.from_arrays(
        obs[:-1], np.zeros((n, 1)), np.zeros(n), flags, flags, obs[1:], attrs
    )
    datasets.write(data, tmp_path / "x.hdf5")
    recipe = FinetuneConfig(offline=BCConfig(), offline_steps=1, online_steps=0)
    cfg = Config(recipe=recipe, dataset=str(tmp_path / "x.hdf5"), dir=str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"names environment 'lurking:X-v0', which imports a module"):
        train(cfg)
    assert any("would import a module" in x.message for x in check(str(tmp_path / "x.hdf5")).findings)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    write_minari(data, "me/mine-v0")
    promise("hostile files and configs: refused, nothing of theirs run")
    assert not marker.exists()
    cfg.env = "lurking:X-v0"  # this shows that the payload works
    with pytest.raises(UserError, match="cannot be made"):
        train(cfg)
    assert marker.exists()
    marker.unlink()
