"""Losses on preference pairs that hold each log-ratio by itself, h_w = log pi(w) - log ref(w) and h_l: a constant added
to both is felt. Written l(z) = -log sigmoid(z)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlpref.binding import ConfigError
from rlpref.losses.bounds import bounded_exp
from rlpref.losses.inputs import PairLogps
from rlpref.losses.pairs import log_ratios, margin
from rlpref.losses.ranges import NotNegative, Positive, Share, SomeShare
from rlpref.losses.registry import register


@register(at_ref="2 * log(2)")
def nca(lp: PairLogps, beta: Positive) -> Tensor:
    """l(beta h_w) + l(-beta h_w)/2 + l(-beta h_l)/2: noise-contrastive alignment for K = 2. Chen et al. 2024
    (2402.05369), as in the authors' code (thu-ml/Noise-Contrastive-Alignment)."""
    chosen, rejected = log_ratios(lp)
    return -logsigmoid(beta * chosen) - 0.5 * logsigmoid(-beta * chosen) - 0.5 * logsigmoid(-beta * rejected)


@register(at_ref="log(1 + exp(delta)) + log(1 + exp(-delta))")
def bco_pair(lp: PairLogps, beta: Positive, delta: float = 0.0) -> Tensor:
    """l(beta h_w - delta) + l(-(beta h_l - delta)): a binary classifier of answers with reward shift `delta`. Jung et
    al. 2024 (2404.04656) with a constant shift."""
    chosen, rejected = log_ratios(lp)
    return -logsigmoid(beta * chosen - delta) - logsigmoid(delta - beta * rejected)


@register(at_ref="((1 if labels == 'hard' else p) - 1/2)**2 / beta**2")
def sppo(lp: PairLogps, beta: Positive, labels: Literal["hard", "soft"] = "hard") -> Tensor:
    """[(h_w - (P - 1/2)/beta)^2 + (h_l + (P - 1/2)/beta)^2] / 2 with P the probability that w beats l: 1, or with
    `labels: soft` the data's soft label. Wu et al. 2024 (2405.00675), eq. 4.7; beta is the paper's 1/eta."""
    chosen, rejected = log_ratios(lp)
    target = ((1.0 if labels == "hard" else lp.soft_label) - 0.5) / beta
    return 0.5 * ((chosen - target) ** 2 + (rejected + target) ** 2)


@register(at_ref="1")
def apo_zero(lp: PairLogps, beta: Positive) -> Tensor:
    """1 - sigmoid(beta h_w) + sigmoid(beta h_l): anchored preferences, chosen up and rejected down. D'Oosterlinck et
    al. 2024 (2408.06266), eq. 7."""
    chosen, rejected = log_ratios(lp)
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


@register(at_ref="1")
def apo_down(lp: PairLogps, beta: Positive) -> Tensor:
    """sigmoid(beta h_w) + 1 - sigmoid(beta margin): both down, the rejected further. D'Oosterlinck et al. 2024
    (2408.06266), eq. 8."""
    chosen, rejected = log_ratios(lp)
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))


def link(log_ratio: Tensor, divergence: str, alpha: float | None = None) -> Tensor:
    """f'(pi/ref) up to a constant, as a function of h = log pi/ref: h for the reverse KL, 1 - e^-h for the forward KL,
    log 2 + log sigmoid(h) for Jensen-Shannon, (1 - e^(-alpha h))/alpha for the alpha-divergence (alpha -> 0: the
    reverse KL; 1: the forward KL). Wang et al. 2023 (2309.16240). TRL's coefficient is 1 - alpha."""
    if divergence == "reverse_kl":
        return log_ratio
    if divergence == "js":
        return math.log(2) + logsigmoid(log_ratio)
    if divergence == "forward_kl":
        return 1 - bounded_exp(-log_ratio)
    return (1 - bounded_exp(-alpha * log_ratio)) / alpha


