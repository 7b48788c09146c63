"""Models to and from mbrl-lib 0.2.0's `OneDTransitionRewardModel` of a `GaussianMLP`, without pickle.

mbrl keeps the weights in a state dict, the statistics of its inputs in a pickle, and elites in attributes.
Here all of them are taken from and given to the objects themselves. This file does not import mbrl.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mbo2o.dynamics.model import DynamicsConfig, GaussianDynamics
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.model.about import About
from mbo2o.model.dynamics import Dynamics
from mbo2o.types import Spec, UserError

State = dict[str, Tensor]


def mlp_arguments(dynamics: Dynamics) -> dict[str, Any]:
    """The arguments of `mbrl.models.GaussianMLP` for a network that takes this model's weights.

    Raises:
        UserError: mbrl has no such network: its hidden layers are equally wide, without LayerNorm or dropout.
    """
    net, cfg = dynamics.net, dynamics.net.cfg.net
    if len(set(cfg.hidden)) != 1 or cfg.layer_norm or cfg.dropout or cfg.activation not in _MODULES:
        known = f"hidden layers of one width, {' or '.join(_MODULES)}, without LayerNorm and dropout"
        raise UserError(f"mbrl's GaussianMLP has {known}; this model is {cfg}")
    return {
        "in_size": dynamics.obs_dim + dynamics.act_dim,
        "out_size": dynamics.obs_dim + 1,
        "device": net.spec.device,
        "num_layers": len(cfg.hidden),
        "ensemble_size": net.cfg.members,
        "hid_size": cfg.hidden[0],
        "activation_fn_cfg": {"_target_": _MODULES[cfg.activation]},
    }


def to_mbrl(dynamics: Dynamics, wrapper: Any) -> None:
    """Put a model into `wrapper`, a `OneDTransitionRewardModel` of a network with `mlp_arguments`.

    Its actions are then in [-1, 1], as inside the model, and its rewards are those that the network was
    fitted to. The wrapper has to normalise its inputs (`normalize=True`).

    Raises:
        UserError: The wrapper is another network, or normalises nothing.
    """
    mlp_arguments(dynamics)
    _check(wrapper)
    if wrapper.input_normalizer is None:
        raise UserError("the OneDTransitionRewardModel has to be made with normalize=True")
    state = _state(dynamics.net)
    theirs = {name: tuple(x.shape) for name, x in wrapper.model.state_dict().items()}
    if theirs != {name: tuple(x.shape) for name, x in state.items()}:
        raise UserError("the GaussianMLP is another network; make it with mlp_arguments(dynamics)")
    wrapper.model.load_state_dict(state)
    stats = wrapper.input_normalizer
    stats.mean, stats.std = (
        x.detach().clone().to(stats.mean.dtype) for x in (dynamics.net.inputs.mean, dynamics.net.inputs.std)
    )
    wrapper.set_elite(dynamics.net.elites.tolist())


def from_mbrl(wrapper: Any, about: About, activation: str = "silu") -> Dynamics:
    """The model in `wrapper`, a `OneDTransitionRewardModel` of a `GaussianMLP` with learned rewards.

    Args:
        wrapper: It has to be trained on actions in [-1, 1] and on differences of observations.
        about: The task; see `mbo2o.model.fitting.about_of`.
        activation: mbrl's configs use silu, its class relu; a state dict does not say which.

    Raises:
        UserError: It is of a kind that this package has no counterpart for.
    """
    _check(wrapper)
    state = {name: x.detach() for name, x in wrapper.model.state_dict().items()}
    layers = [name for name in state if name.endswith(".0.weight")]
    members, n_in, width = state[layers[0]].shape
    n_out = state["max_logvar"].shape[-1]
    spec = Spec(n_out - 1, n_in - (n_out - 1), (), str(wrapper.device))
    elites = list(wrapper.model.elite_models or range(members))
    cfg = DynamicsConfig(members, len(elites), MLPConfig([width] * len(layers), activation), False)
    with torch.random.fork_rng(devices=[]):  # initial weights are overwritten
        net = GaussianDynamics(spec, cfg)
    own = net.state_dict()
    for i in range(len(layers)):
        for part in ("weight", "bias"):
            own[f"net.net.layers.{i}.{part}"] = state[f"hidden_layers.{i}.0.{part}"]
    for part in ("weight", "bias"):
        own[f"net.net.layers.{len(layers)}.{part}"] = state[f"mean_and_logvar.{part}"]
    own["net.max_log_var"], own["net.min_log_var"] = (
        state[name].unsqueeze(0) for name in ("max_logvar", "min_logvar")
    )
    if wrapper.input_normalizer is not None:
        own["inputs.mean"] = wrapper.input_normalizer.mean.float()
        own["inputs.std"] = wrapper.input_normalizer.std.float()
    own["elites"] = torch.tensor(elites, device=net.elites.device)
    own["fitted"] = torch.ones_like(net.fitted)
    net.load_state_dict(own)
    net.info = {"env_id": about.env_id, "dataset": "from mbrl"}
    return Dynamics(net.eval().requires_grad_(False), about)


_MODULES = {"silu": "torch.nn.SiLU", "relu": "torch.nn.ReLU", "tanh": "torch.nn.Tanh", "elu": "torch.nn.ELU"}
"""Activations of this package as mbrl's configs name them."""


def _state(net: GaussianDynamics) -> State:
    """The state dict of a `GaussianMLP` that predicts what `net` does, in raw units.

    The units of the targets are folded into the last layer: a mean is multiplied by the unit and shifted; a
    log-variance is shifted, and so are its bounds, since the soft clamp moves with them.
    """
    own = {name: x.detach() for name, x in net.state_dict().items()}
    last = len(net.cfg.net.hidden)
    out: State = {}
    for i in range(last):
        for part in ("weight", "bias"):
            out[f"hidden_layers.{i}.0.{part}"] = own[f"net.net.layers.{i}.{part}"].clone()
    std, mean = own["targets.std"], own["targets.mean"]
    scale = torch.cat([std, torch.ones_like(std)], -1)
    shift = torch.cat([mean, 2 * std.log()], -1)
    out["mean_and_logvar.weight"] = own[f"net.net.layers.{last}.weight"] * scale
    out["mean_and_logvar.bias"] = own[f"net.net.layers.{last}.bias"] * scale + shift
    for theirs, ours in (("min_logvar", "net.min_log_var"), ("max_logvar", "net.max_log_var")):
        out[theirs] = own[ours].squeeze(0) + 2 * std.log()
    return out


def _check(wrapper: Any) -> None:
    """UserError for a wrapper that predicts something else than differences and rewards, with variances."""
    odd = {
        "learned_rewards=False": not wrapper.learned_rewards,
        "target_is_delta=False": not wrapper.target_is_delta,
        "no_delta_list": bool(wrapper.no_delta_list),
        "obs_process_fn": wrapper.obs_process_fn is not None,
        "deterministic=True": bool(wrapper.model.deterministic),
    }
    if found := [name for name, is_so in odd.items() if is_so]:
        raise UserError(f"a OneDTransitionRewardModel with {', '.join(found)} has no counterpart here")
