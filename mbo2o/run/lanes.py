"""S environments stepped together, one per seed, with episodes that survive a restart exactly."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import json
import warnings
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
    """One environment with its current episode. Agents act in [-1, 1]; the lane maps that to the action box."""

    def __init__(self, env_id: str, seed: int, disturb: DisturbConfig | None = None):
        self.env = make_env(env_id)
        if disturb and disturb != DisturbConfig():
            self.env = Disturbed(self.env, disturb)
        space, obs_space = self.env.action_space, self.env.observation_space
        assert isinstance(space, gymnasium.spaces.Box)  # make_env saw to it
        assert isinstance(obs_space, gymnasium.spaces.Box)
        self._mid, self._half = (space.high + space.low) / 2, (space.high - space.low) / 2
        self.obs_dim, self.act_dim = obs_space.shape[0], space.shape[0]
        # seed the generator here, so that every reset, the first too, draws from a state that can be saved
        self.env.unwrapped.np_random, _ = gymnasium.utils.seeding.np_random(seed)
        self.reset()

    def reset(self) -> None:
        """Start an episode; what is needed to replay it is kept."""
        self._rng_at_reset = copy.deepcopy(self.env.unwrapped.np_random.bit_generator.state)
        self._actions: list[np.ndarray] = []
        self.obs = self.env.reset()[0].astype(np.float32)
        self.episode_return, self.length, self.truncated = 0.0, 0, False

    def step(self, act: np.ndarray) -> tuple[float, np.ndarray, bool, bool]:
        """Act and return (reward, next observation, terminated, truncated); resetting is the caller's."""
        act = np.array(act, np.float32)  # a copy: what is replayed is what was done
        self._actions.append(act)
        obs, rew, terminated, truncated, info = self.env.step(self._mid + self._half * act)
        self.obs = obs.astype(np.float32)
        self.episode_return += float(info.get("undisturbed_reward", rew))
        self.length += 1
        self.truncated = bool(truncated) and not terminated
        return float(rew), self.obs, bool(terminated), self.truncated

    def state(self) -> tuple[dict[str, Tensor], str]:
        """What resumes the episode in flight: its actions and where it stands, and the RNG before its reset."""
        acts = np.array(self._actions, np.float32).reshape(len(self._actions), len(self._mid))
        return {"actions": torch.from_numpy(acts), "obs": torch.from_numpy(self.obs.copy())}, json.dumps(
            self._rng_at_reset, default=_plain
        )

    def load(self, tensors: dict[str, Tensor], rng: str) -> None:
        """Replay the episode: bit for bit the same, or a warning and a fresh episode.

        Positions and velocities alone do not resume MuJoCo exactly (solver warm starts); the actions since the reset do.
        """
        self.env.unwrapped.np_random.bit_generator.state = json.loads(rng, object_hook=_unplain)
        self.reset()
        for act in tensors["actions"].numpy():
            self.step(act)
        if not np.array_equal(self.obs, tensors["obs"].numpy()):
            warnings.warn("an episode in flight did not replay exactly: it starts anew", stacklevel=2)
            self.reset()


class Lanes:
    """One `Lane` per seed; lane k is seeded `seed + k`."""

    def __init__(self, env_id: str, seeds: tuple[int, ...], seed: int, disturb: DisturbConfig | None = None):
        self._seeds = seeds
        self._lanes = [Lane(env_id, seed + k, disturb) for k in range(int(np.prod(seeds, dtype=int)))]
        self.obs_dim, self.act_dim = self._lanes[0].obs_dim, self._lanes[0].act_dim

    def obs(self) -> Tensor:
        """Where each lane stands: `(*S, 1, D)`."""
        return torch.from_numpy(np.stack([x.obs for x in self._lanes])).reshape(*self._seeds, 1, -1)

    def step(self, act: Tensor) -> tuple[Batch, Tensor, list[tuple[int, float, int]]]:
        """`(*S, 1, A)` → transitions `(*S, 1, ...)`, truncations `(*S, 1)`, finished episodes as (lane, return, length)."""
        acts = act.reshape(len(self._lanes), -1).cpu().numpy()
        obs, rews, nexts, flags, ended = self.obs(), [], [], [], []
        for k, (lane, a) in enumerate(zip(self._lanes, acts, strict=True)):
            rew, next_obs, terminated, truncated = lane.step(a)
            rews.append(rew)
            nexts.append(next_obs)
            flags.append((terminated, truncated))
            if terminated or truncated:
                ended.append((k, lane.episode_return, lane.length))
                lane.reset()
        scalar = lambda x: torch.tensor(x, dtype=torch.float32).reshape(*self._seeds, 1)  # noqa: E731
        after = torch.from_numpy(np.stack(nexts)).reshape(*self._seeds, 1, -1)
        batch = Batch(obs, act.cpu(), scalar(rews), after, scalar([f[0] for f in flags]))
        return batch, scalar([f[1] for f in flags]), ended

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
        """Restore what `state` returned."""
        for k, (lane, rng) in enumerate(zip(self._lanes, rngs, strict=True)):
            lane.load({name: tensors[f"{k}.{name}"] for name in ("actions", "obs")}, rng)


def _plain(x: Any) -> Any:
    return {"__array__": x.tolist(), "dtype": str(x.dtype)} if isinstance(x, np.ndarray) else int(x)


def _unplain(x: dict[str, Any]) -> Any:
    return np.array(x["__array__"], x["dtype"]) if "__array__" in x else x
