"""The packed row: one order of columns for datasets, buffers, batches and files."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbo2o.data.buffer import ReplayBuffer
from mbo2o.data.dataset import TransitionDataset, fields_of
from mbo2o.data.layout import RETURN, TRUNCATED, RowLayout
from mbo2o.types import Batch, Spec

COMBINATIONS = [(), (TRUNCATED,), (RETURN,), (TRUNCATED, RETURN)]
NAMES = ("obs", "act", "rew", "next_obs", "done", "mc_return")


def batch(seeds, rows, obs_dim, act_dim, returns, generator):
    def draw(*shape):
        return torch.randn(*seeds, rows, *shape, generator=generator)

    mc = draw() if returns else None
    done = (draw() > 0).float()
    return Batch(draw(obs_dim), draw(act_dim), draw(), draw(obs_dim), done, mc)


@settings(deadline=None, max_examples=60)
@given(
    more=st.sampled_from(COMBINATIONS),
    obs_dim=st.integers(1, 5),
    act_dim=st.integers(1, 4),
    rows=st.integers(1, 6),
    seeds=st.sampled_from([(), (1,), (3,), (2, 2)]),
    seed=st.integers(0, 2**31),
)
def test_a_row_round_trips_for_every_combination_of_fields(more, obs_dim, act_dim, rows, seeds, seed):
    layout = RowLayout(obs_dim, act_dim, *more)
    generator = torch.Generator().manual_seed(seed)
    b = batch(seeds, rows, obs_dim, act_dim, RETURN in more, generator)
    truncated = (torch.rand(b.rew.shape, generator=generator) < 0.5).float()
    packed = layout.pack(b, truncated)
    assert (
        packed.shape == (*seeds, rows, layout.width) == (*seeds, rows, 2 * obs_dim + act_dim + 2 + len(more))
    )
    back = layout.unpack(packed)
    for name in NAMES:
        left, right = getattr(back, name), getattr(b, name)
        assert (left is None) == (right is None), name
        assert left is None or torch.equal(left, right), name
    if TRUNCATED in more:
        assert torch.equal(packed[..., layout.column(TRUNCATED)], truncated)


def test_the_order_of_columns_is_that_of_stored_checkpoints():
    layout = RowLayout(2, 1, TRUNCATED, RETURN)
    assert layout.columns == {
        "obs": slice(0, 2),
        "act": slice(2, 3),
        "rew": slice(3, 4),
        "next_obs": slice(4, 6),
        "done": slice(6, 7),
        TRUNCATED: slice(7, 8),
        RETURN: slice(8, 9),
    }


def test_an_unknown_return_and_an_unset_truncation_have_their_values():
    layout = RowLayout(1, 1, TRUNCATED, RETURN)
    b = batch((), 4, 1, 1, False, torch.Generator().manual_seed(0))
    packed = layout.pack(b)
    assert packed[:, layout.column(TRUNCATED)].tolist() == [0] * 4
    assert packed[:, layout.column(RETURN)].tolist() == [-torch.inf] * 4


def test_arrays_and_tensors_fill_the_same_row():
    layout = RowLayout(3, 2)
    b = batch((), 5, 3, 2, False, torch.Generator().manual_seed(1))
    out = np.empty((5, layout.width), np.float32)
    layout.fill(out, **{name: getattr(b, name).numpy() for name in NAMES[:5]})
    assert torch.equal(torch.from_numpy(out), layout.pack(b))


@pytest.mark.parametrize("gamma", [None, 0.9])
def test_a_buffer_and_the_dataset_of_its_record_hold_the_same_rows(gamma):
    buffer = ReplayBuffer(Spec(3, 2, (2,)), 8, gamma=gamma)
    generator = torch.Generator().manual_seed(2)
    for _ in range(11):
        buffer.add(
            batch((2,), 1, 3, 2, False, generator), (torch.rand(2, 1, generator=generator) < 0.3).float()
        )
    for seed in range(2):
        record = buffer.record(seed)
        dataset = TransitionDataset.from_arrays(**record | {"actions": record["actions"].clip(-1, 1)})
        rows = buffer.latest(8)
        for name in ("obs", "next_obs", "rew"):
            assert torch.equal(getattr(dataset, name), getattr(rows, name)[seed]), name
        again = fields_of(dataset)
        for name in ("observations", "rewards", "terminals", "next_observations"):
            np.testing.assert_array_equal(again[name], record[name])
