"""The arms of the studies train with the settings that their published rows were measured with."""

import dataclasses
import importlib
import json
from pathlib import Path

import pytest

from mbo2o.cli.main import compose_config
from mbo2o.recipes import make_recipe
from mbo2o.registry import SOURCES
from studies.arms import run_job
from studies.presets import BUDGETS, RATES, preset
from studies.results import jobs_of

RECORD = Path(__file__).parent / "golden" / "arms.json"
"""By base: setting -> value -> the runs that have it, `*` for all others. This file as a script writes it."""
MAZE = ["run.reward_shift=-1", "run.eval_episodes=10", "recipe.warmup=500"]
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
JUSTIFIED = {
    # the model has the activation of its paper, where the record has relu; no row was published
    **{("methods", x): ["recipe.dynamics.net.activation"] for x in ("mopo", "moore", "mbpo")},
    # acts after the switch, and the study ends before it
    ("offline", "td3bc"): ["recipe.offline.online_bc_weight"],
}
"""Settings that differ from the record, by study and run."""
ABSENT = "absent"
UNCOMPARED = (
    *("provenance", "plugins", "dir", "report", "log", "resume", "engine", "precision"),
    "recipe.coverage",
)
"""Settings that decide no number; and how steps are run, which came later and is left at its default."""
LATER = {
    "pretrain_from": "null",
    "recipe.weigh": '"none"',
    "recipe.exponent": "1.0",
    "recipe.refresh": "1",
    "recipe.starts": '"data"',
    "recipe.online_starts": '"mixture"',
    "recipe.online_actor_lr": "null",
    "recipe.imagined_rows": "null",
    "recipe.truncate": "null",
    "recipe.penalty_draws": "10",
    "run.eval_workers": "0",
    "run.traces": "false",
    "dataset_columns": "null",
    "updates_per_row": "null",
    "log": "[]",
    **{f"recipe.{slot}.actor_decay_steps": "null" for slot in ("agent", "offline", "online")},
}
"""Settings that came after the record, with the defaults at which they change nothing."""


def flat(value, path=""):
    """Settings by dotted path; each config is also named by its class."""
    if dataclasses.is_dataclass(value):
        yield f"{path}:", type(value).__name__
        for f in dataclasses.fields(value):
            yield from flat(getattr(value, f.name), f"{path}.{f.name}".lstrip("."))
    else:
        yield path, json.dumps(value)


def decisive(cfg):
    """The settings of a run that decide what it computes.

    Agents are those that the recipe makes of its settings, and a phase without steps has no agent. So an
    agent that is derived and one that is spelled out are the same.
    """
    recipe, settings = cfg.recipe, dict(flat(cfg))
    settings = {OLDER.get(k, k): v for k, v in settings.items()}
    if hasattr(recipe, "warmup"):
        offline, online = (
            make_recipe(recipe).configs() if hasattr(recipe, "offline") else (None, recipe.agent)
        )
        agents = {"offline": offline, "online": online}
        settings = {k: v for k, v in settings.items() if not k.startswith("recipe")}
        names = ("offline_steps", "batch", "probe_every")
        if recipe.online_steps:
            names += ("online_steps", "utd", "warmup", "inherit", "carry_moments", "carry_temperature")
            settings["recipe.source"] = json.dumps(source(recipe.source))
        else:
            settings["recipe.online_steps"], agents = "0", {"offline": offline}
        shared = {f"recipe.{k}": json.dumps(getattr(recipe, k)) for k in names if hasattr(recipe, k)}
        settings |= {OLDER.get(k, k): v for k, v in shared.items()}
        for name, agent in agents.items():
            settings |= dict(flat(agent, f"recipe.{name}")) if agent else {}
    return {k: v for k, v in settings.items() if k not in UNCOMPARED and LATER.get(k) != v}


OLDER = {
    "recipe.warmup": "recipe.start",
    "recipe.random_steps": "recipe.start",
    "recipe.real_share": "recipe.real",
}
"""Settings that have another name in the record."""


def source(cfg):
    """Where online batches come from, in the words of the record."""
    name = next(entry.name for entry in SOURCES.values() if entry.config is type(cfg))
    words = {
        "mix": lambda: [cfg.offline_share],
        "distilled": lambda: [cfg.share, cfg.rows],
        "balanced": lambda: [dict(flat(cfg))],
    }
    older = {"online": "empty", "distilled": "distill"}
    return [older.get(name, name), *words.get(name, list)()]


