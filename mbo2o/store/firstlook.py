"""A first reading of an HDF5 file by a process that may crash: `python firstlook.py FILE KEY...`.

A damaged or hostile file can make libhdf5 crash, loop for ever or allocate as much as a header claims, and no
`except` helps. Therefore `hdf5.open_hdf5` first lets this script do what it will do itself: open the file,
read all attributes, read the datasets called KEY (in blocks) and the scalars in `metadata/`. The script
prints one line: what is wrong, or `SOUND`.

It runs in a new interpreter, not in a fork: it inherits no thread, lock, CUDA context or gigabytes of address
space, so that its limits can be tight. That takes 0.15 s, once per file and process. The script imports
nothing from this package, which would import torch.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal
import sys

import h5py
import numpy as np

SOUND = "sound"
SLAB = 1 << 24
"""How many bytes of a dataset are read at a time."""
COMPRESSION = 100
"""How many bytes a compressed dataset may declare for each byte of the file; more is taken for a
decompression bomb. Measurements shrink by a tenth, flags by 99 %."""
HARMLESS = 1 << 26
"""How many bytes a compressed dataset may declare, however small its file is."""
UNCOMPRESSED = {h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_SHUFFLE}


class Fault(Exception):
    """What is wrong with the file, without the file's name."""


def look(path: str, keys: list[str]) -> None:
    """Read what `hdf5` and its callers will read. Raises `Fault`, or any error of h5py."""
    size = os.path.getsize(path)
    with h5py.File(path, "r") as file:
        _refuse_ways_out(file)
        for name in file.attrs:
            _attribute(file, name)
        for key in filter(file.id.links.exists, map(str.encode, keys)):
            _look_at(file, key.decode(), size)
        group = file.get("metadata")
        if isinstance(group, h5py.Group):
            for name, item in group.items():
                if isinstance(item, h5py.Dataset) and not item.shape:
                    _refuse_elsewhere(item, f"metadata/{name}")
                    item[()]


def _refuse_ways_out(file: h5py.File) -> None:
    found = file.id.links.visit(_leads_out, info=True)
    if found is not None:
        name = found.decode(errors="replace")
        raise Fault(
            f"{name!r} is a link to another file, expected the data themselves; copy them into one file"
        )


def _leads_out(name: bytes, link: h5py.h5l.LinkInfo) -> bytes | None:
    return None if link.type in (h5py.h5l.TYPE_HARD, h5py.h5l.TYPE_SOFT) else name


def _attribute(file: h5py.File, name: str) -> None:
    try:
        file.attrs[name]
    except Exception as error:
        raise Fault(
            f"attribute {name!r} cannot be read ({_one_line(error)}); write it again, or drop it"
        ) from error


def _look_at(file: h5py.File, key: str, size: int) -> None:
    try:
        item = file[key]
    except (KeyError, RuntimeError):
        raise Fault(
            f"{key!r} is a link that leads nowhere, expected a dataset; store the data under that name"
        ) from None
    if not isinstance(item, h5py.Dataset):
        raise Fault(
            f"{key!r} is a {type(item).__name__.lower()}, expected a dataset; "
            "store one array, one row per step"
        )
    try:
        _refuse_elsewhere(item, key)
        _refuse_content(item, key, size)
        _read(item)
    except Fault:
        raise
    except Exception as error:
        raise Fault(
            f"not a readable HDF5 file ({key!r}: {_one_line(error)}); fetch or write it again"
        ) from error


def _refuse_elsewhere(item: h5py.Dataset, key: str) -> None:
    if item.is_virtual or item.external:
        kind = "virtual dataset" if item.is_virtual else "dataset in external storage"
        raise Fault(f"{key!r} is a {kind}, expected the data themselves; copy them into one file")


def _refuse_content(item: h5py.Dataset, key: str, size: int) -> None:
    if item.shape is None:
        raise Fault(
            f"{key!r} is an empty dataset without a shape, expected an array, one row per step; store it"
        )
    if item.dtype.hasobject:
        raise Fault(f"{key!r} has dtype {_name(item.dtype)}, expected numbers; store one number per entry")
    declared = math.prod(item.shape) * item.dtype.itemsize
    plist = item.id.get_create_plist()
    filters = {plist.get_filter(i)[0] for i in range(plist.get_nfilters())}
    limit = size if filters <= UNCOMPRESSED else HARMLESS + COMPRESSION * size
    if declared > limit:
        raise Fault(
            f"{key!r} has shape {item.shape}, {declared:.3g} bytes, expected at most {limit:.3g} from a file "
            f"of {size} bytes; its header is damaged, or its rows were never written"
        )


def _read(item: h5py.Dataset) -> None:
    """Read the whole dataset in blocks of whole chunks."""
    if not item.shape or not item.size:
        return
    chunk = item.chunks[0] if item.chunks else 1
    row = item.dtype.itemsize * math.prod(item.shape[1:])
    rows = max(1, SLAB // (row * chunk)) * chunk
    for start in range(0, item.shape[0], rows):
        item[start : start + rows]


def _name(dtype: np.dtype) -> str:
    if dtype.fields:
        return "compound"
    if h5py.check_ref_dtype(dtype):
        return "reference"
    return "text" if h5py.check_string_dtype(dtype) else "of variable length"


def _limit(size: int) -> None:
    """Limit memory to 1 GB and CPU time to 1 s, both plus a share of the file's size; write no core file."""
    with contextlib.suppress(OSError, ValueError):  # a system may lack one of the limits
        with open("/proc/self/statm") as statm:
            mapped = int(statm.read().split()[0]) * resource.getpagesize()
        _lower(resource.RLIMIT_AS, mapped + (1 << 30) + 4 * size)
    # The signal of this timer ends the process. RLIMIT_CPU counts whole seconds only.
    signal.setitimer(signal.ITIMER_PROF, 1 + size / 2e6)
    _lower(resource.RLIMIT_CORE, 0)


def _lower(what: int, limit: int) -> None:
    soft, hard = resource.getrlimit(what)
    allowed = [x for x in (limit, soft, hard) if x != resource.RLIM_INFINITY]
    resource.setrlimit(what, (min(allowed), hard))


def _explain(error: Exception) -> str:
    text = _one_line(error)
    if isinstance(error, BlockingIOError):
        return "another process has it open for writing; wait until that is done"
    if "already open for write" in text:
        marked = "its writer did not close it (the file is still marked as open for writing)"
        return f"{marked}; write it again, or try h5clear -s"
    return f"not a readable HDF5 file ({text}); fetch or write it again"


def _one_line(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it asks for more memory than a file of its size can need"
    return " ".join(str(error).split()) or type(error).__name__


def main() -> None:
    """Print `SOUND`, or what is wrong with the file."""
    path, *keys = sys.argv[1:]
    _limit(os.path.getsize(path))
    try:
        look(path, keys)
    except Fault as fault:
        print(fault)
    except Exception as error:  # this process reads nothing but the file, so every error is the file's
        print(_explain(error))
    else:
        print(SOUND)


if __name__ == "__main__":
    main()
