"""Tables with one row per step: CSV, which NumPy reads, and Parquet, which needs pyarrow."""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mbo2o.data.actions import Actions, Bounds
from mbo2o.data.dataset import TransitionDataset, build_dataset
from mbo2o.data.fields import FIELDS, OPTIONAL, VECTORS, Attrs, Fields, check_fields
from mbo2o.errors import optional
from mbo2o.registry import did_you_mean
from mbo2o.store.whole import one_line, shown
from mbo2o.types import UserError

ORDER = ("episode", "step")
FLAGS = {"true": 1.0, "false": 0.0}
SUFFIXES = (".csv", ".tsv", ".parquet")

LINE = ""
"""The key of the lines beside the columns of a CSV file; no column has an empty name there."""

Columns = Mapping[str, str | Sequence[str]]
Table = dict[str, np.ndarray]


def read_table(
    path: str | os.PathLike[str],
    columns: Columns,
    attrs: Attrs | None = None,
    bounds: Bounds | None = None,
    clip: bool = False,
) -> TransitionDataset:
    """Read a CSV file with a header, or Parquet (a name in .parquet; extra `parquet`), with one row per step.

    columns: which column holds each field, `{"observations": ["x", "y"], "actions": ["u"], "rewards": "r",
    "terminals": "done"}`, and if there are such columns, `timeouts`, `next_observations` (an empty cell is
    unknown), `episode` (any value, the same in all rows of an episode) and `step` (numbers that grow within
    an episode). attrs, bounds, clip: see `TransitionDataset.from_arrays`.

    An episode ends where `episode` changes, or, without that column, where `step` does not grow. With both
    columns, rows in another order are sorted, episodes by their first row, and a warning says so. With
    `episode` alone, an episode that continues after another one is refused. If `step` counts by one and some
    numbers are missing, the episode is cut there, with a warning. The last row of an `episode` counts as a
    timeout if it did not terminate. The columns' names become the attributes `observation_names` and
    `action_names`, JSON lists, which a policy's io.json repeats.

    Raises `UserError` for a column that is missing (naming the nearest), a cell that is not a number, and as
    `from_arrays` does. Errors name the line of a CSV file, of which the header is line 1, and the row of a
    Parquet file, counted from 0.
    """
    fields = table_fields(Path(path), columns, Actions.given(bounds, clip))
    names = _names(columns, Path(path))
    said: Attrs = {f"{key[:-1]}_names": json.dumps(names[key]) for key in ("observations", "actions")}
    return build_dataset(fields, said | (attrs or {}), os.fspath(path))


def header_of(path: Path) -> list[str]:
    """The names of a table's columns. Raises `UserError` for a file that is no table."""
    if path.suffix == ".parquet":
        try:
            return list(optional("pyarrow.parquet", f"{path}: Parquet", "parquet").read_schema(path).names)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not a readable Parquet file ({one_line(error)})") from error
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            line = file.readline()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not text in UTF-8 ({one_line(error)}); is it a CSV file?") from error
    return [name.strip() for name in next(csv.reader([line], delimiter=_delimiter(line)), [])]


def _delimiter(line: str) -> str:
    return max(",;\t", key=line.count)


def table_columns(path: Path, columns: Columns, key: str) -> np.ndarray:
    """The columns of one field as they are stored, `(N, n)`. Raises `UserError` as `read_table` does."""
    names = _names(columns, path)
    table = (
        _parquet(path, names[key]) if path.suffix == ".parquet" else _csv(path, names[key], {key: names[key]})
    )
    return np.column_stack([table[name] for name in names[key]])


def table_fields(path: Path, columns: Columns, units: Actions) -> Fields:
    """The fields that `columns` maps to columns, checked and in time order."""
    return _read(path, columns, units)[0]


def table_lines(path: Path, columns: Columns, units: Actions) -> np.ndarray:
    """The lines of a CSV file that hold the rows of `table_fields`, `(N,)`; the header is line 1."""
    return _read(path, columns, units)[1]


