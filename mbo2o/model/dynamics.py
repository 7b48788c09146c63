"""`Dynamics`: a learned model as users hold it, in the environment's own units and without a seed axis."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from mbo2o.dynamics.model import DynamicsConfig, GaussianDynamics
from mbo2o.ensemble.uncertainty import PENALTIES
from mbo2o.model.about import About
from mbo2o.types import RewardFn, Spec, TerminationFn, UserError

Array = Any
"""A NumPy array or a tensor; what comes back is of the kind that was given."""
Noise = tuple[Tensor, Tensor]
"""Which elite each row draws from `(B,)`, and standard normal numbers for its outputs `(B, D+1)`."""

BROKEN = -1e6
"""The reward of a step to a state that is not finite, so that no planner is drawn to it."""
TOLERANCE = 1e-4
"""How far outside the box an action may lie because of rounding, as a share of half the box."""
DRAWS = 64
"""Next states per elite out of which `predict` takes the probability of an end."""
AT_ONCE = 4_000_000
"""At most so many numbers of these draws are held at a time."""

T = TypeVar("T")


@dataclass(frozen=True)
class Prediction:
    """What the model says of one step. `...` is the shape of the batch, K the number of elites.

    The next observation and the reward have the distribution of an elite that is drawn at random, plus its
    noise: variance = aleatoric² + epistemic².
    """

    mean: Array
    """`(..., D)`: the mean next observation."""
    members: Array
    """`(K, ..., D)`: the mean next observation of each elite."""
    aleatoric: Array
    """`(..., D)`: the noise of the next observation, root mean square over elites."""
    epistemic: Array
    """`(..., D)`: the standard deviation of the elites' means."""
    reward: Array
    """`(...)`: the mean reward in the task's units."""
    end: Array
    """`(...)`: the probability that the episode ends with this step."""
    uncertainty: Array
    """`(...)`: the model's `penalty`, one number for each row."""


class Outcome(NamedTuple):
    """A draw of one step for B rows."""

    obs: Array
    """`(..., D)`: the next observation."""
    reward: Array
    """`(...)`: in the task's units."""
    ended: Array
    """`(...)` bool: the episode ended."""
    uncertainty: Array
    """`(...)`: the model's `penalty` of the state and action that the step begins with."""


@dataclass(frozen=True)
class Rollout:
    """Branches in the model, `...` of them, over H steps."""

    obs: Array
    """`(..., H+1, D)`: from the start on. A branch that has ended stays where it ended."""
    act: Array
    """`(..., H, A)`: in the environment's units."""
    reward: Array
    """`(..., H)`: in the task's units, 0 after the end."""
    ended: Array
    """`(..., H)` bool: the branch ended with this step."""
    alive: Array
    """`(..., H)` bool: the step counts, because it is not after an end."""
    uncertainty: Array
    """`(..., H)`: of each step, 0 after the end."""


