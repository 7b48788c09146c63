"""Models that are known exactly: one linear layer, so that every prediction has a closed form."""

import numpy as np
import torch

from mbo2o.data.dataset import TransitionDataset
from mbo2o.dynamics.model import DynamicsConfig, GaussianDynamics
from mbo2o.dynamics.termination import none
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.model.about import About
from mbo2o.model.dynamics import Dynamics
from mbo2o.types import Spec

DRIFT = torch.tensor([[-0.1, 0.05], [0.0, -0.2]])
PUSH = torch.tensor([[0.3, 0.0], [0.1, 0.2]])
PAY = torch.tensor([1.0, -0.5, 0.2, 0.0])
NOISE = torch.tensor([0.05, 0.1, 0.02])
"""s' = s + DRIFT s + PUSH a + NOISE ε, r = PAY (s, a) + NOISE ε, for a in [-1, 1]."""


def linear_net(noise=NOISE, offsets=None, elites=None, seeds=()):
    """The system as a network; offsets: `(M, 3)`, by which the means of its members differ."""
    offsets = torch.zeros(3, 3) if offsets is None else offsets
    members = len(offsets)
    cfg = DynamicsConfig(members, len(elites) if elites else members, MLPConfig(hidden=[]), False)
    net = GaussianDynamics(Spec(2, 2, seeds), cfg)
    means = torch.cat([torch.cat([DRIFT, PUSH], 1), PAY[None]]).T
    log_var = (noise * torch.ones(3)).clamp(min=1e-9).log() * 2
    with torch.no_grad():
        layer = net.net.net.layers[0]
        layer.weight.copy_(torch.cat([means, torch.zeros_like(means)], 1).expand_as(layer.weight))
        layer.bias.copy_(
            torch.cat([offsets, log_var.expand(members, 3)], 1).unsqueeze(1).expand_as(layer.bias)
        )
        net.net.max_log_var.fill_(20.0)
        net.net.min_log_var.fill_(-60.0)
        net.fitted.fill_(True)
        if elites:
            net.elites.copy_(torch.tensor(elites).expand_as(net.elites))
    return net


def linear(net=None, ends=none, rule="none", low=-1.0, high=1.0, **more):
    """The system as users have it."""
    about = {"env_id": None, "starts": torch.tensor([[0.5, -0.5], [0.2, 0.1]]), "scale": torch.ones(2)}
    box = {"low": torch.full((2,), low), "high": torch.full((2,), high)}
    return Dynamics(net or linear_net(), About(rule=rule, ends=ends, **{**about, **box, **more}))


def linear_data(episodes=20, steps=60, noise=NOISE, seed=0):
    """Recorded episodes of the system, in [-1, 1], each cut by a time limit."""
    rng = np.random.default_rng(seed)
    rows = {x: [] for x in ("observations", "actions", "rewards", "next_observations", "timeouts")}
    drift, push, pay = DRIFT.numpy(), PUSH.numpy(), PAY.numpy()
    for _ in range(episodes):
        s = rng.normal(size=2)
        for t in range(steps):
            a = rng.uniform(-1, 1, 2)
            off = noise.numpy() * rng.normal(size=3)
            after = s + drift @ s + push @ a + off[:2]
            paid = pay @ np.concatenate([s, a]) + off[2]
            for name, x in zip(rows, (s, a, paid, after, t == steps - 1), strict=True):
                rows[name].append(x)
            s = after
    arrays = {name: np.array(x, np.float32) for name, x in rows.items()}
    return TransitionDataset.from_arrays(terminals=np.zeros(episodes * steps), **arrays)
