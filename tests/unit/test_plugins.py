"""Methods of other packages go through every command; code that a config names is imported for those who
repeat it.
"""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from mbo2o import registry
from mbo2o.cli.main import main
from mbo2o.dynamics import termination
from mbo2o.dynamics.termination import TERMINATIONS, load_callable
from mbo2o.ensemble import uncertainty
from mbo2o.registry import AGENTS, did_you_mean, find, load_entry_points, load_plugins, trusting
from mbo2o.training import restore
from mbo2o.types import UserError

METHOD = '''
"""Clone, then go on cloning what the shaken clone did."""

from dataclasses import dataclass, field

from mbo2o.agents import make_agent
from mbo2o.agents.bc import BC, BCConfig
from mbo2o.recipes import Recipe, RecipeConfig
from mbo2o.registry import agent, recipe


@dataclass
class ShyConfig(BCConfig):
    share: float = 0.9  # of the clone's action


@agent("shy", ShyConfig)
class Shy(BC):
    """A clone that does a part of what it should."""

    def act(self, obs, explore=False):
        return self.cfg.share * super().act(obs, explore)


@dataclass
class EchoConfig(RecipeConfig):
    agent: ShyConfig = field(default_factory=ShyConfig)
    online_steps: int = 20


@recipe("echo", EchoConfig)
class Echo(Recipe):
    """Clone the data, then the clone."""

    def offline(self, run):
        self.agent = make_agent(self.cfg.agent, run.spec)
        run.track(agent=self.agent)
        for _ in run.steps(20):
            run.learn(self.agent, run.dataset, 8)
'''
CHOICE = "defaults: [echo_base, _self_]\n"
SMALL = ["recipe.agent.actor.hidden=[4]", "run.eval_episodes=1", "run.online_capacity=50"]

DRIVER = """
import sys
from mbo2o.cli.main import main
for line in sys.argv[1:]:
    try:
        main(line.split("\\t"))
    except SystemExit as e:
        print(f"exit {e.code}", flush=True)
"""


def commands(folder, *lines):
    """Run command lines in one new process, from `folder`; their output and their exit codes."""
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *("\t".join(map(str, line)) for line in lines)],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}{os.pathsep}{folder / 'code'}"},
    )
    codes = [int(x.split()[1]) for x in done.stdout.splitlines() if x.startswith("exit ")]
    assert len(codes) == len(lines), done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr, codes


def run(capsys, *args):
    with pytest.raises(SystemExit) as e:
        main([str(a) for a in args])
    out = capsys.readouterr()
    assert "Traceback" not in out.err
    return e.value.code, out.out, out.err


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def test_a_method_of_another_package_goes_through_every_command(pendulum, tmp_path):
    write(tmp_path / "code" / "echoes.py", METHOD)
    write(tmp_path / "conf" / "recipe" / "echo.yaml", CHOICE)
    assert len((METHOD + CHOICE).strip().splitlines()) <= 40
    mine = ["plugins=[echoes]", "--config-dir", tmp_path / "conf"]
    train = ["train", *mine, "recipe=echo", f"dataset={pendulum}", *SMALL, "dir=run"]
    _, err, codes = commands(tmp_path, train, [*train, "report=false"], ["report", "run"])
    assert codes == [0, 0, 0], err
    out, err, codes = commands(tmp_path, ["methods", *mine], ["methods"])
    assert codes == [0, 0], err
    assert "  echo             Clone the data, then the clone." in out
    assert "  shy              A clone that does a part of what it should." in out
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["plugins"] == ["echoes"]
    assert (tmp_path / "run" / "report" / "index.html").is_file()
    shutil.rmtree(tmp_path / "run" / "report")
    again = ["plugins=[echoes]", "--episodes", 1, "--json"]
    out, err, codes = commands(
        tmp_path,
        ["report", "run"],
        ["eval", "run"],
        ["eval", "run", *again],
        ["eval", "run", *again, "--trust"],
    )
    assert codes == [0, 2, 0, 0]
    (line,) = [x for x in err.splitlines() if x.startswith("mbo2o: ")]
    assert line.startswith("mbo2o: plugins=[echoes] is named by a config and would import code")
    returns = [json.loads(x)["return"] for x in out.splitlines() if x.startswith("{")]
    assert len(returns) == 2
    assert returns[0] == returns[1]


