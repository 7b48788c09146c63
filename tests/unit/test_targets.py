"""Reductions of critics against enumeration and Monte Carlo; SUNRISE's weights and bootstrap masks against
loops.
"""

import itertools
import math
import statistics

import pytest
import torch

from mbo2o.ensemble.targets import (
    REDUCTIONS,
    SunriseConfig,
    bootstrap_mask,
    masked_mean,
    mean_q,
    member_std,
    min_q,
    random_min_pair,
    reduction,
    rem,
    sunrise_weight,
    weighted_min_pair,
)
from mbo2o.types import Batch, UserError

SEEDS = [(), (2,)]
GRANULARITIES = ["batch", "sample"]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def each(*sizes: int):
    return itertools.product(*[range(n) for n in sizes])


def column(q: torch.Tensor, k: tuple[int, ...]) -> list[float]:
    """The members' values at seed and row k."""
    return q[(*k[:-1], slice(None), k[-1])].tolist()


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_deterministic_reductions_equal_loops(seeds, n):
    q = torch.randn(*seeds, n, 6)
    pair_mean = lambda x: statistics.mean(map(min, itertools.combinations(x, 2))) if n > 1 else x[0]  # noqa: E731
    loops = {
        "min_q": min,
        "mean_q": statistics.mean,
        "first_q": lambda x: x[0],
        "weighted_min_pair": pair_mean,
    }
    for name, loop in loops.items():
        out = REDUCTIONS[name](q)
        assert out.shape == (*seeds, 6)
        for k in each(*seeds, 6):
            assert out[k].item() == pytest.approx(loop(column(q, k)), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_reductions_lie_between_the_smallest_and_the_largest_member(granularity):
    q = torch.randn(2, 5, 200)
    low, high, middle = min_q(q), q.amax(-2), weighted_min_pair(q)
    assert (low <= middle).all()
    assert (middle <= mean_q(q)).all()
    for name in REDUCTIONS:
        f = reduction(name, granularity)
        out = f(q)
        assert (out >= low - 1e-6).all()
        assert (out <= high + 1e-6).all()
        torch.testing.assert_close(f(q[:, :1].expand_as(q)), q[:, 0])  # all agree
        torch.testing.assert_close(f(q[:, :1]), q[:, 0])  # one alone
    two = q[:, :2]
    assert torch.equal(random_min_pair(two, granularity), min_q(two))
    torch.testing.assert_close(weighted_min_pair(two), min_q(two))
    for f in (min_q, mean_q, weighted_min_pair):
        torch.testing.assert_close(f(q[:, [3, 0, 4, 1, 2]]), f(q))


def test_mean_shift_of_gaussian_values():
    """In units of the ensemble's std, against the known expectations of order statistics."""
    q = torch.randn(10, 200_000)
    shifts = {
        "min_q": -1.539,
        "weighted_min_pair": -0.564,
        "random_min_pair": -0.564,
        "mean_q": 0,
        "rem": 0,
        "first_q": 0,
    }
    assert shifts.keys() == REDUCTIONS.keys()
    for name, shift in shifts.items():
        assert reduction(name, "sample")(q).mean().item() == pytest.approx(shift, abs=0.01)
    assert weighted_min_pair(q[:5]).mean().item() == pytest.approx(-0.564, abs=0.01)


def test_random_pairs_are_uniform():
    q = torch.arange(4.0).unsqueeze(-1).expand(4, 60_000)
    low = random_min_pair(q, "sample")
    torch.manual_seed(0)
    high = -random_min_pair(-q, "sample")  # the same pairs
    for i, j in itertools.combinations(range(4), 2):
        assert ((low == i) & (high == j)).float().mean().item() == pytest.approx(1 / 6, abs=0.01)


@pytest.mark.parametrize("f", [rem, random_min_pair])
def test_random_reductions_draw_per_batch_or_per_sample(f):
    """One draw per seed and call, or one per transition; never one for all seeds."""
    q = torch.arange(10.0).unsqueeze(-1).expand(64, 10, 32)
    batch, again, sample = f(q, "batch"), f(q, "batch"), f(q, "sample")
    assert (batch == batch[:, :1]).all()
    assert (sample != sample[:, :1]).any(-1).all()
    assert len(batch[:, 0].unique()) > 5
    assert not torch.equal(batch, again)
    for mistaken in (lambda: f(q, "transition"), lambda: reduction("min_q", "transition")):
        with pytest.raises(UserError, match="transition"):
            mistaken()


def test_rem_weights():
    q = torch.randn(4, 40_000, requires_grad=True)
    rem(q, "sample").sum().backward()
    w = q.grad
    torch.testing.assert_close(w.sum(0), torch.ones(40_000))
    assert (w >= 0).all()
    assert (w[0] < w[1] / 2).float().mean().item() == pytest.approx(
        0.25, abs=0.01
    )  # of uniform draws; 1/3 of exponential ones


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_gradients_are_the_members_shares(granularity):
    q = torch.randn(2, 5, 7, requires_grad=True)
    for name in REDUCTIONS:
        (grad,) = torch.autograd.grad(reduction(name, granularity)(q).sum(), q)
        torch.testing.assert_close(grad.sum(-2), torch.ones(2, 7))
    (grad,) = torch.autograd.grad(weighted_min_pair(q).sum(), q)
    torch.testing.assert_close(
        grad.gather(-2, q.argsort(-2))[0, :, 0], torch.tensor([0.4, 0.3, 0.2, 0.1, 0.0])
    )


def test_seeds_do_not_meet():
    """Other values in seed 0 leave seed 1's results as they are, bit for bit."""
    q = torch.randn(2, 5, 7)
    other = torch.stack([100 * torch.randn(5, 7), q[1]])
    calls = [reduction(name, granularity) for name in REDUCTIONS for granularity in GRANULARITIES]
    for cfg in (SunriseConfig("per_sample", std_norm="batch_mean"), SunriseConfig("scalar_batch")):
        calls.append(lambda q, cfg=cfg: sunrise_weight(q, cfg))
    for f in calls:
        torch.manual_seed(1)
        expected = f(q)[1]
        torch.manual_seed(1)
        assert torch.equal(f(other)[1], expected)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("seeds", SEEDS)
def test_sunrise_weights_equal_loops(seeds):
    q = 0.2 * torch.randn(*seeds, 4, 6)
    w = sunrise_weight(q, SunriseConfig("per_sample", temperature=7.0))
    normed = sunrise_weight(q, SunriseConfig("per_sample", temperature=1.5, std_norm="batch_mean"))
    scalar = sunrise_weight(q, SunriseConfig("scalar_batch", temperature=7.0))
    assert w.shape == normed.shape == (*seeds, 6)
    assert scalar.shape == (*seeds, 1)
    for s in each(*seeds):
        stds = [statistics.pstdev(column(q, (*s, b))) for b in range(6)]
        for b, std in enumerate(stds):
            assert w[(*s, b)].item() == pytest.approx(sigmoid(-7 * std) + 0.5, rel=1e-5)
            assert normed[(*s, b)].item() == pytest.approx(
                sigmoid(-1.5 * std / statistics.mean(stds)) + 0.5, rel=1e-5
            )
        std = statistics.stdev(statistics.mean(member) for member in q[s].tolist())
        assert scalar[(*s, 0)].item() == pytest.approx(sigmoid(-7 * std) + 0.5, rel=1e-5)


CONFIGS = [
    SunriseConfig(),
    SunriseConfig("per_sample"),
    SunriseConfig("per_sample", 10, "batch_mean"),
    SunriseConfig("scalar_batch"),
]


@pytest.mark.parametrize("cfg", CONFIGS, ids=str)
def test_sunrise_weight_is_one_where_critics_agree_and_no_gradient(cfg):
    for q in (torch.full((2, 4, 6), 123.0), torch.randn(2, 1, 6)):  # the same values; a single critic
        w = sunrise_weight(q.requires_grad_(), cfg)
        assert torch.equal(w.expand(2, 6), torch.ones(2, 6))
        assert not w.requires_grad


def test_sunrise_weight_falls_from_1_to_a_half():
    spread = torch.linspace(0, 1, 100)
    w = sunrise_weight(torch.stack([-spread, spread]), SunriseConfig("per_sample"))
    assert w[0] == 1
    assert (w.diff() < 0).all()
    assert 0.5 < w[-1] < 0.51


def test_batch_mean_makes_weights_independent_of_the_values_scale():
    q, cfg = torch.randn(5, 64), SunriseConfig("per_sample", 1.0, "batch_mean")
    torch.testing.assert_close(sunrise_weight(1000 * q, cfg), sunrise_weight(q, cfg))


@pytest.mark.parametrize(
    "cfg",
    [
        SunriseConfig("paper"),
        SunriseConfig("per_sample", 1, "max"),
        SunriseConfig("scalar_batch", 1, "batch_mean"),
    ],
)
def test_sunrise_settings_that_do_not_exist(cfg):
    with pytest.raises(UserError, match=r"paper|max|batch_mean"):
        sunrise_weight(torch.zeros(2, 3), cfg)


def test_a_single_member_has_no_spread():
    q = torch.randn(2, 1, 5, requires_grad=True)
    std = member_std(q, 1)
    assert torch.equal(std, torch.zeros(2, 5))
    assert torch.autograd.grad(std.sum(), q)[0].eq(0).all()


def transitions(*shape: int) -> Batch:
    obs, next_obs = torch.randn(2, *shape, 3)
    return Batch(obs, torch.rand(*shape, 2) * 2 - 1, torch.randn(shape), next_obs, torch.zeros(shape))


@pytest.mark.parametrize(
    "salt", [torch.randint(1 << 31, (4,)), torch.arange(4)], ids=["random", "consecutive"]
)
@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 1.0])
def test_masks_are_independent_coins_with_at_least_one_head(salt, p):
    m = bootstrap_mask(transitions(100_000), salt, p).int()
    assert m.shape == (4, 100_000)
    code = (m * torch.tensor([8, 4, 2, 1]).unsqueeze(-1)).sum(0)
    for pattern in each(2, 2, 2, 2):
        ones = sum(pattern)
        expected = p**ones * (1 - p) ** (4 - ones) + (ones == 1) * (1 - p) ** 4 / 4 if ones else 0
        share = (code == int("".join(map(str, pattern)), 2)).float().mean().item()
        assert share == pytest.approx(expected, abs=0.006)
        assert ones or share == 0


