"""Bad files: every kind is one line that names the file and what is wrong, exit code 2, whatever HDF5 makes
of it.
"""

import contextlib
import gzip
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import zipfile
import zlib

import h5py
import numpy as np
import pytest

from mbo2o.cli.main import main
from mbo2o.data.fields import FIELDS, OPTIONAL
from mbo2o.store import firstlook, hdf5
from mbo2o.store.hdf5 import read_hdf5, write_hdf5
from mbo2o.types import UserError

N = 24


def content() -> dict[str, np.ndarray]:
    """Four episodes, whose next observations are the rows below but at their ends."""
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(N + 1, 3)).astype(np.float32)
    next_obs = obs[1:].copy()
    next_obs[5::6] += 1
    return {
        "observations": obs[:-1],
        "actions": rng.uniform(-1, 1, (N, 2)).astype(np.float32),
        "rewards": rng.normal(size=N).astype(np.float32),
        "terminals": np.arange(N) % 12 == 11,
        "timeouts": np.arange(N) % 12 == 5,
        "next_observations": next_obs,
    }


def written(path, fields=None, **options):
    with h5py.File(path, "w", **options) as file:
        for key, x in (content() if fields is None else fields).items():
            file[key] = x
        file.attrs["env_id"] = "Hopper-v5"
        file["metadata/algorithm"] = "SAC"
    return path


# ---- kinds: builders of a bad file at a path


def raw(data):
    return lambda path: path.write_bytes(data)


def of_good(change):
    """The bytes of a good file, changed."""
    return lambda path: path.write_bytes(change(written(path).read_bytes()))


def cut(share):
    return of_good(lambda data: data[: int(len(data) * share)])


def zeroed(mark, begin, end):
    """Zeros from `begin` to `end` after the first `mark`."""

    def change(data):
        at = data.index(mark)
        return data[: at + begin] + bytes(end - begin) + data[at + end :]

    return of_good(change)


def flipped(at, bit=0):
    return of_good(lambda data: data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])


def field(key, change):
    """A good file but for one array."""
    return lambda path: written(path, content() | {key: change(content()[key])})


def put(key, value, row=4):
    def change(x):
        x = x.astype(np.float64)
        x[row] = value
        return x

    return field(key, change)


def without(key):
    return lambda path: written(path, {k: x for k, x in content().items() if k != key})


def replaced(key, make):
    """A good file in which `make(file, key, path)` stores something else under the key."""

    def build(path):
        with h5py.File(written(path), "r+") as file:
            del file[key]
            make(file, key, path)

    return build


def attributes(**attrs):
    def build(path):
        with h5py.File(written(path), "r+") as file:
            file.attrs.update(attrs)

    return build


def dataset(**options):
    return lambda file, key, path: file.create_dataset(key, **options)


def every_row(rows):
    def build(path):
        return written(path, {k: x[:rows] for k, x in content().items()})

    return build


def bomb(path, **options):
    """All fields of 10^12 rows, of which not one was written."""
    with h5py.File(path, "w") as file:
        for key, x in content().items():
            file.create_dataset(key, (10**12, *x.shape[1:]), x.dtype, **options)


def filled_bomb(path):
    """Zeros that really are there: 1 GB in 1 MB."""
    with h5py.File(written(path), "r+") as file:
        del file["observations"]
        x = file.create_dataset(
            "observations", (N, 12_000_000), "f4", chunks=(N, 500_000), compression="gzip"
        )
        chunk = zlib.compress(bytes(4 * N * 500_000))
        for start in range(0, 12_000_000, 500_000):
            x.id.write_direct_chunk((0, start), chunk)


def ours(path):
    write_hdf5(path, content(), {"env_id": "Hopper-v5"})
    return path


def damaged_chunk(key):
    def build(path):
        with h5py.File(ours(path)) as file:
            at = file[key].id.get_chunk_info(0).byte_offset
        data = bytearray(path.read_bytes())
        data[at + 3] ^= 4
        path.write_bytes(data)

    return build


