"""Adding and drawing never wait for the device, and a captured draw follows buffers as they grow."""

import pytest
import torch
from nosync import no_host_reads, refusing
from torch.fx.experimental.proxy_tensor import make_fx

from mbo2o.data.buffer import ReplayBuffer
from mbo2o.data.dataset import TransitionDataset
from mbo2o.sources import make_source
from mbo2o.sources.aged import Aged, AgedConfig
from mbo2o.sources.anneal import AnnealConfig
from mbo2o.sources.append import AppendConfig
from mbo2o.sources.distilled import DistilledConfig
from mbo2o.sources.mix import MixConfig
from mbo2o.sources.mixtures import Blend, Mix, Youngest
from mbo2o.sources.online import OnlineConfig
from mbo2o.types import Batch, Spec

SEEDS = (2,)
SPEC = Spec(2, 1, SEEDS)
LEARNING = (OnlineConfig(), MixConfig(), AnnealConfig(), AppendConfig(), AgedConfig(), DistilledConfig())


def numbered(first, n) -> Batch:
    """Online rows, whose reward is their number; offline rows have negative ones."""
    k = torch.arange(first, first + n, dtype=torch.float32).expand(*SEEDS, n).clone()
    obs = torch.stack([k, k], -1)
    return Batch(obs, torch.zeros(*SEEDS, n, 1), k, obs, torch.zeros(*SEEDS, n))


def offline(n=40) -> TransitionDataset:
    obs = -torch.ones(n + 1, 2).numpy()
    flags = (torch.arange(n) == n - 1).numpy()
    made = TransitionDataset.from_arrays(
        obs[:-1], obs[:-1, :1], obs[:-1, 0], flags, flags & False, next_observations=obs[1:]
    )
    return made.with_seeds(SEEDS)


def sources(online) -> dict:
    """Everything that batches are drawn from, by name."""
    data = offline()
    drawn = {
        "dataset": data,
        "shaped dataset": data.with_reward(2.0, 0.0).with_returns(0.9),
        "buffer": online,
        "youngest": Youngest(online, 1000),
        "mix": Mix((data, 0.5), (online, 0.5)),
        "blend": Blend(data, online, 0.5),
        "blend and youngest": Mix((Blend(data, online, 0.5), 0.2), (Youngest(online, 1000), 0.8)),
        "mix that holds other returns": Mix((data.with_returns(0.9), 0.5), (online, 0.5)),
    }
    for cfg in LEARNING:
        drawn[type(cfg).__name__] = made = make_source(cfg, SPEC, data, online)
        made.advance(1)
    return drawn


NAMES = tuple(sources(ReplayBuffer(SPEC, 200)))


@pytest.mark.parametrize("name", NAMES)
def test_drawing_reads_nothing_back(name):
    online = ReplayBuffer(SPEC, 200)
    online.add(numbered(0, 10))
    source = sources(online)[name]
    keep = torch.rand(*SEEDS, 30) < 0.5
    with no_host_reads():
        source.sample(16)
        online.add(numbered(10, 30), keep=keep)  # how full the buffer is, only the device knows
        found = source.sample(16)
    assert found.rew.shape == (*SEEDS, 16)


@pytest.mark.parametrize("name", NAMES)
def test_a_captured_draw_reaches_rows_that_were_added_later(name):
    online = ReplayBuffer(SPEC, 200)
    online.add(numbered(0, 10))
    source = sources(online)[name]
    captured = make_fx(lambda: tuple(vars_of(source.sample(64))))()
    online.add(numbered(10, 90))
    torch.manual_seed(0)
    *_, rew = captured()
    torch.manual_seed(0)
    assert torch.equal(rew, source.sample(64).rew)
    if "dataset" not in name:
        assert rew.max() >= 10


def vars_of(b: Batch):
    return b.obs, b.act, b.next_obs, b.done, b.rew


def test_a_captured_blend_follows_the_share():
    online = ReplayBuffer(SPEC, 200)
    online.add(numbered(0, 10))
    aged = Aged(AgedConfig(), SPEC, offline(), online)
    aged.advance(1)
    captured = make_fx(lambda: (aged.sample(4000).rew,))()
    shares = []
    for steps in (1, 20_000):  # epochs 1 and 21
        aged.advance(steps)
        (rew,) = captured()
        shares.append((rew < 0).float().mean().item())
        assert shares[-1] == pytest.approx(aged.share, abs=0.03)
    assert shares[1] < shares[0] - 0.2


def test_adding_reads_nothing_back():
    buffer = ReplayBuffer(SPEC, 20)
    with no_host_reads():
        for i in range(0, 45, 9):  # round the ring
            buffer.add(numbered(i, 9))
            assert len(buffer) == min(i + 9, 20)
        buffer.add(numbered(45, 1))
        buffer.append(torch.ones(2, buffer.layout.width).numpy())
        buffer.add(numbered(46, 5), keep=torch.tensor([[True, False, True, True, False]] * 2))
    assert buffer.latest(5).rew.tolist() == [[45, 1, 46, 48, 49]] * 2


@pytest.mark.parametrize("capacity", [7, 50])
@pytest.mark.parametrize("gamma", [None, 0.9])
def test_a_step_from_the_host_is_the_same_row_as_a_batch(capacity, gamma):
    one, other = (ReplayBuffer(SPEC, capacity, gamma) for _ in range(2))
    for i in range(30):
        b, cut = numbered(i, 1), torch.tensor([[i % 5 == 4], [i % 7 == 6]])
        b.done[0, 0] = i % 11 == 10
        one.add(b, cut)
        other.append(other.layout.pack(b, cut)[:, 0].numpy())
        if i == 12:  # the count is no longer known on the host
            for x in (one, other):
                x.add(numbered(99, 1), keep=torch.tensor([[True], [False]]))
        assert all(torch.equal(x, other.state_dict()[key]) for key, x in one.state_dict().items())
    assert len(one) == len(other) == min(30, capacity)
    other.load_state_dict(one.state_dict())
    assert len(other) == len(one)


def test_the_stand_in_refuses_what_waits():
    x = torch.ones(3)
    for read in (x[0].item, x.nonzero, lambda: x[x > 0], lambda: bool(x.sum()), lambda: int(x[0])):
        with pytest.raises(AssertionError, match="reads from the device"), no_host_reads():
            read()


def test_the_stand_in_for_a_compiler_refuses_what_waits():
    with torch._dynamo.config.patch(capture_scalar_outputs=True):  # else the trace breaks, which is no test
        reading = torch.compile(lambda x: x * x[0].item(), fullgraph=True, backend=refusing)
        with pytest.raises(AssertionError, match="reads from the device"):
            reading(torch.ones(3))


@pytest.mark.parametrize("gamma", [None, 0.9])
def test_rows_saved_with_returns_are_read_where_none_are_kept_and_the_other_way_round(gamma):
    saved, other = ReplayBuffer(SPEC, 20, 0.9 if gamma is None else None), ReplayBuffer(SPEC, 20, gamma)
    for i in range(5):
        saved.add(numbered(i, 1))
    other.load_state_dict(saved.state_dict())
    assert torch.equal(other.latest(5).rew, numbered(0, 5).rew)
    returns = other.latest(5).mc_return
    assert returns is None if gamma is None else returns.eq(-torch.inf).all()