def _read(path: Path, columns: Columns, units: Actions) -> tuple[Fields, np.ndarray]:
    """The fields in time order, and where each row stands: in CSV its line, in Parquet its row from 0."""
    names = _names(columns, path)
    if not path.is_file():
        raise UserError(f"{shown(path)}: no such file; check the path")
    wanted = list(dict.fromkeys(name for group in names.values() for name in group))
    text = path.suffix != ".parquet"
    table = _csv(path, wanted, names) if text else _parquet(path, wanted)
    places = Places("line", table.pop(LINE)) if text else Places("row", np.arange(len(table[wanted[0]])))
    fields = {}
    for key, group in names.items():
        if key in FIELDS:
            vector = key in VECTORS
            fields[key] = table[group[0]] if vector else np.column_stack([table[name] for name in group])
    order = {key: table[names[key][0]] for key in ORDER if key in names}
    try:
        checked = check_fields(fields, shown(path), units=units)
    except UserError as error:
        raise UserError(places.told(str(error), fields, names)) from error
    return _in_order(checked, order, places, path)


@dataclass(frozen=True)
class Places:
    """Where the rows of a table stand in its file, for messages."""

    word: str
    """`line`, or `row` in a file that has no lines."""
    at: np.ndarray
    """`(N,)`, for each row that was read."""

    def of(self, row: Any) -> str:
        """The place of a row, such as "line 17"."""
        return f"{self.word} {self.at[int(row)]}"

    def told(self, text: str, fields: Mapping[str, np.ndarray], names: Mapping[str, Sequence[str]]) -> str:
        """The message about a field with its row's place; of several columns it names the one at fault."""
        found = re.search(r"in row (\d+)", text)
        key = re.search(r": '(\w+)' ", text)
        if not found:
            return text
        place = f"in {self.of(found[1])}"
        if key and len(group := names.get(key[1], ())) > 1:
            bad = np.flatnonzero(~np.isfinite(fields[key[1]][int(found[1])]))
            place += f", column {group[bad[0]]!r}" if len(bad) else ""
        return text.replace(found[0], place, 1)


def _names(columns: Columns, path: Path) -> dict[str, list[str]]:
    """The columns of each field as a list. Raises `UserError` for unknown and missing fields."""
    known = [*FIELDS, *ORDER]
    for key in columns:
        if key not in known:
            hint = did_you_mean(key, known, 0.4)
            raise UserError(f"{path}: columns has no use for {key!r}; {hint}it maps {', '.join(known)}")
    if missing := [key for key in FIELDS if key not in columns and key not in OPTIONAL]:
        raise UserError(f"{path}: columns does not say where {missing[0]!r} is; add it")
    names = {key: [x] if isinstance(x, str) else list(x) for key, x in columns.items()}
    for key, group in names.items():
        if len(group) != 1 and (not group or key in ORDER or key in VECTORS):
            raise UserError(f"{path}: columns maps {key!r} to {len(group)} columns, expected one; name it")
    return names


def _find(wanted: Sequence[str], found: Sequence[str], path: Path) -> list[int]:
    """The positions of the wanted columns. Raises `UserError` for one that is missing or not unique."""
    for name in wanted:
        if name not in found:
            hint = did_you_mean(name, found, 0)
            raise UserError(f"{path}: no column {name!r}; {hint}found {', '.join(found) or 'none'}")
        if list(found).count(name) > 1:
            raise UserError(
                f"{path}: {list(found).count(name)} columns are called {name!r}; give each a name of its own"
            )
    return [list(found).index(name) for name in wanted]


