"""Traces: the episodes of an evaluation as they were played, so that anyone can play them again.

A file of traces is an `.npz` archive without pickles. Trace i has the arrays `i/starts`, `i/lengths`,
`i/actions`, `i/returns` and `i/last`, and in `i/about` the text of a JSON object: environment, place in the
run, sha256 of the policy's weights and of each array, and the versions that played it. A run writes a file
for each evaluation into its folder `traces`; a release is one file with the traces of many runs.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mbo2o.envs.disturb import DisturbConfig
from mbo2o.envs.lanes import Lane
from mbo2o.envs.make import EnvChoice
from mbo2o.errors import UserError
from mbo2o.store.whole import whole_file, writing

FORMAT = 1
FOLDER = "traces"
PACKAGES = ("mujoco", "gymnasium", "gymnasium-robotics", "numpy")
"""Packages that decide how an episode goes; their versions are kept."""
STATEFUL = ("obs_rms", "return_rms", "reward_rms")
"""Attributes of wrappers that normalise with statistics of all episodes so far."""


class Played(NamedTuple):
    """Episodes as they were played, those of a seed together, of L in all."""

    starts: np.ndarray
    """`(L,)` int64: the seed that each episode was reset with."""
    lengths: np.ndarray
    """`(L,)` int64: steps."""
    actions: np.ndarray
    """`(T, A)` float32 in [-1, 1]: the actions of all episodes, one after the other."""
    returns: np.ndarray
    """`(L,)` float64: the sums of the task's own rewards."""
    last: np.ndarray
    """`(L, D)` float32: the observation after the last step."""

    @classmethod
    def of(cls, lanes: Sequence[Lane], starts: Sequence[int]) -> Played:
        """What stands in lanes that have each played the episode of a start to its end."""
        return cls(
            np.array(starts, np.int64),
            np.array([x.length for x in lanes], np.int64),
            np.concatenate([x.actions for x in lanes]),
            np.array([x.episode_return for x in lanes], np.float64),
            np.stack([x.obs for x in lanes]),
        )


@dataclass(frozen=True)
class Trace:
    """One evaluation: what it was of, and its episodes."""

    about: dict[str, Any]
    played: Played

    @property
    def name(self) -> str:
        """Its run and its place there, in a few words."""
        a = self.about
        return f"{a['run']} {a['phase']} turn {a['step']} {a['agent']}"

    @property
    def env(self) -> EnvChoice:
        """The environment, and how it is made."""
        return EnvChoice(**self.about["env"])

    @property
    def disturb(self) -> DisturbConfig:
        """The noise on actions and states that it was played with."""
        return DisturbConfig(**self.about["disturb"])

    def means(self) -> np.ndarray:
        """The mean return of each seed `(S,)` float32, as the run's log has it."""
        means: np.ndarray = self.played.returns.reshape(self.about["seeds"], -1).mean(-1).astype(np.float32)
        return means

    def changed(self) -> list[str]:
        """The names of the arrays that are not what was recorded."""
        now = _sums(self.played)
        return [name for name, found in self.about["sha256"].items() if now[name] != found]


def run_name(directory: Path) -> str:
    """What a run is called in traces: its directory, and the folder of its study or sweep.

    A directory of one seed, `seed-K`, has its run's name before it.
    """
    parts = directory.absolute().parts
    return "/".join(parts[-3 if parts[-1].startswith("seed-") else -2 :])


def about(
    env: EnvChoice, disturb: DisturbConfig | None, weights: str, seeds: int, run: str, place: dict[str, Any]
) -> dict[str, Any]:
    """What a trace says of its evaluation; place: `phase`, `step`, `total` and `agent`."""
    return {
        "run": run,
        **{key: place[key] for key in ("phase", "step", "total", "agent")},
        "weights": weights,
        "seeds": seeds,
        "env": asdict(env),
        "disturb": asdict(disturb.world() if disturb else DisturbConfig()),
        "made_with": versions(),
    }


