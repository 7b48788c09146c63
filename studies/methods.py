"""Offline-to-online methods on one dataset with the same nets and budgets, and the table of methods."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import OmegaConf

from mbo2o.recipes.enoto import ENOTO, ENOTOConfig
from mbo2o.recipes.moore import MOOReConfig
from mbo2o.recipes.wsrl import WSRLConfig
from mbo2o.registry import AGENTS, conf_folder
from mbo2o.report.read import RunLog
from mbo2o.report.statistics import interval
from mbo2o.training import Config
from studies import moore as moore_study
from studies.arms import (
    BESIDE,
    QUICK_Q,
    Job,
    draw,
    offline_alone,
    offline_job,
    online_rows,
    publish,
    read_arms,
    read_rows,
    wobble,
)
from studies.claims import Apart, Claim, Measured, apart, difference
from studies.presets import at_size, changed, drawing, preset, published, task_of, warmup

SUBJECT = "dataset"
EXPERIMENT, CONFIG = "wsrl-small", WSRLConfig
LARGER = {"mid": "experiment=wsrl-mid", "paper": "switch=wsrl"}
SMALLEST = [*QUICK_Q, "recipe.online_steps=150", "run.eval_every=50"]  # enough rows for a model
MODELS = {"small": "experiment=hopper-small"} | dict.fromkeys(("mid", "paper"), "experiment=hopper-mid")
"""By size, the preset whose model and rollouts the model-based arms have."""
UCB_COEF = 1.0
"""The weight of the upper bound; the authors' code has 10 (the arm `ucb-10` of the study enoto)."""


LOOSENED = ("target", "explore", "sunrise")
"""What ENOTO changes online."""


def arms(base: Config, model: str = MODELS["small"]) -> dict[str, Config]:
    """Methods by name. The base is WSRL on CQL.

    An arm is the preset of its method at the base's size, and the settings that are named here. All others
    are the preset's. model: one of MODELS.
    """
    cql, n = base.recipe.offline, base.recipe.offline.critics
    # one CQL, the base's, and one IQL: arms that share an offline learner start from one checkpoint
    iql = imitating(base, "switch=iql", {"recipe.offline.actor_decay_steps": None})
    rlpd = at_size("switch=rlpd", base, cql, n)
    return {
        "cql": _on(cql, "switch=cql", base),
        "cql-sac": _on(cql, "switch=cql-sac", base),
        "enoto": _on(cql, "switch=cql-sac", base, {"recipe.online": enoto_online(base)}),
        "wsrl": base,
        "balanced": balanced(base),
        # Cal-QL differs from the base's CQL in its bound alone
        "calql": changed(
            at_size("switch=calql-dense", base, cql),
            {f"recipe.offline.{x}": v for x, v in pessimism(cql).items()},
        ),
        "iql": iql,
        "pex": pex(base, iql.recipe.offline),
        "awac": imitating(base, "switch=awac"),
        # the preset's least number of rows in the buffer would be half of these files
        "adaptive-bc": imitating(
            base, "switch=adaptive-bc", {"recipe.offline.normalize": True, "recipe.source.rows": 0}
        ),
        "rlpd": rlpd,
        "no-data": changed(rlpd, drawing("online")),
        **_from_nothing(base),
        **_model_based(base, model),
    }


def _on(cql: Any, command: str, base: Config, changes: dict[str, Any] | None = None) -> Config:
    """A method that goes on from the base's CQL, with one update for each environment step."""
    return changed(at_size(command, base, cql), {"recipe.offline": cql} | (changes or {}))


def enoto_online(base: Config) -> Any:
    """ENOTO's online agent for the base's CQL. The arm is a `finetune`, and starts from the shared CQL."""
    cql = base.recipe.offline
    enoto = preset("switch=cql-enoto").recipe
    enoto = replace(
        enoto, offline=cql, critics=cql.critics, explore=replace(enoto.explore, ucb_coef=UCB_COEF)
    )
    return ENOTO(enoto).configs()[1]


