"""Downloads against a server on the loopback that cuts, lies, forgets and at last tells the truth."""

import errno
import fcntl
import hashlib
import io
import json
import re
import shutil
import threading
import tomllib
import types
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import mbo2o
from mbo2o.cli.main import main
from mbo2o.data.dataset import fields_of
from mbo2o.data.fields import check_fields
from mbo2o.store import datasets, minari, remote
from mbo2o.types import UserError

RIGHT = np.random.default_rng(0).bytes(100_000)
WRONG = np.random.default_rng(1).bytes(100_000)
CUT = 40_000
NAME = "lab/tiny-v0"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get("Range")))
        with suppress(ConnectionError):
            self.server.answer(self)

    def log_message(self, *args):
        pass


def reply(request, body, status=200, **headers):
    """Headers as keywords, `_` for `-`; None leaves one out."""
    request.send_response(status)
    for key, value in ({"Content_Length": len(body)} | headers).items():
        if value is not None:
            request.send_header(key.replace("_", "-"), str(value))
    request.end_headers()
    request.wfile.write(body)


def whole(content):
    """Ranges are ignored."""
    return lambda request: reply(request, content)


def ranged(content, **headers):
    """Ranges are served, with other headers if told so."""

    def answer(request):
        if not (asked := request.headers.get("Range")):
            return reply(request, content)
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        rest = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return reply(request, content[start:], 206, **({"Content_Range": rest} | headers))

    return answer


def cut(content, at=CUT):
    """The connection is closed after some bytes."""
    return lambda request: reply(request, content[:at], Content_Length=len(content))


def status(code, **headers):
    return lambda request: reply(request, b"<html>no</html>", code, Content_Type="text/html", **headers)


def unless_ranged(answer, otherwise):
    return lambda request: (answer if request.headers.get("Range") else otherwise)(request)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.requests, server.answer = [], whole(RIGHT)
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=lambda: server.serve_forever(0.01), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def offer(server, tmp_path, monkeypatch):
    """Puts a line into the user's own registry; `offer()` is of RIGHT at the server's."""
    monkeypatch.setenv("MBO2O_DATA", str(tmp_path / "store"))
    monkeypatch.delenv("MBO2O_OFFLINE", raising=False)

    def offer(urls=None, content=RIGHT, env_id="-", collected_in="-"):
        urls = urls or f"{server.url}/tiny.hdf5"
        line = [
            NAME,
            env_id,
            collected_in,
            "CC0-1.0",
            str(len(content)),
            hashlib.sha256(content).hexdigest(),
            urls,
        ]
        remote.fetched_folder().mkdir(parents=True, exist_ok=True)
        (remote.fetched_folder() / "remote.tsv").write_text("# ours\n\n" + "\t".join(line) + "\n")
        return remote.find_remote(NAME)

    return offer


def files():
    """All that is kept, the registry aside."""
    found = (p for p in remote.fetched_folder().rglob("*") if p.is_file() and p.name != "remote.tsv")
    return {p.relative_to(remote.fetched_folder()).as_posix(): p.read_bytes() for p in found}


WHOLE = {"lab/tiny-v0.hdf5": RIGHT}
PART = {"lab/tiny-v0.hdf5.part": RIGHT[:CUT]}


def refusal(entry):
    with pytest.raises(UserError) as caught:
        remote.fetch(entry)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def command(capsys, *args):
    with pytest.raises(SystemExit) as e:
        main(["data", *args])
    out = capsys.readouterr()
    assert "Traceback" not in out.err
    return e.value.code, out.out, out.err


def test_a_cut_and_a_wrong_file_are_refused_and_the_right_one_is_kept(server, offer, capsys):
    entry = offer()
    server.answer = cut(RIGHT)
    code, _, err = command(capsys, "fetch", NAME)
    assert (code, files()) == (2, PART)
    assert (
        "closed after 40000 of 100000 bytes; the same command goes on from the 40000 bytes that are kept"
        in err
    )
    server.answer = whole(WRONG)
    code, _, err = command(capsys, "fetch", NAME)
    assert (code, files()) == (2, {})
    assert f"{server.url}/tiny.hdf5: another file came, sha256 {hashlib.sha256(WRONG).hexdigest()}" in err
    assert f"expected {entry.sha256}" in err
    server.answer = whole(RIGHT)
    code, out, _ = command(capsys, "fetch", NAME)
    assert (code, files()) == (0, WHOLE)
    assert out == f"{entry.path}: fetched, size and sha256 are right\n"
    assert len(server.requests) == 3
    code, out, _ = command(capsys, "fetch", NAME)
    assert (code, out) == (0, f"{entry.path}: is there, size and sha256 are right\n")
    assert len(server.requests) == 3


