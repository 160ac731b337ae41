"""Policy-gradient losses that take an answer as one action: one ratio for all its tokens. [..., T] in and out as for
losses on tokens; A is meant to be the same at every token of an answer. |y| is the answer's length in tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlpref.losses.bounds import bounded, bounded_exp
from rlpref.losses.inputs import RolloutLogps
from rlpref.losses.lists import per_row
from rlpref.losses.registry import register
from rlpref.losses.rollouts import by_sign, clipped, log_ratio
from rlpref.ops.masked import masked_mean


def answer_sum(tokens: Tensor, mask: Tensor) -> Tensor:
    """[..., T] at each token the sum over those of its answer."""
    return torch.where(mask, tokens, 0.0).sum(-1, keepdim=True).expand_as(tokens)


def answer_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """[..., T] at each token the mean over those of its answer."""
    return masked_mean(tokens, mask, dim=-1, keepdim=True).expand_as(tokens)


@register(reduce="sequence_mean")
def ppo_clip_answer(rl: RolloutLogps, cliprange: float = 0.2) -> Tensor:
    """-min(r A, clip(r, 1 - cliprange, 1 + cliprange) A) with r = pi(y)/old(y) of the whole answer: what TRL's RLOO
    minimises. Ahmadian et al. 2024 (2402.14740), section 3, an answer as one action, under the clip of 1707.06347."""
    ratio = bounded_exp(answer_sum(log_ratio(rl), rl.mask))
    return clipped(ratio, rl.advantages, cliprange, cliprange)


@register(reduce="sequence_mean")
def gspo(rl: RolloutLogps, cliprange_low: float = 3e-4, cliprange_high: float = 4e-4) -> Tensor:
    """-min(s A, clip(s, 1 - low, 1 + high) A) with s = (pi(y)/old(y))^(1/|y|). Zheng et al. 2025 (2507.18071), eq. 5
    to 7."""
    return clipped(bounded_exp(answer_mean(log_ratio(rl), rl.mask)), rl.advantages, cliprange_low, cliprange_high)


@register(reduce="sequence_mean")
def gspo_token(rl: RolloutLogps, cliprange_low: float = 3e-4, cliprange_high: float = 4e-4) -> Tensor:
    """-min(s_t A_t, clip(s_t, 1 - low, 1 + high) A_t) with s_t = s pi_t/pi_t, where s and the denominator are held
    constant: `gspo` for advantages that differ between tokens. Zheng et al. 2025 (2507.18071), eq. 13 and 14."""
    ratio = bounded_exp(answer_mean(log_ratio(rl).detach(), rl.mask)) * torch.exp(rl.logps - rl.logps.detach())
    return clipped(ratio, rl.advantages, cliprange_low, cliprange_high)


@register(reduce="sequence_sum")
def luspo(rl: RolloutLogps, cliprange_low: float = 3e-4, cliprange_high: float = 4e-4) -> Tensor:
    """-|y| min(s A, clip(s) A), s as in `gspo`, whose answers count by their length. 2602.05261 (2026), LUSPO, as in
    TRL; the default ranges are GSPO's."""
    return gspo(rl, cliprange_low, cliprange_high)


@register(reduce="sequence_mean")
def gmpo(rl: RolloutLogps, cliprange: float = 0.4) -> Tensor:
    """-A exp(mean over tokens of c_t), c_t = log r_t held at most `cliprange` where A > 0 and at least -`cliprange`
    elsewhere: the geometric mean of clipped ratios. Zhao et al. 2025 (2507.20673)."""
    kept = torch.where(rl.advantages > 0, log_ratio(rl).clamp(max=cliprange), log_ratio(rl).clamp(min=-cliprange))
    return -rl.advantages * bounded_exp(answer_mean(kept, rl.mask))


@register(reduce="token_mean")
def vespo(
    rl: RolloutLogps, k_pos: float = 2.0, lambda_pos: float = 3.0, k_neg: float = 3.0, lambda_neg: float = 2.0
) -> Tensor:
    """-W^k e^(lambda (1 - W)) A log pi with W = pi(y)/old(y) and the weight held constant; k and lambda go by the sign
    of A. 2602.10693 (2026), VESPO, as in TRL: a token's |log r| is held at 20, W between 1e-8 and e^20; counted."""
    between = bounded(log_ratio(rl).detach(), -20.0, 20.0)
    log_w = bounded(answer_sum(between, rl.mask), math.log(1e-8), 20.0)
    k, rate = (by_sign(rl.advantages, *each) for each in ((k_pos, k_neg), (lambda_pos, lambda_neg)))
    return -torch.exp(k * log_w - rate * torch.expm1(log_w)) * rl.advantages * rl.logps


@register(reduce="sequence_sum")
def topr(rl: RolloutLogps) -> Tensor:
    """-w A log pi with w = 1 where A > 0 and min(1, pi(y)/old(y)), held constant, elsewhere: bad answers count less
    once they are unlikely. Le Roux et al. 2025 (2503.14286), tapered off-policy REINFORCE."""
    taper = torch.exp(answer_sum(log_ratio(rl), rl.mask).detach().clamp(max=0))
    return -torch.where(rl.advantages > 0, 1.0, taper) * rl.advantages * rl.logps


def log_policy_over_ref(rl: RolloutLogps) -> Tensor:
    """[..., T] log pi(y)/ref(y) of the whole answer."""
    return answer_sum(rl.logps - rl.ref_logps, rl.mask)


@register(reduce="sequence_mean")
def dro(rl: RolloutLogps, tau: float) -> Tensor:
    """(A - tau h)^2 / (2 tau), A = r - V(x) and h = log pi(y)/ref(y): direct reward optimisation of single answers.
    Richemond et al. 2024 (2405.19107), eq. 4, over tau as the authors scale the policy's gradient; tau is the beta."""
    tau = per_row(tau)
    return (rl.advantages - tau * log_policy_over_ref(rl)) ** 2 / (2 * tau)


@register(reduce="sequence_mean")
def a_star_po(rl: RolloutLogps, beta: float) -> Tensor:
    """(beta h - A)^2, h = log pi(y)/ref(y) and A = r - V*(x), the optimal value as beta_1 log mean exp(r/beta_1) over
    answers of the reference. Brantley et al. 2025 (2505.20686); TRL's `a2po`, whose beta_2 is beta."""
    return (per_row(beta) * log_policy_over_ref(rl) - rl.advantages) ** 2
