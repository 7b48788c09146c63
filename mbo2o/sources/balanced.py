"""Balanced replay (Lee et al. 2021, arXiv 2107.00591): rows that look online are drawn more often."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from mbo2o.data.buffer import ReplayBuffer
from mbo2o.data.dataset import TransitionDataset
from mbo2o.data.sumtree import SumTree
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.registry import source
from mbo2o.sources.base import BaseSource, SourceConfig, check_steps
from mbo2o.sources.ratio import Ratio
from mbo2o.types import Batch, Metrics, Prepare, Spec, UserError, combine

FLOOR, CEILING = 1e-3, 1e3
"""Bounds of priorities (the authors' code). A ratio that is stuck at 0 keeps its rows alive."""


@dataclass
class BalancedConfig(SourceConfig):
    """Defaults: the authors' code."""

    # f: the share of batches that the first recipe.warmup online rows get between them
    first_share: float = 0.5
    temperature: float = 5.0  # T: priorities are ratios to the power 1/T, which mutes them
    first_updates: int = 10_000  # updates of agent and ratio in the first turn that learns
    lr: float = 3e-4
    ratio: MLPConfig = field(default_factory=MLPConfig)

    def __post_init__(self) -> None:
        if not 0 < self.first_share < 1 or self.temperature <= 0:
            raise UserError("recipe.source: first_share must lie between 0 and 1, temperature above 0")
        check_steps("recipe.source", self, "first_updates")


@source("balanced", BalancedConfig)
class Balanced(BaseSource, Ratio):
    """Offline and online rows by priority, with the network that the priorities come from.

    w(s, a) estimates how much likelier a pair is online than offline. A row's priority is renewed when it
    has been drawn: w^(1/T) over its mean offline. New rows enter with the highest priority so far.
    """

    cfg: BalancedConfig

    def __init__(
        self,
        cfg: BalancedConfig,
        spec: Spec,
        offline: TransitionDataset,
        online: ReplayBuffer,
        warmup: int = 0,
    ):
        Ratio.__init__(self, spec, cfg.ratio, cfg.lr)
        BaseSource.__init__(self, cfg, spec, offline, online, warmup)
        n = len(offline)
        seeds = int(np.prod(spec.seeds, dtype=int))
        self.tree = SumTree(seeds, n + online.capacity)
        self.tree.set(np.tile(np.arange(n), (seeds, 1)), np.ones((seeds, n)))
        # The buffer shares its memory with the tree, so that a checkpoint holds the priorities.
        self.register_buffer("nodes", torch.from_numpy(self.tree.nodes))
        first = n * cfg.first_share / ((1 - cfg.first_share) * max(1, warmup))
        self.top = nn.Buffer(torch.full((seeds,), first).double())
        self.entered = nn.Buffer(torch.zeros((), dtype=torch.int64))
        self._drawn = np.zeros((seeds, 0), np.int64)
        self._first_turn = False
        self._run = self._step

    def advance(self, steps: int) -> None:
        """Let in the rows that were written since the last turn."""
        self.enter(steps + 1)
        self._first_turn = steps == self.warmup

    def updates(self, usual: int) -> int:
        """The first turn that learns makes `first_updates` updates."""
        return max(usual, self.cfg.first_updates) if self._first_turn else usual

    def enter(self, written: int) -> None:
        """Let in those rows that are new among the `written` rows that each seed's online buffer has seen."""
        new = np.arange(int(self.entered), written)[-self.online.capacity :]
        leaf = np.tile(len(self.offline) + new % self.online.capacity, (len(self.top), 1))
        if len(new):
            self.tree.set(leaf, np.broadcast_to(self.top.numpy()[:, None], leaf.shape))
        self.entered.fill_(written)

    def sample(self, n: int) -> Batch:
        """`n` rows per seed by priority, which `learn` renews."""
        chance = torch.rand(len(self.top), n, dtype=torch.float64).numpy()
        self._drawn = self.tree.draw(chance)
        leaf = torch.from_numpy(self._drawn).reshape(*self.spec.seeds, n).to(self.offline.index.device)
        new = leaf >= len(self.offline)
        old = self.offline.rows(self.offline.index[torch.where(new, 0, leaf)])
        young = self.online.rows(torch.where(new, leaf - len(self.offline), 0))

        def pick(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(new.unsqueeze(-1) if a.dim() > new.dim() else new, b, a)

        return combine(pick, [old, young])

    def prepare(self, prepare: Prepare) -> None:
        """Have the ratio's steps run as `prepare` turns them into."""
        self._run = prepare(self._step)

    def learn(self, batch: Batch) -> Metrics:
        """One step of the ratio, then new priorities for the rows of `batch`, which were drawn last.

        The step is made on as many uniform rows of each kind as the batch has.
        """
        n = batch.rew.shape[-1]
        priority, ratios = self._run(self.offline.sample(n), self.online.sample(n), batch)
        fresh = priority.double().cpu().reshape(len(self.top), -1)
        self.tree.set(self._drawn, fresh.numpy())
        self.top.copy_(torch.maximum(self.top, fresh.max(-1).values))
        share = torch.from_numpy((self._drawn >= len(self.offline)).mean(-1)).reshape(self.spec.seeds)
        return ratios | {"online_share": share.to(priority)}

    def _step(self, old: Batch, young: Batch, drawn: Batch) -> tuple[Tensor, Metrics]:
        """One step of the ratio on rows of both kinds; then the priorities of drawn rows, and metrics."""
        w_old, w_young = self.tell_apart(old, young)
        with torch.no_grad():
            power = 1 / self.cfg.temperature
            scale = self.ratio(old).pow(power).mean(-1, keepdim=True)
            priority = (self.ratio(drawn).pow(power) / scale.clamp(min=1e-8)).clamp(FLOOR, CEILING)
        return priority, {
            "ratio_offline": w_old.mean(-1),
            "ratio_online": w_young.mean(-1),
        }
