"""The arms of the studies train with the settings that their published rows were measured with."""

import dataclasses
import importlib
import json
from pathlib import Path

import pytest

from mbo2o.cli.main import compose_config

RECORD = Path(__file__).parent / "golden" / "arms.json"
"""For each base: setting -> value -> the runs that have it, `*` for all of them. Written by this file as a script."""
MAZE = ["run.reward_shift=-1", "run.eval_episodes=10", "recipe.start=500"]
BASES = {
    "enoto": ("enoto", "qensemble-small", []),
    "enoto-lapo": ("enoto", "lapo-small", []),
    "enoto-td3bc": ("enoto", "td3bc-small", []),
    "wsrl": ("wsrl", "wsrl-small", []),
    "wsrl-maze": ("wsrl", "wsrl-small", MAZE),
    "methods": ("methods", "wsrl-small", []),
    "methods-maze": ("methods", "wsrl-small", MAZE),
    "moore": ("moore", "hopper-small", []),
    "moore-halfcheetah": ("moore", "halfcheetah-small", []),
    "obac": ("obac", "obac-small", []),
    "offline": ("offline", "qensemble-small", ["recipe.offline.normalize=true"]),
}
ABSENT = "absent"
UNCOMPARED = ("provenance", "dir", "report", "resume")
"""Settings that decide no number."""


def flat(value, path=""):
    """Settings by dotted path; each config is also named by its class."""
    if dataclasses.is_dataclass(value):
        yield f"{path}:", type(value).__name__
        for f in dataclasses.fields(value):
            yield from flat(getattr(value, f.name), f"{path}.{f.name}".lstrip("."))
    else:
        yield path, json.dumps(value)


def trained(base, monkeypatch):
    """What a study trains for all its arms: by directory, the settings of each run."""
    study, experiment, more = BASES[base]
    module = importlib.import_module(f"studies.{study}")
    subject = [] if study == "obac" else ["dataset=x.hdf5"]
    cfg = compose_config([f"experiment={experiment}", *subject, "env=Hopper-v5", "seeds=5", *more])
    found = {}

    def record(run):
        name = str(Path(run.dir).relative_to("/out"))
        start = str(Path(run.start_from).relative_to("/out")) if run.start_from else None
        settings = dict(flat(dataclasses.replace(run, start_from=start)))
        assert found.setdefault(name, settings) == settings
        return Path(run.dir)

    for where in ("studies.arms", f"studies.{study}", "studies.methods"):
        monkeypatch.setattr(f"{where}.train", record, raising=False)
    module.run(cfg, Path("/out"), list(module.arms(cfg)))
    return {name: {k: v for k, v in x.items() if k not in UNCOMPARED} for name, x in found.items()}


def packed(runs):
    """Runs with their settings as the record has them: of each setting the commonest value stands for the others."""
    out = {}
    for name, settings in runs.items():
        for key in {k for x in runs.values() for k in x}:
            out.setdefault(key, {}).setdefault(settings.get(key, ABSENT), []).append(name)
    for key, values in out.items():
        common = max(values, key=lambda v: len(values[v]))
        out[key] = {common: "*"} | {v: sorted(x) for v, x in values.items() if v != common}
    return {"runs": sorted(runs)} | {key: out[key] for key in sorted(out)}


def unpacked(record):
    """What `packed` was given."""
    runs = {name: {} for name in record["runs"]}
    for key, values in record.items():
        if key == "runs":
            continue
        named = {name: v for v, names in values.items() if names != "*" for name in names}
        common = next(v for v, names in values.items() if names == "*")
        for name, settings in runs.items():
            if (value := named.get(name, common)) != ABSENT:
                settings[key] = value
    return runs


def write(found):
    """Store records, a setting in each line."""
    bases = []
    for base, record in found.items():
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in record.items()]
        bases.append(f" {json.dumps(base)}: {{\n" + ",\n".join(lines) + "\n }")
    RECORD.write_text("{\n" + ",\n".join(bases) + "\n}\n")


if __name__ == "__main__":
    patch = pytest.MonkeyPatch()
    patch.setattr("studies.moore.read_config", lambda offline: (None, "Hopper-v5"), raising=False)
    write({base: packed(trained(base, patch)) for base in BASES})
