"""What follows: recorded returns in buffers, datasets and mixtures, and values where only the record was cut off."""

import math

import numpy as np
import pytest
import torch
from nets import update

from mbo2o.agents.sac import SAC, SACConfig
from mbo2o.data.buffer import ReplayBuffer
from mbo2o.data.dataset import TransitionDataset
from mbo2o.data.sources import Aged, Mix
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.types import Batch, Spec

NONE, CUT, END = 0, 1, 2


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def step(rew, done=0.0, tag=0.0) -> Batch:
    """One step per entry of `rew (*S, 1)`, marked by `tag` in its observation."""
    obs = torch.full((*rew.shape, 1), float(tag))
    return Batch(obs, torch.zeros(*rew.shape, 1), rew, obs, torch.as_tensor(done).expand_as(rew).float())


def play(buffer, rewards, ends, start=0):
    """Add one step at a time; `rewards`, `ends`: a list per seed."""
    for t, (rew, end) in enumerate(
        zip(zip(*rewards, strict=True), zip(*ends, strict=True), strict=True), start
    ):
        shape = (*buffer.spec.seeds, 1)
        rew, end = torch.tensor(rew).reshape(shape), torch.tensor(end).reshape(shape)
        buffer.add(step(rew, (end == END).float(), t), end == CUT)


def expected_returns(rewards, ends, gamma, failure=None):
    """Step by step, from the first principles; -inf where the episode is open."""
    out = []
    for t in range(len(rewards)):
        first = max((u + 1 for u in range(t) if ends[u]), default=0)
        last = next((u for u in range(t, len(rewards)) if ends[u]), None)
        if last is None:
            out.append(-math.inf)
        elif failure is not None and all(r == failure for r in rewards[first : last + 1]):
            out.append(failure / (1 - gamma))
        else:
            out.append(sum(gamma**k * r for k, r in enumerate(rewards[t : last + 1])))
    return out


def random_play(n, seeds, failure=None):
    rng = np.random.default_rng(3)
    rewards = rng.normal(size=(seeds, n)).astype(np.float32)
    if failure is not None:
        rewards = np.where(rng.random((seeds, n)) < 0.9, np.float32(failure), np.float32(1.0))
    ends = rng.choice([NONE, CUT, END], p=[0.7, 0.15, 0.15], size=(seeds, n))
    return rewards.tolist(), ends.tolist()


# ---------------------------------------------------------------------- buffers


@pytest.mark.parametrize("seeds", [(), (1,), (3,)])
@pytest.mark.parametrize("failure", [None, -1.0])
@pytest.mark.parametrize("capacity", [100, 40, 7])
def test_buffer_against_a_loop(seeds, failure, capacity):
    """40 steps whose episodes end at other times in each seed, into rings that wrap, or do not."""
    n_seeds = math.prod(seeds)
    rewards, ends = random_play(40, n_seeds, failure)
    buffer = ReplayBuffer(Spec(1, 1, seeds), capacity, gamma=0.9, failure=failure)
    play(buffer, rewards, ends)
    latest = buffer.latest(40)
    size = min(capacity, 40)
    assert latest.mc_return.shape == (*seeds, size)
    assert latest.obs[..., 0].reshape(n_seeds, -1)[0].tolist() == list(range(40 - size, 40))
    for k, found in enumerate(latest.mc_return.reshape(n_seeds, -1).tolist()):
        expected = expected_returns(rewards[k], ends[k], 0.9, failure)[-size:]
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert latest.mc_return.isfinite().any()


def test_open_episodes_know_nothing_until_they_close():
    buffer = ReplayBuffer(Spec(1, 1, (2,)), 10, gamma=0.5)
    for t in range(2):
        buffer.add(step(torch.tensor([[1.0], [2.0]]), tag=t))
        assert buffer.latest(10).mc_return.eq(-math.inf).all()
        assert buffer.sample(4).mc_return.eq(-math.inf).all()
    # seed 0 is cut off, seed 1 goes on
    buffer.add(step(torch.tensor([[4.0], [2.0]])), truncated=torch.tensor([[True], [False]]))
    assert buffer.latest(10).mc_return.tolist() == [[2.5, 3.0, 4.0], [-math.inf] * 3]
    # seed 1's task ends, while seed 0 has begun another episode
    buffer.add(step(torch.tensor([[8.0], [4.0]]), done=torch.tensor([[0.0], [1.0]])))
    assert buffer.latest(10).mc_return.tolist() == [[2.5, 3.0, 4.0, -math.inf], [4.0, 4.0, 4.0, 4.0]]


