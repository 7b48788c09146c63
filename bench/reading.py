"""How much code a reader has to follow for one training run, found by tracing the run.

    python bench/reading.py [--methods iql enoto] [--json FILE] [--csv FILE] [--package CHECKOUT]

Each method is trained offline and online on Pendulum with nets of eight units, once, while every line of the
package that runs is noted. `lines_entered` counts the lines of all functions that were called: each function
whole, from its decorators to its end, once. `lines_run` counts those among them that ran. Wing 1 is what
decides a number, wing 2 what keeps a run alive; `wing1` and `wing2` split `lines_entered`. The command line
and the YAML files are passed by, and no report is written. `--package` reads another checkout's package.
"""

from __future__ import annotations

import argparse
import ast
import csv
import importlib.util
import inspect
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CASES = {"iql": "iql-append", "enoto": "enoto-cql", "wsrl": "wsrl", "moore": "moore-geometric"}
"""The methods, and the run of `tests/contract/test_bits.py` that each is read in."""

WING1 = {"types", "registry", "ensemble", "nn", "dynamics", "agents", "data", "sources", "recipes", "run"}
"""Top folders and files of the package that decide a number; the others keep a run alive."""
FORMER_WING2 = {
    *(f"run/{x}" for x in ("checkpoint", "disk", "disturb", "faults", "lanes")),
    *(f"run/{x}" for x in ("layouts", "make", "scores", "streams")),
    *(f"data/{x}" for x in ("alignment", "audit", "content", "findings", "firstlook", "io")),
    *(f"data/{x}" for x in ("mapped", "named", "record", "remote", "schema")),
}
"""What keeps a run alive and stood in folders of wing 1 before the package was split into wings."""
COLUMNS = ("commit", "method", "files", "lines_entered", "lines_run", "wing1", "wing2")

Line = tuple[str, int]


def wing(path: str) -> int:
    """The wing, 1 or 2, of a file of the package, such as `run/lanes.py`."""
    parts = Path(path).with_suffix("").parts
    return 2 if parts[0] not in WING1 or "/".join(parts[:2]) in FORMER_WING2 else 1


class Reading:
    """A context that notes which functions and lines of the files below a folder run.

    Modules that are imported meanwhile, and the bodies of their classes, do not count as functions.
    """

    def __init__(self, folder: Path):
        self._folder = f"{folder.resolve()}/"
        self._codes: set[CodeType] = set()
        self._ran: set[Line] = set()

    def __enter__(self) -> Reading:
        threading.settrace(self._enter)
        sys.settrace(self._enter)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)
        threading.settrace(None)

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:
        of_function = frame.f_code.co_flags & inspect.CO_OPTIMIZED  # not set for modules and class bodies
        if not of_function or not frame.f_code.co_filename.startswith(self._folder):
            return None
        self._codes.add(frame.f_code)
        return self._line

    def _line(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any]:
        if event == "line":
            self._ran.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line

    def entered(self) -> set[Line]:
        """The lines of all functions that were called, as (path below the folder, line)."""
        spans = {file: functions(Path(file)) for file in {code.co_filename for code in self._codes}}
        starts = {(code.co_filename, code.co_firstlineno) for code in self._codes}
        return self._below({(file, line) for file, first in starts for line in spans[file].get(first, ())})

    def ran(self) -> set[Line]:
        """Those among `entered` that ran."""
        return self._below(self._ran) & self.entered()

    def _below(self, lines: set[Line]) -> set[Line]:
        return {(file.removeprefix(self._folder), line) for file, line in lines}


def functions(path: Path) -> dict[int, range]:
    """The lines of each function and lambda of a file, by the line that its code object begins at."""
    spans: dict[int, range] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            first = min([node.lineno, *(x.lineno for x in getattr(node, "decorator_list", []))])
            last = max(node.end_lineno or first, spans.get(first, range(0)).stop - 1)
            spans[first] = range(first, last + 1)
    return spans


