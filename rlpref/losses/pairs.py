"""Losses on preference pairs that are functions of the margin (or of one per token), the difference of log-ratios
[log pi(w) - log ref(w)] - [log pi(l) - log ref(l)], in nats per answer. Written l(z) = -log sigmoid(z)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlpref.losses.bounds import bounded_exp
from rlpref.losses.inputs import PairLogps
from rlpref.losses.ranges import NotNegative, Positive, UpToHalf
from rlpref.losses.registry import register


def log_ratios(lp: PairLogps) -> tuple[Tensor, Tensor]:
    """[B] log policy/ref of the chosen and of the rejected answers."""
    return lp.chosen - lp.ref_chosen, lp.rejected - lp.ref_rejected


def margin(lp: PairLogps) -> Tensor:
    """[B] difference of the log-ratios."""
    chosen, rejected = log_ratios(lp)
    return chosen - rejected


def smoothed(logits: Tensor, label_smoothing: float) -> Tensor:
    """[B] (1 - eps) l(logits) + eps l(-logits): the logistic loss with labels flipped with probability eps."""
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)


@register(at_ref="log(2)", shift_invariant=True, kl_optimal=True)
def dpo(lp: PairLogps, beta: Positive, label_smoothing: UpToHalf = 0.0) -> Tensor:
    """l(beta * margin), labels flipped with probability `label_smoothing` (conservative DPO).
    Rafailov et al. 2023 (2305.18290), eq. 7; smoothing: Mitchell 2023, "A note on DPO with noisy preferences"."""
    return smoothed(beta * margin(lp), label_smoothing)


@register(at_ref="log(2)", shift_invariant=True)
def robust(lp: PairLogps, beta: Positive, label_smoothing: UpToHalf = 0.1) -> Tensor:
    """[(1 - eps) l(beta margin) - eps l(-beta margin)] / (1 - 2 eps): unbiased when labels are flipped with
    probability eps = `label_smoothing`. Chowdhury et al. 2024 (2403.00409)."""
    logits = beta * margin(lp)
    kept = -(1 - label_smoothing) * logsigmoid(logits) + label_smoothing * logsigmoid(-logits)
    return kept / (1 - 2 * label_smoothing)


@register(at_ref="1 / (4 * tau**2)", shift_invariant=True)
def ipo(lp: PairLogps, tau: Positive, normalize: Literal["sum", "mean"] = "sum") -> Tensor:
    """(margin - 1/(2 tau))^2. Azar et al. 2024 (2310.12036), eq. 17.

    `normalize: sum` is the equation; `mean` divides each log-ratio by its answer's length first (what TRL
    does), which is another objective wherever lengths differ and no longer a function of the margin.
    """
    chosen, rejected = log_ratios(lp)
    if normalize == "mean":
        chosen, rejected = chosen / lp.chosen_len, rejected / lp.rejected_len
    return (chosen - rejected - 1 / (2 * tau)) ** 2


@register(at_ref="1", shift_invariant=True)
def hinge(lp: PairLogps, beta: Positive) -> Tensor:
    """max(0, 1 - beta * margin). Zhao et al. 2023 (2305.10425) with log-ratios; Liu et al. 2024 (2309.06657)."""
    return torch.relu(1 - beta * margin(lp))


@register(at_ref="log(2)")
def dpo_norm(lp: PairLogps, beta: Positive) -> Tensor:
    """l(beta [h_w/|w| - h_l/|l|]) with the log-ratios h divided by their answers' lengths. Lambert et al. 2024
    (2411.15124): length-normalised DPO."""
    chosen, rejected = log_ratios(lp)
    return -logsigmoid(beta * (chosen / lp.chosen_len - rejected / lp.rejected_len))


@register(at_ref="log(1/2) - (log(1 - label_smoothing) + log(label_smoothing)) / 2", shift_invariant=True)
def exo(lp: PairLogps, beta: Positive, label_smoothing: UpToHalf = 1e-3) -> Tensor:
    """KL(Bernoulli(sigmoid(beta margin)) || Bernoulli(1 - eps)), the reverse KL to the labels smoothed by
    eps = `label_smoothing`, which must be above 0. Ji et al. 2024 (2402.00856), eq. 16."""
    logits = beta * margin(lp)
    log_smoothing = math.log(label_smoothing) if label_smoothing > 0 else -math.inf
    chosen = logits.sigmoid() * (logsigmoid(logits) - math.log1p(-label_smoothing))
    return chosen + (-logits).sigmoid() * (logsigmoid(-logits) - log_smoothing)


@register(at_ref="(log(2) + 1) / 2", shift_invariant=True)
def discopop(lp: PairLogps, beta: Positive, temperature: Positive = 0.05) -> Tensor:
    """(1 - g) l(z) + g exp(-z) with z = beta * margin and g = sigmoid(z / temperature): the log-ratio modulated loss.
    Lu et al. 2024 (2406.08414), eq. 5; found by a program search."""
    logits = beta * margin(lp)
    blend = logits / temperature  # its sigmoid is the weight of the exponential, which alone would overflow
    return -torch.sigmoid(-blend) * logsigmoid(logits) + bounded_exp(logsigmoid(blend) - logits)


@register(
    at_ref="dict(logistic=log(2), exponential=1, square=1, truncated_square=1, savage=1/4, hinge=1)[f]",
    shift_invariant=True,
)
def gpo(
    lp: PairLogps,
    beta: Positive,
    f: Literal["logistic", "exponential", "square", "truncated_square", "savage", "hinge"] = "exponential",
) -> Tensor:
    """f(beta * margin) for a convex f: log(1 + e^-z), e^-z, (1 - z)^2, max(0, 1 - z)^2, or the non-convex Savage loss
    (1 + e^z)^-2. Tang et al. 2024 (2402.05749); logistic is DPO, square is IPO up to scale, hinge is SLiC."""
    z = beta * margin(lp)
    if f == "exponential":
        return bounded_exp(-z)
    if f == "square":
        return (1 - z) ** 2
    if f in ("truncated_square", "hinge"):
        return torch.relu(1 - z) ** (2 if f == "truncated_square" else 1)
    return torch.sigmoid(-z) ** 2 if f == "savage" else -logsigmoid(z)


@register(at_ref="log(2)", shift_invariant=True)
def r_dpo(lp: PairLogps, beta: Positive, alpha: NotNegative = 0.01) -> Tensor:
    """l(beta margin + alpha (|w| - |l|)): a longer chosen answer has won less. Park et al. 2024 (2403.19159), eq. 9."""
    return -logsigmoid(beta * margin(lp) + alpha * (lp.chosen_len - lp.rejected_len))