def fetch_a_part(server, entry):
    server.answer = cut(RIGHT)
    refusal(entry)
    assert files() == PART
    server.requests.clear()


def test_after_a_cut_only_the_rest_is_requested(server, offer):
    entry = offer()
    fetch_a_part(server, entry)
    server.answer = unless_ranged(ranged(RIGHT), status(500))
    assert remote.fetch(entry)
    assert server.requests == [("/tiny.hdf5", f"bytes={CUT}-")]
    assert files() == WHOLE


def test_the_rest_of_another_file_is_detected(server, offer):
    entry = offer()
    fetch_a_part(server, entry)
    server.answer = ranged(WRONG)
    assert "another file came" in refusal(entry)
    assert files() == {}


@pytest.mark.parametrize(
    ("answer", "requests"),
    [
        (whole(RIGHT), 1),
        (unless_ranged(status(416), whole(RIGHT)), 2),
        (ranged(RIGHT, Content_Range=f"bytes 0-{len(RIGHT) - 1}/{len(RIGHT)}"), 2),
        (ranged(RIGHT, Content_Range=f"bytes {CUT}-{len(RIGHT)}/{len(RIGHT) + 1}"), 2),
        (ranged(RIGHT, Content_Range=None), 2),
        (
            lambda r: reply(
                r, RIGHT[CUT:] * 3, 206, Content_Range=f"bytes {CUT}-{len(RIGHT) - 1}/{len(RIGHT)}"
            ),
            1,
        ),
    ],
    ids=[
        "ignores ranges",
        "refuses ranges",
        "another range",
        "of a longer file",
        "no Content-Range",
        "sends too much",
    ],
)
def test_a_server_that_cannot_send_a_part_sends_all_of_it(answer, requests, server, offer):
    entry = offer()
    fetch_a_part(server, entry)
    server.answer = answer
    assert remote.fetch(entry)
    assert files() == WHOLE
    assert len(server.requests) == requests


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            whole(b"<html>please log in</html>" * 10),
            "HTTP 200 with 260 bytes (unknown type), expected 100000",
        ),
        (status(200), "HTTP 200 with 15 bytes (text/html), expected 100000"),
        (lambda r: reply(r, RIGHT, Content_Length=None), "an unknown number of bytes"),
        (whole(RIGHT * 2), "HTTP 200 with 200000 bytes"),
        (status(404), "HTTP 404 Not Found"),
        (status(416), "HTTP 416"),
        (status(503), "HTTP 503 Service Unavailable"),
        (status(302, Location="file:///etc/passwd"), "HTTP 302"),
        (status(302, Location="ftp://127.0.0.1/x"), "unknown url type: ftp"),
        (status(302, Location="/tiny.hdf5"), "HTTP 302"),
        (lambda r: r.wfile.write(b"what?\r\n\r\n"), "what?"),
        (lambda r: None, "closed connection without response"),
    ],
)
def test_an_answer_of_another_size_is_refused_before_its_body(answer, expected, server, offer):
    """Nothing is written, and what a better answer left stays."""
    entry = offer()
    server.answer = answer
    message = refusal(entry)
    assert expected in message
    assert f"{server.url}/tiny.hdf5: " in message
    assert f"try the same command later, or put the file at {entry.path} by hand" in message
    assert files() == {}
    fetch_a_part(server, entry)
    server.answer = answer
    assert f"goes on from the {CUT} bytes" in refusal(entry)
    assert files() == PART


def test_redirects_are_followed(server, offer):
    entry = offer(f"{server.url}/moved")
    server.answer = lambda r: (
        status(302, Location="/tiny.hdf5")(r) if r.path == "/moved" else ranged(RIGHT)(r)
    )
    assert remote.fetch(entry)
    assert files() == WHOLE


def test_an_address_without_a_server_is_one_line(server, offer):
    entry = offer()
    server.shutdown()
    server.server_close()
    message = refusal(entry)
    assert "Connection refused" in message
    assert server.url in message
    assert f"put the file at {entry.path} by hand" in message
    assert files() == {}


