"""Divergence: a run with numbers that are not finite stops, and its last checkpoint is good."""

import pytest
import torch
from survival import COUNTER, small

from mbo2o.agents.sac import SAC
from mbo2o.report.read import read_run
from mbo2o.store import checkpoint
from mbo2o.training import train
from mbo2o.types import Diverged


def poison(part, turn):
    """Make one number of an agent's part NaN in an online turn."""

    def sabotage(monkeypatch):
        update, updates = SAC.update, []

        def poisoned(self, *args):
            metrics = update(self, *args)
            updates.append(0)
            if len(updates) == turn:
                with torch.no_grad():
                    next(getattr(self, part).parameters()).view(-1)[0] = torch.nan
            return metrics

        monkeypatch.setattr(SAC, "update", poisoned)

    return sabotage


def bad_loss(monkeypatch):
    update, updates = SAC.update, []

    def poisoned(*args):
        updates.append(0)
        worse = {"critic_loss": torch.tensor([1.0, torch.inf])} if len(updates) == 34 else {}
        return update(*args) | worse

    monkeypatch.setattr(SAC, "update", poisoned)


def error_caused_by_nan(monkeypatch):
    poison("critic", 33)(monkeypatch)
    update, updates = SAC.update, []

    def fails(*args):
        updates.append(0)
        if len(updates) == 34:
            raise ValueError("probabilities must be finite")
        return update(*args)

    monkeypatch.setattr(SAC, "update", fails)


SABOTAGED = {
    "critic_lr": ({"critic_lr": 1e3}, "Q|critic_loss"),
    "no target, no discount": ({"tau": 1.0, "gamma": 1.0, "critic_lr": 10.0}, "Q"),
    "no target, no discount, faster": ({"tau": 1.0, "gamma": 1.0, "critic_lr": 1e3}, "Q"),
    "actor_lr": ({"actor_lr": 1e30}, "critic_loss|an action|agent"),
    "temperature": ({"init_alpha": 1e30}, "critic_loss"),
    "temperature's rate": ({"alpha_lr": 1e4, "target_entropy": 100.0}, "critic_loss"),
    "rewards": ({"reward_scale": 1e30}, "critic_loss"),
    "actor": (poison("actor", 33), r"agent\.actor"),
    "critic": (poison("critic", 33), r"critic_loss|agent\.critic"),
    "target": (poison("target", 33), r"critic_loss|agent\.target"),
    "a loss": (bad_loss, "critic_loss"),
    "an error caused by NaN": (error_caused_by_nan, r"agent\.critic"),
}


@pytest.mark.parametrize("name", SABOTAGED)
def test_divergence_is_caught_and_the_last_checkpoint_is_good(name, tmp_path, monkeypatch, recwarn, promise):
    sabotage, named = SABOTAGED[name]
    config = small(tmp_path / "run", "Pendulum-v1", steps=300, eval_every=1000)
    if callable(sabotage):
        config.run.log_every = 1000  # it must be noticed before a line is due
        sabotage(monkeypatch)
    for key, value in {} if callable(sabotage) else sabotage.items():
        setattr(config.run if key in vars(config.run) else config.recipe.agent, key, value)
    with pytest.raises(Diverged, match=rf"({named}).* at online turn \d+.* the last checkpoint is kept") as e:
        train(config)
    assert "\n" not in str(e.value)
    tensors, state = checkpoint.latest(tmp_path / "run" / "checkpoints", "cpu")
    learned = [k for k in tensors if "agent/" in k or k.startswith("means/")]
    assert learned
    assert all(torch.isfinite(tensors[k]).all() for k in learned)
    turn = int(str(e.value).split("online turn ")[1].split()[0].strip(",;"))
    assert state["done"].get("online.0", 0) <= turn <= 300
    if callable(sabotage):
        assert turn <= 33 + 15
    assert not read_run(tmp_path / "run").has("fault", "what")  # the environment is not blamed
    assert not recwarn.list
    promise("sabotaged runs: stopped as divergence, last checkpoint finite")


HEALTHY = [
    {"critic_lr": lr, "tau": tau, "gamma": g}
    for lr, tau, g in zip(
        [1e-4, 3e-4, 1e-3, 3e-3, 1e-2] * 2, [0.005, 0.05] * 5, [0.9, 0.99, 0.999, 0.99, 1.0] * 2, strict=True
    )
]


@pytest.mark.parametrize("seed", range(10))
def test_healthy_runs_are_left_alone(seed, counter, tmp_path, promise):
    config = small(
        tmp_path / "run", COUNTER if seed % 2 else "InvertedPendulum-v5", steps=100, eval_every=1000
    )
    config.seed = seed
    for key, value in HEALTHY[seed].items():
        setattr(config.recipe.agent, key, value)
    train(config)
    tensors, state = checkpoint.latest(tmp_path / "run" / "checkpoints", "cpu")
    assert state["done"]["online.0"] == 100
    assert all(x.isfinite().all() for key, x in tensors.items() if ".agent/" in key and x.is_floating_point())
    promise("healthy runs with wild settings: not stopped")
