"""The commands about runs: `train`, which Hydra composes, and `eval`."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mbo2o.cli.command import INTERRUPTED, STOPPED, add, guarded

if TYPE_CHECKING:
    from mbo2o.cli.overrides import Tree
    from mbo2o.settings import Config

SWEEP = {"-m", "--multirun"}
"""Flags with which a comma separates the values of several runs."""
UPDATES_PER_ROW = 10
"""What `updates_per_row` is where a method learns from a log alone and the user says nothing of steps."""
TRUST = "import the code that the config names: plugins, functions, environments"


def run(args: list[str]) -> int:
    """`mbo2o train` with these arguments."""
    from mbo2o.cli.overrides import LOOKS, Tree, check_overrides, literals
    from mbo2o.cli.schema import tell_hydra

    args, trust, folder, file = _own_options(args)
    if file or not find_spec("hydra"):
        return _without_hydra(args, Tree(folder), trust, file)
    import hydra

    tree, args = Tree(folder), literals(args)
    load_chosen(args, tree, trust)
    kept = tell_hydra(look=True)  # a mistake is told, and settings are shown, without waiting for torch
    check_overrides(args, tree)
    if kept and not LOOKS & set(args):
        tell_hydra()
    if SWEEP & set(args) or "hydra.mode=MULTIRUN" in args:
        return _sweep([x for x in args if x not in SWEEP], tree, _job(trust))
    codes: list[int] = []
    sys.argv = ["mbo2o train", *args, *tree.search]
    job = _job(trust)
    hydra.main(config_path=str(tree.own), config_name="config", version_base="1.3")(
        lambda node: codes.append(job(node))
    )()
    return max(codes, default=0)


def _without_hydra(args: list[str], tree: Tree, trust: bool, file: Path | None) -> int:
    """Train, or show the config with `--cfg job`, without sweeps and what else only Hydra does.

    file: YAML that holds settings by name, on top of which the arguments count.
    """
    from omegaconf import OmegaConf

    from mbo2o.cli.compose import compose, load_asked, read_settings, settings_of
    from mbo2o.errors import UserError
    from mbo2o.registry import trusting
    from mbo2o.settings import values_of
    from mbo2o.training import train

    shown = [x for x in ("--cfg job", "-c job", "--cfg=job") if x in " ".join(args)]
    rest = [x for x in args if x not in ("--cfg", "-c", "--cfg=job", "job")] if shown else args
    if flags := [x for x in rest if x.startswith(("-", "~"))]:
        why = "does not go with --config" if file else "needs Hydra: pip install 'mbo2o[all]'"
        raise UserError(f"train: {flags[0]} {why}; settings are given as KEY=VALUE")
    typed = settings_of(rest, {})
    found = [*settings_of([], read_settings(file) if file else {}), *typed]
    load_asked(found, tree, trust)
    names = {str(y) for x in typed for y in (x.value if isinstance(x.value, list) else [x.value])}
    cfg = compose(found, tree)
    if shown:
        print(OmegaConf.to_yaml(OmegaConf.create(values_of(cfg))), end="")
        return 0
    with trusting(trust or names):
        train(cfg)
    return 0


def _job(trust: bool) -> Callable[[Any], int]:
    """What Hydra calls with each composed config, maybe in another process: it trains, and gives the code.

    After a signal has stopped one run of a sweep, the others that this process would run do not begin.
    """
    stopped: list[int] = []

    def job(node: Any) -> int:
        from hydra.core.hydra_config import HydraConfig

        from mbo2o.registry import load_entry_points, trusting
        from mbo2o.training import train

        def work() -> int:
            load_entry_points()
            cfg = to_config(node)  # first, because it says what is wrong with an interpolation
            given = HydraConfig.get().overrides.task
            with trusting(trust or set(_texts(given))):
                train(declare(cfg, given))
            return 0

        code = stopped[0] if stopped else guarded(work)
        if code in (INTERRUPTED, STOPPED):
            stopped.append(code)
        return code

    return job


def _sweep(overrides: list[str], tree: Tree, job: Callable[[Any], int]) -> int:
    """Run a sweep with the launcher that `hydra/launcher=` chooses; the largest code of its runs."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_dir(str(tree.own), version_base="1.3", job_name="mbo2o"):
        hydra: Any = GlobalHydra.instance().hydra
        batches = hydra.multirun("config", job, [*overrides, *tree.search])
    return max((int(run.return_value) for batch in batches or () for run in batch), default=0)


