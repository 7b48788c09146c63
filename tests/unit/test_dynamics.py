"""The dynamics ensemble and its fit: who sees which row, who keeps which weights, and what the predictions
mean.
"""

import copy
import json
import math
import resource

import numpy as np
import pytest
import torch
from torch import Tensor

from mbo2o.data.buffer import ReplayBuffer
from mbo2o.data.dataset import TransitionDataset
from mbo2o.dynamics.fit import FitConfig, _adam, _Best, fit, nll
from mbo2o.dynamics.model import DynamicsConfig, GaussianDynamics
from mbo2o.ensemble.hash import row_hash
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.types import Batch, Diverged, Spec, UserError

D, A = 3, 2


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def make(seeds=(), members=3, elites=2, hidden=(16,), **cfg) -> GaussianDynamics:
    net = MLPConfig(hidden=list(hidden), activation="silu")
    return GaussianDynamics(Spec(D, A, seeds), DynamicsConfig(members=members, elites=elites, net=net, **cfg))


def quick(**changes) -> FitConfig:
    defaults = {"batch": 32, "min_updates": 0, "max_updates": 60, "epoch_updates": 20, "lr": 1e-2}
    return FitConfig(**{**defaults, **changes})


def system(n: int, noise: float = 0.0, scale: float = 1.0, offset: float = 0.0, seed: int = 1) -> Batch:
    """s' = s + Bs + Ca and r = c·s, with noise of the size asked for on each."""
    g = torch.Generator().manual_seed(9)
    b, c, w = (torch.randn(*shape, generator=g) for shape in ((D, D), (A, D), (D,)))
    g.manual_seed(seed)
    obs = scale * torch.randn(n, D, generator=g) + offset
    act = torch.rand(n, A, generator=g) * 2 - 1
    delta = 0.3 * (obs - offset) @ b + act @ c + noise * torch.randn(n, D, generator=g)
    rew = (obs - offset) @ w + noise * torch.randn(n, generator=g)
    return Batch(obs, act, rew, obs + delta, torch.zeros(n))


def dataset(b: Batch) -> TransitionDataset:
    arrays = [x.numpy() for x in (b.obs, b.act, b.rew, b.done)]
    return TransitionDataset.from_arrays(*arrays, next_observations=b.next_obs.numpy())


class Spy:
    """A source that remembers which rows were asked for."""

    def __init__(self, source):
        self.source, self.calls = source, []

    @property
    def index(self):
        return self.source.index

    def rows(self, index: Tensor) -> Batch:
        self.calls.append(index.clone())
        return self.source.rows(index)

    def held_out(self) -> set[int]:
        """What the first call of a fit asks for: the rows that are scored."""
        return set(self.calls[0].flatten().tolist())

    def trained(self, members: int = 3) -> list[set[int]]:
        """Each member's rows; the first two calls are the holdout and the statistics' rows."""
        per_member = [set() for _ in range(members)]
        for call in self.calls[2:]:
            for seen, rows in zip(per_member, call.unflatten(-1, (members, -1)).unbind(-2), strict=True):
                seen |= set(rows.flatten().tolist())
        return per_member


def errors(model: GaussianDynamics, b: Batch) -> Tensor:
    """Each member's mean squared error in target units, member by member and output by output."""
    mean, _ = model.predict(b.obs, b.act)
    target = torch.cat([b.next_obs - b.obs, b.rew.unsqueeze(-1)], -1)
    out = torch.zeros(model.cfg.members)
    for m in range(model.cfg.members):
        out[m] = sum(
            (((mean[m] - target)[:, j] / model.targets.std[0, j]) ** 2).mean() for j in range(D + 1)
        ) / (D + 1)
    return out.detach()


def bits(model: GaussianDynamics) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


# ---- what is learned


