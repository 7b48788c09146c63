"""Which runs are the same run, and in which directory a run lives."""

from __future__ import annotations

import glob
import hashlib
import json
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from mbo2o.registry import AGENTS, RECIPES, SOURCES, entry_of
from mbo2o.settings import Config, flat, parts, plain, read_config, stored, values_of
from mbo2o.types import UserError

VERSION = 2
"""Version of the rule that names directories. Raise it when a setting changes its meaning or its default."""
SUM = "dataset_sha256"
FACTS = (SUM, "behaviour_return")
"""Entries of config.yaml that are no settings: what a run found out of its dataset when it began."""
OPEN = ("dir", "resume", "report", "log", "threads", "engine", "storage", "provenance", "plugins")
OPEN_OF_RUN = ("env_faults", "env_seconds", "allow_mismatch", "eval_workers", "traces")
"""Settings that may differ between parts of one run: they decide how it runs, not what it computes."""
STEPS = ("recipe.online_steps", "recipe.offline_steps")
"""The settings that make a run longer, the last phase's first."""
SCHEDULES = ("_decay_steps", "recipe.source.steps")
"""Ends of the names of settings that say over how many steps something changes."""


def decisive(cfg: Config, env_id: str) -> dict[str, Any]:
    """The settings that two runs have in common if and only if they are the same run, by dotted name.

    The reference only turns returns into scores, so it counts where an agent acts on scores.
    """
    values = plain(cfg, env_id)
    if values["precision"] in ("auto", "fp32"):  # what runs had before there was a choice
        del values["precision"]
    unread = [*OPEN_OF_RUN, *(() if _acts_on_scores(cfg) else ("reference",))]
    run = {key: value for key, value in values["run"].items() if key not in unread}
    return flat({key: value for key, value in values.items() if key not in OPEN} | {"run": run})


def _acts_on_scores(cfg: Config) -> bool:
    return any(getattr(x, "acts_on_scores", False) for x in vars(cfg.recipe).values())


def name(cfg: Config, env_id: str) -> str:
    """RECIPE-DATASET-HASH, or RECIPE-ENVIRONMENT-HASH.

    The hash is of what was chosen: names, and the settings that differ from their defaults. A setting that a
    later version adds therefore leaves the names of directories as they are.
    """
    usual, mine = decisive(_usual(cfg), ""), decisive(cfg, env_id)
    kinds = {f"{place}.name" for place, part in parts(cfg) if entry_of(part, RECIPES, AGENTS, SOURCES)}
    chosen = {k: v for k, v in mine.items() if k in kinds or k not in usual or usual[k] != v}
    text = json.dumps({"version": VERSION, "settings": chosen}, sort_keys=True)
    return f"{_prefix(cfg, env_id)}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def method(cfg: Config) -> str:
    """The registered name of the recipe."""
    entry = entry_of(cfg.recipe, RECIPES)
    return entry.name if entry else type(cfg.recipe).__name__


def _prefix(cfg: Config, env_id: str) -> str:
    data = Path(cfg.dataset).stem if cfg.dataset else env_id
    return f"{method(cfg)}-{data.replace('/', '-').replace(':', '-')}"


def _usual(config: Any) -> Any:
    """A config with the same kinds in its slots, and all other settings at their defaults."""
    usual = type(config)()
    for f in fields(config):
        mine = getattr(config, f.name)
        if is_dataclass(mine) and type(getattr(usual, f.name)) is not type(mine):
            setattr(usual, f.name, _usual(mine))
    return usual


def directory_of(cfg: Config, env_id: str, content: str | None) -> tuple[Path, str]:
    """Where the run lives, and a line to say about it ("" if there is none).

    Without `dir` it is a directory of `runs`. Its name is `name`'s, unless another directory there holds the
    same run, because an older version named it by another rule or the dataset has moved since. Then the run
    goes on there.

    content: the sha256 of the dataset, None without one.
    """
    if cfg.dir:
        return Path(cfg.dir), ""
    here = Path("runs") / name(cfg, env_id)
    if _began(here):
        return here, ""
    said = ""
    for other in sorted(Path("runs").glob(f"{glob.escape(_prefix(cfg, env_id))}-*")):
        changed = _changed_since(other, cfg, env_id, content) if _began(other) else None
        if changed == []:
            return other, f"{other} holds this run, under another name than {here.name}: going on there"
        if changed and len(changed) == 1 and changed[0] in STEPS:
            said = f"{other} differs in {changed[0]} alone; with dir={other} a longer run goes on from there"
    return here, said


def _began(directory: Path) -> bool:
    """Whether a run is there that got to a checkpoint."""
    return (directory / "config.yaml").is_file() and _has_checkpoints(directory)


def _has_checkpoints(directory: Path) -> bool:
    return any((directory / "checkpoints").glob("[0-9]*"))


def _changed_since(directory: Path, cfg: Config, env_id: str, content: str | None) -> list[str] | None:
    """The settings in which the run in `directory` differs; None if it is of other data or cannot be read."""
    try:
        then, now = _compared(directory, cfg, env_id, content)
        old = stored(directory).get(SUM)
    except UserError:
        return None
    return _changed(then, now) if old is None or content is None or old == content else None


