"""Steps on a GPU as graphs of kernels: one launch replays what otherwise takes hundreds."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from mbo2o.types import UserError

WARM = 2
"""Calls of each form that run kernel by kernel first, so that libraries choose kernels and workspaces."""


def capture(run: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """Record the kernels of `run` without running them: returns its results, which each replay fills.

    Random numbers of a replay go on in the stream of torch's generator, as if the kernels ran one by one.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    return out, graph.replay


class Captured:
    """A step that is captured once for each form of its arguments, and replayed from then on.

    The step reads and writes tensors that stay where they are, such as parameters. Its arguments are copied
    into the graph's own, and its results out of them. Two calls have the same form if their tensors agree in
    shape and all other values are equal.
    """

    def __init__(self, step: Callable[..., Any]):
        self._step = step
        self._calls: dict[Hashable, int] = {}
        self._graphs: dict[Hashable, tuple[list[Tensor], Any, Callable[[], None]]] = {}

    def __call__(self, *args: Any) -> Any:
        """Run the step on `args`."""
        given, key = tensors(args), _form(args)
        if key not in self._graphs:
            self._calls[key] = self._calls.get(key, 0) + 1
            if self._calls[key] <= WARM:
                return self._step(*args)
            self._graphs[key] = self._captured(args, given)
        inputs, out, replay = self._graphs[key]
        if inputs:
            torch._foreach_copy_(inputs, given)
        replay()
        return _map(torch.clone, out)

    def _captured(self, args: tuple[Any, ...], given: list[Tensor]) -> Any:
        inputs = [x.detach().clone() for x in given]
        own = dict(zip(map(id, given), inputs, strict=True))
        fixed = _map(lambda x: own[id(x)], args)
        try:
            out, replay = capture(lambda: self._step(*fixed))
        except torch.OutOfMemoryError as e:
            text = "the device has too little memory to capture a step"
            raise UserError(f"engine=graph: {text}; give engine=eager, fewer seeds or smaller nets") from e
        return inputs, out, replay


def tensors(x: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists, dicts and dataclasses, in order."""
    found: list[Tensor] = []

    def note(t: Tensor) -> Tensor:
        found.append(t)
        return t

    _map(note, x)
    return found


def _map(f: Callable[[Tensor], Any], x: Any) -> Any:
    """`x` with `f` applied to each tensor in nested tuples, lists, dicts and dataclasses."""
    if isinstance(x, Tensor):
        return f(x)
    if isinstance(x, dict):
        return {key: _map(f, value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(_map(f, value) for value in x)
    if is_dataclass(x) and not isinstance(x, type):
        return type(x)(**{field.name: _map(f, getattr(x, field.name)) for field in fields(x)})
    return x


def _form(x: Any) -> Hashable:
    """What two calls must have in common to be replays of one graph."""
    if isinstance(x, Tensor):
        return (x.shape, x.dtype)
    if isinstance(x, dict):
        return tuple((key, _form(value)) for key, value in x.items())
    if isinstance(x, list | tuple):
        return tuple(_form(value) for value in x)
    if is_dataclass(x) and not isinstance(x, type):
        return tuple(_form(getattr(x, field.name)) for field in fields(x))
    return x if isinstance(x, Hashable) else id(x)


def totals(updates: Sequence[dict[str, Tensor]]) -> list[tuple[dict[str, Tensor], int]]:
    """Sums of metrics over updates, with the number of updates that have them; in the order of the first."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for metrics in updates:
        for name, x in metrics.items():
            sums[name] = sums[name] + x if name in sums else x.detach()
            counts[name] = counts.get(name, 0) + 1
    return [
        ({name: sums[name] for name, n in counts.items() if n == count}, count)
        for count in dict.fromkeys(counts.values())
    ]
