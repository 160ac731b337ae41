"""Losses on single answers with a label, desirable or not. h = log pi - log ref of the whole answer;
l(z) = -log sigmoid(z)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlpref.losses.inputs import AnswerLogps
from rlpref.losses.ranges import NotNegative, Positive
from rlpref.losses.registry import register


def signed(al: AnswerLogps, values: Tensor) -> Tensor:
    """[B] the values of desirable answers, the negated ones of the others."""
    return torch.where(al.label, values, -values)


@register(at_ref="desirable_weight / 2 if label else undesirable_weight / 2", coupled=True)
def kto(
    al: AnswerLogps, beta: Positive, desirable_weight: NotNegative = 1.0, undesirable_weight: NotNegative = 1.0
) -> Tensor:
    """lambda [1 - sigmoid(+-beta (h - z))] with z = max(0, mean of h on prompts with another prompt's completion),
    without gradient, and lambda the weight of the answer's label. Ethayarajh et al. 2024 (2402.01306). Where that
    mean stays below 0, as it may early on, it is `apo_zero_unpaired`."""
    z = al.mismatched.detach().mean().clamp(min=0)
    desirable = al.label.to(al.logps)
    weight = desirable * desirable_weight + (1 - desirable) * undesirable_weight
    return weight * torch.sigmoid(-signed(al, beta * (al.logps - al.ref_logps - z)))


@register(at_ref="((score - 1/2) / beta)**2")
def sppo_single(al: AnswerLogps, beta: Positive) -> Tensor:
    """(h - (s - 1/2)/beta)^2 with the score s of the answer its estimated probability to beat the policy that drew it.
    Wu et al. 2024 (2405.00675), eq. 4.4; beta is the paper's 1/eta, the reference its policy of the round before."""
    return (al.logps - al.ref_logps - (al.score - 0.5) / beta) ** 2


@register(at_ref="1/2")
def apo_zero_unpaired(al: AnswerLogps, beta: Positive) -> Tensor:
    """1 - sigmoid(beta h) where desirable, sigmoid(beta h) where not: `apo_zero` answer by answer. D'Oosterlinck et al.
    2024 (2408.06266), eq. 7."""
    return torch.sigmoid(-signed(al, beta * (al.logps - al.ref_logps)))


@register(at_ref="log(2)", coupled=True)
def bco(al: AnswerLogps, beta: Positive) -> Tensor:
    """l(+-(beta h - delta)) with the reward shift delta, the mean of the minibatch's two means of beta h over desirable
    and over undesirable answers (of one where the other are not there), without gradient. Jung et al. 2024 (2404.04656)
    on one batch in the place of a moving mean; answers can carry the paper's density ratio as their `weight`."""
    rewards = beta * (al.logps - al.ref_logps)
    sides = [rewards.detach()[mask] for mask in (al.label, ~al.label)]
    found = [side.mean() for side in sides if len(side)]
    delta = sum(found) / len(found)
    return -logsigmoid(signed(al, rewards - delta))
