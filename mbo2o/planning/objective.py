"""What a plan is worth in a model: the objective that every planner maximises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mbo2o.types import Prepare

BROKEN = -1e30
"""The value of a plan that leads to a number that is not finite; it is below that of any other plan."""
STEPS = 8
"""At most so many steps of a plan are one compiled program: more take long to compile, and each call of a
program costs as much as a third of a step."""
ROWS = 4096
"""Rows that go through a model's step at a time: intermediate results of so many fit a CPU's cache."""

Policy = Callable[[Tensor], Tensor]
"""Observations `(N, D)` → actions `(N, A)` in [-1, 1]."""
Value = Callable[[Tensor], Tensor]
"""Observations `(N, D)` → the discounted return that is expected from there, `(N,)`."""

Step = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor, Tensor, Tensor]]
"""(obs `(N, D)`, act `(N, A)` in [-1, 1], generator) → next obs, reward, ended, uncertainty, the last three
`(N,)`."""


class Model(Protocol):
    """A step of a model, such as `Members` or, made of a function of rows, `OfRows`."""

    def draw(self, particles: int, steps: int, generator: torch.Generator) -> Sequence[Any]:
        """The randomness of each of so many steps, which does not depend on the number of plans."""
        ...

    def __call__(self, obs: Tensor, act: Tensor, drawn: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(obs `(P, N, D)`, act `(P, N, A)`) → next obs, reward, whether the episode ends, uncertainty.

        The last three are `(P, N)`. P are particles, independent futures of the same N plans. `drawn` is the
        randomness of this step.
        """
        ...


class Rated(NamedTuple):
    """What a model expects of plans, each `(B, S)`: means over the particles."""

    value: Tensor
    """The objective; `BROKEN` for a plan with a particle that leaves the finite numbers."""
    reward: Tensor
    """The sum of rewards, neither discounted nor penalised."""
    uncertainty: Tensor
    """The mean of u over the steps before the end; 0 if the model does not measure it."""
    length: Tensor
    """Steps before the end."""


class Sums(NamedTuple):
    """What a rating has summed up so far, `(P, N)` each."""

    value: Tensor
    reward: Tensor
    uncertainty: Tensor
    length: Tensor
    alive: Tensor
    """Whether the particle goes on."""
    broken: Tensor
    """Whether it has left the finite numbers."""


