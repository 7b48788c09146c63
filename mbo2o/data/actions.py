"""Conversion of a dataset's actions to the units in which agents act: [-1, 1] in every dimension.

Some files hold actions in [-1, 1], some in the environment's own units, some the outputs of a policy before
the environment clipped them. A file does not say which with certainty, so the user chooses a mode. Without a
mode, actions outside [-1, 1], and actions that look like the environment's own units, are refused, and the
error lists the modes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mbo2o.types import UserError

MODES = ("unit", "env", "clip", "env-clip")
TOLERANCE = 1e-4
"""How far outside [-1, 1] an action may lie because of rounding; beyond that, the units are wrong."""
IN_PYTHON = {"env": "bounds=(low, high)", "clip": "clip=True", "env-clip": "bounds=(low, high), clip=True"}
"""The arguments that choose the modes in Python."""

Bounds = tuple[Any, Any]
"""The lowest and the highest action, each a number or an array of the action's shape."""


@dataclass(frozen=True, eq=False)
class Actions:
    """The units of a dataset's actions, and the box of the environment that they belong to."""

    mode: str | None = None
    """`unit`: actions are in [-1, 1] and stay as they are. `env`: they are in the units of `box` and are
    mapped affinely, the low of the box to -1 and its high to 1. `clip`: they are outputs of a policy that
    acts in [-1, 1], and are clipped to it as the environment clipped them. `env-clip`: outputs in the units
    of `box`, which are mapped and then clipped. None: as `unit`, but refused if they look like the
    environment's own units."""
    box: Bounds | None = None
    """The modes `env` and `env-clip` need it; with the other modes errors name it if it is known."""
    option: str = ""
    """How the user sets the mode (`dataset_actions=`), for errors; empty in Python (`bounds`, `clip`)."""

    def __post_init__(self) -> None:
        if self.mode not in (None, *MODES):
            raise UserError(f"{self.option or 'mode='}{self.mode} is not one of {', '.join(MODES)}")
        if self.box is not None:
            low, high = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in self.box))
            low, high = low.ravel(), high.ravel()
            if not (np.isfinite(low) & np.isfinite(high) & (low <= high)).all():
                raise UserError(
                    f"the bounds of actions {_span(low, high)} are not finite numbers with low <= high; "
                    "mend them"
                )
            object.__setattr__(self, "box", (low, high))

    @classmethod
    def given(cls, bounds: Bounds | None, clip: bool) -> Actions:
        """The mode that the arguments `bounds` and `clip` of a Python function choose."""
        modes = {(False, False): None, (False, True): "clip", (True, False): "env", (True, True): "env-clip"}
        return cls(modes[bounds is not None, clip], bounds)

    @property
    def maps(self) -> bool:
        """Whether the actions are in the units of the box."""
        return self.mode in ("env", "env-clip")

    @property
    def clips(self) -> bool:
        """Whether actions outside the box are expected and clipped."""
        return self.mode in ("clip", "env-clip")

    @property
    def key(self) -> str:
        """A text that differs where the same file becomes different actions."""
        box = [x.tolist() for x in self.box] if self.maps and self.box is not None else ""
        return "" if self.mode is None else f" actions={self.mode}{box}"

    def ready(self, width: int, where: object) -> None:
        """Raise `UserError` if the mode needs a box and there is none that fits actions `(N, width)`."""
        if not self.maps:
            return
        if self.box is None:
            raise UserError(
                f"{where}: {self.give(str(self.mode))} needs the environment's box; name the environment"
            )
        if len(self.box[0]) not in (1, width):
            raise UserError(
                f"{where}: 'actions' have {width} dimensions, their bounds {len(self.box[0])}; "
                "give one bound for each"
            )

    def to_unit(self, raw: np.ndarray) -> np.ndarray:
        """`(n, A)` in the dataset's units → float64 in [-1, 1]; the same array if there is nothing to map."""
        if not self.maps or self.box is None:
            return raw
        middle, half = _affine(self.box)
        return (raw.astype(np.float64) - middle) / np.where(
            half > 0, half, 1
        )  # 0 in a dimension whose box has no width

    def settle(self, actions: np.ndarray, parts: Sequence[slice], where: object) -> None:
        """Clip `(N, A)` float32 to [-1, 1] in place, one part after the other.

        Actions that lie further than `TOLERANCE` outside raise `UserError`; if the mode expects them, a
        warning counts them instead.
        """
        low, high = extent(actions, parts)
        if max(-low.min(), high.max()) > 1 + TOLERANCE:
            if not self.clips:
                raise UserError(f"{where}: {self._outside(low, high)}")
            outside = sum(int((np.abs(actions[part]) > 1 + TOLERANCE).sum()) for part in parts)
            warnings.warn(
                f"{where}: {outside} of {actions.size} numbers in 'actions' are outside and clipped",
                stacklevel=5,
            )
        for part in parts:
            actions[part].clip(-1, 1, out=actions[part])

    def doubt(self, actions: np.ndarray, parts: Sequence[slice]) -> str | None:
        """Why actions `(N, A)` seem to be in the environment's units although they were read as scaled.

        The sign is a box that leaves out a part of [-1, 1], while no action lies in that part. A box that
        contains all of [-1, 1] also contains scaled actions and tells nothing; the actions are then not read.
        If a mode was chosen there is no doubt.
        """
        if self.mode is not None or self.box is None or len(self.box[0]) not in (1, actions.shape[1]):
            return None
        if not ((self.box[0] > -1 + TOLERANCE) | (self.box[1] < 1 - TOLERANCE)).any():
            return None
        low, high = extent(actions, parts)
        tolerance = TOLERANCE * np.minimum(_affine(self.box)[1], 1)
        if (low < self.box[0] - tolerance).any() or (high > self.box[1] + tolerance).any():
            return None
        return (
            f"'actions' lie in {_span(low, high)}, the box of this environment is {_span(*self.box)}: "
            f"are they raw? give {self.give('env')} if they are in its units, {self.give('unit')} if they "
            "are scaled to [-1, 1] already"
        )

    def give(self, mode: str) -> str:
        """What the user has to write to choose a mode."""
        return f"{self.option}{mode}" if self.option else IN_PYTHON[mode]

    def _outside(self, low: np.ndarray, high: np.ndarray) -> str:
        """What is wrong with actions outside the box, or outside [-1, 1], and what to do."""
        if self.maps and self.box is not None:
            middle, half = _affine(self.box)
            found = _span(low * half + middle, high * half + middle)
            text = f"'actions' lie in {found}, expected the box {_span(*self.box)}"
            return f"{text}; if they are a policy's unclipped outputs, give {self.give('env-clip')}"
        known = f" (its box is {_span(*self.box)})" if self.box is not None else ""
        how = f"{self.give('env')} or {self.option}[LOW,HIGH]" if self.option else self.give("env")
        return (
            f"'actions' lie in {_span(low, high)}, expected [-1, 1]; if they are in the environment's own "
            f"units{known}, rescale them with {how}; if they are a policy's unclipped outputs, "
            f"clip them with {self.give('clip')}"
        )


def extent(actions: np.ndarray, parts: Sequence[slice]) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest action of `(N, A)`, each `(A,)`."""
    low = np.min([actions[part].min(0) for part in parts], axis=0)
    return low, np.max([actions[part].max(0) for part in parts], axis=0)


def _affine(box: Bounds) -> tuple[np.ndarray, np.ndarray]:
    """The middle of a box and half its width."""
    return (box[0] + box[1]) / 2, (box[1] - box[0]) / 2


def _span(low: np.ndarray, high: np.ndarray) -> str:
    return f"[{low.min():.4g}, {high.max():.4g}]"
