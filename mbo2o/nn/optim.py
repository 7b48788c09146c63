"""Adam whose state travels with its module, and Polyak averaging. Losses are per seed; seeds never touch."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Adam(nn.Module):
    """torch's fused Adam with its moments as buffers: whoever owns it has them in `state_dict`, by construction."""

    def __init__(self, params: Iterable[Tensor], lr: float, eps: float = 1e-8):
        super().__init__()
        self.lr = lr
        self._params = list(params)
        self._adam = torch.optim.Adam(self._params, lr=lr, eps=eps, fused=True)
        for i, p in enumerate(self._params):
            step = torch.zeros((), dtype=torch.float32, device=p.device)
            self.register_buffer(f"step_{i}", step)
            self.register_buffer(f"mean_{i}", torch.zeros_like(p))
            self.register_buffer(f"square_{i}", torch.zeros_like(p))
            names = {"step": f"step_{i}", "exp_avg": f"mean_{i}", "exp_avg_sq": f"square_{i}"}
            # the optimiser updates these very tensors in place; load_state_dict copies into them
            self._adam.state[p] = {key: self.get_buffer(name) for key, name in names.items()}

    def step(self, loss: Tensor, schedule: float = 1.0) -> None:
        """Descend a per-seed loss `(*S,)`, in this optimiser's parameters only, at `schedule` times the learning rate.

        The sum over seeds is safe: parameters of different seeds share no term, and Adam is elementwise.
        """
        self._adam.param_groups[0]["lr"] = self.lr * schedule
        grads = torch.autograd.grad(loss.sum(), self._params)
        for p, g in zip(self._params, grads, strict=True):
            p.grad = g.contiguous()  # fused Adam reads memory in order, whatever the strides
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)


@torch.no_grad()
def polyak(target: nn.Module, source: nn.Module, tau: float) -> None:
    """Target ← target + tau (source - target)."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), tau)
