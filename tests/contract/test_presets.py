"""A name in conf/ means what it says: where its numbers come from, and what the number that matters does to
the gradients.
"""

import re
import shutil
from dataclasses import fields, replace

import pytest
import torch
import yaml

import mbo2o.agents  # noqa: F401  registers
from mbo2o import naming
from mbo2o.agents import make_agent
from mbo2o.cli.main import compose_config, main
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.registry import conf_folder
from mbo2o.settings import KINDS, read_config
from mbo2o.types import Batch, Spec

PRESETS = [
    (group, p.stem)
    for group in ("switch", "experiment")
    for p in sorted((conf_folder() / group).glob("*.yaml"))
]
NET = MLPConfig(hidden=[8])


def composed(*overrides):
    return compose_config(["dataset=hopper-medium-replay-v5", *overrides])


@pytest.mark.parametrize(("group", "name"), PRESETS)
def test_every_preset_says_where_its_numbers_come_from(group, name):
    said = composed(f"{group}={name}").provenance
    match = re.fullmatch(rf"{group}={name}: (\w+): (.{{20,}})", said or "")
    assert match, said
    assert match[1] in KINDS
    assert (match[1] == "small") == (name.endswith("-small") or name == "first-run")
    text = (conf_folder() / group / f"{name}.yaml").read_text()
    assert text.startswith("# @package _global_\n# ")  # a comment says more


def test_settings_on_top_of_a_preset_are_told():
    plain = composed("switch=wsrl").provenance
    assert plain.startswith("switch=wsrl: official: ")
    changed = composed("switch=wsrl", "recipe.utd=1", "run.reward_scale=2", "seeds=3", "seed=5").provenance
    assert changed.startswith(
        "switch=wsrl: official, with 2 settings overridden (recipe.utd=1, run.reward_scale=2): "
    )
    one = composed("switch=cql-sac", "agent@recipe.online=redq").provenance
    assert one.startswith("switch=cql-sac: official, with 1 setting overridden (agent@recipe.online=redq): ")
    assert composed("recipe=mopo").provenance is None


def test_provenance_is_stored_and_is_no_part_of_a_run_s_identity(pendulum, tmp_path, monkeypatch):
    """The same settings by hand are the same run."""
    monkeypatch.chdir(tmp_path)
    small = [
        "recipe.offline_steps=20",
        "recipe.online_steps=20",
        "recipe.batch=8",
        "run.eval_episodes=1",
        "report=false",
    ]
    small += [
        "recipe.offline.actor.hidden=[8]",
        "recipe.offline.critic.hidden=[8]",
        "recipe.offline.samples=2",
    ]
    args = ["train", "switch=cql-sac", f"dataset={pendulum}", *small]
    with pytest.raises(SystemExit) as done:
        main(args)
    assert done.value.code == 0
    (directory,) = (tmp_path / "runs").iterdir()
    said = yaml.safe_load((directory / "config.yaml").read_text())["provenance"]
    assert said.startswith("switch=cql-sac: official, with 7 settings overridden (recipe.offline_steps=20, ")
    cfg = read_config(directory)[0]
    assert cfg.provenance == said
    by_hand = replace(cfg, provenance=None, dir=None)
    assert naming.name(by_hand, "Pendulum-v1") == directory.name
    shutil.rmtree(directory)


# ---- the number that matters, from the gradients


def shrink(agent):
    """The agent's config with nets of eight units and few samples; numbers of critics stay."""
    nets = {f.name: NET for f in fields(agent) if isinstance(getattr(agent, f.name), MLPConfig)}
    few = {f.name: 2 for f in fields(agent) if f.name == "samples"}
    return replace(agent, **nets | few)


def batch(n=64):
    obs, next_obs = torch.randn(2, n, 11)
    return Batch(
        obs, torch.rand(n, 3) * 2 - 1, torch.randn(n), next_obs, torch.zeros(n), torch.full((n,), -torch.inf)
    )


def relative_weight(agent, b):
    """c in c (log Σ exp Q - Q) beside the TD loss (Q - y)² of each critic, `(N,)`, found by differentiating
    both in Q.
    """
    b = agent.scaled(b)
    q = agent.q(b.obs, b.act).detach().requires_grad_()
    y, next_q = agent.backup(b)
    extra, _ = agent.regulariser(b, q)
    (pushed,) = torch.autograd.grad(extra.sum(), q)
    (drawn,) = torch.autograd.grad(agent.td_loss(b, q, y, next_q).sum(), q)
    # of (Q - y)² the slope is 2 (Q - y), of -c Q it is -c; both are means over the batch
    return (pushed / (drawn / (2 * (q - y.unsqueeze(-2))))).mean(-1).abs()


WEIGHTS = {
    # preset: conservative weight beside the TD loss, for each critic
    "cql": 10.0,  # CORL on MuJoCo
    "cql-sac": 5 / 2,  # E2O sums the TD loss over critics and averages the term: c/N
    "cql-enoto": 5 / 10,
    "wsrl": 5.0,  # both are means over critics in the authors' code
    "balanced": 5.0,
    "calql-dense": 10.0,
    "wsrl-calql-adroit": 1.0,
    "wsrl-calql-kitchen": 5.0,
}
LAGRANGE = {"calql": 5.0, "calql-corl": 5.0, "wsrl-calql": 5.0}
"""With a multiplier, which the term is divided by."""