# ---- trust


@pytest.fixture(scope="module")
def model_based(pendulum, tmp_path_factory):
    """A run of MOPO, whose config has a termination and a reward."""
    directory = tmp_path_factory.mktemp("received") / "run"
    sizes = ["recipe.fit.max_updates=2", "recipe.fit.min_updates=1", "recipe.dynamics.net.hidden=[4]"]
    sizes += ["recipe.rollouts=4", "recipe.offline_steps=4", "recipe.batch=4", "recipe.horizon=1"]
    sizes += [f"recipe.agent.{x}.hidden=[4]" for x in ("actor", "critic")]
    more = ["run.eval_episodes=1", "run.online_capacity=50", "report=false"]
    with pytest.raises(SystemExit) as done:
        main(["train", "recipe=mopo", f"dataset={pendulum}", *sizes, *more, f"dir={directory}"])
    assert done.value.code == 0
    return directory


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module that leaves a mark when it is imported."""
    mark = tmp_path / "MARK"
    code = f"""
    import pathlib, gymnasium
    pathlib.Path({str(mark)!r}).touch()
    gymnasium.register("Pendulum-v9", "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=200)
    from mbo2o.dynamics.termination import termination
    @termination("evil-rule")
    def f(obs, act, next_obs):
        return next_obs[..., 0] > 9
    """
    write(tmp_path / "code" / "evil.py", code)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    yield mark
    sys.modules.pop("evil", None)
    TERMINATIONS.pop("evil-rule", None)
    import gymnasium

    gymnasium.registry.pop("Pendulum-v9", None)


NAMED = {
    "plugins": ("plugins", ["evil"], "plugins=[evil]"),
    "termination": ("recipe.termination", "evil:f", "recipe.termination=evil:f"),
    "reward": ("recipe.reward", "evil:f", "recipe.reward=evil:f"),
    "env": ("env", "evil:Pendulum-v9", "env=evil:Pendulum-v9"),
}


def received(model_based, tmp_path, key, value):
    """The run with another value in its config, as somebody else might send it."""
    directory = shutil.copytree(model_based, tmp_path / "run")
    config = yaml.safe_load((directory / "config.yaml").read_text())
    group, _, leaf = key.rpartition(".")
    (config[group] if group else config)[leaf] = value
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    return directory


@pytest.mark.parametrize("kind", NAMED)
def test_code_that_a_received_run_names_is_imported_when_the_caller_says_so(
    kind, model_based, pendulum, evil, tmp_path, capsys
):
    key, value, repeated = NAMED[kind]
    directory = received(model_based, tmp_path, key, value)
    code, _, err = run(capsys, "eval", directory, "--episodes", 1)
    (line,) = [x for x in err.splitlines() if x.startswith("mbo2o: ")]
    assert code == 2
    assert "evil" in line
    assert "--trust" in line
    with pytest.raises(UserError, match="trust=True"):
        restore(directory)
    with pytest.raises(UserError):
        restore(directory, trust=["something else"])
    code, _, _ = run(capsys, "report", directory)
    assert code == 0
    # to go on in it, or from it, is to compare its settings
    more = ["recipe=mopo", f"dataset={pendulum}", "recipe.offline_steps=4"]
    for other in (f"dir={directory}", "start_from=run"):
        code, _, err = run(capsys, "train", *more, other)
        assert code == 2
    assert not evil.exists()
    code, _, err = run(capsys, "eval", directory, "--episodes", 1, repeated)
    assert code == 0, err
    assert evil.exists()


@pytest.mark.parametrize("kind", NAMED)
def test_trust_is_for_all_that_a_config_names(kind, model_based, evil, tmp_path, capsys):
    directory = received(model_based, tmp_path, *NAMED[kind][:2])
    code, _, err = run(capsys, "eval", directory, "--episodes", 1, "--trust")
    assert code == 0, err
    assert evil.exists()


def test_a_repeated_setting_has_to_be_the_configs(model_based, tmp_path, capsys):
    for setting, said in (
        ("recipe.termination=other:f", "recipe.termination is auto in"),
        ("hello", "'hello' is not a setting"),
    ):
        code, _, err = run(capsys, "eval", model_based, setting)
        assert code == 2
        assert said in err


@pytest.mark.parametrize("kind", NAMED)
def test_code_that_a_preset_names_is_imported_when_the_caller_says_so(kind, pendulum, evil, tmp_path, capsys):
    key, value, repeated = NAMED[kind]
    group, _, leaf = key.rpartition(".")
    preset = {group: {leaf: value}} if group else {leaf: value}
    head = "# @package _global_\ndefaults: [{override /recipe: mopo}, _self_]\n"
    write(tmp_path / "conf" / "experiment" / "theirs.yaml", head + yaml.safe_dump(preset))
    chosen = ["--config-dir", tmp_path / "conf", "experiment=theirs", f"dataset={pendulum}"]
    sizes = ["recipe.fit.max_updates=2", "recipe.fit.min_updates=1", "recipe.dynamics.net.hidden=[4]"]
    sizes += ["recipe.rollouts=4", "recipe.offline_steps=2", "recipe.batch=4", "report=false"]
    sizes += ["run.eval_episodes=1", "recipe.agent.actor.hidden=[4]", "recipe.agent.critic.hidden=[4]"]
    code, _, err = run(capsys, "train", *chosen, *sizes, "dir=made")
    (line,) = [x for x in err.splitlines() if x.startswith("mbo2o: ") and "--trust" in x]
    assert code == 2
    assert "evil" in line
    assert not evil.exists()
    assert not Path("made").exists()
    code, _, err = run(capsys, "train", *chosen, *sizes, "dir=made", repeated)
    assert code == 0, err
    assert evil.exists()
    del sys.modules["evil"]
    code, _, err = run(capsys, "train", *chosen, *sizes, "dir=trusted", "--trust")
    assert code == 0, err


def test_what_is_imported_already_needs_no_trust():
    """Python's caller, who defined it, looks at the run."""
    with trusting(()):
        load_plugins(["json"])
        assert load_callable("json:dumps", "termination") is json.dumps
        with pytest.raises(UserError, match=r"--trust"):
            load_callable("nowhere:f", "termination")
        with trusting(True), pytest.raises(UserError, match="cannot import nowhere"):
            load_callable("nowhere:f", "termination")


# ---- mistakes


@pytest.mark.parametrize(
    ("plugins", "said"),
    [
        ("[nowhere]", "plugins=[nowhere]: no module is called nowhere; is its folder on PYTHONPATH?"),
        (
            "[nowhere.deep]",
            "plugins=[nowhere.deep]: no module is called nowhere; is its folder on PYTHONPATH?",
        ),
        ("[raises]", "plugins=[raises]: importing it raises ZeroDivisionError: division by zero"),
        ("[exits]", "plugins=[exits]: importing it raises SystemExit: 0"),
        ("[needs]", "plugins=[needs]: importing it needs the module nowhere, which is not installed"),
        ("[fine,fine]", "plugins=[fine, fine]: fine stands there twice; name it once"),
        (
            "[fine,copy_of_it]",
            "plugins=[copy_of_it]: the name 'fine' is registered twice, by fine.Fine and by",
        ),
        ("[plain]", "plugins=[plain]: 'plain': its config dict is no dataclass; decorate it with @dataclass"),
        ("[silent]", "plugins=[silent]: the module registers nothing"),
        ("[os.path]", "plugins=[os.path]: the module registers nothing"),
        ("fine", "plugins=fine: expected a list of modules, as plugins=[my.module]"),
    ],
)
def test_a_mistake_about_plugins_is_one_line(plugins, said, tmp_path, monkeypatch, capsys):
    good = "from dataclasses import make_dataclass\nfrom mbo2o.registry import agent\n"
    good += "@agent('fine', make_dataclass('FineConfig', []))\nclass Fine: pass\n"
    files = {
        "plain": "from mbo2o.registry import agent\n@agent('plain', dict)\nclass Plain: pass\n",
        "raises": "1 / 0",
        "silent": "from mbo2o.registry import agent\n",
        "exits": "raise SystemExit(0)",
        "needs": "import nowhere.deep",
    }
    for name, code in (files | {"fine": good, "copy_of_it": good}).items():
        write(tmp_path / "code" / f"{name}.py", code)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    try:
        code, _, err = run(capsys, "train", f"plugins={plugins}", "recipe=mopo")
    finally:
        AGENTS.pop("fine", None)
        for name in (*files, "fine", "copy_of_it"):
            sys.modules.pop(name, None)
    (line,) = err.splitlines()
    assert code == 2
    assert line.startswith(f"mbo2o: {said}"), line


@pytest.mark.parametrize("option", [["--config-dir", "nowhere"], ["--config-dir=nowhere"], ["--config-dir"]])
def test_a_folder_that_is_not_there_is_one_line(option, capsys):
    code, _, err = run(capsys, "train", *option)
    assert code == 2
    assert "no such folder" in err


def test_a_yaml_file_cannot_take_the_name_of_one_of_the_packages(tmp_path, capsys):
    write(tmp_path / "conf" / "recipe" / "mopo.yaml", CHOICE)
    code, _, err = run(capsys, "train", "--config-dir", tmp_path / "conf", "recipe=mopo")
    assert code == 2
    assert "recipe/mopo.yaml has the name of one of mbo2o's own; rename it" in err


def test_plugins_of_installed_packages_are_imported(tmp_path, monkeypatch, capsys):
    write(tmp_path / "code" / "good_one.py", "")
    write(tmp_path / "code" / "bad_one.py", "raise ValueError('two\\nlines')")
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    package = SimpleNamespace(name="their-package")
    points = [SimpleNamespace(module="good_one", dist=package)]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points if "mbo2o" in group else [])
    try:
        load_entry_points.cache_clear()
        load_entry_points()
        assert "good_one" in sys.modules
        load_entry_points.cache_clear()
        points.append(SimpleNamespace(module="bad_one", dist=package))
        code, _, err = run(capsys, "methods")
        said = "the plugin bad_one of the installed package their-package: importing it raises ValueError: two lines"  # noqa: E501
        assert (code, err) == (2, f"mbo2o: {said}\n")
    finally:
        load_entry_points.cache_clear()
        sys.modules.pop("good_one", None)


