"""The switch: each published pair is a preset whose table is what its row says, and which changes nothing by
itself.
"""

import json
from dataclasses import fields, replace

import pytest
import torch
import yaml

from mbo2o.agents import make_agent
from mbo2o.agents.cql import CQLConfig
from mbo2o.agents.iql import IQLConfig
from mbo2o.agents.sac import SACConfig
from mbo2o.cli.main import compose_config
from mbo2o.data.buffer import ReplayBuffer
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.nn.optim import Adam
from mbo2o.registry import SOURCES, conf_folder
from mbo2o.report.read import read_run
from mbo2o.run.config import RunConfig
from mbo2o.run.turns import Run
from mbo2o.run.world import Task
from mbo2o.sources import make_source
from mbo2o.sources.anneal import AnnealConfig
from mbo2o.sources.append import AppendConfig
from mbo2o.sources.distilled import DistilledConfig
from mbo2o.sources.mix import MixConfig
from mbo2o.sources.online import OnlineConfig
from mbo2o.store import datasets
from mbo2o.training import Config, read_config, restore, train
from mbo2o.types import Diverged, Spec, UserError

NET = MLPConfig(hidden=[8])
CONSERVATIVE = {
    "weight",
    "samples",
    "temperature",
    "ensemble",
    "gap",
    "gap_floor",
    "lagrange_lr",
    "init_lagrange",
    "clone_steps",
}
SOFT = {"backup": "deterministic → sampled", "backup_entropy": "False → True"}
SUNRISE = {
    "target": "min_q → weighted_min_pair",
    "explore.name": "policy → ucb",
    "sunrise.weight": "none → per_sample",
    "sunrise.temperature": "10.0 → 1.0",
    "sunrise.std_norm": "none → batch_mean",
}
SUNRISE_E2O, SUNRISE = SUNRISE, SUNRISE | {"explore.ucb_coef": "1.0 → 10.0"}
CALIBRATED = CONSERVATIVE | {"calibrate", "calibrate_online"}
FADING = {"bc_final": "None → 0.0", "bc_decay_steps": "None → 500000"}  # from the offline weight: no jump
ROWS = {
    # preset: (settings dropped, settings changed, source, steps before the first update)
    "cql": (set(), {}, "append", 0),
    "cql-sac": (CONSERVATIVE, SOFT, "online", 1000),
    "cql-enoto": (CONSERVATIVE, SOFT | SUNRISE, "online", 1000),
    "sacn": (set(), {}, "online", 1000),
    "sacn-hopper": (set(), {}, "online", 1000),
    "sacn-walker2d": (set(), {}, "online", 1000),
    "edac": ({"diversity"}, {}, "online", 1000),
    "edac-hopper": ({"diversity"}, {}, "online", 1000),
    "calql": (set(), {}, "mix", 1000),
    "calql-dense": (set(), {}, "mix", 1000),
    "calql-corl": (set(), {"calibrate": "True → False"}, "mix", 0),
    "iql": (set(), {"actor_decay_steps": "20 → None"}, "append", 0),
    "awac": (set(), {}, "append", 0),
    "td3bc": (set(), FADING, "online", 1000),
    "td3bc-enoto": (set(), SUNRISE_E2O | FADING, "online", 1000),
    "lapo": (set(), {}, "online", 1000),
    "lapo-antmaze": (set(), {}, "online", 1000),
    "lapo-enoto": (set(), SUNRISE, "online", 1000),
    "lapo-enoto-antmaze": (set(), SUNRISE, "online", 1000),
    "wsrl": (CONSERVATIVE, {"backup": "max → sampled", "policy_delay": "1 → 4"}, "online", 5000),
    "wsrl-calql": (
        CALIBRATED | {"log_lagrange", "log_lagrange_optim"},
        {"policy_delay": "1 → 4"},
        "online",
        5000,
    ),
    "wsrl-calql-adroit": (CALIBRATED, {"backup": "max → sampled", "policy_delay": "1 → 4"}, "online", 5000),
    "wsrl-calql-kitchen": (CALIBRATED, {"backup": "max → sampled", "policy_delay": "1 → 4"}, "online", 5000),
    "adaptive-bc": (set(), {"adapt": "False → True"}, "distilled", 1000),
}


