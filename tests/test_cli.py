"""Errors are part of the interface: one line, exit code 2, no traceback."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import is_dataclass
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import mbo2o
from mbo2o.cli.main import compose_config, main
from mbo2o.envs.lanes import Lane
from mbo2o.registry import RECIPES, conf_folder
from mbo2o.store import datasets
from mbo2o.training import Config

REPO = Path(__file__).parent.parent


def run(capsys, *args):
    with pytest.raises(SystemExit) as e:
        main(list(args))
    out = capsys.readouterr()
    return e.value.code, out.out, out.err


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["train", "recipe.alpah=0.5"], "did you mean 'recipe.alpha'?"),
        (["train", "recipe.agent.gama=0.5"], "did you mean 'recipe.agent.gamma'?"),
        (["train", "sede=1"], "did you mean 'seed'?"),
        (["train", "recipe=mopoo"], "did you mean 'mopo'?"),
        (["train", "recipe=mopo", "recipe.alpha=0.5"], "'recipe.alpha' is not a setting"),
        (["train", "seed=abc"], "seed"),
        (["train", "--sed"], "unknown option '--sed'"),
        (["train", "recipe=mopo"], "no dataset is named"),
        (["train", "dataset=hoper-medium-v5"], "did you mean 'hopper-medium-v5'?"),
        (["train", "dataset=nowhere/x.hdf5"], "nowhere/x.hdf5"),
        (["train", "recipe=mbpo"], "no environment is named"),
        (["train", "recipe=mbpo", "env=Hoper-v5"], "Hoper"),
        (
            ["train", "dataset=hopper-medium-v5", "recipe.penalty=max_aleatorc"],
            "did you mean 'max_aleatoric'?",
        ),
        (["train", "dataset=hopper-medium-v5", "recipe.termination=hoper"], "hopper"),
        (["train", "dataset=hopper-medium-v5", "recipe.reward=nomodule:f"], "nomodule"),
        (["train", "dataset=hopper-medium-v5", "seeds=0"], "seeds=0"),
        (["train", "dataset=hopper-medium-v5", "run.reference=v99"], "v99"),
        (["train", "dataset=hopper-medium-v5", "run.reference=d4rl-v2"], "run.allow_mismatch=true"),
        (["data", "fetch", "d4rl/hoper-medium-v2"], "did you mean 'd4rl/hopper-medium-v2'?"),
        (["train", "recipe=mbpo", "env=Pendulum-v1", "recipe.termination=learned"], "needs a dataset"),
        (["train", "dataset=hopper-medium-v5", "env=Walker2d-v5"], "Walker2d-v5 has 17 and 6"),
        (["train", "dataset=hopper-medium-v5", "device=nonsense"], "device=nonsense"),
        (["train", "dataset=hopper-medium-v5", "run.log_every=0"], "run.log_every=0"),
        (["train", "dataset=hopper-medium-v5", "recipe.real_share=1.5"], "recipe.real_share=1.5"),
        (["train", "dataset=hopper-medium-v5", "recipe.alpha=2"], "recipe.alpha=2"),
        (["train", "dataset=hopper-medium-v5", "recipe.agent.actor.activation=sillu"], "sillu"),
        (["train", "dataset=hopper-medium-v5", "start_from=nowhere"], "nowhere"),
        (["eval", "nowhere"], "not a run"),
        (["report", "nowhere"], "nowhere"),
        (["data", "inspect", "nowhere.hdf5"], "nowhere.hdf5"),
        (["data", "inspect", "nope"], "`mbo2o data list` shows all"),
        (["data", "collect", "--out", "x"], "--env"),
        (["data", "collect", "--policy", "nothing.safetensors", "--out", "x"], "nothing.safetensors"),
        (["data", "collect", "--policy", "random", "--out", "x"], "--env"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(args, expected, capsys):
    code, _, err = run(capsys, *args)
    line = [x for x in err.splitlines() if x.startswith("mbo2o: ")]
    assert code == 2
    assert len(line) == 1
    assert expected in line[0]
    assert "Traceback" not in err


COMMANDS = [
    "train",
    "slurm",
    "eval",
    "report",
    "methods",
    "bench update",
    "bench rollout",
    "bench data",
    "bench turn",
    "bench start",
    "study",
    "data",
    "data list",
    "data inspect",
    "data check",
    "data collect",
    "data fetch",
    "data where",
    "data reference",
    "data copy",
    "bench plan",
    "model fit",
    "model check",
    "plan",
    "doctor",
    "export",
    "table",
    "runs",
    "claims",
    "verify",
    "traces",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command, capsys):
    code, out, _ = run(capsys, *command.split(), "--help")
    assert code == 0
    assert "example:" in out


def test_no_command_is_left_out(capsys):
    _, out, _ = run(capsys, "--help")
    named = re.findall(r"^    (\w+)  ", out, re.M)
    assert set(named) == {c.split()[0] for c in COMMANDS}


def test_cfg_job_shows_the_whole_config(capfd):
    code = subprocess.run(
        [
            sys.executable,
            "-m",
            "mbo2o",
            "train",
            "experiment=hopper-small",
            "recipe.alpha=0.7",
            "--cfg",
            "job",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert code.returncode == 0, code.stderr
    config = OmegaConf.create(code.stdout)
    assert config.recipe.alpha == 0.7
    assert config.recipe.agent.gamma == 0.99


SLOTS, PRESET = {"agent": "offline", "source": "source"}, "override /switch"


@pytest.mark.parametrize("path", sorted((REPO / "conf").rglob("*.yaml")), ids=lambda p: p.stem)
def test_yaml_composes_and_restates_no_default(path):
    """YAML only chooses and overrides: a value that equals its parent's, or the dataclass's default, is
    written twice.
    """
    group = path.parent.name
    slots = {x: ["recipe=finetune", f"{x}@recipe.{slot}={path.stem}"] for x, slot in SLOTS.items()}
    overrides = {"conf": ["recipe=moore"], **slots}.get(group, [f"{group}={path.stem}"])
    config = compose_config(overrides)
    assert isinstance(config, Config)
    tree = OmegaConf.to_container(OmegaConf.load(path))
    tree = {"recipe": tree} if group == "recipe" else {} if group in SLOTS else tree
    defaults = [x for x in OmegaConf.load(path).get("defaults", []) if x != "_self_"]
    parents = [
        f"{group}={x}" for x in defaults if isinstance(x, str) and (path.parent / f"{x}.yaml").exists()
    ]
    parents += [f"switch={x[PRESET]}" for x in defaults if not isinstance(x, str) and PRESET in x]
    recipe = type(config.recipe)()
    for key, chosen in vars(config.recipe).items():
        if getattr(recipe, key) in ("???", None) and is_dataclass(chosen):
            setattr(recipe, key, type(chosen)())  # an agent: its own defaults
    below = compose_config(parents[:1]) if parents else Config(recipe=recipe)
    fresh = OmegaConf.to_container(OmegaConf.structured(below))

    def repeated(chosen, default, where):
        for key, value in chosen.items():
            if key in {"defaults", "hydra"}:
                continue
            if isinstance(value, dict) and isinstance(default[key], dict):
                yield from repeated(value, default[key], f"{where}.{key}")
            elif default[key] == value:
                yield f"{where}.{key}"

    assert list(repeated(tree, fresh, path.stem)) == []


def test_conf_is_found_beside_the_package():
    assert (conf_folder() / "config.yaml").is_file()


def test_methods_names_every_recipe(capsys):
    code, out, _ = run(capsys, "methods")
    assert code == 0
    assert all(name in out for name in RECIPES)
    text = " ".join(out.split())
    assert re.search(
        r"MOORe arXiv.*mbo2o train experiment=moore-full adapted: .*hopper-replay-100k \d+ → \d+ \[",
        text,
    )
    assert (
        "by: mbo2o study moore halfcheetah-medium-replay-v5 --seeds 5 --experiment halfcheetah-small --arms mbpo"  # noqa: E501
        in text
    )


def test_whoever_stops_reading_gets_no_traceback():
    command = f"{shlex.quote(sys.executable)} -m mbo2o methods | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout.startswith("methods")
    assert done.stderr == ""


def test_data_list_and_inspect_know_what_ships(capsys):
    _, out, _ = run(capsys, "data", "list")
    assert "hopper-medium-replay-v5" in out
    _, out, _ = run(capsys, "data", "inspect", "hopper-medium-replay-v5", "--json")
    summary = json.loads(out)
    assert summary["transitions"] == summary["usable"] > 50_000
    assert summary["attrs"]["env_id"] == "Hopper-v5"


def test_collect_with_a_shipped_actor_is_deterministic_and_true(tmp_path, capsys):
    """The file's rows are what the environment does: replaying its actions gives its observations and
    rewards.
    """
    actor = REPO / "data" / "actors" / "hopper-medium-v5.safetensors"
    for name in ("a", "b"):
        code, _, _ = run(
            capsys, "data", "collect", "--policy", str(actor), "--rows", "300", "--out", f"{name}.hdf5"
        )
        assert code == 0
    assert Path("a.hdf5").read_bytes() == Path("b.hdf5").read_bytes()
    data, lane = datasets.read("a.hdf5"), Lane("Hopper-v5", 0)
    for i in range(300):
        assert torch.equal(data.obs[i], torch.from_numpy(lane.obs))
        rew, _, terminated, truncated = lane.step(data.act[i].numpy())
        assert float(data.rew[i]) == pytest.approx(rew, abs=1e-5)
        assert bool(data.terminated[i]) == terminated
        if terminated or truncated:
            lane.reset()


def test_collect_by_training_writes_all_tiers(capsys):
    args = ["--env", "Pendulum-v1", "--steps", "300", "--rows", "250", "--hidden", "8", "--out", "made"]
    code, _, err = run(capsys, "data", "collect", *args)
    assert code == 0, err
    for tier in ("random", "medium", "medium-replay", "expert"):
        data = datasets.read(f"made/pendulum-{tier}-v1.hdf5")
        assert data.attrs["env_id"] == "Pendulum-v1"
        assert str(data.attrs["behaviour"]).startswith(tier)
    replay = datasets.read("made/replay.hdf5")
    assert replay.n_rows == 300
    head = datasets.read("made/pendulum-medium-replay-v1.hdf5")
    assert torch.equal(head.obs, replay.obs[: head.n_rows])
    code, _, err = run(capsys, "data", "collect", *args)
    assert (code, "holds a collection already" in err) == (2, True)


def test_train_eval_report_and_again(pendulum, capsys, monkeypatch):
    """The whole path on the command line, twice: the second time there is nothing left to do."""
    small = "recipe.agent.actor.hidden=[8] recipe.agent.critic.hidden=[8] recipe.dynamics.net.hidden=[8] recipe.fit.max_updates=20"  # noqa: E501
    sizes = "recipe.offline_steps=20 recipe.rollouts=20 recipe.batch=16 recipe.online_steps=120 recipe.model_every=60"  # noqa: E501
    online = "recipe.online_rollouts=20 recipe.refit.max_updates=5 run.eval_every=50 run.eval_episodes=1 dir=out seeds=2"  # noqa: E501
    args = ["train", f"dataset={pendulum}", *small.split(), *sizes.split(), *online.split()]
    code, _, err = run(capsys, *args)
    assert code == 0, err
    assert Path("out/report/index.html").is_file()
    lines = Path("out/metrics.jsonl").read_bytes()
    code, _, _ = run(capsys, *args)
    assert code == 0
    assert Path("out/metrics.jsonl").read_bytes() == lines
    code, _, err = run(capsys, *args, "recipe.alpha=0.3")
    assert (code, "recipe.alpha=0.9, not 0.3" in err) == (2, True)
    code, out, err = run(capsys, "eval", "out", "--episodes", "1", "--json")
    assert code == 0, err
    assert len(json.loads(out)["return"]) == 2
    shutil.rmtree("out/report")
    code, _, _ = run(capsys, "report", "out")
    assert code == 0
    assert Path("out/report/index.html").is_file()


def test_divergence_stops_with_exit_code_3(pendulum, capsys):
    args = [
        "train",
        "recipe=mopo",
        f"dataset={pendulum}",
        "recipe.agent.critic_lr=1e20",
        "recipe.offline_steps=50",
    ]
    sizes = [
        "recipe.fit.max_updates=5",
        "recipe.fit.min_updates=1",
        "recipe.dynamics.net.hidden=[8]",
        "recipe.rollouts=20",
    ]
    code, _, err = run(capsys, *args, *sizes, "run.log_every=10", "run.eval_episodes=1", "dir=out")
    assert code == 3
    assert "diverged" in err
    assert "Traceback" not in err


def test_data_list_shows_each_thing_once(capsys, monkeypatch):
    monkeypatch.chdir(
        Path(mbo2o.__file__).parent.parent
    )  # where ./data and the package's neighbour are the same
    code, out, _ = run(capsys, "data", "list")
    assert code == 0
    assert out.count("hopper-medium-replay-v5.hdf5") == 1
    assert out.count("d4rl/hopper-medium-v2 ") == 1