def test_a_server_that_stops_sending_is_one_line(server, offer, monkeypatch):
    entry, over = offer(), threading.Event()
    monkeypatch.setattr(remote, "TIMEOUT", 0.2)

    def answer(request):
        cut(RIGHT)(request)
        over.wait(10)

    server.answer = answer
    message = refusal(entry)
    over.set()
    assert f"lost after {CUT} bytes (timed out)" in message
    assert files() == PART


def test_mirrors_are_tried_in_turn(server, offer):
    """One lacks it, one is cut, one goes on with another file, one has it."""
    entry = offer(" ".join(f"{server.url}/{i}" for i in range(4)))
    answers = {"/0": status(404), "/1": cut(RIGHT), "/2": ranged(WRONG), "/3": whole(RIGHT)}
    server.answer = lambda request: answers[request.path](request)
    assert remote.fetch(entry)
    assert server.requests == [("/0", None), ("/1", None), ("/2", f"bytes={CUT}-"), ("/3", None)]
    assert files() == WHOLE


def test_if_no_mirror_has_it_each_is_named(server, offer):
    entry = offer(f"{server.url}/0 {server.url}/1")
    server.answer = status(404)
    assert refusal(entry).count("HTTP 404") == 2


def test_offline_nothing_is_requested(server, offer, capsys, monkeypatch):
    entry = offer()
    monkeypatch.setenv("MBO2O_OFFLINE", "1")
    code, _, err = command(capsys, "fetch", NAME)
    assert code == 2
    where = f"put {server.url}/tiny.hdf5 (100000 bytes, sha256 {entry.sha256}) at {entry.path}\n"
    assert (
        err
        == f"mbo2o: {entry.path}: is not there, and MBO2O_OFFLINE is set, so that nothing is fetched; {where}"
    )
    assert files() == {}
    entry.path.parent.mkdir()
    entry.path.write_bytes(RIGHT)
    assert command(capsys, "fetch", NAME)[0] == 0
    entry.path.write_bytes(WRONG)
    code, _, err = command(capsys, "fetch", NAME)
    assert code == 2
    assert f"has sha256 {hashlib.sha256(WRONG).hexdigest()}" in err
    assert files() == {"lab/tiny-v0.hdf5": WRONG}
    assert server.requests == []


@pytest.mark.parametrize("damage", [RIGHT[:-1], RIGHT[:500] + b"?" + RIGHT[501:], b""])
def test_a_file_that_was_damaged_later_is_fetched_again(damage, server, offer):
    entry = offer()
    remote.fetch(entry)
    entry.path.write_bytes(damage)
    with pytest.warns(UserWarning, match="fetched again"):
        assert remote.fetch(entry)
    assert files() == WHOLE


def test_ctrl_c_keeps_the_bytes_that_came(server, offer, capsys, monkeypatch):
    offer()

    def interrupted(answer, n, have, received=remote._received):
        if have:
            raise KeyboardInterrupt
        return received(answer, CUT, have)

    with monkeypatch.context() as m:
        m.setattr(remote, "_received", interrupted)
        code, _, err = command(capsys, "fetch", NAME)
    assert (code, err) == (130, "mbo2o: interrupted\n")
    kept = files()["lab/tiny-v0.hdf5.part"]
    assert 0 < len(kept) <= CUT
    assert RIGHT.startswith(kept)
    server.answer = unless_ranged(ranged(RIGHT), status(500))
    assert command(capsys, "fetch", NAME)[0] == 0
    assert files() == WHOLE


def test_a_download_that_was_killed_at_its_end_is_completed(server, offer):
    """A complete part needs no request; a part that is too long, or of another file, is fetched again."""
    entry = offer()
    part = entry.path.with_name("tiny-v0.hdf5.part")
    for content, requests in [(RIGHT, 0), (WRONG, 1), (RIGHT * 2, 1)]:
        server.requests.clear()
        part.parent.mkdir(exist_ok=True)
        part.write_bytes(content)
        assert remote.fetch(entry)
        assert (files(), len(server.requests)) == (WHOLE, requests)
        assert {r for _, r in server.requests} <= {None}
        entry.path.unlink()