def config(*given: str | Mapping[str, Any], **settings: Any) -> Config:
    """The config of a run, from names and settings.

        config("wsrl", "hopper-medium-v5", seed=1)
        config("moore", dataset="my.csv", env=None, recipe={"horizon": 1})
        config("experiment=hopper-small", "seeds=3", {"recipe.alpha": 0.5})

    Args:
        given: A method's name, which is an experiment's, a switch's or a recipe's (the first that has it);
            after it a dataset's; settings as text, `KEY=VALUE`, as on the command line; dicts of settings.
        settings: By name. A dict stands for the settings below it; `**{"recipe.horizon": 1}` is one of them.
            `env=None` means no environment: the method learns from the log alone.

    The same settings give the same config, and so the same directory, here, in a YAML file and on the command
    line. Hydra is not needed.

    Raises:
        UserError: There is a mistake in them.
    """
    from mbo2o.cli.compose import compose, find_preset, load_asked, settings_of
    from mbo2o.cli.overrides import Tree
    from mbo2o.errors import UserError

    tree, found, names = Tree(), [], 0
    for x in given:
        if isinstance(x, Mapping):
            found += settings_of([], x)
        elif not isinstance(x, str):
            raise UserError(f'config takes settings as text, such as "seeds=3", and {x!r} is none')
        elif "=" in x or names > 1:
            found += settings_of([x], {})
        else:
            found += settings_of([], {"dataset": x}) if names else [find_preset(x, tree)]
            names += 1
    found += settings_of([], settings)
    load_asked(found, tree, trust=False)
    return compose(found, tree)


def compose_config(overrides: list[str]) -> Config:
    """The config that `mbo2o train` would run with these overrides.

    Raises:
        UserError: There is a mistake in them.
    """
    return config(*overrides)


