"""Sources as values: a new one is a class and a config in one file, and each checks its own numbers."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from mbo2o.agents.cql import CQLConfig
from mbo2o.cli.main import compose_config
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.recipes.finetune import FinetuneConfig
from mbo2o.recipes.moore import MOOReConfig
from mbo2o.recipes.rlpd import RLPDConfig
from mbo2o.recipes.scratch import ScratchConfig
from mbo2o.recipes.wsrl import WSRLConfig
from mbo2o.registry import SOURCES, conf_folder, source
from mbo2o.report.read import read_run
from mbo2o.run.config import RunConfig
from mbo2o.sources import BaseSource, SourceConfig
from mbo2o.sources.aged import SAMPLING, Aged, AgedConfig
from mbo2o.sources.anneal import AnnealConfig
from mbo2o.sources.balanced import BalancedConfig
from mbo2o.sources.distilled import DistilledConfig
from mbo2o.sources.mix import MixConfig
from mbo2o.sources.online import OnlineConfig
from mbo2o.training import Config, read_config, restore, train
from mbo2o.types import Batch, Spec, UserError

NET = MLPConfig(hidden=[8])


def run_with(source_config, dataset, directory, **settings):
    """A run of `finetune` of two seconds whose online batches come from this source."""
    settings = {"offline_steps": 10, "online_steps": 30, "batch": 8, "warmup": 5, "utd": 2} | settings
    recipe = FinetuneConfig(
        offline=CQLConfig(actor=NET, critic=NET, samples=2), source=source_config, **settings
    )
    run = RunConfig(log_every=10, eval_every=30, eval_episodes=1, online_capacity=100, checkpoint_every=1000)
    cfg = Config(
        recipe=recipe, dataset=str(dataset), env="Pendulum-v1", dir=str(directory), run=run, report=False
    )
    cfg.seeds = 2
    return cfg


@dataclass
class NewestConfig(SourceConfig):
    """Settings of a source that is made for a test."""

    rows: int = 4


class Newest(BaseSource, nn.Module):
    """The newest rows, and a count of its lessons, which is saved with the run."""

    def __init__(self, cfg, spec, offline, online, warmup):
        nn.Module.__init__(self)
        BaseSource.__init__(self, cfg, spec, offline, online, warmup)
        self.told = []
        self.lessons = nn.Buffer(torch.zeros(()))

    def begin(self) -> None:
        self.told.append("begin")

    def advance(self, steps: int) -> None:
        self.told.append(steps)

    def sample(self, n: int) -> Batch:
        return self.online.sample(n, self.cfg.rows)

    def learn(self, batch: Batch):
        self.lessons += 1
        return {"mean_reward": batch.rew.mean(-1)}


@pytest.fixture
def newest():
    """The source, registered for one test."""
    source("newest", NewestConfig)(Newest)
    yield
    del SOURCES["newest"]


def test_a_new_source_is_one_class_that_every_part_of_a_run_knows(newest, pendulum, tmp_path):
    train(run_with(NewestConfig(rows=3), pendulum, tmp_path / "run"))
    assert read_config(tmp_path / "run")[0].recipe.source == NewestConfig(rows=3)
    assert read_run(tmp_path / "run").has("train", "mean_reward")
    _, recipe = restore(tmp_path / "run")
    assert int(recipe.source.lessons) == 2 * 25  # two updates in each of the turns 5 to 29


def test_a_source_is_told_of_the_switch_once_and_of_each_turn_that_learns(
    newest, pendulum, tmp_path, monkeypatch
):
    made = []
    monkeypatch.setattr(Newest, "begin", lambda self: made.append(self))
    train(run_with(NewestConfig(), pendulum, tmp_path / "run"))
    assert len(made) == 1
    assert made[0].told == list(range(5, 30))


def test_wsrl_tells_a_source_the_steps_of_its_whole_online_phase(newest, pendulum, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(Newest, "begin", lambda self: made.append(self))
    cfg = run_with(NewestConfig(), pendulum, tmp_path / "run")
    own = {
        x: getattr(cfg.recipe, x)
        for x in ("offline", "source", "offline_steps", "online_steps", "batch", "warmup")
    }
    cfg.recipe = WSRLConfig(online=own["offline"].after_switch(), utd=1, **own)
    train(cfg)
    assert made[0].told == list(range(5, 30))


def test_every_source_has_a_file_that_chooses_it():
    files = {p.stem for p in (conf_folder() / "source").glob("*.yaml")}
    assert files == set(SOURCES)
    for name in files:
        chosen = compose_config(["recipe=finetune", f"source@recipe.source={name}"]).recipe.source
        assert type(chosen) is SOURCES[name].config


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_is_stored_by_its_name_and_read_back(name, pendulum, tmp_path):
    own = {"balanced": {"first_updates": 2, "ratio": NET}, "distilled": {"rows": 50}}.get(name, {})
    cfg = run_with(SOURCES[name].config(**own), pendulum, tmp_path / "run", online_steps=0)
    train(cfg)
    assert read_config(tmp_path / "run")[0].recipe.source == cfg.recipe.source


def test_none_is_the_method_s_own_source():
    cql = CQLConfig()
    assert FinetuneConfig(offline=cql).source == WSRLConfig(offline=cql).source == OnlineConfig()
    assert RLPDConfig(agent=cql).source == MixConfig(0.5)


def test_offline_rows_of_an_aged_source_fade_with_the_epoch():
    class Rows(list):
        """Something that has a length."""

    aged = Aged(AgedConfig("geometric", 0.5, epoch=10), Spec(1, 1), Rows(range(300)), Rows(range(100)))
    shares = [aged.chance(steps) for steps in (0, 9, 10, 25)]
    assert shares == pytest.approx([150 / 250, 150 / 250, 75 / 175, 37.5 / 137.5])
    assert shares[2] == SAMPLING["geometric"](2, 0.5, 300, 100)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: MixConfig(1.5), r"recipe\.source\.offline_share=1\.5 is a share"),
        (lambda: AnnealConfig(steps=-1), r"recipe\.source\.steps=-1 must not be negative"),
        (lambda: DistilledConfig(share=-0.1), r"recipe\.source\.share=-0\.1 is a share"),
        (lambda: DistilledConfig(rows=-1), r"recipe\.source\.rows=-1 must not be negative"),
        (lambda: BalancedConfig(first_share=1.0), "first_share must lie between 0 and 1"),
        (lambda: AgedConfig(alpha=2.0), r"recipe\.source\.alpha=2\.0 must lie in \[0, 1\]"),
        (lambda: AgedConfig("geometrc"), "did you mean 'geometric'"),
        (lambda: AgedConfig(epoch=0), r"recipe\.source\.epoch=0 must be at least 1"),
        (lambda: FinetuneConfig(offline=CQLConfig(), utd=0), r"recipe\.utd=0 must be at least 1"),
        (lambda: WSRLConfig(offline=CQLConfig(), warmup=-1), r"recipe\.warmup=-1 must not be negative"),
        (lambda: RLPDConfig(agent=CQLConfig(), batch=0), r"recipe\.batch=0 must be at least 1"),
        (lambda: ScratchConfig(agent=CQLConfig(), random_steps=-1), r"recipe\.random_steps=-1 must not be"),
        (lambda: MOOReConfig(real_share=1.1), r"recipe\.real_share=1\.1 is a share"),
        (lambda: MOOReConfig(model_every=0), r"recipe\.model_every=0 must be at least 1"),
        (lambda: MOOReConfig(sampling="foo"), "no sampling is called 'foo'"),
    ],
)
def test_a_config_checks_its_own_numbers(make, told):
    with pytest.raises(UserError, match=told):
        make()


def test_a_number_that_is_changed_later_is_checked_when_the_run_begins(pendulum, tmp_path):
    cfg = run_with(MixConfig(), pendulum, tmp_path / "run")
    cfg.recipe.source.offline_share = 2.0
    with pytest.raises(UserError, match=r"recipe\.source\.offline_share=2\.0 is a share"):
        train(cfg)
    assert not (tmp_path / "run").exists()


def test_offline_parts_name_what_an_offline_phase_depends_on():
    cql = CQLConfig()
    part = {"offline": cql, "offline_steps": 1_000_000, "batch": 256}
    assert FinetuneConfig(offline=cql).offline_part() == part
    assert WSRLConfig(offline=cql, offline_steps=1_000_000, warmup=3).offline_part() == part
    moore = MOOReConfig().offline_part()
    assert {"agent", "fit", "coef", "horizon", "real_share", "rollouts"} <= set(moore)
    assert {"alpha", "sampling", "online_coef", "refit", "utd"}.isdisjoint(moore)
    assert ScratchConfig(agent=cql).offline_part() == {}
