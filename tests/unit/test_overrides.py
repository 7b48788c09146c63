"""What is typed on the command line means what it says; a mistake is one line that says what would work."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from mbo2o.cli.main import compose_config, main
from mbo2o.cli.overrides import WORDS, literal, literals
from mbo2o.types import UserError

NAMES = st.text(st.sampled_from("ab1(),=\\{}[]'\" ~é日:;#&*?$%!@|<>.-+"), min_size=1, max_size=12)


def run(capsys, *args):
    with pytest.raises(SystemExit) as e:
        main(list(args))
    out = capsys.readouterr()
    assert "Traceback" not in out.err
    return e.value.code, out.out, out.err


def understood(override):
    """What the config holds for an override."""
    parsed = OverridesParser.create().parse_override(override)
    return OmegaConf.create({parsed.key_or_group: parsed.value()})[parsed.key_or_group]


@given(st.sampled_from(WORDS), NAMES)
@settings(max_examples=300, deadline=None)
@example("dataset", "mes données (1)/a,b.hdf5")
@example("dataset", "C:\\data\\hopper.hdf5")
@example("dir", "it's \\")
@example("dir", "1e3")
@example("dir", "true")
@example("start_from", "a=b,c")
def test_names_and_paths_are_taken_as_they_were_typed(key, name):
    quoted = len(name) > 1 and name[0] == name[-1] and name[0] in "'\""
    if "${" in name or name == "???" or quoted or name.startswith("~"):
        return  # interpolations, OmegaConf's mark of a missing value, quoted text, and homes: below
    assert understood(literal(f"{key}={name}")) == name
    assert understood(literal(literal(f"{key}={name}"))) == name


def test_what_has_a_meaning_keeps_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    assert understood(literal("dataset=~/my data.hdf5")) == "/home/me/my data.hdf5"
    assert understood(literal("env=~/x")) == "~/x"
    Path("~").mkdir()
    assert understood(literal("dir=~/run")) == "/home/me/run"
    Path("~/run").mkdir()
    assert understood(literal("dir=~/run")) == "~/run"  # it is there under that very name
    assert understood(literal("dataset=null")) is None
    assert understood(literal("dataset='a b'")) == "a b"
    assert literal("dataset=") == "dataset="
    assert literal("recipe.horizon=3") == "recipe.horizon=3"
    assert literals(["-m", "dataset=a,b", "dir=c(1)"]) == ["-m", "dataset=a,b", "dir='c(1)'"]
    assert literals(["dataset=a,b"]) == ["dataset='a,b'"]
    assert compose_config(["dir=runs/${seed}", "seed=4"]).dir == "runs/4"
    assert compose_config(["+dir=a,b"]).dir == "a,b"


def small(dataset, **more):
    made = {
        "recipe": "finetune",
        "agent@recipe.offline": "bc",
        "recipe.online_steps": 0,
        "recipe.offline_steps": 2,
    }
    made |= {
        "recipe.batch": 8,
        "recipe.offline.actor.hidden": "[4]",
        "run.eval_episodes": 1,
        "report": "false",
    }
    return ["train", f"dataset={dataset}", *(f"{k}={v}" for k, v in (made | more).items())]


@pytest.mark.parametrize("name", ["mes données (1), {a}=b", "C:\\data\\x", 'it\'s "so" [1]~'])
def test_a_run_in_a_folder_of_any_name(name, pendulum, capsys):
    os.mkdir(name)
    os.symlink(pendulum, f"{name}/a,b.hdf5")
    code, _, err = run(capsys, *small(f"{name}/a,b.hdf5", dir=f"{name}/run 1", report="true"))
    assert code == 0, err
    code, _, err = run(capsys, "eval", f"{name}/run 1", "--episodes", "1")
    assert code == 0, err
    code, _, err = run(capsys, *small(f"{name}/a,b.hdf5", dir=f"{name}/run 2", start_from=f"{name}/run 1"))
    assert code == 0, err
    assert set(os.listdir(name)) == {"a,b.hdf5", "run 1", "run 2"}


@pytest.mark.parametrize(
    "name", ["C:\\data\\hopper.hdf5", "C:\\data\\hopper", "hopper (1).hdf5", "x/y,z.hdf5"]
)
def test_a_path_to_nothing_is_no_such_file(name, capsys):
    code, _, err = run(capsys, "train", f"dataset={name}")
    assert code == 2
    assert f"mbo2o: {name}: no such file" in err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ["switch=iql", "recipe=moore"],
            "switch=iql sets agent@recipe.offline, for which recipe=moore has no place; leave",
        ),
        (
            ["switch=wsrl", "recipe=moore"],
            "switch=wsrl sets recipe.offline, which recipe=moore does not have; leave one of the two out",
        ),
        (["recipe=finetune", "recipe.source=mix"], "is chosen by name: source@recipe.source=mix"),
        (["recipe=moore", "source@recipe.source=mix"], "recipe=moore has no place 'source@recipe.source'"),
        (
            ["switch=cql-sac", "recipe.online.actor.hidden=[16]"],
            "recipe.online is null, as long as none is chosen by name; give agent@recipe.online=NAME before you set",  # noqa: E501
        ),
        (["recipe.foo.bar=1"], "'recipe.foo' is not a setting; recipe has: agent, "),
        (["recipe.agnt.gamma=1"], "did you mean 'recipe.agent'?"),
        (
            ["recipe.horizon.x=1"],
            "'recipe.horizon.x' is not a setting: recipe.horizon is the value 5, not a group",
        ),
        (
            ["agent@recipe.online=sac"],
            "recipe=moore has no place 'agent@recipe.online'; it has agent@recipe.agent",
        ),
        (["recipe=scratch", "agent@recipe.online=sac"], "it has agent@recipe.agent=NAME"),
        (
            ["recipe=finetune", "agent=sac"],
            "recipe=finetune has agent@recipe.offline=NAME, agent@recipe.online=NAME",
        ),
        (["foo"], "'foo' is not a setting; settings are given as KEY=VALUE"),
        (["=3"], "'=3' is not a setting"),
        (["recipe=3"], "recipe=3: expected a name; choices: enoto, "),
        (["switch=null"], "switch=null: expected a name; choices: adaptive-bc, "),
        (["recipe.termination=a(b"], "quote it twice: \"recipe.termination='a(b'\""),
        (["recipe.rollouts=1.5"], "recipe.rollouts=1.5: expected a whole number"),
        (["recipe.batch=abc"], "recipe.batch=abc: expected a whole number"),
        (["recipe.coef=x"], "recipe.coef=x: expected a number"),
        (["run.allow_mismatch=maybe"], "run.allow_mismatch=maybe: expected true or false"),
        (["run.tensorboard=true"], "'run.tensorboard' is not a setting any more; it is log=[tensorboard]"),
        (["recipe.agent.actor.hidden=8"], "recipe.agent.actor.hidden: expected a list, such as [256,256]"),
        (["run=3"], "run=3: expected a group; set one of its settings"),
        (["recipe.batch=null"], "recipe.batch: expected a value, not null"),
        (["-m", "seed=interval(0,1)"], "seed=interval(0,1): is no list of values"),
        (["run={a:1}"], "run.a: Key 'a' not in 'RunConfig'"),
        (["++recipe.zzz=3"], "'recipe.zzz' is not a setting; recipe has: "),
        (["dir=${foo}"], "dir: Interpolation key 'foo' not found; ${KEY} stands for another setting's value"),
        (
            ["dir=a\\${foo}b", "dataset=x.hdf5"],
            "dir=a${foo}b: a name that holds ${ cannot be kept in config.yaml",
        ),
        (["seed=-1"], "seed=-1 must lie in [0, 2^64 - seeds)"),
        (["seed=99999999999999999999"], "must lie in [0, 2^64 - seeds)"),
        (["threads=99999999999"], "threads=99999999999 must be at most"),
        (["device=meta"], "device=meta is not available here"),
        (["recipe.agent.gamma=2"], "recipe.agent.gamma=2.0 must lie in [0, 1]"),
        (["recipe.fit.lr=-1"], "recipe.fit.lr=-1.0 must not be negative"),
        (["run.reward_scale=nan"], "run.reward_scale=nan must be a finite number, or auto"),
        (["run.reward_shift=inf"], "run.reward_shift=inf is not a finite number"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_there_is(args, said, capsys):
    code, _, err = run(capsys, "train", *args)
    (line,) = err.splitlines()
    assert code == 2
    assert said in line, line
    assert not re.search(r": *(;|$)", line)  # no list is empty


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ["data", "collect", "--env", "Pendulum-v1", "--hidden", "0", "--out", "x"],
            "hidden=0 must be at least 1",
        ),
        (
            ["data", "collect", "--env", "Pendulum-v1", "--batch", "0", "--out", "x"],
            "batch=0 must be at least 1",
        ),
        (
            ["data", "collect", "--env", "Pendulum-v1", "--engine", "quick", "--out", "x"],
            "engine=quick is not one of",
        ),
        (
            ["data", "collect", "--policy", "random", "--env", "Pendulum-v1", "--seed", "-1", "--out", "x"],
            "--seed -1 must not",
        ),
        (["bench", "update", "--rounds", "0"], "rounds=0 must be at least 1"),
        (["eval", "x", "--seed", "-1"], "--seed -1 must not be negative"),
        (["study", "moore", "x.hdf5", "--seeds", "0"], "seeds=0 must be at least 1"),
        (
            ["study", "moore", "hopper-medium-v5", "--arms", "foo"],
            "no arm is called 'foo'; choices: alpha-0.5",
        ),
        (
            ["data", "collect", "--env", "Pendulum-v1", "--steps", "9", "--out", "/proc/x"],
            "/proc/x: cannot be written (No such",
        ),
    ],
)
def test_numbers_and_names_of_other_commands_are_looked_at_first(args, said, capsys):
    code, _, err = run(capsys, *args)
    assert code == 2
    assert said in err


# ---- run directories


@pytest.mark.parametrize("where", ["/proc/x", "a-file", "a-file/x"])
def test_a_place_that_cannot_be_written_is_one_line(where, pendulum, capsys):
    Path("a-file").write_text("")
    code, _, err = run(capsys, *small(pendulum, dir=where))
    assert code == 2
    assert f"mbo2o: {where}: cannot be written (" in err


def test_a_report_that_cannot_be_written_is_one_line(pendulum, capsys):
    assert run(capsys, *small(pendulum, dir="made"))[0] == 0
    Path("made/report").write_text("")
    code, _, err = run(capsys, "report", "made")
    assert code == 2
    assert "made/report: cannot be written (File exists)" in err


LATE = [
    ["recipe=moore", "recipe.penalty=foo"],
    ["recipe=moore", "recipe.termination=foo"],
    ["recipe=moore", "recipe.sampling=foo"],
    ["recipe=moore", "recipe.agent.actor.hidden=[0]"],
    ["recipe=moore", "env=Hopper-v5"],
    ["recipe=moore", "env=Nothing-v0"],
    ["recipe=moore", "run.reference=foo"],
    ["recipe=moore", "run.online_capacity=100000000000000", "log=[csv]"],
    ["recipe=finetune", "recipe.inherit=foo"],
]


@pytest.mark.parametrize("args", LATE, ids=lambda a: a[1])
@pytest.mark.parametrize("where", [[], ["dir=deep/er/run"]])
def test_a_mistake_that_is_found_late_leaves_nothing_behind(args, where, pendulum, capsys):
    code, _, err = run(capsys, "train", f"dataset={pendulum}", *args, *where)
    assert code == 2
    assert "mbo2o: " in err
    assert [x for x in os.listdir(".") if x != "MUJOCO_LOG.TXT"] == []


def test_a_directory_that_was_there_stays(pendulum, capsys):
    os.makedirs("mine/kept")
    assert run(capsys, "train", f"dataset={pendulum}", *LATE[0], "dir=mine")[0] == 2
    assert run(capsys, "train", f"dataset={pendulum}", *LATE[0], "dir=mine/run")[0] == 2
    assert Path("mine/kept").is_dir()
    assert not Path("mine/run").exists()


def test_all_settings_that_differ_are_named(pendulum, capsys):
    assert run(capsys, *small(pendulum, dir="made"))[0] == 0
    _, _, err = run(capsys, *small(pendulum, dir="made", seed=3, **{"recipe.batch": 9}))
    assert (
        "made: holds a run with recipe.batch=8, not 9; seed=0, not 3 (2 settings differ); choose another dir="
        in err
    )
    more = {
        f"run.{x}": 7
        for x in ("log_every", "eval_every", "checkpoint_every", "eval_episodes", "reward_shift")
    }
    _, _, err = run(capsys, *small(pendulum, dir="made", seed=3, **{"recipe.batch": 9}, **more))
    assert "; and 2 more (7 settings differ); " in err
    assert err.count(", not ") == 5
    _, _, err = run(capsys, *small(pendulum, dir="other", start_from="made", seed=3, **{"recipe.batch": 9}))
    assert "start_from=made: was run with recipe.batch=8, not 9; seed=0, not 3 (2 settings differ)" in err


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("seed: 0", "seed: x"),
        ("batch: 8", "batch: [1]"),
        ("eval_every: 1000", "foo: 3"),
        ("name: finetune", "x: y"),
    ],
)
def test_a_config_that_was_changed_by_hand_is_one_line(old, new, pendulum, capsys):
    assert run(capsys, *small(pendulum, dir="made"))[0] == 0
    path = Path("made/config.yaml")
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    code, _, err = run(capsys, "eval", "made")
    assert code == 2
    assert "mbo2o: made/config.yaml: " in err


# ---- rules that were functions


def ends(obs, act, next_obs):
    """A rule in a module that can be imported."""
    return next_obs[..., 0] > np.inf


@pytest.mark.parametrize("option", ["termination", "reward"])
def test_a_function_that_eval_cannot_find_is_refused_at_the_start(option, pendulum):
    from mbo2o.training import train

    def local(obs, act, next_obs):
        return ends(obs, act, next_obs)

    main_script = type(ends)(ends.__code__, ends.__globals__, "rule")
    main_script.__module__ = "__main__"
    for rule in (lambda o, a, n: n[..., 0] > 1, local, main_script, type("Rule", (), {"__call__": local})()):
        cfg = compose_config(["recipe=mopo", f"dataset={pendulum}", "dir=made"])
        setattr(cfg.recipe, option, rule)
        with pytest.raises(
            UserError,
            match=rf"^{option}=.* cannot be found again by `mbo2o eval`; put it into a module and give ",
        ):
            train(cfg)
        assert not Path("made").exists()


def test_a_task_without_scores_is_said_once_at_the_start(capsys):
    sizes = [
        "recipe.online_steps=0",
        "recipe.random_steps=1",
        "run.eval_episodes=1",
        "recipe.agent.actor.hidden=[4]",
    ]
    with pytest.warns(UserWarning, match="there are no scores") as caught:
        code, _, err = run(
            capsys, "train", "recipe=scratch", "env=MountainCarContinuous-v0", *sizes, "report=false"
        )
    assert code == 0, err
    said = [str(x.message) for x in caught if "no scores" in str(x.message)]
    assert said == [
        "no reference set knows MountainCarContinuous-v0: there are no scores; give run.reference=[LOW,HIGH]"
    ]
