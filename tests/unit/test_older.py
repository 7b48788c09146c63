"""Settings of older versions: read in today's words."""

import pytest

from mbo2o.agents.cql import CQLConfig
from mbo2o.cli.main import compose_config
from mbo2o.naming import name
from mbo2o.recipes import older
from mbo2o.recipes.finetune import FinetuneConfig
from mbo2o.recipes.rlpd import RLPDConfig
from mbo2o.recipes.wsrl import WSRLConfig
from mbo2o.registry import SOURCES
from mbo2o.settings import Config
from mbo2o.sources.aged import AgedConfig
from mbo2o.sources.mix import MixConfig
from mbo2o.types import UserError

WITH_BUFFER = {"start": 1000, "buffer": "empty", "utd": 1, "carry_rates": True, **older.UNUSED}
READ = [
    ({"buffer": "empty"}, {"name": "online"}),
    ({"buffer": "append"}, {"name": "append"}),
    ({"buffer": "mix", "offline_share": 0.25}, {"name": "mix", "offline_share": 0.25}),
    ({"buffer": "anneal", "anneal_steps": 7}, {"name": "anneal", "offline_share": 0.5, "steps": 7}),
    ({"buffer": "distill", "distill_rows": 0}, {"name": "distilled", "share": 0.05, "rows": 0}),
    ({"buffer": "balanced"}, {"name": "balanced", **older.UNUSED["balanced"]}),
]


@pytest.mark.parametrize("recipe", ["finetune", "enoto"])
@pytest.mark.parametrize(("change", "source"), READ, ids=lambda x: x.get("buffer", ""))
def test_a_buffer_is_read_as_a_source(recipe, change, source):
    stored = WITH_BUFFER | change
    name, found = older.modern(recipe, stored)
    assert (name, found) == (recipe, {"warmup": 1000, "utd": 1, "source": source})
    assert SOURCES[source["name"]].config(**{k: v for k, v in source.items() if k not in ("name", "ratio")})
    assert older.modern(recipe, found) == (recipe, found)  # today's words are left alone


@pytest.mark.parametrize(
    ("recipe", "old", "new"),
    [
        ("scratch", {"start": 3}, {"random_steps": 3}),
        ("mbpo", {"start": 3, "real": 0.1}, {"random_steps": 3, "real_share": 0.1}),
        ("mopo", {"real": 0.1}, {"real_share": 0.1}),
        ("moore", {"real": 0.1, "alpha": 0.5}, {"real_share": 0.1, "alpha": 0.5}),
        ("wsrl", {"warmup": 3}, {"warmup": 3}),
    ],
)
def test_settings_that_had_another_name_are_read(recipe, old, new):
    assert older.modern(recipe, old) == (recipe, new)


def test_a_buffer_that_never_was_is_one_line():
    with pytest.raises(UserError, match=r"recipe\.buffer=emtpy is not one of empty, append"):
        older.modern("finetune", {"buffer": "emtpy"})


CQL = CQLConfig()


def test_sources_and_recipes_give_directories_other_names():
    recipes = [
        FinetuneConfig(offline=CQL),
        FinetuneConfig(offline=CQL, source=AgedConfig()),
        FinetuneConfig(offline=CQL, source=AgedConfig(alpha=0.5)),
        WSRLConfig(offline=CQL),
        RLPDConfig(agent=CQL),
        RLPDConfig(agent=CQL, source=MixConfig(0.25)),
    ]
    assert len({name(Config(recipe=x, dataset="d", env="E"), "E") for x in recipes}) == len(recipes)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("recipe.buffer=mix", "chosen by name, as source@recipe.source=mix"),
        ("recipe.offline_share=0.1", "recipe.source.offline_share"),
        ("recipe.start=5", "recipe.warmup where the agent acts"),
    ],
)
def test_an_old_setting_on_the_command_line_is_told_its_new_name(override, told):
    with pytest.raises(UserError, match="is not a setting any more") as error:
        compose_config(["recipe=finetune", override])
    assert told in str(error.value)
