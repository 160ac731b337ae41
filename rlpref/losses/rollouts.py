"""Policy-gradient losses on the tokens of sampled answers: [..., T] in and out, reduced as each entry says. A is the
advantage of the token, r = pi/old its ratio to the policy that sampled it; -min(r A, clip(r) A) is `clipped`."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlpref.losses.bounds import LARGEST_EXPONENT, bounded, bounded_exp, log1mexp
from rlpref.losses.inputs import RolloutLogps, per_row
from rlpref.losses.ranges import AboveOne, NotNegative, Positive, SomeShare
from rlpref.losses.registry import register
from rlpref.ops.kl import k3
from rlpref.ops.masked import masked_mean


def reduced(per_token: Tensor, mask: Tensor, reduce: str) -> tuple[Tensor, Tensor]:
    """(value, weight) [...] of each answer from its tokens [..., T]: sum(weight * value) / sum(weight) over any set of
    answers is `token_mean` their mean over all tokens, `sequence_mean` the mean over answers of the mean over tokens,
    `sequence_sum` the mean over answers of the sum over tokens. An answer without tokens has the value 0."""
    lengths = mask.sum(-1).to(per_token)
    if reduce == "sequence_sum":
        return torch.where(mask, per_token, 0.0).sum(-1), torch.ones_like(lengths)
    value = masked_mean(per_token, mask, dim=-1)
    return value, lengths if reduce == "token_mean" else torch.ones_like(lengths)


def log_ratio(rl: RolloutLogps) -> Tensor:
    """[..., T] log pi/old of each token."""
    return rl.logps - rl.old_logps


def clipped(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """-min(ratio A, clip(ratio, 1 - low, 1 + high) A)."""
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + high))


def by_sign(advantages: Tensor, positive: float, negative: float) -> Tensor:
    """[..., T] one number where A is above 0 and another where it is not."""
    return torch.where(advantages > 0, torch.full_like(advantages, positive), negative)


@register(reduce="sequence_sum")
def reinforce(rl: RolloutLogps) -> Tensor:
    """-A log pi, whose gradient is the score-function estimate. Williams 1992; for language models Ahmadian et al. 2024
    (2402.14740), whose RLOO is this with the advantages of leave-one-out baselines."""
    return -rl.advantages * rl.logps


@register(reduce="token_mean")
def gpg(rl: RolloutLogps) -> Tensor:
    """-A log pi, averaged over all tokens: neither ratio nor clipping nor KL. Chu et al. 2025 (2504.02546), eq. 5; its
    rescaling by the share of groups that are not all alike belongs to the advantages."""
    return -rl.advantages * rl.logps


@register(reduce="token_mean")
def cpi(rl: RolloutLogps) -> Tensor:
    """-r A, importance-weighted and without a clip: conservative policy iteration. Kakade & Langford 2002; Schulman et
    al. 2017 (1707.06347), eq. 6."""
    return -rl.advantages * bounded_exp(log_ratio(rl))


@register(reduce="token_mean")
def ppo_clip(rl: RolloutLogps, cliprange: Positive = 0.2) -> Tensor:
    """-min(r A, clip(r, 1 - cliprange, 1 + cliprange) A). Schulman et al. 2017 (1707.06347), eq. 7. What TRL calls
    `bnpo` is this, averaged over each micro-batch by itself."""
    return clipped(bounded_exp(log_ratio(rl)), rl.advantages, cliprange, cliprange)


@register(reduce="token_mean")
def dual_clip(rl: RolloutLogps, cliprange: Positive = 0.2, dual_clip: AboveOne = 3.0) -> Tensor:
    """-min(r A, clip(r) A), and where A < 0 at most -c A: a bad token's ratio counts up to c = `dual_clip` and no
    further. Ye et al. 2019 (1912.09729), eq. 5."""
    value = ppo_clip(rl, cliprange)
    return torch.where(rl.advantages < 0, torch.minimum(value, -dual_clip * rl.advantages), value)


@register(reduce="sequence_mean")
def grpo(rl: RolloutLogps, cliprange: Positive = 0.2, kl_coef: NotNegative = 0.04) -> Tensor:
    """-min(r A, clip(r) A) + kl_coef [ref/pi - 1 - log ref/pi], the k3 estimate of each token's KL to the reference.
    Shao et al. 2024 (2402.03300), eq. 3 and 4. A ref/pi beyond e^80 is held there and counted."""
    value = ppo_clip(rl, cliprange)
    if isinstance(kl_coef, Tensor) or kl_coef:
        value = value + per_row(kl_coef) * k3(bounded(rl.logps - rl.ref_logps, low=-LARGEST_EXPONENT))
    return value


@register(reduce="sequence_sum")
def dr_grpo(rl: RolloutLogps, cliprange: Positive = 0.2) -> Tensor:
    """-min(r A, clip(r) A), summed over the answer's tokens where GRPO takes their mean. Liu et al. 2025 (2503.20783),
    section 3.1. The constant that others divide the sum by (TRL: the longest length) does nothing that the learning
    rate and the gradient's clipping norm would not, so it is left to these: gradients are longer by that much."""
    return ppo_clip(rl, cliprange)