def test_a_cut_and_an_end_close_alike():
    found = []
    for end in (CUT, END):
        buffer = ReplayBuffer(Spec(1, 1), 5, gamma=0.9)
        play(buffer, [[1.0, 2.0]], [[NONE, end]])
        found.append(buffer.latest(2))
    assert torch.equal(found[0].mc_return, found[1].mc_return)
    torch.testing.assert_close(found[0].mc_return, torch.tensor([2.8, 2.0]))
    assert found[0].done.tolist() == [0, 0]
    assert found[1].done.tolist() == [0, 1]


@pytest.mark.parametrize("failure", [-5.0, -0.1])
def test_failing_all_along_is_failing_for_ever(failure):
    """Whatever float32 makes of the constant; one other reward, and the sum is what it was."""
    buffer = ReplayBuffer(Spec(1, 1, (2,)), 10, gamma=0.9, failure=failure)
    play(buffer, [[failure] * 3, [failure, failure, 1.0]], [[NONE, NONE, CUT]] * 2)
    hopeless, not_so = buffer.latest(3).mc_return
    torch.testing.assert_close(hopeless, torch.full((3,), failure / 0.1))
    torch.testing.assert_close(not_so, torch.tensor([failure * 1.9 + 0.81, failure + 0.9, 1.0]))


@pytest.mark.parametrize("capacity", [10, 25, 40])
def test_saved_in_mid_episode_it_goes_on(capacity):
    rewards, ends = random_play(30, 2)
    at = next(t for t in range(12, 30) if ends[0][t - 1] == NONE)  # an episode is open; ten rows have wrapped
    half = lambda x, part: [row[part] for row in x]  # noqa: E731
    buffer, twin = (ReplayBuffer(Spec(1, 1, (2,)), capacity, gamma=0.9) for _ in range(2))
    play(buffer, half(rewards, slice(at)), half(ends, slice(at)))
    twin.load_state_dict({k: x.clone() for k, x in buffer.state_dict().items()})
    for x in (buffer, twin):
        play(x, half(rewards, slice(at, 30)), half(ends, slice(at, 30)), at)
    assert torch.equal(twin.latest(30).mc_return, buffer.latest(30).mc_return)
    for k, found in enumerate(twin.latest(30).mc_return.tolist()):
        assert found == pytest.approx(
            expected_returns(rewards[k], ends[k], 0.9)[-capacity:], rel=1e-5, abs=1e-6
        )


def test_rows_that_bring_their_returns_keep_them():
    """Offline rows before the first step: the running episode begins after them."""
    buffer = ReplayBuffer(Spec(1, 1), 10, gamma=0.5)
    offline = step(torch.tensor([1.0, 2.0, 3.0]))
    offline.mc_return = torch.tensor([7.0, -math.inf, 9.0])
    buffer.add(offline)
    play(buffer, [[1.0, 2.0]], [[NONE, END]])
    assert buffer.latest(5).mc_return.tolist() == [7, -math.inf, 9, 2, 2]


def test_steps_come_one_at_a_time_or_not_at_all():
    buffer = ReplayBuffer(Spec(1, 1), 10, gamma=0.5)
    with pytest.raises(ValueError, match="one at a time"):
        buffer.add(step(torch.ones(3)))
    assert len(buffer) == 0
    plain = ReplayBuffer(Spec(1, 1), 10)
    plain.add(step(torch.ones(3)))
    assert plain.sample(2).mc_return is None


def test_a_step_left_out_ends_nothing():
    buffer = ReplayBuffer(Spec(1, 1, (2,)), 10, gamma=0.5)
    buffer.add(step(torch.ones(2, 1)))
    buffer.add(step(torch.ones(2, 1), done=1.0), keep=torch.tensor([[True], [False]]))
    assert buffer.rows(torch.zeros(2, 1, dtype=torch.int64)).mc_return.tolist() == [[1.5], [-math.inf]]


# ---------------------------------------------------------------------- datasets


def dataset(rewards, ends) -> TransitionDataset:
    n = len(rewards)
    obs = np.arange(n + 1, dtype=np.float32)[:, None]
    flags = np.array(ends)
    return TransitionDataset.from_arrays(
        obs[:-1],
        np.zeros((n, 1), np.float32),
        np.array(rewards, np.float32),
        flags == END,
        flags == CUT,
        obs[1:],
    )