class Objective:
    """The value of a plan: the mean over particles of Σ_{t<H} γ^t alive_t (r_t - λ u_t) + γ^H alive_H V(s_H).

    alive_t is 1 until the model says that the episode ends; the step that ends it counts. Every candidate
    and every state meets the same draws of the model, as drawn for the call: plans then differ by their
    actions alone, and a state's plan does not depend on the states that are planned for beside it.
    """

    def __init__(
        self,
        model: Model,
        *,
        gamma: float = 1.0,
        coef: float = 0.0,
        particles: int = 1,
        value: Value | None = None,
        prepare: Prepare = lambda step: step,
    ):
        """Make the objective.

        coef: λ, the weight of the uncertainty u. value: V, such as the critics' value of the policy's action;
        None is 0. prepare: turns the step of a rating into the one that is run, such as a compiled one.
        """
        self.model, self.gamma, self.coef = model, gamma, coef
        self.particles, self.value = particles, value
        self._advance = prepare(self._steps)

    @torch.no_grad()
    def rate(self, obs: Tensor, plans: Tensor, generator: torch.Generator) -> Rated:
        """What the model expects from `obs` `(B, D)` on, for plans `(B, S, H, A)`; neither is changed."""
        b, s, steps = plans.shape[:3]
        starts = obs.unsqueeze(1).expand(b, s, -1).flatten(0, 1)
        n = -(-b * s * self.particles // ROWS)
        drawn = self.model.draw(self.particles, steps, generator)
        state, parts = generator.get_state(), []
        for rows, acts in zip(starts.tensor_split(n), plans.flatten(0, 1).tensor_split(n), strict=True):
            generator.set_state(state)  # if a model still draws, each part meets the same draws
            parts.append(self._rate(rows, acts, drawn))
        return Rated(*(torch.cat(x).unflatten(0, (b, s)) for x in zip(*parts, strict=True)))

    def _rate(self, obs: Tensor, plans: Tensor, drawn: Sequence[Any]) -> Rated:
        """The same for rows `(N, D)` and plans `(N, H, A)`, each `(N,)`."""
        state = obs.expand(self.particles, *obs.shape).contiguous()
        # a tensor of its own for each, since a compiler makes another program where two are the same one
        a, b, c, d = (torch.zeros(state.shape[:2], device=obs.device) for _ in range(4))
        sums = Sums(a, b, c, d, a == 0, a != 0)
        discount = torch.tensor([self.gamma**t for t in range(len(drawn) + 1)], device=obs.device)
        for t in range(0, len(drawn), STEPS):
            some = slice(t, t + STEPS)
            state, sums = self._advance(state, plans[:, some], drawn[some], discount[:-1][some], sums)
        total, reward, u_sum, length, alive, broken = sums
        if self.value is not None:
            tail = self.value(state.flatten(0, 1)).unflatten(0, state.shape[:2])
            broken = broken | (alive & ~tail.isfinite())
            total = total + discount[-1] * torch.where(alive & ~broken, tail, 0.0)
        worth = torch.where(broken.any(0), BROKEN, total.mean(0))
        return Rated(worth, reward.mean(0), (u_sum / length.clamp(min=1)).mean(0), length.mean(0))

    def _steps(
        self, state: Tensor, plans: Tensor, drawn: Sequence[Any], discount: Tensor, sums: Sums
    ) -> tuple[Tensor, Sums]:
        """Some steps of plans `(N, T, A)`, from states `(P, N, D)`; a function that can be compiled."""
        for act, random, gamma in zip(plans.unbind(1), drawn, discount.unbind(), strict=True):
            state, sums = self._step(state, act, random, gamma, sums)
        return state, sums

    def _step(
        self, state: Tensor, act: Tensor, random: Any, gamma: Tensor, sums: Sums
    ) -> tuple[Tensor, Sums]:
        total, reward, u_sum, length, alive, broken = sums
        after, r, ended, u = self.model(state, act.expand(self.particles, -1, -1), random)
        gain = r - self.coef * u if self.coef else r
        fine = after.isfinite().all(-1) & gain.isfinite()
        broken = broken | (alive & ~fine)
        alive = alive & fine
        total = total + gamma * torch.where(alive, gain, 0.0)
        reward = reward + torch.where(alive, r, 0.0)
        u_sum = u_sum + torch.where(alive, u, 0.0)
        length = length + alive
        alive = alive & ~ended
        # a finished particle stays where it was, so that it cannot reach infinity
        state = torch.where(alive.unsqueeze(-1), after, state)
        return state, Sums(total, reward, u_sum, length, alive, broken)

    @torch.no_grad()
    def follow(
        self, obs: Tensor, policy: Policy, n: int, horizon: int, spread: float, generator: torch.Generator
    ) -> Tensor:
        """Plans `(B, n, H, A)` that a policy makes in the model from `obs` `(B, D)`.

        The first follows the policy itself, the others add normal noise of size `spread` to each action.
        """
        state = obs.unsqueeze(1).expand(-1, n, -1).flatten(0, 1)
        acts: list[Tensor] = []
        for drawn in self.model.draw(1, horizon, generator):
            act = policy(state).unflatten(0, (len(obs), n))
            noise = torch.randn(n, act.shape[-1], generator=generator, device=act.device)
            noise[0] = 0.0
            acts.append((act + spread * noise).clamp(-1, 1))
            after = self.model(state[None], acts[-1].flatten(0, 1)[None], drawn)[0][0]
            state = torch.where(after.isfinite().all(-1, keepdim=True), after, state)
        return torch.stack(acts, 2)


class OfRows:
    """A function of rows, such as the true dynamics, as a model of particles."""

    def __init__(self, step: Step):
        self._step = step

    def draw(self, particles: int, steps: int, generator: torch.Generator) -> Sequence[torch.Generator]:
        """The function draws for itself."""
        return [generator] * steps

    def __call__(
        self, obs: Tensor, act: Tensor, drawn: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `Model`."""
        after, *rest = self._step(obs.flatten(0, 1), act.flatten(0, 1), drawn)
        r, ended, u = (x.unflatten(0, obs.shape[:2]) for x in rest)
        return after.unflatten(0, obs.shape[:2]), r, ended, u
