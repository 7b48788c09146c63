"""D4RL's HDF5 files, which are also our own: the fields, the file's attributes, and D4RL's `metadata/` group."""

from __future__ import annotations

import os

import h5py

from mbo2o.data import schema


def read(path: str | os.PathLike[str]) -> tuple[schema.Fields, schema.Attrs]:
    """Return the fields that the file has and its attributes; scalars under `metadata/` become `metadata/<name>`.

    Raises `UserError` as `schema.read` does.
    """
    fields, attrs = schema.read(path)
    with schema.opened(path) as file:
        group = file.get("metadata")
        if isinstance(group, h5py.Group):
            datasets = {f"metadata/{k}": v[()] for k, v in group.items() if isinstance(v, h5py.Dataset) and not v.shape}
            attrs = schema.scalars(datasets) | attrs
    return fields, attrs