# ---- decorators


def rule(obs, act, next_obs):
    return next_obs[..., 0] > 1


def test_penalties_and_terminations_are_registered_by_name():
    try:
        assert termination.termination("mine")(rule) is rule
        assert termination.resolve("mine") is rule
        termination.termination("mine")(rule)  # the same one again, as in a notebook
        with pytest.raises(UserError, match=r"'hopper' is registered twice, by .*termination\.hopper and by"):
            termination.termination("hopper")(rule)
        with pytest.raises(UserError, match="cannot be called 'learned'"):
            termination.termination("learned")(rule)
        with pytest.raises(UserError, match=r"no such rule; did you mean 'mine'\?"):
            termination.resolve("mime")

        @uncertainty.penalty("double")
        def double(mean, std):
            return 2 * uncertainty.max_aleatoric(mean, std)

        mean, std = torch.randn(2, 3, 4, 5)
        found = find(uncertainty.PENALTIES, "double", "penalty")
        assert torch.equal(found(mean, std.abs()), 2 * uncertainty.max_aleatoric(mean, std.abs()))
        with pytest.raises(UserError, match="a penalty is called 'double' already"):
            uncertainty.penalty("double")(rule)
    finally:
        TERMINATIONS.pop("mine", None)
        uncertainty.PENALTIES.pop("double", None)


def test_a_class_that_is_defined_again_takes_the_place_of_the_first():
    def define():
        @dataclass
        class AgainConfig:
            pass

        @registry.agent("again", AgainConfig)
        class Again:
            pass

        return Again

    try:
        first, second = define(), define()
        assert first is not second
        assert AGENTS["again"].cls is second
        with pytest.raises(UserError, match="the name 'again' is registered twice"):
            registry.agent("again", AGENTS["again"].config)(type("Other", (), {}))
    finally:
        AGENTS.pop("again", None)


def test_a_suggestion_is_made_where_a_name_is_near():
    assert did_you_mean("hoper", ["hopper", "ant"]) == "did you mean 'hopper'? "
    assert did_you_mean("alpah", ["alpha"], before="recipe.") == "did you mean 'recipe.alpha'? "
    assert did_you_mean("x", ["hopper"]) == ""
