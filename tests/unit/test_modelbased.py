"""Settings of the model-based recipes: growing branches, the agents they take, and when learning begins
online.
"""

from dataclasses import dataclass, fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbo2o import naming
from mbo2o.agents.cql import CQLConfig
from mbo2o.agents.sac import SACConfig
from mbo2o.cli.main import compose_config
from mbo2o.data.buffer import ReplayBuffer
from mbo2o.dynamics.fit import FitConfig
from mbo2o.dynamics.model import DynamicsConfig
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.ensemble.uncertainty import max_aleatoric
from mbo2o.recipes.horizon import branch_length, longest
from mbo2o.recipes.mbpo import MBPOConfig
from mbo2o.recipes.moore import MOORe, MOOReConfig
from mbo2o.recipes.mopo import MOPOConfig
from mbo2o.registry import AGENTS, RECIPES
from mbo2o.report.read import read_run
from mbo2o.run.config import RunConfig
from mbo2o.sources.mixtures import Youngest
from mbo2o.training import Config, restore, train
from mbo2o.types import Batch, Spec, UserError

NET = MLPConfig(hidden=[8])
SIZES = {
    "dynamics": DynamicsConfig(members=2, elites=2, net=NET),
    "fit": FitConfig(min_updates=5, max_updates=10, epoch_updates=5),
    "batch": 8,
}
OFFLINE = {"offline_steps": 40, "rollouts": 10, "rollout_every": 10}
ONLINE = {
    "refit": FitConfig(min_updates=5, max_updates=10, epoch_updates=5),
    "online_steps": 120,
    "epoch": 60,
    "model_every": 60,
    "online_rollouts": 10,
    "utd": 1,
}


def small(recipe, directory, dataset=None):
    run = RunConfig(log_every=10, eval_every=60, eval_episodes=1, checkpoint_every=1000, online_capacity=500)
    data = None if dataset is None else str(dataset)
    return Config(
        recipe=recipe, dataset=data, env="Pendulum-v1", seeds=2, dir=str(directory), run=run, report=False
    )


def sac(**change):
    return SACConfig(actor=NET, critic=NET, **change)


# ---------------------------------------------------------------------- branches that grow


def test_mbpos_branches_on_hopper():
    """mbpo/algorithms/mbpo.py, _set_rollout_length, with [20, 150, 1, 15]."""
    grows = [1, 15, 20, 150]
    assert [branch_length(grows, e) for e in (0, 20, 29, 30, 85, 149, 150, 1000)] == [
        1,
        1,
        1,
        2,
        8,
        14,
        15,
        15,
    ]
    assert longest(grows) == 15
    assert branch_length(5, 77) == longest(5) == 5


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 50), st.integers(1, 50), st.integers(0, 200))
def test_a_length_lies_between_its_ends_and_never_turns_back(low, high, first, span, epoch):
    horizon = [low, high, first, first + span]
    length, later = branch_length(horizon, epoch), branch_length(horizon, epoch + 1)
    assert min(low, high) <= length <= max(low, high) == longest(horizon)
    assert (later - length) * (high - low) >= 0
    assert (branch_length(horizon, first), branch_length(horizon, first + span)) == (low, high)


@pytest.mark.parametrize(
    "horizon",
    [0, True, 1.5, "5", [5], [1, 15], [1, 15, 20, 20], [0, 15, 20, 150], [1, 15, -1, 5], [1.5, 2, 0, 1]],
)
def test_a_length_that_cannot_be_is_one_line(horizon, tmp_path):
    settings = {"agent": sac(), **SIZES, **ONLINE, "random_steps": 70}
    with pytest.raises(UserError, match=r"recipe\.horizon="):
        MBPOConfig(**settings, horizon=horizon)
    changed = small(MBPOConfig(**settings), tmp_path / "run")
    changed.recipe.horizon = horizon
    with pytest.raises(UserError, match=r"recipe\.horizon="):
        train(changed)