@pytest.mark.parametrize("seeds", [(), (2,)])
def test_learns_a_linear_system(seeds):
    model = make(seeds, hidden=())
    cfg = quick(max_updates=1500, min_updates=1500, epoch_updates=50, weight_decay=[0.0])
    m = fit(model, [(dataset(system(1000)), 1.0)], cfg)
    assert m["holdout_mse"].shape == m["updates"].shape == seeds
    assert m["coverage50"].shape == m["coverage90"].shape == (*seeds, D + 1)
    assert (m["holdout_mse"] < 1e-4).all()
    fresh = system(50, seed=2)
    obs, act = fresh.obs.expand(*seeds, 50, D), fresh.act.expand(*seeds, 50, A)
    mean, std = model.predict(obs, act)
    assert mean.shape == std.shape == (*seeds, 3, 50, D + 1)
    assert (std > 0).all()
    target = torch.cat(
        [fresh.next_obs - fresh.obs, fresh.rew.unsqueeze(-1)], -1
    )  # differences first, reward last
    torch.testing.assert_close(mean, target.expand_as(mean), atol=0.1, rtol=0)
    next_obs, rew = model.step(obs, act)
    torch.testing.assert_close(next_obs, fresh.next_obs.expand_as(next_obs), atol=0.3, rtol=0)
    torch.testing.assert_close(rew, fresh.rew.expand_as(rew), atol=0.3, rtol=0)
    assert model.fitted


def test_coverage_of_gaussian_noise():
    data = system(6000, noise=0.5)
    model = make(hidden=())
    spy = Spy(dataset(data))
    m = fit(
        model, [(spy, 1.0)], quick(lr=4e-3, max_updates=1500, min_updates=1500, epoch_updates=100, batch=128)
    )
    assert (m["coverage90"] - 0.9).abs().max() < 0.05
    assert (m["coverage50"] - 0.5).abs().max() < 0.07
    held = data.map(lambda x: x[spy.calls[0]])
    mean, std = model.predict(held.obs, held.act)
    torch.testing.assert_close(std.mean(-2), torch.full((3, D + 1), 0.5), atol=0.05, rtol=0)
    # the metric against a loop over the elites, in raw units
    target = torch.cat([held.next_obs - held.obs, held.rew.unsqueeze(-1)], -1)
    for name, width in (("coverage50", 0.67449), ("coverage90", 1.64485)):
        hits = [((target - mean[e]).abs() < width * std[e]).float().mean(0) for e in model.elites.tolist()]
        torch.testing.assert_close(m[name], sum(hits) / 2, atol=1e-3, rtol=0)


def test_nll_equals_a_loop():
    model = make((2,), hidden=(8, 8, 8))
    model.targets.std.uniform_(0.5, 2)
    model.inputs.std.uniform_(0.5, 2)
    model.inputs.mean.normal_()
    model.targets.mean.normal_()
    with torch.no_grad():
        model.net.max_log_var.uniform_(0, 1)
    x, y = torch.randn(2, 3, 6, D + A), torch.randn(2, 3, 6, D + 1)
    loss = nll(model, x, y)
    assert loss.shape == (2,)
    for s in range(2):
        expected = torch.zeros(())
        alone = model.seed(s)
        for m in range(3):
            mean, std = (z[m] for z in alone.predict(x[s, m, :, :D], x[s, m, :, D:]))
            unit = model.targets.std[s]
            normal = torch.distributions.Normal((mean - model.targets.mean[s]) / unit, std / unit)
            z = (y[s, m] - model.targets.mean[s]) / unit
            expected = expected - (2 * normal.log_prob(z) + math.log(2 * math.pi)).mean()
        torch.testing.assert_close(loss[s], expected, rtol=1e-4, atol=1e-4)


