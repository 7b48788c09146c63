"""S environments stepped together, one per seed, with episodes that survive a restart exactly."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import torch
from torch import Tensor

from mbo2o.data.io import goals
from mbo2o.types import Batch, UserError

from .disturb import DisturbConfig, Disturbed
from .faults import EnvironmentFault, Faults, describe, flag, observation, reward

# MuJoCo prints and logs to a file in the working directory what gymnasium's models deprecate; real errors still raise
mujoco.set_mju_user_warning(lambda message: None)


def make_env(env_id: str) -> gymnasium.Env:
    """A gymnasium environment with Box observations and actions in a bounded box; UserError for anything else.

    Goal-conditioned observations come flat, as `goals.flatten` says. gymnasium-robotics' sparse mazes pay 1 within 0.45 m of
    the goal and 0 elsewhere. They end there, as D4RL's antmaze does and the package's default does not, so that an
    episode's return is its success, in {0, 1}. Its dense mazes go on until the time limit.
    """
    ends_at_goal = {"continuing_task": False} if goals.sparse_maze(env_id) else {}
    if goals.MAZE.fullmatch(env_id):
        _import_mazes(env_id)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            env = gymnasium.make(env_id, disable_env_checker=True, **ends_at_goal)
    except (gymnasium.error.Error, ImportError) as e:
        reason = " ".join(str(e).split())
        raise UserError(f"environment {env_id!r} cannot be made: {reason}") from e
    except Exception as e:  # the environment's own
        raise UserError(f"environment {env_id!r} cannot be made: {describe(e)}") from e
    obs, act = env.observation_space, env.action_space
    if isinstance(obs, gymnasium.spaces.Dict) and set(obs) == goals.KEYS:
        obs = gymnasium.spaces.Box(-np.inf, np.inf, goals.flatten(env.reset(seed=0)[0]).shape, np.float64)
        env = gymnasium.wrappers.TransformObservation(env, goals.flatten, obs)
    if path := getattr(env.unwrapped, "tmp_xml_file_path", None):
        Path(path).unlink(missing_ok=True)  # mazes leave one in /tmp each time
    if not (isinstance(obs, gymnasium.spaces.Box) and len(obs.shape) == 1):
        raise UserError(f"environment {env_id!r}: needs a flat Box of observations, found {obs}")
    if not (isinstance(act, gymnasium.spaces.Box) and act.is_bounded()):
        raise UserError(f"environment {env_id!r}: needs a bounded Box of actions, found {act}")
    return env


def _import_mazes(env_id: str) -> None:
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # it prints news of other environments
            importlib.import_module("gymnasium_robotics")  # registers
    except ImportError as e:
        raise UserError(f"environment {env_id!r} needs gymnasium-robotics: pip install 'mbo2o[mazes]'") from e


class Lane:
    """One environment with its current episode. Agents act in [-1, 1]; the lane maps that to the action box.

    `reset` and `step` raise `EnvironmentFault` if the environment does not do its part; an episode in flight then stands
    where it stood, and the next `reset` is another environment's, drawing where this one's left off.
    """

    def __init__(self, env_id: str, seed: int, disturb: DisturbConfig | None = None, faults: Faults | None = None):
        self._env_id, self._disturb, self._faults = env_id, disturb, faults or Faults()
        self.env = self._make()
        space, obs_space = self.env.action_space, self.env.observation_space
        assert isinstance(space, gymnasium.spaces.Box)  # make_env saw to it
        assert isinstance(obs_space, gymnasium.spaces.Box)
        self._mid, self._half = (space.high + space.low) / 2, (space.high - space.low) / 2
        self.obs_dim, self.act_dim = obs_space.shape[0], space.shape[0]
        self._broken = False
        # seed the generator here, so that every reset, the first too, draws from a state that can be saved
        self.env.unwrapped.np_random, _ = gymnasium.utils.seeding.np_random(seed)
        self.reset()

    def _make(self) -> gymnasium.Env:
        env = make_env(self._env_id)
        changed = self._disturb and self._disturb != DisturbConfig()
        return Disturbed(env, self._disturb) if self._disturb and changed else env

    def _replace(self) -> None:
        """Another environment in place of one that failed; the generator is handed on, so that a restart can follow."""
        generator, old = self.env.unwrapped.np_random, self.env
        with contextlib.suppress(Exception), self._faults:
            old.close()
        try:
            self.env = self._make()
        except UserError as e:
            raise EnvironmentFault(str(e)) from e
        self.env.unwrapped.np_random = generator

    def reset(self) -> None:
        """Start an episode; what is needed to replay it is kept."""
        self._rng_at_reset = copy.deepcopy(self.env.unwrapped.np_random.bit_generator.state)
        self._actions: list[np.ndarray] = []
        self.obs = np.full(self.obs_dim, np.nan, np.float32)
        self.episode_return, self.length, self.truncated = 0.0, 0, False
        self.success: bool | None = None  # what `info` said of it in any step so far; None: nothing
        if self._broken:
            self._replace()
        self._broken = True
        try:
            with self._faults:
                obs, _ = self.env.reset()
            self.obs = observation(obs, self.obs_dim)
        except UserError:
            raise
        except Exception as e:
            raise EnvironmentFault(f"environment {self._env_id!r}: reset failed: {describe(e)}") from e
        self._broken = False

    def step(self, act: np.ndarray) -> tuple[float, np.ndarray, bool, bool]:
        """Act and return (reward, next observation, terminated, truncated); resetting is the caller's."""
        act = np.array(act, np.float32)  # a copy: what is replayed is what was done
        self._broken = True
        try:
            with self._faults:
                obs, paid, terminated, truncated, info = self.env.step(self._mid + self._half * act)
            after, rew, raw = observation(obs, self.obs_dim), reward(paid), reward(info.get("undisturbed_reward", paid))
            terminated, truncated = flag(terminated, "terminated"), flag(truncated, "truncated")
            told = info.get("success", info.get("is_success"))
            success = None if told is None or np.ndim(told) else bool(told)
        except UserError:
            raise
        except Exception as e:
            raise EnvironmentFault(f"environment {self._env_id!r}: step failed: {describe(e)}") from e
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
        """What resumes the episode in flight: its actions and where it stands, and the RNG before its reset."""
        acts = np.array(self._actions, np.float32).reshape(len(self._actions), len(self._mid))
        return {"actions": torch.from_numpy(acts), "obs": torch.from_numpy(self.obs.copy())}, json.dumps(
            self._rng_at_reset, default=_plain
        )

    def load(self, tensors: dict[str, Tensor], rng: str) -> bool:
        """Replay the episode: bit for bit the same, and true; or false, after a warning, in a fresh episode.

        Positions and velocities alone do not resume MuJoCo exactly (solver warm starts); the actions since the reset do.
        """
        self.env.unwrapped.np_random.bit_generator.state = json.loads(rng, object_hook=_unplain)
        self.reset()
        for act in tensors["actions"].numpy():
            self.step(act)
        exact = np.array_equal(self.obs, tensors["obs"].numpy())
        if not exact:
            warnings.warn("an episode in flight did not replay exactly: it starts anew", stacklevel=2)
            self.reset()
        return exact


