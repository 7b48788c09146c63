"""Batches and the registry."""

from dataclasses import dataclass, fields

import pytest
import torch

from mbo2o.registry import AGENTS, agent, find
from mbo2o.types import Batch, UserError, cat


def batch(seeds, n):
    return Batch(
        torch.randn(*seeds, n, 3),
        torch.randn(*seeds, n, 2),
        torch.randn(*seeds, n),
        torch.randn(*seeds, n, 3),
        torch.randn(*seeds, n),
    )


@pytest.mark.parametrize("seeds", [(), (2,)])
def test_cat_joins_along_the_batch(seeds):
    a, b = batch(seeds, 4), batch(seeds, 1)
    joined = cat([a, b])
    for f in fields(Batch):
        x = getattr(joined, f.name)
        vector = f.name in ("obs", "act", "next_obs")
        parts = x.split([4, 1], -2 if vector else -1)
        assert torch.equal(parts[0], getattr(a, f.name))
        assert torch.equal(parts[1], getattr(b, f.name))


def test_map_reaches_every_field():
    b = batch((), 4)
    doubled = b.map(lambda x: 2 * x)
    assert all(torch.equal(getattr(doubled, f.name), 2 * getattr(b, f.name)) for f in fields(Batch))


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
    with pytest.raises(ValueError, match="'mine' is registered twice"):
        agent("mine", Config)(One)