def test_weight_decay_through_adam_is_the_loss_term():
    """Decays by layer, on weights and not on biases or the variance's bounds: as wd/2·‖W‖² in the loss
    would.
    """
    model, cfg = make((2,), hidden=(8, 8, 8)), quick(weight_decay=[1.0, 2.0, 3.0, 4.0, 5.0])
    twin = copy.deepcopy(model)
    ours, plain = _adam(model, cfg), torch.optim.Adam(twin.net.parameters(), lr=cfg.lr)
    for _ in range(5):
        x, y = torch.randn(2, 3, 6, D + A), torch.randn(2, 3, 6, D + 1)
        ours.step(nll(model, x, y))
        plain.zero_grad()
        decays = zip(twin.net.net.layers, [1.0, 2.0, 4.0, 5.0], strict=True)  # round(4/3) = 1, round(8/3) = 3
        penalty = sum(wd / 2 * layer.weight.square().sum() for layer, wd in decays)
        (nll(twin, x, y).sum() + penalty).backward()
        plain.step()
    for a, b in zip(model.net.parameters(), twin.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# ---- who sees which row


def test_a_refit_holds_out_the_same_rows():
    spies = [Spy(dataset(system(600))) for _ in range(2)]
    model = make()
    for spy in spies:  # a fit and a refit
        fit(model, [(spy, 1.0)], quick(max_updates=200, batch=64, patience=100))
    held = spies[0].held_out()
    assert held == spies[1].held_out()
    assert 0.05 < len(held) / 600 < 0.15
    every = set(range(600)) - held
    unions = []
    for first, second in zip(spies[0].trained(), spies[1].trained(), strict=True):
        assert not (first | second) & held
        assert 0.55 < len(first | second) / len(every) < 0.71
        unions.append(first | second)
    # members differ: a third of what one sees, another does not
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert 0.25 < len(unions[a] - unions[b]) / len(unions[a]) < 0.5
    assert len(set.union(*unions)) / len(every) > 0.9


@pytest.mark.parametrize("seeds", [(), (2,)])
def test_holdout_stays_while_a_buffer_grows(seeds):
    buffer, data = ReplayBuffer(Spec(D, A, seeds), 1000), system(600)
    model, spies = make(seeds), []
    for part in (slice(0, 300), slice(300, 600)):
        buffer.add(data.map(lambda x, p=part: x[p].expand(*seeds, *x[p].shape)))
        spies.append(Spy(buffer))
        fit(model, [(spies[-1], 1.0)], quick(max_updates=100))
    early, late = (spy.held_out() for spy in spies)
    assert early == {i for i in late if i < 300}
    assert max(late) > 300
    for spy in spies:
        assert not set.union(*spy.trained()) & late


def test_scored_rows_come_from_all_over_the_data():
    """Files are sorted by age: the first rows would say nothing of the last."""
    spies = [Spy(dataset(system(2000))) for _ in range(2)]
    model = make()
    for spy in spies:
        fit(model, [(spy, 1.0)], quick(max_holdout=60, max_updates=40))
    rows = np.array(sorted(spies[0].held_out()))
    assert len(rows) == 60
    assert (np.histogram(rows, 4, (0, 2000))[0] > 5).all()
    assert spies[0].held_out() == spies[1].held_out()
    assert not set.union(*spies[0].trained()) & set(range(2000)) - set(
        np.flatnonzero(row_hash(torch.arange(2000), 0) >= 0.1)
    )


def test_hash_looks_uniform_and_independent():
    n = torch.arange(200_000)
    salts = torch.randint(1 << 31, (4, 1))
    u = torch.cat([row_hash(n, 0).unsqueeze(0), row_hash(n, salts)])
    assert ((u >= 0) & (u < 1)).all()
    counts = torch.stack([torch.histc(x, 20, 0, 1) for x in u])
    assert ((counts - 10_000).abs() < 500).all()  # 5 s.e.
    assert (torch.corrcoef(u) - torch.eye(5)).abs().max() < 0.012
    assert torch.corrcoef(torch.stack([u[0, 1:], u[0, :-1]]))[0, 1].abs() < 0.012


def test_batches_are_drawn_by_share_and_error_is_weighted_by_share():
    a, b = system(400), system(300, seed=3, scale=2.0)
    spies = [Spy(dataset(a)), Spy(dataset(b)), Spy(dataset(a))]
    model = make()
    m = fit(model, [(spies[0], 0.5), (spies[1], 1.5), (spies[2], 0.0)], quick(max_updates=150, patience=100))
    drawn = [sum(call.numel() for call in spy.calls[2:]) for spy in spies[:2]]
    assert drawn[0] / sum(drawn) == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / (150 * 32)))
    assert sum(drawn) == 150 * 32 * 3
    assert spies[2].calls == []
    held = [x.map(lambda f, s=spy: f[s.calls[0]]) for x, spy in zip((a, b), spies, strict=False)]
    error = 0.25 * errors(model, held[0]) + 0.75 * errors(model, held[1])
    assert model.elites.tolist() == error.argsort()[:2].tolist()
    torch.testing.assert_close(m["holdout_mse"], error[model.elites].mean(), rtol=1e-4, atol=1e-6)


