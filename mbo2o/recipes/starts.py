"""Where imagined branches begin: kinds of states with their shares."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mbo2o.sources.mixtures import Mix
from mbo2o.types import Batch, Source, Spec, UserError

ENDS = "imagined-ends"
KINDS = {
    "data": "the dataset, or without one all experience",
    "mixture": "both kinds of real rows, as the agent's and the model's batches mix them",
    "visited": "the experience of the latest epoch",
    ENDS: "the last states of the latest branches, those that the horizon alone has ended",
}


def shares(starts: Any) -> dict[str, float]:
    """The share of each kind: `starts` is one kind's name, or a dict of names and weights."""
    return {starts: 1.0} if isinstance(starts, str) else dict(starts)


def check_starts(name: str, starts: Any, kinds: Collection[str]) -> None:
    """Raise a `UserError` unless `starts` names some of `kinds`, with weights of 0 or more."""
    choices = ", ".join(kinds)
    if not isinstance(starts, str | dict) or not starts:
        wanted = f"one of {choices}, or a dict of them with weights, as {{data: 0.5, {ENDS}: 0.5}}"
        raise UserError(f"recipe.{name}={starts} must be {wanted}")
    for kind, weight in shares(starts).items():
        if kind not in kinds:
            why = " has no meaning there" if kind in KINDS else " is no kind of start"
            raise UserError(f"recipe.{name}: {kind!r}{why}; choices: {choices}")
        if type(weight) not in (int, float) or not 0 <= weight < float("inf"):
            raise UserError(f"recipe.{name}.{kind}={weight} is a weight: it must be 0 or more")
    if not sum(shares(starts).values()):
        raise UserError(f"recipe.{name}={starts}: the weights must not all be 0")


def begin(starts: Any, usual: Source, **kinds: Source | None) -> Source:
    """The source of `starts` out of the sources of all kinds.

    A kind that is None has no rows yet, and leaves its share to the others, or to `usual` if there is none.
    """
    there = [(kinds[kind], share) for kind, share in shares(starts).items() if share > 0]
    parts = [(source, share) for source, share in there if source is not None]
    if len(parts) < 2:
        return parts[0][0] if parts else usual
    return Mix(*parts)


class Ends(nn.Module):
    """The last states of the latest rollout's branches that went on until the horizon; a `Source`.

    A seed in which no branch did has the states of `usual` instead. It is a sink of the rollout's last rows.
    """

    states: Tensor
    reached: Tensor
    usual: Source

    def __init__(self, spec: Spec, branches: int, usual: Source):
        super().__init__()
        self.usual = usual
        states = torch.zeros(*spec.seeds, branches, spec.obs_dim, device=spec.device)
        self.register_buffer("states", states)
        self.register_buffer("reached", torch.zeros_like(states[..., 0], dtype=torch.bool))

    def add(self, batch: Batch, *, keep: Tensor) -> None:
        """Take the last rows of all branches, `(*S, B, ...)`, and which of them could have gone on."""
        self.states.copy_(batch.next_obs)
        self.reached.copy_(keep)

    def __len__(self) -> int:
        return len(self.usual)

    def sample(self, n: int) -> Batch:
        """`n` rows of `usual` per seed, whose `obs` are states that branches have reached."""
        other = self.usual.sample(n)
        count = self.reached.sum(-1, keepdim=True)
        order = self.reached.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
        # as many draws as without any end, so that they do not depend on the branches
        u = torch.rand(*count.shape[:-1], n, dtype=torch.float64, device=count.device)
        row = order.gather(-1, (u * count).long()).unsqueeze(-1)
        obs = self.states.gather(-2, row.expand(*row.shape[:-1], self.states.shape[-1]))
        return replace(other, obs=torch.where((count > 0).unsqueeze(-1), obs, other.obs))