def external_storage(file, key, path):
    (path.parent / "other.bin").write_bytes(bytes(4 * N))
    file.create_dataset(key, (N,), "f4", external=[(str(path.parent / "other.bin"), 0, 4 * N)])


def virtual(file, key, path):
    layout = h5py.VirtualLayout((N,), "f4")
    layout[:] = h5py.VirtualSource(str(written(path.parent / "source.hdf5")), key, (N,))
    file.create_virtual_dataset(key, layout)


def outward(file, key, path):
    file[key] = h5py.ExternalLink(str(written(path.parent / "source.hdf5")), f"/{key}")


def soft_loop(file, key, path):
    file[key], file["other"] = h5py.SoftLink("/other"), h5py.SoftLink(f"/{key}")


def marked_open(path):
    """As a writer leaves it that was killed."""
    code = f"import h5py, os; f = h5py.File({str(path)!r}, 'w', libver='latest'); f['x'] = 1; f.flush(); os._exit(0)"  # noqa: E501
    subprocess.run([sys.executable, "-c", code], check=True)


@contextlib.contextmanager
def held(path):
    with h5py.File(path, "w") as file:
        file["observations"] = content()["observations"]
        file.flush()
        yield


@contextlib.contextmanager
def forbidden(path):
    """Not readable for anyone: the test gives up root's rights meanwhile."""
    written(path).chmod(0)
    with as_nobody(path):
        yield


@contextlib.contextmanager
def as_nobody(path):
    root = os.geteuid() == 0
    if root:
        for parent in list(path.parents)[:-1]:
            if parent.stat().st_mode & 0o011 == 0:
                parent.chmod(parent.stat().st_mode | 0o011)
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def listening(path):
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as s:
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's path may not be long
        s.bind(path.name)
        os.chdir(here)


def minari_storage(path):
    with h5py.File(path, "w") as file:
        group = file.create_group("episode_0")
        group["observations"], group["actions"] = np.zeros((4, 3)), np.zeros((3, 2))


def zipped(path):
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("observations.npy", b"")


def text_that_is_not_utf8(path):
    with h5py.File(written(path), "r+") as file:
        file.attrs.create("who", b"a\xffb", dtype=h5py.string_dtype("utf-8"))


def unreadable_attribute(path):
    with h5py.File(written(path), "r+") as file:
        kind = h5py.h5t.create(h5py.h5t.OPAQUE, 4)
        kind.set_tag(b"NUMPY:nonsense")
        space = h5py.h5s.create(h5py.h5s.SCALAR)
        h5py.h5a.create(file.id, b"odd", kind, space)


