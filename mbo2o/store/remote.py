"""Datasets by name that are fetched once, on demand: what they are, where they are kept, and how they get there whole.

`remote.tsv` beside this file knows size, sha256, licence and addresses of each; a file of that name and layout in the folder of
the fetched ones adds to it, and may give other addresses for the same names. What comes is written to `<file>.part`, which
later calls go on from, is compared with the sha256 and only then gets its name. `fetch` alone makes requests, and none with
`MBO2O_OFFLINE=1`; training calls `Remote.ready`.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import os
import re
import shutil
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from mbo2o.data.dataset import TransitionDataset
from mbo2o.doctor.findings import ADVICE
from mbo2o.store import content, hdf5
from mbo2o.types import UserError

SHIPPED = Path(__file__).with_name("remote.tsv")
COLUMNS = ("name", "env_id", "collected_in", "licence", "size", "sha256", "urls")
PATTERNS = {
    "name": r"\w[\w.-]*(/\w[\w.-]*)*",
    "size": r"[1-9]\d*",
    "sha256": r"[0-9a-f]{64}",
    "urls": r"https?://\S+( https?://\S+)*",
}
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as cut."""
CHUNK = 2**20


@dataclass(frozen=True)
class Remote:
    """A line of the registry."""

    name: str
    env_id: str | None
    """Gymnasium id to run it in; None where there is none of the same layout."""
    collected_in: str | None
    """The environment that the data are of."""
    licence: str
    size: int
    """Bytes."""
    sha256: str
    urls: tuple[str, ...]
    """All of the same file, tried in this order."""

    @property
    def path(self) -> Path:
        """Where its file is, or belongs."""
        return folder() / f"{self.name}.hdf5"

    @property
    def attrs(self) -> hdf5.Attrs:
        """What is known of its rows besides the file: `env_id` and `collected_in`, where there are such."""
        known = {"env_id": self.env_id, "collected_in": self.collected_in}
        return {key: x for key, x in known.items() if x is not None}

    def state(self) -> str:
        """Whether it is there, by its size alone."""
        if not self.path.is_file():
            return "not fetched"
        return "fetched" if self.path.stat().st_size == self.size else "damaged"

    def fault(self) -> str | None:
        """What is wrong with the file that has its place, in words; None if it is the one."""
        try:
            if (size := self.path.stat().st_size) != self.size:
                return f"has {size} bytes, expected {self.size}"
            if (found := content.digest(self.path)) != self.sha256:
                return f"has sha256 {found}, expected {self.sha256}"
        except FileNotFoundError:
            return "is not there"
        except OSError as e:
            return f"cannot be read ({e.strerror})"
        return None

    def ready(self) -> Path:
        """Its file, compared with the sha256, without a request. Raises `UserError` if it is not there or is another."""
        command = f"`mbo2o data fetch {self.name}`"
        if not self.path.exists():
            fetch_it = f"{command} gets it ({self.size / 1e6:.0f} MB)"
            raise UserError(f"{self.name}: not fetched yet; {fetch_it}, or {self._by_hand()}")
        if fault := self.fault():
            raise UserError(f"{self.path}: {fault}; {command} gets it anew")
        return self.path

    def describe(self, dataset: TransitionDataset) -> TransitionDataset:
        """The dataset with `attrs` besides its file's own, which come first; warns if a run is in another environment."""
        attrs = self.attrs | dataset.attrs
        ours, theirs = attrs.get("env_id"), attrs.get("collected_in")
        if ours is not None and theirs not in (None, ours):
            text = f"the data are of {theirs}, and a run is in {ours} unless env= names another"
            warnings.warn(f"{self.name}: {text}: {ADVICE['environment_version']}", stacklevel=2)
        return replace(dataset, attrs=attrs)

    def _by_hand(self) -> str:
        return f"put {self.urls[0]} ({self.size} bytes, sha256 {self.sha256}) at {self.path}"


def folder() -> Path:
    """Of fetched files: `datasets` in `$MBO2O_DATA`, else in `$XDG_DATA_HOME/mbo2o`, else in `~/.local/share/mbo2o`."""
    own, home = os.environ.get("MBO2O_DATA"), os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(own or f"{home}/mbo2o").expanduser().absolute() / "datasets"


