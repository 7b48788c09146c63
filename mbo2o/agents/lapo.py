"""Latent-variable advantage-weighted policy optimisation (Chen et al. 2022, arXiv 2203.08949) on N critics.

A conditional VAE, trained more on actions with an advantage, learns to decode latent actions; a policy looks
for the best latent action in a bounded box. So its actions can be much better than the average and yet stay
near the data.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mbo2o.agents.qensemble import QConfig, QEnsemble
from mbo2o.ensemble.mlp import EnsembleMLP, MLPConfig
from mbo2o.nn.normalizer import Normalizer, block_statistics
from mbo2o.nn.optim import Adam, polyak
from mbo2o.registry import agent
from mbo2o.types import Batch, Blocks, Metrics, Spec, Step, UserError

LOG_VAR = (-4.0, 15.0)
"""Range of the encoder's log σ²: the numbers that BCQ has for log σ; LAPO's code has no bounds."""


def _three_layers() -> MLPConfig:
    return MLPConfig(hidden=[256, 256, 256])


@dataclass
class LAPOConfig(QConfig):
    """Defaults: the authors' code, unless said. It divides rewards by their maximum; batches are of 512."""

    # the target is ρ min + (1 - ρ) max over critics (antmaze 0.7); other targets than min_q need 1
    rho: float = 1.0
    expectile: float = 0.9  # κ: the CVAE's weight of a transition with an advantage, 1 - κ without
    kl_weight: float = 1.0  # β (maze2d 0.3)
    latent_dim: int | None = None  # None: twice the action's
    max_latent: float = 2.0  # the policy's latent actions are in ± this
    # deviation of the noise on them: in V's target, and when exploring (where the authors have none)
    latent_noise: float = 0.1
    latent_noise_clip: float = 0.2  # in V's target
    # bounds of V's target (antmaze 0 and 100); None: what the data's rewards can sum up to
    v_min: float | None = None
    v_max: float | None = None
    critic_lr: float = 2e-4  # rate of Q and V
    cvae_lr: float = 2e-4
    latent_lr: float = 2e-4
    actor_reduction: str = "first_q"
    normalize: bool = True  # observations and actions
    critic: MLPConfig = field(default_factory=_three_layers)  # Q and V
    cvae: MLPConfig = field(default_factory=_three_layers)
    latent: MLPConfig = field(default_factory=_three_layers)


