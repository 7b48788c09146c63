"""S environments stepped together, one per seed, with episodes that survive a restart exactly."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from mbo2o.envs import streams
from mbo2o.envs.disturb import DisturbConfig, Disturbed
from mbo2o.envs.faults import EnvironmentFault, Faults, describe, flag, observation, reward
from mbo2o.envs.make import ActionBox, EnvChoice, make_env, time_limited
from mbo2o.types import Batch, UserError


class Lane:
    """One environment with its current episode. Agents act in [-1, 1]; the lane maps that to the action box.

    The first episode begins with `reset(seed=seed)`, as gymnasium asks, and later ones without a seed. An episode of a task
    without a time limit is cut (`truncated`) after the choice's `cap` steps; `capped` says whether that applies.

    `reset` and `step` raise `EnvironmentFault` if the environment does not do its part; an episode in flight then stands
    where it stood, and the next `reset` is another environment's, drawing where this one's left off.
    """

    def __init__(
        self,
        env: str | EnvChoice,
        seed: int,
        disturb: DisturbConfig | None = None,
        faults: Faults | None = None,
        resumes: bool = True,
    ):
        """`resumes`: whether `state` is going to be asked for; what it needs is kept only then."""
        self._resumes = resumes
        self._globals_at_reset: dict[str, Any] | None = None
        self._draws_globally: bool | None = None  # None: not known yet
        self.length = 0
        self._choice, self._disturb, self._faults = EnvChoice.of(env), disturb, faults or Faults()
        self.env_id = self._choice.id
        self.env = self._make()
        space, obs_space = self.env.action_space, self.env.observation_space
        assert isinstance(space, gymnasium.spaces.Box)  # make_env saw to it
        assert isinstance(obs_space, gymnasium.spaces.Box)
        self._box = ActionBox(space)
        self.obs_dim, self.act_dim = obs_space.shape[0], self._box.size
        self._broken = False
        self.start(seed)

    def _make(self) -> gymnasium.Env:
        env = make_env(self._choice)
        self.capped = False
        if self._choice.cap is not None and not time_limited(env):
            self.capped, env = True, gymnasium.wrappers.TimeLimit(env, self._choice.cap)
        changed = self._disturb and self._disturb != DisturbConfig()
        return Disturbed(env, self._disturb) if self._disturb and changed else env

    def _replace(self) -> None:
        """Another environment in place of one that failed; its generators are handed on, so that a restart can follow."""
        old = self.env
        with contextlib.suppress(Exception), self._faults:
            old.close()
        try:
            self.env = self._make()
        except UserError as e:
            raise EnvironmentFault(str(e)) from e
        streams.hand_on(old, self.env)

    def start(self, seed: int) -> None:
        """Begin the episode that belongs to `seed`: the same one each time, if the environment draws from what it reaches.

        A seed reaches `np_random`, also of an environment whose `reset` ignores the seed, the spaces, and whatever the
        environment's `reset(seed=seed)` hands it to. The global generators are the caller's.
        """
        if self._broken:
            self._replace()
            self._broken = False
        raw = self.env.unwrapped
        raw.np_random, _ = gymnasium.utils.seeding.np_random(seed)
        for space in (raw.action_space, raw.observation_space):
            space.seed(seed)
        self.reset(seed)

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode; what is needed to replay it is kept. Only `start` gives a seed."""
        if self._broken:
            self._replace()
        if self._resumes:
            self._note_generators(seed)
        self._actions: list[np.ndarray] = []
        self.obs = np.full(self.obs_dim, np.nan, np.float32)
        self.episode_return, self.length, self.truncated = 0.0, 0, False
        self.success: bool | None = None  # what `info` said of it in any step so far; None: nothing
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
        """Keep where the generators stand; the global ones, which cost, only if the first episode shows draws from them."""
        before = self._globals_at_reset
        if self._draws_globally is None and before is not None and self.length:
            self._draws_globally = not streams.globals_stand_at(before)
        self._globals_at_reset = None if self._draws_globally is False else streams.globals_state()
        self._seed_at_reset, self._rng_at_reset = seed, streams.states(self.env)

    def step(self, act: np.ndarray) -> tuple[float, np.ndarray, bool, bool]:
        """Act and return (reward, next observation, terminated, truncated); resetting is the caller's."""
        act = np.array(act, np.float32)  # a copy: what is replayed is what was done
        self._broken = True
        try:
            with self._faults:
                obs, paid, terminated, truncated, info = self.env.step(self._box(act))
            after, rew, raw = (
                observation(obs, self.obs_dim),
                reward(paid),
                reward(info.get("undisturbed_reward", paid)),
            )
            terminated, truncated = flag(terminated, "terminated"), flag(truncated, "truncated")
            told = info.get("success", info.get("is_success"))
            success = None if told is None or np.ndim(told) else bool(told)
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

    def take_back(self, obs: np.ndarray) -> None:
        """Have `state` tell of the episode before its last step, which was done at `obs`; only for a lane that ends here."""
        self._actions.pop()
        self.obs = obs

    def state(self) -> tuple[dict[str, Tensor], str]:
        """What resumes the episode in flight: its actions and where it stands, and its generators before its reset.

        The global generators are among them if the environment draws from them, and somebody has done so since.
        """
        acts = np.array(self._actions, np.float32).reshape(len(self._actions), self.act_dim)
        rng = self._rng_at_reset | ({} if self._seed_at_reset is None else {"seed": self._seed_at_reset})
        if self._globals_at_reset is not None and not streams.globals_stand_at(self._globals_at_reset):
            rng |= {"globals": self._globals_at_reset}
        return {"actions": torch.from_numpy(acts), "obs": torch.from_numpy(self.obs.copy())}, streams.dumps(
            rng
        )

    def load(self, tensors: dict[str, Tensor], rng: str) -> bool:
        """Replay the episode: bit for bit the same, and true; or false, after a warning, in a fresh episode.

        Positions and velocities alone do not resume MuJoCo exactly (solver warm starts); the actions since the reset do.
        The global generators stand afterwards where they stood before.
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
            warnings.warn("an episode in flight did not replay exactly: it starts anew", stacklevel=2)
            self.reset()
        return exact

    def follows(self, seed: int) -> tuple[bool, bool]:
        """Whether its starts follow a seed, and whether they follow the saved state of its generators; three resets."""
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


class Lanes:
    """One `Lane` per seed; lane k is seeded `seed + k`.

    A lane whose environment fails begins an episode in another one, after `cut(k)`: the one in flight ends with the step
    before. When `faults` are used up, the fault is raised, and `state` is where all stood before the turn.
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
        self.obs_dim, self.act_dim, self.capped = (
            self._lanes[0].obs_dim,
            self._lanes[0].act_dim,
            self._lanes[0].capped,
        )
        self._fault: EnvironmentFault | None = None  # one too many, met after a turn was done: the next one's

    def obs(self) -> Tensor:
        """Where each lane stands: `(*S, 1, D)`."""
        if self._fault is not None:
            raise self._fault
        return torch.from_numpy(np.stack([x.obs for x in self._lanes])).reshape(*self._seeds, 1, -1)

    def step(self, act: Tensor) -> tuple[Batch, Tensor, list[tuple[int, float, int]]]:
        """`(*S, 1, A)` → transitions `(*S, 1, ...)`, truncations `(*S, 1)`, finished episodes as (lane, return, length)."""
        if self._fault is not None:
            raise self._fault
        acts = act.reshape(len(self._lanes), -1).cpu().numpy()
        obs: list[np.ndarray] = []
        rews, nexts, flags = [], [], []
        for k, a in enumerate(acts):
            try:
                before, rew, next_obs, terminated, truncated = self._step(k, a)
            except EnvironmentFault:
                for lane, was in zip(self._lanes, obs, strict=False):
                    lane.take_back(was)
                raise
            obs.append(before)
            rews.append(rew)
            nexts.append(next_obs)
            flags.append((terminated, truncated))
        ended = [
            (k, self._lanes[k].episode_return, self._lanes[k].length)
            for k, over in enumerate(flags)
            if any(over)
        ]
        for k, _, _ in ended:
            self._reset(k)
        scalar = lambda x: torch.tensor(x, dtype=torch.float32).reshape(*self._seeds, 1)  # noqa: E731
        vector = lambda x: torch.from_numpy(np.stack(x)).reshape(*self._seeds, 1, -1)  # noqa: E731
        batch = Batch(vector(obs), act.cpu(), scalar(rews), vector(nexts), scalar([f[0] for f in flags]))
        return batch, scalar([f[1] for f in flags]), ended

    def _step(self, k: int, act: np.ndarray) -> tuple[np.ndarray, float, np.ndarray, bool, bool]:
        """Where lane k stood, and what its step gave; after a fault, the same action at the start of an episode."""
        lane = self._lanes[k]
        while True:
            try:
                if lane.broken:
                    lane.reset()
                return lane.obs, *lane.step(act)
            except EnvironmentFault as e:
                self._faults.mend(e)
                if lane.length:
                    self._cut(k)

    def _reset(self, k: int) -> None:
        """Begin lane k's next episode."""
        while True:
            try:
                return self._lanes[k].reset()
            except EnvironmentFault as e:
                try:
                    self._faults.mend(e)
                except EnvironmentFault as last:
                    self._fault = last
                    return None

    def state(self) -> tuple[dict[str, Tensor], list[str]]:
        """Tensors and RNG states of all lanes."""
        tensors: dict[str, Tensor] = {}
        rngs: list[str] = []
        for k, lane in enumerate(self._lanes):
            t, rng = lane.state()
            tensors |= {f"{k}.{name}": x for name, x in t.items()}
            rngs.append(rng)
        return tensors, rngs

    def load(self, tensors: dict[str, Tensor], rngs: list[str]) -> None:
        """Restore what `state` returned. An episode that cannot be resumed is cut, and another begun."""
        for k, (lane, rng) in enumerate(zip(self._lanes, rngs, strict=True)):
            actions, obs = (tensors[f"{k}.{name}"] for name in ("actions", "obs"))
            try:
                exact = lane.load({"actions": actions, "obs": obs}, rng)
            except EnvironmentFault as e:
                self._faults.mend(e)
                self._reset(k)
                exact = False
            if not exact and len(actions):
                self._cut(k)
