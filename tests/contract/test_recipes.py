"""What every registered recipe promises, on Pendulum with nets of eight units."""

import json
import os
import random
import re
import shutil
import signal
import time
from dataclasses import fields, replace
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

import mbo2o.recipes  # noqa: F401  registers
from mbo2o.agents.cql import CQLConfig
from mbo2o.agents.iql import IQLConfig
from mbo2o.agents.obac import OBACConfig
from mbo2o.agents.sac import SACConfig
from mbo2o.agents.td3bc import TD3BCConfig
from mbo2o.data.buffer import ReplayBuffer
from mbo2o.data.dataset import TransitionDataset
from mbo2o.dynamics.fit import FitConfig, holdout
from mbo2o.dynamics.model import DynamicsConfig
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.recipes import imagining
from mbo2o.registry import RECIPES
from mbo2o.report.page import write_report
from mbo2o.report.read import read_run
from mbo2o.run.config import RunConfig
from mbo2o.run.turns import Run
from mbo2o.run.watch import Stopped
from mbo2o.sources.balanced import BalancedConfig
from mbo2o.store import checkpoint
from mbo2o.training import Config, restore, train
from mbo2o.types import UserError

NET = MLPConfig(hidden=[8])
SMALL = {
    "agent": SACConfig(actor=NET, critic=NET),
    "offline": CQLConfig(actor=NET, critic=NET, samples=2),
    "watcher": IQLConfig(actor=NET, critic=NET, value_net=NET),
    "critics": 3,
    "dynamics": DynamicsConfig(members=3, elites=2, net=NET),
    "fit": FitConfig(min_updates=10, max_updates=20, epoch_updates=5),
    "refit": FitConfig(min_updates=5, max_updates=10, epoch_updates=5),
    "batch": 16,
    "horizon": 2,
    "offline_steps": 30,
    "rollouts": 20,
    "rollout_every": 10,
    "online_steps": 130,
    "warmup": 60,
    "random_steps": 60,
    "epoch": 120,
    "model_every": 60,
    "online_rollouts": 20,
    "alpha": 0.5,
    "utd": 1,
}


BALANCED = BalancedConfig(first_updates=7, ratio=NET)
WSRL = SACConfig(actor=NET, critic=NET, critics=3, target="random_min_pair", policy_delay=2)
VARIANTS = {
    "balanced": ("finetune", {"source": BALANCED}),
    "wsrl": (
        "finetune",
        {"offline": CQLConfig(actor=NET, critic=NET, critics=3, samples=2), "online": WSRL, "utd": 2},
    ),
    "branches": (
        "moore",
        {
            **{"agent": TD3BCConfig(actor=NET, critic=NET), "penalty": "bellman", "penalty_draws": 2},
            **{"horizon": 6, "truncate": 0.9, "imagined_rows": 100, "starts": "imagined-ends"},
            **{"online_starts": {"mixture": 1, "visited": 1, "imagined-ends": 1}, "online_coef": "error"},
        },
    ),
    "obac": ("scratch", {"agent": OBACConfig(actor=NET, critic=NET, constraint_weight=0.1), "watcher": None}),
}
"""Settings of a recipe that bring networks or memory of their own."""


def small(name, dataset, directory, seeds=3, **more):
    """The recipe, or variant of one, at sizes that take a second."""
    name, settings = VARIANTS.get(name, (name, {}))
    cls = RECIPES[name].config
    known = {f.name for f in fields(cls)}
    recipe = cls(**{k: v for k, v in SMALL.items() if k in known} | settings)
    run = RunConfig(log_every=15, eval_every=50, eval_episodes=1, checkpoint_every=20, online_capacity=1000)
    data = str(dataset) if RECIPES[name].cls.needs_dataset else None
    return Config(
        recipe=recipe,
        dataset=data,
        env="Pendulum-v1",
        seeds=seeds,
        dir=str(directory),
        run=run,
        report=False,
        **more,
    )


