"""The ensemble's heart against loops, nn.Linear, nn.LayerNorm and torch.distributions."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from mbo2o.ensemble import uncertainty
from mbo2o.ensemble.gaussian import GaussianEnsemble, gaussian_nll, soft_clamp
from mbo2o.ensemble.mlp import ACTIVATIONS, EnsembleLinear, EnsembleMLP, MLPConfig
from mbo2o.ensemble.uncertainty import (
    PENALTIES,
    aleatoric_std,
    epistemic_std,
    max_aleatoric,
    max_deviation,
    max_pairwise,
    mixture_std,
)
from mbo2o.types import UserError

MEMBERS = [(), (3,), (2, 4)]
MODULES = {"relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh, "elu": nn.ELU, "gelu": nn.GELU}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def each(members: tuple[int, ...]):
    return itertools.product(*[range(n) for n in members])


def member(net: EnsembleMLP, k: tuple[int, ...]) -> nn.Sequential:
    """Member k as the stack of torch's own modules that it claims to be."""
    stack: list[nn.Module] = []
    for i, layer in enumerate(net.layers):
        n_in, n_out = layer.weight.shape[-2:]
        linear = nn.Linear(n_in, n_out)
        linear.weight.data, linear.bias.data = layer.weight[k].T.clone(), layer.bias[k][0].clone()
        stack.append(linear)
        if i < len(net.layers) - 1:
            if net.cfg.layer_norm:
                norm = nn.LayerNorm(n_out)
                norm.weight.data, norm.bias.data = net.scales[i][k][0].clone(), net.shifts[i][k][0].clone()
                stack.append(norm)
            stack.append(MODULES[net.cfg.activation]())
    return nn.Sequential(*stack)


def make(members: tuple[int, ...], **cfg) -> EnsembleMLP:
    net = EnsembleMLP(members, 5, 3, MLPConfig(hidden=[8, 6], **cfg))
    for p in [*net.scales, *net.shifts]:  # ones and zeros would hide a mistake
        nn.init.normal_(p)
    return net


@pytest.mark.parametrize("members", MEMBERS)
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_equals_a_loop_over_linear_stacks(members, layer_norm, activation):
    net = make(members, layer_norm=layer_norm, activation=activation)
    x = torch.randn(*members, 7, 5)
    shared = torch.randn(*members[:-1], 7, 5)
    own, common = net(x), net(shared)
    assert own.shape == common.shape == (*members, 7, 3)
    for k in each(members):
        torch.testing.assert_close(own[k], member(net, k)(x[k]))
        torch.testing.assert_close(common[k], member(net, k)(shared[k[:-1]]))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layer_norm", [False, True])
def test_mlp_without_gradients_is_the_same_and_leaves_its_input_alone(activation, layer_norm):
    net, x = make((2, 3), activation=activation, layer_norm=layer_norm), torch.randn(2, 7, 5)
    before = x.clone()
    with torch.no_grad():
        without = net(x)
    torch.testing.assert_close(without, net(x), rtol=1e-6, atol=1e-7)
    assert torch.equal(x, before)


def test_mlp_joins_inputs_along_features():
    net, obs, act = make((2, 3)), torch.randn(2, 7, 4), torch.randn(2, 7, 1)
    assert torch.equal(net(obs, act), net(torch.cat([obs, act], -1)))


def test_mlp_without_hidden_layers_is_affine():
    net, x = EnsembleMLP((2,), 4, 3, MLPConfig(hidden=[])), torch.randn(2, 5, 4)
    torch.testing.assert_close(net(x), x @ net.layers[0].weight + net.layers[0].bias)


def test_members_share_no_gradient():
    net, x = make((2, 3), layer_norm=True), torch.randn(2, 7, 5)
    net(x)[1, 2].sum().backward()
    for p in net.parameters():
        others = torch.ones(2, 3, dtype=torch.bool)
        others[1, 2] = False
        assert p.grad[others].eq(0).all()
        assert p.grad[1, 2].ne(0).any()


def test_initial_bounds_are_those_of_linear_per_layer_and_member():
    net = EnsembleMLP((2, 3), 20, 30, MLPConfig(hidden=[100, 300]))
    for layer, fan_in in zip(net.layers, [20, 100, 300], strict=True):
        bound = 1 / math.sqrt(fan_in)
        for p in (layer.weight, layer.bias):
            top = p.flatten(2).abs().amax(-1)
            assert (top <= bound).all()
            assert (top > 0.85 * bound).all()
            assert (p.flatten(2).mean(-1).abs() < 0.3 * bound).all()
        flat = layer.weight.flatten(0, 1)
        assert all(not torch.equal(flat[i], flat[j]) for i, j in itertools.combinations(range(6), 2))


