"""The reward table that minimises a reward-model loss over all pairs of answers: what a reward model of no restriction
learns from endless labels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlpref.losses.inputs import RewardPairs
from rlpref.testbed.duels import crossed
from rlpref.testbed.exact import answer_logps
from rlpref.testbed.population import minimise
from rlpref.testbed.preferences import Preference
from rlpref.testbed.task import Testbed, answer_places


def reward_argmin(
    task: Testbed,
    loss: Callable[[RewardPairs], Tensor],
    mu: Tensor,
    preference: Preference,
    max_iter: int = 2000,
) -> Tensor:
    """[prompts, inner, vocab] scores at the minimum of the expected loss of pairs drawn i.i.d. from `mu` (conditionals
    of full support) and labelled by `preference`; mean 0 under `mu`, 0 where no answer ends.

    With the Bradley-Terry loss the model is expected to win as often as the annotators found: E_b sigma(r(a) - r(b)) =
    p(a beats mu), the Borda count, whoever they are. Siththaranjan et al. 2023 (2312.08358). The whole matrix of pairs
    is held: for small spaces.
    """
    answers = answer_places(task)
    mass = answer_logps(task, mu).exp().flatten(1)[:, answers]
    weight = mass[:, :, None] * mass[:, None, :] * crossed(task, preference, answers, answers)
    scores = torch.zeros_like(mass, requires_grad=True)

    def expected() -> Tensor:
        chosen, rejected = scores[:, :, None].expand_as(weight), scores[:, None, :].expand_as(weight)
        return (weight.flatten() * loss(RewardPairs(chosen.flatten(), rejected.flatten()))).sum()

    minimise(expected, [scores], max_iter)
    found = scores.detach()
    table = torch.zeros_like(mu).flatten(1)
    table[:, answers] = found - (mass * found).sum(1, keepdim=True)
    return table.view_as(mu)