@register(at_ref="log(2)", linked=True)
def f_dpo(
    lp: PairLogps,
    beta: Positive,
    divergence: Literal["forward_kl", "js", "alpha"] = "forward_kl",
    alpha: SomeShare | None = None,
) -> Tensor:
    """l(beta [f'(pi/ref at w) - f'(pi/ref at l)]) for an f-divergence in place of the reverse KL; `alpha`, from 0 to 1,
    belongs to the alpha-divergence alone. Wang et al. 2023 (2309.16240), as in the authors' code
    (alecwangcq/f-divergence-dpo)."""
    if (divergence == "alpha") != (alpha is not None):
        wants = "needs a value for" if divergence == "alpha" else "does not use"
        raise ConfigError(f"loss 'f_dpo': divergence '{divergence}' {wants} 'alpha' (algorithm.loss.alpha).")
    chosen, rejected = log_ratios(lp)
    return -logsigmoid(beta * (link(chosen, divergence, alpha) - link(rejected, divergence, alpha)))


@register(at_ref="log(2)", linked=True)
def chi_po(lp: PairLogps, beta: Positive, clip: Positive = 1.0) -> Tensor:
    """l(clip_2R(beta [phi(pi/ref at w) - phi(pi/ref at l)])) with phi(z) = z + log z, whose regulariser is chi^2 + KL,
    and R = `clip` the largest reward. Huang et al. 2024 (2407.13399), algorithm 1."""
    chosen, rejected = (bounded_exp(h) + h for h in log_ratios(lp))
    return -logsigmoid((beta * (chosen - rejected)).clamp(-2 * clip, 2 * clip))


@register(at_ref="log(2)")
def dpop(lp: PairLogps, beta: Positive, lam: NotNegative = 50.0) -> Tensor:
    """l(beta [margin - lam max(0, -h_w)]): DPO-positive, which charges for a chosen answer below the reference. Pal et
    al. 2024 (2402.13228), eq. 3; `lam` is the paper's lambda."""
    chosen, _ = log_ratios(lp)
    return -logsigmoid(beta * (margin(lp) - lam * torch.relu(-chosen)))


@register(at_ref="log(2) + 1 / (2 * beta**2)")
def cal_dpo(lp: PairLogps, beta: Positive) -> Tensor:
    """l(margin) + (h_w - 1/(2 beta))^2 + (h_l + 1/(2 beta))^2: DPO calibrated to the scale of the rewards. Xiao et al.
    2024 (2412.14516), as in the authors' code (Cal-DPO/Cal-DPO)."""
    chosen, rejected = log_ratios(lp)
    return -logsigmoid(chosen - rejected) + (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2


@register(at_ref="log(2)")
def dpo_shift(lp: PairLogps, beta: Positive, lam: Share = 0.75) -> Tensor:
    """l(beta [h_w - lam h_l]): a weaker pull on the rejected answer, lam = f(lambda) from 0 to 1. Yang et al. 2025
    (2502.07599) with a fixed f, as in the authors' code (Meaquadddd/DPO-Shift)."""
    chosen, rejected = log_ratios(lp)
    return -logsigmoid(beta * (chosen - lam * rejected))


@register(at_ref="log(2) + alpha * nll", nll=True)
def dpo_nll(lp: PairLogps, beta: Positive, alpha: NotNegative = 1.0) -> Tensor:
    """l(beta margin) - alpha log pi(w)/|w|: DPO with the chosen answer's mean token likelihood. Pang et al. 2024
    (2404.19733), iterative RPO."""
    return -logsigmoid(beta * margin(lp)) - alpha * lp.chosen / lp.chosen_len


@register(at_ref="log(2)", shift_invariant=True)
def tdpo1(lp: PairLogps, beta: Positive) -> Tensor:
    """l(beta [margin - (K_l - K_w)]) with K the sum over an answer's tokens of KL(ref || pi). Zeng et al. 2024
    (2404.11999), as in the authors' code (Vance0124/Token-level-Direct-Preference-Optimization)."""
    return -logsigmoid(beta * (margin(lp) - (lp.rejected_kl - lp.chosen_kl)))


@register(at_ref="log(2)", shift_invariant=True)
def tdpo2(lp: PairLogps, beta: Positive, alpha: NotNegative = 0.5) -> Tensor:
    """l(beta [margin - alpha (K_l - sg K_w)]), K as in tdpo1 and no gradient through K_w. Zeng et al. 2024
    (2404.11999)."""
    return -logsigmoid(beta * (margin(lp) - alpha * (lp.rejected_kl - lp.chosen_kl.detach())))
