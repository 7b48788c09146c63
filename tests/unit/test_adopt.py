"""The switch: what one agent takes over from another, what it says of it, and that nothing else moves."""

from dataclasses import replace
from functools import partial

import nets
import pytest
import torch
from nets import update

from mbo2o.agents.base import Change
from mbo2o.agents.cql import CQL, CQLConfig
from mbo2o.agents.iql import IQL, IQLConfig
from mbo2o.agents.sac import SAC, SACConfig
from mbo2o.agents.td3bc import TD3BC, TD3BCConfig
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.types import Spec

SMALL = MLPConfig(hidden=[8])
TINY = {"actor": SMALL, "critic": SMALL}
OPTIMISERS = ("actor_optim", "critic_optim", "log_alpha_optim")
NETWORKS = ("observe", "actor", "critic", "target")
batch = partial(nets.batch, (2,))


def pretrained(cls=CQL, **cfg):
    """An agent of two seeds after five updates."""
    config = CQLConfig if cls is CQL else SACConfig
    agent = cls(Spec(3, 2, (2,)), config(**TINY | {"normalize": True, "critics": 3} | cfg))
    data = nets.batch(n=50)
    data.obs += 2
    agent.prepare(data)
    for _ in range(5):
        update(agent, batch())
    return agent


def sac(cfg: SACConfig | None = None, **change) -> SAC:
    return SAC(Spec(3, 2, (2,)), replace(cfg or SACConfig(**TINY, critics=3), **change))


def state(agent, part):
    x = getattr(agent, part)
    return dict(x.state_dict()) if isinstance(x, torch.nn.Module) else {"": x.detach()}


def same(a, b, part) -> bool:
    x, y = state(a, part), state(b, part)
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def rows(table, *whats):
    return {x.part: x for x in table if x.what in whats}


def test_takes_over_everything_that_both_have():
    before = pretrained(gap=0.8)
    after = sac(before.cfg.after_switch())
    table = after.adopt(before)
    shared = {*NETWORKS, *OPTIMISERS, "log_alpha"}
    kept = rows(table, "kept")
    assert kept.keys() == shared
    assert all(x.note == "" for x in kept.values())
    for part in shared:
        assert same(after, before, part), part
    assert after.actor_optim.step_0 == 5
    assert after.log_alpha_optim.mean_0.abs().max() > 0
    assert after.observe.mean.abs().max() > 1
    gone = rows(table, "dropped")
    assert {"log_lagrange", "log_lagrange_optim"} <= gone.keys()
    assert not rows(table, "reset")


def test_the_table_lists_settings_that_are_dropped_new_or_changed():
    before = pretrained()
    after = sac(before.cfg.after_switch(), gamma=0.9, actor=SMALL)
    settings = [x for x in after.adopt(before) if x.what != "kept"]
    assert {x.part for x in settings if x.what == "dropped"} == {
        "weight", "samples", "temperature", "ensemble", "gap", "gap_floor", "lagrange_lr", "init_lagrange", "clone_steps"  # noqa: E501
    }  # fmt: skip
    assert Change("weight", "dropped", "5.0") in settings
    assert [x for x in settings if x.what == "changed"] == [
        Change("gamma", "changed", "0.99 → 0.9"),
        Change("backup", "changed", "deterministic → sampled"),
        Change("backup_entropy", "changed", "False → True"),
    ]
    back = rows(pretrained(gap=0.8).adopt(after), "new")
    assert {"log_lagrange", "log_lagrange_optim", "weight", "ensemble"} <= back.keys()
    nested = sac(critics=3, critic=MLPConfig(hidden=[8], layer_norm=True)).adopt(after)
    assert rows(nested, "changed")["critic.layer_norm"].note == "False → True"


def test_with_no_update_the_agent_acts_and_values_as_before():
    before = pretrained()
    after = sac(before.cfg.after_switch())
    obs = 3 * torch.randn(2, 20, 3)
    assert not torch.equal(after.act(obs), before.act(obs))
    after.adopt(before)
    assert torch.equal(after.act(obs), before.act(obs))
    act = before.act(obs)
    assert torch.equal(after.value(obs, act), before.value(obs, act))
    assert torch.equal(after.q_target(obs, act), before.q_target(obs, act))
    explored = []
    for agent in (before, after):
        torch.manual_seed(1)
        explored.append(agent.act(obs, explore=True))
    assert torch.equal(*explored)


def test_what_was_taken_over_is_a_copy():
    before = pretrained()
    after = sac(before.cfg.after_switch())
    after.adopt(before)
    saved = {k: x.clone() for k, x in before.state_dict().items()}
    update(after, batch())
    after.observe.mean.add_(1)
    assert all(torch.equal(x, saved[k]) for k, x in before.state_dict().items())


@pytest.mark.parametrize("moments", [True, False])
def test_moments_are_taken_over_or_reset(moments):
    before = pretrained()
    after = sac(before.cfg.after_switch())
    table = {x.part: x for x in after.adopt(before, moments=moments)}
    for part in OPTIMISERS:
        assert (table[part].what, table[part].note) == (("kept", "") if moments else ("reset", "moments"))
        assert same(after, before, part) == moments
        steps = 5 if moments else 0
        assert all(x == steps for k, x in state(after, part).items() if k.startswith("step"))
    assert same(after, before, "actor")


