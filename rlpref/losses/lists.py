"""Losses on K answers to one prompt with a score for each; ties keep the order of the data. h = log pi - log ref of
whole answers [B, K]; l(z) = -log sigmoid(z). Absent answers count nothing. At K = 2 most are DPO."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from rlpref.losses.inputs import ListLogps, RewardLists, per_row
from rlpref.losses.ranges import NotNegative, Positive
from rlpref.losses.registry import register


def log_ratio(ll: ListLogps) -> Tensor:
    """[B, K]"""
    return ll.logps - ll.ref_logps


def targets(scores: Tensor, present: Tensor, temperature: float) -> Tensor:
    """[B, K] softmax of scores/temperature over the answers that are there."""
    return (scores / temperature).masked_fill(~present, -torch.inf).softmax(1)


def best(ll: ListLogps | RewardLists) -> Tensor:
    """[B, 1] place of the answer with the highest score."""
    return ll.scores.masked_fill(~ll.present, -torch.inf).argmax(1, keepdim=True)


def worst(ll: ListLogps | RewardLists) -> Tensor:
    """[B, 1] place of the answer with the lowest score."""
    return ll.scores.masked_fill(~ll.present, torch.inf).argmin(1, keepdim=True)


def better(ll: ListLogps | RewardLists) -> Tensor:
    """[B, K, K] whether the one answer has a higher score than the other; both are there."""
    return (ll.scores[:, :, None] > ll.scores[:, None]) & ll.present[:, :, None] & ll.present[:, None]


def ranking_nll(values: Tensor, scores: Tensor, present: Tensor) -> Tensor:
    """[B] -log of the Plackett-Luce probability with utilities `values` of the order that `scores` give. Each is one
    tensor [B, K]. Plackett 1975; Luce 1959."""
    order = scores.masked_fill(~present, -torch.inf).argsort(dim=1, descending=True, stable=True)
    values, present = values.gather(1, order), present.gather(1, order)
    hidden = values.masked_fill(~present, torch.finfo(values.dtype).min)
    rest = hidden.flip(1).logcumsumexp(1).flip(1)  # of this answer and all worse ones
    return torch.where(present, rest - values, 0.0).sum(1)


def top_one_nll(values: Tensor, scores: Tensor, present: Tensor, temperature: float) -> Tensor:
    """[B] -sum_k p_k log softmax(values)_k with p = softmax(scores/temperature); each is one tensor [B, K]."""
    hidden = values.masked_fill(~present, torch.finfo(values.dtype).min)
    return -torch.where(present, targets(scores, present, temperature) * hidden.log_softmax(1), 0.0).sum(1)


@register(at_ref="log(factorial(k))", shift_invariant=True, kl_optimal=True)
def plackett_luce(ll: ListLogps, beta: Positive) -> Tensor:
    """-sum_k log[e^(beta h_k) / sum over j >= k of e^(beta h_j)], best answer first: DPO on rankings. Rafailov et al.
    2023 (2305.18290), appendix A.3."""
    return ranking_nll(per_row(beta) * log_ratio(ll), ll.scores, ll.present)


@register(at_ref="log(k)", shift_invariant=True, kl_optimal=True)
def infonca(ll: ListLogps, beta: Positive, temperature: Positive = 1.0) -> Tensor:
    """-sum_k p_k log softmax(beta h)_k with p = softmax(scores/temperature). Chen et al. 2024 (2402.05369); the
    temperature is the paper's alpha."""
    return top_one_nll(per_row(beta) * log_ratio(ll), ll.scores, ll.present, temperature)


@register(at_ref="2 * log(2)")
def nca_k(ll: ListLogps, beta: Positive, temperature: Positive = 1.0) -> Tensor:
    """sum_k p_k l(beta h_k) + mean_k l(-beta h_k) with p = softmax(scores/temperature). Chen et al. 2024
    (2402.05369)."""
    rewards = per_row(beta) * log_ratio(ll)
    p = targets(ll.scores, ll.present, temperature)
    every = torch.where(ll.present, -logsigmoid(-rewards), 0.0).sum(1) / ll.present.sum(1)
    return every - torch.where(ll.present, p * logsigmoid(rewards), 0.0).sum(1)


@register(at_ref="log(k)", shift_invariant=True, kl_optimal=True)
def s_dpo(ll: ListLogps, beta: Positive) -> Tensor:
    """log(1 + sum over the others of e^(-beta (h_best - h_j))): the best answer against all others at once. Chen et al.
    2024 (2406.09215), as in the authors' code (chenyuxin1999/S-DPO)."""
    rewards = per_row(beta) * log_ratio(ll)
    first = best(ll)
    behind = rewards - rewards.gather(1, first)
    others = ll.present.scatter(1, first, False)
    return softplus(behind.masked_fill(~others, torch.finfo(behind.dtype).min).logsumexp(1))


@register(shift_invariant=True)
def lipo_lambda(ll: ListLogps, beta: Positive) -> Tensor:
    """sum over pairs with s_i > s_j of |G_i - G_j| |1/D_i - 1/D_j| l(beta (h_i - h_j)), G = 2^score - 1 and
    D = log(1 + rank by h): the LambdaLoss of LiPO. Liu et al. 2024 (2402.01878). Scores are meant to lie
    in [0, 1]; the ranks carry no gradient."""
    h = log_ratio(ll)
    first = h.detach().masked_fill(~ll.present, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = first.argsort(dim=1).to(h) + 1
    gain, discount = 2.0**ll.scores - 1, torch.log1p(rank)
    weight = (gain[:, :, None] - gain[:, None]).abs() * (1 / discount[:, :, None] - 1 / discount[:, None]).abs()
    apart = per_row(beta) * h
    value = weight * -logsigmoid(apart[:, :, None] - apart[:, None])
    return torch.where(better(ll), value, 0.0).sum((1, 2))


@register(nll=True)
def rrhf(ll: ListLogps, length_power: NotNegative = 1.0) -> Tensor:
    """sum over pairs with s_i > s_j of max(0, p_j - p_i) - log pi(best), p = log pi / length^`length_power`: rank
    responses without a reference. Yuan et al. 2023 (2304.05302). The authors' code weights the first term
    with 100."""
    p = ll.logps / ll.length.clamp(min=1) ** length_power
    ranked = torch.where(better(ll), torch.relu(p[:, None] - p[:, :, None]), 0.0).sum((1, 2))
    return ranked - ll.logps.gather(1, best(ll))[:, 0]


@register
def a2po(ll: ListLogps, beta: Positive, value_beta: Positive = 0.5) -> Tensor:
    """mean_k (beta h_k - (s_k - V))^2 with the optimal value V = b log mean_k e^(s_k / b), b = `value_beta`, estimated
    from the same answers, drawn from the reference. Brantley et al. 2025 (2505.20686), as in the authors' code
    (ZhaolinGao/A-PO), which regresses fresh answers and estimates V beforehand."""
    count = ll.present.sum(1)
    scaled = (ll.scores / value_beta).masked_fill(~ll.present, -torch.inf)
    value = value_beta * (scaled.logsumexp(1) - count.to(scaled).log())
    off = per_row(beta) * log_ratio(ll) - (ll.scores - value[:, None])
    return torch.where(ll.present, off**2, 0.0).sum(1) / count
