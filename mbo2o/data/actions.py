"""How the actions of a dataset become those that agents act in: [-1, 1] in every dimension.

Files differ. Some hold [-1, 1] already, some the environment's own units, some what a policy put out before
the environment clipped it. None of this can be read off a file with certainty, so a mode says it; without
one, actions that lie outside [-1, 1], or that look like the environment's own units, are refused with the
modes to choose from.
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
"""How far rounding may carry an action out of [-1, 1] before it counts as a mistake of units."""
IN_PYTHON = {"env": "bounds=(low, high)", "clip": "clip=True", "env-clip": "bounds=(low, high), clip=True"}
"""What the constructors of `TransitionDataset` call the modes."""

Bounds = tuple[Any, Any]
"""The lowest and the highest action, each a number, or an array of the action's shape."""


@dataclass(frozen=True, eq=False)
class Actions:
    """The units of a set's actions, and the box of the environment that they are for."""

    mode: str | None = None
    """`unit`: in [-1, 1], taken as they are. `env`: in the units of `box`, mapped affinely, its low to -1 and
    its high to 1. `clip`: outputs of a policy that acts in [-1, 1], clipped to it as the environment clipped
    them. `env-clip`: outputs in the units of `box`, mapped and then clipped. None: `unit`, but refused if
    they look like the environment's own units."""
    box: Bounds | None = None
    """Needed by `env` and `env-clip`; with the other modes it is named in errors, if it is known."""
    option: str = ""
    """How the user sets the mode (`dataset_actions=`), for errors; empty in Python, where `bounds` and `clip` do."""

    def __post_init__(self) -> None:
        if self.mode not in (None, *MODES):
            raise UserError(f"{self.option or 'mode='}{self.mode} is not one of {', '.join(MODES)}")
        if self.box is not None:
            low, high = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in self.box))
            low, high = low.ravel(), high.ravel()
            if not (np.isfinite(low) & np.isfinite(high) & (low <= high)).all():
                raise UserError(
                    f"the bounds of actions {_span(low, high)} are not finite numbers with low <= high; mend them"
                )
            object.__setattr__(self, "box", (low, high))

    @classmethod
    def given(cls, bounds: Bounds | None, clip: bool) -> Actions:
        """From the arguments of a constructor: in the units of `bounds` if there are any, in [-1, 1] otherwise."""
        modes = {(False, False): None, (False, True): "clip", (True, False): "env", (True, True): "env-clip"}
        return cls(modes[bounds is not None, clip], bounds)

    @property
    def maps(self) -> bool:
        """Whether the set is in the units of the box."""
        return self.mode in ("env", "env-clip")

    @property
    def clips(self) -> bool:
        """Whether actions outside the box are expected, and clipped."""
        return self.mode in ("clip", "env-clip")

    @property
    def key(self) -> str:
        """Another one where the same file becomes other actions."""
        box = [x.tolist() for x in self.box] if self.maps and self.box is not None else ""
        return "" if self.mode is None else f" actions={self.mode}{box}"

    def ready(self, width: int, where: object) -> None:
        """Raise `UserError` if the mode needs a box that is not there, or one of another width than `(N, width)`."""
        if not self.maps:
            return
        if self.box is None:
            raise UserError(
                f"{where}: {self.give(str(self.mode))} needs the environment's box; name the environment"
            )
        if len(self.box[0]) not in (1, width):
            raise UserError(
                f"{where}: 'actions' have {width} dimensions, their bounds {len(self.box[0])}; give one bound for each"
            )

    def to_unit(self, raw: np.ndarray) -> np.ndarray:
        """`(n, A)` in the set's units → float64 in [-1, 1], or the same array where nothing is to be mapped."""
        if not self.maps or self.box is None:
            return raw
        middle, half = _affine(self.box)
        return (raw.astype(np.float64) - middle) / np.where(half > 0, half, 1)  # a dimension without width: 0

    def settle(self, actions: np.ndarray, parts: Sequence[slice], where: object) -> None:
        """Clip `(N, A)` float32 to [-1, 1] in place, one part after the other.

        Raises `UserError` for actions further than `TOLERANCE` outside it, unless the mode expects them; then
        a warning counts them.
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
        """Why `(N, A)` that were taken for scaled may be in the environment's units; None if nothing says so,
        or a mode does.

        They may be if the box leaves out a part of [-1, 1] and they never go there. A box that holds all of
        [-1, 1] holds scaled actions, too, so that it tells nothing, and nothing is read.
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
            f"'actions' lie in {_span(low, high)}, the box of this environment is {_span(*self.box)}: are they raw? give "
            f"{self.give('env')} if they are in its units, {self.give('unit')} if they are scaled to [-1, 1] already"
        )

    def give(self, mode: str) -> str:
        """What the user has to give for a mode."""
        return f"{self.option}{mode}" if self.option else IN_PYTHON[mode]

    def _outside(self, low: np.ndarray, high: np.ndarray) -> str:
        """What to do about actions outside the box, or outside [-1, 1]."""
        if self.maps and self.box is not None:
            middle, half = _affine(self.box)
            found = _span(low * half + middle, high * half + middle)
            text = f"'actions' lie in {found}, expected the box {_span(*self.box)}"
            return f"{text}; if they are a policy's unclipped outputs, give {self.give('env-clip')}"
        known = f" (its box is {_span(*self.box)})" if self.box is not None else ""
        return (
            f"'actions' lie in {_span(low, high)}, expected [-1, 1]; if they are in the environment's own units{known}, "
            f"rescale them with {self.give('env')}; if they are a policy's unclipped outputs, clip them with "
            f"{self.give('clip')}"
        )


def extent(actions: np.ndarray, parts: Sequence[slice]) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest action of `(N, A)`, each `(A,)`."""
    low = np.min([actions[part].min(0) for part in parts], axis=0)
    return low, np.max([actions[part].max(0) for part in parts], axis=0)


def _affine(box: Bounds) -> tuple[np.ndarray, np.ndarray]:
    """The middle and half the width."""
    return (box[0] + box[1]) / 2, (box[1] - box[0]) / 2


def _span(low: np.ndarray, high: np.ndarray) -> str:
    return f"[{low.min():.4g}, {high.max():.4g}]"
