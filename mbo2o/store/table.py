"""Tables, one row per step: CSV, read by NumPy, and Parquet, where pyarrow is installed."""

from __future__ import annotations

import csv
import difflib
import importlib
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbo2o.data.actions import Actions
from mbo2o.store import hdf5
from mbo2o.types import UserError

ORDER = ("episode", "step")
FLAGS = {"true": 1.0, "false": 0.0}
SUFFIXES = (".csv", ".tsv", ".parquet")

Columns = Mapping[str, str | Sequence[str]]
Table = dict[str, np.ndarray]


def read(path: str | os.PathLike[str], columns: Columns, how: Actions = hdf5.AS_GIVEN) -> hdf5.Fields:
    """The fields that `columns` maps to columns, in time order, checked; `TransitionDataset.from_table` says how."""
    path = Path(path)
    names = _names(columns, path)
    if not path.is_file():
        raise UserError(f"{hdf5.shown(path)}: no such file; check the path")
    wanted = list(dict.fromkeys(name for group in names.values() for name in group))
    table = _parquet(path, wanted) if path.suffix == ".parquet" else _csv(path, wanted, names)
    fields = {}
    for key, group in names.items():
        if key in hdf5.LAYOUT:
            vector = hdf5.LAYOUT[key][1] == 1
            fields[key] = table[group[0]] if vector else np.column_stack([table[name] for name in group])
    order = {key: table[names[key][0]] for key in ORDER if key in names}
    return _in_order(hdf5.check(fields, hdf5.shown(path), how=how), order, path)


def _names(columns: Columns, path: Path) -> dict[str, list[str]]:
    """The columns of each field as a list, if they are the fields that there are."""
    known = [*hdf5.LAYOUT, *ORDER]
    for key in columns:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.4)
            raise UserError(
                f"{path}: columns has no use for {key!r}; {_did_you_mean(near)}it maps {', '.join(known)}"
            )
    if missing := [key for key in hdf5.LAYOUT if key not in columns and key not in hdf5.OPTIONAL]:
        raise UserError(f"{path}: columns does not say where {missing[0]!r} is; add it")
    names = {key: [x] if isinstance(x, str) else list(x) for key, x in columns.items()}
    for key, group in names.items():
        if len(group) != 1 and (not group or key in ORDER or hdf5.LAYOUT[key][1] == 1):
            raise UserError(f"{path}: columns maps {key!r} to {len(group)} columns, expected one; name it")
    return names


def _find(wanted: Sequence[str], found: Sequence[str], path: Path) -> list[int]:
    """Where the wanted columns are."""
    for name in wanted:
        if name not in found:
            lower = {x.lower(): x for x in found}
            near = [lower[x] for x in difflib.get_close_matches(name.lower(), lower, 1, 0)]
            raise UserError(
                f"{path}: no column {name!r}; {_did_you_mean(near)}found {', '.join(found) or 'none'}"
            )
        if list(found).count(name) > 1:
            raise UserError(
                f"{path}: {list(found).count(name)} columns are called {name!r}; give each a name of its own"
            )
    return [list(found).index(name) for name in wanted]


def _did_you_mean(near: Sequence[str]) -> str:
    return f"did you mean {near[0]!r}? " if near else ""


def _csv(path: Path, wanted: list[str], names: dict[str, list[str]]) -> Table:
    """Comma, semicolon or tab, whichever the header has most of; `true` and `false` are flags, an empty cell is NaN."""
    header: list[str] = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file, warnings.catch_warnings():
            line = file.readline()
            delimiter = max(",;\t", key=line.count)
            header = [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
            at = _find(wanted, header, path)
            lines = _lines(file, delimiter, len(header), path)
            converters = _converters(dict(zip(wanted, at, strict=True)), names)
            warnings.filterwarnings("ignore", message="loadtxt: input contained no data")
            rows = np.loadtxt(
                lines,
                delimiter=delimiter,
                usecols=at,
                converters=converters,
                quotechar='"',
                comments=None,
                ndmin=2,
            )
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not text in UTF-8 ({error.reason}); is it a CSV file?") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {_where(error, header)}; write it anew") from error
    return {name: rows[:, i] for i, name in enumerate(wanted)}


def _lines(file: Iterable[str], delimiter: str, columns: int, path: Path) -> Iterator[str]:
    """The lines, each with as many cells as the header has: NumPy counts none beyond those that it is asked for."""
    for number, line in enumerate(file, 2):
        cells = line.count(delimiter) + 1
        if cells != columns and '"' not in line and line.strip():
            raise UserError(
                f"{path}: line {number} has {cells} cells, expected {columns}, as the header; mend it"
            )
        yield line


