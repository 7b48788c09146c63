"""Initial networks that depend on their own seed alone, however many seeds are trained side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from mbo2o.types import Spec

M = TypeVar("M", bound=nn.Module)


def per_seed(make: Callable[[Spec], M], spec: Spec) -> M:
    """`make(spec)`, in which seed k starts as it would alone, by draws from generator k of `spec.inits`.

    This holds for every tensor of the module's state whose first axis is that of the seeds. torch's own
    random stream is left where it was. Without `spec.inits` this is `make(spec)`, drawn from torch's stream.
    """
    if not spec.inits:
        return make(spec)
    devices = [spec.device] if torch.device(spec.device).type == "cuda" else []
    with torch.random.fork_rng(devices):
        together = make(spec)
        for k, generator in enumerate(spec.inits):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            alone = make(replace(spec, seeds=(1,), inits=())).state_dict()
            for name, x in together.state_dict().items():
                if x.dim() and x.shape[1:] == alone[name].shape[1:]:
                    x[k : k + 1].copy_(alone[name])
    return together
