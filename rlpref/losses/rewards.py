"""Losses of reward models on the scores r of chosen (w) and rejected (l) answers, [B] each, or of K answers [B, K];
l(z) = -log sigmoid(z)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlpref.losses.bounds import bounded
from rlpref.losses.inputs import RewardLists, RewardPairs
from rlpref.losses.lists import better, ranking_nll, top_one_nll
from rlpref.losses.ranges import NotNegative, Positive, SomeShare
from rlpref.losses.registry import register


def gap(rp: RewardPairs) -> Tensor:
    """[B] r(w) - r(l)."""
    return rp.chosen - rp.rejected


@register(shift_invariant=True)
def bradley_terry(rp: RewardPairs) -> Tensor:
    """l(r(w) - r(l)). Bradley & Terry 1952; Ouyang et al. 2022 (2203.02155), eq. 1."""
    return -logsigmoid(gap(rp))


@register(shift_invariant=True)
def bt_margin(rp: RewardPairs) -> Tensor:
    """l(r(w) - r(l) - m) with the data's margin m, larger where the chosen answer is much better. Touvron et al. 2023
    (2307.09288), eq. 2."""
    return -logsigmoid(gap(rp) - rp.margin)


@register(shift_invariant=True)
def bt_scaled(rp: RewardPairs) -> Tensor:
    """m l(r(w) - r(l)): a pair counts by the data's margin m. Wang et al. 2024 (2410.01257), scaled Bradley-Terry. A
    margin below 0, with which there would be no minimum, is held at 0 and counted."""
    return -bounded(rp.margin, low=0.0) * logsigmoid(gap(rp))


@register
def bt_center(rp: RewardPairs, coef: NotNegative = 0.01) -> Tensor:
    """l(r(w) - r(l)) + coef (r(w) + r(l))^2, which keeps scores around 0. Eisenstein et al. 2023 (2312.09244)."""
    return -logsigmoid(gap(rp)) + coef * (rp.chosen + rp.rejected) ** 2


@register(shift_invariant=True)
def bt_soft(rp: RewardPairs) -> Tensor:
    """p l(r(w) - r(l)) + (1 - p) l(r(l) - r(w)) with the data's probability p that w is the better one. Christiano et
    al. 2017 (1706.03741), section 2.2.3."""
    return -rp.soft_label * logsigmoid(gap(rp)) - (1 - rp.soft_label) * logsigmoid(-gap(rp))


@register(shift_invariant=True)
def bt_lapse(rp: RewardPairs, lapse: SomeShare = 0.1) -> Tensor:
    """-log[(1 - eps) sigmoid(r(w) - r(l)) + eps/2]: with probability eps = `lapse` the judge tosses a coin, so that no
    pair can cost more than log 2/eps. Christiano et al. 2017 (1706.03741), section 2.2.3."""
    sure = math.log1p(-lapse) + logsigmoid(gap(rp))
    return -torch.logaddexp(sure, torch.full_like(sure, math.log(lapse / 2)))


@register(shift_invariant=True)
def reward_hinge(rp: RewardPairs, delta: NotNegative = 1.0) -> Tensor:
    """max(0, delta - (r(w) - r(l))): the ranking SVM. Joachims 2002, "Optimizing search engines using clickthrough
    data", for differences of scores."""
    return torch.relu(delta - gap(rp))


@register
def eurus(rp: RewardPairs) -> Tensor:
    """l(r(w) - r(l)) + l(r(w)) + l(-r(l)): above 0 for chosen answers, below 0 for rejected ones. Yuan et al. 2024
    (2404.02078), Eurus reward models."""
    return -logsigmoid(gap(rp)) - logsigmoid(rp.chosen) - logsigmoid(-rp.rejected)


@register
def reward_mse(rp: RewardPairs) -> Tensor:
    """[(r(w) - s(w))^2 + (r(l) - s(l))^2] / 2: regression on the data's scores s. as in the regression reward
    models of HelpSteer2, Wang et al. 2024 (2406.08673)."""
    return 0.5 * ((rp.chosen - rp.chosen_target) ** 2 + (rp.rejected - rp.rejected_target) ** 2)


@register(shift_invariant=True)
def reward_plackett_luce(rl: RewardLists) -> Tensor:
    """-sum_k log[e^(r_k) / sum over j >= k of e^(r_j)], best answer first. Plackett 1975; Luce 1959; Zhu et al. 2023
    (2301.11270)."""
    return ranking_nll(rl.rewards, rl.scores, rl.present)


@register(shift_invariant=True)
def reward_all_pairs(rl: RewardLists) -> Tensor:
    """mean over pairs with s_i > s_j of l(r_i - r_j): all ranked pairs of a list are one example. Ouyang et al.
    2022 (2203.02155), eq. 1."""
    ranked = better(rl)
    value = -logsigmoid(rl.rewards[:, :, None] - rl.rewards[:, None])
    return torch.where(ranked, value, 0.0).sum((1, 2)) / ranked.sum((1, 2)).clamp(min=1)


@register(shift_invariant=True)
def reward_listnet(rl: RewardLists, temperature: Positive = 1.0) -> Tensor:
    """-sum_k p_k log softmax(r)_k with p = softmax(scores/temperature): ListNet with the chances of being first. Cao et
    al. 2007, "Learning to rank: from pairwise approach to listwise approach"."""
    return top_one_nll(rl.rewards, rl.scores, rl.present, temperature)
