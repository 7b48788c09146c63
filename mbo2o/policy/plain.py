"""A graph of torch as a script for NumPy alone, one line for each operation."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from torch.export import ExportedProgram
from torch.fx import Node

from mbo2o.types import UserError

HEAD = '''"""A policy that needs NumPy alone: `from {stem} import predict`, then `action = predict(obs)`.

Its arrays are in {name}, beside this script. io.json says what observations and actions mean.
"""

from pathlib import Path

import numpy as np

W = dict(np.load(Path(__file__).with_name("{name}")))


def predict(observation):
    """Observations (n, {size}), or ({size},) for one → actions, in the environment's units."""
    given = np.asarray(observation, np.float32)
    obs = np.atleast_2d(given)
'''
TAIL = """    return {out} if given.ndim == 2 else {out}[0]
"""


def _norm(x: str, shape: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5, *rest: Any) -> str:
    axes = tuple(range(-len(shape), 0))
    found = f"({x} - {x}.mean({axes}, keepdims=True)) / np.sqrt({x}.var({axes}, keepdims=True) + {eps})"
    return f"({found})" + (f" * {weight}" if weight else "") + (f" + {bias}" if bias else "")


def _axes(axis: Any) -> Any:
    return tuple(axis) if isinstance(axis, list | tuple) else axis


OPERATIONS: dict[str, Callable[..., str]] = {
    "add": lambda a, b: f"{a} + {b}",
    "sub": lambda a, b: f"{a} - {b}",
    "mul": lambda a, b: f"{a} * {b}",
    "div": lambda a, b: f"{a} / {b}",
    "neg": lambda x: f"-{x}",
    "abs": lambda x: f"np.abs({x})",
    "exp": lambda x: f"np.exp({x})",
    "tanh": lambda x: f"np.tanh({x})",
    "sigmoid": lambda x: f"1 / (1 + np.exp(-{x}))",
    "relu": lambda x: f"np.maximum({x}, 0)",
    "silu": lambda x: f"{x} / (1 + np.exp(-{x}))",
    "elu": lambda x, a=1.0: f"np.where({x} > 0, {x}, {a} * np.expm1(np.minimum({x}, 0)))",
    "addmm": lambda b, x, w: f"{x} @ {w} + {b}",
    "baddbmm": lambda b, x, w: f"{x} @ {w} + {b}",
    "layer_norm": _norm,
    "clamp": lambda x, low=None, high=None: f"np.clip({x}, {low}, {high})",
    "minimum": lambda a, b: f"np.minimum({a}, {b})",
    "maximum": lambda a, b: f"np.maximum({a}, {b})",
    "gt": lambda a, b: f"{a} > {b}",
    "lt": lambda a, b: f"{a} < {b}",
    "where": lambda c, a, b: f"np.where({c}, {a}, {b})",
    "cat": lambda xs, axis=0: f"np.concatenate([{', '.join(xs)}], {axis})",
    "stack": lambda xs, axis=0: f"np.stack([{', '.join(xs)}], {axis})",
    "unsqueeze": lambda x, axis: f"np.expand_dims({x}, {axis})",
    "squeeze": lambda x, axis: f"np.squeeze({x}, {_axes(axis)})",
    "select": lambda x, axis, i: f"np.take({x}, {i}, {axis})",
    "amin": lambda x, axis, keep=False: f"{x}.min({_axes(axis)}, keepdims={keep})",
    "amax": lambda x, axis, keep=False: f"{x}.max({_axes(axis)}, keepdims={keep})",
    "mean": lambda x, axis, keep=False: f"{x}.mean({_axes(axis)}, keepdims={keep})",
    "sum": lambda x, axis, keep=False: f"{x}.sum({_axes(axis)}, keepdims={keep})",
    "std": lambda x, axis, correction=1, keep=False: (
        f"{x}.std({_axes(axis)}, ddof={correction}, keepdims={keep})"
    ),
    "split": lambda x, size, axis=0: f"np.split({x}, range({size}, {x}.shape[{axis}], {size}), {axis})",
    "expand": lambda x, shape: f"np.broadcast_to({x}, ({', '.join(map(str, shape))},))",
    "view": lambda x, shape: f"{x}.reshape({', '.join(map(str, shape))})",
    "sym_size": lambda x, axis: f"{x}.shape[{axis}]",
    "detach": lambda x: x,
    "alias": lambda x: x,
    "clone": lambda x: x,
    "dropout": lambda x, p, train: x,
    "getitem": lambda x, i: f"{x}[{i}]",
}
"""The operations that acting rules are made of, by torch's names, as text for NumPy."""


def script_of(program: ExportedProgram, name: str) -> tuple[str, dict[str, np.ndarray]]:
    """A script that computes what `program` does with arrays of the file `name`, and those arrays.

    Raises `UserError` for an operation that has no line in `OPERATIONS`.
    """
    signature = program.graph_signature
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    constants = {**program.state_dict, **program.constants}
    stored |= signature.inputs_to_lifted_tensor_constants
    arrays: dict[str, np.ndarray] = {}
    texts: dict[Node, str] = {}
    lines: list[str] = []

    def text(x: Any) -> Any:
        if isinstance(x, Node):
            return texts[x]
        return [text(y) for y in x] if isinstance(x, list | tuple) else x

    size = 0
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in stored:
            key = stored[node.name]
            texts[node] = f'W["{key}"]'
            if node.users:
                arrays[key] = constants[key].detach().numpy()
        elif node.op == "placeholder":
            texts[node], size = "obs", int(node.meta["val"].shape[-1])
        elif node.op == "call_function":
            texts[node] = node.name
            lines.append(f"    {node.name} = {_line(node, text)}\n")
        elif node.op == "output":
            (out,) = text(node.args[0])
            head = HEAD.format(stem=name.removesuffix(".npz"), name=name, size=size)
            return head + "".join(lines) + TAIL.format(out=out), arrays
    raise AssertionError("a graph ends with its output")


def _line(node: Node, text: Callable[[Any], Any]) -> str:
    target: Any = node.target
    kind = "getitem" if target is operator.getitem else getattr(target, "_opname", str(target))
    made = OPERATIONS.get(kind)
    keywords = {key: x for key, x in node.kwargs.items() if x is not None}
    try:
        if made is None:
            raise TypeError
        return made(*text(node.args), **{key: text(x) for key, x in keywords.items()})
    except TypeError:
        cure = "export to .onnx or .pt2 instead"
        raise UserError(f"the policy cannot be written for NumPy, because it uses {target}; {cure}") from None
