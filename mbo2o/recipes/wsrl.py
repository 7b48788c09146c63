"""WSRL: online fine-tuning need not retain offline data (Zhou et al. 2024, arXiv 2412.07762)."""

from __future__ import annotations

from dataclasses import dataclass

from mbo2o.recipes.finetune import Finetune, FinetuneConfig, probe
from mbo2o.registry import recipe
from mbo2o.run.turns import Run


@dataclass
class WSRLConfig(FinetuneConfig):
    """Defaults: the authors' code on locomotion (experiments/configs and scripts)."""

    offline_steps: int = 250_000  # gradient steps
    online_steps: int = 300_000  # environment steps per seed, the warm-up among them
    # gradient steps of the critics per environment step; the online agent's policy_delay is as large
    utd: int = 4
    warmup: int = 5000  # K: the first online steps


@recipe("wsrl", WSRLConfig)
class WSRL(Finetune):
    """The offline policy acts for K steps and nothing learns; then learn fast from online data alone.

    The offline phase and the switch are those of `Finetune`. What the K steps leave in the buffer stands
    for the offline data: without it the critics are wrong where the first online batches are, and unlearn
    what they knew.
    """

    paper = "Zhou et al. 2024, arXiv 2412.07762"
    cfg: WSRLConfig

    def online(self, run: Run) -> None:
        """Warm up, then act, remember, learn."""
        cfg = self.cfg
        warmup = min(cfg.warmup, cfg.online_steps)
        for _ in run.interact(self.agent, warmup):
            pass  # the frozen policy fills the buffer: that is the paper
        for t in run.interact(self.agent, cfg.online_steps - warmup):
            if t % cfg.probe_every == 0:
                run.write("probe", probe(run, self.agent))
            self.source.advance(warmup + t)
            run.learn(self.agent, self.source, cfg.batch, self.source.updates(cfg.utd))
