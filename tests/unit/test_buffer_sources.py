"""The ring against a Python list per seed, and mixtures against what they promise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mbo2o.data.buffer import ReplayBuffer
from mbo2o.data.dataset import TransitionDataset
from mbo2o.sources.aged import offline_share
from mbo2o.sources.mixtures import Blend, Mix
from mbo2o.store import datasets
from mbo2o.store.hdf5 import write_hdf5
from mbo2o.types import Batch, Spec, UserError

FIELDS = ("obs", "act", "rew", "next_obs", "done")
CPU = settings(deadline=None, max_examples=200)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def numbered(first: int, n: int, seeds=()) -> Batch:
    """Rows that all tell their number; another seed's are 1000 higher."""
    k = torch.arange(first, first + n, dtype=torch.float32).expand(*seeds, n).clone()
    for s in range(seeds[0] if seeds else 0):
        k[s] += 1000 * s
    obs = k.unsqueeze(-1) + torch.tensor([0.0, 0.25])
    return Batch(obs, k.unsqueeze(-1) / 1e4, k, obs + 1, (k % 5 == 4).float())


def numbers(b: Batch) -> Tensor:
    """The rows' numbers, after a look whether all fields agree on them."""
    k, expected = b.rew % 1000, numbered(0, 1000)
    for name in FIELDS:
        want = getattr(expected, name)[k.long()]
        got = getattr(b, name)
        seed = (b.rew // 1000).unsqueeze(-1) if want.dim() > k.dim() else b.rew // 1000
        scale = {"obs": 1000, "next_obs": 1000, "act": 0.1, "rew": 1000, "done": 0}[name]
        torch.testing.assert_close(got, want + scale * seed, rtol=0, atol=1e-4)
    return b.rew


def make(capacity=10, seeds=()) -> ReplayBuffer:
    return ReplayBuffer(Spec(2, 1, seeds), capacity)


@pytest.mark.parametrize("seeds", [(), (2,)])
def test_a_ring_keeps_the_youngest_rows_in_order(seeds):
    buffer = make(seeds=seeds)
    assert len(buffer) == 0
    added = 0
    for n in (3, 4, 1, 7, 10, 2, 9):
        buffer.add(numbered(added, n, seeds))
        added += n
        size = min(added, 10)
        assert len(buffer) == size
        assert buffer.index.tolist() == list(range(size))
        for want in (1, 4, 10, 50):
            young = numbers(buffer.latest(want))
            assert torch.equal(young, numbered(added - min(want, size), min(want, size), seeds).rew)
        drawn = numbers(buffer.sample(500))
        assert drawn.shape == (*seeds, 500)
        for s, row in enumerate(drawn.reshape(-1, 500)):
            assert set(row.tolist()) == {1000.0 * s + i for i in range(added - size, added)}


@CPU
@given(
    st.lists(
        st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=8), max_size=12
    ),
    st.integers(8, 12),
)
def test_masked_adds_equal_a_list_per_seed(adds, capacity):
    buffer, lists, added = make(capacity, (3,)), [[], [], []], 0
    for rows in adds:
        keep = torch.tensor(rows).T
        b = numbered(added, len(rows), (3,))
        buffer.add(b, keep=keep)
        added += len(rows)
        for s in range(3):
            lists[s] += b.rew[s][keep[s]].tolist()
    size = min(len(x) for x in lists)
    assert len(buffer) == min(size, capacity)
    if size:
        young = numbers(buffer.latest(capacity))
        n = min(size, capacity)
        assert young.tolist() == [x[-n:] for x in lists]
        drawn = numbers(buffer.sample(60))
        for s in range(3):
            assert set(drawn[s].tolist()) <= set(lists[s][-capacity:])  # never a row that was not written


