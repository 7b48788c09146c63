"""A seed's initial networks are its own, however many seeds are trained side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import mbo2o.recipes  # noqa: F401  registers
from mbo2o.agents import make_agent
from mbo2o.agents.sac import SACConfig
from mbo2o.dynamics.model import DynamicsConfig, GaussianDynamics
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.nn.init import per_seed
from mbo2o.recipes.scratch import ScratchConfig
from mbo2o.registry import AGENTS
from mbo2o.run.run import RunConfig
from mbo2o.train import Config, train
from mbo2o.types import Spec


def spec(seeds: int, first: int = 0) -> Spec:
    return Spec(3, 2, (seeds,), inits=tuple(torch.Generator().manual_seed(first + k) for k in range(seeds)))


def lane(module: torch.nn.Module, k: int, seeds: int) -> dict[str, torch.Tensor]:
    return {name: x[k] for name, x in module.state_dict().items() if x.dim() and x.shape[0] == seeds}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert a
    for name, x in a.items():
        assert torch.equal(x, b[name]), name


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_an_agents_initial_state_per_seed_does_not_depend_on_how_many_there_are(name: str) -> None:
    cfg = AGENTS[name].config()
    three, two, later = (make_agent(cfg, s) for s in (spec(3), spec(2), spec(1, first=2)))
    for k in range(2):
        assert_same(lane(three, k, 3), lane(two, k, 2))
    assert_same(lane(three, 2, 3), lane(later, 0, 1))  # lane 2 of seed 0 is lane 0 of seed 2
    weights = [(x[0], x[1]) for name, x in three.state_dict().items() if "weight" in name]
    assert weights
    assert not any(torch.equal(a, b) for a, b in weights)


def test_a_dynamics_models_initial_state_does_not_either() -> None:
    cfg = DynamicsConfig(members=3, elites=2, net=MLPConfig(hidden=[8]))
    three, two = (per_seed(lambda s: GaussianDynamics(s, cfg), s) for s in (spec(3), spec(2)))
    for k in range(2):
        assert_same(lane(three, k, 3), lane(two, k, 2))


def test_networks_made_one_after_the_other_differ() -> None:
    shared = spec(2)
    first, second = (make_agent(SACConfig(), shared) for _ in range(2))
    assert not torch.equal(first.critic.layers[0].weight, second.critic.layers[0].weight)


def test_making_networks_leaves_torchs_own_stream_where_it_was() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    make_agent(SACConfig(), spec(2))
    assert torch.equal(before, torch.get_rng_state())


def test_the_first_evaluation_of_a_seed_is_the_same_in_a_run_of_one_seed_and_of_three(tmp_path: Path) -> None:
    small = SACConfig(actor=MLPConfig(hidden=[8]), critic=MLPConfig(hidden=[8]))
    recipe = ScratchConfig(agent=small, online_steps=2, random_steps=1, batch=4)
    returns = {}
    for seeds in (1, 3):
        cfg = Config(
            recipe=recipe,
            env="Pendulum-v1",
            seeds=seeds,
            dir=str(tmp_path / str(seeds)),
            run=RunConfig(eval_episodes=1),
            report=False,
        )
        lines = [json.loads(x) for x in (train(cfg) / "metrics.jsonl").read_text().splitlines()]
        returns[seeds] = next(x["return"] for x in lines if x["kind"] == "eval")
    assert returns[3][0] == returns[1][0]
    assert len(set(returns[3])) == 3
