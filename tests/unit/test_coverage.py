"""How far states lie from the data: distances and quantiles against brute force, the log, and the figure."""

import json

import numpy as np
import pytest
import torch

from mbo2o.agents.sac import SACConfig
from mbo2o.data.dataset import TransitionDataset
from mbo2o.dynamics.coverage import MARKS, Yardstick, binned, yardstick
from mbo2o.dynamics.fit import FitConfig
from mbo2o.dynamics.model import DynamicsConfig
from mbo2o.ensemble.hash import row_hash
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.recipes.coverage import BINS, DEPTHS
from mbo2o.recipes.moore import MOOReConfig
from mbo2o.recipes.mopo import MOPOConfig
from mbo2o.report.page import write_report
from mbo2o.report.read import read_run
from mbo2o.run.config import RunConfig
from mbo2o.run.evaluate import Evaluator
from mbo2o.training import Config, train
from mbo2o.types import UserError

NET = MLPConfig(hidden=[8])


def brute(rows, x):
    """The distance of one state to the nearest row, in standard deviations of the rows."""
    std = rows.std(0)
    std[std < 1e-6] = 1
    return min(np.sqrt((((x - row) / std) ** 2).sum()) for row in rows)


def test_distances_and_levels_are_those_of_brute_force():
    rng = np.random.default_rng(0)
    spread = np.array([1, 100, 0.01, 0])  # dimensions of other units, and one that never changes
    rows, held, query = (rng.normal(size=(n, 4)) * spread + 5 for n in (50, 20, 12))
    query[:6] += 0.5 * spread  # some lie farther out
    measure = Yardstick(torch.tensor(rows), torch.tensor(held))
    distance = measure.distances(torch.tensor(query.reshape(2, 6, 4)))
    expected = np.array([brute(rows, x) for x in query])
    assert distance.shape == (2, 6)
    assert np.allclose(distance.flatten(), expected)
    of_held = np.array([brute(rows, x) for x in held])
    levels = [(of_held < x).mean() for x in expected]
    assert np.allclose(measure.levels(distance).flatten(), levels)
    assert 0 < np.mean(levels) < 1
    assert np.allclose(measure.marks(), np.quantile(of_held, MARKS), atol=1e-6)


def test_a_row_of_the_data_has_distance_0_however_far_from_the_origin():
    rows = torch.randn(100, 3) + 1000
    assert (Yardstick(rows, rows[:2] + 0.1).distances(rows) == 0).all()


def test_held_out_states_lie_in_the_middle_of_their_own_distances():
    rng = np.random.default_rng(1)
    obs = rng.normal(size=(5000, 3)).astype(np.float32)
    ends = np.arange(5000) % 50 == 49
    data = TransitionDataset.from_arrays(obs, obs[:, :1] * 0, obs[:, 0], ends, ~ends & False, obs)
    measure = yardstick(data, FitConfig())
    held = row_hash(data.index, 0) < 0.1
    assert measure.levels(measure.distances(data.obs[held])).mean().item() == pytest.approx(0.5, abs=0.03)
    assert (measure.distances(data.obs[~held]) == 0).float().mean() > 0.9  # the yardstick's own rows
    assert measure.levels(measure.distances(data.obs[:50] + 9)).min() == 1


def test_bins_hold_means_of_the_rows_that_count():
    x = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    keep = torch.tensor([[True, True, True, True], [True, False, False, False]])
    found = binned(x, keep, torch.tensor([0, 0, 2, 2]), 3)
    assert torch.equal(found.nan_to_num(-1), torch.tensor([[1.5, -1, 3.5], [5, -1, -1]]))


