"""Pre-train any agent on the data, hand its networks to an online one, go on in the environment.

SAC-N, EDAC, CQL, Cal-QL, IQL, AWAC, TD3+BC and LAPO, and every pair of them that shares networks, are settings of this recipe.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from omegaconf import MISSING

from mbo2o.agents import Agent, make_agent
from mbo2o.agents.base import Change
from mbo2o.agents.qensemble import QEnsemble
from mbo2o.data.sources import Aged, Mix
from mbo2o.recipes.balanced import BalancedConfig, BalancedReplay
from mbo2o.recipes.base import Recipe
from mbo2o.registry import recipe
from mbo2o.run.run import Run
from mbo2o.types import Batch, Metrics, Source, UserError

PROBE = 1000
"""Rows of the dataset that a probe looks at."""
INHERITED = ("all", "policy", "critics", "none")
BUFFERS = ("empty", "append", "mix", "anneal", "distill", "balanced")


@dataclass
class FinetuneConfig:
    """Defaults: ENOTO's protocol (arXiv 2306.06871 and its authors' E2O code) unless said."""

    offline: Any = MISSING  # an agent of `mbo2o methods`
    online: Any = None  # None: what the offline agent becomes (its config's `online()`, learning rates included), or with
    keep: bool = False  # that agent as it is, its pessimism included
    offline_steps: int = 1_000_000  # gradient steps
    online_steps: int = 250_000  # environment steps per seed
    batch: int = 256
    utd: int = 1  # gradient steps per environment step
    start: int = 1000  # environment steps before the first online update; the agent acts, nothing learns (WSRL 5000, CORL 0)
    buffer: str = (
        "empty"  # what online batches hold: empty (online data alone), append (uniform over both), mix
    )
    # (offline_share of each batch), anneal (that share, falling to 0), distill (a random part of the dataset seeds the buffer),
    # balanced (both, by how much they look like online data)
    offline_share: float = 0.5  # of mix (Cal-QL, RLPD), and of anneal at its start
    anneal_steps: int = 100_000  # environment steps until no offline data are left (ours)
    distill_share: float = 0.05  # of distill (adaptive BC), but at least
    distill_rows: int = 50_000  # rows
    balanced: BalancedConfig = field(default_factory=BalancedConfig)
    inherit: str = (
        "all"  # what crosses the switch: all, policy, critics or none of the networks (WSRL, section 5.6)
    )
    carry_moments: bool = True  # the optimisers' moments cross the switch
    probe_every: int = 1000  # turns between looks at Q and actions on fixed rows of the dataset
    carry_temperature: bool = (
        True  # and so does the entropy temperature (balanced replay starts it at 1 again)
    )

    @classmethod
    def modern(cls, stored: dict[str, Any]) -> dict[str, Any]:
        """Stored settings in the words of this version.

        With carry_rates, which no longer exists, a named online agent learned at the offline agent's rates,
        whatever its own config said.
        """
        offline, online = stored.get("offline"), stored.get("online")
        if stored.pop("carry_rates", False) and isinstance(offline, dict) and isinstance(online, dict):
            rates = {key: offline[key] for key in online if key.endswith("_lr") and key in offline}
            return stored | {"online": online | rates}
        return stored


@recipe("finetune", FinetuneConfig)
class Finetune(Recipe):
    """Learn offline with one agent, go on online with the same networks in another (or the same) one."""

    paper = "Nair et al. 2020, arXiv 2006.09359, and each agent's own"
    cfg: FinetuneConfig
    agent: Agent

    @property
    def gamma(self) -> float:
        """The offline agent's discount."""
        return float(self.cfg.offline.gamma)

    def configs(self) -> tuple[Any, Any]:
        """The agents' configs before and after the switch."""
        offline = self.cfg.offline
        return offline, self.cfg.online or (offline.kept() if self.cfg.keep else offline.online())

    def offline(self, run: Run) -> None:
        """Learn from the dataset alone."""
        cfg = self.cfg
        if cfg.keep and cfg.online:
            raise UserError("recipe.keep=true goes on with the offline agent: leave recipe.online out")
        if cfg.buffer not in BUFFERS:
            raise UserError(f"recipe.buffer={cfg.buffer} is not one of {', '.join(BUFFERS)}")
        if cfg.inherit not in INHERITED:
            raise UserError(f"recipe.inherit={cfg.inherit} is not one of {', '.join(INHERITED)}")
        offline, online = self.configs()
        with torch.random.fork_rng():
            later = make_agent(online, run.spec)  # a setting that it refuses is refused now
        if cfg.online_steps:
            run.check_scores(later)
        self.agent = make_agent(offline, run.spec)
        data = run.dataset.every_row() if self.agent.clones else run.dataset
        self.agent.prepare(data)
        run.track(agent=self.agent)
        for t in run.steps(cfg.offline_steps):
            if t % cfg.probe_every == 0:
                run.write("probe", self.probe(run))
            run.learn(self.agent, data, cfg.batch)

    def switch(self, run: Run) -> None:
        """Carry over what both agents have, and say so."""
        cfg, before = self.cfg, self.agent
        self.agent = make_agent(self.configs()[1], run.spec)
        only = self.agent.inner(cfg.inherit) - (set() if cfg.carry_temperature else {"log_alpha"})
        table = self.agent.adopt(before, moments=cfg.carry_moments, only=only)
        run.track(agent=self.agent)
        if cfg.buffer == "balanced":
            self.replay = BalancedReplay(run.spec, run.dataset, run.online, cfg.start, cfg.balanced)
            run.track(replay=self.replay)
        for _ in run.once("switch"):
            run.say(describe(table))
            (run.directory / "switch.json").write_text(json.dumps([asdict(x) for x in table], indent=1))
            if cfg.buffer == "distill":
                self.distill(run)

    def distill(self, run: Run) -> None:
        """Put a random part of the dataset, drawn for each seed, into the online buffer, first to be overwritten."""
        n = min(
            max(round(self.cfg.distill_share * len(run.dataset)), self.cfg.distill_rows), len(run.dataset)
        )
        if n > run.cfg.online_capacity:
            raise UserError(
                f"recipe.buffer=distill keeps {n} rows, more than run.online_capacity={run.cfg.online_capacity}"
            )
        order = torch.rand(*run.spec.seeds, len(run.dataset), device=run.spec.device).argsort(-1)
        run.online.add(run.dataset.rows(run.dataset.index[order[..., :n]]))

    def online(self, run: Run) -> None:
        """Act, remember, learn."""
        cfg = self.cfg
        for t in run.interact(self.agent, cfg.online_steps):
            if t % cfg.probe_every == 0:
                run.write("probe", self.probe(run))
            if t >= cfg.start:
                for batch in self.batches(run, t):
                    run.log(run.engine.update(self.agent, batch))

    def batches(self, run: Run, t: int) -> Iterator[Batch]:
        """What turn t learns from."""
        cfg = self.cfg
        if cfg.buffer != "balanced":
            yield from self.source(run, t).sample(cfg.batch * cfg.utd).deal(cfg.utd)
            return
        self.replay.enter(t + 1)
        for _ in range(max(cfg.utd, cfg.balanced.first_updates) if t == cfg.start else cfg.utd):
            batch = self.replay.sample(cfg.batch)
            yield batch
            run.log(self.replay.learn(cfg.batch, batch))

    def probe(self, run: Run) -> Metrics:
        """On the same rows of the dataset each time: the critics' mean and spread, the policy's distance to the data.

        `distance` is the median over rows of ‖π(s) - a‖ (ENOTO's figure 1c), `q_std` the mean over rows of the deviation
        over critics, `td_error` their mean squared distance from their targets: without offline data it rises (WSRL).
        """
        b = run.dataset.rows(
            run.dataset.index[torch.linspace(0, len(run.dataset) - 1, PROBE).long()].expand(
                *run.spec.seeds, -1
            )
        )
        metrics = {"distance": (self.agent.act(b.obs) - b.act).norm(dim=-1).median(-1).values}
        if isinstance(self.agent, QEnsemble):
            with torch.no_grad():
                q = self.agent.q(self.agent.observe(b.obs), b.act)
            metrics |= {"q": q.mean((-2, -1)), "q_std": q.std(-2, correction=0).mean(-1)}
            with torch.random.fork_rng():  # looking must not shift what is drawn next
                metrics |= {"td_error": self.agent.td_error(b)}
        return metrics

    def source(self, run: Run, t: int) -> Source:
        """Where turn t's batches come from."""
        cfg = self.cfg
        if cfg.buffer in ("empty", "distill"):
            return run.online
        if cfg.buffer == "append":
            return Aged(run.dataset, run.online, len(run.dataset) / (len(run.dataset) + len(run.online)))
        fading = max(0.0, 1 - t / max(1, cfg.anneal_steps)) if cfg.buffer == "anneal" else 1.0
        share = cfg.offline_share * fading
        return Mix((run.dataset, share), (run.online, 1 - share))


def describe(table: list[Change]) -> str:
    """The switch's table as text."""
    lines = [f"  {x.what:<8} {x.part:<24} {x.note}".rstrip() for x in table]
    return "\n".join(["at the switch:", *lines])