def shrink(agent):
    """The agent's config with nets of eight units."""
    nets = {f.name: NET for f in fields(agent) if isinstance(getattr(agent, f.name), MLPConfig)}
    few = {f.name: 2 for f in fields(agent) if f.name == "samples"}
    decay = {"actor_decay_steps": 20} if type(agent) is IQLConfig else {}
    return replace(agent, **nets | few | decay)


def small(preset, dataset, directory, **change):
    cfg = compose_config([f"switch={preset}", f"dataset={dataset}"])
    sizes = {"offline_steps": 20, "online_steps": 30, "batch": 8}
    sizes |= {x: shrink(a) for x in ("agent", "offline", "online") if (a := getattr(cfg.recipe, x, None))}
    if type(cfg.recipe.source) is DistilledConfig:
        sizes["source"] = DistilledConfig(rows=50)
    known = {f.name for f in fields(cfg.recipe)}
    recipe = replace(cfg.recipe, **{k: v for k, v in sizes.items() if k in known} | change)
    run = RunConfig(log_every=10, eval_every=10, eval_episodes=1, checkpoint_every=1000, online_capacity=1000)
    return replace(cfg, recipe=recipe, run=run, dir=str(directory), seeds=2, report=False)


def source_name(cfg):
    return next(entry.name for entry in SOURCES.values() if entry.config is type(cfg))


PRESETS = sorted(p.stem for p in (conf_folder() / "switch").glob("*.yaml"))


def test_every_row_is_a_preset():
    assert {p.stem for p in (conf_folder() / "switch").glob("*.yaml")} == {
        *ROWS,
        "pex",
        "balanced",
        "bc",
        "rlpd",
    }


def test_pex_is_handed_iql_and_a_second_actor(pendulum, tmp_path):
    """The one switch after which the policy is another: the new actor has a say from the start."""
    cfg = small("pex", pendulum, tmp_path / "run")
    assert (cfg.recipe.source, cfg.recipe.warmup) == (MixConfig(0.5), 5000)
    train(replace(cfg, recipe=replace(cfg.recipe, warmup=5)))
    table = {
        x["part"]: x["what"] for x in json.loads((tmp_path / "run" / "switch.json").read_text())["parts"]
    }
    assert {x for x, what in table.items() if what == "new"} == {
        "second",
        "second_optim",
        "inverse_temperature",
        "scale",
    }
    assert {x for x, what in table.items() if what == "dropped"} == {"actor_optim"}
    assert read_run(tmp_path / "run").has("train", "second")


def test_balanced_replay_is_handed_networks_and_starts_moments_and_temperature_anew(pendulum, tmp_path):
    cfg = compose_config(["switch=balanced", f"dataset={pendulum}"])
    tiny = replace(cfg.recipe.source, first_updates=6, ratio=NET)
    train(small("balanced", pendulum, tmp_path / "run", warmup=5, source=tiny))
    table = {
        (x["part"], x["what"]): x["note"]
        for x in json.loads((tmp_path / "run" / "switch.json").read_text())["parts"]
    }
    assert {part for part, what in table if what == "kept"} == {"observe", "critic", "target", "actor"}
    assert table[("critic_optim", "reset")] == table[("actor_optim", "reset")] == "moments"
    assert {part for part, what in table if what == "reset"} >= {"log_alpha", "log_alpha_optim"}
    log = read_run(tmp_path / "run")
    assert log.has("train", "ratio_online")
    assert 0 < log.series("train", "online_share", "online").values.mean() < 1
    _, recipe = restore(tmp_path / "run")
    assert recipe.agent.updates == 6 + 24  # of turns 5 to 29
    assert int(recipe.source.entered) == 30


@pytest.mark.parametrize("preset", ROWS)
def test_preset_does_what_its_row_says(preset, pendulum, tmp_path, capsys):
    dropped, changed, source, warmup = ROWS[preset]
    cfg = small(preset, pendulum, tmp_path / "run")
    assert (source_name(cfg.recipe.source), cfg.recipe.warmup) == (source, warmup)
    train(cfg)
    table = json.loads((tmp_path / "run" / "switch.json").read_text())["parts"]
    assert {x["what"] for x in table} <= {"kept", "dropped", "changed"}
    parts = {x["part"] for x in table if x["what"] == "kept"}
    assert {"observe", "critic", "target", "critic_optim"} <= parts
    assert any("actor" in x or "latent" in x for x in parts)
    assert {x["part"] for x in table if x["what"] == "dropped"} == dropped
    assert {x["part"]: x["note"] for x in table if x["what"] == "changed"} == changed
    printed = capsys.readouterr().err
    assert all(x["part"] in printed for x in table)
    # with no update in between, evaluation is the same on both sides of the switch, to the last bit
    log = read_run(tmp_path / "run")
    before, after = log.series("eval", "return", "offline"), log.series("eval", "return", "online")
    assert before.values[-1].tolist() == after.values[0].tolist()
    assert after.step[0] == 0