class Full(io.BufferedRandom):
    """A file on a disk with room for so many bytes."""

    room = 30_000

    def write(self, data):
        if self.tell() + len(data) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_a_full_disk_is_one_line_and_leaves_nothing(server, offer, capsys, monkeypatch):
    entry = offer()
    monkeypatch.setattr(remote, "CHUNK", 8192)
    monkeypatch.setattr(remote, "open", lambda path, mode: Full(io.FileIO(path, "a+")), raising=False)
    code, _, err = command(capsys, "fetch", NAME)
    assert code == 2
    assert (
        err
        == f"mbo2o: {entry.path}.part: cannot be written (No space left on device); MBO2O_DATA names another folder\n"  # noqa: E501
    )
    assert files() == {}


def test_a_download_without_room_does_not_start(server, offer, monkeypatch):
    entry = offer()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=99_999))
    assert "needs 100000 bytes, 99999 are free" in refusal(entry)
    assert (files(), server.requests) == ({}, [])


def test_a_folder_that_cannot_be_written_is_one_line(server, offer):
    entry = offer()
    entry.path.parent.write_text("a file where a folder should be")
    assert f"{entry.path.parent}: cannot be written (File exists)" in refusal(entry)


def test_a_second_download_at_the_same_time_is_refused(server, offer):
    entry = offer()
    going_on, over = threading.Event(), threading.Event()

    def answer(request):
        going_on.set()
        over.wait(10)
        reply(request, RIGHT)

    server.answer = answer
    first = threading.Thread(target=remote.fetch, args=(entry,))
    first.start()
    assert going_on.wait(10)
    assert "another process is fetching it" in refusal(entry)
    over.set()
    first.join()
    assert (files(), len(server.requests)) == (WHOLE, 1)


def test_a_download_that_waited_does_not_write_into_the_finished_file(server, offer, monkeypatch):
    """The first gives the part its name between the second's opening and locking it."""
    entry = offer()

    def lock(file, how, flock=fcntl.flock):
        entry.path.with_name("tiny-v0.hdf5.part").replace(entry.path)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", lock)
    assert "another process is fetching it" in refusal(entry)
    assert server.requests == []


# ---- registry


def test_the_shipped_registry_is_well_formed():
    known = remote.read_registry(remote.SHIPPED)
    assert len(known) == 35
    for entry in known.values():
        assert entry.name.startswith("d4rl/")
        assert 10**6 < entry.size < 10**9
        assert entry.licence == "CC-BY-4.0"
        if maze := re.match(
            r"d4rl/antmaze-(\w+?)-", entry.name
        ):  # of D4RL's own env, which gymnasium does not have
            assert entry.env_id.lower() == f"antmaze_{maze[1]}-v5"
        else:
            assert entry.env_id in (None, f"{(entry.collected_in or '').removesuffix('-v2')}-v5")
    for column in ("sha256", "urls", "size"):
        assert len({getattr(x, column) for x in known.values()}) == len(known)


def test_the_registry_is_in_the_wheel():
    project = Path(mbo2o.__file__).parents[1] / "pyproject.toml"
    assert tomllib.loads(project.read_text())["tool"]["setuptools"]["package-data"]["mbo2o.store"] == [
        remote.SHIPPED.name
    ]


GOOD = ["a/b", "Hopper-v5", "Hopper-v2", "CC0-1.0", "12", "0" * 64, "http://x/y"]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("name", "../../etc/passwd"),
        ("name", "/a"),
        ("name", "a//b"),
        ("name", ""),
        ("licence", ""),
        ("size", "0"),
        ("size", "1.5"),
        ("sha256", "0" * 63),
        ("sha256", "G" * 64),
        ("urls", ""),
        ("urls", "file:///etc/passwd"),
        ("urls", "http://x/y ftp://x/y"),
    ],
)
def test_a_bad_line_of_the_registry_is_named(column, value, tmp_path):
    row = [value if key == column else x for key, x in zip(remote.COLUMNS, GOOD, strict=True)]
    path = tmp_path / "r.tsv"
    path.write_text("# one\n" + "\t".join(GOOD).replace("a/b", "fine") + "\n" + "\t".join(row) + "\n")
    with pytest.raises(UserError, match=f"r.tsv, line 3: {column} is {value!r}"):
        remote.read_registry(path)


def test_a_name_that_occurs_twice_is_refused(tmp_path):
    path = tmp_path / "r.tsv"
    path.write_text(("\t".join(GOOD) + "\n") * 2)
    with pytest.raises(UserError, match="line 2: a/b stands there twice"):
        remote.read_registry(path)


def test_the_users_lines_add_to_the_shipped_ones(server, offer):
    offer()
    assert set(remote.registry()) == {*remote.read_registry(remote.SHIPPED), NAME}