def test_a_part_with_very_few_rows_is_left_out_until_it_has_grown():
    buffer, data, old = ReplayBuffer(Spec(D, A), 1000), system(300), Spy(dataset(system(300)))
    model = make()
    for rows, used in ((slice(0, 0), False), (slice(0, 5), False), (slice(5, 300), True)):
        buffer.add(data.map(lambda x, r=rows: x[r]))
        new = Spy(buffer)
        fit(model, [(old, 0.5), (new, 0.5)], quick(max_updates=20))
        assert bool(new.calls) == used
    with pytest.raises(UserError, match="too few"):
        fit(model, [(old, 0.0), (Spy(ReplayBuffer(Spec(D, A), 10)), 1.0)], quick())


# ---- who keeps which weights


def mark(model: GaussianDynamics, value: float) -> None:
    with torch.no_grad():
        for p in model.net.parameters():
            p.fill_(value)


def test_only_members_that_improved_are_kept():
    model, cfg = make((2,)), quick(improvement=0.01, patience=2, min_updates=0)
    model.fitted.fill_(True)
    mark(model, 0.0)
    best = _Best(model, torch.ones(2, 3))
    looks = [
        [[0.5, 1.0, 2.0], [1.0, 1.0, 1.0]],  # seed 0: member 0 improves
        [
            [0.9, 1.0, 1.0],
            [1.0, 1.0, 0.995],
        ],  # nobody enough for patience: worse, equal, or better by less than 1 %
        [[0.6, 0.6, 1.0], [0.1, 0.1, 0.1]],  # seed 0: member 1 improves, so it goes on; seed 1 is over
        [[0.6, 0.6, 1.0], [0.1, 0.1, 0.1]],
        [[0.6, 0.6, 1.0], [0.1, 0.1, 0.1]],  # and now seed 0 is over too
    ]
    settled = []
    for i, error in enumerate(looks):
        mark(model, float(i + 1))
        best.look(torch.tensor(error), 10 * (i + 1), cfg)
        settled.append(best.settled())
    assert settled == [False, False, False, False, True]
    torch.testing.assert_close(best.error, torch.tensor([[0.5, 0.6, 1.0], [1.0, 1.0, 0.995]]))
    assert best.updates.tolist() == [50, 20]
    best.restore()
    kept = torch.tensor([[1.0, 3.0, 0.0], [0.0, 0.0, 2.0]])
    for name, p in model.net.named_parameters():
        # the variance's bounds are the seed's: from when any of its members improved last
        expected = kept if name.startswith("net.") else torch.tensor([3.0, 2.0])
        assert torch.equal(
            p, expected.reshape(*expected.shape, *[1] * (p.dim() - expected.dim())).expand_as(p)
        ), name
    assert not best.lost.any()


def test_small_steps_add_up_to_progress():
    """Each look is 0.6 % better than the one before: every second one counts."""
    model = make()
    model.fitted.fill_(True)
    best = _Best(model, torch.ones(3))
    for i in range(1, 9):
        best.look(torch.full((3,), 0.994**i), i, quick(patience=2))
        torch.testing.assert_close(best.error, torch.full((3,), 0.994**i))
        assert not best.settled()


def test_patience_waits_for_the_least_number_of_updates():
    model = make()
    model.fitted.fill_(True)
    best = _Best(model, torch.ones(3))
    for updates in (10, 20, 30):
        best.look(torch.ones(3), updates, quick(patience=2, min_updates=30))
        assert best.settled() == (updates == 30)


def test_a_first_fit_does_not_keep_the_initial_weights():
    model = make()
    best = _Best(model, torch.full((3,), 1e-9))
    best.look(torch.full((3,), 7.0), 1, quick())
    assert best.error.tolist() == [7.0] * 3


def test_little_data_still_gets_its_updates():
    for least, most in ((130, 200), (0, 129)):
        m = fit(
            make(),
            [(dataset(system(150)), 1.0)],
            quick(lr=0.0, patience=3, min_updates=least, max_updates=500),
        )
        assert least <= m["updates"].item() <= most
    assert fit(make(), [(dataset(system(150)), 1.0)], quick(max_updates=37))["updates"] <= 37