def outcome(directory):
    """All that a run leaves: its last checkpoint, and its log without clock times."""
    tensors, state = checkpoint.latest(directory / "checkpoints", "cpu")
    lines = [json.loads(x) for x in (directory / "metrics.jsonl").read_text().splitlines()]
    return tensors, state["done"], [{k: v for k, v in x.items() if k != "time"} for x in lines]


def assert_same(a, b):
    assert a[1] == b[1]
    assert a[2] == b[2]
    assert a[0].keys() == b[0].keys()
    assert [k for k in a[0] if not torch.equal(a[0][k], b[0][k])] == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory, pendulum):
    """Each recipe, run without interruption, by name."""
    done = {}

    def run(name):
        if name not in done:
            done[name] = tmp_path_factory.mktemp(name) / "run"
            train(small(name, pendulum, done[name]))
        return done[name]

    return run


def test_there_are_recipes():
    assert {"mopo", "moore", "mbpo", "finetune", "enoto", "scratch", "wsrl", "rlpd"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_log_is_per_seed_and_readable(name, finished):
    log = read_run(finished(name))
    evals = log.series("eval", "return")
    assert evals.values.shape[1] == 3
    assert (evals.values < 0).all()  # Pendulum's rewards are costs
    for line in log.lines:
        values = [v for k, v in line.items() if k not in {"kind", "phase", "step", "total", "time"}]
        assert all(len(v) == 3 for v in values), line


@pytest.mark.parametrize("name", RECIPES)
def test_seeds_differ_and_one_seed_works(name, finished, pendulum, tmp_path):
    tensors, _, _ = outcome(finished(name))
    key = next(k for k in tensors if k.endswith("agent/actor.net.layers.0.weight"))
    assert not torch.equal(tensors[key][0], tensors[key][1])
    train(small(name, pendulum, tmp_path / "one", seeds=1))
    assert outcome(tmp_path / "one")[0][key].shape[0] == 1


@pytest.mark.parametrize("name", RECIPES)
def test_restore_gives_the_trained_agent(name, finished):
    run, recipe = restore(finished(name))
    tensors, _, _ = outcome(finished(name))
    for k, v in recipe.agent.state_dict().items():
        stored = next(x for key, x in tensors.items() if key.endswith(f"agent/{k}"))
        assert torch.equal(v, stored)
    assert run.evaluate()["return"].shape == (3,)


def killed(config, when):
    """Train in a child process that kills itself with SIGKILL where `when(run, event)` is true."""
    pid = os.fork()
    if pid == 0:
        after_turn, save = Run._after_turn, checkpoint.save

        def watched_turn(self, last):
            if when(self, "turn"):
                os.kill(os.getpid(), signal.SIGKILL)
            after_turn(self, last)

        def watched_save(folder, turn, tensors, state):
            if when(turn, "save"):
                (folder / f".{turn:09d}.{os.getpid()}.tmp").mkdir(parents=True)
                os.kill(os.getpid(), signal.SIGKILL)
            save(folder, turn, tensors, state)

        Run._after_turn, checkpoint.save = watched_turn, watched_save
        try:
            train(config)
        finally:
            os._exit(1)  # it should have been killed
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL


@pytest.mark.parametrize("name", [*RECIPES, "balanced", "branches"])
def test_killed_in_each_phase_ends_like_uninterrupted(name, finished, pendulum, tmp_path, promise):
    config = small(name, pendulum, tmp_path / "run")
    reference = outcome(finished(name))
    phases = {key.split(".")[0] for key in reference[1] if ":" not in key}
    for phase in sorted(phases, key=["offline", "switch", "online"].index):
        turns = sum(n for k, n in reference[1].items() if k.startswith(f"{phase}.") and ":" not in k)
        killed(
            config,
            lambda run, event, p=phase, n=turns: event == "turn" and run.phase == p and run.turn == n // 3,
        )
        killed(
            config,
            lambda run, event, p=phase, n=turns: event == "turn" and run.phase == p and run.turn == n - 1,
        )
    total = sum(reference[1].values())
    killed(config, lambda turn, event: event == "save" and turn == total)  # while writing the last one
    train(config)
    assert_same(outcome(tmp_path / "run"), reference)
    promise(
        "kill -9 at a chosen turn of a phase, or within a save: same bits at the end", 2 * len(phases) + 1
    )


@pytest.mark.parametrize("kills", [1, pytest.param(13, marks=pytest.mark.survival)])
@pytest.mark.parametrize("name", ["moore", "enoto", "wsrl", "obac"])
def test_killed_at_any_instant_ends_like_uninterrupted(name, kills, finished, pendulum, tmp_path, promise):
    """By the clock: in the midst of an update, a fit, an evaluation, a checkpoint, or of starting up."""
    reference, begun = outcome(finished(name)), time.monotonic()
    train(small(name, pendulum, tmp_path / "timed"))
    whole, rng, landed = time.monotonic() - begun, random.Random(f"{name} {kills}"), 0
    for i in range(kills):
        config = small(name, pendulum, tmp_path / str(i))
        landed += killed_after(config, rng.uniform(0, 0.9) * whole)
        train(config)
        assert_same(outcome(tmp_path / str(i)), reference)
    assert landed >= kills / 2
    promise(
        f"kill -9 at an instant drawn by the clock{', at length' * (kills > 1)}: same bits at the end", landed
    )


def killed_after(config, seconds):
    """Train in a child process that is killed after so many seconds; whether it was still there."""
    pid = os.fork()
    if pid == 0:
        try:
            train(config)
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("name", RECIPES)
def test_sigterm_saves_and_the_same_command_goes_on(name, finished, pendulum, tmp_path, monkeypatch):
    config = small(name, pendulum, tmp_path / "run")
    after_turn = Run._after_turn

    def terminated(self, last):
        if self.phase == "online" and self.turn == 75:
            os.kill(os.getpid(), signal.SIGTERM)
        after_turn(self, last)

    if "online.0" not in outcome(finished(name))[1]:
        monkeypatch.setattr(
            Run,
            "_after_turn",
            lambda s, last: (s.turn == 17 and setattr(s.signals, "stop", True), after_turn(s, last)),
        )
    else:
        monkeypatch.setattr(Run, "_after_turn", terminated)
    with pytest.raises(Stopped):
        train(config)
    monkeypatch.setattr(Run, "_after_turn", after_turn)
    train(config)
    assert_same(outcome(tmp_path / "run"), outcome(finished(name)))


@pytest.mark.parametrize("name", ["mopo", "moore", "finetune", "enoto", "balanced", "branches"])
def test_poisoned_seed_leaves_the_others_alone(name, finished, pendulum, tmp_path, monkeypatch):
    """Seed 0 sees absurd rewards, offline, imagined and online; seeds 1 and 2 end bit-identical."""
    clean = outcome(finished(name))[0]
    for cls in (ReplayBuffer, TransitionDataset):
        rows = cls.rows

        def poisoned(self, index, rows=rows):
            b = rows(self, index)
            b.rew = b.rew.clone()
            if b.rew.shape[0] == 3:
                b.rew[0] *= 1000
            return b

        monkeypatch.setattr(cls, "rows", poisoned)
    sample = TransitionDataset.sample

    def poisoned_sample(self, n):
        b = sample(self, n)
        b.rew = b.rew.clone()
        b.rew[0] *= 1000
        return b

    monkeypatch.setattr(TransitionDataset, "sample", poisoned_sample)
    config = small(name, pendulum, tmp_path / "run")
    config.run.q_limit = 1e30
    train(config)
    dirty = outcome(tmp_path / "run")[0]
    seedwise = [
        k for k in clean if ("agent/" in k or "model/" in k) and clean[k].dim() and clean[k].shape[0] == 3
    ]
    assert len(seedwise) > 20
    assert any(not torch.equal(clean[k][0], dirty[k][0]) for k in seedwise)
    assert [k for k in seedwise if not torch.equal(clean[k][1:], dirty[k][1:])] == []


def test_start_from_an_offline_run_equals_doing_both(finished, pendulum, tmp_path):
    offline = small("moore", pendulum, tmp_path / "offline")
    offline.recipe.online_steps = 0
    train(offline)
    both = small("moore", pendulum, tmp_path / "both", start_from=str(tmp_path / "offline"))
    train(both)
    assert_same(outcome(tmp_path / "both"), outcome(finished("moore")))
    kept = [
        (p / "dynamics" / "online" / "model.safetensors").read_bytes()
        for p in (tmp_path / "both", finished("moore"))
    ]
    assert kept[0] == kept[1]
    other = small("moore", pendulum, tmp_path / "other", start_from=str(tmp_path / "offline"), seed=7)
    with pytest.raises(UserError, match="seed=0, not 7"):
        train(other)


@pytest.mark.parametrize(("change", "said"), [
    ({"env": "InvertedPendulum-v5"}, "env=Pendulum-v1, not InvertedPendulum-v5"),
    ({"coef": 2.0}, "recipe.coef=1.0, not 2.0"),
    ({"fit": FitConfig(min_updates=10, max_updates=30)}, "recipe.fit.max_updates=20, not 30"),
])  # fmt: skip
def test_start_from_refuses_an_offline_phase_learned_otherwise(pendulum, finished, tmp_path, change, said):
    config = small("moore", pendulum, tmp_path / "other", start_from=str(finished("moore")))
    for key, value in change.items():
        setattr(config if key == "env" else config.recipe, key, value)
    with pytest.raises(UserError, match=re.escape(said)):
        train(config)
    assert not (tmp_path / "other").exists()


def test_start_from_an_offline_phase_with_rules_of_one_s_own(pendulum, tmp_path):
    offline = small("moore", pendulum, tmp_path / "offline")
    offline.recipe.reward, offline.recipe.online_steps = double, 0
    train(offline)
    config = small("moore", pendulum, tmp_path / "run", start_from=str(tmp_path / "offline"))
    with pytest.raises(UserError, match=r"reward=.*:double, not None"):
        train(config)
    config.recipe.reward = double
    train(config)


def test_what_is_held_out_is_so_for_the_model_s_life(pendulum, tmp_path):
    config = small("moore", pendulum, tmp_path / "run")
    config.recipe.fit = replace(config.recipe.fit, holdout=0.3)
    with pytest.raises(UserError, match=r"holdout=0\.3 and recipe\.refit\.holdout=0\.1 must be the same"):
        train(config)


def test_probes_look_at_held_out_rows_from_all_over_the_data(pendulum, finished, monkeypatch):
    run, recipe = restore(finished("moore"))
    monkeypatch.setattr(imagining, "PROBE", 20)
    asked = []
    rows = TransitionDataset.rows
    monkeypatch.setattr(
        TransitionDataset, "rows", lambda self, index: asked.append(index) or rows(self, index)
    )
    recipe.probe(run, 2)
    (index,) = asked
    assert index.shape == (3, 20)
    assert index.max() - index.min() > 400  # of 600
    assert set(index[0].tolist()) <= set(holdout(run.dataset.index, recipe.cfg.fit).tolist())


def double(obs, act, next_obs):
    """A reward of one's own."""
    return 2 * obs[..., 0]


def test_own_rewards_are_scaled_and_shifted_as_those_of_the_data(pendulum, tmp_path):
    config = small("mopo", pendulum, tmp_path / "run")
    config.recipe.reward, config.recipe.coef, config.recipe.retain = double, 0.0, 1
    config.run.reward_scale, config.run.reward_shift = 0.5, 3.0
    train(config)
    _, recipe = restore(tmp_path / "run")
    b = recipe.imagined.latest(20)
    torch.testing.assert_close(b.rew, 0.5 * 2 * b.obs[..., 0] + 3)


def test_mbpo_fits_its_model_as_soon_as_it_is_done_with_random_steps(finished):
    log = read_run(finished("mbpo"))
    fits = log.series("model", "holdout_mse", "online")
    assert fits.step.tolist()[:2] == [0, 59]
    surer = log.series("uncertainty", "mixture_std/imagined", "online").step.tolist()
    assert surer[0] == 59  # an untrained model is not asked what it knows
    assert log.series("train", "critic_loss", "online").step[0] <= 15


def test_report_and_notebook_read_what_a_run_writes(finished, tmp_path, monkeypatch):
    directory = shutil.copytree(finished("moore"), tmp_path / "run")
    html = write_report(directory).read_text()
    sections = ("numbers", "return", "uncertainty", "offline_share", "q_values", "calibration", "config")
    assert [x for x in sections if f'id="{x}"' not in html] == []
    monkeypatch.setenv("MBO2O_RUN", str(directory))
    notebook = nbformat.read(
        Path(__file__).parents[2] / "notebooks" / "01_uncertainty_decay.ipynb", as_version=4
    )
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = [x for cell in notebook.cells for x in cell.get("outputs", [])]
    assert sum("image/png" in x.get("data", {}) for x in outputs) >= 3


def test_damaged_checkpoints_are_skipped_and_never_overwritten(finished, pendulum, tmp_path):
    directory = shutil.copytree(finished("mopo"), tmp_path / "run")
    newest = max((directory / "checkpoints").iterdir())
    (newest / "state.safetensors").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="damaged"):
        train(small("mopo", pendulum, directory))
    assert_same(outcome(directory), outcome(finished("mopo")))
    log = (directory / "metrics.jsonl").read_bytes()
    for path in (directory / "checkpoints").iterdir():
        (path / "state.json").write_text("{}")
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(UserError, match="every checkpoint is damaged"),
    ):
        train(small("mopo", pendulum, directory))
    assert (directory / "metrics.jsonl").read_bytes() == log