def test_mbpo_imagines_longer_branches_as_it_goes_and_keeps_one_epoch_of_them(tmp_path):
    recipe = MBPOConfig(
        agent=sac(), **SIZES, **ONLINE | {"online_steps": 240}, random_steps=70, horizon=[1, 3, 0, 2]
    )
    train(small(recipe, tmp_path / "run"))
    _, done = restore(tmp_path / "run")
    # after the random steps, then at the end of epochs 0 to 3: 1 + 1 + 2 + 3 + 3 steps of ten branches, Pendulum never ends  # noqa: E501
    assert done.imagined._written.tolist() == [100, 100]
    assert done.imagined.capacity == 30  # the longest branches of one epoch


def test_the_youngest_rows_are_drawn_as_from_a_buffer_of_that_size():
    torch.manual_seed(0)
    big, small_one = (ReplayBuffer(Spec(1, 1, (2,)), n) for n in (12, 5))
    for i in range(19):
        row = torch.full((2, 1, 1), float(i))
        for buffer in (big, small_one):
            buffer.add(Batch(row, row, row[..., 0], row, row[..., 0] * 0))
    drawn = Youngest(big, 5).sample(500).rew
    assert (
        set(drawn.flatten().tolist())
        == {14.0, 15.0, 16.0, 17.0, 18.0}
        == set(small_one.sample(500).rew.flatten().tolist())
    )
    assert len(Youngest(big, 5)) == 5
    for whole in (12, 99):
        torch.manual_seed(1)
        found = Youngest(big, whole).sample(20).rew
        torch.manual_seed(1)
        assert torch.equal(found, big.sample(20).rew)  # no draw differs from the buffer's own


def test_moores_branches_may_grow_online_alone():
    cfg = MOOReConfig(horizon=5, online_horizon=[5, 15, 10, 20])
    assert MOORe(cfg).online_horizon == [5, 15, 10, 20]
    assert MOORe(replace(cfg, online_horizon=None)).online_horizon == 5
    grown = MOOReConfig(horizon=[1, 4, 0, 2], offline_steps=5000, rollout_every=1000)
    assert MOORe(grown).online_horizon == 4


def test_a_new_setting_at_its_default_names_no_directory():
    @dataclass
    class Later(MOOReConfig):
        invented: int = 3

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(RECIPES, "moore", replace(RECIPES["moore"], config=Later))
        later = [naming.name(Config(recipe=Later(**x), dataset="d"), "E") for x in ({}, {"invented": 4})]
    cfg = Config(recipe=MOOReConfig(), dataset="d")
    assert naming.name(cfg, "E") == later[0] != later[1]
    grown = Config(recipe=MOOReConfig(online_horizon=2), dataset="d")
    assert naming.name(cfg, "E") != naming.name(grown, "E")


# ---------------------------------------------------------------------- branches that uncertainty ends


def test_long_branches_end_where_the_model_is_less_sure_than_on_the_data(pendulum, tmp_path):
    recipe = MOPOConfig(agent=sac(), **SIZES, **OFFLINE, horizon=300, truncate=0.5, imagined_rows=40)
    train(small(recipe, tmp_path / "run", pendulum))
    run, done = restore(tmp_path / "run")
    assert done.imagined.capacity == 40  # not 5 rollouts of 10 branches of 300 steps
    assert done.imagined.latest(40).done.eq(0).all()  # Pendulum never ends
    log = read_run(tmp_path / "run")
    cut, length = (log.series("uncertainty", f"{x}/imagined").values for x in ("truncated", "length"))
    assert (cut > 0.5).all()
    assert ((length >= 1) & (length < 300)).all()
    b = done.held_out(run, 10**9)
    u = max_aleatoric(*done.model.predict(b.obs, b.act)).sort(-1).values
    n = u.shape[-1]
    below, above = u[:, (n - 1) // 2], u[:, n // 2]
    torch.testing.assert_close(done.limit(run), ((below + above) / 2).detach())


def test_mbpo_s_limit_is_of_its_experience(tmp_path):
    recipe = MBPOConfig(agent=sac(), **SIZES, **ONLINE, random_steps=70, horizon=50, truncate=1.0)
    train(small(recipe, tmp_path / "run"))
    run, done = restore(tmp_path / "run")
    b = done.held_out(run, 10**9)
    torch.testing.assert_close(
        done.limit(run), max_aleatoric(*done.model.predict(b.obs, b.act)).detach().amax(-1)
    )
    assert read_run(tmp_path / "run").has("uncertainty", "length/imagined")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"truncate": 0.0}, r"recipe\.truncate=0\.0 is a quantile: it must lie in \(0, 1\]"),
        ({"truncate": 1.1}, r"recipe\.truncate=1\.1 is a quantile"),
        ({"imagined_rows": 9}, r"imagined_rows=9 must be at least recipe\.rollouts=10, the rows of one step"),
    ],
)
def test_what_branches_cannot_be_cut_by_is_one_line(change, said):
    with pytest.raises(UserError, match=said):
        MOPOConfig(agent=sac(), **SIZES, **OFFLINE, **change)


