"""Where imagined branches begin: shares, kinds without rows, and the ends of earlier branches."""

import pytest
import torch

from mbo2o.cli.main import compose_config
from mbo2o.recipes.mbpo import MBPOConfig
from mbo2o.recipes.moore import MOOReConfig
from mbo2o.recipes.mopo import MOPOConfig
from mbo2o.recipes.starts import ENDS, Ends, begin
from mbo2o.types import Batch, Spec, UserError


class Constant:
    """A source whose every observation is one number."""

    def __init__(self, x, seeds=()):
        self.x, self.seeds = float(x), seeds

    def __len__(self):
        return 7

    def sample(self, n):
        row = torch.full((*self.seeds, n), self.x)
        return Batch(row.unsqueeze(-1), row.unsqueeze(-1), row, row.unsqueeze(-1), row)


def counts(source, n=100):
    return {x: int((source.sample(n).obs == x).sum()) for x in source.sample(n).obs.unique().tolist()}


def test_shares_are_exact():
    kinds = {"data": Constant(1), "visited": Constant(2), ENDS: Constant(3)}
    given = {"data": 2, "visited": 1, ENDS: 1}
    assert counts(begin(given, kinds["data"], **kinds)) == {1: 50, 2: 25, 3: 25}
    assert counts(begin("visited", kinds["data"], **kinds)) == {2: 100}
    assert counts(begin({"visited": 1, "data": 0}, kinds["data"], **kinds)) == {2: 100}


def test_a_kind_without_rows_leaves_its_share_to_the_others():
    kinds = {"data": Constant(1), "visited": None, ENDS: Constant(3)}
    assert counts(begin({"data": 1, "visited": 2, ENDS: 3}, Constant(0), **kinds)) == {1: 25, 3: 75}
    assert counts(begin("visited", Constant(0), **kinds)) == {0: 100}


def test_ends_are_the_states_of_branches_that_went_on():
    ends = Ends(Spec(1, 1, (2,)), 4, Constant(-1, (2,)))
    assert (ends.sample(50).obs == -1).all()
    row = torch.arange(4.0).expand(2, 4)
    batch = Batch(*(x.unsqueeze(-1) for x in (row, row)), row, row.unsqueeze(-1) + 10, row)
    ends.add(batch, keep=torch.tensor([[False, True, False, True], [False] * 4]))
    torch.manual_seed(0)
    found = ends.sample(400).obs
    assert set(found[0].flatten().tolist()) == {11.0, 13.0}
    assert 150 < (found[0] == 11).sum() < 250
    assert (found[1] == -1).all()  # a seed whose branches have all ended
    again = Ends(Spec(1, 1, (2,)), 4, Constant(-1, (2,)))
    again.load_state_dict(ends.state_dict())
    torch.manual_seed(0)
    assert torch.equal(again.sample(400).obs, found)


def test_a_seed_s_draws_do_not_depend_on_another_seed_s_ends():
    row = torch.arange(4.0).expand(2, 4)
    batch = Batch(*(x.unsqueeze(-1) for x in (row, row)), row, row.unsqueeze(-1), row)
    found = []
    for first in (True, False):
        ends = Ends(Spec(1, 1, (2,)), 4, Constant(-1, (2,)))
        ends.add(batch, keep=torch.tensor([[first] * 4, [True] * 4]))
        torch.manual_seed(0)
        found.append((ends.sample(20).obs[1], torch.rand(2)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("config", "change", "said"),
    [
        (
            MOPOConfig,
            {"starts": "ends"},
            "recipe.starts: 'ends' is no kind of start; choices: data, imagined",
        ),
        (MOPOConfig, {"starts": "visited"}, "recipe.starts: 'visited' has no meaning there"),
        (MBPOConfig, {"starts": "mixture"}, "recipe.starts: 'mixture' has no meaning there"),
        (MOOReConfig, {"online_starts": {}}, "recipe.online_starts={} must be one of data, mixture"),
        (MOOReConfig, {"online_starts": 3}, "recipe.online_starts=3 must be one of"),
        (MOOReConfig, {"online_starts": {"data": -1}}, "recipe.online_starts.data=-1 is a weight"),
        (MOOReConfig, {"online_starts": {"data": 0.0}}, "the weights must not all be 0"),
    ],
)
def test_starts_that_cannot_be_are_one_line(config, change, said):
    with pytest.raises(UserError) as e:
        config(**change)
    assert said in str(e.value)


def test_starts_are_given_on_the_command_line(pendulum):
    given = ["recipe=moore", f"dataset={pendulum}", "recipe.starts=imagined-ends"]
    cfg = compose_config([*given, "recipe.online_starts={visited: 0.5, imagined-ends: 0.5}"])
    assert cfg.recipe.starts == ENDS
    assert cfg.recipe.online_starts == {"visited": 0.5, ENDS: 0.5}
