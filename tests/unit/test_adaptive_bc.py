"""Adaptive BC's controller, by hand; and that imitation weighs what it says."""

import math

import pytest
import torch

from mbo2o.agents.adaptive_bc import AdaptiveBC, AdaptiveBCConfig
from mbo2o.cli.main import compose_config
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.train import train
from mbo2o.types import Batch, Spec, UserError

SMALL = MLPConfig(hidden=[16])


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def make(seeds=(), **cfg) -> AdaptiveBC:
    return AdaptiveBC(
        Spec(3, 2, seeds), AdaptiveBCConfig(**{"actor": SMALL, "critic": SMALL, "critics": 3} | cfg)
    )


def batch(seeds=(), n=16) -> Batch:
    obs, next_obs = torch.randn(2, *seeds, n, 3)
    return Batch(
        obs, torch.rand(*seeds, n, 2) * 2 - 1, torch.randn(*seeds, n), next_obs, torch.zeros(*seeds, n)
    )


def test_controller_by_hand():
    """Over five episodes of two seeds, one of which does not end every time."""
    agent = make((2,), adapt=True, bc_weight=0.4, gain=3e-4, brake=1e-2)
    scores = [[0.3, 0.9], [0.2, math.nan], [0.6, 0.1], [0.1, 1.2], [0.5, 0.5]]
    b, mean = [0.4, 0.4], [None, None]
    for t, row in enumerate(scores):
        length = 100.0 + t
        for k, score in enumerate(row):
            if math.isnan(score):
                continue
            m = score if mean[k] is None else mean[k]
            b[k] = min(0.4, max(0.0, b[k] + length * (-3e-4 * (1.05 - m) + 1e-2 * max(0, m - score))))
            mean[k] = 0.95 * m + 0.05 * score
        ended = ~torch.tensor(row).isnan()
        agent.on_episode(ended, torch.tensor(row), torch.full((2,), length))
        assert agent.b.tolist() == pytest.approx(b, abs=1e-6)
        assert agent.score.tolist() == pytest.approx(mean, abs=1e-6)
    assert 0 < min(b) < 0.4


def test_b_falls_below_the_target_and_rises_after_a_bad_episode():
    agent = make(adapt=True)
    ended, length = torch.tensor(True), torch.tensor(1000.0)
    for _ in range(5):
        agent.on_episode(ended, torch.tensor(0.5), length)
    low = agent.b.item()
    assert low < 0.4
    agent.on_episode(ended, torch.tensor(0.0), length)
    assert agent.b.item() > low


def test_offline_it_stays():
    agent = make()
    agent.on_episode(torch.tensor(True), torch.tensor(math.nan), torch.tensor(1000.0))
    assert agent.b.item() == pytest.approx(0.4)
    assert agent.cfg.after_switch().adapt


@pytest.mark.parametrize(("recipe", "agent"), [("finetune", "recipe.offline"), ("scratch", "recipe.agent")])
def test_without_references_it_is_refused_before_anything_is_learned(recipe, agent, pendulum, tmp_path):
    chosen = [
        f"recipe={recipe}",
        f"agent@{agent}=adaptive_bc",
        f"dataset={pendulum}",
        "env=Pendulum-v1",
        "run.reference=d4rl-v2",
    ]
    sizes = [
        "recipe.batch=4",
        f"{agent}.actor.hidden=[4]",
        f"{agent}.critic.hidden=[4]",
        "recipe.online_steps=5",
    ]
    more = (
        ["recipe.offline_steps=5"] if recipe == "finetune" else ["recipe.random_steps=0", "recipe.agent.adapt=true"]
    )
    with pytest.raises(
        UserError, match=r"steers by scores, and run\.reference knows no returns of Pendulum-v1"
    ):
        train(compose_config([*chosen, *sizes, *more, f"dir={tmp_path}/run", "report=false"]))
    assert not list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


def test_state_holds_the_controller():
    agent, twin = make(adapt=True), make(adapt=True)
    agent.on_episode(torch.tensor(True), torch.tensor(0.2), torch.tensor(500.0))
    twin.load_state_dict(agent.state_dict())
    assert twin.b == agent.b != 0.4
    assert twin.score == agent.score


def test_b_weighs_the_imitation():
    agent = make((2,), policy_delay=1)
    agent.b.copy_(torch.tensor([0.0, 5.0]))
    b = batch((2,))
    act = agent.mode(b.obs)
    q = agent.q(b.obs, act).mean(-2)
    expected = -q.mean(-1) / q.abs().mean(-1) + agent.b * (act - b.act).square().mean((-2, -1))
    torch.testing.assert_close(agent.improve(b)["actor_loss"], expected.detach())


def test_a_schedule_that_would_do_nothing_is_refused():
    with pytest.raises(UserError, match="a controller moves"):
        make(bc_final=0.0, bc_decay_steps=10)
