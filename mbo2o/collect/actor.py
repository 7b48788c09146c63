"""A trained policy in a file of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.nn.policy import TanhGaussian
from mbo2o.types import UserError

REQUIRED = {"env_id", "obs_dim", "act_dim", "hidden"}
"""The metadata that `Actor.load` needs to rebuild the network."""


@dataclass
class Actor:
    """A policy without a seed axis, and where it comes from."""

    policy: TanhGaussian
    info: dict[str, str]
    """REQUIRED, and what else is known: the training step, the seed, the return, the tier."""

    def save(self, path: Path) -> None:
        """Write a safetensors file; its metadata is `info`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        # SAC trains with one seed, (1, in, out); the file holds that seed alone, (in, out)
        tensors = {k: v.detach().reshape(v.shape[-2:]).clone() for k, v in self.policy.state_dict().items()}
        save_file(tensors, path, self.info)

    @classmethod
    def load(cls, path: Path) -> Actor:
        """Read a file that `save` wrote. Raises `UserError` if it is missing or is another kind of file."""
        try:
            with safe_open(path, "pt") as f:
                info = f.metadata() or {}
                tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as e:
            raise UserError(
                f"{path}: no actor can be read from it ({e}); expected a safetensors file of `data collect`"
            ) from e
        if missing := REQUIRED - set(info):
            raise UserError(
                f"{path}: not an actor of `data collect`; its metadata lacks {', '.join(sorted(missing))}"
            )
        net = MLPConfig(hidden=json.loads(info["hidden"]))
        policy = TanhGaussian((), int(info["obs_dim"]), int(info["act_dim"]), net)
        policy.load_state_dict(tensors)
        return cls(policy, info)
