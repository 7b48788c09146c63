"""S environments stepped together, one per seed; after a restart, episodes go on with the same bits."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mbo2o.envs import streams
from mbo2o.envs.box import ActionBox
from mbo2o.envs.disturb import DisturbConfig
from mbo2o.envs.faults import EnvironmentFault, Faults, describe, flag, observation, reward
from mbo2o.envs.make import EnvChoice, make_env, time_limited
from mbo2o.types import Batch, UserError

if TYPE_CHECKING:
    import gymnasium

Taken = tuple[np.ndarray, float, np.ndarray, bool, bool]
"""A step of one lane: observation, reward, next observation, terminated, truncated."""
Ended = tuple[int, float, int]
"""An episode that ended: its lane, its return, its length."""


class Lane:
    """One environment with its current episode. Agents act in [-1, 1]; the lane maps that to the action box.

    The first episode begins with `reset(seed=seed)`, as gymnasium asks, and later ones without a seed. Where
    a task has no time limit (`capped`), its episodes are truncated after the choice's `cap` steps.

    `reset` and `step` raise `EnvironmentFault` if the environment fails. The episode in flight is then as it
    was before, and the next `reset` makes another environment, which draws where the failed one stopped.
    """

    def __init__(
        self,
        env: str | EnvChoice,
        seed: int,
        disturb: DisturbConfig | None = None,
        faults: Faults | None = None,
        resumes: bool = True,
    ):
        """Make the environment and begin an episode; without `resumes`, nothing is kept for `state`."""
        self._resumes = resumes
        self._globals_at_reset: dict[str, Any] | None = None
        self._draws_globally: bool | None = None  # None: not known yet
        self.length = 0
        self._choice, self._disturb, self._faults = EnvChoice.of(env), disturb, faults or Faults()
        self.env_id = self._choice.id
        self.env = self._make()
        space: Any = self.env.action_space  # boxes, as make_env checks
        obs_space: Any = self.env.observation_space
        self.box = ActionBox(space)
        self.obs_dim, self.act_dim = obs_space.shape[0], self.box.size
        self._broken = False
        self.start(seed)

    def _make(self) -> gymnasium.Env:
        env = make_env(self._choice)
        import gymnasium

        from mbo2o.envs.disturbed import Disturbed

        self.capped = False
        if self._choice.cap is not None and not time_limited(env):
            self.capped = True
            env = gymnasium.wrappers.TimeLimit(env, self._choice.cap)
        changed = self._disturb and self._disturb != DisturbConfig()
        return Disturbed(env, self._disturb) if self._disturb and changed else env

    def _replace(self) -> None:
        """Replace an environment that failed; the new one gets its generators, for exact restarts."""
        old = self.env
        with contextlib.suppress(Exception), self._faults:
            old.close()
        try:
            self.env = self._make()
        except UserError as e:
            raise EnvironmentFault(str(e)) from e
        streams.hand_on(old, self.env)

    def start(self, seed: int) -> None:
        """Begin the episode of `seed`, the same each time if the environment draws from seeded generators.

        Seeded are `np_random`, even if the environment's `reset` ignores the seed, the spaces, and whatever
        `reset` itself seeds. The caller seeds the global generators.
        """
        if self._broken:
            self._replace()
            self._broken = False
        from gymnasium.utils import seeding

        raw = self.env.unwrapped
        raw.np_random, _ = seeding.np_random(seed)
        for space in (raw.action_space, raw.observation_space):
            space.seed(seed)
        self.reset(seed)

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode and keep what is needed to replay it. Only `start` gives a seed."""
        if self._broken:
            self._replace()
        if self._resumes:
            self._note_generators(seed)
        self._actions: list[np.ndarray] = []
        self.obs = np.full(self.obs_dim, np.nan, np.float32)
        self.episode_return, self.length, self.truncated = 0.0, 0, False
        self.success: bool | None = (
            None  # whether `info` reported success in any step so far; None: it reports none
        )
        self._broken = True
        try:
            with self._faults:
                obs, _ = self.env.reset(seed=seed)
            self.obs = observation(obs, self.obs_dim)
        except UserError:
            raise
        except Exception as e:
            raise EnvironmentFault(f"environment {self.env_id!r}: reset failed: {describe(e)}") from e
        self._broken = False

    def _note_generators(self, seed: int | None) -> None:
        """Keep the generators' states; those of the global ones, slow to read, only if they are used."""
        before = self._globals_at_reset
        if self._draws_globally is None and before is not None and self.length:
            self._draws_globally = not streams.globals_stand_at(before)
        self._globals_at_reset = None if self._draws_globally is False else streams.globals_state()
        self._seed_at_reset, self._rng_at_reset = seed, streams.states(self.env)

    def step(self, act: np.ndarray) -> tuple[float, np.ndarray, bool, bool]:
        """Act and return (reward, next observation, terminated, truncated). The caller resets."""
        act = np.array(act, np.float32)  # a copy, so that the replay repeats what was done
        self._broken = True
        try:
            with self._faults:
                obs, paid, terminated, truncated, info = self.env.step(self.box(act))
            after, rew = observation(obs, self.obs_dim), reward(paid)
            raw = reward(info.get("undisturbed_reward", paid))
            terminated, truncated = flag(terminated, "terminated"), flag(truncated, "truncated")
            reported = info.get("success", info.get("is_success"))
            success = None if reported is None or np.ndim(reported) else bool(reported)
        except UserError:
            raise
        except Exception as e:
            raise EnvironmentFault(f"environment {self.env_id!r}: step failed: {describe(e)}") from e
        self._broken = False
        self._actions.append(act)
        self.obs = after
        self.episode_return += raw
        if success is not None:
            self.success = success or bool(self.success)
        self.length += 1
        self.truncated = truncated and not terminated
        return rew, after, terminated, self.truncated

    @property
    def broken(self) -> bool:
        """Whether the environment failed since the last reset."""
        return self._broken

    @property
    def actions(self) -> np.ndarray:
        """The actions since the last reset, `(T, A)` float32 in [-1, 1]."""
        return np.array(self._actions, np.float32).reshape(len(self._actions), self.act_dim)

    def take_back(self, obs: np.ndarray) -> None:
        """Undo the last step, done at `obs`, for `state` alone: the environment itself stays ahead."""
        self._actions.pop()
        self.obs = obs

    def state(self) -> tuple[dict[str, Tensor], str]:
        """What resumes the episode in flight: actions, latest observation, and generators before its reset.

        The global generators are included if something was drawn from them since.
        """
        acts = self.actions
        rng = self._rng_at_reset | ({} if self._seed_at_reset is None else {"seed": self._seed_at_reset})
        if self._globals_at_reset is not None and not streams.globals_stand_at(self._globals_at_reset):
            rng |= {"globals": self._globals_at_reset}
        tensors = {"actions": torch.from_numpy(acts), "obs": torch.from_numpy(self.obs.copy())}
        return tensors, streams.dumps(rng)

    def load(self, tensors: dict[str, Tensor], rng: str) -> bool:
        """Replay the episode that `state` describes. True if its bits agree; else false, in a new episode.

        Positions and velocities alone do not resume MuJoCo exactly, because of solver warm starts; the
        actions since the reset do. The global generators are left as they were.
        """
        saved = streams.loads(rng)
        seed, of_process = (saved.pop(name, None) for name in ("seed", "globals"))
        streams.restore(self.env, saved)
        with streams.private():
            if of_process is not None:
                streams.set_globals(of_process)
            self.reset(seed)
            for act in tensors["actions"].numpy():
                self.step(act)
        exact = np.array_equal(self.obs, tensors["obs"].numpy())
        if not exact:
            text = "an episode in flight did not replay exactly: a new one is started"
            warnings.warn(text, stacklevel=2)
            self.reset()
        return exact

    def follows(self, seed: int) -> tuple[bool, bool]:
        """Whether starts follow a seed, and whether they follow saved generator states; resets four times."""
        seeded, saved = [], []
        for _ in range(2):
            streams.seed_globals(seed)
            self.start(seed)
            seeded.append(self.obs)
        before, of_process = streams.states(self.env), streams.globals_state()
        for _ in range(2):
            streams.restore(self.env, before)
            streams.set_globals(of_process)
            self.reset()
            saved.append(self.obs)
        return np.array_equal(seeded[0], seeded[1]), np.array_equal(saved[0], saved[1])

    def unrepeatable(self, seed: int) -> str | None:
        """A sentence on random draws of the environment that cannot be repeated; None if all can be."""
        try:
            seeded, saved = self.follows(seed)
        except EnvironmentFault:
            return None  # the next reset meets the fault again, where it can be repaired
        if seeded and saved:
            return None
        if seeded:
            text = "its starts do not follow a saved random state, so a restart goes on with other episodes"
        else:
            text = "its starts do not follow the seed: evaluations and equal runs have other starts each time"
        cure = "draw in reset from self.np_random, from a generator that is an attribute, or from np.random"
        return f"environment {self.env_id!r}: {text} ({cure})"


