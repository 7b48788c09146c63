"""Balanced replay: the sum tree against a brute-force sampler, the ratio on samplers that agree and that do
not.
"""

import numpy as np
import pytest
import torch

from mbo2o.data.buffer import ReplayBuffer
from mbo2o.data.dataset import TransitionDataset
from mbo2o.data.sumtree import SumTree
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.run.engine import Engine, EngineConfig
from mbo2o.sources.balanced import CEILING, FLOOR, Balanced, BalancedConfig
from mbo2o.sources.ratio import ratio_loss
from mbo2o.types import Batch, Spec, UserError


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


# ---- the tree


@pytest.mark.parametrize("capacity", [1, 2, 5, 8, 37])
def test_tree_draws_as_a_search_through_sums_does(capacity):
    rng = np.random.default_rng(capacity)
    tree, plain = SumTree(2, capacity), np.zeros((2, capacity))
    for _ in range(5):
        leaf = rng.integers(capacity, size=(2, 4))
        priority = rng.uniform(0.1, 3, (2, 4)) * (rng.uniform(size=(2, 4)) < 0.8)
        tree.set(leaf, priority)
        for k in range(2):
            for j, p in zip(leaf[k], priority[k], strict=True):
                plain[k, j] = p
    tree.set(np.zeros((2, 1), int), np.full((2, 1), 0.7))
    plain[:, 0] = 0.7
    assert np.allclose(tree.nodes[:, tree.size : tree.size + capacity], plain)
    assert np.allclose(tree.nodes[:, 1], plain.sum(1))
    chance = rng.uniform(size=(2, 500))
    expected = [
        np.searchsorted(np.cumsum(plain[k]), chance[k] * plain[k].sum(), side="right") for k in range(2)
    ]
    assert (tree.draw(chance) == np.stack(expected)).mean() > 0.99  # sums in another order round differently


def test_tree_draws_in_proportion():
    tree = SumTree(1, 6)
    weight = np.array([[0.0, 1, 2, 0, 5, 0.5]])
    tree.set(np.arange(6)[None], weight)
    n = 200_000
    counts = np.bincount(tree.draw(np.random.default_rng(0).uniform(size=(1, n)))[0], minlength=6) / n
    share = weight[0] / weight.sum()
    assert np.abs(counts - share).max() < 4 * np.sqrt(share.max() / n)
    assert counts[0] == counts[3] == 0


def test_tree_never_draws_what_has_no_priority():
    tree = SumTree(1, 5)
    tree.set(np.array([[1, 3]]), np.array([[1e-3, 1e3]]))
    edge = np.array([[0, np.nextafter(1, 0), 1e-6, 1 - 1e-12]])
    assert set(tree.draw(edge)[0]) <= {1, 3}


# ---- the ratio


def test_ratio_loss_by_hand():
    off, on = torch.tensor([[0.5, 2.0]]), torch.tensor([[1.0, 3.0]])
    expected = np.mean([np.log(0.75), np.log(1.5)]) - np.mean([np.log(1.0), np.log(6 / 4)])
    assert ratio_loss(off, on).item() == pytest.approx(expected, rel=1e-5)
    assert ratio_loss(torch.ones(1, 3), torch.ones(1, 3)).item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(ratio_loss(torch.zeros(1, 3), torch.zeros(1, 3))).all()  # a dead relu


def test_ratio_loss_is_least_at_the_true_ratio():
    p_off, p_on = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.3, 0.6])

    def loss(w):
        return (p_off * np.log((w + 1) / 2)).sum() - (p_on * np.log(2 * w / (w + 1))).sum()

    best, rng = loss(p_on / p_off), np.random.default_rng(0)
    assert all(loss(p_on / p_off * np.exp(rng.normal(0, 0.3, 3))) > best for _ in range(100))


def dataset(obs: np.ndarray) -> TransitionDataset:
    n = len(obs)
    obs = obs.astype(np.float32)
    acts = np.zeros((n, 1), np.float32)
    ends = np.arange(n) % 50 == 49
    return TransitionDataset.from_arrays(
        obs, acts, np.arange(n, dtype=np.float32), ends, None, np.roll(obs, -1, axis=0)
    )


def replay(centre: float, seeds=(2,), n=200, **cfg) -> Balanced:
    """Offline states around 0, online ones around `centre`; rewards are row numbers, online ones from 1000."""  # noqa: E501
    rng = np.random.default_rng(0)
    spec = Spec(2, 1, seeds)
    online = ReplayBuffer(spec, 64)
    b = 40
    obs = torch.from_numpy(rng.normal(centre, 1, (*seeds, b, 2))).float()
    rew = torch.arange(1000.0, 1000 + b).expand(*seeds, b)
    online.add(Batch(obs, torch.zeros(*seeds, b, 1), rew, obs, torch.zeros(*seeds, b)))
    offline = dataset(rng.normal(0, 1, (n, 2))).with_seeds(seeds)
    settings = BalancedConfig(**{"ratio": MLPConfig(hidden=[32]), "lr": 3e-3} | cfg)
    return Balanced(settings, spec, offline, online, b)


