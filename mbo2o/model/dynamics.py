"""`Dynamics`: a learned model as users hold it, in the environment's own units and without a seed axis."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mbo2o.dynamics.model import DynamicsConfig, GaussianDynamics
from mbo2o.ensemble.uncertainty import PENALTIES
from mbo2o.model.about import About
from mbo2o.model.trust import PlanUncertainty, Trust, read_trust, save_trust
from mbo2o.types import RewardFn, Spec, TerminationFn, UserError

if TYPE_CHECKING:
    from mbo2o.model.env import ModelEnv, ModelVectorEnv

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

    def __init__(
        self,
        net: GaussianDynamics,
        about: About,
        trust: Trust | None = None,
        penalty: str = "mixture_std",
    ):
        """`net` without a seed axis; penalty: a name of `PENALTIES`, the measure called uncertainty."""
        if penalty not in PENALTIES:
            raise UserError(f"penalty={penalty}: no such penalty; choose one of {', '.join(PENALTIES)}")
        device = net.spec.device
        self.net, self.about, self.trust, self.penalty = net, about, trust, penalty
        self.obs_dim, self.act_dim, self.device = net.spec.obs_dim, net.spec.act_dim, torch.device(device)
        self.low, self.high = about.low.numpy(), about.high.numpy()
        self._elites = _elites_alone(net)
        self._weights = self._elites.elite_weights()
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
        mean, std = self.distribution(flat, unit)
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
            "mean": lambda x: x.reshape(*lead, self.obs_dim),
            "aleatoric": lambda x: x.reshape(*lead, self.obs_dim),
            "epistemic": lambda x: x.reshape(*lead, self.obs_dim),
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
        return Outcome(_as(like, next_obs.reshape(*lead, self.obs_dim)), *rest)

    @torch.no_grad()
    def model_step(
        self, obs: Tensor, act: Tensor, generator: torch.Generator | None = None, measure: bool = True
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The step that planners call: nothing is checked, and actions are in [-1, 1].

        Args:
            obs: `(B, D)` on the model's device.
            act: `(B, A)` in [-1, 1].
            generator: Where randomness comes from; None: torch's own.
            measure: Whether to measure the uncertainty. Without it each row is computed by one elite instead
                of all, the draws are others, and 0 stands in its place.

        Returns the next observations `(B, D)`, rewards `(B,)`, whether the episode ended `(B,)` bool, and the
        uncertainty `(B,)`. A row whose prediction is not finite stays where it was, ends, and has the reward
        `BROKEN`.
        """
        if measure:
            return self.advance(obs, act, self.noise(len(obs), generator))
        next_obs, reward = self._elites.step(obs, act, generator, self._weights)
        own = (reward - self.about.rewards.shift) / self.about.rewards.scale
        return (*self._settle(obs, act, next_obs, own), torch.zeros_like(own))

    def noise(self, rows: int, generator: torch.Generator | None = None) -> Noise:
        """The randomness of a step of so many rows, for `advance`."""
        pick = torch.randint(self._elites.cfg.members, (rows,), generator=generator, device=self.device)
        return pick, torch.randn(rows, self.obs_dim + 1, generator=generator, device=self.device)

    def advance(self, obs: Tensor, act: Tensor, noise: Noise | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`model_step` with given randomness, a function of its arguments alone that can be compiled.

        Without `noise` the next observation and the reward are the mean over elites.
        """
        mean, std = self.distribution(obs, act)
        if noise is None:
            y = mean.mean(0)
        else:
            pick, z = noise
            index = pick[None, :, None].expand(1, -1, mean.shape[-1])
            y = (mean.gather(0, index) + std.gather(0, index) * z).squeeze(0)
        uncertainty = PENALTIES[self.penalty](mean, std)
        most = torch.finfo(uncertainty.dtype).max
        unsure = torch.where(uncertainty.isfinite(), uncertainty, most)
        return (*self._settle(obs, act, obs + y[:, :-1], y[:, -1]), unsure)

    def _settle(
        self, obs: Tensor, act: Tensor, next_obs: Tensor, reward: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Next observations, rewards and ends of a predicted step; see `model_step` for broken rows."""
        if self.about.reward is not None:
            reward = self._pay(obs, act, next_obs)
        fine = next_obs.isfinite().all(-1) & reward.isfinite()
        ended = self.about.ends(obs, act, next_obs) | ~fine
        return torch.where(fine.unsqueeze(-1), next_obs, obs), torch.where(fine, reward, BROKEN), ended

    # ------------------------------------------------------------------------------------------ many steps

    @torch.no_grad()
    def rollout(
        self,
        obs: Array,
        policy_or_actions: Array | Callable[[Array], Array],
        horizon: int | str | None = None,
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
            horizon: The number of steps; None: as many as there are actions; `trusted`: as far as the model
                is to be trusted (`trusted_depth`), at least one, and at most as many as there are actions.
            seed: The draws follow from it.
            sample: Draw from a random elite at each step; otherwise each step is the mean over elites.

        Raises:
            UserError: As `predict`; or there are fewer actions than steps, or no horizon.
        """
        policy = _policy(policy_or_actions)
        actions = None if policy else as_tensor(self, policy_or_actions)
        if actions is not None and actions.dim() < 2:
            raise UserError(f"actions have the shape {tuple(actions.shape)}, expected (..., H, A)")
        given = None if actions is None else actions.shape[-2]
        if isinstance(horizon, str):
            horizon = min(self._steps(horizon), given or self._steps(horizon))
        steps = given if horizon is None else horizon
        if steps is None or steps < 1 or (given is not None and steps > given):
            raise UserError(f"horizon={horizon} must be at least 1, and at most the actions' number, {given}")
        start = as_tensor(self, obs)
        lead = start.shape[:-1] if actions is None else _lead(start.shape[:-1], actions.shape[:-2])
        start = states_of(self, start.expand(*lead, start.shape[-1]))
        generator = torch.Generator(self.device).manual_seed(seed)
        alive = torch.ones(len(start), dtype=torch.bool, device=self.device)
        states, columns = [start], []
        for t in range(steps):
            if actions is not None:
                act = actions[..., t, :].expand(*lead, actions.shape[-1])
            else:
                assert policy is not None
                act = as_tensor(self, policy(_as(obs, states[-1].reshape(*lead, self.obs_dim))))
            unit = self.to_unit(act).reshape(len(start), self.act_dim)
            noise = self.noise(len(start), generator) if sample else None
            next_obs, reward, ended, uncertainty = self.advance(states[-1], unit, noise)
            states.append(torch.where(alive.unsqueeze(-1), next_obs, states[-1]))
            pays, unsure = (torch.where(alive, x, 0.0) for x in (reward, uncertainty))
            columns.append((act.reshape(len(start), self.act_dim), pays, ended & alive, alive, unsure))
            alive = alive & ~ended
        act, *rest = (torch.stack(x, 1).unflatten(0, lead or (1,)) for x in zip(*columns, strict=True))
        parts = [torch.stack(states, 1).unflatten(0, lead or (1,)), act, *rest]
        return Rollout(*(_as(obs, x if lead else x[0]) for x in parts))

    # -------------------------------------------------------------------------------------- as environments

    def as_vector_env(
        self,
        num_envs: int,
        starts: Array | None = None,
        horizon: int | str | None = None,
        penalty: float = 0.0,
        autoreset: Any = "NextStep",
    ) -> ModelVectorEnv:
        """The model as a `gymnasium.vector.VectorEnv` of `num_envs` branches; it needs gymnasium.

        Args:
            num_envs: The number of branches.
            starts: `(n, D)`, where episodes begin; None: where the data's episodes begin.
            horizon: Steps after which an episode is truncated; None: the task's time limit; `trusted`: as
                many as the model is to be trusted for (`trusted_depth`), at least one.
            penalty: The reward is r - penalty·u(s, a), with the uncertainty u.
            autoreset: One of gymnasium's modes: NextStep, SameStep or Disabled.

        Raises:
            UserError: The folder holds no starts, no time limit or no measured errors, or there is no such
                mode.
        """
        from mbo2o.model.env import ModelVectorEnv

        return ModelVectorEnv(self, num_envs, starts, self._horizon(horizon), penalty, autoreset)

    def as_env(
        self, starts: Array | None = None, horizon: int | str | None = None, penalty: float = 0.0
    ) -> ModelEnv:
        """The model as a single `gymnasium.Env`; the arguments are those of `as_vector_env`."""
        from mbo2o.model.env import ModelEnv

        return ModelEnv(self, starts, self._horizon(horizon), penalty)

    def _steps(self, horizon: str) -> int:
        """The number of steps that a word stands for."""
        if horizon != "trusted":
            raise UserError(f"horizon={horizon!r} is neither a number of steps nor 'trusted'")
        return max(1, self.trusted_depth())

    def _horizon(self, horizon: int | str | None) -> int:
        if isinstance(horizon, str):
            return self._steps(horizon)
        found = self.about.time_limit if horizon is None else horizon
        if found is None or found < 1:
            why = "the model's folder names no time limit" if horizon is None else f"horizon={horizon}"
            raise UserError(f"{why}; give horizon=, the steps of an episode, at least 1")
        return found

    # ---------------------------------------------------------------------------------------- what to trust

    def expected_error(self, depth: int | None = None) -> Any:
        """How far the mean of rollouts is off after `depth` steps, in standard deviations of the data.

        It was measured on recorded episodes, with their actions: the root mean square over branches and
        dimensions, where a deviation beyond 10 counts as 10. None: the errors of all depths from 1 on, as an
        array `(H,)`. A depth that was not measured has the error infinity.

        Raises:
            UserError: The folder holds no measurement.
        """
        errors = self._measured().error
        if depth is None:
            return errors.numpy().copy()
        if depth < 1:
            return 0.0
        return float(errors[depth - 1]) if depth <= len(errors) else math.inf

    def trusted_depth(self, error: float = 0.5, coverage: float = 0.8) -> int:
        """The last depth up to which the model is to be trusted, 0 if it is no step.

        Up to there the expected error stays at most `error`, and the intervals that should hold 90 % of what
        happens hold at least the share `coverage`. Raises `UserError` if the folder holds no measurement.
        """
        return self._measured().depth(error, coverage)

    def uncertainty_of_plan(
        self, obs: Array, actions: Array, particles: int = 20, seed: int = 0
    ) -> PlanUncertainty:
        """How sure the model is of what whole plans lead to: `particles` rollouts of each.

        Args:
            obs: `(..., D)`, where the plans begin; or `(D,)` for all of them.
            actions: `(..., H, A)` in the environment's units.
            particles: Rollouts of each plan, at least 2.
            seed: The draws follow from it.
        """
        from mbo2o.model.trust import plan_uncertainty

        return plan_uncertainty(self, obs, actions, particles, seed)

    def _measured(self) -> Trust:
        if self.trust is None:
            text = "the model's folder holds no errors by depth; `mbo2o model fit` measures them"
            raise UserError(f"{text}, or give it what mbo2o.model.trust.measure(dynamics, dataset) returns")
        return self.trust

    # ------------------------------------------------------------------------------------------ units, sizes

    def to_unit(self, act: Array) -> Tensor:
        """Actions `(..., A)` in the environment's units → [-1, 1]; `UserError` for one outside the box."""
        act = as_tensor(self, act)
        if not act.dim() or act.shape[-1] != self.act_dim:
            raise UserError(f"actions have the shape {tuple(act.shape)}, expected (..., {self.act_dim})")
        room = TOLERANCE * self._divisor
        # a comparison with NaN is false, so in this form NaN is refused
        fine = (act >= self._low - room) & (act <= self._high + room)
        if not bool(fine.all()):
            i, j = (int(x) for x in (~fine.reshape(-1, self.act_dim)).nonzero()[0])
            box = f"[{float(self._low[j]):g}, {float(self._high[j]):g}]"
            of = f"the box of {self.about.env_id}" if self.about.env_id else "the model's box"
            old = "" if self.about.bounded else " (its folder names no box, so actions are in [-1, 1])"
            found = float(act.reshape(-1, self.act_dim)[i, j])
            raise UserError(f"row {i}: action[{j}] = {found:g} lies outside {box}, {of}{old}")
        return ((act - self._middle) / self._divisor).clamp(-1, 1)

    def from_unit(self, act: Tensor) -> Tensor:
        """Actions `(..., A)` in [-1, 1] → the environment's units."""
        return self._middle + self._half * act

    # --------------------------------------------------------------------------------------------- on disk

    def save(self, folder: str | Path) -> None:
        """Write everything that `load_dynamics` needs into `folder`, which is made."""
        folder = Path(folder)
        self.net.save(folder, {**self.net.info, "env_id": self.about.env_id, "termination": self.about.rule})
        self.about.save(folder)
        if self.trust is not None:
            save_trust(folder, [self.trust])

    # ---------------------------------------------------------------------------------------------- inside

    def distribution(self, obs: Tensor, act: Tensor) -> tuple[Tensor, Tensor]:
        """Each elite's mean and standard deviation of (Δobs, reward), `(K, B, D+1)`, in the task's units."""
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

    def _rows(self, obs: Array, act: Array) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """Checked rows `(B, D)`, their actions `(B, A)` in [-1, 1], and the shape of the batch."""
        obs, act = as_tensor(self, obs), as_tensor(self, act)
        if not obs.dim() or not act.dim():
            raise UserError(f"expected observations (..., {self.obs_dim}) and actions (..., {self.act_dim})")
        lead = _lead(obs.shape[:-1], act.shape[:-1])
        flat = states_of(self, obs.expand(*lead, obs.shape[-1]))
        return flat, self.to_unit(act.expand(*lead, act.shape[-1])).reshape(-1, self.act_dim), lead


def as_tensor(dynamics: Dynamics, x: Array) -> Tensor:
    """`x` as float32 on the model's device."""
    x = x if isinstance(x, Tensor) else torch.from_numpy(np.asarray(x))
    return x.to(dynamics.device, torch.float32)


def states_of(dynamics: Dynamics, obs: Array) -> Tensor:
    """`(..., D)` as rows `(B, D)`; `UserError` for another size and for numbers that are not finite."""
    obs, width = as_tensor(dynamics, obs), dynamics.obs_dim
    if not obs.dim() or obs.shape[-1] != width:
        raise UserError(f"observations have the shape {tuple(obs.shape)}, expected (..., {width})")
    flat = obs.reshape(-1, width)
    if not bool(flat.isfinite().all()):
        i, j = (int(x) for x in (~flat.isfinite()).nonzero()[0])
        raise UserError(f"row {i}: observation[{j}] is {float(flat[i, j])}, expected a finite number")
    return flat


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
    return Dynamics(net.eval().requires_grad_(False), about, read_trust(folder, seed), penalty)


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
