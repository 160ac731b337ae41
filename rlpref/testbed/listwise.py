"""The exact expected value of a loss on K answers to a prompt, over all K-tuples of answers. For small tasks: it is of
the order of answers^K."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rlpref.losses.inputs import ListLogps
from rlpref.losses.lists import ranking_nll
from rlpref.testbed.exact import answer_logps, lengths
from rlpref.testbed.task import Testbed, answer_places

ListLoss = Callable[[ListLogps], Tensor]  # one value per list
LARGEST = 2_000_000  # lists of all prompts


def expected_list_loss(
    task: Testbed, loss: ListLoss, ref: Tensor, mu: Tensor, scores: Tensor, k: int
) -> Callable[[Tensor], Tensor]:
    """Expected loss over a uniform prompt and K answers i.i.d. from `mu`, as a function of the policy.

    `ref` and `mu` are conditionals, `scores` [prompts, inner, vocab] the gold rewards. A loss that reads no more of the
    scores than their order gets a ranking drawn from the Plackett-Luce model of the scores (Plackett 1975), for K = 2
    Bradley-Terry, as ranks: K to 1; every other loss gets the scores themselves. Raises ValueError for more than
    LARGEST lists.
    """
    places = answer_places(task)
    mass = answer_logps(task, mu).flatten(1)[:, places]
    if len(mass) * len(places) ** k > LARGEST:
        raise ValueError(f"{len(places)}^{k} lists to each of {len(mass)} prompts are too many to enumerate")
    drawn = torch.cartesian_prod(*[torch.arange(len(places))] * k)  # [lists, k]

    def rows(table: Tensor) -> Tensor:
        return table[:, drawn].flatten(0, 1)

    chance = rows(mass).sum(1).exp() / len(mass)
    keep = chance > 0
    gold, present = rows(scores.flatten(1)[:, places])[keep], torch.ones(int(keep.sum()), k, dtype=torch.bool)
    ranks = torch.arange(k, 0, -1, dtype=gold.dtype).expand_as(gold)
    chance = chance[keep]
    if _reads_order_alone(loss, k):
        # Each set of K answers stands here in all K! orders: this one is the ranking that came out.
        chance = chance * math.factorial(k) * (-ranking_nll(gold, ranks, present)).exp()
        gold = ranks
    length = rows(lengths(task).flatten()[places].expand_as(mass))[keep]
    ref_logps = rows(answer_logps(task, ref).flatten(1)[:, places])[keep]

    def expected(policy: Tensor) -> Tensor:
        logps = rows(answer_logps(task, policy).flatten(1)[:, places])[keep]
        return (chance * loss(ListLogps(logps, ref_logps, length, gold, present))).sum()

    return expected


def _reads_order_alone(loss: ListLoss, k: int) -> bool:
    """Whether other scores of the same order give the same value."""
    generator = torch.Generator().manual_seed(0)
    logps, ref, scores = -1 - torch.rand(3, 8, k, generator=generator, dtype=torch.float64)
    length, present = torch.ones_like(logps), torch.ones_like(logps, dtype=torch.bool)
    one, other = (loss(ListLogps(logps, ref, length, s, present)) for s in (scores, (3 * scores).exp()))
    return torch.allclose(one, other)
