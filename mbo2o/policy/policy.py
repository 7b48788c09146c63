"""A policy that can be called: `action, state = policy.predict(obs)`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from mbo2o.agents import Agent
from mbo2o.policy.facts import FILE, Facts, box_of, make_with, rule_of
from mbo2o.store.whole import whole_file, write_whole, writing
from mbo2o.types import UserError

WEIGHTS = "policy.safetensors"


class Policy:
    """The acting rule of a trained agent. `mbo2o.load` makes one.

    Observations and actions are in the environment's own units. What scales them is inside. `facts` is the
    content of io.json: names, units and bounds.
    """

    def __init__(self, agent: Agent, facts: Facts):
        """agent: one of one seed, in evaluation mode. It is kept without what acting does not read."""
        self.agent, self.box = agent, box_of(facts)
        self.kept = _strip(agent, explore=True)
        """Names of the tensors that acting reads."""
        self.facts = facts | {"deterministic": rule_of(agent), "normaliser": _normaliser(agent)}

    @property
    def obs_dim(self) -> int:
        """How many numbers an observation has."""
        return int(self.facts["observation"]["size"])

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Any, Any]:
        """The actions for observations, and `state` as it came: the policy has no memory.

        Args:
            observation: `(D,)`, or `(n, D)` for n of them, in the environment's units; an array, a list or a
                tensor.
            state: It is there because Stable-Baselines3 passes it.
            episode_start: See `state`.
            deterministic: Whether to take the policy's best action (`facts["deterministic"]` says which that
                is); otherwise it explores as in training, and draws from torch's random stream.

        Returns:
            Actions in the environment's units and inside its bounds: of the action's shape for one
            observation, with n in front for n of them. An array; for a tensor a tensor on the same device.

        Raises:
            UserError: The observation has another size, or holds numbers that are not finite.
        """
        given = observation if isinstance(observation, Tensor) else None
        try:
            obs = np.asarray(observation.detach().cpu() if given is not None else observation, np.float32)
        except (TypeError, ValueError) as error:
            raise UserError(f"observation: not an array of numbers ({error})") from error
        if obs.ndim not in (1, 2) or obs.shape[-1] != self.obs_dim:
            d = self.obs_dim
            raise UserError(f"observation of shape {obs.shape}: the policy takes ({d},), or (n, {d})")
        if not np.isfinite(obs).all():
            raise UserError("observation: it holds a number that is not finite (NaN or infinite)")
        with torch.no_grad():
            unit = self.agent.act(
                torch.from_numpy(np.atleast_2d(obs)).unsqueeze(0), explore=not deterministic
            )
        act = self.box(unit[0].numpy())
        act = act if obs.ndim == 2 else act[0]
        return (act if given is None else torch.from_numpy(act).to(given.device)), state

    def save(self, folder: str | Path) -> Path:
        """Write `policy.safetensors` and `io.json` into `folder`, which `mbo2o.load` reads; returns it."""
        folder = Path(folder)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            state = self.agent.state_dict()
            # the weights' file holds all that loading needs: io.json is for others, and exports write it
            about = json.dumps(self.facts | {"agent": self.agent.described()}, default=str)
            with whole_file(folder / WEIGHTS) as temporary:
                save_file(
                    {key: state[key].contiguous().clone() for key in self.kept}, temporary, {"io": about}
                )
            write_whole(folder / FILE, json.dumps(self.facts, indent=1))
        return folder

    def export(self, path: str | Path) -> Path:
        """Write the deterministic policy as `.onnx`, `.pt2` or `.npz`, and io.json beside it; returns `path`.

        Its one input `obs` is `(n, D)` and its one output `action` is `(n, *shape)`, for any n, both in the
        environment's units. `.npz` comes with a script of the same name, which needs NumPy alone.

        Raises:
            UserError: Another ending, a package is missing, or the acting rule cannot be written like that.
        """
        from mbo2o.policy.export import export  # takes torch's exporter, which calls need not wait for

        return export(self, Path(path))

    @torch.no_grad()
    def trimmed(self) -> Agent:
        """An equal agent without a seed axis, and only with what the deterministic action comes from."""
        agent, mine = make_with(self.agent.cfg, self.facts, seeds=()), self.agent.state_dict()
        for name, x in agent.state_dict().items():
            if name in self.kept:
                x.copy_(mine[name].reshape(x.shape))
        _strip(agent, explore=False)
        return agent


class _Reads(TorchFunctionMode):
    """Notes which tensors are read inside."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= {id(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        return func(*args, **(kwargs or {}))


def _strip(agent: Agent, explore: bool) -> list[str]:
    """Delete the parts of `agent` that acting, or also exploring, never reads; the names of what it reads."""
    reads = _Reads()
    with torch.random.fork_rng(devices=[]), reads:
        for how in (False, True) if explore else (False,):
            agent.act(torch.zeros(*agent.spec.seeds, 1, agent.spec.obs_dim), explore=how)
    kept = [key for key, x in agent.state_dict(keep_vars=True).items() if id(x) in reads.seen]
    parts = {key.split(".")[0] for key in kept}
    for name in [name for name, _ in agent.named_children() if name not in parts]:
        delattr(agent, name)
    return kept


def _normaliser(agent: Agent) -> dict[str, list[float]] | None:
    """The mean and the deviation by which observations are scaled; None if they are taken as they are."""
    mean, std = (x.detach().flatten().tolist() for x in (agent.observe.mean, agent.observe.std))
    usual = mean == [0.0] * len(mean) and std == [1.0] * len(std)
    return None if usual else {"mean": mean, "std": std}
