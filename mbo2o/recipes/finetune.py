"""Pre-train any agent on the data, hand its networks to an online agent, go on in the environment.

SAC-N, EDAC, CQL, Cal-QL, IQL, AWAC, TD3+BC and LAPO, and every pair of them that shares networks, are
settings of this recipe.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from omegaconf import MISSING
from torch import nn

from mbo2o.agents import Agent, AgentConfig, make_agent
from mbo2o.agents.base import Change
from mbo2o.agents.qensemble import QEnsemble, td_residuals
from mbo2o.recipes.base import Recipe, RecipeConfig
from mbo2o.registry import recipe
from mbo2o.run.turns import Run
from mbo2o.sources import BaseSource, SourceConfig, make_source
from mbo2o.sources.base import check_counts, check_steps, source_class
from mbo2o.sources.online import OnlineConfig
from mbo2o.types import Metrics, UserError

PROBE = 1000
"""Rows of the dataset that a probe looks at."""
INHERITED = ("all", "policy", "critics", "none")


@dataclass
class FinetuneConfig(RecipeConfig):
    """Defaults: ENOTO's protocol (arXiv 2306.06871 and its authors' E2O code) unless said."""

    OFFLINE: ClassVar[tuple[str, ...]] = ("offline", "offline_steps", "batch")

    offline: AgentConfig = MISSING  # the agent of the offline phase, one of `mbo2o methods`
    # The agent of the online phase. None: what the offline agent becomes (its config's `after_switch()`),
    # or with `keep` the offline agent as it is, its pessimism included.
    online: Any = None
    keep: bool = False
    offline_steps: int = 1_000_000  # gradient steps
    online_steps: int = 250_000  # environment steps per seed
    batch: int = 256
    utd: int = 1  # gradient steps per environment step
    warmup: int = 1000  # the first online steps: the agent acts, nothing learns (WSRL 5000, CORL 0)
    source: SourceConfig | None = None  # what online batches are drawn from; None: online data alone
    inherit: str = "all"  # networks that cross the switch: all, policy, critics or none (WSRL, section 5.6)
    carry_moments: bool = True  # the optimisers' moments cross the switch
    probe_every: int = 1000  # turns between looks at Q and actions on fixed rows of the dataset
    # the entropy temperature crosses the switch; balanced replay starts at 1 again
    carry_temperature: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.source = self.source or OnlineConfig()
        self.source.__post_init__()
        check_counts("recipe", self, "batch", "utd", "probe_every")
        check_steps("recipe", self, "offline_steps", "online_steps", "warmup")
        if self.keep and self.online:
            raise UserError("recipe.keep=true goes on with the offline agent: leave recipe.online out")
        if self.inherit not in INHERITED:
            raise UserError(f"recipe.inherit={self.inherit} is not one of {', '.join(INHERITED)}")


@recipe("finetune", FinetuneConfig)
class Finetune(Recipe):
    """Learn offline with one agent, go on online with the same networks in another agent or in the same."""

    paper = "Nair et al. 2020, arXiv 2006.09359, and each agent's own"
    cfg: FinetuneConfig
    agent: Agent

    @property
    def gamma(self) -> float:
        """The offline agent's discount."""
        return float(self.cfg.offline.gamma)

    def configs(self) -> tuple[Any, Any]:
        """The agents' configs before and after the switch."""
        before = self.cfg.offline
        return before, self.cfg.online or (before.unchanged() if self.cfg.keep else before.after_switch())

    def offline(self, run: Run) -> None:
        """Learn from the dataset alone."""
        cfg = self.cfg
        before, after = self.configs()
        check_ahead(run, after, cfg.source, cfg.online_steps)
        self.agent = make_agent(before, run.spec)
        data = run.dataset.every_row() if self.agent.clones else run.dataset
        self.agent.prepare(data)
        run.track(agent=self.agent)
        for t in run.steps(cfg.offline_steps, cfg.probe_every):
            if t % cfg.probe_every == 0:
                run.write("probe", probe(run, self.agent))
            run.learn(self.agent, data, cfg.batch)

    def switch(self, run: Run) -> None:
        """Carry over what both agents have, and say so."""
        cfg, before = self.cfg, self.agent
        self.agent = make_agent(self.configs()[1], run.spec)
        only = self.agent.inner(cfg.inherit) - (set() if cfg.carry_temperature else {"log_alpha"})
        table = self.agent.adopt(before, moments=cfg.carry_moments, only=only)
        run.track(agent=self.agent)
        self.source = open_source(run, cfg.source, self.agent, cfg.warmup)
        for _ in run.once("switch"):
            run.say(describe(table))
            warn_of_warmup(run, cfg.warmup, cfg.online_steps)
            parts = [asdict(x) for x in table]  # the report adds what came of it (report/switch.py)
            (run.directory / "switch.json").write_text(json.dumps({"parts": parts}, indent=1))
            self.source.begin()

    def online(self, run: Run) -> None:
        """Act, remember, learn."""
        cfg = self.cfg
        for t in run.interact(self.agent, cfg.online_steps):
            if t % cfg.probe_every == 0:
                run.write("probe", probe(run, self.agent))
            if t >= cfg.warmup:
                self.source.advance(t)
                run.learn(self.agent, self.source, cfg.batch, self.source.updates(cfg.utd))


