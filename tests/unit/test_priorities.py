"""Offline rows by priority f(d, t) = g(d) f(t): draws against brute force, fits, and what recipes do."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from mbo2o.agents.bc import BCConfig
from mbo2o.agents.sac import SACConfig
from mbo2o.data.buffer import ReplayBuffer
from mbo2o.data.dataset import TransitionDataset
from mbo2o.data.priorities import Prioritised, search
from mbo2o.dynamics.fit import FitConfig, _Split
from mbo2o.dynamics.model import DynamicsConfig, GaussianDynamics
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.recipes.finetune import FinetuneConfig
from mbo2o.recipes.moore import MOOReConfig
from mbo2o.report.read import read_run
from mbo2o.run.config import RunConfig
from mbo2o.sources.aged import SAMPLING, Aged, AgedConfig, priorities
from mbo2o.training import Config, train
from mbo2o.types import Batch, Spec, UserError
from tests.nosync import no_host_reads

N, M, S = 12, 5, 2
SPEC = Spec(2, 1, (S,))
NET = MLPConfig(hidden=[8])


def offline(n=N, seed=0):
    """Rows whose reward is their number; the last row of each episode of six is unknown."""
    rng = np.random.default_rng(seed)
    obs, ends = rng.normal(size=(n, 2)).astype(np.float32), np.arange(n) % 6 == 5
    return TransitionDataset.from_arrays(
        obs, np.zeros((n, 1), np.float32), np.arange(n, dtype=np.float32), ends
    ).with_seeds((S,))


def online(n=M):
    buffer = ReplayBuffer(SPEC, 50)
    rew = torch.arange(100.0, 100 + n).expand(S, n)
    obs = torch.zeros(S, n, 2)
    buffer.add(Batch(obs, torch.zeros(S, n, 1), rew, obs, torch.zeros(S, n)))
    return buffer


def aged(weigh="td_error", exponent=0.6, alpha=0.5, score=None, **how):
    cfg = AgedConfig("geometric", alpha, 10, weigh, exponent, **how)
    source = Aged(cfg, SPEC, offline(), online())
    source.scores[weigh] = score or (lambda b: torch.stack([1 + b.rew[0], 20 - b.rew[1]]))
    return source


def chi_square(counts, expected):
    """Pearson's statistic over its degrees of freedom: near 1 for the right sampler, far above for others."""
    return ((counts - expected) ** 2 / expected).sum() / (len(expected) - 1)