UNSOUND = {
    # no HDF5 at all
    "missing": (lambda path: None, "no such file"),
    "empty": (raw(b""), "it is empty"),
    "one byte": (raw(b"\x89"), "begins with b'\\x89'"),
    "text": (raw(b"observations,actions\n0,0\n"), "begins with b'observat'"),
    "zeros": (raw(bytes(4096)), "not a readable HDF5 file"),
    "noise": (raw(random.Random(0).randbytes(9000)), "not a readable HDF5 file"),
    "png": (raw(b"\x89PNG\r\n\x1a\n" + bytes(99)), "a PNG image"),
    "zip": (zipped, "a zip archive"),
    "npy": (lambda path: np.save(path.open("wb"), np.zeros(3)), "a NumPy array"),
    "gzip of a good one": (of_good(gzip.compress), "packed with gzip"),
    "signature alone": (raw(hdf5.SIGNATURE), "not a readable HDF5 file"),
    "signature, then noise": (
        raw(hdf5.SIGNATURE + random.Random(1).randbytes(4000)),
        "not a readable HDF5 file",
    ),
    "newer superblock": (of_good(lambda data: data[:8] + b"\x63" + data[9:]), "not a readable HDF5 file"),
    # no regular file
    "folder": (lambda path: path.mkdir(), "a folder has that name"),
    "link loop": (lambda path: path.symlink_to(path.name), "symbolic links"),
    "dangling link": (lambda path: path.symlink_to("nowhere"), "no such file"),
    "pipe": (lambda path: os.mkfifo(path), "a pipe has that name"),
    "socket": (listening, "a socket has that name"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "a device has that name"),
    "no permission": (forbidden, "cannot be opened (Permission denied)"),
    # damaged HDF5
    **{f"cut at {share:.0%}": (cut(share), "truncated file") for share in (0.1, 0.5, 0.9, 0.99)},
    "cut by one byte": (of_good(lambda data: data[:-1]), "truncated file"),
    "a bit of the signature": (flipped(1), "not a readable HDF5 file"),
    "a bit of the root's address": (flipped(64, 7), "not a readable HDF5 file"),
    "no tree": (zeroed(b"TREE", 0, 4), "not a readable HDF5 file"),
    "no symbol table": (zeroed(b"SNOD", 0, 8), "not a readable HDF5 file"),
    "no names": (zeroed(b"HEAP", 0, 32), "not a readable HDF5 file"),
    "names without end": (zeroed(b"GCOL", 16, 64), "not a readable HDF5 file"),
    **{f"checksum of {key}": (damaged_chunk(key), f"not a readable HDF5 file ({key!r}: ") for key in FIELDS},
    "held by a writer": (held, "another process has it open for writing"),
    "killed writer": (marked_open, "its writer did not close it"),
    "odd attribute": (unreadable_attribute, "attribute 'odd' cannot be read"),
    "10^12 rows": (bomb, "has shape (1000000000000, 3), 1.2e+13 bytes, expected at most"),
    "10^12 rows in chunks": (lambda path: bomb(path, chunks=True), "has shape (1000000000000, 3)"),
    "10^12 rows, gzip": (lambda path: bomb(path, compression="gzip"), "has shape (1000000000000, 3)"),
    "1 GB of zeros, gzip": (
        filled_bomb,
        "'observations' has shape (24, 12000000), 1.15e+09 bytes, expected at most",
    ),
}
COMPOUND = np.dtype([("x", "f4"), ("y", "f4")])
BAD = UNSOUND | {
    # keys
    **{f"without {key}": (without(key), f"{key!r} is missing") for key in FIELDS if key not in OPTIONAL},
    "nothing in it": (lambda path: written(path, {}), "'observations' is missing"),
    "key misspelt": (
        lambda path: written(path, {"Observations": np.zeros((N, 3))}),
        "'observations' is missing",
    ),
    "group for dataset": (
        replaced("rewards", lambda f, key, _: f.create_group(key)),
        "'rewards' is a group, expected a da",
    ),
    "optional group": (
        replaced("timeouts", lambda f, key, _: f.create_group(key)),
        "'timeouts' is a group, expected a da",
    ),
    "type for dataset": (
        replaced("rewards", lambda f, key, _: f.__setitem__(key, np.dtype("f4"))),
        "'rewards' is a datatype",
    ),
    "external link": (replaced("rewards", outward), "'rewards' is a link to another file"),
    "external link aside": (replaced("metadata", outward), "'metadata' is a link to another file"),
    "soft link loop": (replaced("actions", soft_loop), "'actions' is a link that leads nowhere"),
    "dangling soft link": (
        replaced("actions", lambda f, key, _: f.__setitem__(key, h5py.SoftLink("/gone"))),
        "'actions' is a link that leads nowhere",
    ),
    "virtual": (replaced("rewards", virtual), "'rewards' is a virtual dataset"),
    "external storage": (replaced("rewards", external_storage), "'rewards' is a dataset in external storage"),
    "Minari's storage": (minari_storage, "Minari's own storage"),
    "newer layout": (attributes(format="mbo2o", schema=2), "layout version 2, expected 1"),
    "text for layout": (attributes(format="mbo2o", schema="one"), "layout version 'one', expected 1"),
    # shapes
    "axis too many": (
        field("observations", lambda x: x[..., None]),
        "'observations' has shape (24, 3, 1), expected (rows, f",
    ),
    "axis too few": (
        field("observations", lambda x: x[:, 0]),
        "'observations' has shape (24,), expected (rows, features)",
    ),
    "scalar": (field("rewards", lambda x: x[0]), "'rewards' has shape (), expected (rows,)"),
    "no shape": (
        replaced("rewards", lambda f, key, _: f.__setitem__(key, h5py.Empty("f4"))),
        "'rewards' is an empty dataset",
    ),
    "no columns": (
        field("actions", lambda x: x[:, :0]),
        "'actions' has shape (24, 0), expected (rows, features)",
    ),
    "row too few": (field("rewards", lambda x: x[:-1]), "'rewards' has 23 rows where 'observations' has 24"),
    "row too many": (
        field("terminals", lambda x: np.append(x, False)),
        "'terminals' has 25 rows where 'observations' has 24",
    ),
    "T+1 observations": (
        field("observations", lambda x: np.append(x, x[:1], 0)),
        "has 24 rows where 'observations' has 25",
    ),
    "next of other width": (
        field("next_observations", lambda x: x[:, :2]),
        "expected that of 'observations', (24, 3)",
    ),
    "no rows": (every_row(0), "'observations' has no rows"),
    # claims
    "10^12 empty rows": (
        field("actions", lambda x: np.zeros((10**12, 0))),
        "'actions' has shape (1000000000000, 0)",
    ),
    # dtypes
    "text for numbers": (
        field("rewards", lambda x: x.astype("S9")),
        "'rewards' has dtype |S9, expected float32",
    ),
    "variable text": (
        field("rewards", lambda x: np.array(["a"] * N, object)),
        "'rewards' has dtype text, expected numbers",
    ),
    "variable length": (
        replaced("rewards", dataset(shape=(N,), dtype=h5py.vlen_dtype("f4"))),
        "'rewards' has dtype of variable length, expected numbers",
    ),
    "references": (
        replaced("rewards", dataset(shape=(N,), dtype=h5py.ref_dtype)),
        "'rewards' has dtype reference, expected nu",
    ),
    "complex": (
        field("rewards", lambda x: x.astype(np.complex64)),
        "'rewards' has dtype complex64, expected float32",
    ),
    "compound": (
        replaced("rewards", dataset(shape=(N,), dtype=COMPOUND)),
        "'rewards' has dtype [('x', '<f4'), ('y', '<f4')]",
    ),
    "void": (
        replaced("rewards", dataset(shape=(N,), dtype="V4")),
        "'rewards' has dtype |V4, expected float32",
    ),
    "discrete actions": (
        field("actions", lambda x: (x > 0).astype(np.int64)),
        "'actions' has dtype int64, expected float32",
    ),
    "flat discrete actions": (
        field("actions", lambda x: np.ones(N, np.int8)),
        "'actions' has shape (24,), expected (rows, fe",
    ),
    # values
    **{
        f"{value} in {key}": (put(key, value), f"{key!r} is not a finite float32 in row 4 ({value})")
        for key in ("observations", "actions", "rewards")
        for value in (np.nan, np.inf)
    },
    "inf in next": (put("next_observations", np.inf), "'next_observations' is neither finite nor all NaN"),
    "part of next nan": (
        put("next_observations", np.nan, (4, 0)),
        "'next_observations' is neither finite nor all NaN",
    ),
    "rewards all nan": (
        put("rewards", np.nan, slice(None)),
        "'rewards' is not a finite float32 in row 0 (nan)",
    ),
    "beyond float32": (put("rewards", 1e300), "'rewards' is not a finite float32 in row 4 (1e+300)"),
    "nan in terminals": (
        put("terminals", np.nan),
        "'terminals' holds values other than 0 and 1 (nan in row 4)",
    ),
    "nan in timeouts": (put("timeouts", np.nan), "'timeouts' holds values other than 0 and 1 (nan in row 4)"),
    "terminals of 2": (put("terminals", 2), "'terminals' holds values other than 0 and 1 (2.0 in row 4)"),
    "terminals of a half": (
        put("terminals", 0.5),
        "'terminals' holds values other than 0 and 1 (0.5 in row 4)",
    ),
    "actions beyond": (put("actions", -2.5), "'actions' lie in [-2.5, "),
    "actions just beyond": (put("actions", 1.001), "1.001], expected [-1, 1]"),
}