# ------------------------------------------------------------------------------------------------------------- registry


def registry() -> dict[str, Remote]:
    """All that can be fetched, by name: what ships, and what `remote.tsv` in `folder()` adds or replaces."""
    own = folder() / SHIPPED.name
    return read(SHIPPED) | (read(own) if own.is_file() else {})


def read(path: Path) -> dict[str, Remote]:
    """A registry. Raises `UserError` for a line that is not as it should be."""
    out: dict[str, Remote] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: cannot be read ({_one_line(e)}); mend or remove it") from e
    for number, line in enumerate(lines, 1):
        if line.startswith("#") or not line.strip():
            continue
        row = dict(zip(COLUMNS, line.split("\t"), strict=False))
        bad = [key for key in COLUMNS if not re.fullmatch(PATTERNS.get(key, r"\S+"), row.get(key, ""))]
        if bad or row["name"] in out:
            problem = f"{bad[0]} is {row.get(bad[0], '')!r}" if bad else f"{row['name']} stands there twice"
            raise UserError(
                f"{path}, line {number}: {problem}; columns are {', '.join(COLUMNS)}, separated by tabs"
            )
        names = {key: None if row[key] == "-" else row[key] for key in ("env_id", "collected_in")}
        urls = tuple(row["urls"].split())
        out[row["name"]] = Remote(
            row["name"],
            **names,
            licence=row["licence"],
            size=int(row["size"]),
            sha256=row["sha256"],
            urls=urls,
        )
    return out


def find(name: str) -> Remote:
    """The registry's line of that name; `UserError`, which names the nearest, if there is none."""
    known = registry()
    if name not in known:
        near = [x for x in known if x.endswith(f"/{name}")] or difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"no remote dataset is called {name!r}; {hint}`mbo2o data list` shows all")
    return known[name]


def lookup(name: str) -> Remote | None:
    """The same for names that may be of other things: None for one that is not close to any, and for `minari:ID`."""
    known = registry()
    if name in known:
        return known[name]
    if "/" not in name or name.startswith("minari:"):
        return None
    if near := difflib.get_close_matches(name, known, 1, 0.9):
        raise UserError(
            f"no dataset is called {name!r}; did you mean {near[0]!r}? (a Minari set: minari:{name})"
        )
    return None


# ------------------------------------------------------------------------------------------------------------- download


class _Failure(Exception):
    """What one address did; there may be another."""


