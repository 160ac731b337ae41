"""K answers to each prompt, with scores, as their losses see them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from rlpref.algorithms.common import reward_metrics
from rlpref.losses.inputs import ListLogps
from rlpref.losses.lists import best, worst
from rlpref.losses.modifiers import Objective
from rlpref.models.bundle import Models
from rlpref.types import Lists, Sequences


def at_reference(objective: Objective, lists: Lists, ref_logps: Callable[[Sequences], Tensor]) -> Lists:
    """The lists with the log-probs that the function gives."""
    return replace(lists, ref=lists.unflat(ref_logps(lists.flat()).sum(1)))


def logps(models: Models, objective: Objective, lists: Lists) -> ListLogps:
    """One pass of the policy over the answers that are there."""
    policy = lists.unflat(models.policy_logps(lists.flat().trimmed())[0].sum(1))
    if objective.reads_reference and lists.ref is None:
        lists = at_reference(objective, lists, models.ref_logps)
    return ListLogps(
        logps=policy,
        ref_logps=lists.ref.to(policy) if objective.reads_reference else torch.zeros_like(policy.detach()),
        length=lists.answers.lengths,
        scores=lists.scores.to(policy),
        present=lists.present,
        weight=lists.weight,
    )


def metrics(ll: ListLogps, scale: float | Tensor) -> dict[str, Tensor]:
    """Each [B]: `chosen` is the answer with the highest score, `rejected` the one with the lowest."""
    rewards = (scale * (ll.logps - ll.ref_logps).detach().T).T
    chosen, rejected = (rewards.gather(1, places)[:, 0] for places in (best(ll), worst(ll)))
    return reward_metrics(chosen, rejected) | {"logps/answers": ll.logps.detach().sum(1) / ll.present.sum(1)}


def at_rest(ll: ListLogps) -> tuple[ListLogps, Tensor]:
    """The same lists where the policy is the reference, and the log-ratios [B, K] that it takes to be there."""
    return replace(ll, logps=ll.ref_logps), ll.logps - ll.ref_logps
