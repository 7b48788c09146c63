"""What tests of agents share: agents with small networks, random batches, updates, and looks into a module."""  # noqa: E501

import copy
import itertools
from dataclasses import fields, replace

import torch
from torch import Tensor, nn

from mbo2o import agents  # noqa: F401  registers
from mbo2o.agents import Agent, AgentConfig, make_agent
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.ensemble.targets import SunriseConfig
from mbo2o.registry import AGENTS
from mbo2o.run.engine import Engine
from mbo2o.types import Batch, Metrics, Spec, Step, uniform_actions

OBS, ACT = 3, 2
DEMANDING = {
    "sac": {"policy_delay": 2, "mask": 0.5, "sunrise": SunriseConfig("per_sample"), "backup": "max"},
    "sacn": {"sunrise": SunriseConfig("scalar_batch"), "target": "rem", "granularity": "sample"},
    "edac": {"policy_delay": 2},
    "redq": {"policy_delay": 3},
    "cql": {"gap": 0.8, "clone_steps": 2, "actor_reduction": "random_min_pair"},
    "iql": {"actor_decay_steps": 3, "actor": MLPConfig(hidden=[8], layer_norm=True, dropout=0.1)},
    "awac": {"weights": "softmax", "target": "weighted_min_pair"},
    "td3bc": {"bc_final": 0.0, "bc_decay_steps": 3},
    "adaptive_bc": {"adapt": True},
    "lapo": {"rho": 0.7},
    "obac": {"gate": "batch", "beta": 1.0, "density": "released"},
    "pex": {"scale": True},
}
"""Every agent with the settings whose code is hardest to trace: schedules, draws, weights, delays."""


def small(name: str, hidden: int = 16, **change) -> AgentConfig:
    """The defaults of the agent called `name`, but for networks of one hidden layer."""
    cfg = AGENTS[name].config()
    networks = [f.name for f in fields(cfg) if isinstance(getattr(cfg, f.name), MLPConfig)]
    return replace(cfg, **{key: MLPConfig(hidden=[hidden]) for key in networks} | change)


def make(name: str, seeds=(), obs_dim=OBS, act_dim=ACT, **change) -> Agent:
    """A new agent with small networks."""
    return make_agent(small(name, **change), Spec(obs_dim, act_dim, seeds))


def batch(seeds=(), n=8, obs_dim=OBS, act_dim=ACT, done=None, mc_return=None) -> Batch:
    """Random transitions, half of which end the task unless `done` says which do."""
    obs, next_obs = torch.randn(2, *seeds, n, obs_dim)
    ended = torch.full((*seeds, n), 0.0 if done is None else float(done))
    if done is None:
        ended = (torch.rand(*seeds, n) < 0.5).float()
    act = uniform_actions(*seeds, n, act_dim)
    rew = torch.randn(*seeds, n)
    known = None if mc_return is None else torch.as_tensor(mc_return).expand(*seeds, n)
    return Batch(obs, act, rew, next_obs, ended, known)


def update(agent: Agent, b: Batch) -> Metrics:
    """The agent's next update, counted as a run counts it."""
    return Engine().update(agent, b)


def nth(count: int) -> Step:
    """What an agent is told in update number `count`, from 1."""
    return Step(count - 1, torch.tensor(count))


def constant(net: nn.Module, values: Tensor) -> None:
    """Make each member of `net` output `values` `(*members, n_out)` everywhere."""
    last = net.layers[-1]
    nn.init.zeros_(last.weight)
    last.bias.data.copy_(values.unsqueeze(-2))


def shake(*nets: nn.Module) -> None:
    """Move targets away from the networks that they are copies of."""
    for net in nets:
        for p in net.parameters():
            p.data.add_(0.1 * torch.randn_like(p))


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of a module's state."""
    return {name: x.clone() for name, x in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> bool:
    """Whether anything in a module's state differs from a snapshot."""
    return any(not torch.equal(x, before[name]) for name, x in module.state_dict().items())


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether two modules hold equal tensors."""
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def rows(seeds, n=8):
    """Every index of `(*seeds, n)`."""
    return itertools.product(*(range(s) for s in seeds), range(n))


def twin(agent: Agent) -> Agent:
    """A copy of an agent that shares nothing with it."""
    return copy.deepcopy(agent)