def pessimism(cql: Any) -> dict[str, Any]:
    """The settings that Cal-QL takes from the base's CQL."""
    names = ("weight", "ensemble", "gap", "actor_lr", "backup", "normalize")
    return {x: getattr(cql, x) for x in names}


def balanced(base: Config) -> Config:
    """Balanced replay from the base's CQL, with ten first updates for each step of the warm-up."""
    arm = _on(base.recipe.offline, "switch=balanced", base)
    online = replace(arm.recipe.online, critics=base.recipe.offline.critics)
    first = 10 * getattr(base.recipe, warmup(base.recipe))
    return changed(
        arm,
        {
            "recipe.online": online,
            "recipe.source.first_updates": first,
            "recipe.source.ratio": base.recipe.offline.critic,
        },
    )


def imitating(base: Config, command: str, changes: dict[str, Any] | None = None) -> Config:
    """A method that imitates by advantage, whose temperature is in units of return.

    It sees rewards in thousandths of the spread of the data's returns, as IQL's authors have it. Where the
    base shapes rewards itself (a sparse task), they are as it says. IQL's schedule over a million updates
    hardly moves within the budget of a study, so that its arms have no schedule.
    """
    arm = changed(at_size(command, base, base.recipe.offline, base.recipe.offline.critics), changes or {})
    raw = (base.run.reward_scale, base.run.reward_shift) == (1, 0)
    return replace(arm, run=replace(base.run, reward_scale="auto")) if raw else arm


def pex(base: Config, iql: Any) -> Config:
    """PEX from the IQL of the arm `iql`: its preset has an IQL of its own, with other settings."""
    shared = {f"recipe.online.{x}": getattr(iql, x) for x in ("expectile", "normalize")}
    return imitating(base, "switch=pex", {"recipe.offline": iql} | shared)


def _from_nothing(base: Config) -> dict[str, Config]:
    """SAC, and ENOTO's online part on SAC-N, without an offline phase and over as many environment steps."""
    cql = base.recipe.offline
    sac = at_size("experiment=sac-paper", base, cql)
    random = getattr(base.recipe, warmup(base.recipe))
    sac = replace(
        sac, dataset=None, recipe=replace(sac.recipe, online_steps=base.recipe.online_steps - random)
    )
    loosened = enoto_online(base)
    n = at_size("switch=sacn", base, cql, cql.critics).recipe.offline
    n = replace(n, **{x: getattr(loosened, x) for x in LOOSENED})
    return {"sac": sac, "scratch": changed(sac, {"recipe.agent": n})}


