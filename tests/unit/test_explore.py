"""Explorations against loops over candidates and finite differences, with a toy policy whose random numbers
are replayed.
"""

import itertools
import math
import statistics

import pytest
import torch
from torch import Tensor

from mbo2o.agents.cql import CQL, CQLConfig
from mbo2o.ensemble.explore import EXPLORATIONS, ExploreConfig, explore
from mbo2o.ensemble.mlp import EnsembleMLP, MLPConfig
from mbo2o.types import Spec, UserError

SEEDS = [(), (2,)]
K = 6


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Toy:
    """a = tanh(u), u ~ N(W s, σ²), critics that are networks, in double precision."""

    def __init__(self, seeds: tuple[int, ...] = (), critics: int = 3, std: float = 0.5):
        self.actor = EnsembleMLP(seeds, 4, 2, MLPConfig(hidden=[])).double()
        self.critic = EnsembleMLP((*seeds, critics), 6, 1, MLPConfig(hidden=[16], activation="tanh")).double()
        self.head = torch.randint(critics, seeds)
        self.std = std * (torch.rand(2, dtype=torch.float64) + 0.5)
        self.u: list[Tensor] = []

    def proposal(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.actor(obs)
        return mean, self.std.expand_as(mean)

    def decode(self, obs: Tensor, u: Tensor) -> Tensor:
        self.u.append(u)
        return torch.tanh(u)

    def q(self, obs: Tensor, act: Tensor) -> Tensor:
        return self.critic(obs, act).squeeze(-1)

    def act(self, obs: Tensor, **cfg) -> Tensor:
        torch.manual_seed(1)
        return explore(self, obs, ExploreConfig(**{"candidates": K, **cfg}))

    def noise(self, *shape: int) -> Tensor:
        torch.manual_seed(1)
        return self.std * torch.randn(*shape, 2, dtype=torch.float64)


def states(seeds: tuple[int, ...] = (), n: int = 5) -> Tensor:
    return torch.randn(*seeds, n, 4, dtype=torch.float64)


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("critics", [1, 3])
@pytest.mark.parametrize("name", EXPLORATIONS)
def test_shapes_and_no_gradients(name, critics, seeds):
    toy, obs = Toy(seeds, critics), states(seeds)
    act = toy.act(obs, name=name)
    assert act.shape == (*seeds, 5, 2)
    assert act.abs().max() <= 1
    assert not act.requires_grad
    assert all(p.grad is None for net in (toy.actor, toy.critic) for p in net.parameters())


@pytest.mark.parametrize("name", EXPLORATIONS)
def test_seeds_do_not_meet(name):
    toy, obs = Toy((2,)), states((2,))
    other = torch.stack([states(), obs[1]])
    assert torch.equal(toy.act(other, name=name)[1], toy.act(obs, name=name)[1])


@pytest.mark.parametrize("seeds", SEEDS)
def test_one_candidate_is_the_policys_sample(seeds):
    toy, obs = Toy(seeds), states(seeds)
    sample = torch.tanh(toy.actor(obs) + toy.noise(*seeds, 5))
    for name in ("policy", "ucb", "bootstrapped"):
        assert torch.equal(toy.act(obs, name=name, candidates=1), sample)


@pytest.mark.parametrize("name", ["ucb", "bootstrapped"])
def test_candidates_that_coincide_are_the_policy(name):
    toy, obs = Toy(std=0.0), states()
    torch.testing.assert_close(toy.act(obs, name=name), torch.tanh(toy.actor(obs)))


def ucb_score(coef: float, ddof: int):
    std = statistics.stdev if ddof else statistics.pstdev
    return lambda q, head: statistics.mean(q) + coef * std(q)


CHOICES = {
    "greedy": ({"name": "ucb", "ucb_coef": 0.0}, ucb_score(0, 1)),
    "ucb unbiased": ({"name": "ucb", "ucb_coef": 1.3}, ucb_score(1.3, 1)),
    "ucb population": ({"name": "ucb", "ucb_coef": 1.3, "std_ddof": 0}, ucb_score(1.3, 0)),
    "bootstrapped": ({"name": "bootstrapped"}, lambda q, head: q[head]),
}


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("case", CHOICES)
def test_choice_equals_a_loop_over_candidates(case, seeds):
    cfg, score = CHOICES[case]
    toy, obs = Toy(seeds), states(seeds, 40)
    if seeds:
        toy.head = torch.tensor([2, 0])  # each seed follows its own
    act = toy.act(obs, **cfg)
    candidates = torch.tanh(toy.actor(obs).unsqueeze(-3) + toy.noise(*seeds, K, 40))
    values = [toy.q(obs, a) for a in candidates.unbind(-3)]
    chosen = set()
    for s in itertools.product(*[range(n) for n in seeds]):
        for b in range(40):
            scores = [score(v[s][:, b].tolist(), int(toy.head[s])) for v in values]
            best = scores.index(max(scores))
            chosen.add(best)
            torch.testing.assert_close(act[s][b], candidates[s][best, b])
    assert len(chosen) > 3


def test_critics_that_agree_leave_only_the_mean():
    toy, obs = Toy(), states(n=40)
    for p in toy.critic.parameters():
        p.data.copy_(p.data[:1].expand_as(p))
    assert torch.equal(toy.act(obs, name="ucb", ucb_coef=10.0), toy.act(obs, name="ucb", ucb_coef=0.0))


def shift(toy: Toy, obs: Tensor, **cfg) -> Tensor:
    """How far OAC moves the policy's mean."""
    toy.act(obs, name="oac", **cfg)
    return toy.u[-1] - toy.noise(*obs.shape[:-1]) - toy.actor(obs).detach()


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize(("critics", "ddof"), [(1, 1), (2, 0), (3, 1)])
def test_oac_climbs_the_upper_bound_as_far_as_the_kl_allows(critics, ddof, seeds):
    toy, obs = Toy(seeds, critics), states(seeds)
    toy.critic.layers[-1].weight.data.mul_(100)  # gradients beside which 1e-5 is nothing
    d = shift(toy, obs, oac_beta=3.0, oac_delta=0.7, std_ddof=ddof)
    torch.testing.assert_close(
        (d.square() / toy.std.square()).sum(-1), torch.full((*seeds, 5), 1.4).double(), rtol=1e-4, atol=0
    )

    def upper(u: Tensor) -> Tensor:
        q = toy.q(obs, torch.tanh(u)).detach()
        return q.mean(-2) + (3.0 * q.std(-2, correction=ddof) if critics > 1 else 0)

    mean, eps = toy.actor(obs).detach(), 1e-5
    steps = eps * torch.eye(2, dtype=torch.float64)
    grad = torch.stack([(upper(mean + e) - upper(mean - e)) / (2 * eps) for e in steps], -1)
    direction = torch.nn.functional.normalize
    torch.testing.assert_close(
        direction(d / toy.std.square(), dim=-1), direction(grad, dim=-1), rtol=1e-4, atol=1e-5
    )


def test_oac_default_shift_is_6_9_standard_deviations():
    toy, obs = Toy(), states()
    toy.critic.layers[-1].weight.data.mul_(100)
    length = (shift(toy, obs) / toy.std).norm(dim=-1)
    torch.testing.assert_close(length, torch.full_like(length, math.sqrt(2 * 23.53)), rtol=1e-4, atol=0)


def test_oac_leaves_the_policy_alone_where_critics_are_flat():
    toy, obs = Toy(), states()
    torch.nn.init.zeros_(toy.critic.layers[-1].weight)
    assert torch.equal(toy.act(obs, name="oac"), toy.act(obs, name="policy"))


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match="did you mean 'ucb'"):
        CQL(Spec(3, 2), CQLConfig(explore=ExploreConfig(name="ubc")))