# ---------------------------------------------------------------------- where branches begin


def test_branches_go_on_where_the_latest_ones_ended(pendulum, tmp_path):
    """With branches of one step, each rollout is the next step of the same branches."""
    recipe = MOPOConfig(agent=sac(), **SIZES, **OFFLINE, horizon=1, starts="imagined-ends", retain=4)
    train(small(recipe, tmp_path / "run", pendulum))
    _, done = restore(tmp_path / "run")
    rows = done.imagined.latest(40)
    for k in range(2):
        for i in (10, 20, 30):
            before = {tuple(x) for x in rows.next_obs[k, i - 10 : i].tolist()}
            assert {tuple(x) for x in rows.obs[k, i : i + 10].tolist()} <= before


def test_moore_s_branches_begin_with_what_was_visited_lately(pendulum, tmp_path):
    online = ONLINE | {"model_every": 30, "epoch": 30}
    recipe = MOOReConfig(agent=sac(), **SIZES, **OFFLINE, **online, horizon=1, online_starts="visited")
    train(small(recipe, tmp_path / "run", pendulum))
    run, done = restore(tmp_path / "run")
    lately = run.online.latest(30).obs
    rows = done.imagined.latest(10)
    for k in range(2):
        assert {tuple(x) for x in rows.obs[k].tolist()} <= {tuple(x) for x in lately[k].tolist()}


def test_kinds_of_starts_are_mixed_and_survive_a_restart(pendulum, tmp_path):
    starts = {"data": 0.25, "mixture": 0.25, "visited": 0.25, "imagined-ends": 0.25}
    settings = {"agent": sac(), **SIZES, **OFFLINE, **ONLINE}
    recipe = MOOReConfig(**settings, starts="imagined-ends", online_starts=starts)
    cfg = small(recipe, tmp_path / "run", pendulum)
    cfg.run.checkpoint_every = 30
    train(cfg)
    _, done = restore(tmp_path / "run")
    assert done.cfg.online_starts == starts
    assert done.ends.reached.all()  # Pendulum never ends


# ---------------------------------------------------------------------- the penalty online


@pytest.mark.parametrize("online_coef", ["fade", "error", 0.5])
def test_the_coefficient_online_is_logged_and_does_what_it_is_called(online_coef, pendulum, tmp_path):
    settings = {"agent": sac(), **SIZES, **OFFLINE, **ONLINE, "coef": 2.0, "alpha": 0.1}
    train(small(MOOReConfig(**settings, online_coef=online_coef), tmp_path / "run", pendulum))
    log = read_run(tmp_path / "run")
    coef = log.series("uncertainty", "coef", "online").values  # at turns 0, 59 and 119
    if online_coef == 0.5:
        assert (coef == 0.5).all()
    elif online_coef == "fade":
        n = 600  # rows of the dataset
        shares = [n * 0.1 / (n * 0.1 + 1), n * 0.1 / (n * 0.1 + 60), n * 0.01 / (n * 0.01 + 120)]
        assert coef[:, 0].tolist() == pytest.approx([2 * x for x in shares], rel=1e-5)
    else:
        _, done = restore(tmp_path / "run")
        errors = log.series("uncertainty", "error/online", "online").values
        assert (coef[0] == 2).all()
        expected = 2 * torch.as_tensor(errors[-2:]) / done.at_switch.error
        torch.testing.assert_close(torch.as_tensor(coef[1:]), expected, rtol=1e-4, atol=0, check_dtype=False)
        assert coef[1, 0] != coef[1, 1]  # each seed has its own