def test_masks_belong_to_the_transition():
    """Wherever it stands in a batch, and whatever stands beside it."""
    b, salt = transitions(2, 500), torch.randint(1 << 31, (2, 5))
    m = bootstrap_mask(b, salt, 0.5)
    assert m.shape == (2, 5, 500)
    order = torch.randperm(500)[:300]
    pick = lambda x: x[:, order]  # noqa: E731
    assert torch.equal(bootstrap_mask(b.map(pick), salt, 0.5), m[..., order])
    assert torch.equal(bootstrap_mask(b.map(lambda x: x[1]), salt[1], 0.5), m[1])


def test_masks_depend_on_each_number_and_on_the_salt():
    b, salt = transitions(2000), torch.randint(1 << 31, (5,))
    m = bootstrap_mask(b, salt, 0.5)
    others = [bootstrap_mask(b, salt + 1, 0.5)]
    for field, j in [("obs", 0), ("obs", 2), ("act", 0), ("act", 1), ("rew", ...)]:
        x = b.map(torch.clone)
        getattr(x, field)[..., j].mul_(1 + 2**-22)  # a last bit or two
        others.append(bootstrap_mask(x, salt, 0.5))
    swapped = b.map(torch.clone)
    swapped.obs = b.obs.flip(-1)
    others.append(bootstrap_mask(swapped, salt, 0.5))
    agreement = (
        (m == bootstrap_mask(transitions(2000), salt, 0.5)).float().mean().item()
    )  # of unrelated transitions
    for other in others:
        assert (m == other).float().mean().item() == pytest.approx(agreement, abs=0.03)


