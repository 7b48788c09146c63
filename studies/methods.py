"""Every offline-to-online method on one dataset, with the same nets, batches and budgets; and where each one's figures are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mbo2o.recipes.balanced import BalancedConfig
from omegaconf import OmegaConf

from mbo2o.dynamics.fit import FitConfig
from mbo2o.dynamics.model import DynamicsConfig
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.recipes.enoto import ENOTOConfig
from mbo2o.recipes.finetune import FinetuneConfig
from mbo2o.recipes.moore import MOOReConfig
from mbo2o.recipes.scratch import ScratchConfig
from mbo2o.registry import AGENTS, conf_folder
from mbo2o.report.read import RunLog
from mbo2o.report.statistics import interval
from mbo2o.store import datasets
from mbo2o.training import Config
from mbo2o.types import UserError
from studies import moore as moore_study
from studies.arms import (
    QUICK_Q,
    draw,
    offline_alone,
    online_rows,
    publish,
    read,
    read_arms,
    run_arm,
    run_offline,
)
from studies.claims import Claim, apart, difference
from studies.offline import sized

EXPERIMENT, CONFIG = "wsrl-small", FinetuneConfig
SMALLEST = [*QUICK_Q, "recipe.online_steps=150", "run.eval_every=50"]  # enough rows for a model


def arms(base: Config) -> dict[str, Config]:
    """Methods by name, at the sizes of `base`, whose offline agent is CQL, and whose online one is WSRL's SAC.

    `no-data` is RLPD without them. Where a paper makes several updates per step, here it is as many as the base's `utd`. What
    learns from weighted imitation sees standardised observations and rewards in thousandths of the spread of the data's
    returns, as IQL's authors and CORL have it between them; where `base` shapes rewards itself (a sparse task), they are as it
    says.
    """
    raw = (base.run.reward_scale, base.run.reward_shift) == (1, 0)
    scaled = replace(base.run, reward_scale="auto") if raw else base.run
    recipes: dict[str, Any] = {
        **_recipes(base.recipe),
        **_from_nothing(base.recipe),
        **_model_based(base.recipe),
    }
    return {
        name: replace(base, recipe=x, run=scaled if name in IMITATING else base.run)
        for name, x in recipes.items()
    }


IMITATING = ("iql", "pex", "awac", "adaptive-bc")
"""Methods whose temperature is in units of return."""


def _recipes(wsrl: FinetuneConfig) -> dict[str, FinetuneConfig]:
    """The recipe of each arm."""
    cql, sac, n = wsrl.offline, wsrl.online, wsrl.offline.critics
    enoto = ENOTOConfig()
    plain = replace(wsrl, online=None, utd=1)
    append = replace(plain, buffer="append", start=0)
    freed = replace(cql.after_switch(), target="min_q")
    rlpd = replace(
        sized("redq", cql), critics=n, critic=replace(cql.critic, layer_norm=True), entropy_per_dim=-0.5
    )
    pessimism = {
        "weight": cql.weight,
        "ensemble": cql.ensemble,
        "gap": None,
        "actor_lr": cql.actor_lr,
        "backup": cql.backup,
    }
    loosened = replace(freed, target=enoto.target, explore=enoto.explore, sunrise=enoto.sunrise)
    demonstrated = replace(
        wsrl, offline=replace(rlpd, policy_delay=wsrl.utd), online=None, offline_steps=0, buffer="mix"
    )
    return {
        "cql": replace(append, keep=True),
        "cql-sac": replace(plain, online=freed),
        "enoto": replace(plain, online=loosened),
        "wsrl": wsrl,
        "balanced": replace(
            plain,
            online=replace(sac, target="min_q", backup_entropy=True, policy_delay=1),
            buffer="balanced",
            balanced=BalancedConfig(first_updates=10 * wsrl.start, ratio=cql.critic),
            carry_moments=False,
            carry_temperature=False,
        ),
        "calql": replace(plain, offline=replace(sized("calql", cql), **pessimism), buffer="mix"),
        "iql": replace(append, offline=sized("iql", cql)),
        "pex": replace(plain, offline=sized("iql", cql), online=sized("pex", cql), buffer="mix"),
        "awac": replace(append, offline=sized("awac", cql)),
        "adaptive-bc": replace(
            plain,
            offline=replace(sized("adaptive_bc", cql), critics=n, normalize=True),
            buffer="distill",
            utd=wsrl.utd,
            distill_share=0.05,
            distill_rows=0,
        ),
        "rlpd": demonstrated,
        "no-data": replace(demonstrated, buffer="empty"),
    }


def _from_nothing(wsrl: FinetuneConfig) -> dict[str, ScratchConfig]:
    """SAC, and ENOTO's online part (SAC-N, the weighted minimum of pairs, SUNRISE), without an offline phase."""
    cql, enoto = wsrl.offline, ENOTOConfig()
    sac = sized("sac", cql)
    sac_n = replace(sized("sacn", cql), critics=cql.critics)
    loosened = replace(sac_n, target=enoto.target, explore=enoto.explore, sunrise=enoto.sunrise)
    steps = {"online_steps": wsrl.online_steps - wsrl.start, "start": wsrl.start, "batch": wsrl.batch}
    return {"sac": ScratchConfig(agent=sac, **steps), "scratch": ScratchConfig(agent=loosened, **steps)}