@pytest.mark.parametrize("lr", [1.0, 1e-3])
def test_a_refit_never_raises_the_holdout_error(lr):
    old, new = system(400), system(400, seed=3, scale=1.2)
    model = make()
    fit(model, [(dataset(old), 1.0)], quick(max_updates=300))
    parts = [(Spy(dataset(old)), 0.3), (Spy(dataset(new)), 0.7)]
    before = copy.deepcopy(model)
    fit(model, parts, quick(lr=lr, max_updates=200, min_updates=200))
    held = [x.map(lambda f, s=spy: f[s.calls[0]]) for x, (spy, _) in zip((old, new), parts, strict=True)]
    error = [sum(w * errors(m, h) for h, w in zip(held, (0.3, 0.7), strict=True)) for m in (before, model)]
    assert (error[1] <= error[0] * (1 + 1e-5)).all()
    if lr == 1e-3:
        assert (error[1] < 0.99 * error[0]).any()


def test_patience_is_counted_in_updates_however_few_rows_there_are():
    """After its best, a seed waits for `patience` looks of `epoch_updates` updates, not for passes through
    60 rows.
    """
    m = fit(
        make(), [(dataset(system(60, noise=0.3)), 1.0)], quick(patience=3, epoch_updates=20, max_updates=5000)
    )
    assert (m["updates"] % 20 == 0).all()
    assert (m["updates"] >= 4 * 20).all()
    assert (m["updates"] < 5000).all()


def test_seeds_do_not_touch():
    """Seed 0's rewards are poisoned: seed 1's model and the global generator end as they would have."""
    results = []
    for poison in (None, 1e6):
        torch.manual_seed(4)
        buffer, b = ReplayBuffer(Spec(D, A, (2,)), 500), system(400, noise=0.3)
        b = b.map(lambda x: torch.stack([x, x.flip(0)]))
        if poison:
            b.rew[0, ::2] = poison
        buffer.add(b)
        model = make((2,))
        m = fit(model, [(buffer, 1.0)], quick(patience=1, max_updates=1000, epoch_updates=10))
        model.step(b.obs, b.act)
        results.append((bits(model), m, torch.get_rng_state()))
    (clean, m0, rng0), (dirty, m1, rng1) = results
    for name, x in clean.items():
        if x.dim():
            assert torch.equal(x[1], dirty[name][1]), name
    assert not torch.equal(clean["net.net.layers.0.weight"][0], dirty["net.net.layers.0.weight"][0])
    assert m0["updates"][0] != m1["updates"][0]  # so the shared loop did run for another time
    assert all(torch.equal(m0[name][1], m1[name][1]) for name in m0)
    assert torch.equal(rng0, rng1)


@pytest.mark.parametrize("fitted", [False, True])
def test_non_finite_data_is_divergence(fitted):
    buffer, b = ReplayBuffer(Spec(D, A), 500), system(300)
    buffer.add(b)
    model = make()
    if fitted:
        fit(model, [(buffer, 1.0)], quick())
    b.rew[row_hash(torch.arange(300, 600), 0) >= 0.1] = (
        math.nan
    )  # of those that go to positions 300 on, none that is scored
    b.rew[200:] = 0.0  # these go to positions 0 on
    buffer.add(b)
    b.rew[:] = math.inf
    other = ReplayBuffer(Spec(D, A), 500)
    other.add(b)
    for source in (Spy(buffer), Spy(other)):
        with pytest.raises(Diverged, match="not finite"):
            fit(copy.deepcopy(model), [(source, 1.0)], quick(min_updates=1000, max_updates=1000))
        assert len(source.calls) <= 22  # it says so at the first look


# ---- scales