def inspect(capsys, path) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["data", "inspect", str(path)])
    out = capsys.readouterr()
    return caught.value.code, out.out, out.err


def peak() -> int:
    """The most memory that this process and any child of it ever had, in MB."""
    return (
        sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        // 1024
    )


def spent() -> float:
    """CPU seconds of this process and its children; clocks say more of the machine's other work."""
    return sum(os.times()[:4])


def test_there_are_enough_kinds_of_bad_files():
    assert len(BAD) >= 90


def look_here(path) -> str | None:
    """The first look without an interpreter of its own, which takes 0.15 s, for files that HDF5 finds
    nothing wrong with.
    """
    try:
        return firstlook.look(str(path), list(FIELDS))
    except firstlook.Fault as fault:
        return str(fault)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_refused_in_one_line(tmp_path, capsys, monkeypatch, kind, promise):
    build, expected = BAD[kind]
    if kind not in UNSOUND:
        monkeypatch.setattr(hdf5, "_first_look", look_here)
    path = tmp_path / "bad.hdf5"
    with contextlib.ExitStack() as stack:
        built = build(path)
        if hasattr(built, "__enter__"):
            stack.enter_context(built)
        before, start = peak(), spent()
        code, out, err = inspect(capsys, path)
    assert (code, out) == (2, "")
    assert err.startswith(f"mbo2o: {path}: ")
    assert err.count("\n") == 1
    assert expected in err
    assert spent() - start < 5
    assert peak() - before < 100
    promise("kinds of bad dataset files: refused in one line, exit code 2")


