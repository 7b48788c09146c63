"""Adam whose state is part of its module's, and Polyak averaging; losses are per seed, `(*S,)`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn


class Adam(nn.Module):
    """torch's fused Adam with its moments as buffers: the `state_dict` of the module that owns it holds them.

    The fused kernel is called directly, which takes half to two thirds of the time of `torch.optim.Adam.step`
    for small networks, and which a compiler can trace.
    weight_decay: one for each parameter; adds wd·p to its gradient, as wd/2·‖p‖² in the loss would.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        eps: float = 1e-8,
        weight_decay: Sequence[float] | None = None,
    ):
        super().__init__()
        self.lr, self.eps = lr, eps
        self._params = list(params)
        decays = [0.0] * len(self._params) if weight_decay is None else weight_decay
        self._alike: dict[float, list[int]] = {}
        for i, (_, decay) in enumerate(zip(self._params, decays, strict=True)):
            self._alike.setdefault(decay, []).append(i)
        for i, p in enumerate(self._params):
            self.register_buffer(f"step_{i}", torch.zeros((), dtype=torch.float32, device=p.device))
            self.register_buffer(f"mean_{i}", torch.zeros_like(p))
            self.register_buffer(f"square_{i}", torch.zeros_like(p))

    def step(self, loss: Tensor, share: Tensor | None = None) -> None:
        """Descend a per-seed loss `(*S,)` in this optimiser's parameters only.

        share: the share of the learning rate that applies now, `()` float64 on the device; None: all of it.

        The sum over seeds mixes nothing: parameters of different seeds share no term; Adam is elementwise.
        """
        # fused Adam reads memory in order, whatever the strides
        grads = [g.contiguous() for g in torch.autograd.grad(loss.sum(), self._params)]
        with torch.no_grad():
            lr = self.lr if share is None else self._rate(share)
            if torch.compiler.is_compiling():
                self._trace(grads, lr)
                return
            for decay, alike in self._alike.items():
                steps = self._state("step", alike)
                torch._foreach_add_(steps, 1)
                torch._fused_adam_(
                    [self._params[i] for i in alike],
                    [grads[i] for i in alike],
                    self._state("mean", alike),
                    self._state("square", alike),
                    [],
                    steps,
                    lr=lr,
                    beta1=0.9,
                    beta2=0.999,
                    weight_decay=decay,
                    eps=self.eps,
                    amsgrad=False,
                    maximize=False,
                )

    def _trace(self, grads: list[Tensor], lr: float | Tensor) -> None:
        """The same step in plain arithmetic, which a compiler can fuse; it cannot trace the fused kernel."""
        step = self._state("step", [0])[0]
        step.add_(1)
        for other in self._state("step", list(range(1, len(grads)))):
            other.copy_(step)
        count = step.double()
        # as exponentials: torch's compiler computes those once, and a power in the loops over the parameters
        rate = (lr / (1 - torch.exp(count * math.log(0.9)))).float()
        scale = (1 - torch.exp(count * math.log(0.999))).sqrt().float()
        for decay, alike in self._alike.items():
            for i, mean, square in zip(
                alike, self._state("mean", alike), self._state("square", alike), strict=True
            ):
                p, g = self._params[i], grads[i]
                if decay:
                    g = g + decay * p
                mean.lerp_(g, 0.1)
                square.mul_(0.999).addcmul_(g, g, value=0.001)
                p.sub_(rate * mean / (square.sqrt() / scale + self.eps))

    def _rate(self, share: Tensor) -> Tensor:
        rate = self.lr * share
        return rate.float() if rate.is_cuda else rate  # the kernel for GPUs reads a float32

    def _state(self, name: str, index: list[int]) -> list[Tensor]:
        # `get_buffer` would take as long as the update
        return [cast(Tensor, self._buffers[f"{name}_{i}"]) for i in index]


@torch.no_grad()
def polyak(target: nn.Module, source: nn.Module, tau: float) -> None:
    """Target ← target + tau (source - target)."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), tau)


def cosine(done: Tensor, steps: int) -> Tensor:
    """The share of the learning rate after `done` updates, `()` float64: 1 at first, 0 from `steps` on."""
    return 0.5 * (1 + torch.cos(math.pi * (done.double() / steps).clamp(max=1)))