@pytest.fixture
def opened(pendulum, tmp_path):
    """A source of a run with 600 offline and 30 online rows, and the run."""

    def make(cfg, warmup=0, capacity=700):
        run = Run(
            tmp_path,
            RunConfig(online_capacity=capacity),
            Task("Pendulum-v1", seed=0, seeds=2, gamma=0.99),
            datasets.read(str(pendulum)),
        )
        for _ in range(30):
            run.online.add(run.world.lanes.step(torch.zeros(2, 1, 1))[0])
        return make_source(cfg, run.spec, run.dataset, run.online, warmup), run

    return make


def test_sources_hold_what_they_say(opened):
    online, run = opened(OnlineConfig())
    online.advance(5)
    assert (len(online), len(run.online)) == (30, 30)
    whole = {tuple(x) for x in run.online.latest(30).obs.flatten(0, 1).tolist()}
    assert {tuple(x) for x in online.sample(50).obs.flatten(0, 1).tolist()} <= whole
    appended, _ = opened(AppendConfig())
    appended.advance(5)
    assert appended.share == pytest.approx(600 / 630)
    mixed, _ = opened(MixConfig(0.36))
    mixed.advance(5)
    assert mixed.mix().counts(100) == [36, 64]
    fading, _ = opened(AnnealConfig(0.36, steps=10))
    shares = []
    for t in (0, 5, 10, 50):
        fading.advance(t)
        shares.append(fading.mix().counts(100)[0])
    assert shares == [36, 18, 0, 0]
    assert fading.sample(8).rew.shape == (2, 8)


@pytest.mark.parametrize(("share", "rows", "expected"), [(0.05, 50, 50), (0.5, 50, 300), (0.05, 5000, 600)])
def test_distillation_keeps_a_random_part(opened, share, rows, expected):
    distilled, run = opened(DistilledConfig(share, rows))
    distilled.begin()
    assert len(run.online) == 30 + expected
    kept = run.online.latest(expected)
    whole = {tuple(x) for x in run.dataset.obs.tolist()}
    for seed in range(2):
        found = [tuple(x) for x in kept.obs[seed].tolist()]
        assert set(found) <= whole
        assert len(set(found)) == expected  # without replacement
    if expected < 600:
        assert not torch.equal(kept.obs[0], kept.obs[1])  # each seed its own
    assert kept.mc_return is not None


def test_distillation_that_does_not_fit_is_refused_before_anything_is_learned(opened, pendulum, tmp_path):
    distilled, _ = opened(DistilledConfig(rows=600), capacity=100)
    with pytest.raises(UserError, match=r"keeps 600 rows, more than run\.online_capacity=100"):
        distilled.begin()
    cfg = small("cql-sac", pendulum, tmp_path / "run", source=DistilledConfig(rows=600))
    cfg.run.online_capacity = 100
    with pytest.raises(UserError, match="online_capacity=100"):
        train(cfg)
    assert not (tmp_path / "run" / "metrics.jsonl").exists() or not read_run(tmp_path / "run").lines


def test_an_unknown_source_is_refused():
    with pytest.raises(UserError, match=r"no source is called 'aneal'; did you mean 'anneal'\?"):
        compose_config(["recipe=finetune", "source@recipe.source=aneal"])


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_trains(name, pendulum, tmp_path):
    own = {"balanced": {"first_updates": 5, "ratio": NET}, "distilled": {"rows": 50}, "aged": {"epoch": 10}}
    source = SOURCES[name].config(**own.get(name, {}))
    train(small("cql-sac", pendulum, tmp_path / "run", source=source, warmup=3))
    assert read_run(tmp_path / "run").has("train", "critic_loss")


