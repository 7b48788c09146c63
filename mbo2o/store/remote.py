"""Datasets that are downloaded once, by name, on request.

`remote.tsv` beside this file lists the size, sha256, licence and addresses of each. A file of the same name
and layout in the folder of fetched files adds to it, and may give other addresses for the same names. A
download is written to `<file>.part`, from which later calls continue; it gets its name after its sha256 was
checked. Only `fetch` makes requests, and none with `MBO2O_OFFLINE=1`; training calls `Remote.ready`.
"""

from __future__ import annotations

import contextlib
import difflib
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
from mbo2o.data.fields import Attrs
from mbo2o.registry import did_you_mean
from mbo2o.store.whole import file_sha256, one_line, sync, take_lock, writing
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
OTHER_VERSION = (
    "rewards and physics differ (in -v5 Hopper's last reward, Walker2d's friction): "
    "consider it when you compare scores"
)
"""What a run in another version of the environment has to consider."""


@dataclass(frozen=True)
class Remote:
    """One line of the registry."""

    name: str
    env_id: str | None
    """The Gymnasium id of the environment to run in; None if no environment has the same observations."""
    collected_in: str | None
    """The environment in which the data were collected."""
    licence: str
    size: int
    """Bytes."""
    sha256: str
    urls: tuple[str, ...]
    """Addresses of the same file, tried in this order."""

    @property
    def path(self) -> Path:
        """Where the file is, or has to be."""
        return fetched_folder() / f"{self.name}.hdf5"

    @property
    def attrs(self) -> Attrs:
        """What the registry knows besides the file: `env_id` and `collected_in`, if it names them."""
        known = {"env_id": self.env_id, "collected_in": self.collected_in}
        return {key: x for key, x in known.items() if x is not None}

    def state(self) -> str:
        """Whether it is there, by its size alone."""
        if not self.path.is_file():
            return "not fetched"
        return "fetched" if self.path.stat().st_size == self.size else "damaged"

    def fault(self) -> str | None:
        """What is wrong with the file at `path`, in words; None if it is the registered file."""
        try:
            if (size := self.path.stat().st_size) != self.size:
                return f"has {size} bytes, expected {self.size}"
            if (found := file_sha256(self.path)) != self.sha256:
                return f"has sha256 {found}, expected {self.sha256}"
        except FileNotFoundError:
            return "is not there"
        except OSError as e:
            return f"cannot be read ({e.strerror})"
        return None

    def ready(self) -> Path:
        """The path of the file, whose sha256 is checked, without a request. Raises `UserError`."""
        command = f"`mbo2o data fetch {self.name}`"
        if not self.path.exists():
            fetch_it = f"{command} gets it ({self.size / 1e6:.0f} MB)"
            raise UserError(f"{self.name}: not fetched yet; {fetch_it}, or {self.by_hand()}")
        if fault := self.fault():
            raise UserError(f"{self.path}: {fault}; {command} gets it again")
        return self.path

    def describe(self, dataset: TransitionDataset) -> TransitionDataset:
        """Add `attrs` that its file lacks; warn if a run uses another environment than the data."""
        attrs = self.attrs | dataset.attrs
        ours, theirs = attrs.get("env_id"), attrs.get("collected_in")
        if ours is not None and theirs not in (None, ours):
            text = f"the data are of {theirs}, and a run is in {ours} unless env= names another"
            warnings.warn(f"{self.name}: {text}: {OTHER_VERSION}", stacklevel=2)
        return replace(dataset, attrs=attrs)

    def by_hand(self) -> str:
        """How to put the file there without this program."""
        return f"put {self.urls[0]} ({self.size} bytes, sha256 {self.sha256}) at {self.path}"


def fetched_folder() -> Path:
    """Where fetched files are: `datasets` in $MBO2O_DATA, $XDG_DATA_HOME/mbo2o or ~/.local/share/mbo2o."""
    own, home = os.environ.get("MBO2O_DATA"), os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(own or f"{home}/mbo2o").expanduser().absolute() / "datasets"


# ------------------------------------------------------------------------------------------------- registry


def registry() -> dict[str, Remote]:
    """All datasets that can be fetched, by name: the shipped lines and those of the user's `remote.tsv`."""
    own = fetched_folder() / SHIPPED.name
    return read_registry(SHIPPED) | (read_registry(own) if own.is_file() else {})


def read_registry(path: Path) -> dict[str, Remote]:
    """Read a registry. Raises `UserError` for a line in another form."""
    out: dict[str, Remote] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: cannot be read ({one_line(e)}); mend or remove it") from e
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