def test_dropout_only_while_training():
    net, x = make((3,), dropout=0.5), torch.randn(3, 7, 5)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))
    for k in each((3,)):
        torch.testing.assert_close(net(x)[k], member(net, k)(x[k]))


def test_dropout_comes_before_the_layer_norm():
    """Then the kept units are rescaled by the norm: its output has mean 0 and variance 1 whatever was
    dropped.
    """
    net, x = make((1,), dropout=0.5, layer_norm=True), torch.randn(1, 7, 5)
    seen = []
    net.activation = lambda h: seen.append(h) or h
    net(x)
    plain = (seen[0] - net.shifts[0]) / net.scales[0]
    torch.testing.assert_close(plain.mean(-1), torch.zeros(1, 7), atol=1e-4, rtol=0)
    torch.testing.assert_close(plain.square().mean(-1), torch.ones(1, 7), atol=1e-2, rtol=0)


def test_unknown_activation():
    with pytest.raises(UserError, match="relux"):
        EnsembleMLP((), 2, 2, MLPConfig(activation="relux"))


def test_linear_takes_non_contiguous_input():
    layer, x = EnsembleLinear((2, 3), 4, 5), torch.randn(2, 4, 7).transpose(-1, -2)
    torch.testing.assert_close(layer(x), x.unsqueeze(1) @ layer.weight + layer.bias)


def test_soft_clamp():
    low, high = torch.tensor(-10.0), torch.tensor(0.5)
    x = torch.linspace(-40, 40, 4001, dtype=torch.float64)
    y = soft_clamp(x, low, high)
    # the second bound is applied to the first one's result, and leaks by log(1 + e^-(high - low))
    leak = math.log1p(math.exp(-10.5))
    assert leak < 1e-4
    assert (y.diff() >= 0).all()
    assert (y.diff()[(x[1:] > -14) & (x[1:] < 5)] > 0).all()
    assert y.min() >= low
    assert y.max() <= high + leak
    assert abs(y[0] - low) < 1e-6
    assert abs(y[-1] - high) < 2 * leak
    inside = torch.linspace(-9.9, 0.4, 100, dtype=torch.float64, requires_grad=True)
    soft_clamp(inside, low, high).sum().backward()
    assert (inside.grad > 0.05).all()
    far = torch.tensor([-5.0, -4.0], dtype=torch.float64)
    torch.testing.assert_close(soft_clamp(far, low, high), far, atol=2e-2, rtol=0)
    # the bounds are learned: each pulls where x is at it
    bounds = [low.clone().requires_grad_(), high.clone().requires_grad_()]
    at_high = torch.autograd.grad(soft_clamp(torch.tensor(5.0), *bounds), bounds)
    at_low = torch.autograd.grad(soft_clamp(torch.tensor(-15.0), *bounds), bounds)
    assert at_high[1] > 0.9 > 0.1 > at_high[0]
    assert at_low[0] > 0.9 > 0.1 > at_low[1]


def test_nll_is_twice_that_of_a_normal():
    mean, log_var, target = torch.randn(3, 2, 4, 50, 6).unbind(0)
    expected = 2 * -Normal(mean, (log_var / 2).exp()).log_prob(target) - math.log(2 * math.pi)
    torch.testing.assert_close(gaussian_nll(mean, log_var, target), expected.mean((-2, -1)))


def test_gaussian_heads_and_bounds():
    net, x = GaussianEnsemble((2, 4), 5, 3, MLPConfig(hidden=[8])), torch.randn(2, 7, 5)
    nn.init.uniform_(net.max_log_var, 0.5, 1.5)
    nn.init.uniform_(net.min_log_var, -12, -9)
    mean, log_var = net(x)
    raw = net.net(x)
    assert torch.equal(mean, raw[..., :3])
    for s, m, j in each((2, 4, 3)):
        low, high = net.min_log_var[s, 0, 0, j], net.max_log_var[s, 0, 0, j]
        torch.testing.assert_close(log_var[s, m, :, j], soft_clamp(raw[s, m, :, 3 + j], low, high))
    gap = (net.max_log_var - net.min_log_var).tolist()
    width = [sum(gap[s][0][0][j] for j in range(3)) for s in range(2)]
    torch.testing.assert_close(net.bound_width(), torch.tensor(width))


