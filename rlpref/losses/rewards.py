"""Losses of reward models on the scores r of chosen (w) and rejected (l) answers, [B] each, or of K answers [B, K];
l(z) = -log sigmoid(z)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlpref.losses.inputs import RewardLists, RewardPairs
from rlpref.losses.lists import ranking_nll
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
    """m l(r(w) - r(l)): a pair counts by the data's margin m. Wang et al. 2024 (2410.01257), scaled Bradley-Terry."""
    return -rp.margin * logsigmoid(gap(rp))


@register
def bt_center(rp: RewardPairs, coef: float = 0.01) -> Tensor:
    """l(r(w) - r(l)) + coef (r(w) + r(l))^2, which keeps scores around 0. Eisenstein et al. 2023 (2312.09244)."""
    return -logsigmoid(gap(rp)) + coef * (rp.chosen + rp.rejected) ** 2


@register(shift_invariant=True)
def bt_soft(rp: RewardPairs) -> Tensor:
    """p l(r(w) - r(l)) + (1 - p) l(r(l) - r(w)) with the data's probability p that w is the better one. Christiano et
    al. 2017 (1706.03741), section 2.2.3."""
    return -rp.soft_label * logsigmoid(gap(rp)) - (1 - rp.soft_label) * logsigmoid(-gap(rp))


@register(shift_invariant=True)
def bt_lapse(rp: RewardPairs, lapse: float = 0.1) -> Tensor:
    """-log[(1 - eps) sigmoid(r(w) - r(l)) + eps/2]: with probability eps = `lapse` the judge tosses a coin, so that no
    pair can cost more than log 2/eps. Christiano et al. 2017 (1706.03741), section 2.2.3."""
    sure = math.log1p(-lapse) + logsigmoid(gap(rp))
    return -torch.logaddexp(sure, torch.full_like(sure, math.log(lapse / 2)))


@register(shift_invariant=True)
def reward_hinge(rp: RewardPairs, delta: float = 1.0) -> Tensor:
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