@pytest.mark.parametrize("online_coef", ["fades", True, [1]])
def test_a_coefficient_that_cannot_be_is_one_line(online_coef):
    with pytest.raises(UserError, match=r"recipe\.online_coef=.* must be a number, null, fade or error"):
        MOOReConfig(online_coef=online_coef)


# ---------------------------------------------------------------------- large ensembles


def test_an_ensemble_of_neubay_s_size_is_fitted_and_imagines(pendulum, tmp_path):
    given = ["recipe=mopo", f"dataset={pendulum}", "recipe.dynamics.net.hidden=[8,8]"]
    given += ["recipe.dynamics.net.layer_norm=true", "recipe.dynamics.members=128"]
    dynamics = compose_config([*given, "recipe.dynamics.elites=100"]).recipe.dynamics
    fit = FitConfig(min_updates=60, max_updates=60, epoch_updates=20)
    sizes = SIZES | {"dynamics": dynamics, "fit": fit}
    recipe = MOPOConfig(agent=sac(), **sizes, **OFFLINE, horizon=20, truncate=1.0, penalty="epistemic_std")
    train(small(recipe, tmp_path / "run", pendulum))
    run, done = restore(tmp_path / "run")
    model = done.model
    assert model.elites.shape == (2, 100)
    assert [x.shape for x in model.net.net.scales] == [(2, 128, 1, 8)] * 2
    assert all((x != 1).any(-1).all() for x in model.net.net.scales)  # every member's LayerNorm has learned
    log = read_run(tmp_path / "run")
    assert (log.series("model", "holdout_mse").values < 1).all()  # better than the mean of the data
    assert log.has("uncertainty", "length/imagined")
    b = run.dataset.sample(50)
    weights = model.elite_weights()
    torch.manual_seed(0)
    one = model.step(b.obs, b.act, weights=weights)[0]
    mean, std = model.predict(b.obs, b.act)
    away = ((one - b.obs).unsqueeze(-3) - mean[..., :-1]).abs() / std[..., :-1]
    assert away.amin(-3).median() < 1  # each row is drawn from one of the members


# ---------------------------------------------------------------------- agents


LEARNERS = {
    **{"redq": "q", "sacn": "q", "edac": "alignment", "cql": "gap", "obac": "offline_v"},
    **{"td3bc": "imitation", "iql": "value_loss", "awac": "weight", "adaptive_bc": "imitation"},
}
"""Agents that are not SAC, and a metric that only their kind of update has."""


def few(agent):
    """The default settings of an agent, but for its sizes."""
    nets = {f.name: NET for f in fields(agent) if isinstance(getattr(agent, f.name), MLPConfig)}
    return replace(agent, **nets | {"critics": 3} | ({"samples": 2} if hasattr(agent, "samples") else {}))


@pytest.mark.parametrize("agent", LEARNERS)
def test_any_agent_that_learns_values_learns_in_the_model(agent, pendulum, tmp_path):
    """Named on the command line, stored by name, and restored as what it was."""
    cfg = compose_config(["recipe=mopo", f"agent@recipe.agent={agent}", f"dataset={pendulum}"])
    recipe = replace(cfg.recipe, agent=few(cfg.recipe.agent), **SIZES, **OFFLINE, horizon=2)
    train(small(recipe, tmp_path / "run", pendulum))
    _, done = restore(tmp_path / "run")
    assert type(done.agent.cfg) is type(cfg.recipe.agent)
    assert done.agent.updates == 40
    assert read_run(tmp_path / "run").has("train", LEARNERS[agent])