@pytest.mark.parametrize("exponent", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("epoch", [1, 3])
def test_rows_are_drawn_by_f_of_d_and_t_to_the_exponent(exponent, epoch):
    torch.manual_seed(epoch)
    source = aged(exponent=exponent)
    source.advance(10 * (epoch - 1))
    drawn, usable = source.sample(60_000).rew, source.offline.index.numpy()
    for k, g in enumerate((1.0 + usable, 20.0 - usable)):
        # brute force: a priority for each of all rows, offline f(d, t), online 1
        g = g / (g**exponent).mean() ** (1 / exponent) if exponent else g
        f = np.concatenate([g * 0.5**epoch, np.ones(M)]) ** exponent
        numbers = np.concatenate([usable, 100 + np.arange(M)])
        counts = np.array([(drawn[k] == x).sum() for x in numbers], float)
        assert counts.sum() == 60_000
        assert chi_square(counts, f / f.sum() * 60_000) < 2.5
        if exponent == 1:  # the test sees a sampler that ignores d
            flat = np.where(numbers < 100, f[:-M].mean(), 1.0)
            assert chi_square(counts, flat / flat.sum() * 60_000) > 20


def test_weighing_leaves_the_share_of_offline_rows_to_the_decay():
    source = aged(exponent=2.0)
    source.advance(25)
    assert source.share == SAMPLING["geometric"](3, 0.5**2, len(source.offline), M)
    assert torch.allclose(source.chosen.weights.mean(-1), torch.ones(S).double())
    assert source.spread()["effective_rows"].shape == (S,)
    assert (source.spread()["effective_rows"] < 0.9).all()


def test_scores_are_bounded_and_none_is_lost():
    found = priorities(torch.tensor([[0.0, 1.0, 1e9, 1.0]]), 1.0)
    assert (found > 0).all()
    assert found.mean().item() == pytest.approx(1)
    assert torch.equal(priorities(torch.zeros(1, 3), 1.0), torch.ones(1, 3).double())


def test_without_online_rows_the_weighing_stays():
    source = Aged(AgedConfig(weigh="td_error"), SPEC, offline(), ReplayBuffer(SPEC, 10))
    source.scores["td_error"] = lambda b: (b.rew == 3).float()
    source.advance(0)
    assert (source.sample(300).rew == 3).float().mean() > 0.9


def test_a_row_without_priority_is_never_drawn():
    rows = Prioritised(offline(), (S,))
    weights = torch.zeros(S, len(rows.index)).double()
    weights[:, [2, 7]] = torch.tensor([1e-6, 1e3]).double()
    rows.set(weights)
    edge = torch.tensor([[0, np.nextafter(1, 0), 1e-12, 1 - 1e-12]] * S).double()
    assert set(search(rows.sums, edge).flatten().tolist()) <= {2, 7}
    assert torch.allclose(rows.weights, weights)


def test_priorities_are_renewed_once_in_so_many_epochs():
    asked = []
    source = aged(score=lambda b: asked.append(1) or torch.ones_like(b.rew), refresh=2)
    for steps in range(0, 60):
        source.advance(steps)
    assert len(asked) == 3  # epochs 1, 3 and 5
    again = aged(score=lambda b: asked.append(1) or torch.ones_like(b.rew), refresh=2)
    again.load_state_dict(source.state_dict())
    again.advance(59)  # a restart within an epoch
    assert len(asked) == 3


def test_drawing_reads_nothing_back_and_a_captured_draw_follows_later_priorities():
    source = aged(alpha=1.0, exponent=1.0)
    source.advance(0)
    with no_host_reads():
        source.sample(16)
    captured = make_fx(lambda: (source.sample(3000).rew,))()
    source.chosen.set((source.offline.index == 4).double().expand(S, -1))
    (rew,) = captured()
    assert set(rew[rew < 100].tolist()) == {4}


def test_density_ratio_prefers_rows_that_look_online():
    torch.manual_seed(0)
    spec, data, young = Spec(2, 1, (S,)), offline(600), ReplayBuffer(SPEC, 400)
    near = data.obs[data.obs[:, 0] > 0.5][:100]
    obs = near.repeat(4, 1)[:300].expand(S, -1, -1)
    zero = torch.zeros(S, 300)
    young.add(Batch(obs, zero.unsqueeze(-1), zero, obs, zero))
    source = Aged(AgedConfig(weigh="density_ratio", alpha=1.0, epoch=10), spec, data, young)
    source.advance(0)
    weights, like = source.chosen.weights, data.obs[data.index, 0] > 0.5
    assert (weights[:, like].mean(-1) > 3 * weights[:, ~like].mean(-1)).all()


def test_density_ratio_waits_for_online_rows():
    source = Aged(AgedConfig(weigh="density_ratio"), SPEC, offline(), online())
    source.advance(0)
    assert torch.allclose(source.chosen.weights, torch.ones(()).double())


@pytest.mark.parametrize("seeds", [(), (2,)])
def test_a_fit_draws_its_training_rows_by_the_same_priorities(seeds):
    torch.manual_seed(0)
    data = replace(offline(400), seeds=seeds)
    model = GaussianDynamics(Spec(2, 1, seeds), DynamicsConfig(members=2, elites=1, net=NET))
    rows = Prioritised(data, seeds)
    weight = (1.0 + torch.arange(len(data.index)) % 7).double().expand(*seeds, -1)
    rows.set(weight)
    split = _Split(model, [(rows, 1.0)], FitConfig(batch=20_000))
    _, y = split.draw(model)
    number = y[..., -1].long()  # (*S, M, B): a row's reward is its number
    by_number = dict(zip(data.index.tolist(), weight.reshape(-1, weight.shape[-1])[0].tolist(), strict=True))
    for mine in number.reshape(-1, number.shape[-1]):
        seen, counts = mine.unique(return_counts=True)
        expected = torch.tensor([by_number[int(i)] for i in seen]).double()
        assert chi_square(counts.numpy(), (expected / expected.sum() * len(mine)).numpy()) < 1.6
        assert chi_square(counts.numpy(), np.full(len(seen), len(mine) / len(seen))) > 5
    held = {int(i) for i in split._parts[0][2].held_out}
    assert not held & set(number.unique().tolist())


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: AgedConfig(weigh="td_eror"), "did you mean 'td_error'"),
        (lambda: AgedConfig(weigh="td_error", exponent=-1.0), r"recipe\.source\.exponent=-1\.0 must not"),
        (lambda: AgedConfig(weigh="td_error", refresh=0), r"recipe\.source\.refresh=0 must be at least 1"),
        (lambda: MOOReConfig(exponent=0.5), r"recipe\.exponent=0\.5 would only rename alpha"),
    ],
)
def test_what_makes_no_sense_is_refused(make, told):
    with pytest.raises(UserError, match=told):
        make()


