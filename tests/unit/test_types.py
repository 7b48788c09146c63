"""Batches and the registry."""

from dataclasses import dataclass, fields

import pytest
import torch

from mbo2o.registry import AGENTS, agent, find
from mbo2o.types import Batch, UserError, cat, combine

NAMES = [f.name for f in fields(Batch)]
PLAIN = [name for name in NAMES if name != "mc_return"]


def batch(seeds, n, returns=False):
    return Batch(
        torch.randn(*seeds, n, 3),
        torch.randn(*seeds, n, 2),
        torch.randn(*seeds, n),
        torch.randn(*seeds, n, 3),
        torch.randn(*seeds, n),
        torch.randn(*seeds, n) if returns else None,
    )


@pytest.mark.parametrize("seeds", [(), (2,)])
@pytest.mark.parametrize("returns", [True, False])
def test_cat_joins_along_the_batch(seeds, returns):
    a, b = batch(seeds, 4, returns), batch(seeds, 1, returns)
    joined = cat([a, b])
    for name in NAMES if returns else PLAIN:
        vector = name in ("obs", "act", "next_obs")
        parts = getattr(joined, name).split([4, 1], -2 if vector else -1)
        assert torch.equal(parts[0], getattr(a, name))
        assert torch.equal(parts[1], getattr(b, name))
    assert returns or joined.mc_return is None


def test_returns_are_joined_only_if_all_have_them():
    known, unknown = batch((2,), 4, returns=True), batch((2,), 4)
    for parts in ([known, unknown], [unknown, known, known]):
        assert cat(parts).mc_return is None
        assert cat(parts).rew.shape == (2, 4 * len(parts))
    mean = combine(lambda x, y: (x + y) / 2, [known, known])
    assert all(torch.equal(getattr(mean, name), getattr(known, name)) for name in NAMES)
    assert combine(torch.minimum, [known, unknown]).mc_return is None


@pytest.mark.parametrize("returns", [True, False])
def test_map_reaches_every_field_that_is_there(returns):
    b = batch((), 4, returns)
    doubled = b.map(lambda x: 2 * x)
    assert all(
        torch.equal(getattr(doubled, name), 2 * getattr(b, name)) for name in (NAMES if returns else PLAIN)
    )
    assert returns or doubled.mc_return is None


@pytest.mark.parametrize("seeds", [(), (2,)])
def test_dealt_batches_hold_exact_shares(seeds):
    """Of 8 rows in shares 3 : 1, two batches get 3 + 1 each."""
    b = batch(seeds, 8)
    b.done = torch.tensor([0.0] * 6 + [1, 1]).expand(*seeds, 8)
    dealt = b.deal(2)
    assert [x.done.sum(-1).tolist() for x in dealt] == [b.done[..., 6:].mean(-1).tolist()] * 2
    for i, x in enumerate(dealt):
        for name in PLAIN:
            whole = getattr(b, name).movedim(len(seeds), 0)
            assert torch.equal(getattr(x, name).movedim(len(seeds), 0), whole[i::2])
    assert b.deal(1) == [b]


def test_a_misspelt_name_is_corrected():
    import mbo2o.agents  # noqa: F401

    assert find(AGENTS, "sac", "agent").name == "sac"
    with pytest.raises(UserError, match=r"no agent is called 'sacc'; did you mean 'sac'\?") as e:
        find(AGENTS, "sacc", "agent")
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match=r"choices: .*sac"):
        find(AGENTS, "zzzzzz", "agent")


def test_a_name_is_registered_once(monkeypatch):
    @dataclass
    class Config:
        pass

    class One:
        pass

    monkeypatch.setattr("mbo2o.registry.AGENTS", {})
    assert agent("mine", Config)(One) is One
    agent("mine", Config)(One)  # the same definition again, as when a notebook's cell runs twice
    with pytest.raises(UserError, match="the name 'mine' is registered twice"):

        @agent("mine", Config)
        class Other:
            pass