def test_offline_moments_are_carried_or_reset(pendulum, tmp_path):
    """Moments cross the switch, unless told otherwise."""
    notes = {}
    for carry in (True, False):
        train(small("cql-sac", pendulum, tmp_path / str(carry), carry_moments=carry))
        table = json.loads((tmp_path / str(carry) / "switch.json").read_text())["parts"]
        notes[carry] = {x["part"]: (x["what"], x["note"]) for x in table if x["part"].endswith("_optim")}
    assert notes[True]["actor_optim"] == ("kept", "")
    assert notes[False]["actor_optim"] == ("reset", "moments")


@pytest.mark.parametrize("preset", [x for x in PRESETS if x != "rlpd"])
def test_the_rates_after_the_switch_are_those_of_the_resolved_config(preset, pendulum, tmp_path):
    """Also a rate that the user gives: nothing overwrites it."""
    cfg = small(preset, pendulum, tmp_path / "run", warmup=40, online_steps=10)
    given = cfg.recipe.online or cfg.recipe.offline.after_switch()
    rates = {f.name: 1.5 * getattr(given, f.name) for f in fields(given) if f.name.endswith("_lr")}
    for online in (cfg.recipe.online, replace(given, **rates)):
        directory = tmp_path / ("named" if online is not cfg.recipe.online else "derived")
        recipe = replace(cfg.recipe, online=online, keep=cfg.recipe.keep and online is cfg.recipe.online)
        train(replace(cfg, recipe=recipe, dir=str(directory)))
        _, done = restore(directory)
        after = done.configs()[1]
        for part, optim in done.agent.named_children():
            if isinstance(optim, Adam):
                assert optim.lr == rate_of(after, part.removesuffix("_optim")), part
        if online is not cfg.recipe.online:
            changed = {
                x["part"]
                for x in json.loads((directory / "switch.json").read_text())["parts"]
                if x["what"] == "changed"
            }
            assert set(rates) - {"lagrange_lr"} <= changed | {"second_lr"}


def rate_of(cfg, part):
    """What a config says of a part's learning rate."""
    own = {
        "log_alpha": "alpha_lr",
        "log_lagrange": "lagrange_lr",
        "value_net": "value_lr",
        "second": "actor_lr",
    }
    name = own.get(part, f"{part}_lr")
    return getattr(cfg, name) if hasattr(cfg, name) else cfg.critic_lr


def test_a_run_from_when_rates_were_carried_goes_on_or_is_refused(pendulum, tmp_path):
    """Its config.yaml has carry_rates: with a derived online agent that meant what is done now."""

    def stored(directory):
        path = directory / "config.yaml"
        tree = yaml.safe_load(path.read_text())
        tree["recipe"]["carry_rates"] = True
        path.write_text(yaml.safe_dump(tree))
        return path.read_text()

    derived = small("cql-sac", pendulum, tmp_path / "derived")
    train(derived)
    stored(tmp_path / "derived")
    train(derived)
    named = small("wsrl", pendulum, tmp_path / "named")
    train(named)
    stored(tmp_path / "named")
    train(named)  # its online rates are its offline ones: the same run
    online = replace(named.recipe.online, alpha_lr=0.5)
    other = replace(named, recipe=replace(named.recipe, online=online), dir=str(tmp_path / "other"))
    train(other)
    stored(tmp_path / "other")
    assert (
        read_config(tmp_path / "other")[0].recipe.online.alpha_lr == named.recipe.offline.alpha_lr
    )  # as it learned
    with pytest.raises(UserError, match=r"recipe\.online\.alpha_lr=0\.0001, not 0\.5 \(1 setting differs\)"):
        train(other)


def test_rewards_are_shaped_alike_and_evaluated_raw(pendulum, tmp_path):
    cfg = small("iql", pendulum, tmp_path / "run")
    cfg = replace(cfg, run=replace(cfg.run, reward_scale=0.1, reward_shift=1.0))
    train(cfg)
    plain = datasets.read(str(pendulum))
    task = Task("Pendulum-v1", seed=0, seeds=2, gamma=0.99)
    run = Run(tmp_path / "run", cfg.run, task, plain, look_only=True)
    torch.testing.assert_close(run.dataset.rew, 0.1 * plain.rew + 1)
    assert (run.online.latest(30).rew <= 1).all()
    assert (run.online.latest(30).rew > -0.7).all()  # raw rewards go down to -16
    assert (read_run(tmp_path / "run").series("eval", "return").values < -100).all()
    assert isinstance(cfg, Config)


