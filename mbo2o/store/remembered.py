"""What a run keeps of its dataset: enough to restore its networks where the dataset is gone, but no row.

Restoring asks the dataset for sizes. Statistics that networks need are in the checkpoint.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mbo2o.data.dataset import TransitionDataset
from mbo2o.data.layout import RowLayout
from mbo2o.errors import UserError
from mbo2o.store.whole import write_whole
from mbo2o.types import Batch

FILE = "data.json"


def write(dataset: TransitionDataset, directory: Path) -> None:
    """Write what a run in `directory` keeps of its dataset."""
    about = {
        **{"rows": dataset.n_rows, "usable": len(dataset), "ends_known": dataset.ends_known},
        **{"obs_dim": dataset.obs_dim, "act_dim": dataset.act_dim, "attrs": dataset.attrs},
    }
    write_whole(directory / FILE, json.dumps(about, indent=1))


@dataclass(frozen=True, eq=False)
class Remembered(TransitionDataset):
    """A dataset of the right sizes without its rows, which are read as zeros while a run is `restoring`.

    What is made of them then is replaced by what the checkpoint holds. Later, to ask for a row is an error.
    """

    why: str = ""
    restoring: list[None] = field(default_factory=list)
    """It holds something while rows may be read; copies share it."""

    @classmethod
    def read(cls, directory: Path, why: str) -> Remembered:
        """What the run in `directory` kept; `why` says why the dataset itself is not there.

        Raises `UserError` if the run is of a version that kept nothing.
        """
        try:
            about = json.loads((directory / FILE).read_text())
            n, usable, d, a = (about[x] for x in ("rows", "usable", "obs_dim", "act_dim"))
        except (OSError, ValueError, KeyError, TypeError) as e:
            text = f"the version that wrote {directory} kept nothing of its dataset, so this has to be there"
            raise UserError(f"{why}; {text}") from e
        no, yes = torch.zeros((), dtype=torch.bool), torch.ones((), dtype=torch.bool)
        return cls(
            packed=torch.zeros(1, RowLayout(d, a).width).expand(n, -1),  # one row, in memory once
            obs_dim=d,
            act_dim=a,
            terminated=no.expand(n),
            truncated=no.expand(n),
            valid_next=yes.expand(n),
            episode=torch.zeros((), dtype=torch.int64).expand(n),
            index=torch.arange(usable),
            attrs=about.get("attrs", {}),
            ends_known=about.get("ends_known", True),
            why=why,
        )

    @contextlib.contextmanager
    def while_restoring(self) -> Iterator[None]:
        """Inside, rows are read as zeros."""
        self.restoring.append(None)
        try:
            yield
        finally:
            self.restoring.clear()

    def _check(self) -> None:
        if not self.restoring:
            raise UserError(f"{self.why}; the run was restored without it, and rows of it are asked for now")

    def sample(self, n: int) -> Batch:
        """Zeros while a run is restored; `UserError` later."""
        self._check()
        return super().sample(n)

    def rows(self, index: torch.Tensor) -> Batch:
        """Zeros while a run is restored; `UserError` later."""
        self._check()
        return super().rows(index)