class Dynamics:
    """The learned dynamics of one task, as `load_dynamics` and `fit_dynamics` return them.

    Observations are raw. Actions are in the environment's own units, and those outside its box are refused.
    NumPy arrays come back as NumPy arrays of float32, tensors as tensors. A batch may have any shape, also
    none: `(D,)` and `(A,)` are one row. Only the elites of the ensemble, those with the smallest error on
    held-out rows, predict.
    """

    def __init__(self, net: GaussianDynamics, about: About, penalty: str = "mixture_std"):
        """`net` without a seed axis; penalty: a name of `PENALTIES`, the measure called uncertainty."""
        if penalty not in PENALTIES:
            raise UserError(f"penalty={penalty}: no such penalty; choose one of {', '.join(PENALTIES)}")
        device = net.spec.device
        self.net, self.about, self.penalty = net, about, penalty
        self.obs_dim, self.act_dim, self.device = net.spec.obs_dim, net.spec.act_dim, torch.device(device)
        self.low, self.high = about.low.numpy(), about.high.numpy()
        self._elites = _elites_alone(net)
        self._low, self._high = about.low.to(device), about.high.to(device)
        self._middle, self._half = (self._low + self._high) / 2, (self._high - self._low) / 2
        # a dimension of the box without width has only one action, which counts as 0
        self._divisor = torch.where(self._half > 0, self._half, 1.0)

    # -------------------------------------------------------------------------------------------- one step

    @torch.no_grad()
    def predict(self, obs: Array, act: Array) -> Prediction:
        """What happens next, and how sure the model is.

        The probability of an end is the share of 64 draws per elite that the termination rule ends; the draws
        are the same in every call, a scrambled Sobol sequence, so that the same question has the same answer.

        Args:
            obs: `(..., D)`, finite.
            act: `(..., A)`, in the environment's units; leading axes broadcast against those of `obs`.

        Raises:
            UserError: The sizes are wrong, a number is not finite, or an action lies outside the box.
        """
        flat, unit, lead = self._rows(obs, act)
        mean, std = self._both(flat, unit)
        elites = flat + mean[..., :-1]
        centre = elites.mean(0)
        reward = mean[..., -1].mean(0) if self.about.reward is None else self._pay(flat, unit, centre)
        found = Prediction(
            mean=centre,
            members=elites,
            aleatoric=std[..., :-1].square().mean(0).sqrt(),
            epistemic=elites.std(0, correction=0),
            reward=reward,
            end=self._end(flat, unit, elites, std[..., :-1]),
            uncertainty=PENALTIES[self.penalty](mean, std),
        )
        shaped = {
            "members": lambda x: x.unflatten(1, lead) if lead else x.squeeze(1),
            "mean": lambda x: x.reshape(*lead, -1),
            "aleatoric": lambda x: x.reshape(*lead, -1),
            "epistemic": lambda x: x.reshape(*lead, -1),
        }
        like = obs if isinstance(obs, Tensor) else act
        values = {f.name: shaped.get(f.name, lambda x: x.reshape(lead)) for f in fields(found)}
        return Prediction(**{key: _as(like, shape(getattr(found, key))) for key, shape in values.items()})

    def step(self, obs: Array, act: Array, generator: torch.Generator | None = None) -> Outcome:
        """A draw of the next step, for each row from one random elite; arguments and errors as in `predict`.

        Randomness comes from `generator`, or from torch's own if there is none.
        """
        flat, unit, lead = self._rows(obs, act)
        next_obs, reward, ended, uncertainty = self.model_step(flat, unit, generator)
        like = obs if isinstance(obs, Tensor) else act
        rest = (_as(like, x.reshape(lead)) for x in (reward, ended, uncertainty))
        return Outcome(_as(like, next_obs.reshape(*lead, -1)), *rest)

    @torch.no_grad()
    def model_step(
        self, obs: Tensor, act: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The step that planners call: nothing is checked, and actions are in [-1, 1].

        Args:
            obs: `(B, D)` on the model's device.
            act: `(B, A)` in [-1, 1].
            generator: Where randomness comes from; None: torch's own.

        Returns the next observations `(B, D)`, rewards `(B,)`, whether the episode ended `(B,)` bool, and the
        uncertainty `(B,)`. A row whose prediction is not finite stays where it was, ends, and has the reward
        `BROKEN`.
        """
        return self.advance(obs, act, self.noise(len(obs), generator))

    def noise(self, rows: int, generator: torch.Generator | None = None) -> Noise:
        """The randomness of a step of so many rows, for `advance`."""
        pick = torch.randint(self._elites.cfg.members, (rows,), generator=generator, device=self.device)
        return pick, torch.randn(rows, self.obs_dim + 1, generator=generator, device=self.device)

    def advance(self, obs: Tensor, act: Tensor, noise: Noise | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`model_step` with given randomness, a function of its arguments alone that can be compiled.

        Without `noise` the next observation and the reward are the mean over elites.
        """
        mean, std = self._both(obs, act)
        if noise is None:
            y = mean.mean(0)
        else:
            pick, z = noise
            index = pick[None, :, None].expand(1, -1, mean.shape[-1])
            y = (mean.gather(0, index) + std.gather(0, index) * z).squeeze(0)
        next_obs = obs + y[:, :-1]
        reward = y[:, -1] if self.about.reward is None else self._pay(obs, act, next_obs)
        fine = next_obs.isfinite().all(-1) & reward.isfinite()
        ended = self.about.ends(obs, act, next_obs) | ~fine
        uncertainty = PENALTIES[self.penalty](mean, std)
        return (
            torch.where(fine.unsqueeze(-1), next_obs, obs),
            torch.where(fine, reward, BROKEN),
            ended,
            torch.where(uncertainty.isfinite(), uncertainty, torch.finfo(uncertainty.dtype).max),
        )

    # ------------------------------------------------------------------------------------------ many steps

    @torch.no_grad()
    def rollout(
        self,
        obs: Array,
        policy_or_actions: Array | Callable[[Array], Array],
        horizon: int | None = None,
        *,
        seed: int = 0,
        sample: bool = True,
    ) -> Rollout:
        """Go from `obs` over `horizon` steps.

        Args:
            obs: `(..., D)`: where the branches begin.
            policy_or_actions: Actions `(..., H, A)` in the environment's units, or a policy: a function from
                observations `(..., D)` to actions `(..., A)`, or an object whose `predict(obs)` returns these
                first, as those of Stable-Baselines3 do.
            horizon: The number of steps; None: as many as there are actions.
            seed: The draws follow from it.
            sample: Draw from a random elite at each step; otherwise each step is the mean over elites.

        Raises:
            UserError: As `predict`; or there are fewer actions than steps, or no horizon.
        """
        policy = _policy(policy_or_actions)
        actions = None if policy else self._tensor(policy_or_actions)
        if actions is not None and actions.dim() < 2:
            raise UserError(f"actions have the shape {tuple(actions.shape)}, expected (..., H, A)")
        given = None if actions is None else actions.shape[-2]
        steps = given if horizon is None else horizon
        if steps is None or steps < 1 or (given is not None and steps > given):
            raise UserError(f"horizon={horizon} must be at least 1, and at most the actions' number, {given}")
        start = self._tensor(obs)
        lead = start.shape[:-1] if actions is None else _lead(start.shape[:-1], actions.shape[:-2])
        start = self._states(start.expand(*lead, start.shape[-1]))
        generator = torch.Generator(self.device).manual_seed(seed)
        alive = torch.ones(len(start), dtype=torch.bool, device=self.device)
        states, columns = [start], []
        for t in range(steps):
            if actions is not None:
                act = actions[..., t, :].expand(*lead, actions.shape[-1])
            else:
                assert policy is not None
                act = self._tensor(policy(_as(obs, states[-1].reshape(*lead, -1))))
            unit = self._unit(act.reshape(len(start), -1))
            noise = self.noise(len(start), generator) if sample else None
            next_obs, reward, ended, uncertainty = self.advance(states[-1], unit, noise)
            states.append(torch.where(alive.unsqueeze(-1), next_obs, states[-1]))
            pays, unsure = (torch.where(alive, x, 0.0) for x in (reward, uncertainty))
            columns.append((act.reshape(len(start), -1), pays, ended & alive, alive, unsure))
            alive = alive & ~ended
        act, *rest = (torch.stack(x, 1).unflatten(0, lead or (1,)) for x in zip(*columns, strict=True))
        parts = [torch.stack(states, 1).unflatten(0, lead or (1,)), act, *rest]
        return Rollout(*(_as(obs, x if lead else x[0]) for x in parts))

    # --------------------------------------------------------------------------------------------- on disk

    def save(self, folder: str | Path) -> None:
        """Write everything that `load_dynamics` needs into `folder`, which is made."""
        folder = Path(folder)
        self.net.save(folder, {**self.net.info, "env_id": self.about.env_id, "termination": self.about.rule})
        self.about.save(folder)

    # ---------------------------------------------------------------------------------------------- inside

    def _both(self, obs: Tensor, act: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of (Δobs, reward) of each elite, `(K, B, D+1)`, in the task's units."""
        mean, std = self._elites.predict(obs, act)
        view = self.about.rewards
        if (view.scale, view.shift) != (1, 0):
            own = (mean[..., -1:] - view.shift) / view.scale
            mean = torch.cat([mean[..., :-1], own], -1)
            std = torch.cat([std[..., :-1], std[..., -1:] / abs(view.scale)], -1)
        return mean, std

    def _pay(self, obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        assert self.about.reward is not None
        return self.about.reward(obs, act, next_obs)

    def _end(self, obs: Tensor, act: Tensor, elites: Tensor, std: Tensor) -> Tensor:
        """The share of draws around the elites' next states `(K, B, D)` that end the episode, `(B,)`."""
        total = torch.zeros(obs.shape[0], device=self.device)
        if self.about.rule == "none":
            return total
        z = _sobol(self.obs_dim).to(self.device)
        obs, act = obs.expand(elites.shape), act.expand(len(elites), *act.shape)
        for some in z.split(max(1, AT_ONCE // max(1, elites.numel()))):
            draws = elites + std * some[:, None, None, :]
            ended = self.about.ends(obs.expand(draws.shape), act.expand(len(some), *act.shape), draws)
            total += ended.float().sum((0, 1))
        return total / (DRAWS * len(elites))

    def _tensor(self, x: Array) -> Tensor:
        return torch.as_tensor(np.asarray(x) if not isinstance(x, Tensor) else x).to(
            self.device, torch.float32
        )

    def _rows(self, obs: Array, act: Array) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """Checked rows `(B, D)`, their actions `(B, A)` in [-1, 1], and the shape of the batch."""
        obs, act = self._tensor(obs), self._tensor(act)
        if not obs.dim() or not act.dim():
            raise UserError(f"expected observations (..., {self.obs_dim}) and actions (..., {self.act_dim})")
        lead = _lead(obs.shape[:-1], act.shape[:-1])
        flat = self._states(obs.expand(*lead, obs.shape[-1]))
        return flat, self._unit(act.expand(*lead, act.shape[-1]).reshape(len(flat), -1)), lead

    def _states(self, obs: Tensor) -> Tensor:
        """`(..., D)` as rows `(B, D)`; `UserError` for another size and for numbers that are not finite."""
        if obs.shape[-1] != self.obs_dim:
            raise UserError(f"observations have {obs.shape[-1]} numbers, the model's have {self.obs_dim}")
        flat = obs.reshape(-1, self.obs_dim)
        if not bool(flat.isfinite().all()):
            i, j = (int(x) for x in (~flat.isfinite()).nonzero()[0])
            raise UserError(f"row {i}: observation[{j}] is {float(flat[i, j])}, expected a finite number")
        return flat

    def _unit(self, act: Tensor) -> Tensor:
        """Actions `(B, A)` in the environment's units → [-1, 1]; `UserError` if one lies outside the box."""
        if act.shape[-1] != self.act_dim:
            raise UserError(f"actions have {act.shape[-1]} numbers, the model's have {self.act_dim}")
        room = TOLERANCE * self._divisor
        # a comparison with NaN is false, so in this form NaN is refused
        fine = (act >= self._low - room) & (act <= self._high + room)
        if not bool(fine.all()):
            i, j = (int(x) for x in (~fine).nonzero()[0])
            box = f"[{float(self._low[j]):g}, {float(self._high[j]):g}]"
            of = f"the box of {self.about.env_id}" if self.about.env_id else "the model's box"
            old = "" if self.about.bounded else " (its folder names no box, so actions are in [-1, 1])"
            raise UserError(f"row {i}: action[{j}] = {float(act[i, j]):g} lies outside {box}, {of}{old}")
        return ((act - self._middle) / self._divisor).clamp(-1, 1)


def load_dynamics(
    path: str | Path,
    seed: int = 0,
    device: str = "cpu",
    *,
    penalty: str = "mixture_std",
    termination: str | TerminationFn | None = None,
    reward: str | RewardFn | None = None,
) -> Dynamics:
    """The dynamics of a run, or of a folder that `Dynamics.save` or `mbo2o model fit` wrote.

    A run gives the model of the last phase that kept one. Folders of earlier versions do not name the box of
    actions, which are then in [-1, 1].

    Args:
        path: The run's directory, or the model's folder.
        seed: Which of a run's seeds.
        device: Where the model computes.
        penalty: The measure that is called uncertainty, a name of `PENALTIES`.
        termination: A rule instead of the folder's: a name, `package.module:function`, or a function.
        reward: A function instead of the predicted reward: `package.module:function`, or itself.

    Raises:
        UserError: There is no model, no such seed, or something cannot be read.
    """
    folder = model_folder(path)
    net = GaussianDynamics.load(folder, device)
    if net.spec.seeds:
        if not 0 <= seed < net.spec.seeds[0]:
            most = net.spec.seeds[0] - 1
            raise UserError(f"{folder}: seed={seed} is not there; it holds seeds 0 to {most}")
        info, net = net.info, net.seed(seed)
        net.info = info
    elif seed:
        raise UserError(f"{folder}: seed={seed} is not there; it holds one model")
    usual = net.inputs.std.flatten()[: net.spec.obs_dim].detach().cpu()
    sizes = (net.spec.obs_dim, net.spec.act_dim)
    about = About.read(folder, net.info, sizes, usual, termination, reward)
    return Dynamics(net.eval().requires_grad_(False), about, penalty)


def model_folder(path: str | Path) -> Path:
    """The folder with the model of a run, or `path` itself. UserError if there is no model."""
    path = Path(path)
    for folder in (path, *(path / "dynamics" / phase for phase in ("online", "offline"))):
        if (folder / "model.json").is_file():
            return folder
    given = "give a run of mopo, moore or mbpo, or a folder of `mbo2o model fit`"
    raise UserError(f"{path}: holds no dynamics model; {given}")


def _elites_alone(net: GaussianDynamics) -> GaussianDynamics:
    """A model whose members are the elites of `net`: what does not predict costs no time."""
    spec = Spec(net.spec.obs_dim, net.spec.act_dim, (), net.spec.device)
    count = len(net.elites)
    with torch.random.fork_rng(devices=[]):  # initial weights are overwritten
        cfg = DynamicsConfig(count, count, net.cfg.net, net.cfg.normalize_targets)
        alone = GaussianDynamics(spec, cfg)
    state = dict(net.state_dict()) | {f"net.{name}": x for name, x in net.elite_weights().items()}
    state |= {"elites": torch.arange(count), "bootstrap": net.bootstrap[net.elites]}
    alone.load_state_dict(state)
    return alone.eval().requires_grad_(False)


def _policy(x: Any) -> Callable[[Array], Array] | None:
    """The function from observations to actions that `x` is or has; None for an array of actions."""
    if isinstance(x, Tensor | np.ndarray | list | tuple):
        return None
    return (lambda obs: x.predict(obs)[0]) if hasattr(x, "predict") else x


_SOBOL: dict[int, Tensor] = {}


def _sobol(dim: int) -> Tensor:
    """`(DRAWS, dim)`: standard normal numbers that fill space evenly, the same in every process."""
    if dim not in _SOBOL:
        points = torch.quasirandom.SobolEngine(dim, scramble=True, seed=0).draw(DRAWS)
        _SOBOL[dim] = math.sqrt(2) * torch.erfinv((2 * points - 1).clamp(-1 + 1e-6, 1 - 1e-6))
    return _SOBOL[dim]


def _lead(one: torch.Size, two: torch.Size) -> tuple[int, ...]:
    try:
        return tuple(torch.broadcast_shapes(one, two))
    except RuntimeError as e:
        text = f"batches {tuple(one)} of observations and {tuple(two)} of actions do not fit together"
        raise UserError(text) from e


def _as(like: Array, x: Tensor) -> Array:
    """`x` as a tensor if `like` is one, and otherwise as a NumPy array."""
    return x if isinstance(like, Tensor) else x.cpu().numpy()
