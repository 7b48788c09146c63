"""What a run remembers: tracked objects, its log, and checkpoints from which it resumes to the same bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mbo2o.agents.base import Agent
from mbo2o.envs import streams
from mbo2o.run.log import Means, MetricsFile
from mbo2o.run.world import World
from mbo2o.store import checkpoint
from mbo2o.types import UserError

Saved = tuple[dict[str, Tensor], dict[str, Any]]
"""The tensors and the state of a checkpoint."""


class Stateful(Protocol):
    """What can be tracked, such as a module or a buffer."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that a restart needs, as tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Restore what `state_dict` returned."""
        ...


class Restored(Exception):
    """A run that was opened only to be looked at has reached the place where it was saved."""


class Memory:
    """Saves a run and restores it.

    While a recipe is repeated up to the saved turn, `track` restores objects one by one. `resume` then
    restores the rest: random generators, episodes, means and the log. From there on the run is live.
    """

    def __init__(
        self,
        directory: Path,
        world: World,
        loggers: Sequence[str],
        *,
        start_from: Path | None,
        look_only: bool,
    ):
        """Read the latest checkpoint of `directory`, or else of `start_from`.

        UserError if `start_from` has none, or if a directory that is to be looked at has none.
        """
        self.means = Means()
        """Means of the training metrics since the last line of the log."""
        self._world, self._look_only, self._folder = world, look_only, directory / "checkpoints"
        self._tracked: dict[str, tuple[str, Stateful]] = {"online": ("online", world.online)}
        device = world.spec.device
        saved = checkpoint.latest(self._folder, device)
        if saved is None and look_only:
            raise UserError(f"{directory}: has no checkpoint yet")
        if saved is None and start_from is not None:
            saved = _take_over(start_from, directory, device)
        self._saved = saved
        self._file = None if look_only else MetricsFile(directory / "metrics.jsonl", loggers)
        if saved is not None:
            world.online.load_state_dict(_under("online/", saved[0]))
            # checkpoints of older versions do not store the largest reward
            world.meet(*(saved[1].get("largest") or (world.online.largest_reward(), "online")))
        elif self._file is not None:
            self._file.truncate(0)  # lines of a run that never reached a checkpoint

    @property
    def repeating(self) -> bool:
        """Whether the recipe is being repeated up to a checkpoint."""
        return self._saved is not None

    @property
    def done(self) -> dict[str, int]:
        """Turns done of each loop in the checkpoint that is to be resumed, in the order the loops began."""
        return {} if self._saved is None else dict(self._saved[1]["done"])

    def track(self, name: str, key: str, x: Stateful) -> None:
        """Save `x`, called `name`, under `key` from now on; restore it if the checkpoint has it."""
        self._tracked[name] = (key, x)
        if self._saved is not None and (state := _under(f"{key}/", self._saved[0])):
            try:
                x.load_state_dict(state)
            except RuntimeError as e:
                text = f"{key} does not fit what was saved ({first_line(e)})"
                raise UserError(f"{text}; the checkpoint is of a network with other settings") from e

    def agents(self) -> dict[str, Agent]:
        """The tracked agents by name."""
        return {name: x for name, (_, x) in self._tracked.items() if isinstance(x, Agent)}

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The parameters of all tracked modules, by the module's name and their own."""
        for name, (_, x) in self._tracked.items():
            if isinstance(x, nn.Module):
                yield from ((f"{name}.{key}", p) for key, p in x.named_parameters())

    def write(self, place: dict[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Append a line to the log; returns its values."""
        assert self._file is not None, "a run that is only looked at writes nothing"
        return self._file.write(place, metrics)

    def save(self, clock: dict[str, Any]) -> None:
        """Write a checkpoint. `clock` is the clock's own state: `done`, `owed`, `elapsed`."""
        assert self._file is not None, "a run that is only looked at saves nothing"
        sums, counts = self.means.state()
        lanes, lane_rngs = self._world.lanes.state()
        tensors = {f"means/{k}": v for k, v in sums.items()} | {f"lanes/{k}": v for k, v in lanes.items()}
        for key, x in self._tracked.values():
            tensors |= {f"{key}/{name}": v for name, v in x.state_dict().items()}
        tensors["rng/cpu"] = torch.get_rng_state()
        if self._world.spec.device != "cpu":
            tensors["rng/device"] = torch.cuda.get_rng_state(self._world.spec.device)
        state = {
            **clock,
            "counts": counts,
            "lanes": lane_rngs,
            "globals": streams.dumps(streams.globals_state()),
            "largest": self._world.largest,
            "agents": {key: x.described() for key, x in self._tracked.values() if isinstance(x, Agent)},
            "metrics_bytes": self._file.size(),
        }
        checkpoint.save(self._folder, sum(clock["done"].values()), tensors, state)

    def resume(self) -> dict[str, Any] | None:
        """Restore what `track` does not, before the first turn that is new; returns the clock's state.

        None if the run is live already. Raises `Restored` if the run is only looked at.
        """
        if self._look_only:
            raise Restored
        if self._saved is None:
            return None
        assert self._file is not None
        tensors, state = self._saved
        self.means.load(_under("means/", tensors), state["counts"])
        self._file.truncate(state["metrics_bytes"])
        of_process = (
            streams.loads(state["globals"]) if "globals" in state else None
        )  # None in old checkpoints
        if of_process is not None:
            streams.set_globals(
                of_process
            )  # lanes whose episode has drawn nothing yet expect to find them here
        lanes = {k: v.cpu() for k, v in _under("lanes/", tensors).items()}
        self._world.lanes.load(lanes, state["lanes"])
        if of_process is not None:
            streams.set_globals(of_process)  # a lane that could not be replayed has drawn a new episode
        torch.set_rng_state(tensors["rng/cpu"].cpu())
        if self._world.spec.device != "cpu":
            torch.cuda.set_rng_state(tensors["rng/device"].cpu(), self._world.spec.device)
        self._saved = None
        return state

    def close(self) -> None:
        """Close the log."""
        if self._file is not None:
            self._file.close()


def _take_over(other: Path, directory: Path, device: str) -> Saved:
    """The checkpoint of a finished offline phase, whose log becomes the beginning of this run's log."""
    saved = checkpoint.latest(other / "checkpoints", device)
    if saved is None:
        raise UserError(f"{other}: has no checkpoint to start from")
    if not all(key.startswith("offline.") for key in saved[1]["done"]):
        text = f"{other}: has gone on online"
        raise UserError(f"{text}; start_from needs a run that ended offline (recipe.online_steps=0)")
    past = (other / "metrics.jsonl").read_bytes()[: saved[1]["metrics_bytes"]]
    (directory / "metrics.jsonl").write_bytes(past)
    return saved


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return str(error).strip().splitlines()[0]


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