GOOD = {
    "float16": field("observations", lambda x: x.astype(np.float16)),
    "float64": field("observations", lambda x: x.astype(np.float64)),
    "big-endian": field("observations", lambda x: x.astype(">f8")),
    "rewards as integers": field("rewards", lambda x: np.arange(N)),
    "flags as bytes": field("terminals", lambda x: x.astype(np.uint8)),
    "flags as floats": field("terminals", lambda x: x.astype(np.float64)),
    "unknown next": put("next_observations", np.nan),
    "one row": every_row(1),
    "extra key": lambda path: written(
        path, content() | {"infos/qpos": np.zeros((3, 2)), "actions2": np.zeros(3)}
    ),
    "dataset for the metadata group": replaced("metadata", dataset(data=np.zeros(3))),
    "soft link": replaced("metadata", lambda f, key, _: f.__setitem__(key, h5py.SoftLink("/rewards"))),
    "dangling soft link aside": replaced(
        "metadata", lambda f, key, _: f.__setitem__(key, h5py.SoftLink("/gone"))
    ),
    "user block": lambda path: written(path, userblock_size=512),
    "newest HDF5": lambda path: written(path, libver="latest"),
    "no attributes": attributes(empty=h5py.Empty("f4")),
    "attribute of bytes that are no text": attributes(who=np.bytes_(b"\xff\xfe")),
    "attribute of text that is not UTF-8": text_that_is_not_utf8,
    "array attribute": attributes(many=np.arange(9)),
    "flags never written": replaced("timeouts", dataset(shape=(N,), dtype=bool)),
    "gzip": replaced("rewards", dataset(data=np.zeros(N), compression="gzip", shuffle=True)),
    "lzf": replaced("rewards", dataset(data=np.zeros(N), compression="lzf")),
}