def test_an_evaluator_keeps_the_first_episode_of_each_seed():
    evaluator = Evaluator("Pendulum-v1", (2,), 3, 0, 0.99)
    act = lambda obs: torch.full((*obs.shape[:-1], 1), 0.3)  # noqa: E731
    evaluator(act, lambda obs, act: obs[..., 0])
    seen = evaluator.visited()
    assert seen.obs.shape == seen.next_obs.shape == (2, 200, 3)
    assert seen.played.all()
    assert (seen.act == 0.3).all()
    assert torch.equal(seen.obs[:, 1:], seen.next_obs[:, :-1])
    alone = Evaluator("Pendulum-v1", (), 1, 1000, 0.99)  # the second seed's first start
    alone(act, lambda obs, act: obs[..., 0])
    assert torch.equal(alone.visited().obs, seen.obs[1])


# ---------------------------------------------------------------------- in runs


def config(directory, data, **change):
    sizes = {"dynamics": DynamicsConfig(members=2, elites=2, net=NET), "batch": 8, "utd": 1}
    fits = {name: FitConfig(min_updates=5, max_updates=10, epoch_updates=5) for name in ("fit", "refit")}
    steps = {"offline_steps": 40, "rollouts": 10, "rollout_every": 20, "online_steps": 70, "epoch": 60}
    more = {"model_every": 60, "online_rollouts": 10, "coef": 2.0, "agent": SACConfig(actor=NET, critic=NET)}
    run = RunConfig(log_every=10, eval_every=20, eval_episodes=1, checkpoint_every=1000, online_capacity=500)
    return Config(
        recipe=MOOReConfig(**sizes | fits | steps | more | change),
        dataset=str(data),
        env="Pendulum-v1",
        seeds=2,
        dir=str(directory),
        run=run,
        report=False,
    )


@pytest.fixture(scope="module")
def looked_at(pendulum, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "run"
    train(config(directory, pendulum, coverage=2))
    return directory


def lines(directory, *kinds):
    found = [json.loads(x) for x in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in x.items() if k != "time"} for x in found if x["kind"] in kinds]


def test_every_kth_evaluation_and_those_at_the_ends_are_looked_at(looked_at):
    at = [(x["phase"], x["step"]) for x in lines(looked_at, "coverage")]
    assert at == [("offline", 0), ("offline", 40), ("online", 0), ("online", 40), ("online", 70)]
    for x in lines(looked_at, "coverage"):
        assert np.shape(x["visited/error"]) == np.shape(x["visited/step"]) == (2, BINS)
        assert np.shape(x["imagined/distance"]) == (2, len(DEPTHS))
        assert np.shape(x["marks"]) == (2, 3)
        assert np.nanmax(np.array(x["visited/level"], float)) <= 1
    first = lines(looked_at, "coverage")[0]
    assert np.mean([x[0] for x in first["imagined/level"]]) == pytest.approx(0.5, abs=0.15)  # held-out rows


def test_looks_change_nothing_that_a_run_computes(looked_at, pendulum, tmp_path):
    train(config(tmp_path / "run", pendulum))
    kinds = ("train", "eval", "model", "uncertainty", "episode")
    assert lines(looked_at, *kinds) == lines(tmp_path / "run", *kinds)
    assert not lines(tmp_path / "run", "coverage")


def test_the_uncertainty_value_error_is_the_discounted_penalty(looked_at):
    for x in lines(looked_at, "coverage"):
        plain, penalised, gap = (
            np.array(x[k]) for k in ("value", "value_penalised", "uncertainty_value_error")
        )
        assert np.allclose(plain - penalised, gap, rtol=1e-4)
        assert (gap > 0).all()


def test_the_report_draws_where_the_policy_goes(looked_at, tmp_path):
    page = write_report(looked_at, tmp_path)
    assert 'id="coverage"' in page.read_text()
    assert 'id="uncertainty_value"' in page.read_text()
    for name in ("coverage", "uncertainty_value"):
        assert (tmp_path / f"{name}.png").stat().st_size > 20_000
    log = read_run(looked_at)
    assert log.has("coverage", "visited/distance")


def test_a_negative_interval_is_refused():
    with pytest.raises(UserError, match=r"recipe\.coverage=-1 must not be negative"):
        MOPOConfig(coverage=-1)
