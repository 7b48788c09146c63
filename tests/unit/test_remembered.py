"""A run is restored and evaluated where its dataset is gone."""

import json

import pytest
import torch
from tiny import NET, tiny

from mbo2o.agents.lapo import LAPOConfig
from mbo2o.cli.main import main
from mbo2o.sources.balanced import BalancedConfig
from mbo2o.training import restore, train
from mbo2o.types import UserError

LAPO = LAPOConfig(critic=NET, cvae=NET, latent=NET)
CASES = {
    "moore": ("moore", {"coverage": 1, "weigh": "td_error", "starts": "imagined-ends"}),
    "balanced": ("finetune", {"source": BalancedConfig(first_updates=3, ratio=NET)}),
    "lapo": ("finetune", {"offline": LAPO}),
}


@pytest.fixture
def data(pendulum, tmp_path):
    path = tmp_path / "mine.hdf5"
    path.write_bytes(pendulum.read_bytes())
    return path


@pytest.mark.parametrize("case", CASES)
def test_all_that_is_restored_is_what_it_was(case, data, tmp_path, recwarn):
    name, recipe = CASES[case]
    train(tiny(name, data, tmp_path / "run", recipe))
    run, before = restore(tmp_path / "run")
    earned = run.evaluate()["return"]
    data.unlink()
    recwarn.clear()
    again, after = restore(tmp_path / "run")
    assert not [x for x in recwarn if "disagrees" in str(x.message)]
    for part in ("agent", "model", "source"):
        old = getattr(before, part, None)
        if isinstance(old, torch.nn.Module):
            new = getattr(after, part).state_dict()
            assert [k for k, x in old.state_dict().items() if not torch.equal(x, new[k])] == []
    assert torch.equal(again.evaluate()["return"], earned)
    assert (len(again.dataset), again.dataset.n_rows) == (len(run.dataset), run.dataset.n_rows)
    for ask in (lambda: again.dataset.sample(2), lambda: list(again.dataset.blocks())):
        with pytest.raises(UserError, match=r"mine\.hdf5: no such file; the run was restored without it"):
            ask()


def test_eval_says_that_the_dataset_is_gone_and_goes_on(data, tmp_path, capsys):
    train(tiny("finetune", data, tmp_path / "run", {"online_steps": 10}))
    shown = []
    for gone in (False, True):
        if gone:
            data.unlink()
        with pytest.raises(SystemExit) as done:
            main(["eval", str(tmp_path / "run"), "--episodes", "2", "--json"])
        assert done.value.code == 0
        out, err = capsys.readouterr()
        shown.append(json.loads(out))
        assert ("mine.hdf5: no such file: restored by what the run kept of it" in err) == gone
    assert shown[0] == shown[1]


def test_a_run_of_a_version_that_kept_nothing_needs_its_dataset(data, tmp_path):
    train(tiny("finetune", data, tmp_path / "run", {"online_steps": 10}))
    data.unlink()
    (tmp_path / "run" / "data.json").unlink()
    with pytest.raises(UserError, match=r"mine\.hdf5: no such file; the version that wrote .* kept nothing"):
        restore(tmp_path / "run")
