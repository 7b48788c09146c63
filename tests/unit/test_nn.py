"""Adam with its state inside, Polyak averages, the squashed Gaussian, input statistics."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from mbo2o.ensemble.mlp import EnsembleMLP, MLPConfig
from mbo2o.nn.normalizer import Normalizer, block_statistics, statistics
from mbo2o.nn.optim import Adam, polyak
from mbo2o.nn.policy import LOG_STD, TanhGaussian


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Learner(nn.Module):
    """The least that owns an optimiser."""

    def __init__(self, seeds=(3,)):
        super().__init__()
        self.net = EnsembleMLP(seeds, 4, 2, MLPConfig(hidden=[8]))
        self.optim = Adam(self.net.parameters(), lr=1e-2, eps=1e-5)

    def learn(self, x, y):
        self.optim.step((self.net(x) - y).square().mean((-2, -1)))

    def bits(self):
        return {name: x.clone() for name, x in self.state_dict().items()}


def data(n, seeds=(3,)):
    return [(torch.randn(*seeds, 5, 4), torch.randn(*seeds, 5, 2)) for _ in range(n)]


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_adam_equals_torch():
    ours = Learner()
    theirs = copy.deepcopy(ours.net)
    adam = torch.optim.Adam(theirs.parameters(), lr=1e-2, eps=1e-5)
    for x, y in data(6):
        ours.learn(x, y)
        adam.zero_grad()
        (theirs(x) - y).square().mean((-2, -1)).sum().backward()
        adam.step()
        for p, q in zip(ours.net.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_adam_leaves_no_gradient_and_touches_only_its_own():
    ours = Learner()
    x = torch.randn(3, 5, 4, requires_grad=True)
    ours.learn(x, torch.randn(3, 5, 2))
    assert x.grad is None
    assert all(p.grad is None for p in ours.parameters())


def test_learning_rate_can_be_read_and_set():
    ours = Learner()
    ours.optim.lr = 0.0
    before = copy.deepcopy(ours.net.state_dict())
    ours.learn(*data(1)[0])
    assert ours.optim.lr == 0.0
    assert same(before, ours.net.state_dict())


def test_adam_state_travels_so_that_the_next_step_is_identical(tmp_path):
    first, second = Learner(), Learner()
    batches = data(8)
    for batch in batches[:4]:
        first.learn(*batch)
        second.learn(*batches[0])  # a state of its own, to be replaced
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt"))
    forgetful = Learner()
    forgetful.net.load_state_dict(first.net.state_dict())
    for batch in batches[4:]:
        for learner in (first, second, forgetful):
            learner.learn(*batch)
    assert same(first.bits(), second.bits())
    assert not same(first.net.state_dict(), forgetful.net.state_dict())  # so the moments do matter


def test_copies_of_a_learner_are_independent():
    first = Learner()
    first.learn(*data(1)[0])
    before, twin = first.bits(), copy.deepcopy(first)
    batch = data(1)[0]
    twin.learn(*batch)
    assert same(before, first.bits())
    first.learn(*batch)
    assert same(first.bits(), twin.bits())


def test_seeds_do_not_touch():
    clean, poisoned = Learner(), Learner()
    poisoned.load_state_dict(clean.state_dict())
    for x, y in data(5):
        clean.learn(x, y)
        bad = y.clone()
        bad[0] = math.nan
        poisoned.learn(x, bad)
    for a, b in zip(clean.net.parameters(), poisoned.net.parameters(), strict=True):
        assert torch.equal(a[1:], b[1:])
        assert b[0].isnan().any()


def test_polyak():
    target, source = (
        EnsembleMLP((2,), 3, 1, MLPConfig(hidden=[4])),
        EnsembleMLP((2,), 3, 1, MLPConfig(hidden=[4])),
    )
    old, new = copy.deepcopy(target.state_dict()), copy.deepcopy(source.state_dict())
    polyak(target, source, 0.1)
    for name, x in target.state_dict().items():
        torch.testing.assert_close(x, 0.9 * old[name] + 0.1 * new[name])
    assert same(new, source.state_dict())


def policy(seeds=(), act_dim=1, bias=None):
    """A policy; with `bias` = (μ, log σ) the same at every state."""
    pi = TanhGaussian(seeds, 3, act_dim, MLPConfig(hidden=[8]))
    if bias is not None:
        last = pi.net.layers[-1]
        nn.init.zeros_(last.weight)
        last.bias.data = torch.tensor(bias).repeat_interleave(act_dim).expand_as(last.bias).clone()
    return pi


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.7, -0.5), (-1.0, 0.4)])
def test_density_integrates_to_one_and_is_the_one_that_samples(mean, log_std):
    """(a, log π) of many samples, in order of a: the integral over (-1, 1) by trapezoids."""
    pi = policy(bias=(mean, log_std))
    sampled, log_prob = pi.sample(torch.zeros(20_000, 3))
    order = sampled[:, 0].argsort()
    x, density = sampled[order, 0].double(), log_prob[order].double().exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=0.01)
    # mass below 0 by integration equals the share of samples there
    below = torch.trapezoid(density[x < 0], x[x < 0]).item()
    assert below == pytest.approx((x < 0).double().mean().item(), abs=0.015)


@pytest.mark.parametrize("seeds", [(), (2,)])
def test_log_prob_equals_torch_distributions(seeds):
    pi, obs = policy(seeds, 2), torch.randn(*seeds, 50, 3)
    act, log_prob = pi.sample(obs)
    mean, log_std = pi(obs)
    assert act.shape == (*seeds, 50, 2)
    assert log_prob.shape == (*seeds, 50)
    base = Independent(Normal(mean.double(), log_std.double().exp()), 1)
    expected = TransformedDistribution(base, [TanhTransform()]).log_prob(act.double())
    torch.testing.assert_close(log_prob.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mean", [-60.0, -8.0, 8.0, 60.0])
def test_log_prob_is_stable_where_tanh_saturates(mean):
    pi = policy(bias=(mean, -2.0))
    act, log_prob = pi.sample(torch.zeros(100, 3))
    assert (act.abs() <= 1).all()
    assert log_prob.isfinite().all()
    # log π ≈ log N - log(4 e^-2|u|), within the noise's reach of |u| = |mean|
    expected = -math.log(math.sqrt(2 * math.pi)) + 2.0 - math.log(4) + 2 * abs(mean)
    assert (log_prob - expected).abs().max() < 12
    assert log_prob.mean().item() == pytest.approx(expected - 0.5, abs=0.3)
    log_prob.sum().backward()
    assert all(p.grad.isfinite().all() for p in pi.parameters())


def test_sample_is_reparametrised():
    pi = policy(act_dim=2)
    pi.sample(torch.randn(10, 3))[0].sum().backward()
    grad = pi.net.layers[-1].bias.grad[0]
    assert (grad != 0).all()  # both μ and log σ get one


def test_mode_and_spread():
    pi, obs = policy((2,), 2, bias=(0.3, -1.2)), torch.randn(2, 5, 3)
    mean, log_std = pi(obs)
    torch.testing.assert_close(mean, torch.full((2, 5, 2), 0.3))
    torch.testing.assert_close(log_std, torch.full((2, 5, 2), -1.2))
    torch.testing.assert_close(pi.mode(obs), torch.full((2, 5, 2), math.tanh(0.3)))
    u = torch.atanh(pi.sample(torch.zeros(2, 20_000, 3))[0].double())
    assert u.mean().item() == pytest.approx(0.3, abs=0.01)
    assert u.std().item() == pytest.approx(math.exp(-1.2), rel=0.02)


def test_log_std_is_clamped():
    for bias, expected in ((-50.0, LOG_STD[0]), (50.0, LOG_STD[1])):
        assert policy(bias=(0.0, bias))(torch.zeros(1, 3))[1].item() == expected


@pytest.mark.parametrize("seeds", [(), (2,)])
def test_normalizer_with_and_without_member_axis(seeds):
    norm = Normalizer(seeds, 3)
    x = torch.randn(*seeds, 5, 3)
    assert torch.equal(norm(x), x)
    norm.mean.normal_()
    norm.std.uniform_(0.5, 2)
    with_members = torch.randn(*seeds, 4, 5, 3)
    torch.testing.assert_close(norm.inverse(norm(x)), x)
    torch.testing.assert_close(norm.inverse(norm(with_members)), with_members)
    for m in range(4):
        one = with_members[..., m, :, :]
        torch.testing.assert_close(norm(with_members)[..., m, :, :], norm(one))
    if seeds:
        for k in range(2):
            torch.testing.assert_close(norm(x)[k], (x[k] - norm.mean[k]) / norm.std[k])
            torch.testing.assert_close(norm(with_members)[k], (with_members[k] - norm.mean[k]) / norm.std[k])


def test_statistics():
    x = torch.randn(2, 1000, 3) * torch.tensor([0.01, 1.0, 50.0]) + torch.tensor([3.0, 0.0, -20.0])
    mean, std = statistics(x)
    assert mean.shape == std.shape == (2, 1, 3)
    torch.testing.assert_close(mean[1, 0], torch.from_numpy(x[1].numpy().astype(float).mean(0)).float())
    torch.testing.assert_close(std[1, 0], torch.from_numpy(x[1].numpy().astype(float).std(0)).float())


@pytest.mark.parametrize("sizes", [(1000,), (1, 600, 399), (500, 500)])
def test_statistics_of_blocks(sizes):
    x = torch.randn(1000, 4) * torch.tensor([0.01, 1.0, 50.0, 0.0]) + torch.tensor([3.0, 0.0, -20.0, 0.1])
    mean, std = block_statistics(lambda: x.split(sizes))
    expected = x.numpy().astype(float)
    assert mean.shape == std.shape == (1, 4)
    torch.testing.assert_close(mean[0], torch.from_numpy(expected.mean(0)).float())
    torch.testing.assert_close(std[0, :3], torch.from_numpy(expected.std(0)).float()[:3])
    assert std[0, 3] == 1  # constant


@pytest.mark.parametrize("constant", [0.0, 0.1, -3.3, 1000.1])
def test_a_constant_dimension_keeps_its_scale(constant):
    mean, std = statistics(torch.full((50_000, 1), constant))
    assert std.item() == 1
    assert mean.item() == pytest.approx(constant, rel=1e-5)


def test_log_prob_of_given_actions_is_that_of_the_samples_and_finite_at_the_edge():
    pi, obs = policy((2,), 2), torch.randn(2, 50, 3)
    act, log_prob = pi.sample(obs)
    torch.testing.assert_close(pi.log_prob(obs, act), log_prob, rtol=1e-3, atol=1e-3)
    edge = torch.ones(2, 50, 2, requires_grad=True)
    loss = pi.log_prob(obs, edge).sum()
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in pi.parameters())
