"""The commands `study`, which a checkout has, and `methods`, which lists what there is to run."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from mbo2o.cli.command import add, folder

ROOT = Path(__file__).parent.parent.parent


def studies() -> dict[str, str]:
    """The studies of this checkout with what each asks, by name; empty for an installed package.

    A study is a module of the folder `studies` that declares the EXPERIMENT whose settings it measures with.
    """
    found = {path.stem: path.read_text() for path in sorted((ROOT / "studies").glob("*.py"))}
    return {
        name: m[1].strip() if (m := re.match(r'"""(.*?)(\n|""")', text)) else ""
        for name, text in found.items()
        if re.search(r"^EXPERIMENT\b", text, re.MULTILINE)
    }


def of_checkout(module: str) -> Any:
    """A module of the folders `studies` and `bench`, which the installed package does not contain."""
    from mbo2o.errors import UserError

    folder = module.split(".")[0]
    if not (ROOT / folder / "__init__.py").is_file():
        raise UserError(f"{folder} is part of the repository and is not installed; run this in a checkout")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module(module)


def _study(options: argparse.Namespace) -> None:
    from mbo2o.errors import UserError
    from mbo2o.registry import find
    from mbo2o.store.whole import writing

    if options.what == "figure":
        return _figure(options)
    if not options.on:
        raise UserError(f"study {options.what}: give what to study it on")
    find(studies() or {options.what: ""}, options.what, "study")
    study = of_checkout(f"studies.{options.what}")
    choice, size = _sized(study, options)
    known = _arms(study, choice, size, options)
    for arm in options.arms or ():
        find(known, arm, "arm")
    ending = "" if size == "small" else f"-{size}"
    name = f"{options.what}-{(options.name or Path(options.on).stem).removesuffix(ending)}{ending}"
    results = of_checkout("studies.results")
    call = results.Call(
        study,
        known,
        options.arms or [x for x in getattr(study, "DEFAULT", known) if x in known],
        Path(options.out) / name,
        Path(options.results) / f"{name}.csv",
        ["mbo2o", *_without_course(options.typed)],
        options.apart,
    )
    if options.apart and getattr(study, "RESTORES", False):
        raise UserError(f"study {options.what} looks into networks of all seeds at once; leave --apart out")
    if options.only:
        return _run_one(call, options.only)
    failed = _run_all(call, options)
    with writing(call.path.parent):
        published = results.publish_call(call, failed)
    print(call.path if published else f"{call.path}: no arm has ended yet")


COURSE = ("--jobs", "--minutes", "--only")
"""Options that decide how a study runs, not what it measures."""


def _without_course(typed: list[str]) -> list[str]:
    """The words of a command without the options of COURSE and their values."""
    return [
        x
        for before, x in zip(["", *typed], typed, strict=False)
        if x.partition("=")[0] not in COURSE and before not in COURSE
    ]


def _sized(study: Any, options: argparse.Namespace) -> tuple[str, str]:
    """The preset that a study's base is, such as experiment=NAME, and the size that results are named for."""
    from mbo2o.errors import UserError

    if given := options.experiment:
        choice = given if "=" in given else f"experiment={given}"
        ends = {"-small": "small", "-mid": "mid", "-paper": "paper", "-full": "paper"}
        its = next((size for end, size in ends.items() if choice.endswith(end)), None)
        its = its or ("paper" if choice.startswith("switch=") else None)
        if options.size and its and its != options.size:
            raise UserError(
                f"--experiment {given} is of the size {its}, not {options.size}; give one of them"
            )
        return choice, options.size or its or "small"
    size = options.size or "small"
    larger = getattr(study, "LARGER", {})
    if size != "small" and size not in larger:
        raise UserError(f"study {options.what} has no size {size}; missing are {study.MISSING}")
    return larger.get(size, f"experiment={study.EXPERIMENT}"), size


def _arms(study: Any, choice: str, size: str, options: argparse.Namespace) -> dict[str, Any]:
    """The arms of a study by name: variants of a base, or at the papers' size presets as they are."""
    from mbo2o.cli.train import compose_config
    from mbo2o.errors import UserError
    from mbo2o.registry import RECIPES

    chosen = [choice, f"{study.SUBJECT}={options.on}", f"seeds={options.seeds}"]
    if not isinstance(compose_config(chosen).recipe, study.CONFIG):
        entry = next(x.name for x in RECIPES.values() if x.config is study.CONFIG)
        raise UserError(
            f"study {options.what}: {choice!r} is of another kind; {options.what} wants one of recipe={entry}"
        )
    base = compose_config([*chosen, *(study.SMALLEST if options.quick else []), *options.overrides])
    presets = size == "paper" and hasattr(study, "papers") and not options.quick
    model = {"model": study.MODELS[size]} if hasattr(study, "MODELS") else {}
    arms: dict[str, Any] = study.papers(base) if presets else study.arms(base, **model)
    return arms


def arms_of(options: argparse.Namespace) -> dict[str, Any]:
    """The arms of a parsed command `study`, by name: what it would run."""
    study = of_checkout(f"studies.{options.what}")
    return _arms(study, *_sized(study, options), options)


def _run_one(call: Any, name: str) -> None:
    """Run one job of a call, for a scheduler that writes the results itself."""
    from mbo2o.registry import find

    found = of_checkout("studies.found")
    jobs = of_checkout("studies.results").jobs_of(call.study, call.known, list(call.known))
    if call.apart:
        jobs = of_checkout("studies.apart").split(jobs)
    find(jobs, name, "job")
    of_checkout("studies.arms").run_job(jobs[name], call.out)
    found.mark_done(call.out / name, found.key_of(jobs[name], jobs), call.command)


def _run_all(call: Any, options: argparse.Namespace) -> dict[str, str]:
    """Run what was asked for, here or in processes; why jobs did not end well, by name."""
    found, apart = of_checkout("studies.found"), of_checkout("studies.apart")
    whole = of_checkout("studies.results").jobs_of(call.study, call.known, call.chosen)
    every = of_checkout("studies.results").jobs_of(call.study, call.known, list(call.known))
    found.check_content(every, call.out, call.apart)
    jobs = whole
    if call.apart:
        jobs = apart.split(whole)
        found.check_content(apart.split(every), call.out)
    folders = [Path(options.out), *(options.look or ())]
    for line in found.take_over(jobs, call.out, folders):
        print(line, file=sys.stderr)
    if not options.jobs and options.minutes is None:
        for name, job in jobs.items():
            if not found.is_done(call.out / name):
                of_checkout("studies.arms").run_job(job, call.out)
                found.mark_done(call.out / name, found.key_of(job, jobs), call.command)
        if call.apart:
            apart.join(whole, call.out, call.command)
        return {}
    command = [sys.executable, "-m", "mbo2o", *_without_course(options.typed), "--only"]
    scheduler = of_checkout("studies.scheduler").Scheduler(
        jobs, call.out, command, options.jobs or 1, options.minutes
    )
    scheduler.run()
    if call.apart:
        apart.join(whole, call.out, call.command)
    return dict(scheduler.failed)


def _figure(options: argparse.Namespace) -> None:
    """Draw a figure of the papers by name, or list them all with what they lack."""
    from mbo2o.registry import find
    from mbo2o.store.whole import writing

    figures, size = of_checkout("studies.figures"), options.size or "small"
    if not options.on:
        for name, shown in figures.FIGURES.items():
            print(f"{name:<16} {shown.about}\n{'':<17}{shown.command(size)}")
            if lack := figures.missing(name, size):
                print(textwrap.fill(lack, 120, initial_indent=" " * 17, subsequent_indent=" " * 19))
        return
    find(figures.FIGURES, options.on, "figure")
    with writing(Path(options.results)):
        paths, lack = figures.draw(options.on, size, Path(options.results))
    for path in paths:
        print(path)
    if lack:
        print(f"figure {options.on} lacks: {lack}", file=sys.stderr)


def _methods(options: argparse.Namespace) -> None:
    from mbo2o import recipes  # noqa: F401  registers
    from mbo2o.cli.overrides import Tree
    from mbo2o.cli.train import check_plugins
    from mbo2o.registry import AGENTS, RECIPES, SOURCES, load_entry_points, load_plugins

    load_entry_points()
    for setting in options.settings:
        _plugins_only(setting)
        plugins = [x.strip() for x in setting.partition("=")[2].strip("[]").split(",")]
        load_plugins(plugins)
        check_plugins(plugins)
    tree = Tree(options.config_dir)
    if (ROOT / "studies" / "__init__.py").is_file():
        _measured()
    if tree.extra:
        _presets(tree.extra)
    print("recipes (recipe=NAME):")
    _entries(RECIPES)
    print("agents (agent@recipe.offline=NAME, agent@recipe.online=NAME, or agent@recipe.agent=NAME):")
    _entries(AGENTS)
    if SOURCES:
        print("sources of batches (source@recipe.source=NAME):")
        _entries(SOURCES)


def _claims(options: argparse.Namespace) -> int:
    ledger = of_checkout("studies.ledger")
    if options.check:
        lines = ledger.disagreements()
        print("\n".join(lines) or f"{ledger.FILE} says what the measured tables say")
        return int(bool(lines))
    table = ledger.read_ledger()
    if options.json:
        import json

        print(json.dumps(table, indent=1, ensure_ascii=False))
        return 0
    for claim, sizes in ledger.claims_at(table).items():
        first = next(iter(sizes.values()))[0]
        print(f"{claim}: {first['text']} ({first['source']})")
        for size, rows in sizes.items():
            print(f"    {size:<6} {ledger.overall(rows)}")
            for row in rows if options.all else ():
                print(f"           {ledger.line(row)}")
    return 0


def _plugins_only(setting: str) -> None:
    from mbo2o.errors import UserError

    if not setting.startswith("plugins="):
        raise UserError(f"methods: {setting!r} has no use here; give plugins=[my.module]")


def _entries(table: dict[str, Any]) -> None:
    for entry in table.values():
        idea = (entry.cls.__doc__ or "").split("\n\n")[0]
        print(f"  {entry.name:<16} {' '.join(idea.split())}")


def _presets(folder: Path) -> None:
    from omegaconf import OmegaConf

    print(f"presets of {folder}:")
    for group in ("switch", "experiment"):
        for path in sorted((folder / group).glob("*.yaml")):
            provenance = OmegaConf.select(OmegaConf.load(path), "provenance")
            print(f"  {group}={path.stem:<16} {provenance or 'does not say where its numbers come from'}")


def _measured() -> None:
    from mbo2o.report.statistics import FEWEST, KIND
    from mbo2o.store.datasets import data_folders

    m = of_checkout("studies.methods")
    results = data_folders()[0] / "results" if data_folders() else Path("data/results")
    indent = " " * 19
    print(
        "methods: the command with the paper's numbers, where these are from, and what studies at small "
        "sizes measured:"
    )
    print(
        f"return at the switch → final, mean and {KIND} over seeds (–: fewer than {FEWEST} seeds, no "
        f"interval)"
    )
    for method in m.METHODS:
        about = f"{method.paper}; needs: {method.needs}"
        print(f"  {method.name:<16} {about}\n{indent}mbo2o train {method.command}")
        lines = [m.declared(method.command), f"measured: {m.measured(method, results) or 'not yet'}"]
        if by := m.measured_by(method, results):
            lines.append(f"by: {by}")
        for line in lines:
            print(textwrap.fill(line, 120, initial_indent=indent, subsequent_indent=f"{indent}  "))


def add_to(commands: Any) -> None:
    """Declare `methods`, `study` and `claims`."""
    p = add(
        commands,
        "claims",
        _claims,
        "Show what came out for every claim of the papers, at each size; `not run` is a result.",
        "mbo2o claims\n  mbo2o claims --all\n  mbo2o claims --check",
        more="The rows are those of data/results/claims.csv, which `python -m studies.readme` writes.",
    )
    p.add_argument(
        "--all", action="store_true", help="also every comparison, with its difference and interval"
    )
    p.add_argument("--json", action="store_true", help="all rows and columns, as JSON")
    p.add_argument(
        "--check",
        action="store_true",
        help="say where claims.csv and the measured tables differ; then exit 1",
    )
    p = add(
        commands,
        "methods",
        _methods,
        "List methods with what they were measured at, and recipes, agents and sources, also those of "
        "plugins.",
        "mbo2o methods\n  mbo2o methods plugins=[my.module] --config-dir my/conf",
    )
    p.add_argument("settings", nargs="*", default=[], metavar="plugins=[MODULE]")
    p.add_argument(
        "--config-dir", type=folder, metavar="DIR", help="a folder of YAML whose presets are listed"
    )

    _add_study(commands)


def _add_study(commands: Any) -> None:
    p = add(
        commands,
        "study",
        _study,
        "Run a study; finished parts are not run again.",
        "mbo2o study moore hopper-medium-replay-v5 --seeds 3\n"
        "  mbo2o study enoto hopper-medium-replay-v5 --seeds 5 --size mid --jobs 2 --minutes 480\n"
        "  mbo2o study enoto my.hdf5 --arms freed freed-n wmp --experiment td3bc-small --name my-td3bc\n"
        "  mbo2o study obac Hopper-v5 --seeds 5\n"
        "  mbo2o study figure\n  mbo2o study figure enoto-1a",
        more=" ".join(f"{name}: {question}" for name, question in studies().items()),
    )
    p.add_argument(
        "what", metavar="STUDY", help=f"{', '.join(studies())}; or figure, to draw one of a paper by name"
    )
    p.add_argument(
        "on", nargs="?", metavar="DATASET", help="what to study it on; an environment for some studies"
    )
    p.add_argument(
        "--size",
        choices=("small", "mid", "paper"),
        help="small: for two CPU cores; mid: the papers' nets and about a tenth of their updates; paper: the "
        "papers' numbers; if not given, that of --experiment, or small",
    )
    p.add_argument("--jobs", type=int, metavar="N", help="run N jobs at a time, each in a process of its own")
    p.add_argument(
        "--minutes", type=float, metavar="M", help="stop after M minutes; the same command goes on later"
    )
    p.add_argument(
        "--look",
        nargs="+",
        type=folder,
        metavar="DIR",
        help="other folders of studies, whose finished runs of the same content are not run again",
    )
    p.add_argument(
        "--apart", action="store_true", help="run each seed in a process of its own, for cores without a GPU"
    )
    p.add_argument("--only", metavar="JOB", help="run this arm or offline phase, and write no results")
    p.add_argument(
        "--arms", nargs="+", metavar="ARM", help="only these; if not given, the study's own choice"
    )
    p.add_argument(
        "--set", nargs="*", default=[], dest="overrides", metavar="KEY=VALUE", help="settings of the runs"
    )
    p.add_argument("--experiment", help="settings by name, or switch=NAME; if not given, the size's")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--name", help="of the results; the dataset's if not given")
    p.add_argument("--out", default="runs/studies")
    p.add_argument("--results", default="data/results")
    p.add_argument(
        "--quick", action="store_true", help="sizes that take a minute and show nothing but that it runs"
    )
