"""An offline phase of one method for another: what it refuses, and that it goes on exactly."""

from dataclasses import replace

import pytest
import torch
from tiny import NET, longer, tensors_of, tiny

from mbo2o.agents.bc import BCConfig
from mbo2o.agents.pex import PEXConfig
from mbo2o.training import train
from mbo2o.types import UserError


@pytest.fixture(scope="module")
def offline(pendulum, tmp_path_factory):
    """Runs that ended offline, of an agent alone and of an agent with a model."""
    folder = tmp_path_factory.mktemp("offline")
    for name in ("finetune", "moore"):
        train(tiny(name, pendulum, folder / name, {"online_steps": 0}))
    return folder


def refused(cfg):
    with pytest.raises(UserError) as e:
        train(cfg)
    return str(e.value)


@pytest.mark.parametrize(("name", "of"), [("finetune", "finetune"), ("moore", "moore")])
def test_the_same_method_goes_on_exactly(name, of, offline, pendulum, tmp_path):
    """`pretrain_from` then is `start_from`, and both are the whole run."""
    usual = tiny(name, pendulum, tmp_path / "whole")
    train(usual)
    train(replace(usual, dir=str(tmp_path / "taken"), pretrain_from=str(offline / of)))
    a, b = tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "taken")
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


def test_an_agent_is_taken_without_its_model(offline, pendulum, tmp_path, capfd):
    cfg = tiny("finetune", pendulum, tmp_path / "run", pretrain_from=str(offline / "moore"))
    train(longer(cfg, online_steps=10))
    assert "  left     dynamics                 finetune has no use for the model" in capfd.readouterr().err
    train(longer(cfg, online_steps=20))  # it also goes on, and longer


def test_another_task_is_refused(offline, pendulum, tmp_path):
    cfg = tiny("finetune", pendulum, tmp_path / "run", pretrain_from=str(offline / "finetune"))
    assert "learned with seed=0, and this run has seed=3; give that one" in refused(replace(cfg, seed=3))
    assert "learned with seeds=1, and this run has seeds=2" in refused(replace(cfg, seeds=2))
    assert "learned with env=Pendulum-v1" in refused(replace(cfg, env="InvertedPendulum-v5"))
    scaled = replace(cfg, run=replace(cfg.run, reward_scale=2.0))
    assert "its critics saw rewards with run.reward_scale=1.0, and this run has 2.0" in refused(scaled)
    assert "both name an offline phase" in refused(replace(cfg, start_from=str(offline / "finetune")))


def test_missing_pieces_are_named(offline, pendulum, tmp_path):
    where = str(offline / "finetune")
    pex = {"online": PEXConfig(actor=NET, critic=NET, value_net=NET)}
    said = refused(tiny("finetune", pendulum, tmp_path / "run", pex, pretrain_from=where))
    assert "value_net is missing (critics: it is not there)" in said
    train(tiny("finetune", pendulum, tmp_path / "bc", {"offline": BCConfig(actor=NET), "online_steps": 0}))
    said = refused(tiny("enoto", pendulum, tmp_path / "run", pretrain_from=str(tmp_path / "bc")))
    assert (
        "an ensemble is missing: enoto needs 3 critics (recipe.critics), and the offline agent there has 0"
        in said
    )
    train(tiny("finetune", pendulum, tmp_path / "on", {"online_steps": 5}))
    said = refused(tiny("finetune", pendulum, tmp_path / "run", pretrain_from=str(tmp_path / "on")))
    assert "has gone on online; pretrain_from needs a run that ended offline" in said
    assert "not a run" in refused(tiny("finetune", pendulum, tmp_path / "run", pretrain_from=str(tmp_path)))
