"""Imagined rollouts as an engine runs them: compiled and at low precision, beside the eager ones."""

import functools

import nets
import pytest
import torch
from nosync import refusing
from torch import Tensor

from mbo2o.dynamics import rollout
from mbo2o.dynamics.fit import FitConfig, Learner
from mbo2o.dynamics.model import DynamicsConfig, GaussianDynamics
from mbo2o.dynamics.rollout import Rollouts
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.ensemble.uncertainty import PENALTIES
from mbo2o.run.engine import Engine, EngineConfig
from mbo2o.types import Batch, Spec, cat

needs_tracing = pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "trace_autograd_ops"), reason="this torch traces no autograd.grad"
)
SEEDS, B, HORIZON = (2,), 10, 5
FIELDS = ("obs", "act", "rew", "next_obs", "done")


class Log:
    """A sink that keeps every step."""

    def __init__(self):
        self.batches, self.keeps = [], []

    def add(self, batch: Batch, *, keep: Tensor) -> None:
        self.batches.append(batch)
        self.keeps.append(keep)


def ends(obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
    """An ending that about a third of the branches meet within a rollout."""
    return next_obs[..., 0] > 1.2


def make(penalty: str = "max_aleatoric", explore: str = "policy"):
    """A model, an agent, and what makes their rollouts with a given engine."""
    torch.manual_seed(0)
    cfg = DynamicsConfig(members=3, elites=2, net=MLPConfig(hidden=[16, 16], activation="silu"))
    model = GaussianDynamics(Spec(nets.OBS, nets.ACT, SEEDS), cfg)
    agent = nets.make("sac", SEEDS)
    agent.cfg.explore.name = explore

    def with_engine(engine: EngineConfig) -> Rollouts:
        return Rollouts(
            model,
            lambda obs: agent.act(obs, explore=True),
            termination=ends,
            penalty=PENALTIES[penalty],
            prepare=Engine(engine).prepare,
        )

    return with_engine


def roll(rollouts: Rollouts, coef: float, horizon: int = HORIZON, n: int = B):
    """One rollout from the same states with the same draws: rows, which of them count, and metrics."""
    torch.manual_seed(1)
    log = Log()
    starts = torch.randn(*SEEDS, n, nets.OBS)
    metrics = rollouts.roll(starts, log, horizon=horizon, coef=coef)
    return cat(log.batches), torch.cat(log.keeps, -1), metrics


def largest_difference(mine, theirs) -> float:
    """Between two rollouts, relative to one plus the value; both have to end the same branches."""
    (rows, keep, metrics), (other, kept, found) = mine, theirs
    assert torch.equal(keep, kept)
    assert 0 < metrics["ended"].mean() < 0.9
    pairs = [(getattr(rows, name), getattr(other, name)) for name in FIELDS]
    pairs += [(metrics[name], found[name]) for name in metrics]
    return max(float(((x - y).abs() / (1 + y.abs())).max()) for x, y in pairs)


@needs_tracing
@pytest.mark.slow
@pytest.mark.parametrize("penalty", [*PENALTIES, None])
def test_a_compiled_rollout_computes_what_the_eager_one_does(penalty):
    make_rollouts = make(penalty or "max_aleatoric")
    coef = 0.5 if penalty else 0.0
    eager = roll(make_rollouts(EngineConfig()), coef)
    compiled = roll(make_rollouts(EngineConfig("compiled")), coef)
    assert largest_difference(compiled, eager) < 1e-5


@needs_tracing
@pytest.mark.slow
@pytest.mark.parametrize("explore", ["ucb", "bootstrapped", "oac"])
def test_every_exploration_is_compiled_with_the_rollout(explore):
    make_rollouts = make(explore=explore)
    eager = roll(make_rollouts(EngineConfig()), 0.5)
    assert largest_difference(roll(make_rollouts(EngineConfig("compiled")), 0.5), eager) < 1e-4


@needs_tracing
@pytest.mark.slow
def test_rollouts_of_all_lengths_and_coefficients_share_two_programs(monkeypatch):
    """One with a penalty and one without, whatever the horizon, the part of the branches and the elites."""
    monkeypatch.setattr(rollout, "CHUNK", 8)
    rollouts = make()(EngineConfig("compiled"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for horizon, coef in ((1, 0.5), (3, 0.5), (2, 2.0), (4, 0.0), (1, 0.0)):
        roll(rollouts, coef, horizon, n=12)
        rollouts._model.elites.add_(1).remainder_(3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize("coef", [0.0, 0.5])
def test_at_low_precision_only_the_products_of_hidden_layers_are_rounded(coef):
    make_rollouts = make()
    exact = roll(make_rollouts(EngineConfig()), coef, horizon=1)
    rounded = roll(make_rollouts(EngineConfig(precision="bf16")), coef, horizon=1)
    assert 0 < largest_difference(rounded, exact) < 0.05
    assert {getattr(rounded[0], name).dtype for name in FIELDS} == {torch.float32}
    assert {x.dtype for x in rounded[2].values()} == {torch.float32}


def test_rules_see_full_precision():
    seen = {}

    def rule(obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        seen["rule"] = (next_obs @ torch.ones(nets.OBS, 1)).dtype
        return torch.zeros_like(next_obs[..., 0], dtype=torch.bool)

    def reward(obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        product = next_obs @ torch.ones(nets.OBS, 1)
        seen["reward"] = product.dtype
        return product.squeeze(-1)

    rollouts = make()(EngineConfig(precision="bf16"))
    rollouts._termination, rollouts._reward = rule, reward
    roll(rollouts, 0.5, horizon=1)
    assert seen == {"rule": torch.float32, "reward": torch.float32}


@pytest.mark.parametrize("n", [1, 7, 8, 12, 13])
def test_parts_hold_every_branch_once_and_are_equal_where_that_is_possible(n, monkeypatch):
    monkeypatch.setattr(rollout, "CHUNK", 8)  # branches of all seeds
    sizes, rollouts = [], make()(EngineConfig())
    run = rollouts._run
    rollouts._run = lambda obs, *rest: sizes.append(obs.shape[-2]) or run(obs, *rest)
    rows, keep, metrics = roll(rollouts, 0.0, horizon=2, n=n)
    assert sizes == {1: [1], 7: [4, 3], 8: [4, 4], 12: [4] * 3, 13: [4, 3, 3, 3]}[n] * 2
    assert rows.obs.shape == (*SEEDS, 2 * n, nets.OBS)
    torch.manual_seed(1)
    assert torch.equal(rows.obs[:, :n], torch.randn(*SEEDS, n, nets.OBS))
    assert metrics["reward"].shape == SEEDS
    going_on = keep[:, :n] & (rows.done[:, :n] == 0)
    assert torch.equal(keep[:, n:], going_on)
    assert torch.equal(rows.obs[:, n:][going_on], rows.next_obs[:, :n][going_on])


@needs_tracing
def test_compiled_steps_of_a_model_and_of_its_rollouts_read_nothing_back(monkeypatch):
    """Steps of agents: see `test_update_is_one_graph_per_form`."""
    programs = []

    def compiler(module, example):
        programs.append(module)
        return refusing(module, example)

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=compiler))
    rows, *_ = roll(make()(EngineConfig("compiled")), 0.5, horizon=2)
    made = len(programs)
    model = GaussianDynamics(Spec(nets.OBS, nets.ACT, SEEDS), DynamicsConfig(members=3, elites=2))
    learner = Learner(model, FitConfig(), Engine(EngineConfig("compiled")).prepare)
    x, y = torch.randn(*SEEDS, 3, 8, nets.OBS + nets.ACT), torch.randn(*SEEDS, 3, 8, nets.OBS + 1)
    learner.step(x, y)
    assert 0 < made < len(programs)
    assert rows.rew.isfinite().all()
