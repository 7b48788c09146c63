"""One offline phase for every method that can take it: what is there, what is taken, and what is missing.

`start_from` goes on with a phase that was learned with this run's own settings, so that both together are
one run. `pretrain_from` takes the networks of a phase as they are, whatever method this run is of: the
settings of the phase are then those that it was learned with.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mbo2o import naming, policy
from mbo2o.agents import Agent, make_agent
from mbo2o.agents.base import Change
from mbo2o.agents.qensemble import QConfig
from mbo2o.nn.normalizer import Normalizer
from mbo2o.recipes import make_recipe
from mbo2o.settings import Config, flat, plain, read_config, values_of
from mbo2o.store import checkpoint, whole
from mbo2o.types import Spec, UserError

FILE = "pretrained.json"
PIECES = {
    "actor": ("actor", "second", "latent", "latent_target", "cvae", "decoder_target", "actor_target"),
    "critics": ("critic", "target", "value_net", "offline_critic", "offline_target", "offline_value"),
    "temperature": ("log_alpha",),
}
"""Names of the parts of agents, by what they are; optimisers are called as their part, with `_optim`."""
NEEDED = ("actor", "critic", "value_net", "cvae", "latent")
"""Parts without which an agent would begin from nothing in the environment."""
TAKEN, MISSING = "taken", "missing"


def take(cfg: Config) -> tuple[Config, list[str]]:
    """The config with the offline phase of `pretrain_from`, and a block of lines that says what is taken.

    Raises:
        UserError: There is no offline phase, it is of another task, or a piece is missing that the method
            cannot do without.
    """
    where = str(cfg.pretrain_from)
    there, env_id = read_config(Path(where))
    if cfg.start_from:
        raise UserError("start_from and pretrain_from both name an offline phase; leave one of them out")
    _check_task(cfg, there, env_id)
    fitted = replace(cfg, recipe=_with_phase(cfg, there))
    lines = [f"from {where}, an offline phase of {naming.method(there)}:"]
    table = _pieces(fitted, where)
    if short := [x for x in table if x.part in NEEDED and x.what == MISSING]:
        raise UserError(f"pretrain_from={where}: {_advice(cfg, short)}")
    lines += [f"  {x.what:<8} {x.part:<24} {x.note}".rstrip() for x in table]
    theirs, mine = flat(values_of(fitted.recipe.offline_part())), flat(values_of(cfg.recipe.offline_part()))
    other = [f"{k}={v}" for k, v in theirs.items() if k in mine and mine[k] != v]
    if other:
        more = f" and {len(other) - 6} more" if len(other) > 6 else ""
        lines.append(f"  its settings stand for this run's: {', '.join(other[:6])}{more}")
    return fitted, lines


def record(cfg: Config, lines: list[str], directory: Path) -> None:
    """Write pretrained.json: where the offline phase came from, which checkpoint it was, what was taken."""
    folder = sorted((Path(str(cfg.pretrain_from)) / "checkpoints").glob("[0-9]*"))[-1]
    manifest = json.loads((folder / "manifest.json").read_text())
    about = {"from": str(cfg.pretrain_from), "turn": manifest["turn"], "sha256": manifest["sha256"]}
    whole.write_whole(directory / FILE, json.dumps(about | {"pieces": lines}, indent=1))


def _check_task(cfg: Config, there: Config, env_id: str) -> None:
    """Refuse a phase of another task, or of other seeds, in one line."""
    ours = plain(cfg, cfg.env or env_id)
    theirs = plain(there, env_id)
    names = ("env", "env_kwargs", "env_layout", "seeds", "seed")
    for name in names:
        if ours[name] != theirs[name] and not (name == "env_layout" and ours[name] is None):
            text = f"learned with {name}={theirs[name]}, and this run has {name}={ours[name]}; give that one"
            raise UserError(f"pretrain_from={cfg.pretrain_from}: {text}")
    for name in ("reward_scale", "reward_shift", "failure_reward"):
        a, b = getattr(there.run, name), getattr(cfg.run, name)
        if a != b and b != "auto":
            text = f"its critics saw rewards with run.{name}={a}, and this run has {b}; give run.{name}={a}"
            raise UserError(f"pretrain_from={cfg.pretrain_from}: {text}")


def _with_phase(cfg: Config, there: Config) -> Any:
    """The recipe of `cfg` with the offline phase of `there`."""
    ours, theirs, where = cfg.recipe, there.recipe, f"pretrain_from={cfg.pretrain_from}"
    mine, other = naming.method(cfg), naming.method(there)
    if not hasattr(theirs, "offline_steps"):
        raise UserError(f"{where}: {other} has no offline phase; give a run that learned from a dataset")
    if not ours.OFFLINE:
        raise UserError(f"{where}: {mine} learns nothing offline, so that there is nothing to take")
    if hasattr(ours, "dynamics"):
        if not hasattr(theirs, "dynamics"):
            cure = "pre-train with recipe=mopo"
            raise UserError(
                f"{where}: dynamics are missing: {mine} needs a model, and {other} learns none; {cure}"
            )
        return replace(
            ours, **{name: getattr(theirs, name) for name in theirs.OFFLINE if hasattr(ours, name)}
        )
    before = make_recipe(theirs)
    agent = before.configs()[0] if hasattr(before, "configs") else theirs.agent
    phase = {"offline": agent, "offline_steps": theirs.offline_steps}
    if hasattr(ours, "offline_target"):  # enoto
        has = agent.critics if isinstance(agent, QConfig) else 0
        if has != ours.critics:
            cure = f"pre-train with recipe.offline.critics={ours.critics}" + (
                f", or give recipe.critics={has}" if has > 1 else ""
            )
            text = f"an ensemble is missing: {mine} needs {ours.critics} critics (recipe.critics)"
            raise UserError(f"{where}: {text}, and the offline agent there has {has}; {cure}")
        phase["offline_target"] = agent.target
    return replace(ours, **phase)


def _pieces(cfg: Config, where: str) -> list[Change]:
    """What becomes of each piece of the offline agent, and of the model, as a table."""
    saved = checkpoint.latest(Path(where) / "checkpoints", "cpu", lambda key: key.startswith("offline."))
    if saved is None:
        raise UserError(f"pretrain_from={where}: has no checkpoint to start from")
    tensors, state = saved
    online = [key for key in state["done"] if not key.startswith("offline.")]
    if online:
        text = "has gone on online; pretrain_from needs a run that ended offline (recipe.online_steps=0)"
        raise UserError(f"pretrain_from={where}: {text}")
    table = _agents(cfg, where)
    has_model = any(key.startswith("offline.model/") for key in tensors)
    if hasattr(cfg.recipe, "dynamics"):
        table.append(Change("dynamics", TAKEN, "with the scale of their inputs"))
    elif has_model:
        table.append(Change("dynamics", "left", f"{naming.method(cfg)} has no use for the model"))
    turns = sum(n for key, n in state["done"].items() if ":" not in key)
    return [*table, Change("counters", TAKEN, f"{turns} offline turns are done; updates online count from 0")]


def _agents(cfg: Config, where: str) -> list[Change]:
    """What becomes of each part of the offline agent at the switch."""
    recipe = make_recipe(cfg.recipe)
    facts = policy.load(where).facts
    spec = Spec(facts["observation"]["size"], len(facts["action"]["names"]))
    before, after = recipe.configs() if hasattr(recipe, "configs") else (cfg.recipe.agent,) * 2
    with torch.random.fork_rng(devices=[]):
        old, new = make_agent(before, spec), make_agent(after, spec)
    kind = getattr(cfg.recipe, "inherit", "all")
    only = new.inner(kind)
    if not getattr(cfg.recipe, "carry_temperature", True):
        only -= {"log_alpha"}
    moments = getattr(cfg.recipe, "carry_moments", True)
    parts = {**dict(new.named_children()), **dict(new.named_parameters(recurse=False))}
    table = [x for x in new.adopt(old, moments=moments, only=only) if x.part in parts]
    return [_said(x, new, x.part in only or x.part.endswith("_optim")) for x in table]


def _said(x: Change, new: Agent, wanted: bool) -> Change:
    """A line of the switch's table in the words of this block."""
    name = x.part.removesuffix("_optim")
    what = next((kind for kind, names in PIECES.items() if name in names), "")
    if isinstance(getattr(new, x.part, None), Normalizer):
        what = "normaliser"
    note = f"optimiser of {name}" if x.part.endswith("_optim") else what
    if x.what == "kept":
        return Change(x.part, TAKEN, note)
    if not wanted:
        return Change(x.part, "left", f"{note}: the run's settings start it from its initial state")
    why = (
        "it is not there" if x.what == "new" else f"another size there: {x.note}" if "→" in x.note else x.note
    )
    return Change(x.part, MISSING, f"{note}: {why}")


def _advice(cfg: Config, short: list[Change]) -> str:
    pieces = "; ".join(f"{x.part} is missing ({x.note})" for x in short)
    goes_on = "recipe.online=null goes on with the agent as it was pre-trained"
    cure = goes_on if getattr(cfg.recipe, "online", None) else "pre-train an agent that has it"
    return f"{naming.method(cfg)} cannot go on: {pieces}; {cure}"
