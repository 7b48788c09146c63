"""Why a clone of a replay buffer may stand still: behaviour cloning on parts of one file.

`python -m studies.cloning FILE` clones all rows of a replay buffer, parts of it, and all rows with the number
of the episode as one more input, and writes data/results/cloning-NAME.csv. `--updates` and `--seeds` say how
long and how often.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mbo2o.agents.base import make_agent
from mbo2o.agents.bc import BC, BCConfig
from mbo2o.data.actions import Actions
from mbo2o.data.dataset import TransitionDataset
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.run.evaluate import Evaluator
from mbo2o.store import datasets
from mbo2o.types import Spec, Step
from studies.arms import Row, read_rows, write
from studies.measured import RESULTS

EPISODES = 5
NUMBERED = "all, with the episode's number"
PARTS = {
    "all": (0.0, 1.0),
    "last half": (0.5, 1.0),
    NUMBERED: (0.0, 1.0),
    "without the first quarter": (0.25, 1.0),
    "first half": (0.0, 0.5),
}
"""Which episodes are cloned: from one share of all to another, in the order of collection."""


def measure(file: str, updates: int, seeds: int) -> Iterator[list[Row]]:
    """The rows of each part in turn: the clone's return by seed, for each way that it acts."""
    found = datasets.find(file)
    whole, _ = found.read_with_sha256("ram", Actions())
    env = str(found.attrs()["env_id"])
    number = whole.episode.float() / whole.episode.max() * 2 - 1
    for part, (low, high) in PARTS.items():
        cloned = (number >= 2 * low - 1) & (number <= 2 * high - 1)
        more = number[cloned, None] if part == NUMBERED else None
        data = _dataset(whole, cloned, more)
        clone = _clone(data, updates, seeds)
        returns, own = data.episode_returns()[0], {"data": float(data.episode_returns()[0].mean())}
        asked: dict[str, tuple[float | None, bool]] = {"mean": (None, False), "sampled": (None, True)}
        if part == NUMBERED:
            asked = {f"mean, as episode {x}": (x / 50 - 1, False) for x in (0, 50, 100)}
        out = []
        for how, (as_episode, sampled) in asked.items():
            for k, value in enumerate(_returns(clone, env, seeds, as_episode, sampled)):
                out.append({"arm": part, "how": how, "seed": k, "env": env, "updates": updates})
                out[-1] |= {"episodes": len(returns), **own, "return": value}
        yield out


def _dataset(whole: TransitionDataset, rows: Tensor, more: Tensor | None) -> TransitionDataset:
    """Some rows, with one more number behind each observation if `more` `(N, 1)` is given."""
    obs = whole.obs[rows] if more is None else torch.cat([whole.obs[rows], more], 1)
    fields = (whole.act[rows], whole.rew[rows], whole.terminated[rows], whole.truncated[rows])
    act, rew, terminated, truncated = (x.numpy() for x in fields)
    return TransitionDataset.from_arrays(obs.numpy(), act, rew, terminated, truncated)


def _clone(data: TransitionDataset, updates: int, seeds: int) -> BC:
    """The agent `bc` of the study `offline`, trained side by side for all seeds."""
    torch.manual_seed(0)
    inits = tuple(torch.Generator().manual_seed(k) for k in range(seeds))
    spec = Spec(data.obs_dim, data.act_dim, (seeds,), "cpu", inits)
    agent = make_agent(BCConfig(actor=MLPConfig(hidden=[128, 128])), spec)
    assert isinstance(agent, BC)
    agent.prepare(data)
    source = data.every_row().with_seeds((seeds,))
    for t in range(updates):
        agent.update(source.sample(128), Step(0, torch.tensor(t)))
    return agent.eval()


def _returns(clone: BC, env: str, seeds: int, as_episode: float | None, sampled: bool) -> list[float]:
    def policy(obs: Tensor) -> Tensor:
        if as_episode is not None:
            obs = torch.cat([obs, torch.full_like(obs[..., :1], as_episode)], -1)
        return clone.act(obs, explore=sampled)

    def value(obs: Tensor, act: Tensor) -> Tensor:
        return torch.zeros_like(obs[..., 0])

    found: list[float] = Evaluator(env, (seeds,), EPISODES, 0, 0.99)(policy, value)["return"].tolist()
    return found


def table(results: Path) -> str:
    """What was measured, a row for each part and way to act; for a page."""
    lines = ["| file | cloned | their mean return | the clone acts by | the clone returns, by seed |"]
    lines, notes = [*lines, "|---|---|---|---|---|"], []
    for path in sorted(results.glob("cloning-*.csv")):
        name = path.stem.removeprefix("cloning-")
        parts = read_rows(path)
        for part, rows in parts.items():
            for how in dict.fromkeys(r["how"] for r in rows):
                values = ", ".join(f"{float(r['return']):.0f}" for r in rows if r["how"] == how)
                episodes, own = rows[0]["episodes"], float(rows[0]["data"])
                cells = [f"`{name}`", f"{part} ({episodes} episodes)", f"{own:.0f}", _how(how), values]
                lines.append(f"| {' | '.join(cells)} |")
        first = next(iter(parts.values()))[0]
        updates = f"{int(first['updates']):,}".replace(",", " ")
        notes.append(f"`{name}`: {updates} updates, {EPISODES} episodes for each seed in {first['env']}.")
    return "\n".join([*lines, "", *notes])


def _how(how: str) -> str:
    """A way to act, for readers."""
    if how.startswith("mean, as episode"):
        return f"its mean action, told to be {how.rpartition(' ')[2]} % through the buffer"
    return "its mean action" if how == "mean" else "a sampled action"


def main() -> None:
    """What the module's docstring says."""
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[1])
    p.add_argument("file")
    p.add_argument("--updates", type=int, default=2000)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--results", default=str(RESULTS))
    options: Any = p.parse_args()
    rows: list[Row] = []
    for found in measure(options.file, options.updates, options.seeds):
        rows += found
        for row in found:
            print(row["arm"], row["how"], round(row["return"]), flush=True)
        write(Path(options.results) / f"cloning-{Path(options.file).stem}.csv", rows)


if __name__ == "__main__":
    main()
