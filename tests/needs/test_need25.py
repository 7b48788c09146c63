"""Need 25: pre-trained artefacts: one offline phase for several methods, and precise words for what lacks.

Two fine-tuning algorithms start from one artefact with an identical evaluation at step 0, its hash is
recorded, and a missing piece, such as an ensemble for ENOTO, gives a precise message.
"""

import json
from dataclasses import replace

import pytest
from tiny import NET, log_of, tiny

import mbo2o
from mbo2o.agents.sac import SACConfig
from mbo2o.store.whole import file_sha256
from mbo2o.training import train


@pytest.fixture(scope="module")
def artefact(pendulum, tmp_path_factory):
    """A run that ended after its offline phase."""
    directory = tmp_path_factory.mktemp("need25") / "pre"
    train(tiny("finetune", pendulum, directory, {"online_steps": 0}))
    return directory


def evaluation(directory, phase, step):
    found = [x for x in log_of(directory) if (x["kind"], x["phase"], x["step"]) == ("eval", phase, step)]
    return [{k: v for k, v in x.items() if k not in ("phase", "step")} for x in found]


def test_two_algorithms_start_from_one_artefact(artefact, pendulum, tmp_path, capfd):
    online = SACConfig(actor=NET, critic=NET)
    other = {"offline": replace(tiny("wsrl", pendulum, "x").recipe.offline, samples=7), "online": online}
    train(tiny("wsrl", pendulum, tmp_path / "wsrl", other, pretrain_from=str(artefact)))
    said = capfd.readouterr().err
    assert f"from {artefact}, an offline phase of finetune:" in said
    assert "  taken    actor                    actor\n" in said
    assert "  taken    log_alpha                temperature\n" in said
    assert "20 offline turns are done" in said
    assert "offline.samples=2" in said
    enoto = {"critics": 2}
    train(tiny("enoto", pendulum, tmp_path / "enoto", enoto, pretrain_from=str(artefact)))
    first = [evaluation(tmp_path / x, "online", 0) for x in ("wsrl", "enoto")]
    assert first[0] == first[1]
    assert first[0][0]["return"] == evaluation(artefact, "offline", 20)[0]["return"]
    about = json.loads((tmp_path / "wsrl" / "pretrained.json").read_text())
    (folder,) = [x for x in (artefact / "checkpoints").iterdir() if int(x.name) == about["turn"]]
    assert about["sha256"]["state.safetensors"] == file_sha256(folder / "state.safetensors")


MISSING = {
    "enoto": (
        {},
        "an ensemble is missing: enoto needs 3 critics (recipe.critics), and the offline agent there has 2; "
        "pre-train with recipe.offline.critics=3, or give recipe.critics=2",
    ),
    "moore": (
        {},
        "dynamics are missing: moore needs a model, and finetune learns none; pre-train with recipe=mopo",
    ),
    "wsrl": (
        {"online": SACConfig(actor=NET, critic=NET, critics=5)},
        "critic is missing (critics: another size there: 98 numbers → 245 numbers); recipe.online=null goes "
        "on with the agent",
    ),
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_piece_is_named(artefact, pendulum, tmp_path, name):
    recipe, said = MISSING[name]
    with pytest.raises(mbo2o.UserError) as refused:
        train(tiny(name, pendulum, tmp_path / "run", recipe, pretrain_from=str(artefact)))
    assert said in str(refused.value)
    assert "Config(" not in str(refused.value)
    assert not (tmp_path / "run").exists()