def test_each_seed_draws_from_all_of_its_own():
    """Seeds of different fill: the fuller one is not cut down to the emptier one's size."""
    buffer = make(100, (2,))
    keep = torch.ones(2, 60, dtype=torch.bool)
    keep[0, 5:] = False
    buffer.add(numbered(0, 60, (2,)), keep=keep)
    drawn = numbers(buffer.sample(2000))
    assert set(drawn[0].tolist()) == set(range(5))
    assert set(drawn[1].tolist()) == {1000.0 + i for i in range(60)}
    assert len(buffer) == 5


def test_draws_are_uniform():
    buffer = make(20)
    buffer.add(numbered(0, 20))
    counts = torch.bincount(buffer.sample(100_000).rew.long(), minlength=20)
    assert (counts - 5000).abs().max() < 4.5 * math.sqrt(5000 * 0.95)


@pytest.mark.parametrize("seeds", [(), (2,)])
def test_rows_by_position(seeds):
    buffer = make(seeds=seeds)
    buffer.add(numbered(0, 8, seeds))
    index = torch.randint(8, (*seeds, 5))
    expected = index.float() + (torch.tensor([[0.0], [1000.0]]) if seeds else 0)
    assert torch.equal(numbers(buffer.rows(index)), expected)


@pytest.mark.parametrize("gamma", [None, 0.9])
def test_a_cut_ends_one_seeds_episode_where_it_stands(gamma, tmp_path):
    buffer = ReplayBuffer(Spec(2, 1, (2,)), 5, gamma)
    buffer.cut(0)  # before anything was written: nothing
    for i in range(3):
        step = numbered(i, 1, (2,))
        step.done.zero_()
        buffer.add(step)
    buffer.cut(1)
    buffer.cut(1)
    step = numbered(3, 1, (2,))
    step.done.fill_(1)
    buffer.add(step)
    for seed in range(2):
        write_hdf5(tmp_path / f"{seed}.hdf5", buffer.record(seed), {})
    cuts = [datasets.read(tmp_path / f"{seed}.hdf5").truncated.tolist() for seed in range(2)]
    assert cuts == [[False] * 4, [False, False, True, False]]
    if gamma:  # returns of what was cut stay unknown, and do not reach into it from the next episode
        returns = buffer.latest(4).mc_return.tolist()
        assert returns[1][:3] == [-math.inf] * 3
        assert returns[1][3] == pytest.approx(1003)
        assert returns[0][0] == pytest.approx(0 + 0.9 + 0.81 * 2 + 0.729 * 3)


def test_an_empty_buffer_and_too_many_rows_are_refused():
    buffer = make(4)
    with pytest.raises(ValueError, match="empty"):
        buffer.sample(1)
    with pytest.raises(ValueError, match="5 rows"):
        buffer.add(numbered(0, 5))
    assert len(buffer) == 0
    with pytest.raises(ValueError, match="empty"):
        buffer.sample(1)
    buffer.add(numbered(0, 0))
    assert len(buffer) == len(buffer.latest(3).rew) == 0
    buffer.add(numbered(7, 2))
    assert numbers(buffer.latest(9)).tolist() == [7, 8]


@pytest.mark.parametrize("first", [6, 17])
def test_the_state_of_a_buffer_round_trips(first):
    """Also of a ring that has wrapped: what is added next goes to the same place."""
    ours, theirs = make(seeds=(2,)), make(seeds=(2,))
    theirs.add(numbered(500, 9, (2,)))  # to be forgotten
    for i in range(0, first, 6):
        keep = torch.ones(2, 6, dtype=torch.bool)
        keep[0, i % 5] = False
        ours.add(numbered(i, 6, (2,)), truncated=torch.ones(2, 6), keep=keep)
    theirs.load_state_dict(ours.state_dict())
    for step in range(3):
        assert len(ours) == len(theirs)
        for name in FIELDS:
            assert torch.equal(getattr(ours.latest(10), name), getattr(theirs.latest(10), name))
        torch.manual_seed(step)
        mine = numbers(ours.sample(50))
        torch.manual_seed(step)
        assert torch.equal(mine, numbers(theirs.sample(50)))
        for buffer in (ours, theirs):
            buffer.add(numbered(100 + 5 * step, 5, (2,)))