def find_remote(name: str) -> Remote:
    """The registry's dataset of that name. Raises `UserError`, with the nearest name, if there is none."""
    known = registry()
    if name not in known:
        ends = [x for x in known if x.endswith(f"/{name}")]
        hint = did_you_mean(name, ends, 0) or did_you_mean(name, known)
        raise UserError(f"no remote dataset is called {name!r}; {hint}`mbo2o data list` shows all")
    return known[name]


def lookup_remote(name: str) -> Remote | None:
    """The same for names that may mean something else: None if no name is close, and for `minari:ID`."""
    known = registry()
    if name in known:
        return known[name]
    if "/" not in name or name.startswith("minari:"):
        return None
    # capitals count: Minari's D4RL/antmaze/umaze-v1 is no misspelt d4rl/antmaze-umaze-v2
    if near := difflib.get_close_matches(name, known, 1, 0.9):
        hint = f"did you mean {near[0]!r}? "
        raise UserError(f"no dataset is called {name!r}; {hint}(a Minari set: minari:{name})")
    return None


# ------------------------------------------------------------------------------------------------- download


class _Failure(Exception):
    """One address failed; there may be another."""


def fetch(entry: Remote) -> bool:
    """Download the file of `entry` unless it is there; true if it was downloaded.

    After a lost connection `<file>.part` stays, and the next call continues from it. Nothing stays after a
    download of another file, or if the disk refuses. Raises `UserError`.
    """
    if not (fault := entry.fault()):
        return False
    if os.environ.get("MBO2O_OFFLINE", "0") not in ("", "0"):
        raise UserError(
            f"{entry.path}: {fault}, and MBO2O_OFFLINE is set, so that nothing is fetched; {entry.by_hand()}"
        )
    if entry.path.exists():
        warnings.warn(f"{entry.path}: {fault}; it is fetched again", stacklevel=2)
    part = entry.path.with_name(f"{entry.path.name}.part")
    with writing(part, "MBO2O_DATA names another folder"):
        part.parent.mkdir(parents=True, exist_ok=True)
        with _locked_part(part) as file:
            _fill(file, part, entry)
            os.replace(part, entry.path)
    return True


@contextlib.contextmanager
def _locked_part(part: Path) -> Iterator[BinaryIO]:
    """Open `part` for appending by this process alone; it is removed if it is empty or the disk refuses.

    Without locks two processes may write; the sha256 then shows it.
    """
    with open(part, "ab") as file:
        locked = take_lock(file.fileno())
        if locked is False or (locked and not _is_at(file, part)):
            raise UserError(f"{part}: another process is fetching it; wait until it is done")
        try:
            yield file
        except OSError:
            os.ftruncate(file.fileno(), 0)
            raise
        finally:
            if not os.fstat(file.fileno()).st_size:
                part.unlink(missing_ok=True)


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file is the one at `path`; another process may have renamed it a moment ago."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    return False


def _fill(file: BinaryIO, part: Path, entry: Remote) -> None:
    """Complete `file` from the first address that gives the whole of it."""
    have = file.seek(0, os.SEEK_END)
    problems = []
    if have > entry.size or (have == entry.size and file_sha256(part) != entry.sha256):
        have = file.truncate(0)
    if (free := shutil.disk_usage(part.parent).free) < entry.size - have:
        raise UserError(
            f"{part}: needs {entry.size - have} bytes, {free} are free; MBO2O_DATA names another folder"
        )
    for url in entry.urls:
        try:
            _append(file, url, entry)
            file.flush()
            sync(part)
            if (found := file_sha256(part)) == entry.sha256:
                return
            file.truncate(0)
            raise _Failure(f"another file came, sha256 {found}, expected {entry.sha256}")
        except _Failure as e:
            problems.append(f"{url}: {e}")
    have = file.seek(0, os.SEEK_END)
    retry = (
        f"the same command goes on from the {have} bytes that are kept"
        if have
        else "try the same command later"
    )
    text = f"{'; '.join(problems)}; {retry}, or put the file at {entry.path} by hand"
    raise UserError(f"{entry.name}: not fetched: {text}")


def _append(file: BinaryIO, url: str, entry: Remote) -> None:
    """Append what `file` lacks; start from the beginning if the server cannot send a part."""
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
        return answer.read1(n)  # read() would drop the bytes that came before a connection is lost
    except (OSError, HTTPException) as e:
        raise _Failure(f"the connection was lost after {have} bytes ({one_line(e)})") from e


def _answer(url: str, have: int, size: int) -> HTTPResponse:
    """The server's answer, without its body: 206 with bytes `have` to `size`, or 200 with all of them."""
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
        raise _Failure(f"HTTP {e.code} {one_line(e.reason)}") from e
    except (OSError, HTTPException, ValueError) as e:
        raise _Failure(one_line(getattr(e, "reason", e))) from e
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
    """An opener that follows redirects to HTTP and HTTPS only: `file:` and `ftp:` have no handler."""
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