@register(reduce="token_mean")
def dapo(rl: RolloutLogps, cliprange_low: Positive = 0.2, cliprange_high: Positive = 0.28) -> Tensor:
    """-min(r A, clip(r, 1 - low, 1 + high) A): a likelier token may grow further than it may shrink. Yu et al. 2025
    (2503.14476), eq. 8; dynamic sampling and the penalty of long answers stand outside of the loss."""
    return clipped(bounded_exp(log_ratio(rl)), rl.advantages, cliprange_low, cliprange_high)


@register(reduce="token_mean")
def cispo(rl: RolloutLogps, cliprange_low: Positive = 1.0, cliprange_high: Positive = 4.0) -> Tensor:
    """-clip(r, 1 - low, 1 + high) A log pi with the clipped ratio held constant: no token loses its gradient. MiniMax
    2025 (2506.13585), eq. 4 and 5. low = 1 is no bound below, as there; r up to 5 is the choice of ScaleRL
    (2510.13786). TRL's `epsilon_high` is 1 + high."""
    weight = bounded_exp(log_ratio(rl).detach()).clamp(1 - cliprange_low, 1 + cliprange_high)
    return -weight * rl.advantages * rl.logps


@register(reduce="sequence_mean")
def sapo(rl: RolloutLogps, tau_pos: Positive = 1.0, tau_neg: Positive = 1.05) -> Tensor:
    """-A (4/tau) sigmoid(tau (r - 1)) with tau_pos where A > 0 and tau_neg elsewhere: a soft gate in the place of the
    clip, of slope 1 at r = 1. Gao et al. 2025 (2511.20347)."""
    tau = by_sign(rl.advantages, tau_pos, tau_neg)
    return -rl.advantages * torch.sigmoid(tau * (bounded_exp(log_ratio(rl)) - 1)) * 4 / tau


@register(reduce="sequence_sum")
def dppo(rl: RolloutLogps, divergence: Literal["tv", "kl"] = "tv", threshold: Positive = 0.15) -> Tensor:
    """-M r A, where M is 0 for a token that moved as its advantage asks until the divergence between Bernoulli(pi) and
    Bernoulli(old) passed `threshold`, else 1. Qi et al. 2026 (2602.04879), eq. 11 to 14, binary approximation; the
    authors take 0.15 for the total variation, 0.05 for the KL."""
    gone = divergence_from(rl.old_logps, rl.logps.detach(), divergence) > threshold
    onwards = torch.where(rl.advantages > 0, rl.logps > rl.old_logps, rl.logps < rl.old_logps)
    return torch.where(gone & onwards, 0.0, cpi(rl))


def divergence_from(old: Tensor, new: Tensor, divergence: str) -> Tensor:
    """[..., T] total variation, or KL(old || new), between the distributions "this token, or another one"."""
    if divergence == "tv":
        return (new.exp() - old.exp()).abs()
    return old.exp() * (old - new) - torch.expm1(old) * (log1mexp(old) - log1mexp(new))


@register(reduce="token_mean", coupled=True)
def kl_cov(rl: RolloutLogps, fraction: SomeShare = 2e-4, kl_coef: NotNegative = 1.0) -> Tensor:
    """-r A, plus kl_coef |log r| at the `fraction` of the minibatch's tokens (at least one) whose
    (A - mean A)(log pi - mean log pi) is largest: those that make entropy collapse. Cui et al. 2025 (2505.22617),
    KL-Cov, with the defaults of verl."""
    apart = [x - x[rl.mask].mean() for x in (rl.advantages, rl.logps.detach())]
    covariance = (apart[0] * apart[1]).masked_fill(~rl.mask, -torch.inf)
    count = max(1, int(fraction * rl.mask.sum()))
    largest = torch.zeros_like(rl.mask).flatten().index_fill(0, covariance.flatten().topk(count).indices, True)
    return cpi(rl) + torch.where(largest.view_as(rl.mask), kl_coef * log_ratio(rl).abs(), 0.0)