class CVAE(nn.Module):
    """Standardised actions from a latent variable: q(z|s, a) and the mean of p(a|s, z), one pair per seed."""

    def __init__(self, seeds: tuple[int, ...], obs_dim: int, act_dim: int, latent_dim: int, cfg: MLPConfig):
        super().__init__()
        self.encoder = EnsembleMLP(seeds, obs_dim + act_dim, 2 * latent_dim, cfg)
        self.decoder = EnsembleMLP(seeds, obs_dim + latent_dim, act_dim, cfg)

    def encode(self, obs: Tensor, act: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log σ² of z, each `(*S, B, L)`."""
        mean, log_var = self.encoder(obs, act).chunk(2, -1)
        return mean, log_var.clamp(*LOG_VAR)

    def loss(self, obs: Tensor, act: Tensor, kl_weight: float) -> Tensor:
        """||a - â||² + β KL(q(z|s, a) || N(0, 1)) with one z each, both summed over dimensions: `(*S, B)`."""
        mean, log_var = self.encode(obs, act)
        z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        error = (self.decoder(obs, z) - act).square().sum(-1)
        return error + kl_weight * 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(-1)


class ValueRange(nn.Module):
    """Bounds of V, per seed `(*S,)`: `v_min` and `v_max` if given, else those that `measure` finds."""

    low: Tensor
    high: Tensor

    def __init__(self, seeds: tuple[int, ...], v_min: float | None, v_max: float | None):
        super().__init__()
        self.v_min, self.v_max = v_min, v_max
        self.register_buffer("low", torch.full(seeds, -math.inf))
        self.register_buffer("high", torch.full(seeds, math.inf))

    def measure(self, blocks: Iterable[Tensor], gamma: float) -> None:
        """Set the bounds by all rewards of a dataset, `(B,)` each."""
        lows, highs = zip(*(_discounted_sums(rew, gamma) for rew in blocks), strict=True)
        self.low.copy_(torch.stack(lows).amin(0))
        self.high.copy_(torch.stack(highs).amax(0))

    def widen(self, rew: Tensor, gamma: float) -> None:
        """Widen the bounds for rewards `(*S, B)` that the dataset did not have (the authors' fine-tuning)."""
        low, high = _discounted_sums(rew, gamma)
        self.low.copy_(torch.minimum(self.low, low))
        self.high.copy_(torch.maximum(self.high, high))

    def forward(self, v: Tensor) -> Tensor:
        """Values `(*S, B)`, clamped to the bounds."""
        v = v.clamp(min=self.low.unsqueeze(-1) if self.v_min is None else self.v_min)
        return v.clamp(max=self.high.unsqueeze(-1) if self.v_max is None else self.v_max)


def _discounted_sums(rew: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """The least and the largest discounted sum of such rewards, in an episode that may end at any time.

    The authors' r_min / (1 - γ) and r_max / (1 - γ) leave 0 out where all rewards have one sign. But if all
    rewards are positive, an episode that ends early is worth less than r_min / (1 - γ).
    """
    return rew.amin(-1).clamp(max=0) / (1 - gamma), rew.amax(-1).clamp(min=0) / (1 - gamma)


@agent("lapo", LAPOConfig)
class LAPO(QEnsemble):
    """Q learns from V, V from Q at the policy's action, the CVAE from actions with an advantage."""

    cfg: LAPOConfig
    not_imagined = "its actions are those that its autoencoder has seen, and they would be its own"

    def __init__(self, spec: Spec, cfg: LAPOConfig):
        super().__init__(spec, cfg)
        if cfg.rho != 1 and cfg.target != "min_q":
            text = f"rho {cfg.rho:g} mixes the largest critic into target=min_q"
            raise UserError(f"{text}; target {cfg.target!r} needs rho=1")
        seeds, n, latent_dim = spec.seeds, spec.obs_dim, cfg.latent_dim or 2 * spec.act_dim
        self.action_scale = Normalizer(seeds, spec.act_dim)  # the identity until `prepare`
        self.v_range = ValueRange(seeds, cfg.v_min, cfg.v_max)
        self.value_net = EnsembleMLP(seeds, n, 1, cfg.critic)
        self.cvae = CVAE(seeds, n, spec.act_dim, latent_dim, cfg.cvae)
        self.latent = EnsembleMLP(seeds, n, latent_dim, cfg.latent)
        self.decoder_target = copy.deepcopy(self.cvae.decoder).requires_grad_(False)
        self.latent_target = copy.deepcopy(self.latent).requires_grad_(False)
        self.value_net_optim = Adam(self.value_net.parameters(), cfg.critic_lr)
        self.cvae_optim = Adam(self.cvae.parameters(), cfg.cvae_lr)
        self.latent_optim = Adam(self.latent.parameters(), cfg.latent_lr)

    def prepare(self, data: Blocks) -> None:
        """Set the scales of observations and actions, and the bounds of V, by the whole dataset."""
        super().prepare(data)
        self.v_range.measure((b.rew for b in data.blocks()), self.cfg.gamma)
        if self.cfg.normalize:
            mean, std = block_statistics(lambda: (b.act for b in data.blocks()))
            self.action_scale.mean.copy_(mean)
            self.action_scale.std.copy_(std)

    # ------------------------------------------------------------------ acting

    def latent_action(self, net: nn.Module, obs: Tensor) -> Tensor:
        """z = 2 tanh(f(s)), `(*S, B, L)`; 2 is `max_latent`."""
        return self.cfg.max_latent * torch.tanh(net(obs))

    def proposal(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """The latent action and a constant deviation; noise before the tanh vanishes where it saturates."""
        z = self.latent_action(self.latent, obs)
        return z, torch.full_like(z, self.cfg.latent_noise)

    def decode(self, obs: Tensor, u: Tensor) -> Tensor:
        """The action in [-1, 1] that the decoder's copy makes of a latent one, clipped to the policy's box.

        Gradients pass the clip to [-1, 1] unchanged, so that a linear output that overshoots can come back.
        """
        z = u.clamp(-self.cfg.max_latent, self.cfg.max_latent)
        act = self.action_scale.inverse(self.decoder_target(obs, z))
        return act.detach().clamp(-1, 1) + (act - act.detach())

    def mode(self, obs: Tensor) -> Tensor:
        """The decoded latent action, `(*S, B, A)`."""
        return self.decode(obs, self.latent_action(self.latent, obs))

    # ------------------------------------------------------------------ values

    def q(self, obs: Tensor, act: Tensor) -> Tensor:
        """Every critic's value, `(*S, N, B)`; critics take standardised actions."""
        return super().q(obs, self.action_scale(act))

    def q_target(self, obs: Tensor, act: Tensor) -> Tensor:
        """Every target critic's value, `(*S, N, B)`."""
        return super().q_target(obs, self.action_scale(act))

    def v(self, obs: Tensor) -> Tensor:
        """V(s), `(*S, B)`."""
        return self.value_net(obs).squeeze(-1)

    def reduce(self, q: Tensor) -> Tensor:
        """ρ min + (1 - ρ) max, or another reduction alone, `(*S, N, B)` → `(*S, B)`."""
        low, rho = super().reduce(q), self.cfg.rho
        return low if rho == 1 else rho * low + (1 - rho) * q.amax(-2)

    # ------------------------------------------------------------------ learning

    def value_target(self, b: Batch) -> Tensor:
        """V's target: R_i Q̄_i(s, decoder(s, z̄(s) + clipped noise)) within V's bounds, `(*S, B)`."""
        with torch.no_grad():
            z = self.latent_action(self.latent_target, b.obs)
            limit = self.cfg.latent_noise_clip
            noise = (self.cfg.latent_noise * torch.randn_like(z)).clamp(-limit, limit)
            return self.v_range(self.reduce(self.q_target(b.obs, self.decode(b.obs, z + noise))))

    def backup(self, b: Batch) -> tuple[Tensor, Tensor]:
        """y = r + γ (1 - d) V(s'), `(*S, B)`, and Q̄_i(s', decoder(s', z̄(s'))), `(*S, N, B)`."""
        with torch.no_grad():
            y = b.rew + self.cfg.gamma * (1 - b.done) * self.v(b.next_obs)
            act = self.decode(b.next_obs, self.latent_action(self.latent_target, b.next_obs))
            return y, self.q_target(b.next_obs, act)

    def weight(self, b: Batch, next_q: Tensor) -> Tensor:
        """κ where r + γ (1 - d) R_i Q̄_i(s', a') - V(s) > 0, else 1 - κ, `(*S, B)`."""
        cfg = self.cfg
        with torch.no_grad():
            advantage = b.rew + cfg.gamma * (1 - b.done) * self.reduce(next_q) - self.v(b.obs)
            return (cfg.expectile - (advantage <= 0).to(advantage.dtype)).abs()

    def update(self, batch: Batch, step: Step) -> Metrics:
        """One step of critics, V, CVAE and latent policy, in this order."""
        cfg = self.cfg
        b = self.scaled(batch)
        self.v_range.widen(b.rew, cfg.gamma)

        q = self.q(b.obs, b.act)
        v = self.v(b.obs)
        y, next_q = self.backup(b)
        critic_loss = self.td_loss(b, q, y, next_q)
        value_loss = (v - self.value_target(b)).square().mean(-1)
        self.critic_optim.step(critic_loss)
        self.value_net_optim.step(value_loss)

        weight = self.weight(b, next_q)
        cvae_loss = (weight * self.cvae.loss(b.obs, self.action_scale(b.act), cfg.kl_weight)).mean(-1)
        self.cvae_optim.step(cvae_loss)

        # the decoder's copy does not learn from this
        actor_loss = -self.value_for_actor(b.obs, self.mode(b.obs)).mean(-1)
        self.latent_optim.step(actor_loss)

        polyak(self.target, self.critic, cfg.tau)
        polyak(self.latent_target, self.latent, cfg.tau)
        polyak(self.decoder_target, self.cvae.decoder, cfg.tau)
        metrics = {
            "critic_loss": critic_loss,
            "value_loss": value_loss,
            "cvae_loss": cvae_loss,
            "actor_loss": actor_loss,
            "q": q.mean((-2, -1)),
            "v": v.mean(-1),
            "weight": weight.mean(-1),
        }
        return {name: x.detach() for name, x in metrics.items()}
