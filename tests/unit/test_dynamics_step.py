"""Who serves which row of `GaussianDynamics.step`, and that its draws are the members' own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mbo2o.dynamics.model import CHUNK, DynamicsConfig, GaussianDynamics
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.types import Spec

D, A, MEMBERS, ELITES = 3, 2, 7, 3


def constant(seeds: tuple[int, ...], log_var: float = -30.0) -> GaussianDynamics:
    """Member m of seed s predicts 100·s + m whatever the input; its elites are drawn at random."""
    cfg = DynamicsConfig(members=MEMBERS, elites=ELITES, net=MLPConfig(hidden=[8], activation="silu"))
    model = GaussianDynamics(Spec(D, A, seeds), cfg)
    means = torch.arange(MEMBERS) + 100.0 * torch.arange(max(1, *seeds, 0)).unsqueeze(-1)
    with torch.no_grad():
        last = model.net.net.layers[-1]
        last.weight.zero_()
        last.bias[..., 0, : D + 1] = means.reshape(*seeds, MEMBERS, 1)
        last.bias[..., 0, D + 1 :] = log_var
        model.net.min_log_var.fill_(-40.0)
        elites = [torch.randperm(MEMBERS)[:ELITES] for _ in range(max(1, *seeds, 0))]
        model.elites.copy_(torch.stack(elites).reshape(model.elites.shape))
    return model


def inputs(seeds: tuple[int, ...], b: int) -> tuple[Tensor, Tensor]:
    return torch.randn(*seeds, b, D), torch.rand(*seeds, b, A) * 2 - 1


@pytest.mark.parametrize("seeds", [(), (1,), (3,)])
@pytest.mark.parametrize("b", [1, 2, 12, 100, 2 * CHUNK + 1])
def test_elites_share_the_rows(seeds, b):
    model = constant(seeds)
    obs, act = inputs(seeds, b)
    with torch.no_grad():
        next_obs, rew = model.step(obs, act)
    assert next_obs.shape == obs.shape
    assert rew.shape == obs.shape[:-1]
    torch.testing.assert_close(
        next_obs - obs, rew.unsqueeze(-1).expand_as(obs), atol=1e-3, rtol=0
    )  # one member a row
    served, elites = rew.round().long().reshape(-1, b), model.elites.reshape(-1, ELITES)
    for s, (rows, those) in enumerate(zip(served, elites, strict=True)):
        counts = torch.bincount(rows - 100 * s, minlength=MEMBERS)
        assert len(counts) == MEMBERS
        assert counts[those].sum() == b, "only elites appear"
        assert counts.max() <= -(-b // ELITES)
        if b % ELITES == 0:
            assert (counts[those] == b // ELITES).all()


def test_the_elite_of_a_row_is_random():
    model = constant(())
    obs, act = inputs((), 10)
    served = torch.stack([model.step(obs, act)[1].detach().round() for _ in range(600)])  # (600, 10)
    for e in model.elites.tolist():
        share = (served == e).float().mean(0)
        assert ((share - 1 / ELITES).abs() < 0.1).all()  # five standard deviations


@pytest.mark.parametrize("seeds", [(), (2,)])
def test_each_row_gets_the_draw_of_its_own_input(seeds):
    model = constant(seeds)
    with torch.no_grad():  # Δobs = act's first entry for every member, through a linear network
        model.net.net.layers[0].weight.zero_()
        model.net.net.layers[0].bias.fill_(0)
        model.net.net.layers[0].weight[..., D, 0] = 1e-3  # silu(z) is z/2 for small z
        model.net.net.layers[-1].bias[..., 0, : D + 1] = 0
        model.net.net.layers[-1].weight[..., 0, : D + 1] = 2e3
    obs, act = inputs(seeds, 2 * CHUNK + 7)
    next_obs, rew = model.step(obs, act)
    torch.testing.assert_close(next_obs - obs, act[..., :1].expand_as(obs), atol=2e-3, rtol=0)
    torch.testing.assert_close(rew, act[..., 0], atol=2e-3, rtol=0)


def test_the_noise_is_the_members_and_drawn_for_every_row():
    model = constant((), log_var=-2.0)
    model.targets.std.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    model.net.max_log_var.data.fill_(10.0)  # far from the bounds
    with torch.no_grad():
        model.net.net.layers[-1].bias[..., 0, : D + 1] = 0
    obs, act = inputs((), 30_000)
    next_obs, rew = model.step(obs, act)
    z = torch.cat([next_obs - obs, rew.unsqueeze(-1)], -1).detach() / model.targets.std
    torch.testing.assert_close(z.mean(0), torch.zeros(D + 1), atol=0.015, rtol=0)
    torch.testing.assert_close(
        z.std(0), torch.full((D + 1,), torch.tensor(-1.0).exp().item()), atol=0.01, rtol=0
    )
    assert (torch.corrcoef(z.T) - torch.eye(D + 1)).abs().max() < 0.03
    assert z.flatten().unique().numel() > 0.99 * z.numel()


def test_a_generator_decides_the_draws():
    model = constant((2,), log_var=0.0)
    obs, act = inputs((2,), 50)
    before = torch.get_rng_state()
    one, again = (model.step(obs, act, torch.Generator().manual_seed(5))[0] for _ in range(2))
    assert torch.equal(one, again)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(one, model.step(obs, act)[0])


@pytest.mark.parametrize("seeds", [(), (2,)])
def test_predict_in_chunks_equals_predict_by_rows(seeds):
    cfg = DynamicsConfig(members=MEMBERS, elites=ELITES, net=MLPConfig(hidden=[8, 8], activation="silu"))
    model = GaussianDynamics(Spec(D, A, seeds), cfg)
    obs, act = inputs(seeds, CHUNK + 3)
    for whole, rows in zip(
        model.predict(obs, act), model.predict(obs[..., -5:, :], act[..., -5:, :]), strict=True
    ):
        assert whole.shape == (*seeds, MEMBERS, CHUNK + 3, D + 1)
        torch.testing.assert_close(whole[..., -5:, :], rows)