def test_scales_are_those_of_the_shares():
    """Far from zero too, where E[x²] - E[x]² has no digits left; and a constant dimension keeps 1."""
    a, b = system(400, offset=1000.0, scale=0.1), system(800, offset=1000.5, scale=0.2, seed=2)
    for x in (a, b):
        x.act[:, 1] = 0.5
    spies = [Spy(dataset(a)), Spy(dataset(b))]
    model = make()
    fit(model, [(spies[0], 3.0), (spies[1], 1.0)], quick(max_updates=1))
    rows = [spy.calls[1] for spy in spies]
    weights = np.concatenate([np.full(len(r), w / len(r)) for r, w in zip(rows, (0.75, 0.25), strict=True)])
    for stats, columns in (
        (model.inputs, lambda x: [x.obs, x.act]),
        (model.targets, lambda x: [x.next_obs - x.obs, x.rew.unsqueeze(-1)]),
    ):
        x = np.concatenate(
            [torch.cat(columns(p), -1)[r].double().numpy() for p, r in zip((a, b), rows, strict=True)]
        )
        mean = weights @ x
        std = np.sqrt(weights @ (x - mean) ** 2)
        np.testing.assert_allclose(stats.mean[0].numpy(), mean, rtol=1e-4, atol=1e-4)
        varies = std > 1e-3
        np.testing.assert_allclose(stats.std[0].numpy()[varies], std[varies], rtol=1e-2)
        assert (stats.std[0].numpy()[~varies] == 1).all()
    assert model.inputs.std[0, D + 1] == 1


@pytest.mark.parametrize("seeds", [(), (2,)])
@pytest.mark.parametrize(("factor", "renewed"), [(2.0, True), (1.2, False), (0.3, True)])
def test_renewed_scales_keep_the_function(seeds, factor, renewed):
    model = make(seeds)
    fit(model, [(dataset(system(400)), 1.0)], quick())
    before, targets = copy.deepcopy(model), bits(model)
    moved = system(400, scale=factor, offset=0.7, seed=5)
    fit(model, [(dataset(moved), 1.0)], quick(max_updates=0))
    assert torch.equal(before.inputs.std, model.inputs.std) != renewed
    if renewed:
        obs_std = model.inputs.std[..., :D]
        torch.testing.assert_close(obs_std, torch.full_like(obs_std, factor), rtol=0.15, atol=0)
    assert torch.equal(model.targets.std, targets["targets.std"])
    obs, act = torch.randn(2, *seeds, 50, D)[0], torch.rand(*seeds, 50, A)
    for old, new in zip(before.predict(obs, act), model.predict(obs, act), strict=True):
        torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-4)


def test_one_seed_may_be_renewed_alone():
    model, b = make((2,)), system(400)
    buffers = [ReplayBuffer(Spec(D, A, (2,)), 400) for _ in range(2)]
    buffers[0].add(b.map(lambda x: torch.stack([x, x])))
    fit(model, [(buffers[0], 1.0)], quick())
    wide = Batch(3 * b.obs, b.act, b.rew, b.next_obs, b.done)
    both = [torch.stack([getattr(wide, n), getattr(b, n)]) for n in ("obs", "act", "rew", "next_obs", "done")]
    buffers[1].add(Batch(*both))
    old = model.inputs.std.clone()
    fit(model, [(buffers[1], 1.0)], quick(max_updates=0))
    assert torch.equal(model.inputs.std[1], old[1])
    assert (model.inputs.std[0, 0, :D] > 2 * old[0, 0, :D]).all()


def test_targets_in_raw_units_if_asked():
    model = make(normalize_targets=False)
    fit(model, [(dataset(system(300)), 1.0)], quick())
    assert torch.equal(model.targets.std, torch.ones(1, D + 1))
    assert torch.equal(model.targets.mean, torch.zeros(1, D + 1))


# ---- draws