def base_of(name):
    """The study of a base, and the config that its command would have."""
    study, experiment, more = BASES[name]
    subject = [] if study == "obac" else ["dataset=x.hdf5"]
    cfg = compose_config([f"experiment={experiment}", *subject, "env=Hopper-v5", "seeds=5", *more])
    return importlib.import_module(f"studies.{study}"), cfg


def trained(name, monkeypatch):
    """What a study trains for all its arms: by directory, the settings of each run."""
    module, cfg = base_of(name)
    found = {}

    def record(run):
        place = str(Path(run.dir).relative_to("/out"))
        start = str(Path(run.start_from).relative_to("/out")) if run.start_from else None
        settings = decisive(dataclasses.replace(run, start_from=start))
        assert found.setdefault(place, settings) == settings
        return Path(run.dir)

    for where in ("studies.arms", module.__name__):
        monkeypatch.setattr(f"{where}.train", record, raising=False)
    known = module.arms(cfg)
    for job in jobs_of(module, known, list(known)).values():
        run_job(job, Path("/out"))
    return found


@pytest.mark.parametrize("base", BASES)
def test_arms_train_with_the_settings_that_were_measured(base, monkeypatch):
    """The runs of a study have the settings of the record, but for the differences that are listed here."""
    then, now = recorded(base), trained(base, monkeypatch)
    assert sorted(now) == sorted(then)
    study = BASES[base][0]
    for name, kept in then.items():
        settings = {k: v for k, v in kept.items() if LATER.get(k) != v}
        differ = {k for k in {*settings, *now[name]} if settings.get(k) != now[name].get(k)}
        assert differ == set(JUSTIFIED.get((study, name), ())), name


def test_a_method_differs_from_its_preset_in_size_and_in_what_its_arm_names():
    """Apart from sizes and rates, only the settings in NAMED differ."""
    module, base = base_of("methods")
    arms = module.arms(base)
    presets = {m.measured[1]: m.command for m in module.METHODS if m.measured[0] == "methods"}
    assert set(presets) > {"wsrl", "rlpd", "pex", "balanced", "iql", "awac", "calql"}
    for arm, command in presets.items():
        command = "switch=calql-dense" if arm == "calql" else command
        ours, theirs = (decisive(dataclasses.replace(x, run=base.run)) for x in (arms[arm], preset(command)))
        differ = {k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k)}
        names = {k.rpartition(".")[2] for k in differ if k.startswith("recipe.")}
        sizes = {
            "hidden",
            "layer_norm",
            "critics",
            "policy_delay",
            "utd",
            "value_lr",
            *BUDGETS,
            *RATES,
            "start",
        }
        assert names - sizes <= NAMED[arm], arm


NAMED = {
    "wsrl": {"target", "backup", "actor_lr"},  # the CQL of experiment=qensemble-small
    "rlpd": set(),
    "pex": {"beta", "expectile", "normalize", "actor_decay_steps"},  # the IQL of the arm iql
    "balanced": {"actor_lr", "source"},  # the base's CQL; first updates as many as there are rows
    "adaptive-bc": {"normalize", "source"},
    "calql": {"actor_lr", "weight", "ensemble", "gap", "backup", "normalize"},  # the base's CQL with a bound
    "iql": {"actor_decay_steps"},
    "awac": set(),
    "cql": {"actor_lr", "weight", "backup", "normalize"},
}
"""By arm of `methods`, the settings that differ from its preset on purpose; studies/methods.py says why."""


def packed(runs):
    """Runs as the record has them: the commonest value stands for all runs that are not named."""
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


def recorded(base):
    """The record of a base. RLPD was a fine-tuning whose offline phase had no steps; now it has no such
    phase.
    """
    runs = unpacked(json.loads(RECORD.read_text())[base])
    runs.pop("offline-redq", None)
    for settings in runs.values():
        settings.pop("run.tensorboard", None)  # now one of `log`, which decides no number
        if settings.get("recipe.offline_steps") == "0":
            carried = ("inherit", "carry_moments", "carry_temperature", "offline_steps")
            for key in [k for k in settings if k.startswith("recipe.offline.") or k == "recipe.offline:"]:
                del settings[key]
            for name in carried:
                del settings[f"recipe.{name}"]
            settings["start_from"] = "null"
    return runs


def write(found):
    """Store records, a setting in each line."""
    bases = []
    for base, record in found.items():
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in record.items()]
        bases.append(f" {json.dumps(base)}: {{\n" + ",\n".join(lines) + "\n }")
    RECORD.write_text("{\n" + ",\n".join(bases) + "\n}\n")


if __name__ == "__main__":
    write({base: packed(trained(base, pytest.MonkeyPatch())) for base in BASES})
