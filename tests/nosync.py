"""A stand-in for a device that must not be waited for: it refuses whatever reads a tensor back to the host."""  # noqa: E501

import torch
from torch.utils._python_dispatch import TorchDispatchMode

READS = {
    "_local_scalar_dense",  # item, int(), bool(), tolist of one number
    "nonzero",
    "nonzero_numpy",
    "masked_select",
    "unique_consecutive",
    "unique_dim",
    "_unique",
    "_unique2",
    "equal",
    "is_nonzero",
    "repeat_interleave",
    "bincount",
}
"""Operations whose result, or whose size, the host has to wait for."""


class no_host_reads(TorchDispatchMode):
    """Inside the block, an operation that would make the host wait for a device raises `AssertionError`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        masked = name in ("index", "index_put", "index_put_") and any(
            x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        )
        reads = masked or name in READS
        assert not reads, f"{func} reads from the device"
        return func(*args, **(kwargs or {}))


def refusing(module, example):
    """A compiler for `torch.compile` that runs the program operation by operation, without host reads."""

    def run(*args):
        with no_host_reads():
            return module(*args)

    return run