@pytest.mark.parametrize("kind", GOOD)
def test_an_odd_but_good_file_is_read(tmp_path, capsys, monkeypatch, kind, promise):
    if kind not in ("user block", "attribute of text that is not UTF-8"):
        monkeypatch.setattr(hdf5, "_first_look", look_here)
    path = tmp_path / "odd.hdf5"
    GOOD[kind](path)
    code, out, err = inspect(capsys, path)
    assert code == 0
    assert all(line.startswith("warning: ") for line in err.splitlines())
    out.encode()
    fields, _ = read_hdf5(path)
    if kind in ("float16", "float64", "big-endian"):
        np.testing.assert_allclose(fields["observations"], content()["observations"], rtol=1e-3, atol=1e-3)
        assert fields["observations"].dtype == np.float32
    if kind.startswith("flags as"):
        np.testing.assert_array_equal(fields["terminals"], content()["terminals"])
    promise("kinds of odd but sound dataset files: read")


@pytest.mark.parametrize(
    "name", ["line\nbreak.hdf5", "tab\t.hdf5", os.fsdecode(b"no-utf8-\xff.hdf5"), "ü 中.hdf5", "-h.hdf5"]
)
def test_file_names_of_all_kinds_are_read(tmp_path, capsys, name):
    path = tmp_path / name
    with pytest.raises(UserError) as caught:
        read_hdf5(path)
    assert str(caught.value).isprintable()
    path.write_bytes(b"text")
    assert inspect(capsys, path)[2].count("\n") == 1
    written(path)
    assert inspect(capsys, path)[::2] == (0, "")
    written(path, {})
    code, out, err = inspect(capsys, path)
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_the_command_ends_with_code_2(tmp_path):
    path = tmp_path / "bad.hdf5"
    BAD["names without end"][0](path)
    command = [sys.executable, "-X", "faulthandler", "-m", "mbo2o", "data", "inspect", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"mbo2o: {path}: ")
    assert done.stderr.count("\n") == 1


# ---- what becomes of a first look

FATES = {
    "crashes": (
        "import os; os.kill(os.getpid(), 11)",
        "reading it killed the process that tried, with SIGSEGV",
    ),
    "aborts": ("import os; os.abort()", "with SIGABRT"),
    "loops": ("firstlook._limit(0)\nwhile True: pass", "reading it came to no end"),
    "grows": (
        "firstlook._limit(0)\ntry: bytearray(3 << 30)\nexcept MemoryError as e: print(firstlook._explain(e))",
        "more memory",
    ),
    "says nothing": ("sys.exit(1)", "said nothing"),
    "has no h5py": ("import no_such_module", "No module named 'no_such_module'"),
}


@pytest.mark.parametrize("fate", FATES)
def test_every_end_of_the_first_look_is_one_line(tmp_path, monkeypatch, fate):
    code, expected = FATES[fate]
    script = tmp_path / "look.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {os.path.dirname(firstlook.__file__)!r})\nimport firstlook\n{code}\n"
    )
    path = written(tmp_path / "x.hdf5")
    monkeypatch.setattr(firstlook, "__file__", str(script))
    with pytest.raises(UserError) as caught:
        read_hdf5(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)
    assert str(caught.value).isprintable()


def test_storage_that_does_not_answer_is_one_line(tmp_path, monkeypatch):
    def run(*args, **kwargs):
        raise subprocess.TimeoutExpired(args[0], kwargs["timeout"])

    monkeypatch.setattr(hdf5.subprocess, "run", run)
    with pytest.raises(UserError, match="reading it did not end within 60 s"):
        read_hdf5(written(tmp_path / "x.hdf5"))