def test_state_is_a_copy():
    buffer = make()
    buffer.add(numbered(0, 10))
    state = buffer.state_dict()
    buffer.add(numbered(50, 3))
    again = make()
    again.load_state_dict(state)
    assert torch.equal(numbers(again.latest(10)), torch.arange(10.0))


@pytest.mark.parametrize("n", [7, 23])
@pytest.mark.parametrize("seed", [0, 1])
def test_saved_rows_are_a_dataset_in_time_order(n, seed, tmp_path):
    buffer = make(10, (2,))
    truncated = torch.zeros(2, n)
    truncated[:, 2::7] = 1  # numbers 2, 9, 16 …: none of them terminal (4, 9 …) but 9
    b = numbered(0, n, (2,))
    truncated[b.done > 0] = 0
    for i in range(n):
        buffer.add(b.map(lambda x, i=i: x[:, i : i + 1]), truncated=truncated[:, i : i + 1])
    write_hdf5(tmp_path / "out.hdf5", buffer.record(seed), {"env_id": "Nowhere-v0"})
    data = datasets.read(tmp_path / "out.hdf5")
    kept = slice(max(0, n - 10), n)
    assert data.n_rows == len(data) == min(n, 10)
    for name, x in (("obs", data.obs), ("act", data.act), ("rew", data.rew), ("next_obs", data.next_obs)):
        want = getattr(b, name)[seed, kept]
        torch.testing.assert_close(x, want, rtol=0, atol=0)
    assert torch.equal(data.terminated, b.done[seed, kept] > 0)
    expected = truncated[seed, kept] > 0
    expected[-1] |= b.done[seed, n - 1] == 0  # the episode in flight is closed as cut
    assert torch.equal(data.truncated, expected)
    assert data.attrs["env_id"] == "Nowhere-v0"


def test_writing_an_empty_record_is_a_users_mistake(tmp_path):
    with pytest.raises(UserError, match="no rows"):
        write_hdf5(tmp_path / "out.hdf5", make().record(0), {})


# ---- sources


class Fixed:
    """A source of rows that all hold one number."""

    def __init__(self, value: float, size: int = 10):
        self.value, self.size = value, size

    def __len__(self):
        return self.size

    def sample(self, n: int) -> Batch:
        assert n > 0
        k = torch.full((n,), self.value)
        return Batch(k.unsqueeze(-1), k.unsqueeze(-1), k, k.unsqueeze(-1), k)


@pytest.mark.parametrize("share", [0, 0.25, 0.5, 1])
@pytest.mark.parametrize("n", [4, 256])
def test_mix_is_exact(share, n):
    mix = Mix((Fixed(0, 7), share), (Fixed(1, 90), 1 - share))
    assert mix.counts(n) == [n * share, n * (1 - share)]
    b = mix.sample(n)
    for name in FIELDS:
        x = getattr(b, name).flatten()
        assert len(x) == n
        assert (x == 0).sum() == n * share
    assert len(mix) == 97


@CPU
@given(
    st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=6).filter(
        lambda x: sum(x) > 1e-300
    ),
    st.integers(1, 5000),
)
def test_mix_counts_add_up_and_are_within_one(shares, n):
    counts = Mix(*[(Fixed(i), share) for i, share in enumerate(shares)]).counts(n)
    total = math.fsum(shares)
    assert sum(counts) == n
    for count, share in zip(counts, shares, strict=True):
        assert abs(count - n * share / total) < 1 + 1e-6
        assert count == 0 or share > 0


@pytest.mark.parametrize(
    ("shares", "n", "counts"),
    [([0.2, 0.5, 0.3], 3, [1, 1, 1]), ([0.0, 1.0, 1.0], 3, [0, 2, 1]), ([1.0, 2.0, 7.0], 4, [0, 1, 3])],
)
def test_mix_rounds_by_largest_remainder(shares, n, counts):
    assert Mix(*[(Fixed(i), share) for i, share in enumerate(shares)]).counts(n) == counts