@pytest.mark.parametrize("moments", [True, False])
def test_learning_rates_are_those_of_the_new_config_and_a_change_is_listed(moments):
    before = pretrained(actor_lr=1e-5)
    after = sac(actor_lr=1e-2)
    table = {x.part: x for x in after.adopt(before, moments=moments)}
    assert table["actor_optim"].note == ("" if moments else "moments")
    assert table["actor_lr"] == Change("actor_lr", "changed", "1e-05 → 0.01")
    assert "critic_lr" not in table  # the rates are the same
    actor = after.actor.net.layers[0].weight.detach().clone()
    update(after, batch())
    step = (after.actor.net.layers[0].weight.detach() - actor).abs().max()
    assert step > 1e-4  # and it is the rate that counts


def test_what_an_agent_becomes_has_its_rates():
    """ENOTO's code carries the offline rates: a derived config holds them."""
    before = pretrained(actor_lr=1e-5, critic_lr=2e-5, alpha_lr=3e-5)
    after = sac(before.cfg.after_switch())
    after.adopt(before)
    assert (after.actor_optim.lr, after.critic_optim.lr, after.log_alpha_optim.lr) == (1e-5, 2e-5, 3e-5)


def test_critics_of_another_number_are_reset_and_the_actor_is_kept():
    before = pretrained(critics=2, critic_lr=1e-5)
    after = sac(critics=10)
    fresh = {
        part: {k: x.clone() for k, x in state(after, part).items()}
        for part in ("critic", "target", "critic_optim")
    }
    table = {x.part: x for x in after.adopt(before)}
    for part, expected in fresh.items():
        assert table[part].what == "reset"
        assert all(torch.equal(x, expected[k]) for k, x in state(after, part).items())
    numbers = 2 * (5 * 8 + 8 + 8 + 1)  # two seeds
    assert table["critic"].note == table["target"].note == f"{2 * numbers} numbers → {10 * numbers} numbers"
    assert table["critics"] == Change("critics", "changed", "2 → 10")
    for part in ("observe", "actor", "log_alpha", "actor_optim", "log_alpha_optim"):
        assert table[part].what == "kept"
        assert same(after, before, part)
    obs = torch.randn(2, 5, 3)
    assert torch.equal(after.act(obs), before.act(obs))
    update(after, batch())


def test_schedules_and_delays_count_from_zero():
    before = pretrained()
    after = sac(before.cfg.after_switch(), policy_delay=2)
    after.adopt(before)
    assert (before.updates, after.updates) == (5, 0)
    assert "actor_loss" not in update(after, batch())
    assert "actor_loss" in update(after, batch())


def test_the_normaliser_is_taken_over_and_does_not_change():
    before = pretrained()
    after = sac(normalize=False)
    after.adopt(before)
    frozen = after.observe.mean.clone()
    update(after, batch())
    assert torch.equal(after.observe.mean, frozen)
    assert torch.equal(frozen, before.observe.mean)


def test_cql_of_no_weight_and_a_soft_backup_is_sac_step_for_step():
    """After the switch an update differs by the intended terms alone. CQL's draws are left out of account by
    reseeding.
    """
    before = pretrained(weight=0.0, backup="sampled", backup_entropy=True)
    after = sac(before.cfg.after_switch())
    after.adopt(before)
    for t in range(4):
        b = batch()
        for agent in (before, after):
            torch.manual_seed(t)
            improve = SAC.improve
            agent.improve = lambda b, step, agent=agent, improve=improve, t=t: (
                torch.manual_seed(99 + t),
                improve(agent, b, step),
            )[1]
            update(agent, b)
        for part in (*NETWORKS, *OPTIMISERS, "log_alpha"):
            assert same(after, before, part), (t, part)


def test_gradients_differ_by_the_conservative_term():
    before = pretrained(weight=2.0, backup="sampled", backup_entropy=True)
    after = sac(before.cfg.after_switch())
    after.adopt(before)
    b, found = before.scaled(batch()), []
    for agent in (before, after):
        q = agent.q(b.obs, b.act)
        torch.manual_seed(1)
        y, next_q = agent.backup(b)
        extra, _ = agent.regulariser(b, q)
        found.append(
            torch.autograd.grad(
                (agent.td_loss(b, q, y, next_q) + extra).sum(), list(agent.critic.parameters())
            )
        )
    torch.manual_seed(1)
    before.backup(b)
    term = before.regulariser(b, before.q(b.obs, b.act))[0].sum()
    intended = torch.autograd.grad(term, list(before.critic.parameters()), allow_unused=True)
    for cql, plain, g in zip(*found, intended, strict=True):
        torch.testing.assert_close(
            cql - plain, torch.zeros_like(plain) if g is None else g, rtol=1e-4, atol=1e-4
        )
    assert intended[0].abs().max() > 1e-2


def test_moments_of_a_network_that_is_not_taken_over_are_not_either():
    """TD3+BC's actor has the shapes of IQL's deterministic one, under other names."""
    before = TD3BC(Spec(3, 2, (2,)), TD3BCConfig(**TINY))
    update(before, batch())
    after = IQL(Spec(3, 2, (2,)), IQLConfig(**TINY, value_net=SMALL))
    found = {x.part: x.what for x in after.adopt(before)}
    assert found["critic_optim"] == "kept"
    assert found["actor"] == found["actor_optim"] == "reset"
    assert not any(
        x.any() for k, x in after.actor_optim.state_dict().items() if x.is_floating_point() and "lr" not in k
    )