def _compared(
    directory: Path, cfg: Config, env_id: str, content: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What decided the run in `directory`, and what decides this one; a dataset is its content if known.

    The stored settings are read as a config: those that an older version did not have are at their defaults.
    """
    then, now = decisive(*read_config(directory)), decisive(cfg, env_id)
    if stored(directory).get(SUM) and content:
        del then["dataset"], now["dataset"]
    return then, now


def claim(directory: Path, cfg: Config, env_id: str, content: str | None) -> dict[str, Any]:
    """The entries of the run's config.yaml; empty if the run begins now.

    A run goes on with the same settings, or with more steps of its last phase and all else the same: its
    turns are those that the longer run would have begun with.

    Raises:
        UserError: The directory holds a run of other settings or of another dataset, or one whose settings
            are gone; or `resume` is false.
    """
    if not _began(directory):
        if _has_checkpoints(directory):
            lost = "holds checkpoints without the config.yaml that says of which settings they are"
            raise UserError(f"{directory}: {lost}; put that file back, or choose another dir=")
        return {}
    if not cfg.resume:
        raise UserError(
            f"{directory}: holds a run already; choose another dir=, or resume=true to go on with it"
        )
    then, now = _compared(directory, cfg, env_id, content)
    changed, longer = _changed(then, now), extended(then, now)
    if longer and (why := _bars(longer, changed, then, now)):
        more = f"it could go on to {longer}={now[longer]} only as the run that it is"
        raise UserError(f"{directory}: {more}, but {why}; choose another dir=")
    if changed and not longer:
        back = f"give run.reference={then.get('run.reference')} run.allow_mismatch=true to go on with it, or "
        same = back if changed == ["run.reference"] else ""
        text = f"holds a run with {_differences(then, now)}; {same}choose another dir="
        raise UserError(f"{directory}: {text}")
    found = stored(directory)
    check_content(directory, plain(cfg, env_id)["dataset"], found.get(SUM), content)
    return found


def extended(then: dict[str, Any], now: dict[str, Any]) -> str:
    """The setting by which a run is asked for more steps of its last phase; "" if it is not.

    The last phase is the online one, if there is one or if it is asked for now.
    """
    online, offline = STEPS
    last = online if then.get(online) or now.get(online) else offline
    before, after = then.get(last), now.get(last)
    return last if isinstance(before, int) and isinstance(after, int) and after > before else ""


def _bars(longer: str, changed: list[str], then: dict[str, Any], now: dict[str, Any]) -> str:
    """Why a run is not the beginning of a longer one; "" if it is.

    Another setting differs, maybe since it follows from the steps, or a schedule was made to end with them.
    """
    others = [key for key in changed if key != longer]
    if others:
        key, rest = others[0], f" (and {len(others) - 1} more)" if others[1:] else ""
        follows = f", which follows from {longer}" if now.get(key) == now[longer] else ""
        return f"{key}={then.get(key)} there, not {now.get(key)}{follows}{rest}"
    per_epoch = then.get("recipe.epoch" if longer == STEPS[0] else "recipe.rollout_every")
    for key, value in then.items():
        grows = isinstance(value, list) and key.endswith("horizon") and per_epoch
        end = value[-1] * per_epoch if grows else value if key.endswith(SCHEDULES) else None
        if end is not None and end == then[longer]:
            return f"{key}={value} is a schedule that ends with its {then[longer]} steps"
    return ""


def check_content(directory: Path, path: object, then: str | None, now: str | None) -> None:
    """Refuse a dataset that is not the run's; runs of old versions do not know its sha256."""
    if then and now and then != now:
        sums = f"sha256 {then} then, {now} now"
        raise UserError(
            f"{directory}: the dataset at {path} is not the one this run learned from ({sums}); "
            "choose another dir="
        )


def _changed(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names of the settings that differ, sorted; a missing one counts as null."""
    return [key for key in sorted({*then, *now}) if then.get(key) != now.get(key)]


def _differences(then: dict[str, Any], now: dict[str, Any]) -> str:
    """The first five settings that differ, and how many there are."""
    changed = _changed(then, now)
    shown = "; ".join(f"{key}={then.get(key)}, not {now.get(key)}" for key in changed[:5])
    rest = f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
    count = f"{len(changed)} settings differ" if len(changed) > 1 else "1 setting differs"
    return f"{shown}{rest} ({count})"


# ---------------------------------------------------------------------------------------------- start_from


def check_start(cfg: Config, env_id: str, content: str | None) -> None:
    """Refuse an offline phase that was learned in another way than this run would learn it.

    The data are the same if their content is, whatever the files are called; runs of old versions know
    nothing but the name.
    """
    start = Path(str(cfg.start_from))
    other, other_env = read_config(start)
    theirs, ours = _offline(other, other_env), _offline(cfg, env_id)
    then = stored(start).get(SUM)
    if then and content:
        same = then == content
        theirs["dataset"] = "" if same else f"{other.dataset} (sha256 {then})"
        ours["dataset"] = "" if same else f"{cfg.dataset} (sha256 {content})"
    if theirs != ours:
        raise UserError(f"start_from={cfg.start_from}: was run with {_differences(theirs, ours)}")


def _offline(cfg: Config, env_id: str) -> dict[str, Any]:
    """The settings that decide what an offline phase learns, by dotted name."""
    values = plain(replace(cfg, dataset=Path(str(cfg.dataset)).stem), env_id)
    task = {
        x: values[x]
        for x in (
            *("seed", "seeds", "env", "dataset", "dataset_actions", "dataset_columns"),
            *("env_kwargs", "env_layout"),
        )
    }
    rewards = {x: values["run"][x] for x in ("reward_scale", "reward_shift", "failure_reward")}
    return flat(task | {"run": rewards, "recipe": values_of(cfg.recipe.offline_part())})
