"""What starts without importing torch, and the kept dataclasses that make this possible."""

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
from omegaconf import OmegaConf

from mbo2o.cli import schema
from mbo2o.cli.overrides import Tree
from mbo2o.registry import AGENTS, RECIPES, SOURCES, conf_folder
from mbo2o.settings import Config

HEAVY = ("torch", "gymnasium", "h5py", "matplotlib", "minari", "mujoco")
PROBE = f"""
import sys
from mbo2o.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print("imported:", *(x for x in {HEAVY} if x in sys.modules), file=sys.stderr)
"""


def probe(cache, *args):
    """Exit code, output, the first line of errors and the heavy modules of a command in a new process."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *args],
        capture_output=True,
        text=True,
        env=os.environ | {"MBO2O_CACHE": str(cache)},
    )
    *rest, last = done.stderr.splitlines()
    return done.returncode, done.stdout, "".join(rest[:1]), set(last.split()[1:])


def nodes():
    found = [(None, "config", Config)]
    for group, table in (("recipe", RECIPES), ("agent", AGENTS), ("source", SOURCES)):
        found += [(group, x.name, x.config) for x in table.values() if x.cls.__module__.startswith("mbo2o.")]
    return found


def again(found):
    return schema.rebuilt(json.loads(json.dumps(schema.described(found))))


def test_importing_the_package_imports_nothing_heavy():
    unwanted = (*HEAVY, "hydra", "numpy")
    code = f"import sys, mbo2o; mbo2o.UserError; print([x for x in {unwanted} if x in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["", "train", "slurm", "data collect", "study"])
def test_help_imports_nothing_heavy(tmp_path, command):
    code, out, _, heavy = probe(tmp_path, *command.split(), "--help")
    assert (code, heavy) == (0, set())
    assert "example" in out


def test_settings_are_shown_without_torch_from_the_second_time_on(tmp_path):
    show = ["train", "experiment=hopper-small", "recipe.alpha=0.7", "--cfg", "job"]
    first, second = probe(tmp_path, *show), probe(tmp_path, *show)
    assert "torch" in first[3]
    assert second == (0, first[1], "", set())
    code, _, line, heavy = probe(tmp_path, "train", "recipe.alpah=0.7")
    assert (code, heavy) == (2, set())
    assert "did you mean 'recipe.alpha'?" in line
    (kept,) = (tmp_path / "schemas").iterdir()
    kept.write_text(kept.read_text()[:-100])
    assert probe(tmp_path, *show) == first
    assert probe(tmp_path, *show)[3] == set()


@pytest.mark.parametrize("change", ["torn", "not JSON's", "another state", "a type that is unknown"])
def test_a_file_that_does_not_fit_counts_as_missing(monkeypatch, tmp_path, change):
    monkeypatch.setenv("MBO2O_CACHE", str(tmp_path))
    schema._keep(nodes())
    assert schema._kept() is not None
    path = schema._file()
    found = json.loads(path.read_text())
    if change == "another state":
        found["state"] = "0"
    elif change == "a type that is unknown":
        next(iter(found["classes"].values()))["fields"] = [["x", "complex", 0]]
    text = {"torn": path.read_text()[:-9], "not JSON's": "[1]"}.get(change, json.dumps(found))
    path.write_text(text)
    assert schema._kept() is None


def test_a_change_of_a_source_file_is_a_new_state(monkeypatch, tmp_path):
    (tmp_path / "cli").mkdir()
    monkeypatch.setattr(schema, "__file__", str(tmp_path / "cli" / "schema.py"))
    (tmp_path / "a.py").write_text("x = 1\n")
    states = {schema._state()}
    os.utime(tmp_path / "a.py", ns=(1, 1))
    states.add(schema._state())
    (tmp_path / "b.py").write_text("")
    states.add(schema._state())
    assert len(states) == 3


def test_kept_dataclasses_compose_as_the_registered_ones_do():
    """Names, order, types, defaults and which class derives from which: all that composing reads."""
    for (*place, one), (*place_again, other) in zip(nodes(), again(nodes()), strict=True):
        assert (*place, one.__name__, one.__module__) == (*place_again, other.__name__, other.__module__)
        trees = [OmegaConf.structured(x) for x in (one, other)]
        assert OmegaConf.to_yaml(trees[0]) == OmegaConf.to_yaml(trees[1])
        optional = [{key: t._get_node(key)._metadata.optional for key in t} for t in trees]
        assert optional[0] == optional[1]
        mro = [[x.__name__ for x in c.__mro__ if dataclasses.is_dataclass(x)] for c in (one, other)]
        assert mro[0] == mro[1]


@pytest.mark.parametrize("path", sorted((conf_folder() / "experiment").glob("*.yaml")), ids=lambda p: p.stem)
def test_presets_compose_the_same_from_kept_dataclasses(path):
    from hydra.core.config_store import ConfigStore

    shown = []
    for found in (nodes(), again(nodes())):
        for group, name, config in found:
            ConfigStore.instance().store(name=f"{name}_base", node=config, group=group)
        shown.append(OmegaConf.to_yaml(Tree().compose([f"experiment={path.stem}"])))
    schema.tell_hydra()
    assert shown[0] == shown[1]


def test_what_json_cannot_hold_is_not_kept(monkeypatch, tmp_path):
    @dataclass
    class Odd:
        pairs: dict[str, int] = field(default_factory=dict)

    with pytest.raises(schema.Unkeepable):
        schema.described([(None, "config", Odd)])
    monkeypatch.setenv("MBO2O_CACHE", str(tmp_path))
    schema._keep([(None, "config", Odd)])
    assert not list(tmp_path.rglob("*.json"))


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path):
    (tmp_path / "file").write_text("")
    code, out, line, _ = probe(tmp_path / "file", "train", "recipe=mopo", "--cfg", "job")
    assert (code, line) == (0, "")
    assert "offline_steps" in out