class Lanes:
    """One `Lane` per seed; lane k is seeded `seed + k`.

    If the environment of lane k fails, the episode in flight ends with the step before, `cut(k)` is called,
    and another environment begins an episode. When `faults` allows no more, the fault is raised, and `state`
    describes all lanes as they were before the turn.
    """

    def __init__(
        self,
        env: str | EnvChoice,
        seeds: tuple[int, ...],
        seed: int,
        disturb: DisturbConfig | None = None,
        faults: Faults | None = None,
        cut: Callable[[int], None] = lambda k: None,
    ):
        self._seeds, self._cut, self._faults = seeds, cut, faults or Faults()
        n = int(np.prod(seeds, dtype=int))
        self._lanes = [Lane(env, seed + k, disturb, self._faults) for k in range(n)]
        first = self._lanes[0]
        self.obs_dim, self.act_dim, self.capped = first.obs_dim, first.act_dim, first.capped
        self.box = first.box
        self._fault: EnvironmentFault | None = (
            None  # met in a reset after a turn was done; raised in the next turn
        )

    def check(self) -> None:
        """Raise the fault of a reset that was met after the last turn was done."""
        if self._fault is not None:
            raise self._fault

    def obs(self) -> Tensor:
        """The latest observation of each lane: `(*S, 1, D)`."""
        self.check()
        return self._vectors([x.obs for x in self._lanes])

    def step(self, act: Tensor) -> tuple[Batch, Tensor, list[Ended]]:
        """Take the actions `(*S, 1, A)`.

        Returns transitions `(*S, 1, ...)`, truncations `(*S, 1)` and the episodes that ended.
        """
        act = act.cpu()
        taken, ended = self.take(act.reshape(len(self._lanes), -1).numpy())
        obs, rews, nexts, done, cut = zip(*taken, strict=True)
        batch = Batch(self._vectors(obs), act, self._scalars(rews), self._vectors(nexts), self._scalars(done))
        return batch, self._scalars(cut), ended

    def take(self, acts: np.ndarray) -> tuple[list[Taken], list[Ended]]:
        """Take the actions `(S, A)`, one in each lane; returns a step of each, and episodes that ended."""
        self.check()
        taken: list[Taken] = []
        for k, a in enumerate(acts):
            try:
                taken.append(self._step(k, a))
            except EnvironmentFault:
                for lane, before in zip(self._lanes, taken, strict=False):
                    lane.take_back(before[0])
                raise
        ended = []
        for k, (_, _, _, terminated, truncated) in enumerate(taken):
            if terminated or truncated:
                ended.append((k, self._lanes[k].episode_return, self._lanes[k].length))
        for k, _, _ in ended:
            self._reset(k)
        return taken, ended

    def _scalars(self, x: Sequence[Any]) -> Tensor:
        """One number per lane as `(*S, 1)`."""
        return torch.tensor(x, dtype=torch.float32).reshape(*self._seeds, 1)

    def _vectors(self, x: Sequence[np.ndarray]) -> Tensor:
        """One vector per lane as `(*S, 1, D)`."""
        return torch.from_numpy(np.array(x).reshape(*self._seeds, 1, -1))

    def _step(self, k: int, act: np.ndarray) -> Taken:
        """Lane k's observation before its step, and what the step gave; after a fault, in a new episode."""
        lane = self._lanes[k]
        while True:
            try:
                if lane.broken:
                    lane.reset()
                return lane.obs, *lane.step(act)
            except EnvironmentFault as e:
                self._faults.accept(e)
                if lane.length:
                    self._cut(k)

    def _reset(self, k: int) -> None:
        """Begin lane k's next episode."""
        while True:
            try:
                return self._lanes[k].reset()
            except EnvironmentFault as e:
                try:
                    self._faults.accept(e)
                except EnvironmentFault as last:
                    self._fault = last
                    return None

    def state(self) -> tuple[dict[str, Tensor], list[str]]:
        """The tensors and generator states of all lanes."""
        tensors: dict[str, Tensor] = {}
        rngs: list[str] = []
        for k, lane in enumerate(self._lanes):
            t, rng = lane.state()
            tensors |= {f"{k}.{name}": x for name, x in t.items()}
            rngs.append(rng)
        return tensors, rngs

    def load(self, tensors: dict[str, Tensor], rngs: list[str]) -> None:
        """Restore what `state` returned. An episode that cannot be resumed is cut, and a new one begins."""
        for k, (lane, rng) in enumerate(zip(self._lanes, rngs, strict=True)):
            actions, obs = (tensors[f"{k}.{name}"] for name in ("actions", "obs"))
            try:
                exact = lane.load({"actions": actions, "obs": obs}, rng)
            except EnvironmentFault as e:
                self._faults.accept(e)
                self._reset(k)
                exact = False
            if not exact and len(actions):
                self._cut(k)