def test_a_users_name_needs_no_slash(server, offer):
    offer()
    path = remote.fetched_folder() / "remote.tsv"
    path.write_text(path.read_text().replace(NAME, "tiny"))
    with pytest.raises(UserError, match=r"tiny: not fetched yet; `mbo2o data fetch tiny` gets it"):
        datasets.read("tiny")


def test_a_users_registry_that_is_not_text_is_one_line(offer, capsys):
    offer()
    (remote.fetched_folder() / "remote.tsv").write_bytes(b"# caf\xe9\n")
    code, _, err = command(capsys, "list")
    assert code == 2
    assert err.count("\n") == 1
    assert "remote.tsv: cannot be read" in err


def test_offline_no_minari_set_is_requested(monkeypatch, tmp_path):
    import minari as library

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setattr(library, "download_dataset", lambda *args: pytest.fail("a request"))
    monkeypatch.setenv("MBO2O_OFFLINE", "1")
    with pytest.raises(UserError, match="MBO2O_OFFLINE is set"):
        minari.read_minari("D4RL/door/human-v2")


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"MBO2O_DATA": "/a", "XDG_DATA_HOME": "/b", "HOME": "/c"}, "/a/datasets"),
        ({"XDG_DATA_HOME": "/b", "HOME": "/c"}, "/b/mbo2o/datasets"),
        ({"HOME": "/c"}, "/c/.local/share/mbo2o/datasets"),
    ],
)
def test_the_folder_of_files_follows_the_environment_variables(env, expected, monkeypatch):
    for key in ("MBO2O_DATA", "XDG_DATA_HOME"):
        monkeypatch.delenv(key, raising=False)
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    assert (
        remote.find_remote("d4rl/hopper-medium-v2").path == Path(expected) / "d4rl" / "hopper-medium-v2.hdf5"
    )


# ---- commands, training


def test_where_and_list_make_no_request(server, offer, capsys):
    entry = offer(env_id="Pendulum-v1")
    code, out, err = command(capsys, "where", NAME)
    assert (code, out) == (0, f"{entry.path}\n")
    assert err == f"not fetched: 100000 bytes, sha256 {entry.sha256}, from {server.url}/tiny.hdf5\n"
    remote.fetch(entry)
    server.requests.clear()
    code, out, err = command(capsys, "where", NAME)
    assert (code, out) == (0, f"{entry.path}\n")
    assert err.startswith("fetched: ")
    _, out, _ = command(capsys, "list")
    lines = out.splitlines()
    assert next(x for x in lines if x.startswith(NAME)).split() == [
        NAME,
        "0",
        "MB",
        "Pendulum-v1",
        "CC0-1.0",
        "fetched",
    ]
    medium = next(x for x in lines if x.startswith("d4rl/hopper-medium-v2"))
    assert medium.split() == [
        "d4rl/hopper-medium-v2",
        "153",
        "MB",
        "Hopper-v5",
        "CC-BY-4.0",
        "not",
        "fetched",
    ]
    entry.path.write_bytes(b"short")
    assert command(capsys, "where", NAME)[2].startswith("damaged: ")
    assert server.requests == []


@pytest.mark.parametrize("what", ["fetch", "where"])
@pytest.mark.parametrize("name", ["d4rl/hoper-medium-v2", "hopper-medium-v2"])
def test_an_unknown_name_gets_the_nearest(what, name, offer, capsys):
    code, _, err = command(capsys, what, name)
    assert code == 2
    assert f"no remote dataset is called {name!r}; did you mean 'd4rl/hopper-medium-v2'?" in err


def test_nothing_is_fetched_if_one_name_is_wrong(server, offer, capsys):
    offer()
    assert command(capsys, "fetch", NAME, "nothing")[0] == 2
    assert server.requests == []


@pytest.fixture
def bare(pendulum, tmp_path):
    """D4RL's layout, and no attribute: the bytes of such a file."""
    import h5py

    data = datasets.read(pendulum)
    with h5py.File(tmp_path / "bare.hdf5", "w") as file:
        for key, x in fields_of(data).items():
            file[key] = x
    return (tmp_path / "bare.hdf5").read_bytes()


