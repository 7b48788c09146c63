"""A policy as a graph of other programs: ONNX, torch's `.pt2`, or NumPy arrays with a script."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mbo2o.agents import Agent
from mbo2o.envs.box import ActionBox
from mbo2o.policy.facts import FILE
from mbo2o.policy.plain import script_of
from mbo2o.policy.policy import Policy
from mbo2o.store.whole import one_line, whole_file, write_whole, writing
from mbo2o.types import UserError

NEEDS = "export to .onnx needs onnx and onnxscript: pip install 'mbo2o[export]'"


class Acting(nn.Module):
    """From observations `(n, D)` to actions `(n, *shape)`, both in the environment's units."""

    middle: Tensor
    reach: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, agent: Agent, box: ActionBox):
        super().__init__()
        self.agent, self._shape = agent, box.shape
        parts = {"middle": box.mid, "reach": box.half, "low": box.low, "high": box.high}
        for name, x in parts.items():
            self.register_buffer(name, torch.from_numpy(x.astype(np.float32).reshape(1, -1)))

    def forward(self, obs: Tensor) -> Tensor:
        """The deterministic action, mapped to the box and kept inside."""
        act = self.middle + self.reach * self.agent.act(obs).clamp(-1, 1)
        act = torch.minimum(torch.maximum(act, self.low), self.high)
        return act if len(self._shape) == 1 else act.unflatten(-1, self._shape)


def export(policy: Policy, path: Path) -> Path:
    """See `Policy.export`."""
    if path.suffix not in WRITERS:
        raise UserError(
            f"{path}: a policy is exported to {', '.join(WRITERS)}; end the name with one of them"
        )
    program = _program(policy)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        WRITERS[path.suffix](program, path)
        write_whole(path.parent / FILE, json.dumps(policy.facts, indent=1))
    return path


def _program(policy: Policy) -> ExportedProgram:
    """The graph for any number of rows."""
    acting, example = Acting(policy.trimmed(), policy.box).eval(), torch.zeros(4, policy.obs_dim)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own deprecations
            traced = torch.export.export(acting, (example,), dynamic_shapes=({0: Dim("n", min=1)},))
            return traced.run_decompositions({})
    except Exception as e:  # torch raises many kinds
        name = policy.agent.described()["name"]
        reason = one_line(str(e).split("\n")[0] or type(e).__name__)
        raise UserError(f"the acting rule of {name!r} cannot be written as a graph ({reason})") from e


def _onnx(program: ExportedProgram, path: Path) -> None:
    try:
        import onnx  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
        import onnxscript  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
    except ImportError as e:
        raise UserError(NEEDS) from e
    names: dict[str, Any] = {"input_names": ["obs"], "output_names": ["action"]}
    chatter = logging.getLogger("torch.onnx")
    before = chatter.level
    chatter.setLevel(logging.ERROR)  # it warns of packages that a policy has no use for
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(program, (), dynamo=True, verbose=False, **names)
    finally:
        chatter.setLevel(before)
    assert made is not None
    _write(path, made.model_proto.SerializeToString())


def _pt2(program: ExportedProgram, path: Path) -> None:
    file = io.BytesIO()
    torch.export.save(program, file)
    _write(path, file.getvalue())


def _npz(program: ExportedProgram, path: Path) -> None:
    script, arrays = script_of(program, path.name)
    file = io.BytesIO()
    save: Any = np.savez  # its annotations take one array for another argument
    save(file, **arrays)
    _write(path, file.getvalue())
    write_whole(path.with_suffix(".py"), script)


def _write(path: Path, content: bytes) -> None:
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


WRITERS: dict[str, Callable[[ExportedProgram, Path], None]] = {".onnx": _onnx, ".pt2": _pt2, ".npz": _npz}
