"""The commands about runs: `train`, which Hydra composes, and `eval`."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mbo2o.cli.command import INTERRUPTED, STOPPED, add, guarded

if TYPE_CHECKING:
    from mbo2o.cli.overrides import Tree
    from mbo2o.settings import Config

SWEEP = {"-m", "--multirun"}
"""Flags with which a comma separates the values of several runs."""
TRUST = "import the code that the config names: plugins, functions, environments"


def run(args: list[str]) -> int:
    """`mbo2o train` with these arguments."""
    import hydra

    from mbo2o.cli.overrides import LOOKS, Tree, check_overrides, literals
    from mbo2o.cli.schema import tell_hydra

    args, trust, folder = _own_options(args)
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
                train(_declare(cfg, given))
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


def config(*overrides: str) -> Config:
    """The config that `mbo2o train` would run with these overrides: "experiment=hopper-small", "seed=3".

    Raises:
        UserError: There is a mistake in them.
    """
    from mbo2o.errors import UserError

    if wrong := [x for x in overrides if not isinstance(x, str)]:
        raise UserError(f'config takes settings as text, such as "seeds=3", and {wrong[0]!r} is none')
    return compose_config(list(overrides))


def compose_config(overrides: list[str]) -> Config:
    """The config that `mbo2o train` would run with these overrides.

    Raises:
        UserError: There is a mistake in them.
    """
    from mbo2o.cli.overrides import Tree, check_overrides, literal
    from mbo2o.cli.schema import tell_hydra

    tree, overrides = Tree(), [literal(x) for x in overrides]
    load_chosen(overrides, tree, trust=False)
    tell_hydra()
    check_overrides(overrides, tree)
    return _declare(to_config(tree.compose(overrides)), overrides)


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


def _declare(cfg: Config, overrides: Sequence[str]) -> Config:
    """The config whose provenance names the preset, and the settings that were given on top of it.

    Where a run happens and on what (dataset, seed, device, dir) is no setting of the method.
    """
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


def _own_options(args: Sequence[str]) -> tuple[list[str], bool, Path | None]:
    """The arguments that are for Hydra, whether there is --trust, and the folder of --config-dir."""
    from mbo2o.errors import UserError

    left: list[str] = []
    trust, folder, rest = False, None, iter(args)
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
        else:
            left.append(a)
    return left, trust, folder


def load_chosen(overrides: Sequence[str], tree: Tree, trust: bool) -> None:
    """Import the plugins: of installed packages, of the overrides, or else of the presets that these choose.

    Raises:
        UserError: A preset names a plugin that the overrides do not, and it is not trusted.
    """
    from mbo2o.errors import UserError
    from mbo2o.registry import load_entry_points, load_plugins, trusting

    load_entry_points()
    given = [o for o in overrides if re.match(r"\+*plugins=", o)]
    for o in given:
        if not re.fullmatch(r"\+*plugins=\[.*\]", o):
            raise UserError(f"{o}: expected a list of modules, as plugins=[my.module]")
    if given:
        names = list(_texts(given))
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
    result = run.evaluate(evaluator=run.world.evaluator(episodes, seed, recipe.gamma))
    rows = {name: x.tolist() for name, x in result.items()}
    if options.json:
        print(json.dumps(rows))
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
    p.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    p.add_argument(
        "--config-dir", metavar="DIR", help="a folder of YAML beside mbo2o's own: DIR/recipe/mine.yaml"
    )
    p.add_argument("--trust", action="store_true", help=TRUST)

    p = add(
        commands,
        "eval",
        _eval,
        "Evaluate a run's policy on new episodes. A run whose config names code (plugins, functions, "
        "environments) needs the same KEY=VALUE here, or --trust.",
        "mbo2o eval runs/moore-... --episodes 20\n  mbo2o eval runs/mine-... plugins=[my.module]",
    )
    p.add_argument("run_dir", metavar="RUN")
    p.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="what its config names and you trust")
    p.add_argument("--episodes", type=int, default=10)
    p.add_argument("--seed", type=int, default=12345, help="of the episodes' starts")
    p.add_argument("--json", action="store_true")
    p.add_argument("--trust", action="store_true", help=TRUST)