def counts(reading: Reading) -> dict[str, int]:
    """A row of the table: how many files and lines."""
    entered, ran = reading.entered(), reading.ran()
    of_wing = [sum(wing(file) == k for file, _ in entered) for k in (1, 2)]
    files = len({file for file, _ in entered})
    lines = {"lines_entered": len(entered), "lines_run": len(ran)}
    return {"files": files, **lines, "wing1": of_wing[0], "wing2": of_wing[1]}


def pendulum(path: Path) -> Path:
    """Write 600 random transitions of Pendulum-v1, as a dataset file."""
    import gymnasium
    import h5py
    import numpy as np

    env = gymnasium.make("Pendulum-v1")
    env.action_space.seed(0)
    rows: list[tuple[Any, ...]] = []
    for episode in range(3):
        obs, over = env.reset(seed=episode)[0], False
        while not over:
            act = env.action_space.sample()
            after, reward, terminated, over, _ = env.step(act)
            rows.append((obs, act / 2, reward, after, terminated, over))  # actions in [-1, 1]
            obs = after
    names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
    kinds = (np.float32, np.float32, np.float32, np.float32, bool, bool)
    with h5py.File(path, "w") as f:
        f.attrs["env_id"] = "Pendulum-v1"
        for name, kind, values in zip(names, kinds, zip(*rows, strict=True), strict=True):
            f[name] = np.array(values, kind)
    return path


def read(method: str, folder: Path, dataset: Path) -> dict[str, int]:
    """Train `method` in `folder` and count what was read."""
    import mbo2o
    from mbo2o.training import train

    spec = importlib.util.spec_from_file_location("test_bits", ROOT / "tests" / "contract" / "test_bits.py")
    assert spec is not None
    assert spec.loader is not None
    bits = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bits)
    case = CASES[method]
    recipe, settings, _ = bits.CASES[case]
    bits.CASES[case] = recipe, settings, {}  # no settings of the run itself: older checkouts lack some
    cfg = bits.configured(case, dataset, folder / method)
    with Reading(Path(mbo2o.__file__).parent) as reading:
        train(cfg)
    return counts(reading)


def commit(checkout: Path) -> str:
    """The short name of a checkout's commit."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short=7", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def write_csv(path: Path, name: str, rows: dict[str, dict[str, int]]) -> None:
    """Add rows of commit `name`; rows that the file has for the same commit and method are replaced."""
    old = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    kept: list[dict[str, Any]] = [x for x in old if x["commit"] != name or x["method"] not in rows]
    with open(path, "w", newline="") as f:
        table = csv.DictWriter(f, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows([*kept, *({"commit": name, "method": method} | row for method, row in rows.items())])


def main() -> None:
    """Read the methods, and say what was counted."""
    parser = argparse.ArgumentParser(description="count the code that a training run enters")
    parser.add_argument("--methods", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--package", type=Path, default=ROOT, help="the checkout whose package is read")
    parser.add_argument("--json", type=Path, help="write the counts here, too")
    parser.add_argument(
        "--csv", type=Path, help="put the counts into this table, under the checkout's commit"
    )
    args = parser.parse_args()
    sys.path.insert(0, str(args.package.resolve()))
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        dataset = pendulum(Path(folder) / "pendulum-random.hdf5")
        for method in args.methods:
            rows[method] = read(method, Path(folder), dataset)
    print("method  files  lines entered  lines run  wing 1  wing 2  share of wing 1")
    for method, x in rows.items():
        share = x["wing1"] / x["lines_entered"]
        lines = f"{x['lines_entered']:>13}  {x['lines_run']:>9}  {x['wing1']:>6}  {x['wing2']:>6}"
        print(f"{method:<6}  {x['files']:>5}  {lines}  {share:>14.0%}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    if args.csv:
        write_csv(args.csv, commit(args.package), rows)


if __name__ == "__main__":
    main()