def _csv(path: Path, wanted: list[str], names: dict[str, list[str]]) -> Table:
    """Read CSV; the separator is comma, semicolon or tab, whichever is most frequent in the header.

    `true` and `false` are flags, and an empty cell is NaN. `LINE` holds the line of each row.
    """
    header: list[str] = []
    kept: list[int] = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file, warnings.catch_warnings():
            line = file.readline()
            delimiter = _delimiter(line)
            header = [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
            at = _find(wanted, header, path)
            lines = _lines(file, delimiter, len(header), path, kept)
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
        raise UserError(f"{path}: {_numpy_error(error, header, kept)}; mend it") from error
    return {name: rows[:, i] for i, name in enumerate(wanted)} | {LINE: np.asarray(kept[: len(rows)])}


def _lines(file: Iterable[str], delimiter: str, columns: int, path: Path, kept: list[int]) -> Iterator[str]:
    """The lines; the numbers of those that begin a row go to `kept`.

    Raises `UserError` for a wrong number of cells, which NumPy does not check.
    """
    inside = False  # a text between quotes goes on in the next line
    for number, line in enumerate(file, 2):
        cells = line.count(delimiter) + 1
        if line.strip() and not inside:
            kept.append(number)
        inside ^= bool(line.count('"') % 2)
        if cells != columns and '"' not in line and line.strip():
            raise UserError(
                f"{path}: line {number} has {cells} cells, expected {columns}, as the header; mend it"
            )
        yield line


def _converters(
    at: Mapping[str, int], names: Mapping[str, Sequence[str]]
) -> dict[int | str, Callable[[str], float]]:
    """Converters for columns whose cells may hold text; NumPy reads the others ten times as fast."""
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


def _numpy_error(error: Exception, header: list[str], lines: list[int]) -> str:
    """NumPy's message with the name of the column and the line of the file; `lines`: of each row."""
    text = one_line(error).rstrip(".")
    if cell := re.fullmatch(r"could not convert string (.*) to float64 at row (\d+), column (\d+)", text):
        found = "an empty cell" if cell[1] == "''" else cell[1]
        return f"line {lines[int(cell[2])]}, column {header[int(cell[3]) - 1]!r}: {found} is not a number"
    return text


def _parquet(path: Path, wanted: list[str]) -> Table:
    """Read Parquet; a column of lists, all of one length, is a matrix."""
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
        raise UserError(f"{path}: not a readable Parquet file ({one_line(error)}); write it again") from error


def _array(column: Any) -> np.ndarray:
    x = np.asarray(column.to_numpy(zero_copy_only=False))
    lists = len(x) > 0 and isinstance(x[0], np.ndarray)
    return np.stack(list(x)) if lists else x


def _in_order(fields: Fields, order: Table, places: Places, path: Path) -> tuple[Fields, np.ndarray]:
    """Sort by episode and step, and add to `timeouts` the episode ends that these columns show.

    Returns the fields, and the place of each row.
    """
    if not order:
        return fields, places.at
    for key, x in order.items():
        if key == "step" and (x.dtype.kind not in "biuf" or not np.isfinite(x).all()):
            bad = f" ({places.of(np.argmin(np.isfinite(x)))})" if x.dtype.kind in "biuf" else ""
            raise UserError(
                f"{path}: the step column holds values that are not numbers{bad}; give one to every row"
            )
    step = order.get("step")
    episode = _ranks(order["episode"]) if "episode" in order else None
    if step is not None and episode is not None:
        at = np.lexsort((step, episode))
        if (np.diff(at) != 1).any():
            warnings.warn(f"{path}: rows are out of order; sorted by episode and step", stacklevel=4)
            fields = {key: x[at] for key, x in fields.items()}
            step, episode, places = step[at], episode[at], replace(places, at=places.at[at])
    cuts = _cuts(step, episode, places, path)
    ends = np.append(cuts, episode is not None) & ~fields["terminals"]
    # An episode column shows the ends; from steps alone they are inferred.
    if episode is None and "timeouts" not in fields:
        text = f"{np.count_nonzero(ends)} episode ends follow from 'step', beside the terminations"
        warnings.warn(f"{path}: no timeouts: {text}", stacklevel=4)
    return fields | {"timeouts": fields.get("timeouts", ends) | ends}, places.at


def _cuts(step: np.ndarray | None, episode: np.ndarray | None, places: Places, path: Path) -> np.ndarray:
    """`(N - 1,)` bool: whether an episode ends in this row."""
    if episode is None:
        assert step is not None
        cuts = np.diff(step) <= 0
    else:
        cuts = np.diff(episode) != 0
        if (back := np.diff(episode) < 0).any():
            raise UserError(
                f"{path}: in {places.of(np.argmax(back) + 1)} an episode goes on after another one; "
                "sort the table, or map 'step', too"
            )
    if step is None:
        return cuts
    ahead = np.diff(step)
    if (twice := ~cuts & (ahead == 0)).any():
        row = int(np.argmax(twice)) + 1
        raise UserError(
            f"{path}: step {step[row]:g} is there twice in one episode "
            f"({places.of(row - 1)} and {places.of(row)}); drop one of them"
        )
    counts = (step == np.floor(step)).all() and ahead[~cuts].min(initial=2) == 1
    if counts and (gaps := ~cuts & (ahead > 1)).any():  # the times of a clock may be any distance apart
        warnings.warn(
            f"{path}: {gaps.sum()} times steps are missing inside an episode; it is cut there", stacklevel=5
        )
        cuts |= gaps
    return cuts


def _ranks(x: np.ndarray) -> np.ndarray:
    """The values as numbers: 0 for the value that comes first, 1 for the next new value, and so on."""
    _, first, inverse = np.unique(
        x.astype(str) if x.dtype == object else x, return_index=True, return_inverse=True
    )
    return np.argsort(np.argsort(first))[inverse]
