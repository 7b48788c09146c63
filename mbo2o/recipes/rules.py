"""What ends an imagined episode, and what its steps pay: by rules that are named, the user's, or learned."""

from __future__ import annotations

import warnings

from torch import Tensor

from mbo2o.dynamics.learned_termination import LearnedTermination
from mbo2o.dynamics.termination import resolve, resolve_reward
from mbo2o.run.turns import Run
from mbo2o.types import RewardFn, TerminationFn, UserError


def reward_rule(run: Run, name: str | None) -> RewardFn | None:
    """The user's reward function in the units of the run's other rewards; None: the model's own is used."""
    reward = resolve_reward(name)
    if reward is None:
        return None
    rewards = run.world.rewards

    def shaped(obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        return rewards(reward(obs, act, next_obs))

    return shaped


def termination_rule(run: Run, name: str, has_dataset: bool) -> TerminationFn:
    """The rule of that name, compared with the dataset if there is one; `learned` fits one to the dataset."""
    if name != "learned":
        rule = resolve(name, run.env.id, run.env.kwargs, run.env.layout)
        if has_dataset:
            _compare(run, name, rule)
        return rule
    if not has_dataset:
        raise UserError("recipe.termination=learned needs a dataset to learn from; name a rule instead")
    head = LearnedTermination(run.spec.obs_dim, run.spec.act_dim).to(run.spec.device)
    run.track(termination=head)
    for _ in run.once("termination"):
        b = run.dataset.rows(run.dataset.index)
        head.load_state_dict(LearnedTermination.fit(b.obs, b.act, b.next_obs, b.done).state_dict())
    return head


def _compare(run: Run, name: str, rule: TerminationFn) -> None:
    """Warn of a rule that is wrong about more than a thousandth of the dataset."""
    data = run.dataset
    wrong = sum(int((rule(b.obs, b.act, b.next_obs) != (b.done > 0)).sum()) for b in data.blocks())
    if wrong > len(data) / 1000:
        text = f"termination {name!r} disagrees with {wrong} of the dataset's {len(data)} transitions"
        warnings.warn(f"{text}; recipe.termination=learned fits one to the data", stacklevel=2)
