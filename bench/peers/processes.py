"""The environment that peers are installed in, and the processes that they work in."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mbo2o.store.content import cache_folder
from mbo2o.types import UserError

ROOT = Path(__file__).parent.parent.parent
VERSIONS = {
    "sb3": "stable-baselines3 2.9.2",
    "sbx": "sbx-rl 0.28.0",
    "d3rlpy": "d3rlpy 2.8.1",
    "mbrl": "mbrl 0.2.0",
}
"""What stands in results, by driver. mbrl is in our own environment."""
PACKAGES = (
    *("stable-baselines3==2.9.2", "sbx-rl==0.28.0", "d3rlpy==2.8.1"),
    *("torch==2.13.0", "gymnasium==1.0.0", "jax==0.10.2", "jaxlib==0.10.2", "flax==0.12.8"),
    *("optax==0.2.8", "distrax==0.1.9", "tfp-nightly==0.26.0.dev20261027", "chex==0.1.92"),
)
"""Versions that were found to work together: these peers do not say themselves which ones they need."""
OF_TORCH = ("sb3", "d3rlpy", "mbrl")
"""Those that one line makes multiply in bf16."""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def environment() -> Path:
    """The interpreter of the peers' environment, which is made if it is not complete; the folder is a cache.

    Raises:
        UserError: A package cannot be installed.
    """
    folder = cache_folder() / "peers"
    python, marker = folder / "bin" / "python", folder / ".ready"
    wanted = "\n".join(PACKAGES)
    if marker.is_file() and marker.read_text() == wanted:
        return python
    print(f"installing {', '.join(PACKAGES[:3])} into {folder} (once, some minutes)", flush=True)
    pip = _with_pip()
    shutil.rmtree(folder, ignore_errors=True)
    _run([pip, "-m", "venv", "--without-pip", str(folder)])
    # a pip from outside, as in ./dev: Debian's Python may come without the one for new environments
    quiet = ["-q", "--disable-pip-version-check"]
    _run([pip, "-m", "pip", "--python", str(python), "install", *quiet, *PACKAGES])
    marker.write_text(wanted)
    return python


def make_ready(names: Iterable[str]) -> None:
    """Install what these peers need, so that a package that cannot be installed shows before any work."""
    if set(names) - {"mbrl"}:
        environment()


def _with_pip() -> str:
    """An interpreter that has pip, since that of ./dev has none."""
    names = [os.environ.get("PYTHON"), getattr(sys, "_base_executable", None), sys.executable, "python3"]
    for name in names:
        found = shutil.which(name) if name else None
        if found and subprocess.run([found, "-c", "import pip"], capture_output=True).returncode == 0:
            return found
    raise UserError("--peers: no Python with pip is here; set PYTHON=/path/to/one")


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise UserError(f"--peers: the peers cannot be installed ({said}); leave --peers out to go without")


class Peer:
    """A process that works for so many seconds when it is told to."""

    def __init__(self, name: str, work: str, precision: str = "fp32", command: Sequence[str] | None = None):
        """command: of the process, if it is not the driver called `name`."""
        self.who, self.precision = VERSIONS.get(name, name), precision
        python = sys.executable if command or name == "mbrl" else str(environment())
        # JAX looks for accelerators first, and tells of each that it does not find
        more = {"PRECISION": precision, "JAX_PLATFORMS": "cpu", "OMP_WAIT_POLICY": "passive", **ONE_THREAD}
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **more}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by `close`
        self._process = subprocess.Popen(
            command or [python, "-m", f"bench.peers.{name}", work],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=env,
        )

    def ready(self) -> Peer:
        """Wait until it can work."""
        while self._line() != "ready":  # some libraries greet
            pass
        return self

    def rate(self, seconds: float) -> float:
        """Units of work for each CPU second."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{seconds}\n")
            self._process.stdin.flush()
        return float(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            said = self._errors.read().strip().splitlines() or [f"exit code {self._process.wait()}"]
            raise UserError(f"--peers: {self.who} ended ({said[-1]}); leave --peers out to go without")
        return line.strip()

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


@contextlib.contextmanager
def opened(names: Sequence[str], work: str) -> Iterator[list[Peer]]:
    """The peers of a work, ready; those of torch also as their user could make them multiply in bf16."""
    peers: list[Peer] = []
    try:
        for name in names:
            for precision in ("fp32", "bf16") if name in OF_TORCH and work != "dataset" else ("fp32",):
                peers.append(Peer(name, work, precision))
        for peer in peers:
            peer.ready()
        yield peers
    finally:
        for peer in peers:
            peer.close()
