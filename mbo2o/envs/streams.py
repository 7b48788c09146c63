"""The random generators that an environment draws from: its own ones, and the global ones of the process."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    import gymnasium

PLAIN = {int, float, bool, str, tuple, dict, type(None), np.ndarray, np.float64}
"""Types of most attributes; a look into this set costs a fifth of asking for a kind."""
KINDS = (np.random.Generator, np.random.RandomState, random.Random)


def own(env: Any) -> dict[str, Any]:
    """The generators that an environment keeps as attributes, by dotted path.

    Searched are its wrappers, the environment itself, environments inside it, and their spaces, but no other
    objects. The generator `env.unwrapped.np_random`, which every environment has, is left out.
    """
    import gymnasium

    found: dict[str, Any] = {}
    known = {id(env.unwrapped.np_random)}
    sought = (*KINDS, gymnasium.Env)

    def look(x: Any, path: str) -> None:
        known.add(id(x))
        for name, value in vars(x).items():
            if type(value) in PLAIN or id(value) in known or not isinstance(value, sought):
                continue
            if isinstance(value, gymnasium.Env):
                look(value, f"{path}{name}.")
            else:
                found[f"{path}{name}"] = value
        for name in ("action_space", "observation_space"):
            space = None if isinstance(x, gymnasium.Wrapper) else getattr(x, name, None)
            if (
                getattr(space, "_np_random", None) is not None
            ):  # a space creates its generator when it first draws
                found[f"{path}{name}._np_random"] = getattr(space, "_np_random")  # noqa: B009

    look(env, "")
    return found


def hand_on(old: gymnasium.Env, new: gymnasium.Env) -> None:
    """Give the generators of `old` to `new`, which then draws where `old` stopped."""
    new.unwrapped.np_random = old.unwrapped.np_random
    for path, generator in own(old).items():
        *holder, name = path.split(".")
        with contextlib.suppress(AttributeError):
            setattr(attrgetter(".".join(holder))(new) if holder else new, name, generator)


def states(env: gymnasium.Env) -> dict[str, Any]:
    """A copy of the generators' states: the fields of `np_random`, and the others, if any, under `own`."""
    state = _state(env.unwrapped.np_random)
    others = {path: _state(x) for path, x in own(env).items()}
    return {**state, "own": others} if others else state


def restore(env: gymnasium.Env, state: dict[str, Any]) -> None:
    """Set the generators to the states that `states` returned; generators that are gone are ignored."""
    there = own(env)
    for path, x in state.get("own", {}).items():
        if path in there:
            _set(there[path], x)
    env.unwrapped.np_random.bit_generator.state = {k: v for k, v in state.items() if k != "own"}


def seed_all(seed: int) -> None:
    """Seed the global generators of PyTorch, NumPy and Python."""
    torch.manual_seed(seed)
    seed_globals(seed)


def seed_globals(seed: int) -> None:
    """Seed the global generators of NumPy and Python, which some environments draw from."""
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


def globals_state() -> dict[str, Any]:
    """The states of the global generators of NumPy and Python."""
    return {"numpy": np.random.get_state(legacy=False), "python": random.getstate()}  # noqa: NPY002


def set_globals(state: dict[str, Any]) -> None:
    """Set the global generators to states from `globals_state`, also after `dumps` and `loads`."""
    np.random.set_state(state["numpy"])  # noqa: NPY002
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


def globals_stand_at(state: dict[str, Any]) -> bool:
    """Whether nothing was drawn from the global generators since `state`."""
    return state["python"] == random.getstate() and dumps(state["numpy"]) == dumps(globals_state()["numpy"])


@contextlib.contextmanager
def private() -> Iterator[None]:
    """Restore the global generators of NumPy and Python after the block."""
    before = globals_state()
    try:
        yield
    finally:
        set_globals(before)


def dumps(state: Any) -> str:
    """States as JSON."""
    return json.dumps(state, default=_plain)


def loads(text: str) -> Any:
    """States from JSON."""
    return json.loads(text, object_hook=_unplain)


def _state(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    return dict(generator.bit_generator.state)  # NumPy makes another one whenever it is asked


def _set(generator: Any, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate((state[0], tuple(state[1]), state[2]))
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.bit_generator.state = state


def _plain(x: Any) -> Any:
    return {"__array__": x.tolist(), "dtype": str(x.dtype)} if isinstance(x, np.ndarray) else int(x)


def _unplain(x: dict[str, Any]) -> Any:
    return np.array(x["__array__"], x["dtype"]) if "__array__" in x else x
