"""Our dynamics ensemble against mbrl 0.2.0's GaussianMLP and ModelEnv, on the same work, as ratios.

Each has a process of its own, which is kept warm, and they take turns: one thread, plain float32, CPU time.
On a machine that others use, only ratios of neighbouring turns mean something. A third process computes the
matrix products of the same work and nothing else: about what any float32 implementation on torch's products
could reach.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import time
import traceback
from collections.abc import Callable
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbo2o.data.dataset import TransitionDataset
from mbo2o.dynamics import termination
from mbo2o.dynamics.fit import FitConfig, fit
from mbo2o.dynamics.model import DynamicsConfig, GaussianDynamics
from mbo2o.types import Batch, Spec, UserError, uniform_actions

OBS, ACT, MEMBERS, ELITES, HIDDEN, BATCH = 17, 6, 7, 5, [200] * 4, 256  # HalfCheetah, and MOPO's network
ROWS, STARTS, HORIZON = 100_000, 10_000, 5  # mbrl wants STARTS to be a multiple of ELITES
PIECE = 400  # rows of an elite that are multiplied at a time where products stand alone

UNITS = {"train": "updates", "rollout": "transitions"}
GOALS = {"train": 1.2, "rollout": 2.0}

PEERS = ("mbo2o", "mbrl", "products")

Work = Callable[[float], tuple[int, float]]
"""Work for about so many CPU seconds → units done, CPU seconds taken."""
Shapes = dict[str, list[int] | list[list[int]]]


def bench_dynamics(rounds: int = 5, seconds: float = 1.0) -> list[dict[str, Any]]:
    """Two results, `train` and `rollout`, with rates and ratios.

    A result has the median rates for each CPU second, and the median, least and largest ratio of a round.
    train: updates of all members, from the draw of the batch out of the peer's own buffer to the optimiser's
    step.
    rollout: HORIZON steps from STARTS states with given actions, each row through one random elite. `most` is
    the ratio that the matrix products alone would reach. Each peer works `seconds` per round and result.
    Raises `UserError` where mbrl is not installed.
    """
    peers = {name: _Peer(name) for name in PEERS}
    try:
        shapes = {name: peer.receive() for name, peer in peers.items()}
        return [_compare(work, peers, shapes, rounds, seconds) for work in UNITS]
    finally:
        for peer in peers.values():
            peer.close()


def print_dynamics(rounds: int = 5, seconds: float = 1.0, out: Path | None = None) -> None:
    """Print what `bench_dynamics` finds as a table; `out` gets one line of JSON for each result."""
    results = bench_dynamics(rounds, seconds)
    print(
        f"{'dynamics, 1 thread':24}"
        + "".join(f"{name:>12}" for name in PEERS)
        + "  ratio (range)          goal  products' ratio"
    )
    for r in results:
        ratio = f"{r['ratio']:.2f} ({r['ratio_min']:.2f} to {r['ratio_max']:.2f})"
        rates = "".join(f"{r[name]:12,.1f}" for name in PEERS)
        print(f"{r['work'] + ', ' + r['unit']:24}{rates}  {ratio:22} {r['goal']:.1f}   {r['most']:.2f}")
    if out is not None:
        out.write_text("".join(json.dumps(r) + "\n" for r in results))


def _compare(
    work: str, peers: dict[str, _Peer], shapes: dict[str, Shapes], rounds: int, seconds: float
) -> dict[str, Any]:
    rates: dict[str, list[float]] = {name: [] for name in peers}
    for i in range(rounds):
        for name in sorted(peers, reverse=bool(i % 2)):  # no peer always follows the same one
            rates[name].append(peers[name].rate(work, seconds))
    ratios, most = (
        [x / y for x, y in zip(rates[name], rates["mbrl"], strict=True)] for name in ("mbo2o", "products")
    )
    return {
        "work": work,
        "unit": f"{UNITS[work]}/s",
        **{name: statistics.median(r) for name, r in rates.items()},
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "most": statistics.median(most),
        "goal": GOALS[work],
        "rounds": rounds,
        "shapes": shapes,
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
    }


class _Peer:
    """A process that works when told to."""

    def __init__(self, name: str):
        context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name), daemon=True)
        self._process.start()
        theirs.close()

    def rate(self, work: str, seconds: float) -> float:
        """Units per CPU second."""
        self._pipe.send((work, seconds))
        done, took = self.receive()
        return done / took

    def receive(self) -> Any:
        """The next message; an exception in the process is raised here."""
        try:
            kind, value = self._pipe.recv()
        except EOFError:
            raise RuntimeError("a benchmark process died without a word") from None
        if kind != "ok":
            raise UserError(value) if kind == "user" else RuntimeError(value)
        return value

    def close(self) -> None:
        """Let it end."""
        self._pipe.close()
        self._process.join(10)
        self._process.terminate()


def _serve(pipe: Connection, name: str) -> None:
    torch.set_num_threads(1)
    try:
        shapes, works = {"mbo2o": _mbo2o, "mbrl": _mbrl, "products": _products}[name]()
        for work in works.values():
            work(0.05)  # first calls allocate
        pipe.send(("ok", shapes))
        while True:
            work, seconds = pipe.recv()
            pipe.send(("ok", works[work](seconds)))
    except EOFError:
        pass  # closed: we are done
    except UserError as e:
        pipe.send(("user", str(e)))
    except Exception:
        pipe.send(("bug", traceback.format_exc()))


def _repeat(step: Callable[[], object], units: int) -> Work:
    def work(seconds: float) -> tuple[int, float]:
        done, start = 0, time.process_time()
        while (took := time.process_time() - start) < seconds or not done:
            step()
            done += units
        return done, took

    return work


def _data() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((ROWS, OBS), dtype=np.float32)
    act = rng.uniform(-1, 1, (ROWS, ACT)).astype(np.float32)
    next_obs = obs + 0.1 * np.tanh(np.roll(obs, 1, axis=1) + act.mean(1, keepdims=True))
    no = np.zeros(ROWS, dtype=bool)
    return {
        "observations": obs,
        "actions": act,
        "rewards": next_obs[:, 0],
        "terminals": no,
        "timeouts": ~no,  # no row follows another
        "next_observations": next_obs,
    }


def _actions() -> Tensor:
    return uniform_actions(HORIZON, STARTS, ACT, generator=torch.Generator().manual_seed(0))


# ---- mbo2o


class _Enough(Exception):
    """The time is up."""


class _Timed:
    """A dataset that times the fit which draws from it: a call of `rows` with a full batch is one update."""

    def __init__(self, dataset: TransitionDataset, seconds: float):
        self.index, self._dataset, self._seconds = dataset.index, dataset, seconds
        self.updates, self.took, self._start = -1, 0.0, 0.0

    def rows(self, index: Tensor) -> Batch:
        """The dataset's, until the time is up."""
        if index.shape[-1] == MEMBERS * BATCH:  # not the holdout, nor the rows for statistics
            self.updates += 1
            self._start = self._start or time.process_time()
            self.took = time.process_time() - self._start
            if self.updates and self.took >= self._seconds:
                raise _Enough
        return self._dataset.rows(index)