def versions() -> dict[str, str]:
    """The versions of PACKAGES that are installed here, and the kind of processor."""
    found = {"machine": platform.machine()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def weights_of(agent: Any) -> str:
    """The sha256 of what an agent acts with: all its parts but critics and optimisers, by name."""
    parts = agent.inner("policy")
    digest = hashlib.sha256()
    for name, x in sorted(agent.state_dict().items()):
        if name.partition(".")[0] in parts:
            digest.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
            digest.update(x.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check(lane: Lane, start: int) -> None:
    """Raise `UserError` for an environment whose episodes do not follow from a seed and actions alone."""
    text = f"run.traces: the episodes of {lane.env_id!r} cannot be played again"
    layer: Any = lane.env
    while layer is not None:
        found = next((x for x in STATEFUL if x in vars(layer)), None)
        if found:
            why = f"{type(layer).__name__} normalises with statistics of all episodes before"
            raise UserError(f"{text}, because {why}; normalise in the agent, or give run.traces=false")
        layer = vars(layer).get("env")
    if not lane.follows(start)[0]:
        raise UserError(f"{text}, because its starts do not follow the seed; give run.traces=false")


class Traces:
    """The traces of one run: a file in its folder `traces` for each evaluation."""

    def __init__(self, directory: Path, env: EnvChoice, disturb: DisturbConfig | None, seeds: int):
        self._directory, self._env, self._disturb, self._seeds = directory, env, disturb, seeds

    def begin(self, total: int) -> None:
        """Go on from a checkpoint after `total` turns, -1 for none: evaluations after it happen again."""
        for path in (self._directory / FOLDER).glob("*.npz"):
            if int(path.name.partition("-")[0]) > total:
                path.unlink()

    def keep(self, place: dict[str, Any], agent: Any, played: Played) -> None:
        """Keep an evaluation of `agent`; place: the one of its line in the log."""
        name = place["kind"].removeprefix("eval-") if place["kind"] != "eval" else "agent"
        folder = self._directory / FOLDER
        where = place | {"agent": name}
        run, weights = run_name(self._directory), weights_of(agent)
        told = about(self._env, self._disturb, weights, self._seeds, run, where)
        with writing(folder):
            folder.mkdir(exist_ok=True)
        write(folder / f"{place['total']:09d}-{place['phase']}-{name}.npz", [Trace(told, played)])


# ------------------------------------------------------------------------------------------------------ files


def write(path: Path, traces: Iterable[Trace], left_out: Sequence[str] = ()) -> None:
    """Write a file of traces, completely or not at all. left_out: a line for each that was left out."""
    arrays: dict[str, np.ndarray] = {}
    for i, trace in enumerate(traces):
        told = trace.about | {"sha256": trace.about.get("sha256") or _sums(trace.played)}
        arrays[f"{i}/about"] = _bytes(told)
        arrays |= {f"{i}/{name}": x for name, x in trace.played._asdict().items()}
    arrays["manifest"] = _bytes({"format": FORMAT, "traces": len(arrays) // 6, "left_out": [*left_out]})
    with writing(path), whole_file(path) as temporary, open(temporary, "wb") as f:
        np.savez_compressed(f, allow_pickle=False, **arrays)


def read(path: Path) -> Iterator[Trace]:
    """The traces of a file, one by one. Raises `UserError` for a file that is damaged, or is another one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            told = _object(file["manifest"])
            if told["format"] != FORMAT:
                raise UserError(f"{path}: its format is {told['format']}, and this version reads {FORMAT}")
            for i in range(told["traces"]):
                played = Played(*(file[f"{i}/{name}"] for name in Played._fields))
                yield _checked(path, Trace(_object(file[f"{i}/about"]), played))
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as e:
        if isinstance(e, FileNotFoundError):
            raise UserError(f"{path}: no such file") from e
        text = " ".join(str(e).split()) or type(e).__name__
        raise UserError(f"{path}: is no file of traces, or is damaged ({text})") from e


def left_out(path: Path) -> list[str]:
    """What a file of traces says that it leaves out."""
    with np.load(path, allow_pickle=False) as file:
        return list(_object(file["manifest"])["left_out"])


def pack(out: Path, runs: Sequence[Path], last: int, most: float) -> None:
    """Write one file with the `last` evaluations of each run, as far as `most` MB allow.

    Later evaluations go before earlier ones, over all runs. The file lists what it leaves out. Raises
    `UserError` if a run has no traces, or if not one fits.
    """
    ranked = []
    for path in dict.fromkeys(runs):
        files = files_of(path)
        found = [(t, f.stat().st_size) for f in files for t in read(f)]
        found = found if path.is_dir() else [(t, size // len(found)) for t, size in found]
        turns = sorted({t.about["total"] for t, _ in found}, reverse=True)
        ranked += [(turns.index(t.about["total"]), t, size) for t, size in found]
    ranked.sort(key=lambda x: x[0])
    kept, dropped, size = [], [], 0
    for rank, trace, more in ranked:
        if rank >= last:
            dropped.append(f"{trace.name}: not among the last {last} evaluations")
        elif size + more > most * 1e6:
            dropped.append(f"{trace.name}: {more / 1e6:.2f} MB, the file may have {most:g}")
        else:
            kept.append(trace)
            size += more
    if not kept:
        raise UserError(f"traces: not one evaluation fits into {most:g} MB; give a larger --most")
    write(out, sorted(kept, key=lambda x: (x.about["run"], x.about["total"])), dropped)


def files_of(path: Path) -> list[Path]:
    """The files of traces of a run's directory, in the order of its evaluations, or the file itself."""
    if not path.is_dir():
        return [path]
    found = sorted((path / FOLDER).glob("*.npz"))
    if not found:
        cure = f"`mbo2o eval {path} --traces FILE` plays and keeps an evaluation"
        raise UserError(f"{path}: holds no traces; train with run.traces=true, or {cure}")
    return found


def _checked(path: Path, trace: Trace) -> Trace:
    """The trace, if its arrays fit each other."""
    p, told = trace.played, trace.about
    n = len(p.starts)
    fits = p.actions.ndim == p.last.ndim == 2 and n == len(p.lengths) == len(p.returns) == len(p.last)
    if not fits or int(p.lengths.sum()) != len(p.actions) or n % told["seeds"] or not n:
        raise ValueError(f"the arrays of {trace.name} do not fit each other")
    return trace


def _sums(played: Played) -> dict[str, str]:
    found = played._asdict().items()
    return {name: hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()[:16] for name, x in found}


def _bytes(x: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(json.dumps(x, sort_keys=True).encode(), np.uint8)


def _object(x: np.ndarray) -> dict[str, Any]:
    return dict(json.loads(x.tobytes().decode()))