def _model_based(base: Config, model: str) -> dict[str, Config]:
    """MOPO, which learns offline alone, MOORe, which goes on from it, and MBPO from nothing.

    The model, its rollouts and the agent's first temperature are those of the preset `model`; the agent's
    other settings are SAC's. Fits and rollouts are not larger than the base's offline phase.
    """
    most, epoch = base.recipe.offline_steps, max(50, base.recipe.online_steps // 10)
    moore: MOOReConfig = preset(model).recipe
    own: Any = moore.agent
    sac = at_size("experiment=sac-paper", base, base.recipe.offline).recipe.agent
    moore = replace(
        moore,
        agent=replace(sac, init_alpha=own.init_alpha),
        fit=replace(moore.fit, max_updates=min(moore.fit.max_updates, most)),
        refit=replace(moore.refit, max_updates=min(moore.refit.max_updates, most)),
        batch=base.recipe.batch,
        offline_steps=most,
        online_steps=base.recipe.online_steps,
        epoch=epoch,
        model_every=epoch,
        online_rollouts=min(moore.online_rollouts, most),
    )
    recipes = {"mopo": moore_study.as_mopo(moore), "moore": moore, "mbpo": moore_study.mbpo(moore)}
    arms = {name: replace(base, recipe=recipe) for name, recipe in recipes.items()}
    return arms | {"mbpo": replace(arms["mbpo"], dataset=None)}


PANELS = {
    "From CQL and Cal-QL": ["cql", "cql-sac", "enoto", "wsrl", "balanced", "calql"],
    "From others": ["wsrl", "iql", "pex", "awac", "adaptive-bc", "rlpd"],
    "From nothing": ["wsrl", "rlpd", "no-data", "sac", "scratch", "mbpo"],
    "With a model": ["wsrl", "moore", "mbpo", "mopo"],
}


PAPERS = {
    **{x: f"switch={x}" for x in ("cql", "cql-sac", "wsrl", "balanced", "iql", "pex", "awac")},
    **{"enoto": "switch=cql-enoto", "calql": "switch=calql-dense", "adaptive-bc": "switch=adaptive-bc"},
    **{"rlpd": "switch=rlpd", "sac": "experiment=sac-paper", "mopo": "experiment=mopo-paper"},
    **{"moore": "experiment=moore-full", "mbpo": "experiment=mbpo-paper"},
}
"""The preset with the numbers of the paper, by arm."""


def papers(base: Config) -> dict[str, Config]:
    """Every method as its preset has it, over as many environment steps as the base.

    Offline phases are the presets' own, so that few arms share one.
    """
    steps = base.recipe.online_steps
    found = {
        arm: changed(x, {"recipe.online_steps": steps}) if getattr(x.recipe, "online_steps", 0) else x
        for arm, x in ((arm, published(command, base)) for arm, command in PAPERS.items())
    }
    n = preset("switch=sacn").recipe.offline
    online = ENOTO(found["enoto"].recipe).configs()[1]
    n = replace(n, critics=online.critics, **{x: getattr(online, x) for x in LOOSENED})
    found["scratch"] = changed(found["sac"], {"recipe.agent": n})
    found["no-data"] = changed(found["rlpd"], drawing("online"))
    return found | {x: replace(found[x], dataset=None) for x in ("sac", "scratch", "mbpo")}


def jobs(known: dict[str, Config], name: str) -> list[Job]:
    """The method, after the offline phase that it needs; methods with the same one share it."""
    arm = known[name]
    if arm.dataset is None:  # it learns from nothing
        return [Job(name, replace(arm, env=task_of(known["wsrl"])))]
    if not hasattr(arm.recipe, "offline_steps"):  # it has no offline phase
        return [Job(name, arm)]
    if name in ("mopo", "moore"):
        return [Job("mopo", known["mopo"]), *([Job(name, arm, "mopo")] if name == "moore" else [])]
    phase = _phase(arm)
    offline = f"offline-{_phase_name(known, phase)}"
    return [offline_job(offline, phase), Job(name, arm, offline)]


def _phase(arm: Config) -> Config:
    """The offline phase of an arm; ENOTO decides the settings of its learner itself."""
    own = isinstance(arm.recipe, ENOTOConfig)
    return replace(arm, recipe=replace(arm.recipe, online=None) if own else offline_alone(arm.recipe))


def _phase_name(known: dict[str, Config], phase: Config) -> str:
    """The name of the learner, if all arms with it share one phase, or of the first arm with this phase."""
    kind = type(phase.recipe.offline)
    arms = {x: arm for x, arm in known.items() if type(getattr(arm.recipe, "offline", None)) is kind}
    phases = {x: _phase(arm).recipe for x, arm in arms.items()}
    if all(x == phase.recipe for x in phases.values()):
        return next(entry.name for entry in AGENTS.values() if entry.config is kind)
    return next(x for x, recipe in phases.items() if recipe == phase.recipe)


def collect(known: dict[str, Config], out: Path, results: Path, name: str) -> None:
    """Write `results/NAME.csv` (one row per method and seed), its curves, and the figure.

    MOPO has no online phase. Its curve stays at the return of the end of its offline phase, over the same
    steps.
    """
    steps = known["wsrl"].recipe.online_steps
    logs = read_arms(out, [x for x in known if x != "mopo"])
    logs |= {arm: _held(log, steps) for arm, log in read_arms(out, ["mopo"], "offline").items()}
    logs = {arm: logs[arm] for arm in known if arm in logs}
    rows = [
        row | {"wobble": wobble(logs[arm])[row["seed"]]}
        for arm, found in online_rows(logs).items()
        for row in found
    ]
    publish(results / f"{name}.csv", rows, logs)
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


RIVALS = ("awac", "balanced", "pex", "calql", "iql")
"""The methods that ENOTO's paper compares with; SAC and the same from nothing are added where they ran."""


def _best_rival(m: Measured) -> Apart:
    """The finals of ENOTO, and of the best of the other methods by its mean."""
    others = [m[x]["final"] for x in RIVALS] + [m[x]["final"] for x in ("sac", "scratch") if x in m]
    return Apart(m["enoto"]["final"], max(others, key=np.mean))


def _second(m: Measured) -> Apart:
    """The finals of balanced replay, and of the best of the methods that are not ENOTO."""
    best = max((m[x]["final"] for x in RIVALS if x != "balanced"), key=np.mean)
    return Apart(m["balanced"]["final"], best)


def _rise(name: str, more: str, less: str) -> Claim:
    """A claim that one method gains more than another online: these start from different checkpoints."""

    def value(m: Measured) -> Apart:
        return Apart(*(m[x]["final"] - m[x]["j0"] for x in (more, less)))

    return Claim(name, f"gain, final - J0: {TITLES[more]} > {TITLES[less]}", value)


TITLES = {"enoto": "ENOTO", "iql": "IQL with its data", "awac": "AWAC", "calql": "Cal-QL"}

CLAIMS = [
    Claim("D1", "final: ENOTO > the best of the others", _best_rival),
    Claim("D2", "drop: PEX > IQL with its data", difference("drop", "pex", "iql")),
    _rise("D3", "enoto", "iql"),
    _rise("D3", "awac", "iql"),
    Claim("D4", "AUC: ENOTO > AWAC", apart("auc", "enoto", "awac")),
    Claim("D5", "final: balanced replay > the best of the others but ENOTO", _second),
    Claim("D5", "wobble: balanced replay > ENOTO", difference("wobble", "balanced", "enoto")),
    Claim("D6", "drop: CQL to SAC > Cal-QL", apart("drop", "cql-sac", "calql")),
    Claim("D6", "AUC: ENOTO > Cal-QL", apart("auc", "enoto", "calql")),
    Claim("D6", "AUC: Cal-QL > IQL with its data, in a maze", apart("auc", "calql", "iql"), only="maze"),
    Claim("D7", "drop: ENOTO > Cal-QL", apart("drop", "enoto", "calql"), only="medium-expert"),
    Claim("D8", "AUC: ENOTO > the same from nothing", apart("auc", "enoto", "scratch")),
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
    """A published method: the command with its paper's numbers, and the study that measured it."""

    name: str
    paper: str
    command: str
    """What `mbo2o train` takes for the numbers of the paper; the preset says where these are from."""
    needs: str
    measured: tuple[str, str, str]
    """Where its figures are: the prefix of the study's files, the arm, and the column."""


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
    Method("CQL", "arXiv 2006.04779", "switch=cql", BOTH, ("methods", "cql", "final")),
    Method("CQL → SAC", "arXiv 2306.06871", "switch=cql-sac", BOTH, ("enoto-hopper", "freed", "final")),
    Method("Cal-QL", "arXiv 2303.05479", "switch=calql", BOTH, ("methods", "calql", "final")),
    Method("IQL", "arXiv 2110.06169", "switch=iql", BOTH, ("methods", "iql", "final")),
    Method("AWAC", "arXiv 2006.09359", "switch=awac", BOTH, ("methods", "awac", "final")),
    Method("SAC-N", "arXiv 2110.01548", "switch=sacn", BOTH, ("offline", "sacn", "final")),
    Method("EDAC", "arXiv 2110.01548", "switch=edac", BOTH, ("offline", "edac", "final")),
    Method("TD3+BC", "arXiv 2106.06860", "switch=td3bc", BOTH, ("offline", "td3bc", "final")),
    Method("LAPO", "arXiv 2203.08949", "switch=lapo", BOTH, ("offline", "lapo", "final")),
    Method("BC", "Pomerleau 1988", "switch=bc", DATA, ("offline", "bc", "final")),
    Method("SAC", "arXiv 1812.05905", "experiment=sac-paper", TASK, ("obac", "sac", "final")),
    Method("REDQ", "arXiv 2101.05982", "experiment=redq-paper", TASK, ("obac", "redq", "final")),
]

_OFFLINE = " --seeds 3 --set recipe.offline.normalize=true"
_MAZE = " --set run.reward_shift=-1 run.eval_episodes=10 recipe.warmup=500"
MEASURED_BY = {
    "enoto-hopper-medium-100k": "enoto hopper-medium-100k.hdf5 --seeds 5",
    "enoto-lapo-pointmaze-umaze": "enoto pointmaze-umaze.hdf5 --seeds 5 --experiment lapo-small"
    " --name lapo-pointmaze-umaze",
    "enoto-td3bc-hopper-medium-100k": "enoto hopper-medium-100k.hdf5 --seeds 5 --experiment td3bc-small"
    " --name td3bc-hopper-medium-100k",
    "methods-hopper-medium-100k": "methods hopper-medium-100k.hdf5 --seeds 5",
    "methods-pointmaze-umaze": f"methods pointmaze-umaze.hdf5 --seeds 5{_MAZE}",
    "methods-pointmaze-umaze-demos": f"methods pointmaze-umaze-demos.hdf5 --seeds 5{_MAZE}",
    "moore-halfcheetah-medium-replay-v5": "moore halfcheetah-medium-replay-v5 --seeds 5"
    " --experiment halfcheetah-small",
    "moore-hopper-replay-100k": "moore hopper-replay-100k.hdf5 --seeds 5",
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
"""What `mbo2o study` takes for each file in data/results, by the file's name; --arms chooses an arm."""

OLDER = "5ccba87"
"""The commit whose small experiments all files but TODAYS were measured with; today's differ from them."""
TODAYS = {"enoto-hopper-medium-100k": "7ca47d7", "methods-hopper-medium-100k": "7ca47d7"}
"""Files that were measured later, and the commit that added the last of their arms."""


def _found(method: Method, results: Path) -> list[tuple[str, list[dict[str, str]]]]:
    """The files under `results` that have the method's arm, by name, with its rows."""
    study, arm, _ = method.measured
    paths = (
        [p for p in sorted(results.glob(f"{study}-*.csv")) if not p.stem.endswith(BESIDE)] if study else []
    )
    return [(path.stem, rows) for path in paths if (rows := read_rows(path).get(arm, []))]


def declared(command: str) -> str:
    """The provenance of the preset that a command such as switch=NAME names: KIND: SOURCE."""
    return str(
        OmegaConf.select(OmegaConf.load(conf_folder() / f"{command.replace('=', '/')}.yaml"), "provenance")
    )


def measured(method: Method, results: Path) -> str:
    """Mean and interval by dataset, after the return at the switch; "" if nothing is measured."""
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
    """The budget after which the final was measured: methods of one table have different ones."""
    steps = f"{int(row['steps']):,}".replace(",", " ")
    few = ", one evaluation" if row["final_evals"] == "1" else ""
    return f" ({steps} {'steps' if 'j0' in row else 'updates'}{few})"


def with_interval(values: np.ndarray, digits: int) -> str:
    """Mean and interval over seeds, or "–" in the interval's place where there are too few."""
    low, high = (float(x) for x in interval(values))
    return f"{values.mean():.{digits}f} " + (
        "–" if np.isnan(low) else f"[{low:.{digits}f}, {high:.{digits}f}]"
    )