def _model_based(wsrl: FinetuneConfig) -> dict[str, Any]:
    """MOPO, which learns offline alone, MOORe, which goes on from it, and MBPO from nothing.

    The agent's nets, batches and budgets are the base's; the model and its rollouts are those of experiment=hopper-small.
    """
    cql, epoch = wsrl.offline, max(50, wsrl.online_steps // 10)
    agent = replace(sized("sac", cql), init_alpha=0.2)
    moore = MOOReConfig(
        agent=agent,
        dynamics=DynamicsConfig(members=5, elites=4, net=MLPConfig(hidden=[128, 128, 128])),
        fit=FitConfig(max_updates=min(6000, wsrl.offline_steps)),
        refit=FitConfig(
            min_updates=200, max_updates=min(400, wsrl.offline_steps), epoch_updates=100, patience=3
        ),
        batch=wsrl.batch,
        offline_steps=wsrl.offline_steps,
        rollouts=2000,
        online_steps=wsrl.online_steps,
        epoch=epoch,
        model_every=epoch,
        online_rollouts=min(10_000, wsrl.offline_steps),
        alpha=0.65,
    )
    return {"mopo": moore_study.as_mopo(moore), "moore": moore, "mbpo": moore_study.mbpo(moore)}


PANELS = {
    "From CQL and Cal-QL": ["cql", "cql-sac", "enoto", "wsrl", "balanced", "calql"],
    "From others": ["wsrl", "iql", "pex", "awac", "adaptive-bc", "rlpd"],
    "From nothing": ["wsrl", "rlpd", "no-data", "sac", "scratch", "mbpo"],
    "With a model": ["wsrl", "moore", "mbpo", "mopo"],
}


def run(base: Config, out: Path, chosen: Sequence[str]) -> None:
    """The offline phases that the chosen methods need, then the methods, under `out`; what is finished is not run again."""
    for name in chosen:
        arm = arms(base)[name]
        if name in ("sac", "scratch", "mbpo"):
            run_arm(replace(arm, dataset=None, env=_task(base)), out / name)
            continue
        if name in ("mopo", "moore"):
            run_arm(arms(base)["mopo"], out / "mopo")
            if name == "moore":
                run_arm(arm, out / name, out / "mopo")
            continue
        agent = next(entry.name for entry in AGENTS.values() if entry.config is type(arm.recipe.offline))
        run_offline(replace(arm, recipe=offline_alone(arm.recipe)), out / f"offline-{agent}")
        run_arm(arm, out / name, out / f"offline-{agent}")


def _task(base: Config) -> str:
    """The environment that what starts from nothing learns in: the dataset's, if no other is named."""
    env_id = base.env or datasets.find(base.dataset).attrs().get("env_id")
    if not env_id:
        raise UserError(
            "no environment is named: give --set env=ID (the dataset does not say which it was collected in)"
        )
    return str(env_id)


def collect(base: Config, out: Path, results: Path, name: str) -> None:
    """Write `results/NAME.csv` (one row per method and seed), its curves, and the figure.

    MOPO has no online phase: its row is a curve that stays at the return that its offline phase ends with, over the same steps.
    """
    known = list(arms(base))
    logs = read_arms(out, [x for x in known if x != "mopo"])
    logs |= {
        arm: _held(log, base.recipe.online_steps) for arm, log in read_arms(out, ["mopo"], "offline").items()
    }
    logs = {arm: logs[arm] for arm in known if arm in logs}
    publish(results / f"{name}.csv", [row for rows in online_rows(logs).values() for row in rows], logs)
    figure(results / f"{name}.csv")


def figure(path: Path) -> None:
    """The figure of a results file."""
    draw(path, PANELS)


def _held(log: RunLog, steps: int) -> RunLog:
    """A run without an online phase as one whose policy is kept for so many steps."""
    last = [x for x in log.lines if x["kind"] == "eval" and x["phase"] == "offline"][-1]
    kept = [{**last, "phase": "online", "step": t} for t in (0, steps)]
    return RunLog(
        {**log.config, "recipe": {**log.config["recipe"], "online_steps": steps}}, [*log.lines, *kept]
    )


CLAIMS = [
    Claim("W4", "final: WSRL > Cal-QL with half offline", apart("final", "wsrl", "calql")),
    Claim("W4", "AUC: Cal-QL with half offline > RLPD", apart("auc", "calql", "rlpd")),
    Claim("W4", "final: RLPD > Cal-QL with half offline", apart("final", "rlpd", "calql")),
    Claim("", "AUC: RLPD > the same without data", difference("auc", "rlpd", "no-data")),
    Claim("", "final: RLPD > the same without data", difference("final", "rlpd", "no-data")),
    Claim("", "AUC: WSRL > IQL with its data", apart("auc", "wsrl", "iql")),
    Claim("", "AUC: balanced > CQL to SAC", difference("auc", "balanced", "cql-sac")),
    Claim("", "AUC: ENOTO > CQL to SAC", difference("auc", "enoto", "cql-sac")),
    Claim("", "AUC: PEX > IQL with its data", difference("auc", "pex", "iql")),
]


class Method(NamedTuple):
    """A published method: the command that has its paper's numbers, and the study that measured it at small sizes."""

    name: str
    paper: str
    command: str
    """What `mbo2o train` takes for the numbers of the paper; where these are from is the preset's to say."""
    needs: str
    measured: tuple[str, str, str]
    """The study whose figures it has, by its files' prefix, its arm there, and the column."""


BOTH, DATA, TASK = "dataset, then environment", "dataset", "environment"
METHODS = [
    Method("MOPO", "arXiv 2005.13239", "experiment=mopo-paper", DATA, ("moore", "priority", "j0")),
    Method("MOORe", "arXiv 2201.10070", "experiment=moore-full", BOTH, ("moore", "priority", "final")),
    Method("MBPO", "arXiv 1906.08253", "experiment=mbpo-paper", TASK, ("moore", "mbpo", "final")),
    Method("ENOTO-CQL", "arXiv 2306.06871", "switch=cql-enoto", BOTH, ("enoto-hopper", "sunrise", "final")),
    Method("ENOTO-LAPO", "arXiv 2306.06871", "switch=lapo-enoto", BOTH, ("enoto-lapo", "sunrise", "final")),
    Method(
        "ENOTO on TD3+BC", "arXiv 2306.06871", "switch=td3bc-enoto", BOTH, ("enoto-td3bc", "sunrise", "final")
    ),
    Method("OBAC", "arXiv 2405.18520", "experiment=obac-paper", TASK, ("obac", "obac", "final")),
    Method("WSRL", "arXiv 2412.07762", "switch=wsrl", BOTH, ("methods", "wsrl", "final")),
    Method("RLPD", "arXiv 2302.02948", "switch=rlpd", BOTH, ("methods", "rlpd", "final")),
    Method("PEX", "arXiv 2302.00935", "switch=pex", BOTH, ("methods", "pex", "final")),
    Method("Balanced replay", "arXiv 2107.00591", "switch=balanced", BOTH, ("methods", "balanced", "final")),
    Method(
        "Adaptive BC", "arXiv 2210.13846", "switch=adaptive-bc", BOTH, ("methods", "adaptive-bc", "final")
    ),
    Method("CQL", "arXiv 2006.04779", "switch=cql", BOTH, ("enoto-hopper", "kept-data", "final")),
    Method("CQL → SAC", "arXiv 2306.06871", "switch=cql-sac", BOTH, ("enoto-hopper", "freed", "final")),
    Method("Cal-QL", "arXiv 2303.05479", "switch=calql", BOTH, ("methods", "calql", "final")),
    Method("IQL", "arXiv 2110.06169", "switch=iql", BOTH, ("methods", "iql", "final")),
    Method("AWAC", "arXiv 2006.09359", "switch=awac", BOTH, ("methods", "awac", "final")),
    Method("SAC-N", "arXiv 2110.01548", "switch=sacn", BOTH, ("offline", "sacn", "final")),
    Method("EDAC", "arXiv 2110.01548", "switch=edac", BOTH, ("offline", "edac", "final")),
    Method("TD3+BC", "arXiv 2106.06860", "switch=td3bc", BOTH, ("offline", "td3bc", "final")),
    Method("LAPO", "arXiv 2203.08949", "switch=lapo", BOTH, ("offline", "lapo", "final")),
    Method("BC", "", "switch=bc", DATA, ("offline", "bc", "final")),
    Method("SAC", "arXiv 1812.05905", "experiment=sac-paper", TASK, ("obac", "sac", "final")),
    Method("REDQ", "arXiv 2101.05982", "experiment=redq-paper", TASK, ("obac", "redq", "final")),
]

_OFFLINE = " --seeds 3 --set recipe.offline.normalize=true"
_MAZE = " --set run.reward_shift=-1 run.eval_episodes=10 recipe.start=500"
MEASURED_BY = {
    "enoto-hopper-medium-100k": "enoto hopper-medium-100k.hdf5 --seeds 5",
    "enoto-lapo-pointmaze-umaze": "enoto pointmaze-umaze.hdf5 --seeds 5 --experiment lapo-small --name lapo-pointmaze-umaze",
    "enoto-td3bc-hopper-medium-100k": "enoto hopper-medium-100k.hdf5 --seeds 5 --experiment td3bc-small"
    " --name td3bc-hopper-medium-100k",
    "methods-hopper-medium-100k": "methods hopper-medium-100k.hdf5 --seeds 5",
    "methods-pointmaze-umaze": f"methods pointmaze-umaze.hdf5 --seeds 5{_MAZE}",
    "methods-pointmaze-umaze-demos": f"methods pointmaze-umaze-demos.hdf5 --seeds 5{_MAZE}",
    "moore-halfcheetah-medium-replay-v5": "moore halfcheetah-medium-replay-v5 --seeds 5 --experiment halfcheetah-small",
    "moore-hopper-medium-replay-v5": "moore hopper-medium-replay-v5 --seeds 5",
    "moore-zoo-hopper-replay-like": "moore zoo-hopper-replay-like.hdf5 --seeds 3",
    "obac-HalfCheetah-v5": "obac HalfCheetah-v5 --seeds 5",
    "obac-Hopper-v5": "obac Hopper-v5 --seeds 5",
    **{
        f"offline-{name}": f"offline {name}.hdf5{_OFFLINE}"
        for name in (
            "halfcheetah-medium",
            "halfcheetah-medium-replay",
            "hopper-medium",
            "hopper-medium-replay",
            "zoo-hopper-medium-expert",
            "zoo-walker2d-medium",
        )
    },
    "wsrl-hopper-medium-100k": "wsrl hopper-medium-100k.hdf5 --seeds 5",
    "wsrl-pointmaze-umaze": f"wsrl pointmaze-umaze.hdf5 --seeds 5{_MAZE}",
}
"""What `mbo2o study` takes for each of data/results' files, by the file's name; --arms says for which arm."""

OLDER = "5ccba87"
"""The commit whose settings all files but these were measured with; today's small experiments differ from it."""
TODAYS = ("enoto-hopper-medium-100k", "methods-hopper-medium-100k")


def _found(method: Method, results: Path) -> list[tuple[str, list[dict[str, str]]]]:
    """The files under `results` that have the method's arm, by name, with its rows."""
    study, arm, _ = method.measured
    paths = (
        [p for p in sorted(results.glob(f"{study}-*.csv")) if not p.stem.endswith("-curves")] if study else []
    )
    return [(path.stem, rows) for path in paths if (rows := read(path).get(arm, []))]


def declared(command: str) -> str:
    """What the preset that `command` is, as switch=NAME, says of its numbers: KIND: SOURCE."""
    return str(
        OmegaConf.select(OmegaConf.load(conf_folder() / f"{command.replace('=', '/')}.yaml"), "provenance")
    )


def measured(method: Method, results: Path) -> str:
    """What it came to by dataset, as mean and interval, after the return at the switch if there is one; "" if unknown."""
    column = method.measured[2]
    return "; ".join(
        f"{stem.split('-', 1)[1]} {_figures(rows, column)}" for stem, rows in _found(method, results)
    )


def measured_by(method: Method, results: Path) -> str:
    """The commands behind what `measured` says, in the same order."""
    arm = method.measured[1]
    found = [stem for stem, _ in _found(method, results) if stem in MEASURED_BY]
    at = {stem: "" if stem in TODAYS else f" at {OLDER}" for stem in found}
    return "; ".join(f"mbo2o study {MEASURED_BY[stem]} --arms {arm}{at[stem]}" for stem in found)


def _figures(rows: list[dict[str, str]], column: str) -> str:
    values = np.array([float(r[column]) for r in rows])
    digits = 2 if np.abs(values).max() < 10 else 0  # success rates, against returns
    start = (
        f"{np.mean([float(r['j0']) for r in rows]):.{digits}f} → "
        if column == "final" and "j0" in rows[0]
        else ""
    )
    return start + with_interval(values, digits) + (_budget(rows[0]) if column == "final" else "")


def _budget(row: dict[str, str]) -> str:
    """After how much the final was measured: methods of one table have different budgets."""
    steps = f"{int(row['steps']):,}".replace(",", " ")
    few = ", one evaluation" if row["final_evals"] == "1" else ""
    return f" ({steps} {'steps' if 'j0' in row else 'updates'}{few})"


def with_interval(values: np.ndarray, digits: int) -> str:
    """Mean and interval over seeds, or "–" in the interval's place where there are too few."""
    low, high = (float(x) for x in interval(values))
    return f"{values.mean():.{digits}f} " + (
        "–" if np.isnan(low) else f"[{low:.{digits}f}, {high:.{digits}f}]"
    )