def telltale(seeds=(), elites=(3, 1, 4)) -> GaussianDynamics:
    """Member m adds 100 m to every observation and gives reward m: a draw tells where it comes from."""
    model = make(seeds, members=5, elites=3)
    last = model.net.net.layers[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(-1e3)  # log σ² as low as it gets
        for m in range(5):
            last.bias[..., m, :, :D] = 100.0 * m
            last.bias[..., m, :, D] = float(m)
    model.elites.copy_(torch.tensor(elites))
    return model


@pytest.mark.parametrize("seeds", [(), (2,)])
@pytest.mark.parametrize("via", ["step", "draw"])
@pytest.mark.parametrize("n", [1, 2, 3001])
def test_each_row_comes_from_one_random_elite(seeds, via, n):
    model = telltale(seeds)
    obs, act = torch.randn(*seeds, n, D), torch.rand(*seeds, n, A)
    next_obs, rew = model.step(obs, act) if via == "step" else model.draw(obs, *model.predict(obs, act))
    assert next_obs.shape == obs.shape
    assert rew.shape == (*seeds, n)
    who = rew.round()
    torch.testing.assert_close(next_obs - obs, (100 * who).unsqueeze(-1).expand_as(obs), atol=0.1, rtol=0)
    assert set(who.flatten().long().tolist()) <= {1, 3, 4}
    if n > 100:
        for row in who.reshape(-1, n):
            for e in (1, 3, 4):
                assert (row == e).float().mean().item() == pytest.approx(1 / 3, abs=0.05)
            assert (row[1:] == row[:-1]).float().mean().item() == pytest.approx(1 / 3, abs=0.05)  # no blocks
        if seeds:
            assert (who[0] == who[1]).float().mean().item() == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.parametrize("seeds", [(), (2,)])
def test_many_rows_are_predicted_as_few_are(seeds):
    """The model may compute in pieces: 5000 rows equal any of them alone."""
    model = make(seeds)
    obs, act = torch.randn(*seeds, 5000, D), torch.rand(*seeds, 5000, A)
    mean, std = model.predict(obs, act)
    for rows in (slice(0, 3), slice(2000, 2003), slice(4997, 5000)):
        few = model.predict(obs[..., rows, :], act[..., rows, :])
        for a, b in zip(few, (mean, std), strict=True):
            torch.testing.assert_close(a, b[..., rows, :], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("via", ["step", "draw"])
def test_draws_have_the_mixtures_moments(via):
    model = make((2,), members=4, elites=3)
    model.elites.copy_(torch.tensor([[0, 1, 3], [2, 1, 0]]))
    model.inputs.mean.normal_()
    model.inputs.std.uniform_(0.5, 2)
    model.targets.mean.normal_()
    model.targets.std.uniform_(0.5, 2)
    n = 40_000
    obs, act = torch.randn(2, 1, D).expand(2, n, D), torch.rand(2, 1, A).expand(2, n, A)
    mean, std = model.predict(obs, act)
    next_obs, rew = model.step(obs, act) if via == "step" else model.draw(obs, mean, std)
    y = torch.cat([next_obs - obs, rew.unsqueeze(-1)], -1)
    for s in range(2):
        mu = torch.stack([mean[s, e, 0] for e in model.elites[s]])
        var = torch.stack([std[s, e, 0] ** 2 for e in model.elites[s]])
        total = (var + mu**2).mean(0) - mu.mean(0) ** 2
        assert ((y[s].mean(0) - mu.mean(0)).abs() < 5 * (total / n).sqrt()).all()
        torch.testing.assert_close(y[s].var(0), total, rtol=0.05, atol=0)
        torch.testing.assert_close(model.elite_mean(mean)[s, 0], mu.mean(0))


# ---- on its own


def test_one_seed_on_its_own():
    model = make((2,))
    fit(model, [(dataset(system(300)), 1.0)], quick())
    obs, act = torch.randn(2, 20, D), torch.rand(2, 20, A)
    for k in range(2):
        alone = model.seed(k)
        assert alone.spec.seeds == ()
        assert torch.equal(alone.elites, model.elites[k])
        assert alone.fitted
        for a, b in zip(alone.predict(obs[k], act[k]), model.predict(obs, act), strict=True):
            torch.testing.assert_close(a, b[k])


@pytest.mark.parametrize("seeds", [(), (2,)])
def test_save_and_load(seeds, tmp_path):
    model = make(seeds)
    fit(model, [(dataset(system(300)), 1.0)], quick())
    model.save(tmp_path / "new" / "model", info={"env_id": "Nowhere-v0"})
    again = GaussianDynamics.load(tmp_path / "new" / "model")
    assert (again.spec, again.cfg) == (model.spec, model.cfg)
    assert same(bits(model), bits(again))
    obs, act = torch.randn(*seeds, 20, D), torch.rand(*seeds, 20, A)
    for a, b in zip(model.predict(obs, act), again.predict(obs, act), strict=True):
        assert torch.equal(a, b)
    # a refit holds out and hides the same rows
    spies = [Spy(dataset(system(300))), Spy(dataset(system(300)))]
    for m, spy in zip((model, again), spies, strict=True):
        torch.manual_seed(3)
        fit(m, [(spy, 1.0)], quick())
    assert same(bits(model), bits(again))


GARBAGE = {
    "nothing": {},
    "no weights": {"model.json": None},
    "not json": {"model.json": b"{", "model.safetensors": None},
    "json of another kind": {"model.json": b"[]", "model.safetensors": None},
    "not text": {"model.json": b"\xff\xfe\x00", "model.safetensors": None},
    "another format": {"model.json": b'{"format": "else"}', "model.safetensors": None},
    "empty config": {
        "model.json": b'{"format": "mbo2o-dynamics-1", "config": {}}',
        "model.safetensors": None,
    },
    "damaged weights": {"model.json": None, "model.safetensors": b"garbage" * 10},
    "no bytes": {"model.json": None, "model.safetensors": b""},
}


@pytest.mark.parametrize("files", GARBAGE.values(), ids=GARBAGE.keys())
def test_loading_something_else_is_one_line(files, tmp_path):
    make().save(tmp_path / "good")
    folder = tmp_path / "bad"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes((tmp_path / "good" / name).read_bytes() if content is None else content)
    with pytest.raises(UserError, match="bad") as e:
        GaussianDynamics.load(folder)
    assert "\n" not in str(e.value)


def test_loading_weights_of_another_shape(tmp_path):
    make().save(tmp_path / "a")
    make(hidden=(8,)).save(tmp_path / "b")
    (tmp_path / "a" / "model.safetensors").write_bytes((tmp_path / "b" / "model.safetensors").read_bytes())
    with pytest.raises(UserError) as e:
        GaussianDynamics.load(tmp_path / "a")
    assert "\n" not in str(e.value)


def test_sizes_that_a_file_claims_are_not_allocated(tmp_path):
    make().save(tmp_path / "a")
    about = json.loads((tmp_path / "a" / "model.json").read_text())
    about["config"] |= {"members": 100}
    about["config"]["net"]["hidden"] = [3000, 3000]  # 3.6 GB
    (tmp_path / "a" / "model.json").write_text(json.dumps(about))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="size mismatch"):
        GaussianDynamics.load(tmp_path / "a")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_impossible_settings_are_refused():
    with pytest.raises(UserError, match="elites=4"):
        make(elites=4)
    with pytest.raises(UserError, match="too few"):
        fit(make(), [(dataset(system(5)), 1.0)], quick())


def test_an_exploded_model_is_a_divergence():
    model, buffer = make(()), ReplayBuffer(Spec(D, A), 400)
    x = torch.randn(400, D)
    buffer.add(
        Batch(x, torch.zeros(400, A), torch.zeros(400), x + 0.1 * torch.randn(400, D), torch.zeros(400))
    )
    with pytest.raises(Diverged, match="targets' own size"):
        fit(model, [(buffer, 1.0)], quick(lr=50.0, min_updates=3, max_updates=3, epoch_updates=3))


@pytest.mark.parametrize(("rows", "batch", "looks_at"), [(1000, 32, 250), (20_000, 32, 20_000 * 0.9 / 32)])
def test_patience_waits_for_passes_through_the_data_and_no_fewer_than_250_updates(
    rows, batch, looks_at, monkeypatch
):
    """MOPO counts passes. At a rate of 0 nothing improves after the first look, and the fit ends one look
    later.
    """
    cfg = FitConfig(lr=0.0, batch=batch, patience=1, min_updates=0)
    looks = []
    look = _Best.look
    monkeypatch.setattr(
        _Best,
        "look",
        lambda self, error, updates, cfg: (looks.append(updates), look(self, error, updates, cfg))[1],
    )
    fit(make(hidden=(4,), members=2), [(dataset(system(rows)), 1.0)], cfg)
    assert looks[0] == pytest.approx(looks_at, rel=0.02)
    assert looks[1] == 2 * looks[0]
    assert len(looks) == 2