@pytest.mark.parametrize("failure", [None, -1.0, -0.1])
def test_dataset_against_a_loop(failure):
    (rewards,), (ends,) = random_play(60, 1, failure)
    rewards[-3:], ends[-4:] = [0.5, 0.5, 0.5], [END, NONE, NONE, NONE]  # the file ends in mid-episode
    ds = dataset(rewards, ends).with_returns(0.9, failure)
    expected = expected_returns(rewards, ends, 0.9, None if failure is None else np.float32(failure))
    b = ds.rows(torch.arange(60))
    assert b.mc_return.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert expected[-1] == -math.inf
    assert failure is None or any(x == pytest.approx(failure * 10) for x in expected)
    drawn = ds.with_seeds((2,)).sample(5)
    torch.testing.assert_close(drawn.mc_return, torch.tensor(expected)[drawn.obs[..., 0].long()])


def test_returns_leave_the_dataset_as_it_was():
    ds = dataset([1.0, 2.0, 3.0], [NONE, END, CUT])
    packed = ds.packed.clone()
    known = ds.with_returns(0.5)
    assert ds.sample(2).mc_return is None
    assert torch.equal(ds.packed, packed)
    assert known.rows(torch.arange(3)).mc_return.tolist() == [2, 2, 3]
    for name in ("obs", "act", "rew", "next_obs"):
        assert torch.equal(getattr(known, name), getattr(ds, name))
    again = known.with_returns(0.0)  # another discount takes the place of the first
    assert again.packed.shape == known.packed.shape
    assert again.rows(torch.arange(3)).mc_return.tolist() == [1, 2, 3]
    assert torch.equal(known.to("cpu").with_seeds(()).packed, known.packed)


def test_returns_are_of_the_rewards_that_are_learned_from():
    """Rewards transformed afterwards would belie the returns, which go."""
    ds = dataset([0.0, 1.0], [NONE, END]).with_returns(0.5)
    packed = ds.packed.clone()
    shaped = ds.with_reward(10.0, -5.0)
    assert torch.equal(ds.packed, packed)
    assert shaped.rew.tolist() == [-5, 5]
    assert shaped.sample(1).mc_return is None
    assert shaped.with_returns(0.5).rows(torch.arange(2)).mc_return.tolist() == [-2.5, 5]


# ---------------------------------------------------------------------- mixtures


@pytest.mark.parametrize("mixture", [lambda a, b: Mix((a, 0.5), (b, 0.5)), lambda a, b: Aged(a, b, 0.5)])
def test_mixtures_hold_returns_if_all_their_parts_do(mixture):
    def parts(offline, online):
        ds = dataset([1.0, 1.0], [NONE, END]).with_seeds((2,))
        buffer = ReplayBuffer(Spec(1, 1, (2,)), 5, gamma=0.5 if online else None)
        play(buffer, [[8.0], [16.0]], [[CUT], [END]])
        return ds.with_returns(0.5) if offline else ds, buffer

    for offline, online in [(True, False), (False, True), (False, False)]:
        assert mixture(*parts(offline, online)).sample(4).mc_return is None
    b = mixture(*parts(True, True)).sample(40)
    assert b.mc_return.shape == (2, 40)
    returns = [set(b.mc_return[k].tolist()) for k in range(2)]
    assert returns == [{1.5, 1, 8}, {1.5, 1, 16}]
    first = (b.obs[..., 0] == 0) & (b.rew == 1)  # each row brings its own
    assert torch.equal(b.mc_return[first], torch.full_like(b.mc_return[first], 1.5))


# ---------------------------------------------------------------------- what a cut means to a critic


@pytest.mark.parametrize(("end", "value"), [(CUT, [10.0] * 5), (END, [4.0951, 3.439, 2.71, 1.9, 1.0])])
def test_values_go_on_after_a_time_limit(end, value):
    """A walk round five places, 1 a step, cut or ended after each round: worth 10 everywhere, or what is left of the round."""
    places = torch.eye(5)
    buffer = ReplayBuffer(Spec(5, 1), 500)
    for t in range(500):
        here, there = places[t % 5], places[(t + 1) % 5]
        last = t % 5 == 4
        flags = torch.tensor([float(last and end == END)]), torch.tensor([last and end == CUT])
        buffer.add(
            Batch(here[None], torch.rand(1, 1) * 2 - 1, torch.ones(1), there[None], flags[0]), flags[1]
        )
    linear, small = MLPConfig(hidden=[]), MLPConfig(hidden=[8])  # a number per place is all there is to learn
    cfg = SACConfig(gamma=0.9, tau=0.3, critic_lr=5e-2, backup_entropy=False, actor=small, critic=linear)
    agent = SAC(Spec(5, 1), cfg)
    for _ in range(300):
        update(agent, buffer.sample(64))
    torch.testing.assert_close(agent.value(places, agent.act(places)), torch.tensor(value), atol=0.3, rtol=0)