@pytest.mark.parametrize("agent", ["td3bc", "iql", "cql"])
@pytest.mark.parametrize("recipe", [MOOReConfig, MBPOConfig])
def test_other_agents_go_on_online(recipe, agent, pendulum, tmp_path):
    settings = {"agent": few(AGENTS[agent].config()), **SIZES, **ONLINE}
    settings |= OFFLINE if recipe is MOOReConfig else {"random_steps": 70}
    data = pendulum if recipe is MOOReConfig else None
    train(small(recipe(**settings), tmp_path / "run", data))
    assert restore(tmp_path / "run")[1].agent.updates == (160 if recipe is MOOReConfig else 120)


@pytest.mark.parametrize(("agent", "noise"), [("sac", 0.0), ("td3bc", 0.5), ("iql", 0.0)])
def test_branches_take_the_actions_that_the_agent_takes_in_the_environment(agent, noise, pendulum, tmp_path):
    """A deterministic policy adds its noise in the model, too."""
    cfg = few(AGENTS[agent].config())
    cfg = replace(cfg, exploration_noise=noise) if noise else cfg
    train(small(MOPOConfig(agent=cfg, **SIZES, **OFFLINE), tmp_path / "run", pendulum))
    run, done = restore(tmp_path / "run")
    obs = run.dataset.sample(2000).obs
    torch.manual_seed(0)
    taken = done._explore(obs)
    torch.manual_seed(0)
    assert torch.equal(taken, done.agent.act(obs, explore=True))
    spread = (taken - done.agent.act(obs)).std()
    assert spread > 0.8 * noise > 0 if noise else spread > 0


@pytest.mark.parametrize(
    ("agent", "reason"),
    [
        ("bc", "bc cannot learn from imagined rows: it imitates all actions of a batch"),
        ("lapo", "lapo cannot learn from imagined rows: its actions are those"),
        ("pex", "pex cannot learn from imagined rows: it goes on from an offline IQL"),
        ("calql", "calql cannot learn from imagined rows: it bounds values by recorded returns"),
    ],
)
@pytest.mark.parametrize("recipe", ["mopo", "moore", "mbpo"])
def test_an_agent_to_which_imagined_rows_say_nothing_is_refused(recipe, agent, reason, pendulum):
    with pytest.raises(UserError, match=reason):
        compose_config([f"recipe={recipe}", f"agent@recipe.agent={agent}", f"dataset={pendulum}"])
    with pytest.raises(UserError, match=reason):
        RECIPES[recipe].config(agent=AGENTS[agent].config())


def test_cloning_at_first_is_refused_in_a_model():
    with pytest.raises(UserError, match=r"clone_steps=5 must be 0: most rows are imagined"):
        MOPOConfig(agent=CQLConfig(clone_steps=5))


def test_an_agent_s_place_takes_nothing_else():
    with pytest.raises(UserError, match="MLPConfig is not the config of a registered agent"):
        MOPOConfig(agent=NET)
    assert MOPOConfig().agent == SACConfig()


