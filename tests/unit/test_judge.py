"""What is estimated from a log is what playing would have found; it depends on log and policy alone."""

import math

import numpy as np
import pytest
import torch

from mbo2o.agents import make_agent
from mbo2o.agents.bc import BCConfig
from mbo2o.agents.td3bc import TD3BCConfig
from mbo2o.data.dataset import TransitionDataset
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.judge.fqe import FittedQ
from mbo2o.judge.imagined import Imagined
from mbo2o.judge.judge import Judge
from mbo2o.judge.split import split, starts
from mbo2o.types import RewardView, Spec, UserError

GAMMA = 0.9


def drift(obs, act):
    """A point that moves by a tenth of its action and falls back to the origin."""
    return 0.9 * obs + 0.1 * act


def pay(obs, act):
    return (1 - (obs - 0.5) ** 2 - 0.1 * act**2).squeeze(-1)


def log_of(episodes=60, length=20, seed=0, ends=False):
    """Random actions in the drifting world."""
    rng = np.random.default_rng(seed)
    obs, act, after = (np.zeros((episodes * length, 1), np.float32) for _ in range(3))
    for e in range(episodes):
        x = rng.uniform(-1, 1, 1)
        for t in range(length):
            i = e * length + t
            obs[i], act[i] = x, rng.uniform(-1, 1, 1)
            x = after[i] = drift(x, act[i])
    last = np.arange(episodes * length) % length == length - 1
    return TransitionDataset.from_arrays(
        observations=obs,
        actions=act,
        rewards=pay(obs, act).astype(np.float32),
        terminals=last if ends else np.zeros(len(obs), bool),
        timeouts=np.zeros(len(obs), bool) if ends else last,
        next_observations=after,
    )


def policy(obs):
    return (1 - obs).clamp(-1, 1)


def played(first, steps=400):
    """The true discounted return of `policy`."""
    x, total = first.double(), 0.0
    for t in range(steps):
        a = policy(x)
        total += GAMMA**t * pay(x, a)
        x = drift(x, a)
    return float(total.mean())


@pytest.fixture(scope="module")
def data():
    return log_of()


def test_fitted_q_evaluation_finds_the_return_of_a_policy_that_did_not_record_the_log(data):
    first = starts(data, 64)
    value, low, high = FittedQ(data, GAMMA, 0)(policy, first)
    true = played(first)
    assert value == pytest.approx(true, rel=0.05)
    assert low <= value <= high
    assert high - low < 0.5 * abs(true)


def test_fitted_q_evaluation_stops_at_terminal_rows():
    data = log_of(ends=True)
    first = starts(data, 64)
    terminal_value, *_ = FittedQ(data, GAMMA, 0)(policy, first)
    assert terminal_value < played(first) - 0.3  # no reward after an end, though what lies there looks alike


def test_a_learned_model_finds_it_too(data):
    first = starts(data, 64)
    imagined = Imagined(data, GAMMA, 0)
    value, low, high = imagined(policy, first)
    assert imagined.horizon == 20
    assert value == pytest.approx(played(first, 20), rel=0.05)
    assert low < value < high


def test_held_out_rows_are_no_rows_to_learn_from(data):
    rows, held = split(data)
    assert rows.n_rows + held.n_rows == data.n_rows
    assert held.n_rows == data.n_rows // 10
    assert not set(map(tuple, rows.packed.tolist())) & set(map(tuple, held.packed.tolist()))
    assert int(rows.episode[-1]) == 53
    few_rows, few_held = split(log_of(episodes=2))
    assert (few_rows.n_rows, few_held.n_rows) == (36, 4)
    with pytest.raises(UserError, match="are too few to judge"):
        split(log_of(episodes=1, length=10))


def agent_of(cfg, seeds=(2,)):
    net = MLPConfig(hidden=[8])
    nets = {"actor": net, "critic": net} if hasattr(cfg(), "critic") else {"actor": net}
    return make_agent(cfg(gamma=GAMMA, **nets), Spec(1, 1, seeds))


def test_a_judge_says_the_same_of_the_same_policy_and_draws_nothing(data):
    rows, held = split(data)
    agent = agent_of(TD3BCConfig)
    state = torch.get_rng_state()
    said = [Judge(rows, held, GAMMA, 0)(agent, RewardView()) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert said[0].keys() == said[1].keys()
    assert all(torch.equal(said[0][k], said[1][k]) for k in said[0])
    assert all(x.shape == (2,) for x in said[0].values())
    wanted = {"fqe", "fqe_low", "fqe_high", "model_value", "holdout_td_error", "behaviour_value"}
    assert wanted <= set(said[0])
    assert math.isfinite(float(said[0]["behaviour_value"][0]))


def test_what_an_agent_does_not_know_is_left_out_and_a_density_is_used(data):
    rows, held = split(data)
    found = Judge(rows, held, GAMMA, 0)(agent_of(BCConfig), RewardView())
    assert "holdout_td_error" not in found
    assert bool(found["holdout_loglik"].isfinite().all())


def test_td_errors_are_in_the_units_that_the_agent_learns_from(data):
    rows, held = split(data)
    judge, agent = Judge(rows, held, GAMMA, 0), agent_of(TD3BCConfig)
    plain, scaled = (judge(agent, RewardView(scale)) for scale in (1.0, 100.0))
    assert bool((scaled["holdout_td_error"] > 100 * plain["holdout_td_error"]).all())
    assert torch.equal(scaled["fqe"], plain["fqe"])