def test_a_file_is_looked_at_once_and_again_when_it_changed(tmp_path, monkeypatch):
    looks, look = [], hdf5._first_look
    monkeypatch.setattr(hdf5, "_first_look", lambda path: looks.append(path.name) or look(path))
    path = written(tmp_path / "x.hdf5")
    for _ in range(2):
        read_hdf5(path)
    assert looks == ["x.hdf5"]
    BAD["checksum of rewards"][0](path)
    for _ in range(2):
        with pytest.raises(UserError, match="'rewards'"):
            read_hdf5(path)
    assert len(looks) == 3
    ours(path)
    read_hdf5(path)  # what this process wrote needs no look
    assert len(looks) == 3


def test_the_first_look_reads_all_blocks(tmp_path, monkeypatch):
    """A damaged chunk far from the start is found by the first look, not by this process."""
    x = {"observations": np.random.default_rng(0).normal(size=(50_000, 60)).astype(np.float32)}
    path = written(tmp_path / "x.hdf5", {})
    with h5py.File(path, "r+") as file:
        file.create_dataset("observations", data=x["observations"], chunks=(1000, 30), fletcher32=True)
        at = file["observations"].id.get_chunk_info(99).byte_offset
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(b"\xff\xff\xff")
    monkeypatch.setattr(firstlook, "SLAB", 1 << 20)
    with pytest.raises(firstlook.Fault, match="'observations'"):
        firstlook.look(str(path), ["observations"])


# ---- flipped bits


FLIPS = 300


@pytest.mark.parametrize("where", ["anywhere", "dense"])
def test_a_flipped_bit_of_our_own_file_is_reported_or_changes_nothing(tmp_path, monkeypatch, where, promise):
    """`dense` leaves out the room that HDF5 leaves in its headers, two thirds of so small a file."""
    path = ours(tmp_path / "ours.hdf5")
    data, expected = path.read_bytes(), read_hdf5(path)
    bits = [
        bit
        for bit in range(8 * len(data))
        if where == "anywhere" or any(data[max(bit // 8 - 8, 0) : bit // 8 + 9])
    ]
    folder = tmp_path / "flipped"
    folder.mkdir()
    for i, bit in enumerate(random.Random(0).sample(bits, FLIPS)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        (folder / f"{i:03}.hdf5").write_bytes(flipped)
    sound = sound_ones(sorted(folder.iterdir()))
    monkeypatch.setattr(
        hdf5, "_first_look", lambda path: None if path in sound else "not a readable HDF5 file"
    )
    outcomes = [outcome(path, expected) for path in sorted(folder.iterdir())]
    assert outcomes.count("changed") == 0
    assert outcomes.count("reported") > FLIPS * (0.9 if where == "dense" else 0.25)
    for fate, words in {
        "reported": "reported",
        "same": "in unused room, without effect",
        "changed": "unnoticed",
    }.items():
        promise(f"flipped bits in a dataset file: {words}", outcomes.count(fate))


def sound_ones(paths) -> set:
    """First looks at many files by one process, or another where one dies: of libhdf5, or of its half
    second.
    """
    verdicts = b""
    while len(verdicts) < len(paths):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            for path in paths[len(verdicts) :]:
                signal.setitimer(signal.ITIMER_PROF, 0.5)
                os.write(write, b"0" if look_and_tell(path) else b"1")
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            verdicts += pipe.read()
        if os.waitpid(child, 0)[1] != 0:
            verdicts += b"0"
    return {path for path, verdict in zip(paths, verdicts, strict=True) if verdict == ord("1")}


def look_and_tell(path) -> str | None:
    try:
        return look_here(path)
    except Exception as error:
        return firstlook._explain(error)


def outcome(path, expected) -> str:
    try:
        (fields, attrs), (before, before_attrs) = read_hdf5(path), expected
    except UserError as error:
        return "reported" if str(error).isprintable() else "changed"
    same = fields.keys() == before.keys() and all(fields[k].tobytes() == before[k].tobytes() for k in before)
    return "same" if same and attrs == before_attrs else "changed"