def check_ahead(run: Run, after: AgentConfig, source: SourceConfig | None, online_steps: int) -> None:
    """Refuse before anything is learned what the online phase would refuse: an agent's config, or a source.

    The agent that is made for this is thrown away; the global random stream stays where it is.
    """
    with torch.random.fork_rng():
        later = make_agent(after, run.spec)
    if online_steps:
        run.check_scores(later)
    if getattr(source, "weigh", "none") == "td_error" and not isinstance(later, QEnsemble):
        raise UserError(f"recipe.source.weigh=td_error needs critics, and {type(later).__name__} has none")
    if source is not None:
        source_class(source).check(source, len(run.dataset), run.online.capacity)


def warn_of_warmup(run: Run, warmup: int, online_steps: int) -> None:
    """Tell the user if the online phase ends before the agent begins to learn."""
    if warmup >= online_steps:
        text = f"recipe.warmup={warmup} of recipe.online_steps={online_steps}"
        run.say(f"warning: {text}: the agent acts and never learns online; give less warm-up or more steps")


def open_source(run: Run, cfg: SourceConfig | None, agent: Agent, warmup: int) -> BaseSource:
    """The source of online batches; one with a state of its own is saved and restored with the run."""
    source = make_source(cfg or OnlineConfig(), run.spec, run.dataset, run.online, warmup)
    if isinstance(agent, QEnsemble):
        source.scores["td_error"] = lambda b: td_residuals(agent, b).abs().mean(-2)
    source.prepare(run.engine.prepare)
    if isinstance(source, nn.Module):
        run.track(replay=source)
    return source


def probe(run: Run, agent: Agent) -> Metrics:
    """On the same rows of the dataset each time: the critics' mean and spread, the policy's distance to data.

    `distance` is the median over rows of ‖π(s) - a‖ (ENOTO's figure 1c), `q_std` the mean over rows of the
    deviation over critics, `td_error` their mean squared distance from their targets: without offline data
    it rises (WSRL).
    """
    data = run.dataset
    index = data.index[torch.linspace(0, len(data) - 1, PROBE).long()]
    b = data.rows(index.expand(*run.spec.seeds, -1))
    metrics = {"distance": (agent.act(b.obs) - b.act).norm(dim=-1).median(-1).values}
    if isinstance(agent, QEnsemble):
        with torch.no_grad():
            q = agent.q(agent.observe(b.obs), b.act)
        metrics |= {"q": q.mean((-2, -1)), "q_std": q.std(-2, correction=0).mean(-1)}
        with torch.random.fork_rng():  # a look must not shift what is drawn next
            metrics |= {"td_error": agent.td_error(b)}
    return metrics


def describe(table: list[Change]) -> str:
    """The switch's table as text."""
    lines = [f"  {x.what:<8} {x.part:<24} {x.note}".rstrip() for x in table]
    return "\n".join(["at the switch:", *lines])
