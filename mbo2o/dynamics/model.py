"""The probabilistic dynamics ensemble: what happens next, and how certain members are (PETS, MBPO, MOPO)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

from mbo2o.ensemble.gaussian import GaussianEnsemble
from mbo2o.ensemble.mlp import MLPConfig, members
from mbo2o.nn.normalizer import Normalizer
from mbo2o.types import Spec, UserError

Weights = dict[str, Tensor]
FORMAT = "mbo2o-dynamics-1"
CHUNK = 2048
"""Rows, over all members and seeds, that go through the networks at a time on a CPU."""


@dataclass
class DynamicsConfig:
    """Defaults: MOPO's network (mopo/models/constructor.py) unless said.

    NEUBAY (configs/d4rl_loco/base_markov.yaml) has 128 members, 100 elites and `net.layer_norm=true`. With a
    penalty or a limit of uncertainty, a rollout's time grows with the members. A fit needs the weights four
    times, and to know which rows each member sees some 25 bytes per member and row: 1.3 GB for 128 members
    and 400,000 rows, and seed.
    """

    members: int = 7
    elites: int = 5  # members with the smallest holdout error, from which rollouts draw
    net: MLPConfig = field(default_factory=lambda: MLPConfig(hidden=[200, 200, 200, 200], activation="silu"))
    # Regress (Δobs, reward) in units of their standard deviations; MOPO does not. Then a dimension of large
    # scale does not dominate the fit or reach the variance's cap, and holdout errors of tasks compare.
    # Predictions are in raw units.
    normalize_targets: bool = True


class GaussianDynamics(nn.Module):
    """M Gaussian networks over (Δobs, reward) given (obs, act).

    obs `(*S, B, D)` and act `(*S, B, A)` are raw; the model holds the statistics of its inputs and targets.
    With `seeds=()` there is no seed axis: one model, `(B, D)` in and `(B, D)` out, as planning uses it.
    """

    inputs: Normalizer
    targets: Normalizer
    net: GaussianEnsemble
    elites: Tensor
    bootstrap: Tensor
    fitted: Tensor

    def __init__(self, spec: Spec, cfg: DynamicsConfig):
        super().__init__()
        if not 1 <= cfg.elites <= cfg.members:
            largest = f"recipe.dynamics.members={cfg.members}"
            raise UserError(f"recipe.dynamics.elites={cfg.elites} must lie between 1 and {largest}")
        self.spec, self.cfg = spec, cfg
        self.info: dict[str, Any] = {}  # as `save` was given it
        n_in, n_out = spec.obs_dim + spec.act_dim, spec.obs_dim + 1
        with torch.device(spec.device):
            self.inputs = Normalizer(spec.seeds, n_in)
            self.targets = Normalizer(spec.seeds, n_out)
            self.net = GaussianEnsemble((*spec.seeds, cfg.members), n_in, n_out, cfg.net)
            # on a device without memory (see `load`), arange and randint would import sympy for half a second
            elites = torch.tensor(range(cfg.elites), dtype=torch.int64)
            self.register_buffer("elites", elites.expand(*spec.seeds, -1).clone())
            # decides which rows each member never trains on, as long as the model lives (see `fit`)
            sizes = (*spec.seeds, cfg.members)
            drawn = (
                torch.zeros(sizes, dtype=torch.int64)
                if spec.device == "meta"
                else torch.randint(1 << 31, sizes)
            )
            self.register_buffer("bootstrap", drawn)
            self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def predict(self, obs: Tensor, act: Tensor) -> tuple[Tensor, Tensor]:
        """Every member's mean and standard deviation of (Δobs, reward), raw units, each `(*S, M, B, D+1)`."""
        mean, log_var = _in_chunks(self.net, self.inputs(torch.cat([obs, act], -1)), self.bootstrap.numel())
        return self.targets.inverse(mean), torch.exp(0.5 * log_var) * self.targets.std.unsqueeze(-3)

    def elite_weights(self) -> Weights:
        """The elites' own parameters, which are a copy: `step` takes them for many calls."""
        # the log-variance's bounds are shared by the members
        return {f"net.{name}": p for name, p in members(self.net.net, self.elites).items()}

    def step(
        self,
        obs: Tensor,
        act: Tensor,
        generator: torch.Generator | None = None,
        weights: Weights | None = None,
    ) -> tuple[Tensor, Tensor]:
        """A draw of next observation `(*S, B, D)` and reward `(*S, B)`, each row from one random elite (TS1).

        Rows are dealt to the elites in equal shares at random, and each elite computes its own share only.
        Randomness comes from `generator`, or from torch's own if there is none. weights: `elite_weights`,
        if they are known already.
        """
        x = self.inputs(torch.cat([obs, act], -1))
        b, k = x.shape[-2], self.elites.shape[-1]
        share = -(-b // k)
        # places from b on only fill up the shares
        order = torch.rand(*x.shape[:-2], share * k, generator=generator, device=x.device).argsort(-1)
        dealt = _take_rows(x, order.clamp(max=b - 1)).unflatten(-2, (k, share))
        parameters = weights or self.elite_weights()
        mean, log_var = _in_chunks(
            lambda x: functional_call(self.net, parameters, (x,)), dealt, self.elites.numel()
        )
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        draw = self.targets.inverse(mean + torch.exp(0.5 * log_var) * noise).flatten(-3, -2)
        draw = torch.empty_like(draw).scatter(-2, order.unsqueeze(-1).expand_as(draw), draw)[..., :b, :]
        return obs + draw[..., :-1], draw[..., -1]

    def draw(self, obs: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """As `step`, out of a prediction `(*S, M, B, D+1)` that is known already.

        Here each row draws its elite independently, not in equal shares: the two give different numbers.
        """
        place = torch.randint(self.elites.shape[-1], mean.shape[:-3] + mean.shape[-2:-1], device=mean.device)
        chosen = self.elites.gather(-1, place)[..., None, :, None]
        member = chosen.expand(*mean.shape[:-3], 1, *mean.shape[-2:])
        mean = mean.gather(-3, member).squeeze(-3)
        std = std.gather(-3, member).squeeze(-3)
        y = mean + std * torch.randn_like(mean)
        return obs + y[..., :-1], y[..., -1]

    def elite_mean(self, mean: Tensor) -> Tensor:
        """The elites' average of a prediction `(*S, M, B, D+1)` → `(*S, B, D+1)`."""
        return self.of_elites(mean).mean(-3)

    def of_elites(self, x: Tensor) -> Tensor:
        """The elites' part of a prediction: `(*S, M, B, D+1)` → `(*S, K, B, D+1)`."""
        return x.gather(-3, self.elites[..., None, None].expand(*self.elites.shape, *x.shape[-2:]))

    def seed(self, k: int) -> GaussianDynamics:
        """Seed k's model on its own, without the seed axis."""
        spec = Spec(self.spec.obs_dim, self.spec.act_dim, (), self.spec.device)
        # the initial weights are overwritten: their draws must not move torch's stream
        with torch.random.fork_rng(devices=[]):
            alone = GaussianDynamics(spec, self.cfg)
        # seeds are the first axis of everything but the scalar flag `fitted`
        alone.load_state_dict({n: x[k] if x.dim() else x for n, x in self.state_dict().items()})
        return alone

    def save(self, path: str | Path, info: dict[str, Any] | None = None) -> None:
        """Write `model.safetensors` and `model.json`, which holds `info`, into the folder `path`."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        spec = {"obs_dim": self.spec.obs_dim, "act_dim": self.spec.act_dim, "seeds": list(self.spec.seeds)}
        about = {"format": FORMAT, **spec, "config": asdict(self.cfg), "info": info or {}}
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, path / "model.safetensors")
        (path / "model.json").write_text(json.dumps(about, indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> GaussianDynamics:
        """Read what `save` wrote, without a run or a config. UserError if it is missing or something else."""
        path = Path(path)
        try:
            about = json.loads((path / "model.json").read_text())
            if about.get("format") != FORMAT:
                raise UserError(f"{path}: holds format {about.get('format')!r}, expected {FORMAT!r}")
            cfg = dict(about["config"])
            cfg["net"] = MLPConfig(**cfg["net"])
            spec = Spec(about["obs_dim"], about["act_dim"], tuple(about["seeds"]), device)
            # on a device without memory: sizes that a file claims are checked before anything is allocated
            model = cls(replace(spec, device="meta"), DynamicsConfig(**cfg))
            model.load_state_dict(load_file(path / "model.safetensors", device=device), assign=True)
            model.spec = spec
            model.info = dict(about["info"])
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RuntimeError,
            SafetensorError,
        ) as e:
            reason = " ".join(str(e).split())
            text = f"{path}: no dynamics model can be read from it ({reason})"
            raise UserError(f"{text}; expected a folder of `save`") from e
        return model


def _take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows `(*S, B', F)` of `(*S, B, F)` at `(*S, B')`."""
    return x.gather(-2, index.unsqueeze(-1).expand(*index.shape, x.shape[-1]))


def _in_chunks(
    net: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor, networks: int
) -> tuple[Tensor, Tensor]:
    """`net(x)`; on a CPU in parts whose activations fit its cache: twice as fast from 10 000 rows on."""
    if x.device.type != "cpu":
        return net(x)
    mean, log_var = zip(*(net(part) for part in x.split(max(128, CHUNK // networks), -2)), strict=True)
    return torch.cat(mean, -2), torch.cat(log_var, -2)