def offline_config(preset):
    """The offline agent's config as its recipe makes it: ENOTO sets the number of critics."""
    from mbo2o.recipes import make_recipe

    made = make_recipe(composed(f"switch={preset}").recipe)
    return made.configs()[0] if hasattr(made, "configs") else made.cfg.agent  # RLPD has no switch


@pytest.mark.parametrize(("preset", "weight"), [*WEIGHTS.items(), *LAGRANGE.items()])
def test_the_conservative_term_weighs_what_its_source_has(preset, weight):
    torch.manual_seed(0)
    agent = make_agent(shrink(offline_config(preset)), Spec(11, 3))
    b = batch()
    scale = 1.0
    if preset in LAGRANGE:
        agent.cfg.lagrange_lr = agent.log_lagrange_optim.lr = 0.0
        scale = float(agent.log_lagrange.detach().exp())
    found = relative_weight(agent, b) / scale
    torch.testing.assert_close(found, torch.full_like(found, weight), rtol=1e-4, atol=1e-4)


def test_no_preset_with_a_conservative_term_is_left_out():
    found = {
        name for group, name in PRESETS if group == "switch" and hasattr(offline_config(name), "gap_floor")
    }
    assert found == {*WEIGHTS, *LAGRANGE}


# ---- numbers that a source states in one line


SAID = {
    "switch=cql": {"offline.actor.hidden": [256] * 3, "offline.critic.hidden": [256] * 3, "offline.alpha_lr": 3e-5,  # noqa: E501
                   "offline.backup": "sampled", "offline.backup_entropy": False, "offline.normalize": True},
    "switch=cql-sac": {"offline.critic.hidden": [256] * 3, "offline.backup": "deterministic", "offline.critics": 2},  # noqa: E501
    "switch=cql-enoto": {"offline.critic.hidden": [256] * 3, "explore.ucb_coef": 10, "critics": 10},
    "switch=calql": {"offline.critic.hidden": [256] * 4, "offline.actor.hidden": [256] * 2, "offline.gap": 0.8,  # noqa: E501
                     "offline.backup": "max", "online_steps": 1_000_000},
    "switch=calql-corl": {"offline.critic.hidden": [256] * 5, "offline.actor.hidden": [256] * 3, "offline.gap_floor": -200},  # noqa: E501
    "switch=iql": {"offline.actor_decay_steps": 1_000_000, "offline.normalize": True, "offline.beta": 3},
    "switch=awac": {"offline.normalize": True, "offline.critic.hidden": [256] * 3},
    "switch=sacn": {"offline.critic.hidden": [256] * 3, "offline_steps": 3_000_000, "offline.critics": 10},
    "switch=sacn-hopper": {"offline.critics": 200, "offline_steps": 3_000_000},
    "switch=sacn-walker2d": {"offline.critics": 20},
    "switch=edac": {"offline.critics": 10, "offline.diversity": 1, "offline.critic.hidden": [256] * 3},
    "switch=edac-hopper": {"offline.critics": 50, "offline_steps": 3_000_000},
    "switch=pex": {"offline.expectile": 0.9, "online.expectile": 0.9, "offline.beta": 10, "online.beta": 10,
                   "offline.actor_decay_steps": 1_000_000, "offline.normalize": False},
    "switch=wsrl-calql": {"online.backup": "max", "offline.critic.hidden": [256] * 4, "offline.critics": 10, "utd": 4},  # noqa: E501
    "switch=lapo-enoto": {"batch": 512, "critics": 10},
    "switch=lapo-antmaze": {"offline.rho": 0.7, "offline.v_max": 100, "batch": 512},
    "switch=td3bc-enoto": {"offline.online_bc_weight": 1.0, "offline.bc_weight": 1.0},
    "experiment=obac-paper": {"agent.gate": "batch", "agent.density": "released", "agent.constraint_weight": 0.001},  # noqa: E501
}  # fmt: skip
REWARDS = {
    # what the agent learns from: scale, shift, what a failing step pays
    "switch=calql": (10, -5, -5),
    "switch=calql-corl": (10, -5, -5),
    "switch=wsrl-calql": (10, -5, -5),
    "switch=wsrl-calql-adroit": (10, 5, -5),
    "switch=wsrl-calql-kitchen": (1, -4, None),
    "switch=iql": ("auto", 0, None),
    "switch=pex": (1, 0, None),
    "switch=awac": (1, 0, None),
    "switch=cql": (1, 0, None),
}


@pytest.mark.parametrize("preset", SAID)
def test_numbers_are_those_of_the_source(preset):
    recipe = composed(preset).recipe
    for key, value in SAID[preset].items():
        found = recipe
        for part in key.split("."):
            found = getattr(found, part)
        assert found == value, key


@pytest.mark.parametrize("preset", REWARDS)
def test_rewards_are_shaped_as_in_the_source(preset):
    run = composed(preset).run
    assert (run.reward_scale, run.reward_shift, run.failure_reward) == REWARDS[preset]