# ---------------------------------------------------------------------- in recipes


def sac():
    return SACConfig(actor=NET, critic=NET)


def short():
    return FitConfig(min_updates=5, max_updates=10, epoch_updates=5)


def moore(**change):
    sizes = {"dynamics": DynamicsConfig(members=2, elites=2, net=NET), "fit": short(), "refit": short()}
    steps = {"offline_steps": 20, "rollouts": 10, "rollout_every": 10, "online_steps": 130, "epoch": 60}
    more = {"model_every": 60, "online_rollouts": 10, "utd": 1, "batch": 8}
    return MOOReConfig(**{"agent": sac()} | sizes | steps | more | change)


def config(recipe, data, directory):
    run = RunConfig(
        log_every=50, eval_every=1000, eval_episodes=1, checkpoint_every=1000, online_capacity=500
    )
    return Config(
        recipe=recipe,
        dataset=str(data),
        env="Pendulum-v1",
        seeds=2,
        dir=str(directory),
        run=run,
        report=False,
    )


@pytest.mark.parametrize("weigh", ["td_error", "model_error", "density_ratio"])
def test_moore_runs_with_each_weighing_and_logs_how_far_it_is_from_uniform(
    weigh, pendulum, tmp_path, monkeypatch
):
    monkeypatch.setattr("mbo2o.sources.aged.RATIO_BATCH", 32)
    monkeypatch.setattr("mbo2o.sources.aged.RATIO_STEPS", 3)
    train(config(moore(weigh=weigh, exponent=0.7), pendulum, tmp_path / "run"))
    found = read_run(tmp_path / "run").series("model", "effective_rows", "online").values
    assert found.shape == (2, 2)
    assert ((found > 0) & (found <= 1 + 1e-9)).all()
    assert (found[-1] < 1).all()


def test_moore_without_weighing_logs_nothing_of_it(pendulum, tmp_path):
    train(config(moore(), pendulum, tmp_path / "run"))
    assert not read_run(tmp_path / "run").has("model", "effective_rows")


def test_the_source_aged_weighs_by_td_error_where_agents_have_critics(pendulum, tmp_path):
    def finetune(weigh, **agents):
        source = AgedConfig(weigh=weigh, epoch=20)
        steps = {"offline_steps": 10, "online_steps": 60, "warmup": 20, "batch": 8}
        return FinetuneConfig(source=source, **agents, **steps)

    train(config(finetune("td_error", offline=sac()), pendulum, tmp_path / "run"))
    bc = finetune("td_error", offline=BCConfig(actor=NET))
    with pytest.raises(UserError, match="weigh=td_error needs critics, and BC has none"):
        train(config(bc, pendulum, tmp_path / "bc"))
    with pytest.raises(UserError, match="weigh=model_error needs a learned model"):
        train(config(finetune("model_error", offline=sac()), pendulum, tmp_path / "no-model"))