def test_training_finds_what_was_fetched_and_its_environment(server, offer, bare, pendulum):
    entry = offer(content=bare, env_id="Pendulum-v1", collected_in="Pendulum-v0")
    with pytest.raises(UserError) as caught:
        datasets.read(NAME)
    message = str(caught.value)
    assert f"`mbo2o data fetch {NAME}` gets it (0 MB)" in message
    assert f"sha256 {entry.sha256}) at {entry.path}" in message
    assert server.requests == []

    server.answer = whole(bare)
    remote.fetch(entry)
    with pytest.warns(
        UserWarning, match="the data are of Pendulum-v0, and a run is in Pendulum-v1"
    ) as warned:
        data = datasets.read(NAME)
    assert len(warned) == 1
    assert data.attrs == {"env_id": "Pendulum-v1", "collected_in": "Pendulum-v0"}
    assert data.packed.shape == datasets.read(pendulum).packed.shape

    entry.path.write_bytes(bare[:-100] + bytes(100))
    with pytest.raises(UserError, match=f"has sha256 .* `mbo2o data fetch {NAME}` gets it again"):
        datasets.read(NAME)


def test_a_run_may_name_a_fetched_dataset(server, offer, bare, capsys):
    entry = offer(content=bare, env_id="Pendulum-v1", collected_in="Pendulum-v0")
    server.answer = whole(bare)
    remote.fetch(entry)
    small = [
        "recipe.offline_steps=2",
        "recipe.online_steps=0",
        "recipe.batch=8",
        "run.eval_episodes=1",
        "report=false",
    ]
    with (
        pytest.warns(UserWarning, match="the data are of Pendulum-v0") as warned,
        pytest.raises(SystemExit) as e,
    ):
        main(["train", "recipe=finetune", "agent@recipe.offline=bc", f"dataset={NAME}", "dir=out", *small])
    assert e.value.code == 0, capsys.readouterr().err
    assert len(warned) == 1
    assert "env: Pendulum-v1" in Path("out/config.yaml").read_text()


def test_an_environment_that_is_not_known_has_to_be_named(server, offer, bare, capsys):
    entry = offer(content=bare)
    server.answer = whole(bare)
    remote.fetch(entry)
    assert "env_id" not in datasets.read(NAME).attrs
    with pytest.raises(SystemExit) as e:
        main(["train", f"dataset={NAME}"])
    assert e.value.code == 2
    assert "give env=ID" in capsys.readouterr().err


def test_the_file_s_own_attributes_come_first(server, offer, pendulum, capsys):
    content = pendulum.read_bytes()
    entry = offer(content=content, env_id="Hopper-v5")
    server.answer = whole(content)
    remote.fetch(entry)
    code, out, _ = command(capsys, "inspect", NAME, "--json")
    assert (code, json.loads(out)["attrs"]["env_id"]) == (0, "Pendulum-v1")


@pytest.mark.parametrize(
    "name", ["D4RL/pointmaze/umaze-v2", "D4RL/antmaze/umaze-v1", "mujoco/hopper/medium-v0", "d4rl/own-v0"]
)
@pytest.mark.filterwarnings("ignore:.*no timeouts")
def test_minari_ids_are_still_minari_s(name, offer, monkeypatch):
    offer()
    fields = {
        "observations": np.eye(3),
        "actions": np.zeros((3, 1)),
        "rewards": np.zeros(3),
        "terminals": np.zeros(3),
    }

    def read_minari(found, new, units):
        return check_fields(fields, found, new, units=units), {"minari_id": found}

    monkeypatch.setattr(datasets, "read_minari", read_minari)
    for asked in (name, f"minari:{name}", "minari:d4rl/hopper-medium-v2"):
        assert datasets.read(asked).attrs == {"minari_id": asked.removeprefix("minari:")}


def test_a_misspelt_name_is_answered_with_both_readings(offer):
    with pytest.raises(
        UserError, match=r"did you mean 'd4rl/hopper-medium-v2'\? \(a Minari set: minari:d4rl/hoper-medium-v2"
    ):
        datasets.read("d4rl/hoper-medium-v2")
    with pytest.raises(UserError, match=r"did you mean 'd4rl/hopper-medium-v2'\?"):
        datasets.read("hopper-medium-v2")
    assert remote.lookup_remote("d4rl/hopper-medium-v2").env_id == "Hopper-v5"


def test_a_file_by_that_name_comes_first(offer, pendulum):
    """As with all other names."""
    Path("lab").mkdir()
    shutil.copy(pendulum, NAME)
    offer()
    assert datasets.read(NAME).attrs["env_id"] == "Pendulum-v1"