def loops(mean: Tensor, std: Tensor) -> dict[str, float]:
    """Every measure at one state, `(M, D+1)`, in plain Python."""
    mean, std = mean.tolist(), std.tolist()
    n, outputs = len(mean), len(mean[0])
    dims = range(outputs - 1)
    norm = lambda xs: math.sqrt(sum(x * x for x in xs))  # noqa: E731
    centre = [sum(m[j] for m in mean) / n for j in range(outputs)]
    var = [sum((m[j] - centre[j]) ** 2 for m in mean) / n for j in range(outputs)]
    return {
        "max_aleatoric": max(norm(s) for s in std),
        "max_deviation": max(norm(m[j] - centre[j] for j in dims) for m in mean),
        "max_pairwise": max(norm(a[j] - b[j] for j in dims) for a in mean for b in mean),
        "epistemic_std": math.sqrt(sum(var[j] for j in dims) / len(dims)),
        "mixture_std": math.sqrt(sum(sum(s[j] ** 2 for s in std) / n + var[j] for j in range(outputs))),
        "aleatoric_std": math.sqrt(sum(s[j] ** 2 for s in std for j in dims) / n / len(dims)),
    }


MEASURES = (max_aleatoric, max_deviation, max_pairwise, epistemic_std, mixture_std, aleatoric_std)


@pytest.mark.parametrize("seeds", [(), (2,)])
def test_measures_equal_loops(seeds):
    mean, std = torch.randn(*seeds, 5, 6, 4), torch.rand(*seeds, 5, 6, 4)
    for f in MEASURES:
        u = f(mean, std)
        assert u.shape == (*seeds, 6)
        for k in each((*seeds, 6)):
            at = (*k[:-1], slice(None), k[-1])
            assert u[k].item() == pytest.approx(loops(mean[at], std[at])[f.__name__], rel=1e-5)


def test_relations_between_penalties():
    mean, std = 3 * torch.randn(7, 200, 5), torch.rand(7, 200, 5)
    u2, u3, u4 = (f(mean, std) for f in (max_deviation, max_pairwise, epistemic_std))
    assert (u2 <= u3 + 1e-5).all()
    assert (u3 <= 2 * u2 + 1e-5).all()
    torch.testing.assert_close(u4, mean[..., :-1].std(0, correction=0).norm(dim=-1) / 2)


def test_order_of_members_does_not_matter():
    mean, std, order = torch.randn(2, 5, 6, 4), torch.rand(2, 5, 6, 4), torch.tensor([3, 0, 4, 1, 2])
    for f in MEASURES:
        torch.testing.assert_close(f(mean[:, order], std[:, order]), f(mean, std))


def test_what_a_penalty_does_not_see():
    """Disagreement ignores the reward and the noise; U1 ignores the means."""
    mean, std = torch.randn(5, 6, 4), torch.rand(5, 6, 4)
    other_reward = torch.cat([mean[..., :-1], 100 * torch.randn(5, 6, 1)], -1)
    for f in (max_deviation, max_pairwise, epistemic_std):
        assert torch.equal(f(other_reward, 10 * std), f(mean, std))
    assert torch.equal(max_aleatoric(10 * mean, std), max_aleatoric(mean, std))
    assert (mixture_std(other_reward, std) > mixture_std(mean, std)).all()


def test_one_member_never_disagrees():
    mean, std = torch.randn(1, 6, 4), torch.rand(1, 6, 4)
    for f in (max_deviation, max_pairwise, epistemic_std):
        assert torch.equal(f(mean, std), torch.zeros(6))


def test_registered_penalties():
    assert set(PENALTIES) == {f.__name__ for f in MEASURES} - {"aleatoric_std"}
    assert all(PENALTIES[f.__name__] is f for f in MEASURES if f is not aleatoric_std)


def test_aleatoric_penalty_saturates_far_from_data_and_disagreement_does_not():
    net = GaussianEnsemble((7,), 4, 3, MLPConfig(hidden=[16]))
    x = torch.randn(500, 4)
    ceiling = net.max_log_var.exp().sum().sqrt().item()
    u1, u3 = [], []
    for scale in (1, 1e2, 1e4):
        mean, log_var = net(scale * x)
        u1.append(max_aleatoric(mean, (0.5 * log_var).exp()).max().item())
        u3.append(max_pairwise(mean, mean).max().item())
    assert max(u1) <= ceiling * (1 + 2e-5)  # the soft clamp's leak
    assert u1[-1] > 0.99 * ceiling
    assert u3[2] > 50 * u3[1] > 50 * u3[0]


@pytest.mark.parametrize("seeds", [(), (2,)])
def test_the_largest_distance_of_many_members_is_that_of_the_pairs(seeds, monkeypatch):
    mean = torch.randn(*seeds, 20, 7, 4)
    mean[..., 3:, :, :] = mean[..., 3:, :, :] * 1e-4 + 100  # near members, far from 0
    monkeypatch.setattr(uncertainty, "ROWS", 3)
    many = max_pairwise(mean, mean)
    monkeypatch.setattr(uncertainty, "FEW", 20)
    assert many.shape == (*seeds, 7)
    torch.testing.assert_close(many, max_pairwise(mean, mean))