def _mbo2o() -> tuple[Shapes, dict[str, Work]]:
    data = _data()
    dataset, model = TransitionDataset.from_arrays(**data), GaussianDynamics(Spec(OBS, ACT), DynamicsConfig())
    starts, actions = torch.from_numpy(data["observations"][:STARTS]), _actions()

    def train(seconds: float) -> tuple[int, float]:
        timed = _Timed(dataset, seconds)
        try:
            fit(model, [(timed, 1.0)], FitConfig(batch=BATCH, min_updates=100_000, max_updates=100_000))
        except _Enough:
            return timed.updates, timed.took
        raise RuntimeError("the fit ended before its time")

    @torch.no_grad()
    def rollout() -> Tensor:
        obs = starts
        for act in actions:
            next_obs, _ = model.step(obs, act)
            termination.none(obs, act, next_obs)
            obs = next_obs
        return obs

    shapes: Shapes = {
        "weights": [list(p.shape) for name, p in model.net.named_parameters() if name.endswith("weight")],
        "batch": [MEMBERS, BATCH, OBS],  # what `_Timed` counts
        "elites": list(model.elites.shape),
        "rollout": [HORIZON, *rollout().shape],
    }
    return shapes, {"train": train, "rollout": _repeat(rollout, HORIZON * STARTS)}