def test_observations_are_standardised_in_the_model_too(pendulum, tmp_path):
    train(small(MOPOConfig(agent=sac(normalize=True), **SIZES, **OFFLINE), tmp_path / "run", pendulum))
    run, done = restore(tmp_path / "run")
    expected = run.dataset.obs[run.dataset.index].mean(0).expand(2, 1, -1)
    torch.testing.assert_close(done.agent.observe.mean, expected, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------- the first online steps


@pytest.mark.parametrize("sampling", ["geometric", "online"])
def test_moore_learns_from_its_first_online_step_on(sampling, pendulum, tmp_path):
    """The offline model imagines at once: no thousand steps are lost until the first refit."""
    train(
        small(
            MOOReConfig(agent=sac(), **SIZES, **OFFLINE, **ONLINE, sampling=sampling),
            tmp_path / "run",
            pendulum,
        )
    )
    log = read_run(tmp_path / "run")
    assert log.series("uncertainty", "penalty_share", "online").step.tolist() == [0, 59, 119]
    assert log.series("model", "holdout_mse", "online").step.tolist() == [59, 119]
    assert log.series("train", "critic_loss", "online").step[0] == 10
    assert restore(tmp_path / "run")[1].agent.updates == 40 + 120


# ---------------------------------------------------------------------- engines


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "trace_autograd_ops"), reason="this torch traces no autograd.grad"
)
@pytest.mark.parametrize("recipe", [MOPOConfig, MOOReConfig])
def test_model_based_methods_run_compiled_at_low_precision(recipe, pendulum, tmp_path):
    """Fits, rollouts and updates, of two seeds; what a run saves is float32."""
    online = ONLINE if recipe is MOOReConfig else {}
    cfg = small(recipe(agent=sac(), **SIZES, **OFFLINE, **online, horizon=2), tmp_path / "run", pendulum)
    train(replace(cfg, engine="compiled", precision="bf16"))
    _, done = restore(tmp_path / "run")
    assert done.agent.updates == (40 + 120 if online else 40)
    values = [x for part in (done.agent, done.model) for x in part.state_dict().values()]
    floats = [x for x in values if x.is_floating_point()]
    assert {x.dtype for x in floats} == {torch.float32}
    assert all(x.isfinite().all() for x in floats)
    assert read_run(tmp_path / "run").has("uncertainty", "penalty/imagined")


# ---------------------------------------------------------------------- the actor's rate


@pytest.mark.parametrize("engine", ["eager", pytest.param("compiled", marks=pytest.mark.slow)])
def test_moore_s_actor_rests_at_the_end_of_the_offline_phase_and_learns_again_online(
    engine, pendulum, tmp_path
):
    """The cosine ends with the offline phase: a rate that stayed at 0 would leave the actor as it is."""
    recipe = MOOReConfig(agent=sac(actor_decay_steps=OFFLINE["offline_steps"]), **SIZES, **OFFLINE, **ONLINE)
    cfg = replace(small(recipe, tmp_path / "whole", pendulum), engine=engine)
    offline = replace(cfg, recipe=replace(recipe, online_steps=0), dir=str(tmp_path / "offline"))
    before = restore(train(offline))[1].agent
    after = restore(train(replace(cfg, start_from=str(tmp_path / "offline"))))[1].agent
    assert before.cfg.actor_decay_steps == OFFLINE["offline_steps"]
    assert after.cfg.actor_decay_steps is None
    pairs = zip(before.actor.parameters(), after.actor.parameters(), strict=True)
    assert not any(torch.equal(x, y) for x, y in pairs)


def test_moore_s_actor_has_its_own_rate_online(pendulum, tmp_path):
    """Adam moves a parameter by about its rate in an update, so a tiny rate leaves the actor in its place."""
    recipe = MOOReConfig(agent=sac(), **SIZES, **OFFLINE, **ONLINE)
    cfg = small(recipe, tmp_path / "offline", pendulum)
    before = restore(train(replace(cfg, recipe=replace(recipe, online_steps=0))))[1].agent
    moved = {}
    for rate in (1e-9, None):
        changed = replace(cfg, recipe=replace(recipe, online_actor_lr=rate), dir=str(tmp_path / str(rate)))
        after = restore(train(replace(changed, start_from=str(tmp_path / "offline"))))[1].agent
        pairs = zip(before.actor.parameters(), after.actor.parameters(), strict=True)
        moved[rate] = max(float((x - y).detach().abs().max()) for x, y in pairs)
        assert after.actor_optim.lr == (rate or recipe.agent.actor_lr)
    assert 0 < moved[1e-9] < 1e-6 < moved[None]
    with pytest.raises(UserError, match="online_actor_lr=0 must be above 0"):
        replace(recipe, online_actor_lr=0)