def to_config(node: Any) -> Any:
    """A composed tree as dataclasses. `UserError` for a missing or ill-typed value."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from mbo2o.cli.overrides import one_line
    from mbo2o.errors import UserError

    try:
        return OmegaConf.to_object(node)
    except OmegaConfBaseException as e:
        raise UserError(one_line(str(e))) from e


def declare(cfg: Config, overrides: Sequence[str]) -> Config:
    """The config whose provenance names the preset, and the settings that were given on top of it.

    Where a run happens and on what (dataset, seed, device, dir) is no setting of the method. A preset's steps
    are for large data, so that without an environment the size of the log decides, unless steps were given.
    """
    from mbo2o.registry import NO_ENV

    given = {o.split("=")[0].lstrip("+~") for o in overrides}
    if cfg.env == NO_ENV and not given & {"recipe.offline_steps", "updates_per_row"}:
        cfg.updates_per_row = UPDATES_PER_ROW
    presets = {o.split("=")[0]: o for o in overrides if o.startswith(("switch=", "experiment="))}
    preset = presets.get("experiment") or presets.get("switch")
    if preset is None or ": " not in (cfg.provenance or ""):
        return cfg
    others = [o for o in overrides if re.match(r"[+~]*(recipe|run|agent|source|switch)\b", o) and o != preset]
    kind, _, source = str(cfg.provenance).partition(": ")
    settings = f"{len(others)} setting{'s' * (len(others) > 1)}"
    count = f", with {settings} overridden ({', '.join(others)})" if others else ""
    cfg.provenance = f"{preset}: {kind}{count}: {source}"
    return cfg


# ------------------------------------------------------------------------------------------ plugins and trust


def _own_options(args: Sequence[str]) -> tuple[list[str], bool, Path | None, Path | None]:
    """The arguments that are for Hydra, whether there is --trust, and what --config-dir and --config name."""
    from mbo2o.errors import UserError

    left: list[str] = []
    trust, folder, file, rest = False, None, None, iter(args)
    for a in rest:
        option, equals, value = a.partition("=")
        if a == "--trust":
            trust = True
        elif option == "--config-dir":
            folder = Path(value if equals else next(rest, ""))
            if not str(value or folder).strip(".") or not folder.is_dir():
                raise UserError(
                    f"--config-dir {folder}: no such folder; give one that holds groups of YAML files"
                )
        elif option == "--config":
            file = Path(value if equals else next(rest, ""))
        else:
            left.append(a)
    return left, trust, folder, file


def load_chosen(overrides: Sequence[str], tree: Tree, trust: bool) -> None:
    """Import the plugins: of installed packages, of the overrides, or else of the presets that these choose.

    Raises:
        UserError: A preset names a plugin that the overrides do not, and it is not trusted.
    """
    from mbo2o.errors import UserError

    given = [o for o in overrides if re.match(r"\+*plugins=", o)]
    for o in given:
        if not re.fullmatch(r"\+*plugins=\[.*\]", o):
            raise UserError(f"{o}: expected a list of modules, as plugins=[my.module]")
    load_named(list(_texts(given)) if given else None, overrides, tree, trust)


def load_named(names: Sequence[str] | None, overrides: Sequence[str], tree: Tree, trust: bool) -> None:
    """Import these plugins, or without any those of the presets that the overrides choose."""
    from mbo2o.registry import load_entry_points, load_plugins, trusting

    load_entry_points()
    if names is not None:
        load_plugins(names)
        check_plugins(names)
        return
    with trusting(trust):
        load_plugins(tree.plugins(overrides))


def check_plugins(names: Sequence[str]) -> None:
    """Refuse a module that was imported as a plugin but registers nothing: its name may be a mistake."""
    from mbo2o.errors import UserError
    from mbo2o.registry import REGISTERED

    homes = {getattr(x, "__module__", type(x).__module__) for x in REGISTERED}
    for name in names:
        inside = list(vars(sys.modules[name]).values())
        modules = {name, *(x.__name__ for x in inside if isinstance(x, ModuleType))}
        near = any(home in modules or home.startswith(f"{name}.") for home in homes)
        if not near and not any(x is y for x in REGISTERED for y in inside):
            what = "no agent, recipe, source, penalty or termination rule"
            env = "an environment is named as env=MODULE:ID"
            raise UserError(f"plugins=[{name}]: the module registers nothing ({what}); check its name; {env}")


def _texts(overrides: Sequence[str]) -> Iterator[str]:
    """The texts among the values of overrides, also those in lists and dicts."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    def walk(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for x in value:
                yield from walk(x)
        elif value is not None:
            yield str(getattr(value, "text", value))

    for o in overrides:
        if not o.startswith(("-", "~")):
            try:
                parsed = OverridesParser.create().parse_override(o)
            except HydraException:
                continue  # `check_overrides` says what is wrong with it
            if not parsed.is_sweep_override():
                yield from walk(parsed.value())


def repeated(settings: Sequence[str], run_dir: Path) -> set[str]:
    """The names that the user repeats from a run's config, as KEY=VALUE, and so trusts; plugins may be added.

    Raises:
        UserError: One of them is not KEY=VALUE, or the run's config has another value.
    """
    from mbo2o.errors import UserError
    from mbo2o.registry import load_plugins
    from mbo2o.settings import flat, stored

    names: set[str] = set()
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"{setting!r} is not a setting; give KEY=VALUE as the run's config has it")
        if key == "plugins":
            plugins = [x.strip() for x in value.strip("[]").split(",")]
            load_plugins(plugins)
            check_plugins(plugins)
            names |= {*plugins}
            continue
        found = flat(stored(run_dir)).get(key)
        if str(found) != value:
            raise UserError(
                f"{setting}: {key} is {found} in {run_dir}/config.yaml; give that if you trust it"
            )
        names.add(value)
    return names


# -------------------------------------------------------------------------------------------------- eval