# ---- mbrl


def _mbrl() -> tuple[Shapes, dict[str, Work]]:
    try:
        from mbrl.models import GaussianMLP, ModelEnv, ModelTrainer, OneDTransitionRewardModel
        from mbrl.types import TransitionBatch
        from mbrl.util.replay_buffer import BootstrapIterator
    except ImportError as e:
        raise UserError(f"mbrl is not installed ({e}): pip install --no-deps mbrl==0.2.0") from e
    fields = _data()
    obs, next_obs, no = fields["observations"], fields["next_observations"], fields["terminals"]
    data = TransitionBatch(obs, fields["actions"], next_obs, fields["rewards"], no, no)
    net = GaussianMLP(
        OBS + ACT,
        OBS + 1,
        "cpu",
        num_layers=len(HIDDEN),
        ensemble_size=MEMBERS,
        hid_size=HIDDEN[0],
        propagation_method="random_model",
        learn_logvar_bounds=True,  # as ours
        activation_fn_cfg={"_target_": "torch.nn.SiLU"},
    )
    net.set_elite(list(range(ELITES)))
    model = OneDTransitionRewardModel(net, target_is_delta=True, normalize=True, learned_rewards=True)
    model.update_normalizer(data)
    trainer = ModelTrainer(model, optim_lr=1e-3, weight_decay=5e-5)
    batches = BootstrapIterator(data, BATCH, MEMBERS, shuffle_each_epoch=True, rng=np.random.default_rng(0))

    def endless() -> Any:
        while True:
            yield from batches

    stream = endless()
    env = ModelEnv(
        SimpleNamespace(observation_space=None, action_space=None),
        model,
        lambda act, next_obs: torch.zeros(len(next_obs), 1, dtype=torch.bool),
    )
    actions = _actions()

    def rollout() -> Tensor:
        state = env.reset(obs[:STARTS], return_as_np=False)
        for act in actions:
            last, _, _, state = env.step(act, state, sample=True)
        return last

    layers = [layer[0] for layer in net.hidden_layers] + [net.mean_and_logvar]
    shapes: Shapes = {
        "weights": [list(layer.weight.shape) for layer in layers],
        "batch": list(next(stream).obs.shape),
        "elites": [len(net.elite_models)],
        "rollout": [HORIZON, *rollout().shape],
    }
    train = _repeat(lambda: model.update(next(stream), trainer.optimizer), 1)
    return shapes, {"train": train, "rollout": _repeat(rollout, HORIZON * STARTS)}


# ---- the matrix products alone


def _products() -> tuple[Shapes, dict[str, Work]]:
    """The matrix products of both kinds of work; rollouts multiply in pieces that fit a cache.

    Training has those of the forward pass, and of the gradients of weights and hidden activations.
    """
    sizes = [OBS + ACT, *HIDDEN, 2 * (OBS + 1)]

    def layers(members: int, rows: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Input, weights and gradient of the output of each layer."""
        return [
            (torch.randn(members, rows, i), torch.randn(members, i, o), torch.randn(members, rows, o))
            for i, o in pairwise(sizes)
        ]

    batch, piece = layers(MEMBERS, BATCH), layers(ELITES, PIECE)

    def update() -> None:
        for k, (x, w, g) in enumerate(batch):
            torch.bmm(x, w)
            torch.bmm(x.mT, g)
            if k:  # the gradient of the inputs is not needed
                torch.bmm(g, w.mT)

    def forward() -> None:
        for x, w, _ in piece:
            torch.bmm(x, w)

    shapes: Shapes = {
        "weights": [list(w.shape) for _, w, _ in batch],
        "batch": list(batch[0][0].shape),
        "elites": [ELITES],
        "rollout": [PIECE * ELITES, sizes[0]],
    }
    return shapes, {"train": _repeat(update, 1), "rollout": _repeat(forward, PIECE * ELITES)}