def fetch(entry: Remote) -> bool:
    """Have the file of `entry` at its path, whole; true if it had to be fetched.

    A connection that is cut leaves `<file>.part`, from which the next call goes on; a file that is not the registered one, or
    a disk that refuses, leaves nothing. Raises `UserError`.
    """
    if not (fault := entry.fault()):
        return False
    if os.environ.get("MBO2O_OFFLINE", "0") not in ("", "0"):
        raise UserError(
            f"{entry.path}: {fault}, and MBO2O_OFFLINE is set, so that nothing is fetched; {entry._by_hand()}"
        )
    if entry.path.exists():
        warnings.warn(f"{entry.path}: {fault}; it is fetched anew", stacklevel=2)
    part = entry.path.with_name(f"{entry.path.name}.part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        with _alone(part) as file:
            _fill(file, part, entry)
            os.replace(part, entry.path)
    except OSError as e:
        raise UserError(
            f"{e.filename or part}: cannot be written ({e.strerror}); MBO2O_DATA names another folder"
        ) from e
    return True


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[BinaryIO]:
    """The file at `part`, to be appended to by this process alone; removed if nothing is in it, or if the disk refused."""
    with open(part, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.samestat(
                os.fstat(file.fileno()), os.stat(part)
            )  # or it was given its name a moment ago
        except (BlockingIOError, FileNotFoundError):
            ours = False
        except OSError:  # some network file systems have no locks; of two writers the sha256 tells
            ours = True
        if not ours:
            raise UserError(f"{part}: another process is fetching it; wait until it is done")
        try:
            yield file
        except OSError:
            os.ftruncate(file.fileno(), 0)
            raise
        finally:
            if not os.fstat(file.fileno()).st_size:
                part.unlink(missing_ok=True)


def _fill(file: BinaryIO, part: Path, entry: Remote) -> None:
    """Have the whole file in `file`, from the first address that gives it."""
    have, problems = file.seek(0, os.SEEK_END), []
    if have > entry.size or (have == entry.size and content.digest(part) != entry.sha256):
        have = file.truncate(0)
    if (free := shutil.disk_usage(part.parent).free) < entry.size - have:
        raise UserError(
            f"{part}: needs {entry.size - have} bytes, {free} are free; MBO2O_DATA names another folder"
        )
    for url in entry.urls:
        try:
            _append(file, url, entry)
            file.flush()
            os.fsync(file.fileno())
            if (found := content.digest(part)) == entry.sha256:
                return
            file.truncate(0)
            raise _Failure(f"another file came, sha256 {found}, expected {entry.sha256}")
        except _Failure as e:
            problems.append(f"{url}: {e}")
    have = file.seek(0, os.SEEK_END)
    kept = (
        f"the same command goes on from the {have} bytes that are kept"
        if have
        else "try the same command later"
    )
    raise UserError(
        f"{entry.name}: not fetched: {'; '.join(problems)}; {kept}, or put the file at {entry.path} by hand"
    )


def _append(file: BinaryIO, url: str, entry: Remote) -> None:
    """Append what `file` lacks; where the server cannot give a rest, begin anew."""
    have = file.seek(0, os.SEEK_END)
    if have == entry.size:
        return
    with _answer(url, have, entry.size) as answer:
        if answer.status == 200:
            have = file.truncate(0)
        with tqdm(
            desc=entry.name, total=entry.size, initial=have, unit="B", unit_scale=True, disable=None
        ) as bar:
            while have < entry.size and (chunk := _received(answer, min(CHUNK, entry.size - have), have)):
                file.write(chunk)
                have += len(chunk)
                bar.update(len(chunk))
    file.flush()
    if have < entry.size:
        raise _Failure(f"the connection was closed after {have} of {entry.size} bytes")


def _received(answer: HTTPResponse, n: int, have: int) -> bytes:
    try:
        return answer.read1(n)  # not read: what came before a connection is lost would be lost with it
    except (OSError, HTTPException) as e:
        raise _Failure(f"the connection was lost after {have} bytes ({_one_line(e)})") from e


def _answer(url: str, have: int, size: int) -> HTTPResponse:
    """The server's answer, before its body: 206 with bytes `have` to `size`, or 200 with all of them."""
    headers = {
        "User-Agent": "mbo2o",
        "Accept-Encoding": "identity",
        **({"Range": f"bytes={have}-"} if have else {}),
    }
    try:
        answer = _opener().open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as e:
        e.close()
        if e.code == 416 and have:
            return _answer(url, 0, size)
        raise _Failure(f"HTTP {e.code} {_one_line(e.reason)}") from e
    except (OSError, HTTPException, ValueError) as e:
        raise _Failure(_one_line(getattr(e, "reason", e))) from e
    length, kind = answer.headers.get("Content-Length"), answer.headers.get("Content-Type", "unknown type")
    rest = f"bytes {have}-{size - 1}/{size}"
    if (answer.status == 200 and length == str(size)) or (
        answer.status == 206 and answer.headers["Content-Range"] == rest
    ):
        return answer
    answer.close()
    if answer.status == 206 and have:
        return _answer(url, 0, size)
    raise _Failure(
        f"HTTP {answer.status} with {length or 'an unknown number of'} bytes ({kind}), expected {size}"
    )


def _opener() -> urllib.request.OpenerDirector:
    """One that follows redirects to HTTP and HTTPS, and to nothing else: `file:` and `ftp:` have no handler."""
    opener = urllib.request.OpenerDirector()
    proxies = {scheme: x for scheme, x in urllib.request.getproxies().items() if scheme in ("http", "https")}
    for handler in (
        urllib.request.ProxyHandler(proxies),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _one_line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__
