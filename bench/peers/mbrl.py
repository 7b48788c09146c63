"""mbrl-lib's dynamics: learning steps of its GaussianMLP, and rollouts by its ModelEnv into its buffer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from mbrl.models import GaussianMLP, ModelEnv, ModelTrainer, OneDTransitionRewardModel
from mbrl.types import TransitionBatch
from mbrl.util.replay_buffer import BootstrapIterator, ReplayBuffer
from torch import Tensor, nn

from bench.peers.serve import ACT, BATCH, OBS, ROWS, data, one_thread, serve

MEMBERS, ELITES, LAYERS, HIDDEN = 7, 5, 4, 200
STARTS, HORIZON = 50_000, 2
PIECE = 2048 // MEMBERS


def made() -> tuple[Any, Any]:
    """A model like ours and its data."""
    rows = data()
    no = np.zeros(ROWS, bool)
    batch = TransitionBatch(rows["obs"], rows["act"], rows["next_obs"], rows["rew"], no, no)
    net = GaussianMLP(
        OBS + ACT,
        OBS + 1,
        "cpu",
        num_layers=LAYERS,
        ensemble_size=MEMBERS,
        hid_size=HIDDEN,
        propagation_method="random_model",
        learn_logvar_bounds=True,  # as ours
        activation_fn_cfg={"_target_": "torch.nn.SiLU"},
    )
    net.set_elite(list(range(ELITES)))
    model = OneDTransitionRewardModel(net, target_is_delta=True, normalize=True, learned_rewards=True)
    model.update_normalizer(batch)
    return model, batch


def learning(model: Any, batch: Any) -> Callable[[], object]:
    """A step of all members, each on rows of its own."""
    trainer = ModelTrainer(model, optim_lr=1e-3, weight_decay=5e-5)
    pieces = BootstrapIterator(batch, BATCH, MEMBERS, shuffle_each_epoch=True, rng=np.random.default_rng(0))

    def endless() -> Iterator[Any]:
        while True:
            yield from pieces

    stream = endless()
    return lambda: model.update(next(stream), trainer.optimizer)


def policy() -> Callable[[Tensor], Tensor]:
    """A tanh Gaussian of 2x256."""
    sizes = [nn.Linear(OBS, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 2 * ACT)]
    net = nn.Sequential(*sizes)

    def act(obs: Tensor) -> Tensor:
        mean, log_std = net(obs).chunk(2, -1)
        return torch.tanh(mean + log_std.clamp(-5, 2).exp() * torch.randn_like(mean))

    return act


def rolling(model: Any, starts: Any, step: Callable[[Any, Any, Tensor, Tensor], Any]) -> Callable[[], object]:
    """A rollout from drawn states by `step`, each transition of which goes into a buffer."""
    no_spaces = SimpleNamespace(observation_space=None, action_space=None)
    env = ModelEnv(no_spaces, model, lambda act, obs: torch.zeros(len(obs), 1, dtype=torch.bool))
    buffer = ReplayBuffer(STARTS * HORIZON, (OBS,), (ACT,))
    act, rng = policy(), np.random.default_rng(0)

    @torch.no_grad()
    def rollout() -> None:
        obs = starts[rng.integers(len(starts), size=STARTS)]
        state = env.reset(obs, return_as_np=True)
        for _ in range(HORIZON):
            actions = act(torch.from_numpy(obs))
            next_obs, rew, done, state = step(env, state, torch.from_numpy(obs), actions)
            flags = done[:, 0], np.zeros(STARTS, bool)
            buffer.add_batch(obs, actions.numpy(), next_obs, rew[:, 0], *flags)
            obs = next_obs

    return rollout


def one_member(env: Any, state: Any, obs: Tensor, act: Tensor) -> Any:
    """A step through one random elite per state, as the library does it."""
    return env.step(act.numpy(), state, sample=True)


def all_members(env: Any, state: Any, obs: Tensor, act: Tensor) -> Any:
    """A step that evaluates all members for the penalty, the largest ‖σ‖, in pieces that fit a cache.

    The library has no penalty; this is what its user would write with its networks.
    """
    model = env.dynamics_model
    parts = []
    for piece in model._get_model_input(obs, act).split(PIECE):
        mean, log_var = model.model.forward(piece, use_propagation=False)
        std = (0.5 * log_var).exp()
        place = torch.randint(len(mean), (1, len(piece), 1)).expand(1, len(piece), mean.shape[-1])
        drawn = (mean.gather(0, place) + std.gather(0, place) * torch.randn(place.shape))[0]
        parts.append((drawn, std.norm(dim=-1).amax(0)))
    drawn, penalty = (torch.cat(x) for x in zip(*parts, strict=True))
    next_obs = obs + drawn[:, :-1]
    rew = drawn[:, -1:] - penalty[:, None]
    return next_obs.numpy(), rew.numpy(), np.zeros((len(obs), 1), bool), state


def main(work: str) -> None:
    """Serve a work."""
    one_thread()
    model, batch = made()
    if work == "dynamics":
        serve(learning(model, batch))
        return
    step = {"rollout-one": one_member, "rollout-all": all_members}[work]
    serve(rolling(model, batch.obs, step), STARTS * HORIZON, warm=1)


if __name__ == "__main__":
    main(sys.argv[1])
