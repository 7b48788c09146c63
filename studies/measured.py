"""What was measured: the files of data/results, by study and size, and the findings of their claims."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from studies import enoto, methods, moore, obac, wsrl
from studies.arms import BESIDE, read_rows
from studies.claims import Claim, Finding, Measured, verdicts

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "data" / "results"
STUDIES = {"moore": moore, "enoto": enoto, "wsrl": wsrl, "methods": methods, "obac": obac}
"""Those that test claims."""
SIZES = ("small", "mid", "paper")
"""The sizes of a study. The names of results end with the size, those of small ones do not."""


def size_of(stem: str) -> str:
    """The size that the name of a results file tells."""
    return next((x for x in SIZES[1:] if stem.endswith(f"-{x}")), SIZES[0])


def files_of(kind: str = "moore", size: str | None = None) -> list[Path]:
    """The results files of a kind of study, of one size or of all."""
    found = sorted(p for p in RESULTS.glob(f"{kind}-*.csv") if not p.stem.endswith(BESIDE))
    return [p for p in found if size in (None, size_of(p.stem))]


def studied(kind: str, size: str = "small") -> dict[str, Measured]:
    """What was measured in each study of a kind and of one size, by data."""
    return {path.stem.removeprefix(f"{kind}-"): numbers(path) for path in files_of(kind, size)}


def numbers(path: Path) -> Measured:
    """What a results file holds, words left out."""
    words = ("arm", "behaviour", "env")
    return {
        arm: {k: np.array([float(r[k]) for r in rows]) for k in rows[0] if k not in words}
        for arm, rows in read_rows(path).items()
    }


def findings(kind: str, claims: Sequence[Claim]) -> list[Finding]:
    """The findings of a study's claims. Each size is a family of its own for the correction."""
    return [f for size in SIZES for f in verdicts(claims, studied(kind, size))]