def _converters(
    at: Mapping[str, int], names: Mapping[str, Sequence[str]]
) -> dict[int | str, Callable[[str], float]]:
    """What reads the cells that may hold more than numbers; NumPy is ten times as fast with the others."""
    ids: dict[str, int] = {}
    plain = [name for key in ("observations", "actions", "rewards", "step") for name in names.get(key, ())]
    converters: dict[int | str, Callable[[str], float]] = {
        i: _cell for name, i in at.items() if name not in plain
    }
    return converters | {
        at[name]: lambda cell: ids.setdefault(cell, len(ids)) for name in names.get("episode", ())
    }


def _cell(text: str) -> float:
    text = text.strip()
    return float("nan") if not text else FLAGS[text.lower()] if text.lower() in FLAGS else float(text)


def _where(error: Exception, header: list[str]) -> str:
    """NumPy's complaint with the column's name, and rows counted from 1 after the header."""
    text = " ".join(str(error).split()).rstrip(".")
    if cell := re.fullmatch(r"(could not convert .*) to float64 at row (\d+), column (\d+)", text):
        return f"{cell[1]} to a number in row {int(cell[2]) + 1} after the header, column {header[int(cell[3]) - 1]!r}"
    return text


def _parquet(path: Path, wanted: list[str]) -> Table:
    """A column of lists, all of one length, is a matrix."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise UserError(
            f"{path}: Parquet needs an extra; pip install 'mbo2o[parquet]', or write it as CSV"
        ) from error
    try:
        _find(wanted, parquet.read_schema(path).names, path)
        table = parquet.read_table(path, columns=wanted)
        return {name: _array(table[name].combine_chunks()) for name in wanted}
    except (OSError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"{path}: not a readable Parquet file ({' '.join(str(error).split())}); write it anew"
        ) from error


def _array(column: Any) -> np.ndarray:
    x = np.asarray(column.to_numpy(zero_copy_only=False))
    lists = len(x) > 0 and isinstance(x[0], np.ndarray)
    return np.stack(list(x)) if lists else x


def _in_order(fields: hdf5.Fields, order: Table, path: Path) -> hdf5.Fields:
    """Sort by episode and step, and add to `timeouts` where the episodes end that these columns tell apart."""
    if not order:
        return fields
    for key, x in order.items():
        if key == "step" and (x.dtype.kind not in "biuf" or not np.isfinite(x).all()):
            raise UserError(f"{path}: the step column holds what is no number; give one to every row")
    step, episode = order.get("step"), _ranks(order["episode"]) if "episode" in order else None
    if step is not None and episode is not None:
        at = np.lexsort((step, episode))
        if (np.diff(at) != 1).any():
            warnings.warn(f"{path}: rows are out of order; sorted by episode and step", stacklevel=4)
            fields, step, episode = {key: x[at] for key, x in fields.items()}, step[at], episode[at]
    cuts = _cuts(step, episode, path)
    ends = np.append(cuts, episode is not None) & ~fields["terminals"]
    if (
        episode is None and "timeouts" not in fields
    ):  # an episode column says where they end, steps let it be concluded
        text = f"{path}: no timeouts: {np.count_nonzero(ends)} episode ends follow from 'step', beside the terminations"
        warnings.warn(text, stacklevel=4)
    return fields | {"timeouts": fields.get("timeouts", ends) | ends}


def _cuts(step: np.ndarray | None, episode: np.ndarray | None, path: Path) -> np.ndarray:
    """`(N - 1,)` bool: an episode ends in this row."""
    if episode is None:
        assert step is not None
        cuts = np.diff(step) <= 0
    else:
        cuts = np.diff(episode) != 0
        if (back := np.diff(episode) < 0).any():
            row = int(np.argmax(back)) + 1
            raise UserError(
                f"{path}: in row {row} an episode goes on after another one; sort the table, or map 'step', too"
            )
    if step is None:
        return cuts
    ahead = np.diff(step)
    if (twice := ~cuts & (ahead == 0)).any():
        row = int(np.argmax(twice)) + 1
        raise UserError(
            f"{path}: step {step[row]:g} is there twice in one episode (row {row}, in order); drop one of them"
        )
    counts = (step == np.floor(step)).all() and ahead[~cuts].min(initial=2) == 1
    if counts and (gaps := ~cuts & (ahead > 1)).any():  # what a clock shows may come at any distance
        warnings.warn(
            f"{path}: {gaps.sum()} times steps are missing inside an episode; it is cut there", stacklevel=5
        )
        cuts |= gaps
    return cuts


def _ranks(x: np.ndarray) -> np.ndarray:
    """0 for the value that comes first, 1 for the next new one, and so on."""
    _, first, inverse = np.unique(
        x.astype(str) if x.dtype == object else x, return_index=True, return_inverse=True
    )
    return np.argsort(np.argsort(first))[inverse]