@pytest.mark.parametrize("preset", ["cql", "calql", "calql-corl"])
def test_what_goes_on_as_it_is_keeps_its_networks_of_any_size(preset, pendulum, tmp_path):
    """Sizes are given to the offline agent alone."""
    cfg = compose_config([f"switch={preset}", f"dataset={pendulum}"])
    offline = replace(shrink(cfg.recipe.offline), critics=3, gamma=0.9, clone_steps=5)
    train(small(preset, pendulum, tmp_path / "run", offline=offline))
    table = json.loads((tmp_path / "run" / "switch.json").read_text())["parts"]
    assert {x["what"] for x in table} <= {"kept", "changed"}
    assert {x["part"] for x in table if x["what"] == "changed"} == {"clone_steps"} | (
        {"calibrate"} if preset == "calql-corl" else set()
    )


def test_keeping_and_naming_another_is_refused(pendulum, tmp_path):
    with pytest.raises(UserError, match=r"recipe\.keep"):
        train(small("cql-sac", pendulum, tmp_path / "run", keep=True, online=CQLConfig()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["agent@recipe.offline=bc"], "BCConfig has no critics"),
        (["agent@recipe.online=bc"], "BCConfig has no critics"),
        (["recipe.offline.critics=7"], "overruled by recipe.critics=10: set that"),
        (["recipe.offline.target=rem"], "overruled by recipe.offline_target=min_q"),
        (
            ["agent@recipe.online=sac", "recipe.online.target=rem"],
            "overruled by recipe.target=weighted_min_pair",
        ),
        (["recipe.probe_every=0"], "recipe.probe_every=0 must be at least 1"),
        (["recipe.warmup=-1"], "recipe.warmup=-1 must not be negative"),
        (["recipe.explore.candidates=0"], "candidates=0 must be at least 1"),
        (["recipe.offline.granularity=bach"], "granularity 'bach'"),
        (["recipe.offline.policy_delay=0"], "policy_delay=0"),
        (["recipe.offline.samples=0"], "samples=0"),
        (["recipe.offline.temperature=0"], "temperature=0"),
    ],
)
def test_what_enoto_cannot_do_is_one_line_before_anything_is_learned(settings, message, pendulum, tmp_path):
    with pytest.raises(UserError, match=message):
        train(compose_config(["recipe=enoto", f"dataset={pendulum}", f"dir={tmp_path / 'run'}", *settings]))
    assert (
        not (tmp_path / "run" / "metrics.jsonl").exists()
        or not (tmp_path / "run" / "metrics.jsonl").read_text()
    )


def test_enoto_tells_which_settings_of_its_agents_it_replaces(pendulum, tmp_path, capsys):
    """A value that was given, yet is the agent's default, cannot be told from one that was not given."""
    agents = {
        "offline": CQLConfig(actor=NET, critic=NET, samples=2),
        "online": SACConfig(actor=NET, critic=NET),
    }
    train(small("cql-enoto", pendulum, tmp_path / "run", **agents))
    told = "enoto replaces settings of its agents: recipe.offline.critics=2 by recipe.critics=10; "
    assert (
        f"{told}recipe.online.critics=2 by recipe.critics=10; recipe.online.target=min_q by "
        in capsys.readouterr().err
    )
    agents["online"] = replace(agents["online"], mask=0.5)
    with pytest.raises(
        UserError, match=r"recipe\.online\.mask=0\.5 is overruled by recipe\.mask=1\.0: set that"
    ):
        train(small("cql-enoto", pendulum, tmp_path / "other", **agents))


@pytest.mark.parametrize(
    "change", [{"run": {"reward_shift": -1.0}}, {"run": {"reward_scale": 0.1}}, {"recipe": {"batch": 4}}]
)
def test_an_offline_phase_under_other_rewards_is_not_taken_over(change, pendulum, tmp_path):
    train(small("cql-sac", pendulum, tmp_path / "offline", online_steps=0))
    cfg = small("cql-sac", pendulum, tmp_path / "run")
    changed = {name: replace(getattr(cfg, name), **values) for name, values in change.items()}
    with pytest.raises(UserError, match=next(iter(next(iter(change.values()))))):
        train(replace(cfg, start_from=str(tmp_path / "offline"), **changed))


