"""The command line. Errors are one line and an exit code.

2 is a mistake in what was asked, or a disk that cannot be written; 3 divergence; 4 an environment that kept failing; 143 a run
that was stopped by a signal and goes on when asked again; 130 Ctrl-C anywhere else.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# before torch is imported: threads that spin while they wait starve each other on busy cores
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import mbo2o
from mbo2o.cli.overrides import check_overrides, literal, literals, one_line
from mbo2o.registry import conf_folder
from mbo2o.types import Diverged, UserError, at_least_one

if TYPE_CHECKING:
    from mbo2o.train import Config

ENVIRONMENT, INTERRUPTED, STOPPED = 4, 130, 143
STUDIES = ("moore", "enoto", "offline", "wsrl", "methods", "obac")
MODES = ("unit", "env", "clip", "env-clip")
UNITS = "units of its actions: [-1, 1], the environment's box, or a policy's outputs in these that are to be clipped"


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `mbo2o`."""
    args = list(sys.argv[1:] if argv is None else argv)
    warnings.formatwarning = lambda message, *rest, **more: f"warning: {message}\n"
    sys.exit(_guarded(lambda: _dispatch(args)))


def _guarded(work: Callable[[], int]) -> int:
    from mbo2o.envs.faults import EnvironmentFault
    from mbo2o.run.run import Stopped

    try:
        return work()
    except EnvironmentFault as e:
        print(f"mbo2o: {e}", file=sys.stderr)
        return ENVIRONMENT
    except UserError as e:
        print(f"mbo2o: {e}", file=sys.stderr)
        return 2
    except PermissionError as e:  # of what was asked to be read
        print(
            f"mbo2o: {e.filename or 'a file'}: {e.strerror}; check who may read or write it", file=sys.stderr
        )
        return 2
    except Diverged as e:
        print(f"mbo2o: diverged: {e}", file=sys.stderr)
        return 3
    except Stopped as e:
        print(f"mbo2o: {e}", file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt:
        print("mbo2o: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `mbo2o methods | head`: who reads has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(args: list[str]) -> int:
    if not args:
        # the main job: MOPO offline, MOORe online, on the Hopper data that ships with the repo
        return _train(["experiment=hopper-small"])
    if args[0] == "train" and not {"-h", "--help"} & set(args):
        return _train(args[1:])
    options = _parser().parse_args(args)
    result = options.run(options)
    return int(result or 0)


# ---------------------------------------------------------------------------------------------------------------- train


def store_schemas() -> None:
    """Tell Hydra of the dataclasses behind the YAML."""
    from hydra.core.config_store import ConfigStore

    from mbo2o import recipes  # noqa: F401  registers
    from mbo2o.registry import AGENTS, RECIPES
    from mbo2o.train import Config

    store = ConfigStore.instance()
    store.store(name="config_base", node=Config)
    for group, table in (("recipe", RECIPES), ("agent", AGENTS)):
        for entry in table.values():
            store.store(group=group, name=f"{entry.name}_base", node=entry.config)


def to_config(node: Any) -> Any:
    """A composed tree as dataclasses, once; nothing below sees OmegaConf. UserError for what is missing or ill-typed."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_object(node)
    except OmegaConfBaseException as e:
        raise UserError(one_line(str(e))) from e


def compose_config(overrides: list[str]) -> Config:
    """The config that `mbo2o train` would run with these overrides; UserError for a mistake in them."""
    from hydra import compose, initialize_config_dir

    store_schemas()
    overrides = [literal(x) for x in overrides]
    check_overrides(overrides)
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return _declare(to_config(compose("config", overrides=overrides)), overrides)


def _declare(cfg: Config, overrides: Sequence[str]) -> Config:
    """The config whose provenance names the preset, and the settings that were given on top of it.

    Where a run happens and on what (dataset, seed, device, dir) is no setting of the method.
    """
    presets = {o.split("=")[0]: o for o in overrides if o.startswith(("switch=", "experiment="))}
    preset = presets.get("experiment") or presets.get("switch")
    if preset is None or ": " not in (cfg.provenance or ""):
        return cfg
    others = [o for o in overrides if re.match(r"[+~]*(recipe|run|agent|switch)\b", o) and o != preset]
    kind, _, source = str(cfg.provenance).partition(": ")
    count = (
        f", with {len(others)} setting{'s' * (len(others) > 1)} overridden ({', '.join(others)})"
        if others
        else ""
    )
    cfg.provenance = f"{preset}: {kind}{count}: {source}"
    return cfg


def _train(args: list[str]) -> int:
    import hydra
    from hydra.core.hydra_config import HydraConfig

    from mbo2o.train import train

    store_schemas()
    args = literals(args)
    check_overrides(args)
    codes: list[int] = []

    def job(node: Any) -> None:
        def work() -> int:
            train(_declare(to_config(node), HydraConfig.get().overrides.task))
            return 0

        codes.append(_guarded(work))
        if codes[-1] in (INTERRUPTED, STOPPED):
            sys.exit(codes[-1])  # a sweep ends here, too

    sys.argv = ["mbo2o train", *args]
    hydra.main(config_path=str(conf_folder()), config_name="config", version_base="1.3")(job)()
    return max(codes, default=0)


# ------------------------------------------------------------------------------------------------------- other commands


def _eval(options: argparse.Namespace) -> None:
    from mbo2o.train import restore

    episodes, seed = options.episodes, options.seed
    at_least_one("eval", episodes=episodes)
    if seed < 0:
        raise UserError(f"eval: --seed {seed} must not be negative")
    run, recipe = restore(Path(options.run_dir))
    result = run.evaluate_with(run.evaluator(episodes, seed, recipe.gamma))
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


def _report(options: argparse.Namespace) -> None:
    from mbo2o.report.page import write_report
    from mbo2o.store.whole import writing

    with writing(Path(options.run_dir)):
        print(write_report(Path(options.run_dir)))


def _methods(options: argparse.Namespace) -> None:
    from mbo2o import recipes  # noqa: F401  registers
    from mbo2o.registry import AGENTS, RECIPES
    from mbo2o.report.statistics import FEWEST, KIND
    from mbo2o.store.datasets import data_folders

    m = _of_checkout("studies.methods")
    results = data_folders()[0] / "results" if data_folders() else Path("data/results")
    indent = " " * 19
    print(
        "methods: the command with the paper's numbers, where these are from, and what studies at small sizes measured:"
    )
    print(
        f"return at the switch → final, mean and {KIND} over seeds (–: fewer than {FEWEST} seeds, no interval)"
    )
    for method in m.METHODS:
        print(
            f"  {method.name:<16} {method.paper}; needs: {method.needs}\n{indent}mbo2o train {method.command}"
        )
        lines = [m.declared(method.command), f"measured: {m.measured(method, results) or 'not yet'}"]
        if by := m.measured_by(method, results):
            lines.append(f"by: {by}")
        for line in lines:
            print(textwrap.fill(line, 120, initial_indent=indent, subsequent_indent=f"{indent}  "))
    print("recipes (recipe=NAME):")
    for entry in RECIPES.values():
        print(f"  {entry.name:<16} {_idea(entry.cls)}")
    print("agents (agent@recipe.offline=NAME, agent@recipe.online=NAME):")
    for entry in AGENTS.values():
        print(f"  {entry.name:<16} {_idea(entry.cls)}")


def _idea(cls: type) -> str:
    return " ".join((cls.__doc__ or "").split("\n\n")[0].split())


def _data_list(options: argparse.Namespace) -> None:
    from mbo2o.store import hdf5, remote
    from mbo2o.store.datasets import data_folders

    for folder in data_folders():
        for path in sorted(folder.glob("*.hdf5")):
            fields, attrs = hdf5.read(path)
            print(f"{path.stem:<28} {len(fields['rewards']):>8} rows  {attrs.get('env_id', '?'):<16} {path}")
        for path in sorted((folder / "actors").glob("*.safetensors")):
            print(f"{path.stem:<28} {'actor':>13}  {'':<16} {path}")
    print(f"to be had by `mbo2o data fetch NAME`, kept in {remote.folder()}:")
    for entry in remote.registry().values():
        print(
            f"{entry.name:<34} {entry.size / 1e6:>4.0f} MB  {entry.env_id or 'env=?':<16} {entry.licence}  {entry.state()}"
        )


def _data_fetch(options: argparse.Namespace) -> None:
    from mbo2o.store import remote

    for entry in [remote.find(name) for name in options.names]:
        fetched = remote.fetch(entry)
        print(f"{entry.path}: {'fetched' if fetched else 'is there'}, size and sha256 are right")


def _data_where(options: argparse.Namespace) -> None:
    from mbo2o.store import remote

    entry = remote.find(options.name)
    print(
        f"{entry.state()}: {entry.size} bytes, sha256 {entry.sha256}, from {' '.join(entry.urls)}",
        file=sys.stderr,
    )
    print(entry.path)


def _data_inspect(options: argparse.Namespace) -> None:
    from mbo2o.train import find_dataset

    summary = find_dataset(
        options.dataset, actions=options.actions, env_id=options.env, option="--actions "
    ).summary()
    if options.json:
        print(json.dumps(summary))
        return
    attrs = summary.pop("attrs", {})
    for key, value in [*summary.items(), *attrs.items()]:
        print(f"{key:<22} {f'{value:.4g}' if isinstance(value, float) else value}")


def _data_check(options: argparse.Namespace) -> int:
    from mbo2o.doctor.check import check

    kwargs = _env_kwargs(options.env_kwargs)
    report = check(options.dataset, options.env, options.termination, options.actions, kwargs)
    print(json.dumps(report.as_json()) if options.json else report.text())
    return 0 if report.safe else 1


def _env_kwargs(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as e:
        raise UserError(
            f"--env-kwargs {text}: is not JSON ({e}), such as '{{\"healthy_z_range\": [0.3, 1.0]}}'"
        ) from e
    if not isinstance(found, dict):
        raise UserError(f"--env-kwargs {text}: expected an object of argument names and values")
    return found


def _data_reference(options: argparse.Namespace) -> None:
    from mbo2o.collect.reference import measure_reference

    print(json.dumps(measure_reference(options.actor, options.env, options.episodes, options.seeds)))


def _data_collect(options: argparse.Namespace) -> None:
    from mbo2o.collect.play import collect_with_policy
    from mbo2o.collect.sac import collect_with_training
    from mbo2o.store.whole import writing

    sizes = {x: getattr(options, x) for x in ("rows", "steps", "hidden", "batch")}
    at_least_one("data collect", **sizes)
    if options.seed < 0:
        raise UserError(f"data collect: --seed {options.seed} must not be negative")
    with writing(options.out):
        if options.policy is None:
            collect_with_training(options)
        else:
            collect_with_policy(options)


def _study(options: argparse.Namespace) -> None:
    from mbo2o.registry import RECIPES, find
    from mbo2o.store.whole import writing

    what, results = options.what, Path(options.results)
    study = _of_checkout(f"studies.{what}")
    experiment = options.experiment or study.EXPERIMENT
    subject = f"env={options.on}" if what == "obac" else f"dataset={options.on}"
    chosen = [f"experiment={experiment}", subject, f"seeds={options.seeds}"]
    if not isinstance(compose_config(chosen).recipe, study.CONFIG):
        entry = next(x.name for x in RECIPES.values() if x.config is study.CONFIG)
        raise UserError(
            f"study {what}: experiment {experiment!r} is of another kind; {what} wants one of recipe={entry}"
        )
    base: Any = compose_config([*chosen, *(study.SMALLEST if options.quick else []), *options.overrides])
    name = f"{what}-{options.name or Path(options.on).stem}"
    out, arms = Path(options.out) / name, study.arms(base)
    for arm in options.arms or ():
        find(arms, arm, "arm")
    study.run(base, out, options.arms or getattr(study, "DEFAULT", list(arms)))
    with writing(results):
        study.collect(base, out, results, name)
    print(results / f"{name}.csv")


def _bench(options: argparse.Namespace) -> None:
    at_least_one("bench", rounds=options.rounds)
    if options.what == "dynamics":
        _of_checkout("bench.dynamics").print_bench(rounds=options.rounds, out=options.out)
    else:
        _of_checkout("bench.agents").print_agents(rounds=options.rounds, out=options.out)


def _of_checkout(module: str) -> Any:
    """A module of the repository's folders `studies` and `bench`, which the installed package does not contain."""
    root = Path(mbo2o.__file__).parent.parent
    if not (root / module.split(".")[0] / "__init__.py").is_file():
        raise UserError(
            f"{module.split('.')[0]} is part of the repository and is not installed; run this in a checkout"
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return importlib.import_module(module)


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        "mbo2o",
        description="Model-based offline-to-online RL. Without a command: the main job, experiment=hopper-small.",
        epilog="example: mbo2o train experiment=hopper-small seeds=3; each command's --help has its own",
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _add_runs(commands)
    _add_studies(commands)
    about = "List, fetch, inspect, check and collect datasets."
    _add_data(
        commands.add_parser(
            "data", help=about, description=about, epilog="example: mbo2o data inspect my.hdf5"
        )
    )
    return top


def _add(to: Any, name: str, run: Callable[..., Any], text: str, example: str) -> argparse.ArgumentParser:
    epilog = textwrap.dedent(f"example:\n  {example}")
    formatter = argparse.RawDescriptionHelpFormatter
    p: argparse.ArgumentParser = to.add_parser(
        name, help=text, description=text, epilog=epilog, formatter_class=formatter
    )
    p.set_defaults(run=run)
    return p


def _add_runs(commands: Any) -> None:
    p = _add(
        commands,
        "train",
        lambda o: None,
        "Train a recipe; the same command again goes on where it stopped. KEY=VALUE override settings (--cfg job shows them).",
        "mbo2o train recipe=moore dataset=hopper-medium-replay-v5 seeds=3 recipe.sampling=half\n"
        "  mbo2o train experiment=hopper-small --cfg job\n  mbo2o train -m experiment=hopper-small seed=0,10,20",
    )
    p.add_argument("overrides", nargs="*", metavar="KEY=VALUE")

    p = _add(
        commands,
        "eval",
        _eval,
        "Evaluate a run's policy on fresh episodes.",
        "mbo2o eval runs/moore-... --episodes 20",
    )
    p.add_argument("run_dir", metavar="RUN")
    p.add_argument("--episodes", type=int, default=10)
    p.add_argument("--seed", type=int, default=12345, help="of the episodes' starts")
    p.add_argument("--json", action="store_true")

    p = _add(
        commands,
        "report",
        _report,
        "Draw a run: RUN/report/index.html and PNGs.",
        "mbo2o report runs/moore-...",
    )
    p.add_argument("run_dir", metavar="RUN")


def _add_studies(commands: Any) -> None:
    _add(
        commands,
        "methods",
        _methods,
        "List methods with what they were measured at, recipes and agents.",
        "mbo2o methods",
    )

    p = _add(
        commands,
        "study",
        _study,
        "Run a study; finished parts are not run again. moore: its priority and baselines from one offline phase. enoto: "
        "pairs, targets and explorations from the same offline checkpoints. wsrl: warm-up, retention and what is carried over. "
        "offline: every offline learner on one dataset. methods: every offline-to-online one. obac: it, SAC and IQL twice, "
        "from scratch.",
        "mbo2o study moore hopper-medium-replay-v5 --seeds 3\n  mbo2o study enoto hopper-medium-replay-v5 --seeds 5\n"
        "  mbo2o study enoto my.hdf5 --arms freed freed-n wmp --experiment td3bc-small --name my-td3bc\n"
        "  mbo2o study obac Hopper-v5 --seeds 5",
    )
    p.add_argument("what", choices=STUDIES)
    p.add_argument("on", metavar="DATASET", help="to study it on; obac: an environment")
    p.add_argument("--arms", nargs="+", metavar="ARM", help="only these (moore: its four; the others: all)")
    p.add_argument(
        "--set", nargs="*", default=[], dest="overrides", metavar="KEY=VALUE", help="settings of the runs"
    )
    p.add_argument("--experiment", help="settings by name; if not given, those that README measures with")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--name", help="of the results; the dataset's if not given")
    p.add_argument("--out", default="runs/studies")
    p.add_argument("--results", default="data/results")
    p.add_argument(
        "--quick", action="store_true", help="sizes that take a minute and show nothing but that it runs"
    )

    text = "Measure speed. dynamics: against mbrl, as ratios in one run. agents: critic updates at 1, 4 and 20 per step."
    p = _add(commands, "bench", _bench, text, "mbo2o bench dynamics\n  mbo2o bench agents")
    p.add_argument("what", choices=["dynamics", "agents"])
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--out", type=Path, help="also write the results here, a line of JSON each")


def _add_data(parser: argparse.ArgumentParser) -> None:
    data = parser.add_subparsers(required=True, metavar="COMMAND")
    _add(data, "list", _data_list, "Datasets and actors known by name.", "mbo2o data list")
    p = _add(
        data,
        "fetch",
        _data_fetch,
        "Download datasets of `mbo2o data list` and compare them with their sha256; one that is there and right is not asked "
        "for again, and one that was cut off goes on. With MBO2O_OFFLINE=1 say where to put the file instead.",
        "mbo2o data fetch d4rl/hopper-medium-v2 d4rl/hopper-medium-replay-v2",
    )
    p.add_argument("names", nargs="+", metavar="NAME")
    p = _add(
        data,
        "where",
        _data_where,
        "The path of a dataset of `mbo2o data fetch`, also of one that is not there, to put it there by hand (exit code 0): "
        "NAME.hdf5 in the folder `datasets` of $MBO2O_DATA, else of $XDG_DATA_HOME/mbo2o, else of ~/.local/share/mbo2o.",
        "mbo2o data where d4rl/hopper-medium-v2",
    )
    p.add_argument("name", metavar="NAME")
    p = _add(
        data, "inspect", _data_inspect, "What a dataset holds.", "mbo2o data inspect hopper-medium-replay-v5"
    )
    p.add_argument("dataset", help="file, name or minari:ID")
    p.add_argument("--env", help="gymnasium id whose box `--actions env` takes (the file's own if not given)")
    p.add_argument("--actions", choices=MODES, help=UNITS)
    p.add_argument("--json", action="store_true")
    p = _add(
        data,
        "check",
        _data_check,
        "Look for what harms learning: false next observations, hidden cuts, time limits stored as terminations and more; say "
        "whether cloning, TD, dynamics and Monte-Carlo returns may use the data. Exit code 1 if one of them must not.",
        "mbo2o data check my.hdf5\n  mbo2o data check my.hdf5 --env HalfCheetah-v5 --termination mytask:ends --json",
    )
    p.add_argument("dataset", help="file, name or minari:ID")
    p.add_argument(
        "--env", help="gymnasium id (the file's own if not given): its time limit, sizes and termination rule"
    )
    p.add_argument("--actions", choices=MODES, help=UNITS)
    p.add_argument(
        "--env-kwargs",
        default="{}",
        metavar="JSON",
        help="what the environment is made with, as a run's env_kwargs",
    )
    p.add_argument(
        "--termination",
        default="auto",
        help="a rule's name or package.module:function, if not the environment's",
    )
    p.add_argument("--json", action="store_true")
    p = _add(
        data,
        "reference",
        _data_reference,
        "Measure what random play and an actor return: the ends of a score, for run.reference=[LOW,HIGH].",
        "mbo2o data reference data/actors/hopper-expert-v5.safetensors",
    )
    p.add_argument(
        "actor", metavar="ACTOR", type=Path, help="a file of `data collect`; its mean action is played"
    )
    p.add_argument("--env", help="gymnasium id (the actor's own if not given)")
    p.add_argument("--episodes", type=int, default=20, help="for each seed")
    p.add_argument("--seeds", type=int, default=5, help="of the starts")
    _add_collect(data)


def _add_collect(data: Any) -> None:
    p = _add(
        data,
        "collect",
        _data_collect,
        "Make datasets: train SAC and keep what it saw and became, or play a policy that was kept.",
        "mbo2o data collect --env Hopper-v5 --steps 150000 --out my-hopper\n"
        "  mbo2o data collect --policy data/actors/hopper-medium-v5.safetensors --rows 100000 --out hopper-medium.hdf5\n"
        "  mbo2o data collect --policy random --env Hopper-v5 --rows 20000 --out hopper-random.hdf5\n"
        "  mbo2o data collect --policy waypoint --env PointMaze_UMaze-v3 --noise 0.5 --wander 1 --out umaze-medium.hdf5",
    )
    p.add_argument(
        "--policy", help="an actor's file, `random`, or `waypoint` (PointMaze); without it SAC is trained"
    )
    p.add_argument("--env", help="gymnasium id (an actor knows its own)")
    p.add_argument("--out", required=True, type=Path, help="a .hdf5 file for --policy, a folder otherwise")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--rows", type=int, default=100_000, help="rows of each file but medium-replay")
    p.add_argument("--steps", type=int, default=150_000, help="environment steps of training")
    p.add_argument("--hidden", type=int, default=128, help="width of SAC's two hidden layers")
    p.add_argument("--lr", type=float, default=3e-4, help="SAC's learning rates")
    p.add_argument("--batch", type=int, default=256, help="SAC's batch size")
    p.add_argument(
        "--medium",
        type=float,
        default=0.5,
        help="medium is the first policy at this share of the best return",
    )
    p.add_argument(
        "--medium-step", type=int, help="or name the step (an evaluated one) at which the policy is medium"
    )
    p.add_argument("--deterministic", action="store_true", help="play the mean action instead of a sample")
    p.add_argument(
        "--noise", type=float, default=0.0, help="of waypoint: deviation of the noise on actions in [-1, 1]"
    )
    p.add_argument(
        "--wander", type=float, default=0.0, help="of waypoint: share of episodes that head for another cell"
    )
