"""The works that are measured, on shapes of HalfCheetah: what is learned, by which peers, what is wanted."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.floor import Net
from mbo2o.agents import AgentConfig
from mbo2o.agents.cql import CQLConfig
from mbo2o.agents.iql import IQLConfig
from mbo2o.agents.redq import REDQConfig
from mbo2o.agents.sac import SACConfig
from mbo2o.agents.td3bc import TD3BCConfig
from mbo2o.dynamics.model import DynamicsConfig
from mbo2o.ensemble.mlp import MLPConfig

OBS, ACT, BATCH = 17, 6, 256
DEEP = MLPConfig(hidden=[256, 256, 256])
MEMBERS, ELITES, HIDDEN = 7, 5, 200
STARTS, HORIZON = 50_000, 2
PIECE = 2048
"""Rows of all networks together that fit the cache: a rollout's products are measured on so many."""

Wanted = dict[str, dict[str, tuple[float, float | None]]]
"""By precision of the compiled engine and by peer: the least ratio to the peer, and the aim."""


@dataclass(frozen=True)
class Work:
    """A kind of learning step. `peers`: names of drivers in bench/peers, which do the same step."""

    title: str
    cfg: AgentConfig | DynamicsConfig
    nets: tuple[Net, ...]
    peers: tuple[str, ...] = ()
    wanted: Wanted = field(default_factory=dict)
    utd: int = 1
    """Updates that are made on rows drawn at once; an actor that is delayed learns in the last."""


def _actor(layers: int, passes: str, share: float = 1.0, outputs: int = 2 * ACT) -> Net:
    return Net(1, BATCH, (OBS, *[256] * layers, outputs), passes, share)


def _critics(n: int, layers: int, passes: str, share: float = 1.0, rows: int = BATCH) -> Net:
    return Net(n, rows, (OBS + ACT, *[256] * layers, 1), passes, share)


def _sac(n: int, layers: int, every: int = 1, targets: int | None = None) -> tuple[Net, ...]:
    """An update of n critics, whose target asks `targets` of them, and one of the actor once in `every`."""
    critics = (_actor(layers, "f"), _critics(targets or n, layers, "f"), _critics(n, layers, "fwx"))
    return (*critics, _actor(layers, "fwx", 1 / every), _critics(n, layers, "fX", 1 / every))


def _model(members: int, rows: int, passes: str) -> Net:
    return Net(members, rows, (OBS + ACT, *[HIDDEN] * 4, 2 * (OBS + 1)), passes)


WORKS = {
    "sac-10": Work(
        "SAC, 10 critics, 3x256",
        SACConfig(critics=10, actor=DEEP, critic=DEEP),
        _sac(10, 3),
        ("sbx", "sb3", "d3rlpy"),
        {
            "bf16": {"sbx": (3.1, 3.5), "d3rlpy": (4.3, None)},
            "fp32": {"sbx": (1.05, 1.2)},
        },
    ),
    "redq-10": Work(
        "REDQ, 10 critics, 2x256, actor every 4th",
        REDQConfig(policy_delay=4),
        _sac(10, 2, 4, 2),
        ("sbx",),
        {"bf16": {"sbx": (2.6, 3.0)}, "fp32": {"sbx": (1.1, None)}},
        utd=4,
    ),
    "sac-2": Work(
        "SAC, 2 critics, 2x256",
        SACConfig(),
        _sac(2, 2),
        ("sbx", "sb3", "d3rlpy"),
        {"bf16": {"sbx": (1.5, 1.8)}, "fp32": {"sbx": (0.95, 1.1)}},
    ),
    "cql": Work(
        "CQL, 2 critics, 3x256, 3x10 actions",
        CQLConfig(actor=DEEP, critic=DEEP),
        (
            *(_actor(3, "f"), _actor(3, "f"), _critics(2, 3, "f"), _critics(2, 3, "fwx", rows=31 * BATCH)),
            *(_actor(3, "fwx"), _critics(2, 3, "fX")),
        ),
        ("d3rlpy",),
        {"bf16": {"d3rlpy": (2.8, 4.0)}, "fp32": {"d3rlpy": (1.1, None)}},
    ),
    "td3bc": Work(
        "TD3+BC, 2x256",
        TD3BCConfig(),
        (
            *(_actor(2, "f", 1, ACT), _critics(2, 2, "f"), _critics(2, 2, "fwx")),
            *(_actor(2, "fwx", 0.5, ACT), _critics(1, 2, "fX", 0.5)),
        ),
        ("d3rlpy",),
        {"bf16": {"d3rlpy": (2.5, None)}, "fp32": {"d3rlpy": (1.8, None)}},
    ),
    "iql": Work(
        "IQL, 2x256",
        IQLConfig(),
        (
            *(_actor(2, "f", 1, 1), _actor(2, "fwx", 1, 1), _actor(2, "fwx")),
            *(_critics(2, 2, "f"), _critics(2, 2, "fwx")),
        ),
        ("d3rlpy",),
        {"bf16": {"d3rlpy": (3.0, None)}, "fp32": {"d3rlpy": (2.0, None)}},
    ),
    "dynamics": Work(
        "dynamics, 7 members, 4x200",
        DynamicsConfig(members=MEMBERS, elites=ELITES),
        (_model(MEMBERS, BATCH, "fwx"),),
        ("mbrl",),
        {"bf16": {"mbrl": (2.1, 3.0)}, "fp32": {"mbrl": (1.2, None)}},
    ),
    "redq-10-utd1": Work("REDQ, 10 critics, actor every time", REDQConfig(policy_delay=1), _sac(10, 2, 1, 2)),
    "redq-10-utd20": Work(
        "REDQ, 10 critics, actor every 20th", REDQConfig(policy_delay=20), _sac(10, 2, 20, 2), utd=20
    ),
    "min-10-utd20": Work(
        "the same, target of all 10 critics",
        REDQConfig(policy_delay=20, target="min_q"),
        _sac(10, 2, 20),
        utd=20,
    ),
}
"""Learning steps on batches of 256 rows. The last three show what many updates per environment step cost."""


@dataclass(frozen=True)
class Rollout:
    """A kind of imagined rollout, from 50 000 states at a time, with a policy of 2x256."""

    title: str
    coef: float
    """The penalty's weight; with 0 each row is computed by one elite, else by all members."""
    nets: tuple[Net, ...]
    """For PIECE rows of all networks together."""
    rows: int
    """Transitions that `nets` computes."""
    wanted: Wanted
    peers: tuple[str, ...] = ("mbrl",)


def _policy(rows: int) -> Net:
    return Net(1, rows, (OBS, 256, 256, 2 * ACT), "f")


ROLLOUTS = {
    "rollout-one": Rollout(
        "rollout, one member per state",
        0.0,
        (_policy(PIECE // ELITES * ELITES), _model(ELITES, PIECE // ELITES, "f")),
        PIECE // ELITES * ELITES,
        {"bf16": {"mbrl": (2.8, 5.0)}, "fp32": {"mbrl": (1.8, None)}},
    ),
    "rollout-all": Rollout(
        "rollout, all members and their penalty",
        1.0,
        (_policy(PIECE // MEMBERS), _model(MEMBERS, PIECE // MEMBERS, "f")),
        PIECE // MEMBERS,
        {"bf16": {"mbrl": (3.6, 6.0)}, "fp32": {"mbrl": (2.2, None)}},
    ),
}