@pytest.mark.parametrize("shares", [[0.0, 0.0], [1.0, -0.5], [-1.0, -1.0]])
def test_mix_refuses(shares):
    with pytest.raises(ValueError, match="shares"):
        Mix(*[(Fixed(0), share) for share in shares])


def pair(n_old: int, n_new: int, seeds=()) -> tuple[TransitionDataset, ReplayBuffer]:
    """Offline rows have reward 0 … n_old - 1, online ones 500 …"""
    old = numbered(0, n_old)
    data = TransitionDataset.from_arrays(
        old.obs.numpy(),
        old.act.numpy(),
        old.rew.numpy(),
        old.done.numpy(),
        next_observations=old.next_obs.numpy(),
    )
    buffer = make(400, seeds)
    if n_new:
        new = numbered(500, n_new)
        buffer.add(new.map(lambda x: x.expand(*seeds, *x.shape)))
    return data.with_seeds(seeds), buffer


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.93, 1.0])
def test_blend_draws_by_share_row_by_row(share):
    n = 100_000
    b = Blend(*pair(40, 30, (2,)), share).sample(n)
    numbers(b)  # each row's fields come from one source
    old = b.rew < 500
    error = 3.5 * math.sqrt(share * (1 - share) / n)
    assert (old.float().mean(-1) - share).abs().max() <= error
    # independent: neighbours and seeds agree as often as strangers
    agree = share**2 + (1 - share) ** 2
    for x, y in ((old[0, 1:], old[0, :-1]), (old[0], old[1])):
        assert (x == y).float().mean().item() == pytest.approx(
            agree, abs=4 * math.sqrt(agree * (1 - agree) / n) + 1e-6
        )


def test_blend_before_anything_is_online():
    blend = Blend(*pair(40, 0), 0.3)
    assert blend.share == 1
    assert (blend.sample(50).rew < 500).all()
    assert [share for _, share in blend.weighted_rows] == [1, 0]


def test_a_blend_has_weighted_rows_for_a_fit():
    data, buffer = pair(40, 30)
    blend = Blend(data, buffer, 0.3)
    assert [source for source, _ in blend.weighted_rows] == [data, buffer]
    assert [share for _, share in blend.weighted_rows] == [0.3, 0.7]
    assert len(blend) == 70


@CPU
@given(st.integers(1, 300), st.integers(0, 300), st.floats(1e-6, 1))
def test_share_equals_prioritised_probabilities(n_old, n_new, priority):
    p = np.array([priority] * n_old + [1.0] * n_new)
    assert offline_share(priority, n_old, n_new) == pytest.approx((p / p.sum())[:n_old].sum(), rel=1e-9)


def test_share_at_the_ends():
    assert offline_share(1.0, 300, 100) == 0.75  # uniform over the union
    assert offline_share(0.0, 300, 100) == 0.0  # pure online
    assert offline_share(0.5, 300, 0) == 1.0
    assert offline_share(0.0, 300, 0) == 1.0  # nothing else is there to draw from


@pytest.mark.parametrize(("priority", "uniform"), [(1.0, True), (0.5, False)])
def test_priority_one_is_uniform_over_the_union(priority, uniform):
    n_old, n_new, n = 30, 20, 100_000
    drawn = Blend(*pair(n_old, n_new), offline_share(priority, n_old, n_new)).sample(n).rew.long()
    drawn = torch.where(drawn >= 500, drawn - 500 + n_old, drawn)
    expected = torch.tensor([priority] * n_old + [1.0] * n_new)
    expected = n * expected / expected.sum()
    counts = torch.bincount(drawn, minlength=n_old + n_new)
    assert ((counts - expected).abs() < 4.5 * expected.sqrt()).all()
    assert uniform == bool((counts - n / 50).abs().max() < 4.5 * math.sqrt(n / 50))