def test_a_start_that_failed_claims_no_directory(pendulum, tmp_path):
    wrong, right = (small("mopo", pendulum, tmp_path / "run") for _ in range(2))
    wrong.recipe.penalty = "max_aleatorc"
    with pytest.raises(UserError, match="did you mean"):
        train(wrong)
    train(right)
    changed = small("mopo", pendulum, tmp_path / "run")
    changed.recipe.horizon = 3
    with pytest.raises(UserError, match=r"recipe\.horizon=2, not 3"):
        train(changed)


def never(obs, act, next_obs):
    return torch.zeros(obs.shape[:-1], dtype=torch.bool)


def always(obs, act, next_obs):
    return torch.ones(obs.shape[:-1], dtype=torch.bool)


@pytest.mark.parametrize(("rule", "ended"), [(never, 0.0), (always, 1.0)])
@pytest.mark.filterwarnings("ignore:termination")
def test_ones_own_termination_is_a_callable(rule, ended, pendulum, tmp_path):
    config = small("mopo", pendulum, tmp_path / "run")
    config.recipe.termination = rule
    train(config)
    assert (read_run(tmp_path / "run").series("uncertainty", "ended/imagined").values == ended).all()


def test_a_learned_termination_survives_a_restart(pendulum, tmp_path):
    config = small("mopo", pendulum, tmp_path / "run")
    config.recipe.termination = "learned"
    with pytest.warns(UserWarning, match="one class only"):  # Pendulum's data hold no ending
        train(config)
    _, recipe = restore(tmp_path / "run")
    assert recipe.termination.state_dict().keys()


def test_a_signal_during_a_stage_stops_at_once(pendulum, tmp_path, monkeypatch):
    """The first fit may take minutes: nothing is lost by leaving it."""
    config = small("mopo", pendulum, tmp_path / "run")
    monkeypatch.setattr("mbo2o.recipes.imagining.fit", lambda *a: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match="starts the stage again"):
        train(config)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    monkeypatch.undo()
    train(config)