def test_values_that_no_reward_allows_are_divergence(pendulum, tmp_path):
    """Pendulum's rewards reach -16: at γ = 0.9 no return is beyond 163."""
    cfg = small("cql-sac", pendulum, tmp_path / "run")
    offline = replace(
        cfg.recipe.offline, gamma=0.9, critic_lr=300.0, critic=MLPConfig(hidden=[8], layer_norm=True)
    )
    with pytest.raises(Diverged, match=r"beyond run\.q_limit=1\.[56]\de\+03"):
        train(replace(cfg, recipe=replace(cfg.recipe, offline=offline)))


def rows_at_updates(monkeypatch, cls):
    """How many online rows there are, and how many of a batch's rows are the dataset's, at each update."""
    seen = []
    draw = ReplayBuffer.draw

    def spied(self, n, youngest=None):
        seen.append((len(self), n))
        return draw(self, n, youngest)

    monkeypatch.setattr(cls, "draw", spied)
    return seen


def test_wsrl_learns_nothing_while_it_warms_up_and_sees_no_offline_row(pendulum, tmp_path, monkeypatch):
    seen = rows_at_updates(monkeypatch, ReplayBuffer)
    train(small("wsrl", pendulum, tmp_path / "run", warmup=12, utd=4))
    assert [n for n, _ in seen] == [*range(13, 31)]  # the frozen policy's 12 and the turn's own
    assert all(size == 4 * 8 for _, size in seen)  # four whole batches in one draw
    log = read_run(tmp_path / "run")
    assert (
        log.series("eval", "return", "online").values[1].tolist()
        == log.series("eval", "return", "online").values[0].tolist()
    )


def test_wsrl_steps_its_actor_once_for_four_steps_of_its_critics():
    cfg = compose_config(["switch=wsrl", "dataset=hopper-medium-v5"])
    assert cfg.recipe.utd == cfg.recipe.online.policy_delay == 4


def test_rlpd_starts_from_nothing_on_exact_halves(pendulum, tmp_path, monkeypatch):
    seen = rows_at_updates(monkeypatch, ReplayBuffer)
    train(small("rlpd", pendulum, tmp_path / "run", warmup=5, utd=2))
    assert len(seen) == 25
    assert all(size == 2 * 4 for _, size in seen)  # of two batches of 8
    agent = make_agent(compose_config(["switch=rlpd", "dataset=hopper-medium-v5"]).recipe.agent, Spec(11, 3))
    assert agent.target_entropy == -1.5


@pytest.mark.parametrize(
    ("inherit", "kept"),
    [
        ("all", {"observe", "actor", "log_alpha", "critic", "target"}),
        ("policy", {"observe", "actor", "log_alpha"}),
        ("critics", {"observe", "critic", "target"}),
        ("none", {"observe"}),
    ],
)
def test_a_choice_of_networks_crosses_the_switch(inherit, kept, pendulum, tmp_path):
    train(small("wsrl", pendulum, tmp_path / "run", inherit=inherit))
    table = {
        x["part"]: x["what"] for x in json.loads((tmp_path / "run" / "switch.json").read_text())["parts"]
    }
    networks = {"observe", "actor", "log_alpha", "critic", "target"}
    assert {x for x in networks if table[x] == "kept"} == kept
    assert {x for x in networks if table[x] == "reset"} == networks - kept
    assert all(table[f"{x}_optim"] == table[x] for x in ("actor", "critic", "log_alpha"))


def test_an_unknown_choice_is_refused(pendulum, tmp_path):
    with pytest.raises(UserError, match="all, policy, critics, none"):
        train(small("wsrl", pendulum, tmp_path / "run", inherit="actor"))


def test_looking_at_td_errors_shifts_no_draw(pendulum, tmp_path):
    """Probes draw next actions, and yet how often they are made changes nothing else."""
    for every in (5, 1000):
        train(small("cql-sac", pendulum, tmp_path / str(every), warmup=3, probe_every=every))
    a, b = (read_run(tmp_path / x) for x in ("5", "1000"))
    assert (
        a.series("train", "critic_loss").values.tolist() == b.series("train", "critic_loss").values.tolist()
    )
    assert (a.series("probe", "td_error").values > 0).all()
    assert len(a.series("probe", "td_error").step) > len(b.series("probe", "td_error").step)
