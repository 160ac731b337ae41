"""Losses on pairs that read the external rewards of both answers, or their whole minibatch. r is the score, g the
difference r(w) - r(l); l(z) = -log sigmoid(z)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from rlpref.losses.bounds import bounded
from rlpref.losses.inputs import PairLogps
from rlpref.losses.pairs import log_ratios, margin, smoothed
from rlpref.losses.ranges import NotNegative, Positive, UpToHalf
from rlpref.losses.registry import register


def score_gap(lp: PairLogps) -> Tensor:
    """[B] r(w) - r(l)."""
    return lp.chosen_score - lp.rejected_score


@register(shift_invariant=True)
def odpo(lp: PairLogps, beta: Positive, alpha: NotNegative = 1.0) -> Tensor:
    """l(beta margin - alpha log g): an answer that is better by more must win by more. Amini et al. 2024 (2402.10571),
    as in the authors' code (rycolab/odpo). g must be above 0; what is below 1e-6 is held there and counted."""
    return -logsigmoid(beta * margin(lp) - alpha * bounded(score_gap(lp), low=1e-6).log())


@register(at_ref="log(2)", shift_invariant=True, kl_optimal=True)
def soft_dpo(lp: PairLogps, beta: Positive, eta: Positive = 1.0) -> Tensor:
    """p l(beta margin) + (1 - p) l(-beta margin) with p = sigmoid(eta g), the cross-entropy to the labels that the
    scores imply: what compose-rl calls rcDPO; conservative DPO, Mitchell 2023, with a smoothing for each pair."""
    return binary_cross_entropy_with_logits(beta * margin(lp), torch.sigmoid(eta * score_gap(lp)), reduction="none")


@register(shift_invariant=True, kl_optimal=True)
def rpo_bwd_kl(lp: PairLogps, beta: Positive, eta: Positive = 1.0) -> Tensor:
    """KL(Bernoulli(sigmoid(eta g)) || Bernoulli(sigmoid(beta margin))): reward-aware preference optimisation. Adler et
    al. 2024 (2406.11704), section 3.3.3."""
    return _bernoulli_kl(eta * score_gap(lp), beta * margin(lp))


@register(shift_invariant=True, kl_optimal=True)
def rpo_fwd_kl(lp: PairLogps, beta: Positive, eta: Positive = 1.0) -> Tensor:
    """KL(Bernoulli(sigmoid(beta margin)) || Bernoulli(sigmoid(eta g))): `rpo_bwd_kl` the other way round. Adler et al.
    2024 (2406.11704)."""
    return _bernoulli_kl(beta * margin(lp), eta * score_gap(lp))


@register(shift_invariant=True, kl_optimal=True)
def rpo_sq(lp: PairLogps, beta: Positive, eta: Positive = 1.0) -> Tensor:
    """(beta margin - eta g)^2. Adler et al. 2024 (2406.11704), the squared distance."""
    return (beta * margin(lp) - eta * score_gap(lp)) ** 2


@register(shift_invariant=True, kl_optimal=True)
def rebel(lp: PairLogps, beta: Positive) -> Tensor:
    """(beta margin - g)^2: regression of relative rewards; beta is the paper's 1/eta. Gao et al. 2024 (2404.16767),
    with the reference in the place of the policy of the iterate before. The authors' code has it times eta^2."""
    return (beta * margin(lp) - score_gap(lp)) ** 2


def _bernoulli_kl(logits: Tensor, other: Tensor) -> Tensor:
    """[B] KL(Bernoulli(sigmoid(logits)) || Bernoulli(sigmoid(other)))."""
    p = torch.sigmoid(logits)
    yes, no = logsigmoid(logits) - logsigmoid(other), logsigmoid(-logits) - logsigmoid(-other)
    return p * yes + (1 - p) * no


@register(at_ref="log(2)", coupled=True, shift_invariant=True)
def aot(lp: PairLogps, beta: Positive, label_smoothing: UpToHalf = 0.0) -> Tensor:
    """l(beta [sort(log pi(w)/pi(l)) - sort(log ref(w)/ref(l))]): the policy's distribution of log-odds over the
    minibatch must dominate the reference's. Melnyk et al. 2024 (2406.05882), paired variant."""
    logits = beta * ((lp.chosen - lp.rejected).sort().values - (lp.ref_chosen - lp.ref_rejected).sort().values)
    return smoothed(logits, label_smoothing)


@register(at_ref="log(2)", coupled=True)
def aot_unpaired(lp: PairLogps, beta: Positive, label_smoothing: UpToHalf = 0.0) -> Tensor:
    """l(beta [sort(h_w) - sort(h_l)]): the log-ratios of chosen answers must dominate those of rejected ones. Melnyk et
    al. 2024 (2406.05882), unpaired variant."""
    chosen, rejected = log_ratios(lp)
    logits = beta * (chosen.sort().values - rejected.sort().values)
    return smoothed(logits, label_smoothing)


@register(at_ref="log(2)", coupled=True, shift_invariant=True)
def beta_dpo(lp: PairLogps, beta: Positive, a: NotNegative = 0.6, gap: float = 0.0) -> Tensor:
    """l(b margin) with one b = beta [1 + a (mean margin of the minibatch - gap)], at least 1e-3, without gradient. Wu
    et al. 2024 (2407.08639) with a fixed threshold `gap` where the paper's code keeps a moving mean, and
    without its random filter of pairs: a loss has neither memory nor chance."""
    between = margin(lp)
    mean = between.detach().mean()
    return -logsigmoid(bounded(beta * (1 + a * (mean - gap)), low=1e-3) * between)


@register(at_ref="1/2", coupled=True)
def kto_pair(lp: PairLogps, beta: Positive) -> Tensor:
    """[1 - sigmoid(beta (h_w - z_l)) + 1 - sigmoid(beta (z_w - h_l))] / 2 with z the mean log-ratio of the minibatch's
    other side, held at 0 and without gradient: the first version of KTO, on pairs. Ethayarajh et al. 2024
    (2402.01306v1)."""
    chosen, rejected = log_ratios(lp)
    of_chosen, of_rejected = (h.detach().mean().clamp(min=0) for h in (chosen, rejected))
    return 0.5 * (torch.sigmoid(-beta * (chosen - of_rejected)) + torch.sigmoid(-beta * (of_chosen - rejected)))
