"""Configs from names, dicts, text and YAML are those that Hydra composes, and mistakes are named as there."""

import pytest

import mbo2o
from mbo2o.cli.compose import read_settings, settings_of
from mbo2o.cli.main import main
from mbo2o.cli.overrides import Tree, literal
from mbo2o.cli.schema import tell_hydra
from mbo2o.cli.train import declare, to_config
from mbo2o.naming import name
from mbo2o.settings import values_of
from mbo2o.types import UserError

TREE = Tree()
PRESETS = [f"{group}={x}" for group in ("recipe", "switch", "experiment") for x in TREE.choices(group)]
OTHERS = [
    ["experiment=hopper-small", "seeds=3", "recipe.alpha=0.5"],
    ["recipe=finetune", "agent@recipe.offline=edac", "agent@recipe.online=redq", "recipe.utd=20"],
    ["recipe=finetune", "source@recipe.source=mix", "recipe.source.offline_share=0.25"],
    ["recipe=moore", "recipe.horizon=[1,5,10,100]", "recipe.starts={data: 0.7, imagined-ends: 0.3}"],
    ["recipe=scratch", "env=Hopper-v5", "+env_kwargs.frame_skip=4"],
    ["env_kwargs={frame_skip:4,a: [1,b]}", "env=null"],
    ["dir=runs/${seed}", "seed=4"],
    ["dataset=a,b c[1].hdf5", "start_from=~/x"],
    ["run.reference=[1,2.5]", "report=false", "run.q_limit=inf", "run.reward_scale=1e-3"],
    ["switch=wsrl", "experiment=wsrl-small"],
    ["recipe.termination='a:b'", "dataset_actions=[[-2,-1],[2,1]]"],
]


def by_hydra(overrides):
    tell_hydra()
    return declare(to_config(TREE.compose([literal(x) for x in overrides])), overrides)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_what_hydra_composes(preset):
    assert values_of(mbo2o.config(preset)) == values_of(by_hydra([preset]))


@pytest.mark.parametrize("overrides", OTHERS, ids=" ".join)
def test_settings_are_what_hydra_composes(overrides):
    assert values_of(mbo2o.config(*overrides)) == values_of(by_hydra(overrides))


def test_text_names_dicts_and_yaml_give_one_config_and_one_directory(tmp_path):
    text = mbo2o.config("switch=wsrl", "dataset=hopper-medium", "seed=1", "recipe.offline.tau=0.01")
    named = mbo2o.config("wsrl", "hopper-medium", seed=1, recipe={"offline": {"tau": 0.01}})
    dotted = mbo2o.config("wsrl", {"recipe.offline.tau": 0.01, "seed": 1}, dataset="hopper-medium")
    yaml = tmp_path / "wsrl.yaml"
    yaml.write_text("switch: wsrl\ndataset: hopper-medium\nseed: 1\nrecipe:\n  offline:\n    tau: 0.01\n")
    read = mbo2o.config(read_settings(yaml))
    assert values_of(text) == values_of(named) == values_of(dotted) == values_of(read)
    assert len({name(x, "Hopper-v5") for x in (text, named, dotted, read, by_hydra(
        ["switch=wsrl", "dataset=hopper-medium", "seed=1", "recipe.offline.tau=0.01"]
    ))}) == 1  # fmt: skip


def test_a_method_s_name_is_a_preset_before_it_is_a_recipe():
    assert mbo2o.config("wsrl").provenance.startswith("switch=wsrl: official")
    assert mbo2o.config("hopper-small").recipe.alpha == 0.65
    assert type(mbo2o.config("mopo").recipe).__name__ == "MOPOConfig"


def test_no_environment_is_said_and_not_left_out():
    assert mbo2o.config("td3bc", env=None).env == "none" == mbo2o.config("td3bc", "env=null").env
    assert mbo2o.config("td3bc").env is None


@pytest.mark.parametrize(
    ("given", "settings", "said"),
    [
        (("mooore",), {}, r"no method is called 'mooore'; did you mean 'moore'\? choices: .*wsrl"),
        (("moore",), {"sed": 3}, r"'sed' is not a setting; did you mean 'seed'\?"),
        (("moore",), {"recipe": {"alpah": 1}}, r"'recipe.alpah' is not a setting; did you mean"),
        (("moore",), {"seeds": "three"}, "seeds=three: expected a whole number"),
        (("moore",), {"seeds": object()}, "seeds is a object; give numbers, text, lists"),
        (("switch=wrsl",), {}, r"no switch is called 'wrsl'; did you mean 'wsrl'\?"),
        (("recipe=finetune", "agent@recipe.agent=sac"), {}, "finetune has no place 'agent@recipe.agent'"),
        (("switch=wsrl", "recipe=moore"), {}, "recipe=moore has no place|which recipe=moore"),
        (("recipe=finetune", "recipe.source=mix"), {}, "chosen by name: source@recipe.source=mix"),
        (("moore", "d.hdf5", "and more"), {}, "'and more' is not a setting; settings are given as KEY=VALUE"),
        (("moore",), {"recipe.gamma": 1, "env_kwargs.x": 1}, "'recipe.gamma' is not a setting"),
        (({"experiment": 3},), {}, "experiment=3: expected a name"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_that_says_what_works(given, settings, said):
    with pytest.raises(UserError, match=said) as e:
        mbo2o.config(*given, **settings)
    assert "\n" not in str(e.value)


def test_a_function_is_taken_as_it_is():
    from mbo2o.dynamics.termination import TERMINATIONS

    rule = TERMINATIONS["hopper"]
    assert mbo2o.config("mopo", recipe={"termination": rule}).recipe.termination is rule


def test_a_file_of_settings_on_the_command_line(tmp_path, capsys):
    (tmp_path / "x.yaml").write_text("recipe: moore\nseeds: 2\n")
    with pytest.raises(SystemExit) as e:
        main(["train", "--config", str(tmp_path / "x.yaml"), "seeds=3", "--cfg", "job"])
    assert e.value.code == 0
    assert "\nseeds: 3\n" in capsys.readouterr().out
    for text, said in (
        ("- 1\n", "expected settings by name"),
        ("a: [", "x.yaml: "),
        ("sed: 1", "did you mean 'seed'"),
    ):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(SystemExit) as e:
            main(["train", f"--config={tmp_path / 'x.yaml'}"])
        assert e.value.code == 2
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--config", "nowhere.yaml"])
    assert "no such file" in capsys.readouterr().err


def test_values_that_cannot_be_read_are_named():
    with pytest.raises(UserError, match=r"recipe.horizon=\[1: cannot be read as a value"):
        settings_of(["recipe.horizon=[1"], {})