def test_masks_of_coarse_numbers_are_fair():
    """Numbers on a grid, whose bits are mostly zero, as mazes and clipped actions have."""
    grid = torch.cartesian_prod(*[torch.arange(-4.0, 4)] * 4)
    b = Batch(grid[:, :2], grid[:, 2:3] / 4, grid[:, 3], grid[:, :2], torch.zeros(4096))
    m = bootstrap_mask(b, torch.arange(10), 0.5)
    torch.testing.assert_close(m.mean(-1), torch.full((10,), 0.5), atol=0.035, rtol=0)
    torch.testing.assert_close(torch.corrcoef(m), torch.eye(10), atol=0.07, rtol=0)


@pytest.mark.parametrize("seeds", SEEDS)
def test_masked_mean_equals_a_loop(seeds):
    loss, mask = torch.randn(*seeds, 3, 6), (torch.rand(*seeds, 3, 6) < 0.5).float()
    mask[..., 0, :] = 0
    out = masked_mean(loss, mask)
    assert out.shape == (*seeds, 3)
    for k in each(*seeds, 3):
        kept = [x for x, m in zip(loss[k].tolist(), mask[k].tolist(), strict=True) if m]
        assert out[k].item() == pytest.approx(sum(kept) / (len(kept) + 1), rel=1e-5)