def taught(centre: float, steps=300) -> Balanced:
    source = replay(centre)
    source.enter(40)
    for _ in range(steps):
        source.learn(source.sample(128))
    return source


def test_ratio_is_one_where_the_samplers_agree():
    source = taught(0.0)
    b = source.offline.sample(500)
    assert source.ratio(b).mean().item() == pytest.approx(1, abs=0.3)


def test_ratio_tells_samplers_apart_that_do_not():
    source = taught(6.0)
    old, young = source.ratio(source.offline.sample(500)), source.ratio(source.online.sample(500))
    assert young.median() > 10
    assert old.mean() < 0.1
    # so offline rows are hardly drawn any more, though there are five of them for each online one
    assert (source.sample(2000).rew >= 1000).float().mean() > 0.9


# ---- the source


@pytest.mark.parametrize("share", [0.5, 0.75])
def test_first_online_rows_get_their_share(share):
    source = replay(0.0, first_share=share)
    assert (source.sample(500).rew < 1000).all()
    source.enter(40)
    found = (source.sample(20_000).rew >= 1000).float().mean(-1)
    assert found.shape == (2,)
    assert torch.allclose(found, torch.tensor(share), atol=0.02)


def test_rows_are_what_their_leaves_stand_for():
    source = replay(3.0)
    source.enter(40)
    b = source.sample(300)
    for k in range(2):
        for i in range(300):
            row = int(b.rew[k, i])
            kept = source.online.rows(torch.full((2, 1), row - 1000)) if row >= 1000 else None
            expected = kept.obs[k, 0] if kept else source.offline.rows(torch.tensor([row])).obs[0]
            assert torch.equal(b.obs[k, i], expected)


def test_priorities_of_the_drawn_are_renewed_and_no_others():
    source = replay(0.0, seeds=())
    source.enter(40)
    before = source.tree.nodes.copy()
    drawn = source.sample(16)
    leaves = set(source._drawn[0])
    source.learn(drawn)
    size = source.tree.size
    changed = set(np.flatnonzero(source.tree.nodes[0, size:] != before[0, size:]))
    assert changed
    assert changed <= leaves
    assert source.tree.nodes[0, size:][sorted(changed)].min() >= FLOOR
    assert source.tree.nodes[0, size:].max() <= max(CEILING, before[0, size:].max())


def test_new_rows_enter_with_the_highest_priority_and_overwrite_the_oldest():
    source = replay(0.0, seeds=())
    source.enter(40)
    source.top.fill_(7.0)
    one = source.online.rows(torch.zeros(1, dtype=torch.int64))
    for _ in range(30):
        source.online.add(one)
    source.enter(70)  # a ring of 64: rows 40 to 63, then 0 to 5
    leaves = source.tree.nodes[0, source.tree.size + 200 : source.tree.size + 264]
    assert (leaves == 7).nonzero()[0].tolist() == [*range(6), *range(40, 64)]
    source.enter(70)
    assert source.tree.nodes[0, 1] == pytest.approx(source.tree.nodes[0, source.tree.size :].sum())


def test_state_restores_draws():
    source, other = taught(2.0, 20), replay(2.0)
    other.load_state_dict({k: v.clone() for k, v in source.state_dict().items()})
    for x in (source, other):
        torch.manual_seed(5)
        x.found = x.sample(50)
        x.metrics = x.learn(x.found)
    assert torch.equal(source.found.rew, other.found.rew)
    assert all(torch.equal(source.metrics[k], other.metrics[k]) for k in source.metrics)
    assert np.array_equal(source.tree.nodes, other.tree.nodes)


def test_what_cannot_be_is_one_line():
    with pytest.raises(UserError, match="first_share"):
        replay(0.0, first_share=1.0)
    with pytest.raises(UserError, match="temperature"):
        replay(0.0, temperature=0.0)


@pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "trace_autograd_ops"), reason="this torch traces no autograd.grad"
)
@pytest.mark.slow
def test_a_compiled_ratio_learns_what_the_eager_one_does():
    found = []
    for mode in ("eager", "compiled"):
        torch.manual_seed(0)
        source = replay(1.0)
        source.prepare(Engine(EngineConfig(mode)).prepare)
        source.enter(40)
        metrics = [source.learn(source.sample(32)) for _ in range(100)]
        found.append((dict(source.state_dict()), metrics))
    (eager, before), (compiled, after) = found
    for name, x in eager.items():
        torch.testing.assert_close(compiled[name], x, rtol=1e-3, atol=1e-4)
    for mine, theirs in zip(after, before, strict=True):
        for name, x in theirs.items():
            torch.testing.assert_close(mine[name], x, rtol=1e-3, atol=1e-4)


def test_the_engine_of_a_run_makes_the_ratios_steps():
    source, calls = replay(1.0), []
    source.prepare(lambda step: lambda *args: calls.append(len(args)) or step(*args))
    source.enter(40)
    for _ in range(3):
        source.learn(source.sample(16))
    assert calls == [3, 3, 3]