class Lanes:
    """One `Lane` per seed; lane k is seeded `seed + k`.

    A lane whose environment fails begins an episode in another one, after `cut(k)`: the one in flight ends with the step
    before. When `faults` are used up, the fault is raised, and `state` is where all stood before the turn.
    """

    def __init__(
        self,
        env_id: str,
        seeds: tuple[int, ...],
        seed: int,
        disturb: DisturbConfig | None = None,
        faults: Faults | None = None,
        cut: Callable[[int], None] = lambda k: None,
    ):
        self._seeds, self._cut, self._faults = seeds, cut, faults or Faults()
        n = int(np.prod(seeds, dtype=int))
        self._lanes = [Lane(env_id, seed + k, disturb, self._faults) for k in range(n)]
        self.obs_dim, self.act_dim = self._lanes[0].obs_dim, self._lanes[0].act_dim
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
        ended = [(k, self._lanes[k].episode_return, self._lanes[k].length) for k, over in enumerate(flags) if any(over)]
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


def _plain(x: Any) -> Any:
    return {"__array__": x.tolist(), "dtype": str(x.dtype)} if isinstance(x, np.ndarray) else int(x)


def _unplain(x: dict[str, Any]) -> Any:
    return np.array(x["__array__"], x["dtype"]) if "__array__" in x else x