def _eval(options: argparse.Namespace) -> None:
    from mbo2o.errors import UserError, at_least_one
    from mbo2o.training import restore

    episodes, seed, run_dir = options.episodes, options.seed, Path(options.run_dir)
    at_least_one("eval", episodes=episodes)
    if seed < 0:
        raise UserError(f"eval: --seed {seed} must not be negative")
    run, recipe = restore(run_dir, options.trust or repeated(options.settings, run_dir))
    alone = run.world.absent is not None
    if alone and options.traces:
        raise UserError(f"eval --traces: {run_dir} has no environment, so there are no episodes to keep")
    evaluator = None if alone else run.world.evaluator(episodes, seed, recipe.gamma)
    if evaluator is not None and options.traces:
        evaluator.check_playable()
    result = run.evaluate(evaluator=evaluator)
    if evaluator is not None and options.traces:
        _keep(run, evaluator, Path(options.traces))
    rows = {name: x.tolist() for name, x in result.items()}
    if options.json:
        print(json.dumps(rows))
        return
    if alone:
        print("no environment: what the log says of the policy")
        for name, values in rows.items():
            print(f"  {name:<22} {'  '.join(f'{x:.6g}' for x in values)}")
        return
    print(f"{run.env_id}, {episodes} episodes per seed, deterministic policy, starts drawn from seed {seed}")
    metric = run.reference.metric
    for k in range(len(rows["return"])):
        ret, std, length = rows["return"][k], rows["return_std"][k], rows["length"][k]
        shown = ""
        if metric in rows:
            shown += f"  score {rows[metric][k]:6.1f} ± {rows[f'{metric}_std'][k]:.1f} ({run.reference.name})"
        if "success" in rows:
            shown += f"  success {rows['success'][k]:.2f}"
        print(f"  seed {k}: return {ret:8.1f} ± {std:.1f}{shown}  length {length:.0f}")


def _keep(run: Any, evaluator: Any, path: Path) -> None:
    """Keep what an evaluator has just played in a file of traces."""
    from mbo2o.verify import traces

    done = {k: n for k, n in run.memory.done.items() if ":" not in k}
    phase = next(reversed(done)).partition(".")[0]
    step = sum(n for k, n in done.items() if k.startswith(f"{phase}."))
    place = {"phase": phase, "step": step, "total": sum(done.values()), "agent": "agent"}
    env, disturb, seeds = run.env, run.cfg.disturb, run.spec.seeds[0]
    weights = traces.weights_of(run.memory.agents()["agent"])
    told = traces.about(env, disturb, weights, seeds, traces.run_name(run.directory), place)
    traces.write(path, [traces.Trace(told, evaluator.played())])


def add_to(commands: Any) -> None:
    """Declare `train` and `eval`."""
    p = add(
        commands,
        "train",
        lambda options: None,
        "Train a recipe; the same command again goes on where it stopped. KEY=VALUE override settings "
        "(--cfg job shows them). plugins=[MODULE] imports a module that registers methods of your own.",
        "mbo2o train recipe=moore dataset=hopper-medium-replay-v5 seeds=3 recipe.sampling=half\n"
        "  mbo2o train experiment=hopper-small --cfg job\n"
        "  mbo2o train -m experiment=hopper-small seed=0,10,20\n"
        "  mbo2o train plugins=[my.module] --config-dir my/conf recipe=mine dataset=my.hdf5",
    )
    p.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE")
    p.add_argument(
        "--config-dir", metavar="DIR", help="a folder of YAML beside mbo2o's own: DIR/recipe/mine.yaml"
    )
    p.add_argument("--config", metavar="FILE", help="YAML with settings by name; KEY=VALUE count on top")
    p.add_argument("--trust", action="store_true", help=TRUST)

    p = add(
        commands,
        "eval",
        _eval,
        "Evaluate a run's policy on new episodes. A run whose config names code (plugins, functions, "
        "environments) needs the same KEY=VALUE here, or --trust.",
        "mbo2o eval runs/moore-... --episodes 20\n  mbo2o eval runs/mine-... plugins=[my.module]\n"
        "  mbo2o eval runs/moore-... --traces traces.npz",
    )
    p.add_argument("run_dir", metavar="RUN")
    p.add_argument(
        "settings", nargs="*", default=[], metavar="KEY=VALUE", help="what its config names and you trust"
    )
    p.add_argument("--episodes", type=int, default=10)
    p.add_argument("--seed", type=int, default=12345, help="of the episodes' starts")
    p.add_argument("--json", action="store_true")
    p.add_argument("--traces", metavar="FILE", help="keep the episodes there, for `mbo2o verify FILE`")
    p.add_argument("--trust", action="store_true", help=TRUST)
